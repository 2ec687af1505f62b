// A linear layer for one token. One sample can't fill a line, and the token fits the first-level
// cache. So live weights read the token directly, without a scratch buffer.
#pragma once
#include "product.h"

INLINE const float* as_floats(const float* x, int64_t, std::vector<float>&) { return x; }
static const float* as_floats(const bf16* x, int64_t count, std::vector<float>& copy) {
  copy.resize(count);
  for (int64_t i = 0; i < count; i++) move(copy[i], x[i]);
  return copy.data();
}

typedef float Four __attribute__((vector_size(16)));
typedef float FourInMemory __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t FourInts __attribute__((vector_size(16)));

INLINE Four load_four(const float* p) { return *(const FourInMemory*)p; }
INLINE Four load_four(const bf16* p) {
  Four result;
  UNROLL for (int i = 0; i < 4; i++) result[i] = bits_to_float((uint32_t)p[i] << 16);
  return result;
}

// In weights. A large layer's channels and weights come from memory, and are read once. Hardware
// alone prefetches them too late.
constexpr int64_t WEIGHTS_AHEAD = 512;
constexpr int WAYS = 4;           // independent sums, which hide the latency of multiply-adds
constexpr int BLOCK = 4 * WAYS;   // weights

// Returns the sum of weights[k] * inputs[codes[k] >> SHIFT] for `count` weights, in a fixed order.
// `left` weights, at least `count`, may be read.
//
// Algorithm: blocks of weights, of which the last one counts in part. Branches for a rest of any
// length would be mispredicted in most rows, which takes as long as many weights.
template <int SHIFT, class E, class Code>
INLINE float sum_of_products(const E* weights, const Code* codes, int64_t count, int64_t left,
                             const float* inputs) {
  auto input_of = [=](int64_t k) __attribute__((always_inline)) {
    uint64_t channel = codes[k] >> SHIFT;
    asm("" : "+r"(channel));  // GCC would gather the inputs into vectors, which takes longer
    return inputs[channel];
  };
  if ((count + BLOCK - 1) / BLOCK * BLOCK > left) {
    float sum = 0;
    for (int64_t k = 0; k < count; k++) {
      float w;
      move(w, weights[k]);
      sum += w * input_of(k);
    }
    return sum;
  }
  Four sums[WAYS] = {};
  for (int64_t k = 0; k < count; k += BLOCK) {
    __builtin_prefetch(codes + k + WEIGHTS_AHEAD);
    __builtin_prefetch(weights + k + WEIGHTS_AHEAD);
    UNROLL for (int way = 0; way < WAYS; way++) {
      const int64_t i = k + 4 * way;
      const Four x = {input_of(i), input_of(i + 1), input_of(i + 2), input_of(i + 3)};
      const FourInts counts = FourInts{0, 1, 2, 3} + 4 * way < (int32_t)(count - k);
      sums[way] += (Four)((FourInts)(load_four(weights + i) * x) & counts);
    }
  }
  const Four four = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  return (four[0] + four[1]) + (four[2] + four[3]);
}

// out = clamp(weights * x + bias). Weight k multiplies input `codes[k] >> SHIFT`.
template <int SHIFT, class E, class Code>
static void multiply_vector(const Pass<E>& pass, const Code* codes, const E* x, int threads) {
  std::vector<float> copy;  // each input is read many times, so it is converted once
  const float* inputs = as_floats(x, pass.grid.channels, copy);
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int o = 0; o < pass.grid.out; o++) {
    const int64_t first = pass.rows[o], count = pass.rows[o + 1] - first;
    const float products = sum_of_products<SHIFT>(pass.weights + first, codes + first, count,
                                                  pass.rows[pass.grid.out] - first, inputs);
    Floats sum = broadcast(pass.bias ? products + pass.bias[o] : products);
    if (pass.bounds) sum = clamped(sum, pass.bounds[0], pass.bounds[1]);
    move(pass.out[o], sum[0]);
  }
}
