// Batch normalisation in training, forward and backward, of maps [channel][row][column][sample].
//
// A channel is contiguous in memory, and mostly fits the second-level cache. So it is read from
// memory once, although the code below reads it several times. One thread computes a channel, so
// results do not depend on the number of threads. Sums over a few thousand elements are float, and
// these sums are added in double. Variances are sums of squared differences from the mean.
#pragma once
#include <algorithm>
#include <cmath>
#include "lines.h"

constexpr int64_t SUMMED_AS_FLOATS = 4096;  // elements

// Loads a line as floats. A line of bfloat16 becomes two vectors: its even elements, and its odd
// elements. L::rounded() is the inverse.
INLINE void take(const float* p, Floats (&x)[1]) { x[0] = load(p); }
INLINE void take(const bf16* p, Floats (&x)[2]) {
  const Words pair = (Words)load(p);
  x[0] = (Floats)(pair << 16), x[1] = (Floats)(pair & 0xffff0000);
}
INLINE float take_one(const float* p) { return *p; }
INLINE float take_one(const bf16* p) { return bits_to_float((uint32_t)*p << 16); }
INLINE void put_one(float* p, float x) { *p = x; }
INLINE void put_one(bf16* p, float x) { *p = round_to_bf16(broadcast(x))[0] >> 16; }

// Sums SUMS functions over the elements of a channel. of_line(i, sums) adds the functions of a line
// of elements that starts at i, one part of the line at a time. of_one(i, total) adds the functions
// of element i.
template <class E, int SUMS, class OfLine, class OfOne>
static void sum_up(int64_t count, double (&total)[SUMS], OfLine of_line, OfOne of_one) {
  using L = Line<E>;
  constexpr int WAYS = 2;  // independent sums, which hide the latency of additions
  for (int s = 0; s < SUMS; s++) total[s] = 0;
  int64_t i = 0;
  while (i + L::elements <= count) {
    const int64_t end = std::min(count, i + SUMMED_AS_FLOATS);
    Floats sums[WAYS][L::sums][SUMS] = {};
    for (; i + WAYS * L::elements <= end; i += WAYS * L::elements)
      UNROLL for (int way = 0; way < WAYS; way++) of_line(i + way * L::elements, sums[way]);
    for (; i + L::elements <= end; i += L::elements) of_line(i, sums[0]);
    for (int s = 0; s < SUMS; s++) {
      Floats all = {};
      for (int way = 0; way < WAYS; way++)
        for (int part = 0; part < L::sums; part++) all += sums[way][part][s];
      total[s] += sum_of_lanes(all);
    }
  }
  for (; i < count; i++) of_one(i, total);
}

// Statistics of each channel: y = (x - mean) * factor + shift. `variance` is for the running
// variance, so its divisor is count - 1.
struct Statistics {
  float *mean, *inverse, *variance, *factor, *shift;  // inverse: 1 / standard deviation
  Statistics(float* all, int64_t channels)
      : mean(all), inverse(all + channels), variance(all + 2 * channels),
        factor(all + 3 * channels), shift(all + 4 * channels) {}
};

