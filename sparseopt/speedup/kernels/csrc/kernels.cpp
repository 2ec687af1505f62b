// The C interface, which is called through ctypes with plain pointers and integers. `layer` points
// to a struct Layer, and `sizes` to a struct Sizes. `half` is true for bfloat16 tensors, and false
// for float tensors. `values` are the live weights in row-major order, in the number format of the
// tensors; their gradients are float. A linear layer is a convolution of maps of one pixel, with
// tensors [sample][channel].
//
// Functions return 0 for success, 1 if there is not enough memory, and 2 if positions are not
// ascending or lie outside the weight.
#include <new>
#include "affine.h"
#include "dense_weights.h"
#include "layouts.h"
#include "live_copies.h"
#include "sums.h"
#include "vector_product.h"
#include "weight_gradient.h"

#define API extern "C" __attribute__((visibility("default")))
#define LISTS int32_t *data, int64_t live, const Layer *layer

// Calls work(bf16()) or work(float()).
template <class Work> static int run(int half, Work work) {
  try {
    half ? work(bf16()) : work(float());
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

// Calls work() with an unsigned integer of 2, 4 or 8 bytes.
template <class Work> static void run_by_size(int bytes, Work work) {
  bytes == 2 ? work(uint16_t()) : bytes == 4 ? work(uint32_t()) : work(uint64_t());
}

// The values in the order of the transposed lists.
template <class E> static Scratch<E> transposed(const Lists& lists, const E* values, int threads) {
  Scratch<E> result(lists.live, 1);
  E* to = result.of_this_thread();
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t j = 0; j < lists.live; j++) to[j] = values[lists.order[j]];
  return result;
}

API int sparseopt_version() { return 4; }

API int sparseopt_build(const int64_t* positions, LISTS) {
  bool valid = true;
  const auto build = [&](auto) { valid = build_lists(positions, *layer, {data, live, *layer}); };
  const int failed = run(0, build);
  return valid ? failed : 2;
}

API int sparseopt_gather(LISTS, const void* weight, const int64_t* strides, int half,
                         float* values, int threads) {
  return run(half, [&](auto e) {
    gather({data, live, *layer}, *layer, strides, threads, (const decltype(e)*)weight, values);
  });
}

API int sparseopt_gather_and_count(LISTS, const void* weight, const int64_t* strides, int half,
                                   float* values, int64_t* others, int threads) {
  return run(half, [&](auto e) {
    *others = gather_and_count({data, live, *layer}, *layer, strides, threads,
                               (const decltype(e)*)weight, values);
  });
}

API int sparseopt_scatter(LISTS, const float* values, const int64_t* strides, int half,
                          void* weight, int threads) {
  return run(half, [&](auto e) {
    scatter_with_zeros({data, live, *layer}, *layer, strides, threads, values,
                       (decltype(e)*)weight);
  });
}

API int sparseopt_output(LISTS, const Sizes* sizes, const void* x, const void* values,
                         const float* bias, const void* residual, const float* bounds, void* y,
                         int half, int threads) {
  return run(half, [&](auto e) {
    using E = decltype(e);
    const Lists lists(data, live, *layer);
    const Pass<E> pass = {grid_of_outputs<E>(*layer, *sizes), lists.rows, lists.codes,
                          (const E*)values, bias, (E*)y, (const E*)residual, bounds};
    if (!sizes->linear || sizes->batch > 1) return multiply(pass, (const E*)x, threads);
    if (lists.channels) multiply_vector<0>(pass, lists.channels, (const E*)x, threads);
    else multiply_vector<TAP_BITS>(pass, lists.codes, (const E*)x, threads);
  });
}

API int sparseopt_input(LISTS, const Sizes* sizes, const void* dy, const void* values, void* dx,
                        int half, int threads) {
  return run(half, [&](auto e) {
    using E = decltype(e);
    const Lists lists(data, live, *layer);
    const auto w = transposed(lists, (const E*)values, threads);
    multiply<E>({grid_of_inputs<E>(*layer, *sizes), lists.columns, lists.transposed_codes,
                 w.of_this_thread(), nullptr, (E*)dx}, (const E*)dy, threads);
  });
}

API int sparseopt_values(LISTS, const Sizes* sizes, const void* x, const void* dy, float* grad,
                         int half, int threads) {
  return run(half, [&](auto e) {
    using E = decltype(e);
    weight_gradient(*layer, *sizes, {data, live, *layer}, (const E*)x, (const E*)dy, grad,
                    threads);
  });
}

API int sparseopt_batch_norm(const void* x, const float* weight, const float* bias, float eps,
                             void* y, float* statistics, int channels, int64_t count, int half,
                             int threads) {
  return run(half, [&](auto e) {
    using E = decltype(e);
    normalise<E>((const E*)x, weight, bias, eps, (E*)y, {statistics, channels}, channels, count,
                 threads);
  });
}

API int sparseopt_batch_norm_backward(const void* x, const void* dy, float* statistics, int relu,
                                      void* dx, float* dweight, float* dbias, int channels,
                                      int64_t count, int half, int threads) {
  return run(half, [&](auto e) {
    using E = decltype(e);
    const auto backward = relu ? normalise_backward<E, true> : normalise_backward<E, false>;
    backward((const E*)x, (const E*)dy, {statistics, channels}, (E*)dx, dweight, dbias, channels,
             count, threads);
  });
}

API int sparseopt_affine(const void* x, const float* factor, const float* shift,
                         const float* bounds, void* y, int channels, int64_t count, int half,
                         int threads) {
  return run(half, [&](auto e) {
    using E = decltype(e);
    scale_and_shift<E>((const E*)x, factor, shift, bounds, (E*)y, channels, count, threads);
  });
}

API int sparseopt_sum_tokens(const void* x, int64_t tokens, int64_t columns, float* sums, int half,
                             int threads) {
  return run(half, [&](auto e) {
    sum_tokens((const decltype(e)*)x, tokens, columns, sums, threads);
  });
}

API int sparseopt_change_layout(const void* from, void* to, int64_t batch, int64_t channels,
                                int64_t pixels, int into, int half, int threads) {
  return run(half, [&](auto e) {
    using E = decltype(e);
    const auto change = into ? change_layout<true, E> : change_layout<false, E>;
    change((const E*)from, (E*)to, batch, channels, pixels, threads);
  });
}

API void sparseopt_gather_live(const uint64_t* bits, int64_t words, const void* one, void* live_one,
                               const void* other, void* live_other, int bytes, int threads) {
  run_by_size(bytes, [=](auto e) {
    using E = decltype(e);
    gather_live(bits, words, (const E*)one, (E*)live_one, (const E*)other, (E*)live_other, threads);
  });
}

API void sparseopt_write_live(const uint64_t* bits, int64_t size, const void* live, void* dense,
                              int bytes, int threads) {
  run_by_size(bytes, [=](auto e) {
    using E = decltype(e);
    write_live(bits, size, (const E*)live, (E*)dense, threads);
  });
}

API void sparseopt_keep_live(const uint64_t* bits, int64_t size, void* dense, int bytes,
                             int threads) {
  run_by_size(bytes, [=](auto e) { keep_live(bits, size, (decltype(e)*)dense, threads); });
}
