// The forward pass, and the gradient of the input, which is the same with the transposed lists.
#pragma once
#include <omp.h>
#include <memory>
#include "grid.h"

constexpr int64_t LARGE_BYTES = 4 << 20;  // results larger than several second-level caches

// The scratch buffers of one call, one for every thread.
template <class E> struct Scratch {
  std::unique_ptr<void, void (*)(void*)> memory{nullptr, free};
  int64_t size;
  Scratch(int64_t elements, int threads) : size((elements * sizeof(E) / 4096 + 1) * 4096) {
    memory.reset(aligned_alloc(4096, size * threads));
    if (!memory) throw std::bad_alloc();
  }
  E* of_this_thread() const { return (E*)((char*)memory.get() + size * omp_get_thread_num()); }
};

template <class E> struct Pass {
  const Grid grid;
  const int32_t* rows;    // of the lists of this pass, in order of the destination's phases
  const uint32_t* codes;
  const E* weights;       // in the order of `codes`
  const float* bias;
  E* out;
  const E* residual = nullptr;  // a map like `out` that is added; convolutions only
  const float* bounds = nullptr;  // results are clamped to [bounds[0], bounds[1]]
};

// Where the lines of one tile go in a plane of the destination. A line that lies in one pixel is
// written directly. Other lines are written to a buffer, and copied from it in pieces.
template <class E, int LINES> struct Target {
  struct Piece { int from, count; int64_t to; };
  static constexpr int size = LINES * Line<E>::elements;
  int64_t line[LINES];
  Piece pieces[size];
  int count = 0;
};

// The offset of a grid pixel in a plane of the destination, or -1 if it lies outside.
INLINE int64_t destination(const Grid& g, int row, int column, int phase) {
  if (row >= g.rows || column >= g.columns) return -1;
  const int y = row * g.out_step_h + phase / g.out_step_w + g.shift_h;
  const int x = column * g.out_step_w + phase % g.out_step_w + g.shift_w;
  if (y < 0 || y >= g.out_height || x < 0 || x >= g.out_width) return -1;
  return ((int64_t)y * g.out_width + x) * g.batch;
}

template <class E, int LINES, int ROWS>
static void aim(Target<E, LINES>& target, const Grid& g, const Item& item, int row, int64_t start) {
  constexpr int columns = LINES / ROWS, elements = Line<E>::elements;
  const int64_t samples = item.samples, row_size = g.packed_columns * samples;
  auto place = [&](int64_t row, int64_t element) {
    if (row >= item.rows) return int64_t(-1);
    const int64_t to = destination(g, item.row0 + row, element / samples, item.phase);
    return to < 0 ? to : to + item.sample0 + element % samples;
  };
  if (samples % elements == 0) {
    for (int t = 0; t < LINES; t++) {
      int64_t element = start + t % columns * elements;  // a tile of one row may go on in the next
      const int64_t wrapped = ROWS == 1 ? element / row_size : 0;
      target.line[t] = place(row + t / columns + wrapped, element - wrapped * row_size);
    }
    return;
  }
  // Tiles of one row only. A piece ends with its pixel, or with its row if the pixels of a row are
  // contiguous in the destination.
  const bool joined = samples == g.batch && g.out_step_w == 1;
  for (int64_t q = start, end = start + target.size; q < end;) {
    const int64_t y = q / row_size, element = q % row_size, sample = element % samples;
    const int64_t column = element / samples;
    const int64_t rest = joined && column < g.columns ? (g.columns - column) * samples : samples;
    const int count = std::min(rest - sample, end - q);
    const int64_t to = place(y, element);
    if (to >= 0) target.pieces[target.count++] = {(int)(q - start), count, to};
    q += count;
  }
}

