// The network in one native call: the layers of foveal/model, in the same order, on the kernels of one instruction set.
//
// The order of operations stands in Python (foveal/model, the definition) and once more here, because at a thousand
// tokens a second and more there is no time for Python between two of them. The parity tests hold the two together.
// Nothing is computed in this file: every line is a call of an operation, or says where its input lies.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "compress.h"
#include "indexer.h"
#include "linear.h"
#include "live.h"
#include "rows.h"
#include "runtime.h"

namespace foveal {

struct Hyper {
  const float *fn, *base, *scale;
};

struct Compressor {
  Matrix wkv, wgate;
  const float* ape;
  const float* norm;
};

struct Layer {
  std::int64_t ratio = 0;  // 0, 4 (with an indexer) or 128
  Hyper attention_hyper, ffn_hyper;
  const float *attention_norm, *ffn_norm;
  Matrix wq_a, wq_b, wkv, wo_a, wo_b;
  const float *q_norm, *kv_norm, *sink;
  Rotary rotary;
  Compressor main, index;
  Matrix index_wq_b, index_weights;
  Matrix gate;
  const float* gate_bias = nullptr;
  const std::int64_t* gate_table = nullptr;
  std::vector<Matrix> w1, w2, w3;
  Matrix shared1, shared2, shared3;
};

struct NetworkShape {
  std::int64_t d, streams, heads, head_dim, q_lora, groups, window, vocabulary;
  std::int64_t index_heads, index_dim, topk;
  std::int64_t experts, active;
  float route_scale, limit, norm_eps, hyper_eps;
  int sinkhorn_iters;
  bool simulate_linear, simulate_experts;  // FP8 activations before these weights
  bool quantize_kv, quantize_index;
};

struct Segment {
  Live* sequence;
  std::int64_t count;
  bool trace;
};

// Where one layer's attention went for the last token of a traced segment, summed over heads.
struct Trace {
  std::int64_t layer, segment, ratio;
  bool indexed;
  std::vector<std::int64_t> indices;
  std::vector<float> entry_mass, window_mass;
};

class Network {
 public:
  Network(Runtime& runtime, const NetworkShape& shape) : runtime_(runtime), shape_(shape) {}

  NetworkShape& shape() { return shape_; }
  std::vector<Layer>& layers() { return layers_; }
  Matrix embedding, head;
  Hyper head_hyper{};
  const float* final_norm = nullptr;

  // Runs the next tokens of the segments through all layers; streams [n, S, d] is what the last layer leaves. The
  // sequences hold the step uncommitted. Pages for it must have been added before.
  void step(const std::int64_t* tokens, const std::vector<Segment>& segments, float* streams);
  // streams [m, S, d] -> logits [m, V].
  void logits(const float* streams, std::int64_t m, float* out);

  std::vector<Trace> traces;                   // of the last step
  std::map<std::string, double> seconds;       // by operation, since reset
  IndexCounters index_counters{0, 0};

 private:
  struct Step;
  void attention(Step& step, std::size_t number);
  void project(Step& step, const Layer& layer);
  void compress(Step& step, std::size_t number);
  void choose(Step& step, std::size_t number);
  void attend(Step& step, std::size_t number);
  void trace(Step& step, std::size_t number);
  void stage(Step& step, std::size_t number);
  void experts(Step& step, std::size_t number);
  HyperArgs hyper(const Hyper& weights, std::int64_t n, std::int64_t streams_out) const;

  Runtime& runtime_;
  NetworkShape shape_;
  std::vector<Layer> layers_;
};

}  // namespace foveal
