// The positions of the live weights of one layer. The lists are one array of 32-bit integers, which
// the caller owns, so that a tensor can hold them:
//
//   rows      [out + 1]            where the weights of an output begin in `codes`
//   codes     [live]               input channel and tap of each weight, in row-major order
//   columns   [phases * in + 1]    where the weights of (phase, input) begin in the next two lists
//   transposed_codes  [live]       output channel and tap of each weight
//   order     [live]               index of the same weight in row-major order
//   channels  [live]               only if `short_channels`: the input channel of each weight in 16
//                                  bits, in row-major order
//
// A tap is a position in the convolution's kernel: row * kernel width + column. Its phase is its
// row and column in the input, dilation included, modulo the stride. The gradient of the input is
// computed one phase at a time. A code is channel << TAP_BITS | tap.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>
#include "vectors.h"

constexpr int TAP_BITS = 12;
constexpr uint32_t TAP_MASK = (1 << TAP_BITS) - 1;

struct Layer {
  int out, in, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int short_channels;
  int taps() const { return kernel_h * kernel_w; }
  int phases() const { return stride_h * stride_w; }
  int phase(int tap) const {
    int row = tap / kernel_w * dilation_h, column = tap % kernel_w * dilation_w;
    return row % stride_h * stride_w + column % stride_w;
  }
};

struct Lists {
  int32_t *rows, *columns;
  uint32_t *codes, *transposed_codes;
  int32_t* order;
  uint16_t* channels;
  int64_t live;
  Lists(int32_t* data, int64_t live, const Layer& layer) : live(live) {
    rows = data;
    columns = rows + layer.out + 1;
    codes = (uint32_t*)(columns + layer.phases() * layer.in + 1);
    transposed_codes = codes + live;
    order = (int32_t*)(transposed_codes + live);
    channels = layer.short_channels ? (uint16_t*)(order + live) : nullptr;
  }
};

// Fills the lists by a counting sort by (phase, input). Returns false if positions are not
// ascending or lie outside the weight.
static bool build_lists(const int64_t* positions, const Layer& layer, Lists lists) {
  const uint32_t taps = layer.taps();
  const int64_t row_size = (int64_t)layer.in * taps, size = row_size * layer.out;
  std::vector<int32_t> phase(taps);
  for (uint32_t tap = 0; tap < taps; tap++) phase[tap] = layer.phase(tap) * layer.in;
  const int64_t groups = (int64_t)layer.phases() * layer.in;
  std::fill(lists.columns, lists.columns + groups + 1, 0);
  int64_t row = 0, start = 0;
  lists.rows[0] = 0;
  for (int64_t k = 0; k < lists.live; k++) {
    const int64_t position = positions[k];
    if (position >= size || position < (k ? positions[k - 1] + 1 : 0)) return false;
    for (; position >= start + row_size; start += row_size) lists.rows[++row] = k;
    const uint32_t within = position - start, channel = within / taps, tap = within % taps;
    lists.codes[k] = channel << TAP_BITS | tap;
    if (lists.channels) lists.channels[k] = channel;
    lists.columns[phase[tap] + channel + 1]++;
  }
  while (row < layer.out) lists.rows[++row] = lists.live;
  if (lists.channels && lists.live % 2) lists.channels[lists.live] = 0;  // fills the last integer
  for (int64_t j = 0; j < groups; j++) lists.columns[j + 1] += lists.columns[j];
  std::vector<int32_t> next(lists.columns, lists.columns + groups);
  for (int o = 0; o < layer.out; o++)
    for (int32_t k = lists.rows[o]; k < lists.rows[o + 1]; k++) {
      const uint32_t tap = lists.codes[k] & TAP_MASK;
      const int32_t j = next[phase[tap] + (lists.codes[k] >> TAP_BITS)]++;
      lists.transposed_codes[j] = (uint32_t)o << TAP_BITS | tap;
      lists.order[j] = k;
    }
  return true;
}

INLINE void move(float& to, float from) { to = from; }
INLINE void move(float& to, bf16 from) { to = bits_to_float((uint32_t)from << 16); }
INLINE void move(bf16& to, float from) { to = (round_to_bf16(broadcast(from)) >> 16)[0]; }
