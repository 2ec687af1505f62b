// Linear layers: [token][feature] on both sides. Blocks of tokens are transposed to lines of tokens
// in a scratch [feature][token]; there the inner loops are those of a convolution, and the outputs
// are transposed back.
#pragma once
#include "weight_gradient.h"

constexpr int64_t TOKENS_BYTES = 800000;  // of a block's scratch

INLINE Floats load_some(const void* p, int bytes) {
  Floats x = {};
  memcpy(&x, p, bytes);
  return x;
}
INLINE void exchange_halves(Floats& a, Floats& b) {  // of 16 bits: (a0 a1, b0 b1) -> (a0 b0, a1 b1)
  const Words x = (Words)a, y = (Words)b;
  a = (Floats)((x & 0xffff) | (y << 16)), b = (Floats)((x >> 16) | (y & 0xffff0000));
}

// Transposes a square of as many elements as a line has. Rows and columns that do not exist are
// zero on the way to lines, and not written on the way back. Lines themselves are always whole.
// A line of bfloat16 holds token i in the low half of lane i and token LANES + i in the high half:
// two transpositions of 32-bit lanes and one exchange of halves, in this order or back.
template <class E, bool TO_LINES, bool WHOLE>
INLINE void turn(const E* from, int64_t from_row, int rows, int columns, E* to, int64_t to_row) {
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
      if (WHOLE) store(to + row * to_row, x[i][a]);
      else if (row < columns)
        memcpy(to + row * to_row, &x[i][a], sizeof(E) * (TO_LINES ? side : rows));
    }
}

template <class E, bool TO_LINES>
static void turn_square(const E* from, int64_t from_row, int rows, int columns, E* to,
                        int64_t to_row) {
  if (rows >= Line<E>::elements && columns >= Line<E>::elements)
    turn<E, TO_LINES, true>(from, from_row, rows, columns, to, to_row);
  else
    turn<E, TO_LINES, false>(from, from_row, std::min(rows, Line<E>::elements),
                             std::min(columns, Line<E>::elements), to, to_row);
}

// `features` features of `tokens` tokens of x, `row` elements each, to lines [feature][line].
template <class E>
static void pack_tokens(const E* x, int64_t row, int tokens, int features, E* scratch, int lines) {
  constexpr int side = Line<E>::elements;
  for (int f = 0; f < features; f += side)
    for (int t = 0; t < lines; t++) {
      const int here = std::max(0, std::min(side, tokens - t * side));
      turn_square<E, true>(x + (int64_t)t * side * row + f, row, here, features - f,
                           scratch + ((int64_t)f * lines + t) * side, lines * side);
    }
}

template <class E, int LINES>
static void multiply(const Pass<E>& pass, const E* x, int64_t tokens, int in, int out,
                     int threads) {
  using L = Line<E>;
  constexpr int side = L::elements, size = LINES * side;
  const int64_t blocks = (tokens + size - 1) / size, groups = (out + side - 1) / side;
  const int64_t wanted = threads == 1 ? 1 : (2 * threads + blocks - 1) / blocks;
  const int64_t parts = std::max<int64_t>(1, std::min(groups, wanted));
  Scratch<E> scratches((int64_t)in * size, threads);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < blocks * parts; i++) {
    const int64_t first = i / parts * size, part = i % parts;
    const int here = std::min<int64_t>(size, tokens - first);
    E* scratch = scratches.of_this_thread();
    pack_tokens(x + first * in, in, here, in, scratch, LINES);
    auto at = [&](int64_t k) __attribute__((always_inline)) {
      return (int64_t)(pass.codes[k] >> TAP_BITS) * size;
    };
    alignas(64) E outputs[side * size];
    for (int64_t group = groups * part / parts; group < groups * (part + 1) / parts; group++) {
      const int o = group * side, count = std::min(side, out - o);
      for (int j = 0; j < count; j++) {
        Floats sum[LINES][L::sums];
        const Floats bias = broadcast(pass.bias ? pass.bias[o + j] : 0.f);
        UNROLL for (int t = 0; t < LINES; t++)
          UNROLL for (int i = 0; i < L::sums; i++) sum[t][i] = bias;
        accumulate<E, LINES, 1>(sum, scratch, 0, at, pass.weights, pass.rows[o + j],
                                pass.rows[o + j + 1]);
        UNROLL for (int t = 0; t < LINES; t++)
          store(outputs + j * size + t * side, L::rounded(sum[t]));
      }
      for (int t = 0; t * side < here; t++)
        turn_square<E, false>(outputs + t * side, size, count, here - t * side,
                              pass.out + (first + t * side) * out + o, out);
    }
  }
}

