// The geometry of one pass over a layer.
//
// Tensors of a convolution are [channel][row][column][sample]. A pass copies a block of samples and
// a band of rows of its source, padding included, to a scratch buffer
// [channel][phase][row][column][sample] that fits the second-level cache. In the scratch buffer,
// every live weight has one offset, and
//
//   destination[o][q] = sum over the live weights k of row o:  w[k] * scratch[offset(k) + q]
//
// where q runs over the flattened (row, column, sample) of a grid. The lanes of a vector are
// samples if there are many samples, and pixels if there is one sample. Columns of the grid in the
// right-hand padding are computed too, and their results are dropped.
//
// A stride splits the source into phases (forward, gradient of the weights), or the destination
// (gradient of the input, which is a convolution of the output's gradient at stride 1).
//
// If the convolution's kernel is one pixel, the shape of a map does not matter: every pixel of
// every sample counts as a sample. A linear layer is computed like that, on tensors
// [sample][channel]. They are transposed when they are copied to the scratch buffer, and back for
// the destination.
#pragma once
#include <vector>
#include "lists.h"
#include "transpose.h"

struct Sizes { int64_t batch, height, width, out_height, out_width, linear; };

struct Grid {
  bool linear = false;
  int line;                              // elements of a line
  int64_t batch, block;                  // samples in the tensors, and in one block
  int channels, height = 1, width = 1;   // of the source
  int row_channels;                      // channels between two samples in memory, if linear
  int step_h = 1, step_w = 1, phases_h = 1, phases_w = 1, pad_h = 0, pad_w = 0;
  int packed_rows = 1, packed_columns = 1, extra_rows = 0;  // of one phase of the scratch buffer
  int out, out_height = 1, out_width = 1;  // of the destination
  int rows = 1, columns = 1, band = 1;   // of the grid, and rows of one band
  int out_step_h = 1, out_step_w = 1, shift_h = 0, shift_w = 0;  // row * step + phase + shift
  std::vector<int64_t> tap_offset;       // in pixels of the scratch buffer

  int64_t blocks() const { return (batch + block - 1) / block; }
  int bands() const { return (rows + band - 1) / band; }
  int64_t out_plane() const { return (int64_t)out_height * out_width * batch; }
  // Elements from one channel to the next in the scratch buffer. If this were a multiple of 16
  // lines, all channels would share a few sets of the first-level cache.
  int64_t plane(int64_t samples) const {
    int64_t size = (int64_t)phases_h * phases_w * packed_rows * packed_columns * samples;
    if (linear) size = (size + line - 1) / line * line;
    return size % (16 * line) ? size : size + 8 * line;
  }
  // Elements after the last channel: the last tile may read past the last pixel, by its lines and
  // by up to four rows.
  int64_t slack(int64_t samples) const { return packed_columns * samples * 4 + 16 * line; }
};

// One unit of work: a block of samples, a band of rows, a phase, and a range of outputs.
struct Item {
  int64_t sample0, samples;
  int row0, rows, phase, out0, out1;
  bool past_caches;
};

constexpr int64_t CACHE_BYTES = 820000;  // most of a second-level cache
constexpr int AHEAD = 8;                 // lines; hardware does not prefetch strides of a batch

template <class E>
static Grid grid_of_samples(int channels, int out, int64_t samples, bool linear) {
  Grid g;
  g.linear = linear, g.line = Line<E>::elements;
  g.batch = samples, g.channels = g.row_channels = channels, g.out = out;
  // Half of the cache is for the lists of a linear layer, which are long and read for every tile.
  const int64_t lines = (linear ? CACHE_BYTES / 2 : CACHE_BYTES) / (channels * LANES * 4);
  g.block = std::min(samples, g.line * (lines < 8 ? 4 : lines / 8 * 8));
  g.tap_offset = {0};
  return g;
}

static bool is_pointwise(const Layer& l) {
  return l.taps() == 1 && l.phases() == 1 && l.pad_h == 0 && l.pad_w == 0;
}

// Chooses blocks and bands of a convolution: the fewest bands that fit the cache. Fewer is better,
// because two bands that are next to each other both pack the same `extra_rows` rows.
template <class E> static void choose_bands(Grid& g, int64_t batch) {
  g.line = Line<E>::elements;
  g.batch = batch, g.block = std::min<int64_t>(batch, std::max(g.line, 16));
  const int64_t bytes_of_row =
      (int64_t)g.channels * g.phases_h * g.phases_w * g.packed_columns * g.block * sizeof(E);
  int bands = 1;
  do {
    g.band = (g.rows + bands - 1) / bands;
    g.packed_rows = g.band + g.extra_rows;
  } while (g.band > 1 && g.packed_rows * bytes_of_row > CACHE_BYTES && bands++);
}

// The grid of the forward pass, and of the gradient of the weights.
template <class E> static Grid grid_of_outputs(const Layer& l, const Sizes& s) {
  if (is_pointwise(l))
    return grid_of_samples<E>(l.in, l.out, s.batch * s.height * s.width, s.linear);
  Grid g;
  const int reach_h = (l.kernel_h - 1) * l.dilation_h, reach_w = (l.kernel_w - 1) * l.dilation_w;
  g.channels = l.in, g.height = s.height, g.width = s.width;
  g.step_h = l.stride_h, g.step_w = l.stride_w, g.pad_h = l.pad_h, g.pad_w = l.pad_w;
  g.phases_h = std::min(l.stride_h, reach_h + 1), g.phases_w = std::min(l.stride_w, reach_w + 1);
  g.out = l.out, g.rows = g.out_height = s.out_height, g.columns = g.out_width = s.out_width;
  g.extra_rows = reach_h / l.stride_h, g.packed_columns = g.columns + reach_w / l.stride_w;
  choose_bands<E>(g, s.batch);
  for (int tap = 0; tap < l.taps(); tap++) {
    const int row = tap / l.kernel_w * l.dilation_h, column = tap % l.kernel_w * l.dilation_w;
    const int64_t phase = row % l.stride_h * g.phases_w + column % l.stride_w;
    g.tap_offset.push_back((phase * g.packed_rows + row / l.stride_h) * g.packed_columns +
                           column / l.stride_w);
  }
  return g;
}