// Adds a plane of the residual to the sums of a tile; `buffer` has room for the lines of the tile.
// Planes are too far apart for hardware prefetching, so the plane `next` is prefetched for later.
template <class E, int LINES>
INLINE void add_residual(Floats (&sum)[LINES][Line<E>::sums], const E* plane, const E* next,
                         const Target<E, LINES>& target, bool by_line, E* buffer) {
  using L = Line<E>;
  if (by_line) UNROLL for (int t = 0; t < LINES; t++) __builtin_prefetch(next + target.line[t]);
  else
    for (int i = 0; i < target.count; i++) __builtin_prefetch(next + target.pieces[i].to);
  if (!by_line)
    for (int i = 0; i < target.count; i++)
      memcpy(buffer + target.pieces[i].from, plane + target.pieces[i].to,
             sizeof(E) * target.pieces[i].count);
  UNROLL for (int t = 0; t < LINES; t++) {
    if (by_line && target.line[t] < 0) continue;
    L::add(sum[t], by_line ? plane + target.line[t] : buffer + t * L::elements);
  }
}

// Computes one tile of the grid for all outputs of the item. The sums of an output stay in
// registers while the loop goes through its live weights.
template <class E, int LINES, int ROWS>
static void tile(const Pass<E>& pass, const Item& item, const E* scratch, int row, int64_t start) {
  using L = Line<E>;
  constexpr int side = L::elements, size = LINES * side;
  const Grid& g = pass.grid;
  const int64_t samples = item.samples, row_size = g.packed_columns * samples;
  const int64_t plane = g.plane(samples), out_plane = g.out_plane();
  const int64_t* tap_offset = g.tap_offset.data();
  const int32_t* rows = pass.rows + (int64_t)item.phase * g.out;
  auto at = [&](int64_t k) __attribute__((always_inline)) {
    const uint32_t code = pass.codes[k];
    return (code >> TAP_BITS) * plane + tap_offset[code & TAP_MASK] * samples;
  };
  Target<E, LINES> target;
  if (!g.linear) aim<E, LINES, ROWS>(target, g, item, row, start);
  const bool by_line = !g.linear && samples % side == 0;
  alignas(64) E buffer[side * size];  // room for the outputs that are transposed together
  for (int o = item.out0; o < item.out1; o++) {
    Floats sum[LINES][L::sums];
    const Floats bias = broadcast(pass.bias ? pass.bias[o] : 0.f);
    UNROLL for (int t = 0; t < LINES; t++)
      UNROLL for (int i = 0; i < L::sums; i++) sum[t][i] = bias;
    if (pass.residual) {
      const E* plane = pass.residual + o * out_plane;
      const int64_t later = std::min<int64_t>(AHEAD, item.out1 - 1 - o) * out_plane;
      add_residual(sum, plane, plane + later, target, by_line, buffer);
    }
    accumulate<E, LINES, ROWS>(sum, scratch + row * row_size + start, row_size, at, pass.weights,
                               rows[o], rows[o + 1]);
    if (pass.bounds)
      UNROLL for (int t = 0; t < LINES; t++)
        UNROLL for (int i = 0; i < L::sums; i++)
          sum[t][i] = clamped(sum[t][i], pass.bounds[0], pass.bounds[1]);
    E* out = pass.out + o * out_plane;
    if (by_line) {
      UNROLL for (int t = 0; t < LINES; t++) {
        if (target.line[t] < 0) continue;
        if (item.past_caches) store_past_caches(out + target.line[t], L::rounded(sum[t]));
        else store(out + target.line[t], L::rounded(sum[t]));
      }
      continue;
    }
    const int waiting = g.linear ? (o - item.out0) % side : 0;
    UNROLL for (int t = 0; t < LINES; t++)
      store(buffer + waiting * size + t * side, L::rounded(sum[t]));
    if (!g.linear)
      for (int i = 0; i < target.count; i++)
        memcpy(out + target.pieces[i].to, buffer + target.pieces[i].from,
               sizeof(E) * target.pieces[i].count);
    else if (waiting == side - 1 || o == item.out1 - 1)
      from_lines(buffer, size, std::min<int64_t>(size, samples - start), waiting + 1,
                 pass.out + (item.sample0 + start) * g.out + o - waiting, g.out,
                 item.past_caches);
  }
}

