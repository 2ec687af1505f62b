// Sums over tokens: the gradient of the bias of a linear layer.
#pragma once
#include <algorithm>
#include <vector>
#include "batch_norm.h"

constexpr int64_t COLUMNS_AT_A_TIME = 2048;  // their sums fit the first-level cache
constexpr int64_t TOKENS_AT_A_TIME = 32;     // float sums of so many are added in double

// sums[j] = the sum over tokens of x[token][j].
template <class E>
static void sum_tokens(const E* x, int64_t tokens, int64_t columns, float* sums, int threads) {
  using L = Line<E>;
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t first = 0; first < columns; first += COLUMNS_AT_A_TIME) {
    const int64_t count = std::min(columns - first, COLUMNS_AT_A_TIME);
    const int64_t lines = count / L::elements;
    std::vector<float> some(count);
    std::vector<double> all(count, 0.0);
    for (int64_t token = 0; token < tokens; token += TOKENS_AT_A_TIME) {
      std::fill(some.begin(), some.end(), 0.f);
      // A line of bfloat16 has two vectors of sums: for even elements, then for odd elements.
      for (int64_t t = token; t < std::min(tokens, token + TOKENS_AT_A_TIME); t++) {
        const E* from = x + t * columns + first;
        for (int64_t line = 0; line < lines; line++) {
          Floats v[L::sums];
          take(from + line * L::elements, v);
          float* to = some.data() + line * L::elements;
          UNROLL for (int part = 0; part < L::sums; part++)
            store(to + part * LANES, load(to + part * LANES) + v[part]);
        }
        for (int64_t j = lines * L::elements; j < count; j++) some[j] += take_one(from + j);
      }
      for (int64_t line = 0; line < lines; line++)
        for (int j = 0; j < L::elements; j++)
          all[line * L::elements + j] +=
              some[line * L::elements + j % L::sums * LANES + j / L::sums];
      for (int64_t j = lines * L::elements; j < count; j++) all[j] += some[j];
    }
    std::copy(all.begin(), all.end(), sums + first);
  }
}