// The grid of the gradient of the input. A row of the padded input is m * stride + phase. It gets
// contributions of the kernel rows `row` of the same phase, from row m - row / stride of the
// gradient.
template <class E> static Grid grid_of_inputs(const Layer& l, const Sizes& s) {
  if (is_pointwise(l))
    return grid_of_samples<E>(l.out, l.in, s.batch * s.height * s.width, s.linear);
  Grid g;
  const int first_h = l.pad_h / l.stride_h, first_w = l.pad_w / l.stride_w;
  const int reach_h = (l.kernel_h - 1) * l.dilation_h / l.stride_h;
  const int reach_w = (l.kernel_w - 1) * l.dilation_w / l.stride_w;
  g.channels = l.out, g.height = s.out_height, g.width = s.out_width;
  g.pad_h = reach_h - first_h, g.pad_w = reach_w - first_w;
  g.out = l.in, g.out_height = s.height, g.out_width = s.width;
  g.rows = (s.height - 1 + l.pad_h) / l.stride_h - first_h + 1;
  g.columns = (s.width - 1 + l.pad_w) / l.stride_w - first_w + 1;
  g.out_step_h = l.stride_h, g.out_step_w = l.stride_w;
  g.shift_h = first_h * l.stride_h - l.pad_h, g.shift_w = first_w * l.stride_w - l.pad_w;
  g.extra_rows = reach_h, g.packed_columns = g.columns + reach_w;
  choose_bands<E>(g, s.batch);
  for (int tap = 0; tap < l.taps(); tap++) {
    const int row = tap / l.kernel_w * l.dilation_h, column = tap % l.kernel_w * l.dilation_w;
    g.tap_offset.push_back((reach_h - row / l.stride_h) * g.packed_columns + reach_w -
                           column / l.stride_w);
  }
  return g;
}

// Copies elements, and prefetches the elements that are `ahead` further.
template <class E> INLINE void copy(E* to, const E* from, int64_t count, int64_t ahead) {
  constexpr int line = Line<E>::elements;
  for (; count >= line; count -= line, to += line, from += line) {
    __builtin_prefetch(from + ahead);
    store(to, load(from));
  }
  while (count-- > 0) *to++ = *from++;
}

// Writes zeros. There are few beside a row, so calling memset() would take longer.
template <class E> INLINE void clear(E* p, int64_t count) {
  for (; count >= Line<E>::elements; count -= Line<E>::elements, p += Line<E>::elements)
    store(p, Floats{});
  while (count-- > 0) *p++ = 0;
}

// Copies the samples of an item, from its first grid row on, to the scratch buffer.
template <class E> static void pack(const E* source, E* scratch, const Grid& g, const Item& item) {
  const int64_t samples = item.samples, plane = g.plane(samples);
  if (g.linear)
    return to_lines(source + item.sample0 * g.row_channels, g.row_channels, samples, g.channels,
                    scratch, plane);
  const int64_t pixel = g.step_w * g.batch;
  const int64_t ahead = std::max<int64_t>(1, AHEAD * g.line / samples) * pixel;
  const bool joined = g.step_w == 1 && samples == g.batch;
  auto clamp = [&](int column) { return std::max(0, std::min(g.packed_columns, column)); };
  for (int c = 0; c < g.channels; c++, scratch += plane) {
    E* row_start = scratch;
    for (int phase = 0; phase < g.phases_h * g.phases_w; phase++) {
      const int phase_h = phase / g.phases_w, phase_w = phase % g.phases_w;
      const int offset = g.pad_w - phase_w;  // packed column j is source column j * step - offset
      const int first = clamp((std::max(offset, 0) + g.step_w - 1) / g.step_w);
      const int last = std::max(first, clamp((g.width - 1 + offset + g.step_w) / g.step_w));
      for (int j = 0; j < g.packed_rows; j++, row_start += g.packed_columns * samples) {
        const int row = (item.row0 + j) * g.step_h + phase_h - g.pad_h;
        if (row < 0 || row >= g.height || first == last) {
          clear(row_start, g.packed_columns * samples);
          continue;
        }
        const int64_t place = ((int64_t)c * g.height + row) * g.width + first * g.step_w - offset;
        const E* from = source + place * g.batch + item.sample0;
        clear(row_start, first * samples);
        clear(row_start + last * samples, (g.packed_columns - last) * samples);
        auto copy_pixels = [&](int64_t samples) __attribute__((always_inline)) {
          for (int i = first; i < last; i++, from += pixel)
            copy(row_start + i * samples, from, samples, ahead);
        };
        if (samples == 1 && pixel == 2)  // the compiler vectorizes a constant stride
          for (int i = first; i < last; i++) row_start[i] = from[2 * (i - first)];
        else if (joined) copy(row_start + first * samples, from, (last - first) * samples, ahead);
        else if (samples == Line<E>::elements) copy_pixels(Line<E>::elements);
        else copy_pixels(samples);
      }
    }
    *row_start = 0;  // the last pair's other half is read with weight 0, and 0 * NaN is NaN
    clear(row_start, scratch + plane - row_start);
  }
}
