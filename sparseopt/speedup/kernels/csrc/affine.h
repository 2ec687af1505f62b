// Batch normalisation in inference: a factor and a shift for each channel of a map
// [channel][row][column][sample], and the clamp of a ReLU after it.
#pragma once
#include "batch_norm.h"

// y = clamp(x * factor + shift, bounds), or y = x * factor + shift without bounds.
template <class E>
static void scale_and_shift(const E* x, const float* factor, const float* shift,
                            const float* bounds, E* y, int channels, int64_t count, int threads) {
  using L = Line<E>;
  const float low = bounds ? bounds[0] : -INFINITY, high = bounds ? bounds[1] : INFINITY;
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int c = 0; c < channels; c++) {
    const E* from = x + c * count;
    E* to = y + c * count;
    const Floats a = broadcast(factor[c]), b = broadcast(shift[c]);
    int64_t i = 0;
    for (; i + L::elements <= count; i += L::elements) {
      Floats v[L::sums];
      take(from + i, v);
      UNROLL for (int part = 0; part < L::sums; part++)
        v[part] = clamped(v[part] * a + b, low, high);
      store(to + i, L::rounded(v));
    }
    for (; i < count; i++)
      put_one(to + i, clamped(broadcast(take_one(from + i)) * a + b, low, high)[0]);
  }
}
