// Vectors of 32-bit lanes for every instruction set. Most code uses the vector extensions of GCC
// and Clang. Intrinsics are used only for operations that the extensions do not have.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#elif defined(__AVX2__)
#include <immintrin.h>
#define LANES 8
#else
#define LANES 4
#endif
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
// The same vector in memory, at any address that is a multiple of 2, and of any declared type.
typedef float FloatsInMemory __attribute__((vector_size(LANES * 4), aligned(2), may_alias));
typedef uint16_t bf16;  // the bits of a bfloat16

INLINE Floats load(const void* p) { return *(const FloatsInMemory*)p; }
INLINE void store(void* p, Floats x) { *(FloatsInMemory*)p = x; }
// Writes a large result without reading its cache lines first. The address has to be a multiple of
// the size of the vector.
INLINE void store_past_caches(void* p, Floats x) {
#if LANES == 16
  _mm512_stream_ps((float*)p, (__m512)x);
#elif LANES == 8
  _mm256_stream_ps((float*)p, (__m256)x);
#else
  store(p, x);
#endif
}
INLINE Floats broadcast(float x) { return x - Floats{}; }
// Clamps to [low, high]. A NaN stays NaN.
INLINE Floats clamped(Floats x, float low, float high) {
  x = x < low ? broadcast(low) : x;
  return x > high ? broadcast(high) : x;
}
INLINE float bits_to_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Words){__VA_ARGS__})
#endif
#if LANES == 16
#define FIRST_HALVES 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define LAST_HALVES 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif LANES == 8
#define FIRST_HALVES 0, 8, 1, 9, 2, 10, 3, 11
#define LAST_HALVES 4, 12, 5, 13, 6, 14, 7, 15
#else
#define FIRST_HALVES 0, 4, 1, 5
#define LAST_HALVES 2, 6, 3, 7
#endif
INLINE Floats zip_first(Floats a, Floats b) { return SHUFFLE(a, b, FIRST_HALVES); }
INLINE Floats zip_last(Floats a, Floats b) { return SHUFFLE(a, b, LAST_HALVES); }

// Transposes a LANES x LANES matrix, by log2(LANES) perfect shuffles of its rows.
INLINE void transpose(Floats (&rows)[LANES]) {
  UNROLL for (int done = 1; done < LANES; done *= 2) {
    Floats next[LANES];
    UNROLL for (int a = 0; a < LANES / 2; a++) {
      next[2 * a] = zip_first(rows[a], rows[a + LANES / 2]);
      next[2 * a + 1] = zip_last(rows[a], rows[a + LANES / 2]);
    }
    UNROLL for (int a = 0; a < LANES; a++) rows[a] = next[a];
  }
}

INLINE float sum_of_lanes(Floats x) {
  float sum = 0;
  for (int i = 0; i < LANES; i++) sum += x[i];
  return sum;
}

#if LANES == 16
// out[j] += the sum of the lanes of x[j], for four vectors.
INLINE void add_four_sums(const Floats* x, float* out) {
  __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
  __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
  __m512 c = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
  __m256 d = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(c), 1));
  __m256 e = _mm256_add_ps(_mm512_castps512_ps256(c), d);
  __m128 sums = _mm_add_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm_loadu_ps(out), sums));
}
#endif

// out[j] += the sum of the lanes of x[j], for the first `count` of N vectors; N is a power of two.
// Algorithm: zip and add the first and last half of the vectors, until one vector is left. Its lane
// i belongs to x[i % N].
template <int N> INLINE void add_sums_of_lanes(Floats (&x)[N], float* out, int64_t count) {
#if LANES == 16
  if (count == N) {
    UNROLL for (int j = 0; j < N; j += 4) add_four_sums(x + j, out + j);
    return;
  }
#endif
  UNROLL for (int n = N / 2; n > 0; n /= 2)
    UNROLL for (int j = 0; j < n; j++) x[j] = zip_first(x[j], x[j + n]) + zip_last(x[j], x[j + n]);
  float lanes[LANES];
  store(lanes, x[0]);
  UNROLL for (int i = N; i < LANES; i++) lanes[i % N] += lanes[i];
  for (int64_t j = 0; j < count; j++) out[j] += lanes[j];
}

// Rounds to nearest, ties to even. The bfloat16 is the high half of a lane. A NaN stays NaN.
INLINE Words round_to_bf16(Floats x) {
  Words bits = (Words)x, rounded = bits + 0x7fff + ((bits >> 16) & 1);
  Words nan = (Words)((bits & 0x7fffffff) > 0x7f800000);
  return (rounded & ~nan) | ((bits | 0x400000) & nan);
}
