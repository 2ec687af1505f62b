// Converts maps between channels-last format, [sample][pixel][channel], and the kernels' layout,
// [channel][pixel][sample]. A buffer in the first-level cache lets memory be read and written in
// runs of full cache lines.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

constexpr int CHANNELS_OF_BUFFER = 64;
constexpr int BYTES_OF_RUN = 128;  // of one channel: pixels times samples

// INTO converts to the kernels' layout; otherwise to channels-last format. E is any type that has
// the size of the elements.
template <bool INTO, class E>
static void change_layout(const E* from, E* to, int64_t batch, int64_t channels, int64_t pixels,
                          int threads) {
  constexpr int64_t most = BYTES_OF_RUN / sizeof(E);
  const int64_t samples = std::min(batch, most);                 // in a buffer
  const int64_t together = std::max<int64_t>(1, most / batch);   // pixels, if all samples fit
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t pixel = 0; pixel < pixels; pixel += together) {
    E buffer[CHANNELS_OF_BUFFER][most];
    const int64_t some_pixels = std::min(together, pixels - pixel);
    for (int64_t sample = 0; sample < batch; sample += samples)
      for (int64_t channel = 0; channel < channels; channel += CHANNELS_OF_BUFFER) {
        const int64_t n_samples = std::min(samples, batch - sample);
        const int64_t n_channels = std::min<int64_t>(CHANNELS_OF_BUFFER, channels - channel);
        const int64_t run = some_pixels * n_samples;
        auto of_channel = [&](int64_t c) {
          return ((channel + c) * pixels + pixel) * batch + sample;
        };
        auto of_entry = [&](int64_t n, int64_t p) {
          return ((sample + n) * pixels + pixel + p) * channels + channel;
        };
        if (!INTO)
          for (int64_t c = 0; c < n_channels; c++)
            memcpy(buffer[c], from + of_channel(c), run * sizeof(E));
        for (int64_t p = 0; p < some_pixels; p++)
          for (int64_t n = 0; n < n_samples; n++)
            for (int64_t c = 0; c < n_channels; c++) {
              if (INTO) buffer[c][p * n_samples + n] = from[of_entry(n, p) + c];
              else to[of_entry(n, p) + c] = buffer[c][p * n_samples + n];
            }
        if (INTO)
          for (int64_t c = 0; c < n_channels; c++)
            memcpy(to + of_channel(c), buffer[c], run * sizeof(E));
      }
  }
}
