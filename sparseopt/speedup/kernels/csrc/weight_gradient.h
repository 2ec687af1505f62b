// Gradients of the live weights, one dot product for each. The work is divided into parts of the
// samples and groups of the outputs. Only the number of groups depends on the number of threads.
// The number of parts does not, and parts are added in order. So the sums are the same for every
// number of threads.
#pragma once
#include "product.h"

constexpr int MAX_PARTS = 8;
constexpr int64_t MAX_PARTIAL_SUMS = 4 << 20;  // of all parts together: 16 MB
constexpr int64_t CHUNK = 128;                 // lines of a dot product before its lanes are added

// Calls work(part, parts, first output, end of the outputs, sums of all live weights).
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

// The scratch buffer of a thread has `together` channels of the input. The fewer channels, the more
// lines a dot product has. The output's gradient has a separate scratch buffer, on the grid of the
// packed input. It is zero in columns in the right-hand padding, so these add nothing.
template <class E>
static void add_dots(const Grid& whole, int together, const int32_t* rows, const uint32_t* codes,
                     const E* input, const E* gradient, float* grad, int threads) {
  Grid g = whole;
  g.channels = together;
  const bool linear = g.linear;
  const int64_t blocks = g.blocks(), bands = g.bands();
  const int groups = (whole.channels + together - 1) / together;  // of input channels
  const int64_t items = groups * bands * blocks;
  std::vector<int32_t> starts;  // of each group in row 0, and the end of row 0; then of row 1
  for (int o = 0; o < g.out; o++) {
    int32_t k = rows[o];
    for (int group = 0; group < groups; group++, starts.push_back(k))
      while (k < rows[o + 1] && (int)(codes[k] >> TAP_BITS) < group * together) k++;
    starts.push_back(rows[o + 1]);
  }
  const int64_t in_plane = linear ? 1 : g.height * g.width * g.batch;
  const int64_t out_plane = linear ? 1 : g.out_plane();
  const int64_t* tap_offset = g.tap_offset.data();
  Grid of_gradient = g;  // for the outputs that are transposed together
  of_gradient.channels = linear ? g.line : 1, of_gradient.row_channels = g.out;
  of_gradient.height = g.out_height, of_gradient.width = g.out_width;
  of_gradient.packed_rows = g.band, of_gradient.pad_h = of_gradient.pad_w = 0;
  of_gradient.step_h = of_gradient.step_w = of_gradient.phases_h = of_gradient.phases_w = 1;
  Scratch<E> inputs(g.channels * g.plane(g.block) + g.slack(g.block), threads);
  Scratch<E> gradients(of_gradient.channels * of_gradient.plane(g.block) + g.line, threads);
  in_parts(rows, g.out, items, grad, threads,
           [&](int part, int parts, int o0, int o1, float* sums) {
    Grid g = whole, h = of_gradient;  // copies for this thread, whose number of channels changes
    E *x = inputs.of_this_thread(), *dy = gradients.of_this_thread();
    for (int64_t i = items * part / parts; i < items * (part + 1) / parts; i++) {
      Item item = {};
      item.sample0 = i % blocks * g.block, item.row0 = i / blocks % bands * g.band;
      item.samples = std::min(g.block, g.batch - item.sample0);
      const int group = i / blocks / bands, channel0 = group * together;
      g.channels = std::min(together, whole.channels - channel0);
      const int64_t samples = item.samples, plane = g.plane(samples);
      const int64_t used = (int64_t)g.band * g.packed_columns * samples;
      const int64_t lines = (used + g.line - 1) / g.line;
      auto at = [&](int64_t k) __attribute__((always_inline)) {
        const uint32_t code = codes[k];
        return ((code >> TAP_BITS) - channel0) * plane + tap_offset[code & TAP_MASK] * samples;
      };
      pack(input + channel0 * in_plane, x, g, item);
      memset(x + g.channels * plane, 0, sizeof(E) * g.slack(samples));
      for (int o = o0; o < o1; o++) {
        const int waiting = linear ? (o - o0) % g.line : 0;
        E* row = dy + waiting * h.plane(samples);
        if (linear) h.channels = std::min(g.line, o1 - o);
        if (waiting == 0) pack(gradient + o * out_plane, dy, h, item);
        if (!linear) clear(dy + used, lines * g.line - used);
        const int32_t* k = starts.data() + (int64_t)o * (groups + 1) + group;
        for (int64_t q = 0; q < lines; q += CHUNK)
          dots_of_row<E>(x + q * g.line, row + q * g.line, std::min(CHUNK, lines - q), at, sums,
                         k[0], k[1]);
      }
    }
  });
}

// If a kernel is one pixel, input and gradient can change places in the dot products. Then the one
// with fewer channels is packed into the scratch buffer by channel groups.
template <class E>
static void weight_gradient(const Layer& l, const Sizes& s, const Lists& lists, const E* input,
                            const E* gradient, float* grad, int threads) {
  Layer part = l;  // the channels that are in the scratch buffer at a time
  // A linear layer is not split by channels: transposing its output's gradient once more for each
  // split would take as long as the split saves.
  const int most = s.linear ? std::max(l.in, l.out) : std::max(64, 256 / l.taps());
  part.in = std::min(most, l.in), part.out = std::min(most, l.out);
  if (!is_pointwise(l) || l.in <= l.out) {
    Grid g = grid_of_outputs<E>(part, s);
    g.channels = g.row_channels = l.in, g.out = l.out;
    return add_dots(g, part.in, lists.rows, lists.codes, input, gradient, grad, threads);
  }
  Grid g = grid_of_inputs<E>(part, s);
  g.channels = g.row_channels = l.out, g.out = l.in;
  Scratch<float> transposed(lists.live, 1);
  float* sums = transposed.of_this_thread();
  add_dots(g, part.out, lists.columns, lists.transposed_codes, gradient, input, sums, threads);
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t j = 0; j < lists.live; j++) grad[lists.order[j]] = sums[j];
}
