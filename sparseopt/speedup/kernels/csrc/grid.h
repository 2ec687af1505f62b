// The geometry of one pass over a convolution.
//
// Tensors are [channel][row][column][sample]. A pass copies a block of samples and a band of rows
// of its source, padding included, to a scratch [channel][phase][row][column][sample] that fits
// the second-level cache. There every live weight is one offset, and
//
//   destination[o][q] = sum over the live weights k of row o:  w[k] * scratch[offset(k) + q]
//
// where q runs over the flattened (row, column, sample) of a grid. The lanes of a vector are
// samples where there are many, and pixels where there is one. Columns of the grid that lie in the
// right-hand padding are computed in vain and thrown away.
//
// A stride splits the source into phases (forward, gradient of the weights), or the destination
// (gradient of the input, which is a convolution of the output's gradient at stride 1).
#pragma once
#include <algorithm>
#include <vector>
#include "lines.h"
#include "lists.h"

struct Sizes { int batch, height, width, out_height, out_width; };

struct Grid {
  int batch, channels, height, width;    // the source
  int step_h, step_w, phases_h, phases_w, pad_h, pad_w;
  int packed_rows, packed_columns, extra_rows;  // of one phase of the scratch
  int out, out_height, out_width;        // the destination
  int rows, columns;                     // of the grid
  int out_step_h, out_step_w, shift_h, shift_w;  // grid -> destination: row * step + phase + shift
  int block, band;                       // samples and grid rows at a time
  std::vector<int64_t> tap_offset;       // in pixels of the scratch

  int blocks() const { return (batch + block - 1) / block; }
  int bands() const { return (rows + band - 1) / band; }
  int64_t plane() const { return (int64_t)phases_h * phases_w * packed_rows * packed_columns; }
  int64_t packed(int samples) const { return channels * plane() * samples; }
  // The last lines may reach behind the last pixel: by a tile, and by rows of a tile of four.
  int64_t slack(int samples) const { return (int64_t)packed_columns * samples * 4 + 32 * LANES; }
};

constexpr int64_t CACHE_BYTES = 700000;  // most of a second-level cache
constexpr int AHEAD = 8;                 // pixels; strides of whole batches escape the prefetcher

// As few bands as fit the cache; every band packs `extra_rows` rows that its neighbour packs, too.
static void choose_bands(Grid& g, int64_t bytes_of_row) {
  int bands = 1;
  auto rows = [&] { return (g.rows + bands - 1) / bands; };
  while (rows() > 1 && (rows() + g.extra_rows) * bytes_of_row > CACHE_BYTES) bands++;
  g.band = rows();
  g.packed_rows = g.band + g.extra_rows;
}

template <class E> static int samples_at_a_time(int batch) {
  return std::min(batch, std::max(Line<E>::elements, 16));
}

// Forward, and the gradient of the weights, which also keeps the output's gradient in the cache.
template <class E>
static Grid grid_of_outputs(const Layer& l, const Sizes& s, bool with_gradient) {
  Grid g = {};
  const int reach_h = (l.kernel_h - 1) * l.dilation_h, reach_w = (l.kernel_w - 1) * l.dilation_w;
  g.batch = s.batch, g.channels = l.in, g.height = s.height, g.width = s.width;
  g.step_h = l.stride_h, g.step_w = l.stride_w, g.pad_h = l.pad_h, g.pad_w = l.pad_w;
  g.phases_h = std::min(l.stride_h, reach_h + 1), g.phases_w = std::min(l.stride_w, reach_w + 1);
  g.out = l.out, g.rows = g.out_height = s.out_height, g.columns = g.out_width = s.out_width;
  g.out_step_h = g.out_step_w = 1;
  g.extra_rows = reach_h / l.stride_h, g.packed_columns = g.columns + reach_w / l.stride_w;
  g.block = samples_at_a_time<E>(s.batch);
  const int64_t copies = (int64_t)g.channels * g.phases_h * g.phases_w + with_gradient * l.out;
  choose_bands(g, copies * g.packed_columns * g.block * sizeof(E));
  for (int tap = 0; tap < l.taps(); tap++) {
    const int row = tap / l.kernel_w * l.dilation_h, column = tap % l.kernel_w * l.dilation_w;
    const int64_t phase = row % l.stride_h * g.phases_w + column % l.stride_w;
    g.tap_offset.push_back((phase * g.packed_rows + row / l.stride_h) * g.packed_columns +
                           column / l.stride_w);
  }
  return g;
}

