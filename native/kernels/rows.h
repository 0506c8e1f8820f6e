// What acts on each token alone: hyper-connections, norms, rotary embedding, run-time quantisation.
//
// Each function does all of the network's work between two products in one pass over a row.
#pragma once

#include "core.h"

namespace foveal {

// One hyper-connection (report section 2.2), all fp32: fn [(2 + S) * S, S * d], base [(2 + S) * S], scale [3]; for the
// output head fn [S, S * d], base [S], scale [1].
struct HyperArgs {
  std::int64_t n, streams, d;
  const float* fn;
  const float* base;
  const float* scale;
  int sinkhorn_iters;
  float eps;
  float norm_eps;
};

// Rotary embedding of the last 2 * half channels, interleaved pairs: frequencies [half], radians a position.
struct Rotary {
  const float* frequencies;
  std::int64_t half;
};

struct RowOps {
  // Rows of the BF16 or F32 table for each token, repeated for all S streams: streams [n, S, d].
  void (*embed)(Context& context, const Matrix& table, const std::int64_t* tokens, std::int64_t n, std::int64_t streams,
                float* out);
  // streams [n, S, d] -> x [n, d], post [n, S], comb [n, S, S] (source, destination). With `norm` [d], x is
  // RMS-normalised (norm_eps) and multiplied by it; without, it is the plain weighted sum.
  void (*hyper_pre)(Context& context, const HyperArgs& hyper, const float* streams, const float* norm, float* x,
                    float* post, float* comb);
  // streams [n, S, d] in place: destination k gets post_k * out + sum over j of comb[j, k] * stream_j.
  void (*hyper_post)(Context& context, std::int64_t n, std::int64_t count, std::int64_t d, const float* out,
                     const float* post, const float* comb, float* streams);
  // streams [n, S, d] -> the weighted sum the LM head reads, RMS-normalised and times `norm` if given: x [n, d].
  void (*hyper_head)(Context& context, const HyperArgs& hyper, const float* streams, const float* norm, float* x);
  // x [n, width] (x_stride) -> out [n, width], over weight [width] or null.
  void (*rms_norm)(Context& context, const float* x, std::int64_t n, std::int64_t width, std::int64_t x_stride,
                   const float* weight, float eps, float* out);
  // x [n, heads, c] in place: RMS norm of each head without weight (eps < 0: none), then rotation at positions [n].
  // With `quantize`, then the Hadamard rotation and FP4 in blocks of 32 (the indexer's queries).
  void (*finish_query)(Context& context, float* x, std::int64_t n, std::int64_t heads, std::int64_t c,
                       const std::int64_t* positions, const Rotary& rotary, float eps, bool quantize);
  // x [n, c] (x_stride) -> RMS norm times weight, rotation, with `quantize` the FP8 rounding of KV rows -> rows [n, c] of
  // `codec` (kF32 or kBF16).
  void (*finish_kv)(Context& context, const float* x, std::int64_t n, std::int64_t c, std::int64_t x_stride,
                    const std::int64_t* positions, const Rotary& rotary, const float* weight, float eps, bool quantize,
                    Codec codec, void* rows);
  // In place, one after the other, for tests and for the operations of the reference's interface.
  void (*rotate)(Context& context, float* x, std::int64_t n, std::int64_t heads, std::int64_t c,
                 const std::int64_t* positions, const Rotary& rotary, bool inverse);
  void (*quantize_kv)(Context& context, float* x, std::int64_t n, std::int64_t c, std::int64_t rotary);
  void (*quantize_index)(Context& context, float* x, std::int64_t n, std::int64_t width);
  void (*quantize_activations)(Context& context, float* x, std::int64_t n, std::int64_t width);
};

}  // namespace foveal

FOVEAL_EACH_ISA(extern const RowOps row_ops;)
