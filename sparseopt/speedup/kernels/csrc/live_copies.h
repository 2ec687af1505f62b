// Copies between a dense tensor and a tensor of its live entries only. The mask has one bit per
// entry, bit k % 64 of word k / 64, and zeros after the last entry. Most cache lines of the dense
// tensor have a live entry. So the tensor is read sequentially, which is fastest, and live entries
// are compressed in registers. Entries are only moved, so they have an unsigned integer type of
// their size.
#pragma once
#include "vectors.h"

constexpr int WORD = 64;
constexpr int PAGE = 4096;  // bytes; hardware prefetching stops at the end of a page
INLINE int count(uint64_t bits) { return __builtin_popcountll(bits); }

#if LANES == 16
// Operations on registers of entries, some with a mask bit for each entry. Masked-out entries are
// neither read nor written, so they may lie outside a tensor. Masked reads from memory take several
// times as long as full reads (measured on AMD's family 26), so they are left to the last entries.
template <class E> constexpr int HOLDS = sizeof(E) == 8 ? 8 : 16;
INLINE __mmask16 first(int many) { return (1u << many) - 1; }
INLINE __m512i read(const uint16_t* p) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
}
INLINE __m512i read(const uint32_t* p) { return _mm512_loadu_si512(p); }
INLINE __m512i read(const uint64_t* p) { return _mm512_loadu_si512(p); }
INLINE __m512i read(const uint16_t* p, __mmask16 m) {
  return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, p));
}
INLINE __m512i read(const uint32_t* p, __mmask16 m) { return _mm512_maskz_loadu_epi32(m, p); }
INLINE __m512i read(const uint64_t* p, __mmask16 m) { return _mm512_maskz_loadu_epi64(m, p); }
INLINE void write(uint16_t* p, __m512i x) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(x));
}
INLINE void write(uint32_t* p, __m512i x) { _mm512_storeu_si512(p, x); }
INLINE void write(uint64_t* p, __m512i x) { _mm512_storeu_si512(p, x); }
INLINE void write_past_caches(uint16_t* p, __m512i x) {
  _mm256_stream_si256((__m256i*)p, _mm512_cvtepi32_epi16(x));
}
INLINE void write_past_caches(uint32_t* p, __m512i x) { _mm512_stream_si512((__m512i*)p, x); }
INLINE void write_past_caches(uint64_t* p, __m512i x) { _mm512_stream_si512((__m512i*)p, x); }
INLINE void write(uint16_t* p, __m512i x, __mmask16 m) {
  _mm256_mask_storeu_epi16(p, m, _mm512_cvtepi32_epi16(x));
}
INLINE void write(uint32_t* p, __m512i x, __mmask16 m) { _mm512_mask_storeu_epi32(p, m, x); }
INLINE void write(uint64_t* p, __m512i x, __mmask16 m) { _mm512_mask_storeu_epi64(p, m, x); }
template <class E> INLINE __m512i compress(__m512i x, __mmask16 m) {
  return sizeof(E) == 8 ? _mm512_maskz_compress_epi64(m, x) : _mm512_maskz_compress_epi32(m, x);
}
template <class E> INLINE __m512i expand(__m512i x, __mmask16 m) {
  return sizeof(E) == 8 ? _mm512_maskz_expand_epi64(m, x) : _mm512_maskz_expand_epi32(m, x);
}
template <class E> INLINE __m512i masked(__m512i x, __mmask16 m) {
  return sizeof(E) == 8 ? _mm512_maskz_mov_epi64(m, x) : _mm512_maskz_mov_epi32(m, x);
}

// Gathers the live entries of a word. Full registers are read if the word is `full`, and written if
// there is room for a full word. The next words overwrite the surplus entries.
template <class E>
INLINE void gather(uint64_t bits, const E* dense, E* live, bool full, int64_t room) {
  UNROLL for (int i = 0; i < WORD; i += HOLDS<E>) {
    const __mmask16 m = bits >> i & first(HOLDS<E>);
    __builtin_prefetch((const void*)((uintptr_t)(dense + i) + PAGE));
    const __m512i x = compress<E>(full ? read(dense + i) : read(dense + i, m), m);
    room >= WORD ? write(live, x) : write(live, x, first(count(m)));
    live += count(m);
  }
}

