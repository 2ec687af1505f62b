// Gradients of the live weights: one dot product each. Work is divided into parts of the samples
// and groups of the outputs. The parts depend on the shape alone and are added in order, so that
// the sums are the same for every number of threads; only the groups follow the threads.
#pragma once
#include "convolution.h"

constexpr int MAX_PARTS = 8;
constexpr int64_t MAX_PARTIAL_SUMS = 4 << 20;  // of all parts together: 16 MB
constexpr int64_t CHUNK = 48;                  // lines of a dot product before its lanes are added

// work(part, parts, first output, last output, sums of all live weights)
template <class Work>
static void in_parts(const int32_t* rows, int out, int64_t items, float* grad, int threads,
                     Work work) {
  const int64_t live = rows[out];
  const int affordable = std::max<int64_t>(1, MAX_PARTIAL_SUMS / std::max<int64_t>(live, 1));
  const int parts = std::max<int64_t>(1, std::min<int64_t>({MAX_PARTS, affordable, items}));
  const int groups = threads == 1 ? 1 : std::min(out, (2 * threads + parts - 1) / parts);
  Scratch<float> partial(parts > 1 ? parts * live : 0, 1);
  float* first = parts > 1 ? partial.of_this_thread() : grad;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
  for (int i = 0; i < parts * groups; i++) {
    const int part = i / groups, group = i % groups;
    const int o0 = (int64_t)out * group / groups, o1 = (int64_t)out * (group + 1) / groups;
    float* sums = first + part * live;
    std::fill(sums + rows[o0], sums + rows[o1], 0.f);
    work(part, parts, o0, o1, sums);
  }
  if (parts == 1) return;
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t k = 0; k < live; k++) {
    float sum = 0;
    for (int part = 0; part < parts; part++) sum += first[part * live + k];
    grad[k] = sum;
  }
}

// The output's gradient goes to a scratch of its own, on the grid of the packed input. It is zero
// in the columns that lie in the right-hand padding, so that they add nothing.
template <class E>
static void convolution_weight_gradient(const Grid& g, const Lists& lists, const E* input,
                                        const E* gradient, float* grad, int threads) {
  constexpr int elements = Line<E>::elements;
  const int64_t items = (int64_t)g.blocks() * g.bands();
  const int64_t out_plane = (int64_t)g.out_height * g.out_width * g.batch;
  const int64_t band = (int64_t)g.band * g.packed_columns;
  const int64_t longest = (band * g.block + elements - 1) / elements * elements;
  Grid h = g;
  h.channels = 1, h.height = g.out_height, h.width = g.out_width, h.pad_h = h.pad_w = 0;
  h.step_h = h.step_w = h.phases_h = h.phases_w = 1, h.packed_rows = g.band;
  Scratch<E> inputs(g.packed(g.block) + g.slack(g.block), threads);
  Scratch<E> gradients(g.out * longest, threads);
  in_parts(lists.rows, g.out, items, grad, threads,
           [&](int part, int parts, int o0, int o1, float* sums) {
    E *x = inputs.of_this_thread(), *dy = gradients.of_this_thread();
    for (int64_t item = items * part / parts; item < items * (part + 1) / parts; item++) {
      const int sample0 = item / g.bands() * g.block, row0 = item % g.bands() * g.band;
      const int samples = std::min(g.block, g.batch - sample0);
      pack(input, x, g, sample0, samples, row0);
      memset(x + g.packed(samples), 0, sizeof(E) * g.slack(samples));
      const int64_t used = band * samples, lines = (used + elements - 1) / elements;
      for (int o = o0; o < o1; o++) {
        E* row = dy + o * lines * elements;
        pack(gradient + o * out_plane, row, h, sample0, samples, row0);
        memset(row + used, 0, sizeof(E) * (lines * elements - used));
      }
      auto at = [&](int64_t k) __attribute__((always_inline)) {
        const uint32_t code = lists.codes[k];
        return ((code >> TAP_BITS) * g.plane() + g.tap_offset[code & TAP_MASK]) * samples;
      };
      for (int64_t q = 0; q < lines; q += CHUNK)
        for (int o = o0; o < o1; o++)
          dots_of_row<E>(x + q * elements, dy + (o * lines + q) * elements,
                         std::min(CHUNK, lines - q), at, sums, lists.rows[o], lists.rows[o + 1]);
    }
  });
}
