// The unit every product is made of: a block of a weight's rows times prepared activations.
//
// Kernel files of the linear part share it; it is compiled once for each instruction set and never depends on threads.
// An output number is the same whichever block, tile or batch it was computed in.
#pragma once

#include "core.h"
#include "simd.h"

namespace foveal::FOVEAL_ISA {

constexpr std::int64_t kStep = 64;         // columns a kernel takes at a time; prepared rows are padded to it
constexpr std::int64_t kQuantBlock = 128;  // columns that share a scale in run-time FP8
constexpr std::int64_t kFP8Rows = 128;     // rows, and columns, that share a scale in an FP8 weight
constexpr std::int64_t kFewTokens = 16;    // up to here weights are decoded in registers, beyond into scratch
constexpr std::int64_t kPage = 4096, kRowShift = 1088;

// How activations stand in memory for a weight: rounded as asked for, in the order in which the weight's decoder
// delivers its columns, zeros after the last one.
struct Layout {
  bool half;     // BF16 numbers (products of pairs); otherwise fp32
  Format order;  // of which format's decoder
  int terms;     // BF16 numbers that add up to one activation
  bool simulate;
  bool round;  // fp32 numbers rounded to BF16
  std::int64_t columns;

  bool operator==(const Layout&) const = default;
  std::int64_t steps() const { return (columns + kStep - 1) / kStep; }
  std::int64_t step_bytes() const { return kStep * (half ? 2 * terms : 4); }
  // Rows of several pages get an odd distance, or the same columns of neighbouring rows would compete for one cache
  // set.
  std::int64_t row_bytes() const {
    const std::int64_t bytes = steps() * step_bytes();
    return bytes < kPage / 2 ? bytes : (bytes + kPage - kRowShift - 1) / kPage * kPage + kRowShift;
  }
};

// The layout for `weight`; with `exact` products are taken in fp32 even where BF16 pairs would be quicker.
Layout layout_for(const Matrix& weight, bool simulate, Precision precision, bool exact);

// Activations of columns [first, first + count) into their place in a prepared row; first is a multiple of 128, and
// count too unless it reaches the last column.
void prepare(const Layout& layout, const float* x, std::int64_t first, std::int64_t count, void* row);

// Prepared rows: token t is row index[t], or row t.
struct Input {
  const std::uint8_t* base;
  std::int64_t stride;  // bytes
  const std::int32_t* index;
  const std::uint8_t* at(std::int64_t t) const { return base + (index ? index[t] : t) * stride; }
};

// Results: token t goes to row index[t], or row t; added to what is there, or stored.
struct Output {
  float* base;
  std::int64_t stride;  // floats
  const std::int32_t* index;
  bool add;
  float* at(std::int64_t t) const { return base + (index ? index[t] : t) * stride; }
};

// y[t][row - first] for rows [first, last) of the weight and n tokens.
void multiply(const Matrix& weight, std::int64_t first, std::int64_t last, const Layout& layout, const Input& x,
              std::int64_t n, const Output& y, Arena& scratch);

// Rows that are decoded at a time for many tokens: less at once would read the activations more often than necessary.
std::int64_t block_rows(const Layout& layout);

// Bytes of one weight row, and about how long one core needs for `rows` of them times n tokens, in nanoseconds.
std::int64_t weight_row_bytes(const Matrix& weight);
std::int64_t product_cost(const Matrix& weight, std::int64_t rows, std::int64_t n, const Layout& layout);

}  // namespace foveal::FOVEAL_ISA