// Writes a full word, the live entries and zeros. Each entry is written once.
template <class E> INLINE void spread(uint64_t bits, const E* live, E* dense, bool past_caches) {
  UNROLL for (int i = 0; i < WORD; i += HOLDS<E>) {
    const __mmask16 m = bits >> i & first(HOLDS<E>);
    const __m512i x = expand<E>(read(live, first(count(m))), m);
    past_caches ? write_past_caches(dense + i, x) : write(dense + i, x);
    live += count(m);
  }
}

template <class E> INLINE void keep(uint64_t bits, E* dense) {
  UNROLL for (int i = 0; i < WORD; i += HOLDS<E>)
    write(dense + i, masked<E>(read(dense + i), bits >> i & first(HOLDS<E>)));
}
#else
template <class E> INLINE void gather(uint64_t bits, const E* dense, E* live, bool, int64_t) {
  for (; bits; bits &= bits - 1) *live++ = dense[__builtin_ctzll(bits)];
}

template <class E> INLINE void spread(uint64_t bits, const E* live, E* dense, bool) {
  E word[WORD] = {};
  for (; bits; bits &= bits - 1) word[__builtin_ctzll(bits)] = *live++;
  memcpy(dense, word, sizeof word);
}

template <class E> INLINE void keep(uint64_t bits, E* dense) {
  for (uint32_t half : {(uint32_t)bits, (uint32_t)(bits >> 32)})
    for (int i = 0; i < 32; i++) *dense++ &= -(E)(half >> i & 1);
}
#endif

INLINE int64_t count(const uint64_t* bits, int64_t from, int64_t to) {
  int64_t live = 0;
  for (; from < to; from++) live += count(bits[from]);
  return live;
}

// Calls visit(word, index of its first live entry, room from there on). Each thread visits a range
// of words; `room` ends with the live entries of this range.
template <class Visit>
static void for_words(const uint64_t* bits, int64_t words, int threads, Visit visit) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int part = 0; part < threads; part++) {
    int64_t word = words * part / threads;
    const int64_t last = words * (part + 1) / threads;
    int64_t live = count(bits, 0, word);
    const int64_t end = live + count(bits, word, last);
    for (; word < last; live += count(bits[word++])) visit(word, live, end - live);
  }
}

// Gathers from one tensor, or from two tensors at once, which hides the latency of memory better.
template <class E>
static void gather_live(const uint64_t* bits, int64_t words, const E* one, E* live_one,
                        const E* other, E* live_other, int threads) {
  for_words(bits, words, threads, [=](int64_t word, int64_t live, int64_t room) {
    const bool full = word + 1 < words;  // the last word may be shorter
    gather(bits[word], one + WORD * word, live_one + live, full, room);
    if (other) gather(bits[word], other + WORD * word, live_other + live, full, room);
  });
}

constexpr int64_t LARGE = 1 << 20;  // bytes

// Writes each entry once, with its final value, because other threads may read the tensor
// meanwhile. Large tensors are written past the caches: their network has more weights than the
// caches can keep until the next read.
template <class E>
static void write_live(const uint64_t* bits, int64_t size, const E* live, E* dense, int threads) {
  const bool past_caches = size * (int64_t)sizeof(E) >= LARGE && (uintptr_t)dense % 64 == 0;
  for_words(bits, (size + WORD - 1) / WORD, threads, [=](int64_t word, int64_t first, int64_t) {
    E* const to = dense + WORD * word;
    if (size - WORD * word >= WORD) return spread(bits[word], live + first, to, past_caches);
    E rest[WORD];
    spread(bits[word], live + first, rest, false);
    memcpy(to, rest, (size - WORD * word) * sizeof(E));
  });
}

// Sets all entries that are not live to zero.
template <class E>
static void keep_live(const uint64_t* bits, int64_t size, E* dense, int threads) {
  const int64_t words = size / WORD;
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t word = 0; word < words; word++) keep(bits[word], dense + WORD * word);
  for (int64_t i = words * WORD; i < size; i++)
    if (!(bits[words] >> i % WORD & 1)) dense[i] = 0;
}
