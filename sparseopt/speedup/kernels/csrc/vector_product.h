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

// In weights. A large layer's codes and weights come from memory, and are read once. Hardware alone
// prefetches them too late.
constexpr int64_t WEIGHTS_AHEAD = 512;

// out = clamp(weights * x + bias). An output has several independent sums, which hide the latency
// of multiply-adds. They are added in a fixed order.
template <class E> static void multiply_vector(const Pass<E>& pass, const E* x, int threads) {
  constexpr int WAYS = 4;
  std::vector<float> copy;  // each input is read many times, so it is converted once
  const float* inputs = as_floats(x, pass.grid.channels, copy);
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int o = 0; o < pass.grid.out; o++) {
    float sums[WAYS] = {pass.bias ? pass.bias[o] : 0.f};
    auto add = [&](int way, int64_t k) __attribute__((always_inline)) {
      uint64_t channel = pass.codes[k] >> TAP_BITS;
      asm("" : "+r"(channel));  // GCC would gather the inputs into vectors, which takes longer
      float w;
      move(w, pass.weights[k]);
      sums[way] += w * inputs[channel];
    };
    int64_t k = pass.rows[o];
    const int64_t end = pass.rows[o + 1];
    for (; k + WAYS <= end; k += WAYS) {
      __builtin_prefetch(pass.codes + k + WEIGHTS_AHEAD);
      __builtin_prefetch(pass.weights + k + WEIGHTS_AHEAD);
      UNROLL for (int way = 0; way < WAYS; way++) add(way, k + way);
    }
    for (; k < end; k++) add(0, k);
    Floats sum = broadcast((sums[0] + sums[1]) + (sums[2] + sums[3]));
    if (pass.bounds) sum = clamped(sum, pass.bounds[0], pass.bounds[1]);
    move(pass.out[o], sum[0]);
  }
}