template <class E>
static void normalise(const E* x, const float* weight, const float* bias, float eps, E* y,
                      Statistics of, int channels, int64_t count, int threads) {
  using L = Line<E>;
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int c = 0; c < channels; c++) {
    const E* from = x + c * count;
    E* to = y + c * count;
    double sum[1], squares[2];
    sum_up<E>(
        count, sum,
        [&](int64_t i, Floats (&sums)[L::sums][1]) __attribute__((always_inline)) {
          Floats v[L::sums];
          take(from + i, v);
          UNROLL for (int part = 0; part < L::sums; part++) sums[part][0] += v[part];
        },
        [&](int64_t i, double (&total)[1]) { total[0] += take_one(from + i); });
    const float middle = of.mean[c] = (float)(sum[0] / count);
    const Floats middles = broadcast(middle);
    // The mean is rounded to float. The sum of the differences from it is the rounding error times
    // count, by which squares and shift are corrected.
    sum_up<E>(
        count, squares,
        [&](int64_t i, Floats (&sums)[L::sums][2]) __attribute__((always_inline)) {
          Floats v[L::sums];
          take(from + i, v);
          UNROLL for (int part = 0; part < L::sums; part++) {
            const Floats d = v[part] - middles;
            sums[part][0] += d, sums[part][1] += d * d;
          }
        },
        [&](int64_t i, double (&total)[2]) {
          const double d = take_one(from + i) - middle;
          total[0] += d, total[1] += d * d;
        });
    const double all = std::max(0.0, squares[1] - squares[0] * squares[0] / count);
    const float scale = of.inverse[c] = (float)(1 / std::sqrt(all / count + eps));
    of.variance[c] = (float)(all / (count - 1));
    const float factor = of.factor[c] = weight ? scale * weight[c] : scale;
    const float rest = (float)(squares[0] / count);
    const float shift = of.shift[c] = (bias ? bias[c] : 0) - rest * factor;
    const Floats factors = broadcast(factor), shifts = broadcast(shift);
    int64_t i = 0;
    for (; i + L::elements <= count; i += L::elements) {
      Floats v[L::sums];
      take(from + i, v);
      UNROLL for (int part = 0; part < L::sums; part++)
        v[part] = (v[part] - middles) * factors + shifts;
      store(to + i, L::rounded(v));
    }
    for (; i < count; i++) put_one(to + i, (take_one(from + i) - middle) * factor + shift);
  }
}

// Gradients of the map, the weight and the bias. With RELU, `dy` is the gradient of relu(y). The
// sign of y is computed again by the same operations as in the forward pass, which costs no memory
// traffic.
template <class E, bool RELU>
static void normalise_backward(const E* x, const E* dy, const Statistics of, E* dx, float* dweight,
                               float* dbias, int channels, int64_t count, int threads) {
  using L = Line<E>;
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int c = 0; c < channels; c++) {
    const E *from = x + c * count, *gradient = dy + c * count;
    E* to = dx + c * count;
    const float middle = of.mean[c], inverse = of.inverse[c];
    const float factor = of.factor[c], shift = of.shift[c];
    const Floats middles = broadcast(middle);
    const Floats factors = broadcast(factor), shifts = broadcast(shift);
    // Loads differences from the mean, and gradients. Where y is NaN, ReLU passes the gradient, as
    // in torch.
    auto take_both = [&](int64_t i, Floats (&d)[L::sums], Floats (&g)[L::sums])
        __attribute__((always_inline)) {
      take(from + i, d), take(gradient + i, g);
      UNROLL for (int part = 0; part < L::sums; part++) {
        d[part] -= middles;
        if (RELU) g[part] = (Floats)((Words)g[part] & ~(Words)(d[part] * factors + shifts <= 0));
      }
    };
    auto gradient_of = [&](int64_t i, float d) {
      return RELU && d * factor + shift <= 0 ? 0 : take_one(gradient + i);
    };
    double sums[2];
    sum_up<E>(
        count, sums,
        [&](int64_t i, Floats (&sums)[L::sums][2]) __attribute__((always_inline)) {
          Floats d[L::sums], g[L::sums];
          take_both(i, d, g);
          UNROLL for (int part = 0; part < L::sums; part++) {
            sums[part][0] += g[part], sums[part][1] += g[part] * d[part];
          }
        },
        [&](int64_t i, double (&total)[2]) {
          const float d = take_one(from + i) - middle;
          const double g = gradient_of(i, d);
          total[0] += g, total[1] += g * d;
        });
    dbias[c] = (float)sums[0];
    dweight[c] = (float)(sums[1] * inverse);
    const float average = (float)(sums[0] / count);
    const float slope = (float)(sums[1] * inverse * inverse / count);
    const Floats averages = broadcast(average), slopes = broadcast(slope);
    int64_t i = 0;
    for (; i + L::elements <= count; i += L::elements) {
      Floats d[L::sums], g[L::sums];
      take_both(i, d, g);
      UNROLL for (int part = 0; part < L::sums; part++)
        g[part] = (g[part] - averages - d[part] * slopes) * factors;
      store(to + i, L::rounded(g));
    }
    for (; i < count; i++) {
      const float d = take_one(from + i) - middle;
      put_one(to + i, (gradient_of(i, d) - average - d * slope) * factor);
    }
  }
}
