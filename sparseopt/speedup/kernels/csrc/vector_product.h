// A linear layer for one token. One sample can't fill a line, and the token fits the first-level
// cache. So live weights read the token directly, without a scratch buffer.
#pragma once
#include "product.h"

// out = clamp(weights * x + bias). An output has several independent sums, which hide the latency
// of multiply-adds. They are added in a fixed order.
template <class E> static void multiply_vector(const Pass<E>& pass, const E* x, int threads) {
  constexpr int WAYS = 8;
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int o = 0; o < pass.grid.out; o++) {
    float sums[WAYS] = {pass.bias ? pass.bias[o] : 0.f};
    auto add = [&](int way, int64_t k) __attribute__((always_inline)) {
      float w, value;
      move(w, pass.weights[k]), move(value, x[pass.codes[k] >> TAP_BITS]);
      sums[way] += w * value;
    };
    int64_t k = pass.rows[o];
    for (const int64_t end = pass.rows[o + 1]; k < end; k += WAYS) {
      if (k + WAYS <= end) UNROLL for (int way = 0; way < WAYS; way++) add(way, k + way);
      else
        for (int way = 0; k + way < end; way++) add(way, k + way);
    }
    for (int n = WAYS / 2; n > 0; n /= 2)
      for (int way = 0; way < n; way++) sums[way] += sums[way + n];
    Floats sum = broadcast(sums[0]);
    if (pass.bounds) sum = clamped(sum, pass.bounds[0], pass.bounds[1]);
    move(pass.out[o], sum[0]);
  }
}
