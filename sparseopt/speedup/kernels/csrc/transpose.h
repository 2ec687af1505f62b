// Converts [sample][channel], the layout of a linear layer's tensors, to lines of samples, and
// back. Squares of elements are transposed in registers.
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

// Transposes a square whose side is the number of elements of a line. Missing rows and columns are
// read as zeros when lines are made, and not written when lines are converted back. Lines are
// always full.
//
// A line of bfloat16 has token i in the low half of lane i, and token LANES + i in the high half.
// To make such lines, two squares of 32-bit lanes are transposed, and then 16-bit halves are
// exchanged. The way back exchanges halves first.
template <class E, bool TO_LINES, bool WHOLE>
INLINE void turn(const E* from, int64_t from_row, int rows, int columns, E* to, int64_t to_row,
                 bool past_caches) {
  constexpr int side = Line<E>::elements, pieces = Line<E>::sums;
  Floats x[pieces][LANES];
  UNROLL for (int i = 0; i < pieces; i++)
    UNROLL for (int a = 0; a < LANES; a++) {
      const int row = TO_LINES ? i * LANES + a : a * pieces + i;
      if (WHOLE) x[i][a] = load(from + row * from_row);
      else if (row >= rows) x[i][a] = Floats{};
      else if (TO_LINES) x[i][a] = load_some(from + row * from_row, columns * sizeof(E));
      else x[i][a] = load(from + row * from_row);
    }
  if constexpr (pieces == 2 && !TO_LINES)
    UNROLL for (int a = 0; a < LANES; a++) exchange_halves(x[0][a], x[1][a]);
  UNROLL for (int i = 0; i < pieces; i++) transpose(x[i]);
  if constexpr (pieces == 2 && TO_LINES)
    UNROLL for (int a = 0; a < LANES; a++) exchange_halves(x[0][a], x[1][a]);
  UNROLL for (int i = 0; i < pieces; i++)
    UNROLL for (int a = 0; a < LANES; a++) {
      const int row = TO_LINES ? a * pieces + i : i * LANES + a;
      if (WHOLE && !TO_LINES && past_caches) store_past_caches(to + row * to_row, x[i][a]);
      else if (WHOLE) store(to + row * to_row, x[i][a]);
      else if (row < columns)
        memcpy(to + row * to_row, &x[i][a], sizeof(E) * (TO_LINES ? side : rows));
    }
}

template <class E, bool TO_LINES>
static void turn_square(const E* from, int64_t from_row, int64_t rows, int64_t columns, E* to,
                        int64_t to_row, bool past_caches = false) {
  constexpr int64_t side = Line<E>::elements;
  if (rows >= side && columns >= side)
    turn<E, TO_LINES, true>(from, from_row, side, side, to, to_row, past_caches);
  else
    turn<E, TO_LINES, false>(from, from_row, std::min(rows, side), std::min(columns, side), to,
                             to_row, false);
}

// Converts samples, which are `row` elements apart, to lines of samples: channels, which are
// `plane` elements apart.
template <class E>
static void to_lines(const E* from, int64_t row, int64_t samples, int channels, E* to,
                     int64_t plane) {
  constexpr int side = Line<E>::elements;
  for (int c = 0; c < channels; c += side)
    for (int64_t s = 0; s < samples; s += side)
      turn_square<E, true>(from + s * row + c, row, samples - s, channels - c, to + c * plane + s,
                           plane);
}

// The inverse, for at most as many channels as a line has elements.
template <class E>
static void from_lines(const E* from, int64_t plane, int64_t samples, int channels, E* to,
                       int64_t row, bool past_caches) {
  for (int64_t s = 0; s < samples; s += Line<E>::elements)
    turn_square<E, false>(from + s, plane, channels, samples - s, to + s * row, row,
                          past_caches);
}
