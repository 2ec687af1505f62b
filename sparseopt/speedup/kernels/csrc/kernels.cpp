// The C interface: plain pointers and integers, called through ctypes. Functions that need memory
// return 0, or 1 where there is none. `layer` is struct Layer, `sizes` struct Sizes; `half` says
// whether tensors are bfloat16 or float. Weights and their gradients are in row-major order.
#include <new>
#include "linear.h"

#define API extern "C" __attribute__((visibility("default")))

// Without memory: 1.
template <class Work> static int guarded(Work work) {
  try {
    work();
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

// The weights in the order of the transposed lists.
template <class E> static Scratch<E> transposed(const Lists& lists, const E* weights, int threads) {
  Scratch<E> result(lists.live, 1);
  E* to = result.of_this_thread();
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t j = 0; j < lists.live; j++) to[j] = weights[lists.order[j]];
  return result;
}

template <class E>
static void forward(const Layer& layer, const Sizes& sizes, const Lists& lists, const void* x,
                    const void* weights, const float* bias, void* y, int threads) {
  const Grid grid = grid_of_outputs<E>(layer, sizes, false);
  convolve<E>({grid, lists.rows, lists.codes, (const E*)weights, bias, (E*)y}, (const E*)x, threads);
}

template <class E>
static void input_gradient(const Layer& layer, const Sizes& sizes, const Lists& lists,
                           const void* dy, const void* weights, void* dx, int threads) {
  const Grid grid = grid_of_inputs<E>(layer, sizes);
  const Scratch<E> w = transposed(lists, (const E*)weights, threads);
  convolve<E>({grid, lists.columns, lists.transposed_codes, w.of_this_thread(), nullptr, (E*)dx},
              (const E*)dy, threads);
}

API int sparseopt_version() { return 1; }

// 0: positions are not ascending, or lie outside of the weight.
API int sparseopt_build(const int64_t* positions, int64_t live, const Layer* layer, int32_t* lists) {
  return build_lists(positions, *layer, Lists(lists, live, *layer));
}

API void sparseopt_gather(int32_t* data, int64_t live, const Layer* layer, const void* weight,
                          const int64_t* strides, int half, float* values, int threads) {
  const Lists lists(data, live, *layer);
  for_live(lists, *layer, strides, threads, [=](int64_t k, int64_t at) {
    half ? move(values[k], ((const bf16*)weight)[at]) : move(values[k], ((const float*)weight)[at]);
  });
}

API void sparseopt_scatter(int32_t* data, int64_t live, const Layer* layer, const float* values,
                           const int64_t* strides, int half, void* weight, int threads) {
  const Lists lists(data, live, *layer);
  for_live(lists, *layer, strides, threads, [=](int64_t k, int64_t at) {
    half ? move(((bf16*)weight)[at], values[k]) : move(((float*)weight)[at], values[k]);
  });
}

API int sparseopt_conv2d(int32_t* data, int64_t live, const Layer* layer, const Sizes* sizes,
                         const void* x, const void* weights, const float* bias, void* y, int half,
                         int threads) {
  const Lists lists(data, live, *layer);
  const auto run = half ? forward<bf16> : forward<float>;
  return guarded([&] { run(*layer, *sizes, lists, x, weights, bias, y, threads); });
}

API int sparseopt_conv2d_input(int32_t* data, int64_t live, const Layer* layer, const Sizes* sizes,
                               const void* dy, const void* weights, void* dx, int half,
                               int threads) {
  const Lists lists(data, live, *layer);
  const auto run = half ? input_gradient<bf16> : input_gradient<float>;
  return guarded([&] { run(*layer, *sizes, lists, dy, weights, dx, threads); });
}

API int sparseopt_conv2d_values(int32_t* data, int64_t live, const Layer* layer, const Sizes* sizes,
                                const void* x, const void* dy, float* grad, int half, int threads) {
  const Lists lists(data, live, *layer);
  return guarded([&] {
    if (half)
      convolution_weight_gradient(grid_of_outputs<bf16>(*layer, *sizes, true), lists,
                                  (const bf16*)x, (const bf16*)dy, grad, threads);
    else
      convolution_weight_gradient(grid_of_outputs<float>(*layer, *sizes, true), lists,
                                  (const float*)x, (const float*)dy, grad, threads);
  });
}

API int sparseopt_linear(int32_t* data, int64_t live, const Layer* layer, int64_t tokens,
                         const void* x, const void* weights, const float* bias, void* y, int half,
                         int threads) {
  const Lists lists(data, live, *layer);
  return guarded([&] {
    const Grid none = {};
    if (half)
      linear<bf16>({none, lists.rows, lists.codes, (const bf16*)weights, bias, (bf16*)y},
                   (const bf16*)x, tokens, layer->in, layer->out, threads);
    else
      linear<float>({none, lists.rows, lists.codes, (const float*)weights, bias, (float*)y},
                    (const float*)x, tokens, layer->in, layer->out, threads);
  });
}

template <class E>
static void linear_input_gradient(const Layer& layer, int64_t tokens, const Lists& lists,
                                  const void* dy, const void* weights, void* dx, int threads) {
  const Grid none = {};
  const Scratch<E> w = transposed(lists, (const E*)weights, threads);
  linear<E>({none, lists.columns, lists.transposed_codes, w.of_this_thread(), nullptr, (E*)dx},
            (const E*)dy, tokens, layer.out, layer.in, threads);
}

API int sparseopt_linear_input(int32_t* data, int64_t live, const Layer* layer, int64_t tokens,
                               const void* dy, const void* weights, void* dx, int half,
                               int threads) {
  const Lists lists(data, live, *layer);
  const auto run = half ? linear_input_gradient<bf16> : linear_input_gradient<float>;
  return guarded([&] { run(*layer, tokens, lists, dy, weights, dx, threads); });
}

API int sparseopt_linear_values(int32_t* data, int64_t live, const Layer* layer, int64_t tokens,
                                const void* x, const void* dy, float* grad, int half, int threads) {
  const Lists lists(data, live, *layer);
  return guarded([&] {
    if (half)
      linear_weight_gradient(lists, (const bf16*)x, (const bf16*)dy, tokens, layer->in, layer->out,
                             grad, threads);
    else
      linear_weight_gradient(lists, (const float*)x, (const float*)dy, tokens, layer->in,
                             layer->out, grad, threads);
  });
}