// Gradient of the input: padded input row = m * stride + phase, and tap `row` of that phase meets
// gradient row m - row / stride.
template <class E> static Grid grid_of_inputs(const Layer& l, const Sizes& s) {
  Grid g = {};
  const int first_h = l.pad_h / l.stride_h, first_w = l.pad_w / l.stride_w;
  const int reach_h = (l.kernel_h - 1) * l.dilation_h / l.stride_h;
  const int reach_w = (l.kernel_w - 1) * l.dilation_w / l.stride_w;
  g.batch = s.batch, g.channels = l.out, g.height = s.out_height, g.width = s.out_width;
  g.step_h = g.step_w = g.phases_h = g.phases_w = 1;
  g.pad_h = reach_h - first_h, g.pad_w = reach_w - first_w;
  g.out = l.in, g.out_height = s.height, g.out_width = s.width;
  g.rows = (s.height - 1 + l.pad_h) / l.stride_h - first_h + 1;
  g.columns = (s.width - 1 + l.pad_w) / l.stride_w - first_w + 1;
  g.out_step_h = l.stride_h, g.out_step_w = l.stride_w;
  g.shift_h = first_h * l.stride_h - l.pad_h, g.shift_w = first_w * l.stride_w - l.pad_w;
  g.extra_rows = reach_h, g.packed_columns = g.columns + reach_w;
  g.block = samples_at_a_time<E>(s.batch);
  choose_bands(g, (int64_t)g.channels * g.packed_columns * g.block * sizeof(E));
  for (int tap = 0; tap < l.taps(); tap++) {
    const int row = tap / l.kernel_w * l.dilation_h, column = tap % l.kernel_w * l.dilation_w;
    g.tap_offset.push_back((reach_h - row / l.stride_h) * g.packed_columns + reach_w -
                           column / l.stride_w);
  }
  return g;
}

// The few zeros beside a row are not worth the call of a function.
template <class E> INLINE void clear(E* p, int64_t count) {
  for (; count >= Line<E>::elements; count -= Line<E>::elements, p += Line<E>::elements)
    store(p, Floats{});
  while (count-- > 0) *p++ = 0;
}

// Copies `samples` samples from sample0 on and a band from grid row row0 on to the scratch.
template <class E>
static void pack(const E* source, E* scratch, const Grid& g, int sample0, int samples, int row0) {
  auto clamp = [&](int column) { return std::max(0, std::min(g.packed_columns, column)); };
  const int64_t pixel = (int64_t)g.step_w * g.batch;
  for (int c = 0; c < g.channels; c++)
    for (int phase_h = 0; phase_h < g.phases_h; phase_h++)
      for (int phase_w = 0; phase_w < g.phases_w; phase_w++) {
        const int offset = g.pad_w - phase_w;  // packed column j is source column j * step - offset
        const int first = clamp((std::max(offset, 0) + g.step_w - 1) / g.step_w);
        const int last = std::max(first, clamp((g.width - 1 + offset + g.step_w) / g.step_w));
        for (int j = 0; j < g.packed_rows; j++, scratch += (int64_t)g.packed_columns * samples) {
          const int row = (row0 + j) * g.step_h + phase_h - g.pad_h;
          if (row < 0 || row >= g.height || first == last) {
            memset(scratch, 0, sizeof(E) * g.packed_columns * samples);
            continue;
          }
          E* to = scratch + (int64_t)first * samples;
          const int count = last - first, column = first * g.step_w - offset;
          const int64_t place = ((int64_t)c * g.height + row) * g.width + column;
          const E* from = source + place * g.batch + sample0;
          clear(scratch, (int64_t)first * samples);
          clear(scratch + (int64_t)last * samples, (int64_t)(g.packed_columns - last) * samples);
          if (g.step_w == 1 && samples == g.batch)
            memcpy(to, from, sizeof(E) * count * samples);
          else if (samples == Line<E>::elements)
            for (int i = 0; i < count; i++, to += Line<E>::elements, from += pixel) {
              __builtin_prefetch(from + AHEAD * pixel);
              store(to, load(from));
            }
          else if (samples == 1)
            for (int i = 0; i < count; i++) to[i] = from[i * pixel];
          else
            for (int i = 0; i < count; i++, to += samples, from += pixel)
              memcpy(to, from, sizeof(E) * samples);
        }
      }
}
