// Transposes squares of elements in registers. This converts [sample][channel], the layout of a
// linear layer's tensors, to lines of samples, and back.
#pragma once
#include "lines.h"

INLINE Floats load_some(const void* p, int bytes) {
  Floats x = {};
  memcpy(&x, p, bytes);
  return x;
}
INLINE void exchange_halves(Floats& a, Floats& b) {  // of 16 bits: (a0 a1, b0 b1) -> (a0 b0, a1 b1)
  const Words x = (Words)a, y = (Words)b;
  a = (Floats)((x & 0xffff) | (y << 16)), b = (Floats)((x >> 16) | (y & 0xffff0000));
}

// How a square is transposed. A line of bfloat16 that is made from a linear layer's tensor has
// token i in the low half of lane i, and token LANES + i in the high half.
enum Order { TO_LINES, FROM_LINES, PLAIN };

// Transposes a square whose side is the number of elements of a line. Row k starts at from_row(k),
// row k of the result at to_row(k). Missing rows and columns are read as zeros when lines are made,
// and not written otherwise. Lines that are made are always full.
//
// To transpose elements of 16 bits, two squares of 32-bit lanes are transposed, and then 16-bit
// halves are exchanged. The way back from lines exchanges halves first.
template <class E, Order ORDER, bool WHOLE, class From, class To>
INLINE void turn(const E* from, From from_row, int rows, int columns, E* to, To to_row,
                 bool past_caches) {
  constexpr int side = Line<E>::elements, pieces = Line<E>::sums;
  Floats x[pieces][LANES];
  UNROLL for (int i = 0; i < pieces; i++)
    UNROLL for (int a = 0; a < LANES; a++) {
      const int row = ORDER == TO_LINES ? i * LANES + a : a * pieces + i;
      if (WHOLE) x[i][a] = load(from + from_row(row));
      else if (row >= rows) x[i][a] = Floats{};
      else if (ORDER == FROM_LINES) x[i][a] = load(from + from_row(row));
      else x[i][a] = load_some(from + from_row(row), columns * sizeof(E));
    }
  if constexpr (pieces == 2 && ORDER == FROM_LINES)
    UNROLL for (int a = 0; a < LANES; a++) exchange_halves(x[0][a], x[1][a]);
  UNROLL for (int i = 0; i < pieces; i++) transpose(x[i]);
  if constexpr (pieces == 2 && ORDER != FROM_LINES)
    UNROLL for (int a = 0; a < LANES; a++) exchange_halves(x[0][a], x[1][a]);
  UNROLL for (int i = 0; i < pieces; i++)
    UNROLL for (int a = 0; a < LANES; a++) {
      const int row = ORDER == FROM_LINES ? i * LANES + a : a * pieces + i;
      if (WHOLE && past_caches) store_past_caches(to + to_row(row), x[i][a]);
      else if (WHOLE) store(to + to_row(row), x[i][a]);
      else if (row < columns)
        memcpy(to + to_row(row), &x[i][a], sizeof(E) * (ORDER == TO_LINES ? side : rows));
    }
}

template <class E, Order ORDER, class From, class To>
static void turn_square(const E* from, From from_row, int64_t rows, int64_t columns, E* to,
                        To to_row, bool past_caches = false) {
  constexpr int64_t side = Line<E>::elements;
  if (rows >= side && columns >= side)
    turn<E, ORDER, true>(from, from_row, side, side, to, to_row, past_caches);
  else
    turn<E, ORDER, false>(from, from_row, std::min(rows, side), std::min(columns, side), to, to_row,
                          false);
}

// Converts samples, which are `row` elements apart, to lines of samples: channels, which are
// `plane` elements apart.
template <class E>
static void to_lines(const E* from, int64_t row, int64_t samples, int channels, E* to,
                     int64_t plane) {
  constexpr int side = Line<E>::elements;
  auto of_sample = [=](int64_t k) { return k * row; };
  auto of_channel = [=](int64_t k) { return k * plane; };
  for (int c = 0; c < channels; c += side)
    for (int64_t s = 0; s < samples; s += side)
      turn_square<E, TO_LINES>(from + s * row + c, of_sample, samples - s, channels - c,
                               to + c * plane + s, of_channel);
}

// The inverse, for at most as many channels as a line has elements.
template <class E>
static void from_lines(const E* from, int64_t plane, int64_t samples, int channels, E* to,
                       int64_t row, bool past_caches) {
  auto of_sample = [=](int64_t k) { return k * row; };
  auto of_channel = [=](int64_t k) { return k * plane; };
  for (int64_t s = 0; s < samples; s += Line<E>::elements)
    turn_square<E, FROM_LINES>(from + s, of_channel, channels, samples - s, to + s * row, of_sample,
                               past_caches);
}
