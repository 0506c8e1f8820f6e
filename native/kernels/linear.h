// Products with weights: linear maps, the grouped output projection, the router and the experts.
//
// Weights are multiplied as the checkpoint stores them; a tile is decoded on the way, never the whole. Each output
// number is summed in one fixed order that depends on the weight's format and width only, so a token's result is the
// same whatever else is in the batch and for any number of threads.
#pragma once

#include "core.h"

namespace foveal {

// One product of a shared input x [n, columns]: y = x @ weight.T, [n, rows] with `y_stride` floats between rows.
// `simulate`: x goes through FP8 (E4M3, blocks of 128, power-of-two scales) first, and is then exact in BF16.
// Otherwise x enters with `precision`.
struct Product {
  const Matrix* weight;
  bool simulate;
  Precision precision;
  float* y;
  std::int64_t y_stride;
};

// Report, grouped output: heads [n, groups, width] -> wo_a (its rows split over the groups) -> wo_b -> y [n, d].
// wo_a's input is never quantised (the official code: a BF16 product); wo_b's is, with `simulate`.
struct GroupedArgs {
  const float* heads;
  std::int64_t n;
  std::int64_t groups;
  const Matrix* wo_a;
  const Matrix* wo_b;
  bool simulate;
  Precision precision;
  float* y;
};

// sqrt(softplus(y @ gate.T)); either the A best of affinity + bias (ties: lowest expert), or table[token].
// Weights: the affinities of the chosen, divided by their sum, times `scale`.
struct RouteArgs {
  const float* y;              // [n, d]
  std::int64_t n;
  const Matrix* gate;          // [E, d], in fp32 arithmetic
  const float* bias;           // [E] or null
  const std::int64_t* table;   // [V, A] or null
  const std::int64_t* tokens;  // [n]
  std::int64_t active;
  float scale;
  std::int32_t* chosen;  // [n, A]
  float* weights;        // [n, A]
  float* affinity;       // [n, E] or null
};

// SwiGLU experts: a = min(w1 y, limit), b = clamp(w3 y, -limit, limit), out += w2 (silu(a) * b * weight), in ascending
// order of expert, then the shared expert. `simulate` as in Product, for y and for w2's input.
struct ExpertsArgs {
  const float* y;  // [n, d]
  std::int64_t n;
  const std::int32_t* chosen;  // [n, A]
  const float* weights;        // [n, A]
  std::int64_t active;
  std::int64_t experts;  // E
  const Matrix* w1;      // E of each
  const Matrix* w2;
  const Matrix* w3;
  const Matrix* shared1;  // one of each, or null
  const Matrix* shared2;
  const Matrix* shared3;
  float limit;
  bool simulate;
  Precision precision;
  float* out;  // [n, d]
};

struct LinearOps {
  void (*linear)(Context& context, const float* x, std::int64_t n, std::int64_t x_stride, const Product* products,
                 int count);
  void (*grouped_output)(Context& context, const GroupedArgs& args);
  void (*route)(Context& context, const RouteArgs& args);
  void (*experts)(Context& context, const ExpertsArgs& args);
};

}  // namespace foveal

FOVEAL_EACH_ISA(extern const LinearOps linear_ops;)
