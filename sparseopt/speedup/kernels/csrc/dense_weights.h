// Copies between a dense weight and its live values, row by row. A row is all weights of one
// output. It is one piece of memory, contiguous or channels-last, and mostly fits the first-level
// cache. So one pass through memory is enough for an operation on the full row and one on its live
// weights.
#pragma once
#include "lists.h"

// For every row: begin(offset of its first weight), then visit(k, offset) for its live weights.
template <class Begin, class Visit>
static void for_rows(const Lists& lists, const Layer& layer, const int64_t* stride, int threads,
                     Begin begin, Visit visit) {
  std::vector<int64_t> tap_offset(layer.taps());
  for (int tap = 0; tap < layer.taps(); tap++)
    tap_offset[tap] = tap / layer.kernel_w * stride[2] + tap % layer.kernel_w * stride[3];
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int o = 0; o < layer.out; o++) {
    begin(o * stride[0]);
    for (int64_t k = lists.rows[o]; k < lists.rows[o + 1]; k++) {
      const uint32_t code = lists.codes[k];
      visit(k, o * stride[0] + (code >> TAP_BITS) * stride[1] + tap_offset[code & TAP_MASK]);
    }
  }
}

template <class Bits> static int64_t count_nonzero(const Bits* bits, int64_t count) {
  uint32_t found = 0;
  for (int64_t i = 0; i < count; i++) found += bits[i] != 0;
  return found;
}

INLINE const uint32_t* bits_of(const float* p) { return (const uint32_t*)p; }
INLINE const uint16_t* bits_of(const bf16* p) { return p; }

template <class E>
static void gather(const Lists& lists, const Layer& layer, const int64_t* stride, int threads,
                   const E* from, float* values) {
  for_rows(
      lists, layer, stride, threads, [](int64_t) {},
      [=](int64_t k, int64_t at) { move(values[k], from[at]); });
}

// Gathers live values, and returns how many of the other weights have any bit set.
template <class E>
static int64_t gather_and_count(const Lists& lists, const Layer& layer, const int64_t* stride,
                                int threads, const E* from, float* values) {
  int64_t others = 0;
  const int64_t size = (int64_t)layer.in * layer.taps();
  for_rows(
      lists, layer, stride, threads,
      [&](int64_t first) {
        const int64_t found = count_nonzero(bits_of(from + first), size);
#pragma omp atomic
        others += found;
      },
      [=](int64_t k, int64_t at) { move(values[k], from[at]); });
  return others - count_nonzero(bits_of(values), lists.live);
}

// Writes the full dense weight: the values at live positions, and zeros elsewhere.
template <class E>
static void scatter_with_zeros(const Lists& lists, const Layer& layer, const int64_t* stride,
                               int threads, const float* values, E* to) {
  const int64_t size = (int64_t)layer.in * layer.taps();
  for_rows(
      lists, layer, stride, threads, [=](int64_t first) { memset(to + first, 0, size * sizeof(E)); },
      [=](int64_t k, int64_t at) { move(to[at], values[k]); });
}
