// Converts maps between channels-last format, [sample][pixel][channel], and the kernels' layout,
// [channel][pixel][sample]. Both are matrices of channels and entries (pixel, sample), so that
// squares of them can be transposed in registers.
#pragma once
#include "product.h"
#include "transpose.h"

// INTO converts to the kernels' layout; otherwise to channels-last format.
template <bool INTO, class E>
static void change_layout(const E* from, E* to, int64_t batch, int64_t channels, int64_t pixels,
                          int threads) {
  constexpr int64_t side = Line<E>::elements;
  const int64_t entries = pixels * batch;
  // Successive squares take successive pixels of the same samples, so they stay in the same pages
  // of both maps.
  const bool same_samples = batch % side == 0;
  // Only vectors of a full cache line are written past the caches.
  const int64_t bytes = entries * channels * sizeof(E);
  const bool aligned = (INTO ? batch : channels) % side == 0 && (uintptr_t)to % 64 == 0;
  const bool past_caches = sizeof(Floats) == 64 && bytes >= LARGE_BYTES && aligned;
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < (entries + side - 1) / side; i++) {
    const int64_t first = same_samples ? i % pixels * batch + i / pixels * side : i * side;
    const int64_t count = std::min(side, entries - first);
    int64_t entry[side];  // the places of the entries in the channels-last map
    for (int64_t k = 0, pixel = first / batch, sample = first % batch; k < count; k++, sample++) {
      if (sample == batch) sample = 0, pixel++;
      entry[k] = (sample * pixels + pixel) * channels;
    }
    for (int64_t c = 0; c < channels; c += side) {
      auto of_entry = [&](int64_t k) { return entry[k] + c; };
      auto of_channel = [&](int64_t k) { return (c + k) * entries + first; };
      const int64_t some = std::min(side, channels - c);
      if (some < side / 4) {  // most of a square would be missing
        for (int64_t j = 0; j < some; j++)
          for (int64_t k = 0; k < count; k++)
            if (INTO) to[of_channel(j) + k] = from[of_entry(k) + j];
            else to[of_entry(k) + j] = from[of_channel(j) + k];
      } else if constexpr (INTO) {
        turn_square<E, PLAIN>(from, of_entry, count, some, to, of_channel, past_caches);
      } else {
        turn_square<E, PLAIN>(from, of_channel, some, count, to, of_entry, past_caches);
      }
    }
  }
}