// As many lines as there are tokens for, and as keep the scratch in the cache.
template <class E>
static void linear(const Pass<E>& pass, const E* x, int64_t tokens, int in, int out, int threads) {
  constexpr int most = Line<E>::tile;
  const int64_t line_bytes = (int64_t)in * Line<E>::elements * sizeof(E);
  const int64_t lines = (tokens + Line<E>::elements - 1) / Line<E>::elements;
  if (lines == 1) multiply<E, 1>(pass, x, tokens, in, out, threads);
  else if (most > 4 && lines > 4 && most * line_bytes <= TOKENS_BYTES)
    multiply<E, most>(pass, x, tokens, in, out, threads);
  else multiply<E, 4>(pass, x, tokens, in, out, threads);
}

template <class E>
static void linear_dots(const int32_t* rows, const uint32_t* codes, const E* input,
                        const E* gradient, int64_t tokens, int in, int out, float* grad,
                        int threads) {
  constexpr int side = Line<E>::elements;
  const int64_t line_bytes = (int64_t)in * side * sizeof(E);
  const int64_t affordable = std::max<int64_t>(4, TOKENS_BYTES / line_bytes);
  const int64_t lines = std::min({CHUNK, affordable, (tokens + side - 1) / side});
  const int64_t size = lines * side, blocks = (tokens + size - 1) / size;
  Scratch<E> inputs(in * size, threads), gradients(side * size, threads);
  in_parts(rows, out, blocks, grad, threads,
           [&](int part, int parts, int o0, int o1, float* sums) {
    E *x = inputs.of_this_thread(), *dy = gradients.of_this_thread();
    auto at = [&](int64_t k) __attribute__((always_inline)) {
      return (int64_t)(codes[k] >> TAP_BITS) * size;
    };
    for (int64_t block = blocks * part / parts; block < blocks * (part + 1) / parts; block++) {
      const int64_t first = block * size;
      const int here = std::min(size, tokens - first);
      pack_tokens(input + first * in, in, here, in, x, lines);
      for (int o = o0; o < o1; o += side) {
        const int count = std::min(side, o1 - o);
        pack_tokens(gradient + first * out + o, out, here, count, dy, lines);
        for (int j = 0; j < count; j++)
          dots_of_row<E>(x, dy + j * size, lines, at, sums, rows[o + j], rows[o + j + 1]);
      }
    }
  });
}

// Input and gradient play the same part in a dot product. The narrower one goes to the scratch,
// which then holds more tokens.
template <class E>
static void linear_weight_gradient(const Lists& lists, const E* input, const E* gradient,
                                   int64_t tokens, int in, int out, float* grad, int threads) {
  if (in <= out)
    return linear_dots(lists.rows, lists.codes, input, gradient, tokens, in, out, grad, threads);
  Scratch<float> transposed(lists.live, 1);
  const float* sums = transposed.of_this_thread();
  linear_dots(lists.columns, lists.transposed_codes, gradient, input, tokens, out, in,
              transposed.of_this_thread(), threads);
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t j = 0; j < lists.live; j++) grad[lists.order[j]] = sums[j];
}
