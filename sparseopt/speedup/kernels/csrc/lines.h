// The two number formats. A "line" is the vector that one step of the inner loop loads: of floats,
// or of pairs of bfloat16. Sums are always float, so a line of bfloat16 needs two vectors of sums,
// one for its even elements and one for its odd elements.
#pragma once
#include <algorithm>
#include "vectors.h"

template <class E> struct Line;

template <> struct Line<float> {
  static constexpr int elements = LANES, sums = 1, tile = 8;  // tile: lines kept in registers
  struct Weight { Floats w; };
  INLINE Weight weight(float w) { return {broadcast(w)}; }
  INLINE void multiply_add(Floats* sum, const float* p, Weight w) { sum[0] += w.w * load(p); }
  INLINE Floats dot(Floats sum, Floats a, const float* p) { return sum + a * load(p); }
  INLINE void add(Floats* sum, const float* p) { sum[0] += load(p); }
  INLINE Floats rounded(const Floats* sum) { return sum[0]; }
};

template <> struct Line<bf16> {
  static constexpr int elements = 2 * LANES, sums = 2, tile = LANES == 8 ? 4 : 8;
  INLINE Floats even(Floats x) { return (Floats)((Words)x << 16); }
  INLINE Floats odd(Floats x) { return (Floats)((Words)x & 0xffff0000); }
  INLINE void add(Floats* sum, const bf16* p) {
    Floats x = load(p);
    sum[0] += even(x);
    sum[1] += odd(x);
  }
#if defined(__AVX512BF16__) && !defined(FLOAT_MULTIPLY_ADDS)
  // The instruction adds the products of both halves of a lane. A weight in one half and zero in
  // the other select one of the two products.
  struct Weight { __m512bh even, odd; };
  INLINE Weight weight(bf16 w) {
    __m512i low = _mm512_set1_epi32(w);
    return {(__m512bh)low, (__m512bh)_mm512_slli_epi32(low, 16)};
  }
  INLINE void multiply_add(Floats* sum, const bf16* p, Weight w) {
    __m512bh x = (__m512bh)_mm512_loadu_si512(p);
    sum[0] = _mm512_dpbf16_ps(sum[0], x, w.even);
    sum[1] = _mm512_dpbf16_ps(sum[1], x, w.odd);
  }
#else
  struct Weight { Floats w; };
  INLINE Weight weight(bf16 w) { return {broadcast(bits_to_float((uint32_t)w << 16))}; }
  INLINE void multiply_add(Floats* sum, const bf16* p, Weight w) {
    Floats x = load(p);
    sum[0] += w.w * even(x);
    sum[1] += w.w * odd(x);
  }
#endif
#if defined(__AVX512BF16__)
  INLINE Floats dot(Floats sum, Floats a, const bf16* p) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)_mm512_loadu_si512(p));
  }
  INLINE Floats rounded(const Floats* sum) {
    const Words lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const __m512i order = (__m512i)(lane | (lane + 16) << 16);  // interleaves even and odd elements
    const auto halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)sum[1], (__m512)sum[0]);
    return (Floats)_mm512_permutexvar_epi16(order, halves);
  }
#else
  INLINE Floats dot(Floats sum, Floats a, const bf16* p) {
    Floats x = load(p);
    return sum + even(a) * even(x) + odd(a) * odd(x);
  }
  INLINE Floats rounded(const Floats* sum) {
    return (Floats)((round_to_bf16(sum[0]) >> 16) | (round_to_bf16(sum[1]) & 0xffff0000));
  }
#endif
};

// For all live weights k of one row of a list: sum[t] += w[k] * (line t at the offset of k).
// The LINES lines are in ROWS rows that are `row` elements apart, and at(k) is the offset of weight
// k. A few lines alone are too few independent sums to hide the latency of multiply-adds. Then
// several weights are added to separate sums, which are added in the end.
template <class E, int LINES, int ROWS, class At>
INLINE void accumulate(Floats (&sum)[LINES][Line<E>::sums], const E* block, int64_t row, At at,
                       const E* w, int64_t k, int64_t end) {
  using L = Line<E>;
  constexpr int WAYS = LINES >= 4 ? 1 : 4 / LINES, COLUMNS = LINES / ROWS;
  Floats more[WAYS][LINES][L::sums] = {};
  UNROLL for (int t = 0; t < LINES; t++)
    UNROLL for (int i = 0; i < L::sums; i++) more[0][t][i] = sum[t][i];
  auto step = [&](int way, int64_t k) __attribute__((always_inline)) {
    const E* p = block + at(k);
    asm("" : "+r"(p));  // keeps one address in a register; GCC would compute and spill one per line
    auto weight = L::weight(w[k]);
    UNROLL for (int t = 0; t < LINES; t++)
      L::multiply_add(more[way][t], p + t / COLUMNS * row + t % COLUMNS * L::elements, weight);
  };
  for (; k + WAYS <= end; k += WAYS)
    UNROLL for (int way = 0; way < WAYS; way++) step(way, k + way);
  for (; k < end; k++) step(0, k);
  UNROLL for (int way = 1; way < WAYS; way++)
    UNROLL for (int t = 0; t < LINES; t++)
      UNROLL for (int i = 0; i < L::sums; i++) more[0][t][i] += more[way][t][i];
  UNROLL for (int t = 0; t < LINES; t++)
    UNROLL for (int i = 0; i < L::sums; i++) sum[t][i] = more[0][t][i];
}

// For j < count: grad[k + j] += the dot product of `lines` lines of the output's gradient with the
// lines of the input at the offset of weight k + j. STREAMS dot products share each loaded line of
// the gradient. If `count` is less than STREAMS, the last product is repeated and ignored.
template <class E, int STREAMS, class At>
INLINE void dots(const E* block, const E* gradient, int64_t lines, At at, float* grad, int64_t k,
                 int64_t count) {
  using L = Line<E>;
  const E* p[STREAMS];
  Floats sum[STREAMS] = {};
  UNROLL for (int j = 0; j < STREAMS; j++) p[j] = block + at(k + std::min<int64_t>(j, count - 1));
  for (int64_t t = 0; t < lines * L::elements; t += L::elements) {
    Floats g = load(gradient + t);
    UNROLL for (int j = 0; j < STREAMS; j++) sum[j] = L::dot(sum[j], g, p[j] + t);
  }
  add_sums_of_lanes(sum, grad + k, count);
}

template <class E, class At>
static void dots_of_row(const E* block, const E* gradient, int64_t lines, At at, float* grad,
                        int64_t k, int64_t end) {
  constexpr int streams = LANES < 8 ? 4 : 8;
  for (; k + 4 < end; k += streams)
    dots<E, streams>(block, gradient, lines, at, grad, k, std::min<int64_t>(streams, end - k));
  if (k < end) dots<E, 4>(block, gradient, lines, at, grad, k, end - k);
}