// Computes the tiles of an item that are several rows high.
template <class E, int LINES, int ROWS>
static void tiles_of_rows(const Pass<E>& pass, const Item& item, const E* scratch) {
  const int64_t width = pass.grid.columns * item.samples;
  for (int row = 0; row < item.rows; row += ROWS)
    for (int64_t q = 0; q < width; q += LINES / ROWS * Line<E>::elements)
      tile<E, LINES, ROWS>(pass, item, scratch, row, q);
}

// Computes the tiles of the flattened grid of an item, from element `q` on. A tile whose last three
// eighths would be dropped is replaced by shorter ones.
template <class E, int LINES>
static void tiles(const Pass<E>& pass, const Item& item, const E* scratch, int64_t q = 0) {
  constexpr int side = Line<E>::elements;
  const Grid& g = pass.grid;
  const int64_t end = ((item.rows - 1) * g.packed_columns + g.columns) * item.samples;
  for (; q < end && (LINES == 1 || 8 * (end - q) > 5 * LINES * side); q += LINES * side)
    tile<E, LINES, 1>(pass, item, scratch, 0, q);
  if constexpr (LINES > 1)
    if (q < end) tiles<E, LINES / 2>(pass, item, scratch, q);
}

// Chooses tiles of two or four rows if they compute fewer results that are dropped.
template <class E> static void best_tiles(const Pass<E>& pass, const Item& item, const E* scratch) {
  using L = Line<E>;
  const Grid& g = pass.grid;
  auto up = [](int64_t a, int64_t b) { return (a + b - 1) / b * b; };
  const int64_t pixels = (item.rows - 1) * g.packed_columns + g.columns;
  const int64_t flat = up(pixels * item.samples, g.line) / g.line;
  if (flat > 4 && item.samples % g.line == 0 && !g.linear) {
    const int64_t width = g.columns * item.samples / g.line;
    const int64_t two = up(item.rows, 2) * up(width, L::tile / 2);
    const int64_t four = up(item.rows, 4) * up(width, L::tile / 4);
    if (.9 * four < flat && four <= two) return tiles_of_rows<E, L::tile, 4>(pass, item, scratch);
    if (.9 * two < flat) return tiles_of_rows<E, L::tile, 2>(pass, item, scratch);
  }
  tiles<E, L::tile>(pass, item, scratch);
}

// A thread takes an item (samples, band, part of the outputs), which depends on no other item.
template <class E> static void multiply(const Pass<E>& pass, const E* source, int threads) {
  const Grid& g = pass.grid;
  const int64_t bands = g.bands(), items = g.blocks() * bands;
  const int64_t wanted = threads == 1 ? 1 : (2 * threads + items - 1) / items;
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(g.out, wanted));
  const int phases = g.out_step_h * g.out_step_w;
  const int64_t bytes = g.out * g.out_plane() * sizeof(E);
  const bool aligned = (g.linear ? g.out : g.batch) % g.line == 0 && (uintptr_t)pass.out % 64 == 0;
  Scratch<E> scratches(g.channels * g.plane(g.block) + g.slack(g.block), threads);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < items * parts; i++) {
    Item item;
    const int64_t part = i % parts, block = i / parts % g.blocks(), band = i / parts / g.blocks();
    item.sample0 = block * g.block, item.samples = std::min(g.block, g.batch - item.sample0);
    item.row0 = band * g.band, item.rows = std::min(g.band, g.rows - item.row0);
    item.out0 = g.out * part / parts, item.out1 = g.out * (part + 1) / parts;
    item.past_caches =
        aligned && bytes >= LARGE_BYTES && (!g.linear || item.out0 % g.line == 0);
    E* scratch = scratches.of_this_thread();
    pack(source, scratch, g, item);
    for (item.phase = 0; item.phase < phases; item.phase++) best_tiles(pass, item, scratch);
  }
}
