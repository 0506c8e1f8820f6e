#include "network.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>

#include "attend.h"

namespace foveal {
namespace {

constexpr std::int64_t kCsaRatio = 4;

// Adds the time between its making and its end to a counter.
class Timer {
 public:
  Timer(std::map<std::string, double>& seconds, const char* name)
      : total_(seconds[name]), start_(std::chrono::steady_clock::now()) {}
  ~Timer() { total_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

 private:
  double& total_;
  std::chrono::steady_clock::time_point start_;
};

// The segments so that sequences with the same first pages lie side by side, those that share most next to each other.
// Those that decode come first: a chunk that is being read would part them.
std::vector<std::size_t> by_pages(const std::vector<Segment>& segments) {
  std::vector<std::size_t> order(segments.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    const bool reads = segments[a].count > 1, other_reads = segments[b].count > 1;
    if (reads != other_reads) return other_reads;
    const auto &x = segments[a].sequence->pages, &y = segments[b].sequence->pages;
    return std::lexicographical_compare(x.begin(), x.end(), y.begin(), y.end(), std::less<>());
  });
  return order;
}

void copy_entries(const Live& sequence, const Region& region, std::int64_t first, std::int64_t last) {
  const Entries from = sequence.entries(region, last), to = sequence.copied(region, last);
  for (std::int64_t s = first; s < last; ++s) std::memcpy(to.at(s), from.at(s), static_cast<std::size_t>(region.entry_bytes));
}

}  // namespace

// What one step works on: all tokens as one flat batch, then its segments. Scratch is good for the layer in progress.
struct Network::Step {
  Step(Context& context_, const std::vector<Segment>& segments_, const std::int64_t* tokens_, float* streams_)
      : context(context_), segments(segments_), tokens(tokens_), streams(streams_) {}

  Context& context;
  const std::vector<Segment>& segments;
  const std::int64_t* tokens;
  float* streams;  // [n, S, d]
  std::int64_t n = 0;
  std::int64_t* positions = nullptr;  // [n]
  std::vector<std::int64_t> starts;   // of each segment in the batch
  std::vector<std::size_t> order;     // of the segments where they look at pages

  // Of the sub-layer in progress.
  float *x = nullptr, *post = nullptr, *comb = nullptr, *out = nullptr;
  float *latent = nullptr, *query = nullptr, *kv_raw = nullptr, *heads = nullptr;
  void* window = nullptr;  // [n, c] in the window's codec
  float *main_kv = nullptr, *main_gate = nullptr, *index_kv = nullptr, *index_gate = nullptr;
  float *index_query = nullptr, *index_weights = nullptr;
  std::vector<std::int32_t*> chosen;  // of each segment, or null: everything visible

  std::vector<Product> products;
  std::vector<CompressArgs> compress_jobs;
  std::vector<TopkArgs> topk_jobs;
  std::vector<AttendArgs> attend_jobs;

  template <class T>
  T* take(std::int64_t count) {
    return context.arena.take<T>(count);
  }
};

HyperArgs Network::hyper(const Hyper& weights, std::int64_t n, std::int64_t streams) const {
  return {n,  streams, shape_.d, weights.fn, weights.base, weights.scale, shape_.sinkhorn_iters, shape_.hyper_eps,
          shape_.norm_eps};
}

void Network::step(const std::int64_t* tokens, const std::vector<Segment>& segments, float* streams) {
  Context& context = runtime_.context();
  const Arena::Scope scope(context.arena);
  std::int64_t n = 0;
  Step s(context, segments, tokens, streams);
  for (const Segment& segment : segments) {
    s.starts.push_back(n);
    n += segment.count;
  }
  s.n = n;
  s.order = by_pages(segments);
  s.positions = s.take<std::int64_t>(n);
  for (std::size_t i = 0; i < segments.size(); ++i)
    for (std::int64_t j = 0; j < segments[i].count; ++j) s.positions[s.starts[i] + j] = segments[i].sequence->length + j;
  traces.clear();
  {
    const Timer timer(seconds, "embed");
    context.rows->embed(context, embedding, tokens, n, shape_.streams, streams);
  }
  for (std::size_t number = 0; number < layers_.size(); ++number) {
    const Arena::Scope of_layer(context.arena);
    s.x = s.take<float>(n * shape_.d);
    s.out = s.take<float>(n * shape_.d);
    s.post = s.take<float>(n * shape_.streams);
    s.comb = s.take<float>(n * shape_.streams * shape_.streams);
    attention(s, number);
    experts(s, number);
  }
}

void Network::attention(Step& s, std::size_t number) {
  const Layer& layer = layers_[number];
  Context& context = s.context;
  const Arena::Scope scope(context.arena);
  {
    const Timer timer(seconds, "hyper");
    context.rows->hyper_pre(context, hyper(layer.attention_hyper, s.n, shape_.streams), s.streams, layer.attention_norm,
                            s.x, s.post, s.comb);
  }
  project(s, layer);
  if (layer.ratio) compress(s, number);
  choose(s, number);
  attend(s, number);
  stage(s, number);
  {
    const Timer timer(seconds, "output");
    const GroupedArgs args{s.heads,      s.n,          shape_.groups, &layer.wo_a, &layer.wo_b, shape_.simulate_linear,
                           context.precision, s.out};
    context.linear->grouped_output(context, args);
  }
  const Timer timer(seconds, "hyper");
  context.rows->hyper_post(context, s.n, shape_.streams, shape_.d, s.out, s.post, s.comb, s.streams);
}

// What each token becomes before it meets its past.
void Network::project(Step& s, const Layer& layer) {
  Context& context = s.context;
  const std::int64_t n = s.n, c = shape_.head_dim, d = shape_.d;
  const bool indexed = layer.ratio == kCsaRatio;
  s.latent = s.take<float>(n * shape_.q_lora);
  s.kv_raw = s.take<float>(n * c);
  s.query = s.take<float>(n * shape_.heads * c);
  s.heads = s.take<float>(n * shape_.heads * c);
  s.window = s.take<float>(n * c);
  s.products.clear();
  const auto product = [&](const Matrix& weight, bool simulate, Precision precision) {
    float* y = s.take<float>(n * weight.rows);
    s.products.push_back({&weight, simulate, precision, y, weight.rows});
    return y;
  };
  s.products.push_back({&layer.wq_a, shape_.simulate_linear, context.precision, s.latent, shape_.q_lora});
  s.products.push_back({&layer.wkv, shape_.simulate_linear, context.precision, s.kv_raw, c});
  if (layer.ratio) {  // the official compressors work in fp32
    s.main_kv = product(layer.main.wkv, false, Precision::kFP32);
    s.main_gate = product(layer.main.wgate, false, Precision::kFP32);
  }
  if (indexed) {
    s.index_kv = product(layer.index.wkv, false, Precision::kFP32);
    s.index_gate = product(layer.index.wgate, false, Precision::kFP32);
    s.index_weights = product(layer.index_weights, false, context.precision);
  }
  {
    const Timer timer(seconds, "project");
    context.linear->linear(context, s.x, n, d, s.products.data(), static_cast<int>(s.products.size()));
    context.rows->rms_norm(context, s.latent, n, shape_.q_lora, shape_.q_lora, layer.q_norm, shape_.norm_eps, s.latent);
    Product from_latent[2] = {
        {&layer.wq_b, shape_.simulate_linear, context.precision, s.query, shape_.heads * c},
        {&layer.index_wq_b, shape_.simulate_linear, context.precision, nullptr, shape_.index_heads * shape_.index_dim}};
    if (indexed) from_latent[1].y = s.index_query = s.take<float>(n * shape_.index_heads * shape_.index_dim);
    context.linear->linear(context, s.latent, n, shape_.q_lora, from_latent, indexed ? 2 : 1);
  }
  const Timer timer(seconds, "rotate");
  context.rows->finish_query(context, s.query, n, shape_.heads, c, s.positions, layer.rotary, shape_.norm_eps, false);
  const Codec codec = s.segments[0].sequence->shape.window_codec;
  context.rows->finish_kv(context, s.kv_raw, n, c, c, s.positions, layer.rotary, layer.kv_norm, shape_.norm_eps,
                          shape_.quantize_kv, codec, s.window);
  if (!indexed) return;
  context.rows->finish_query(context, s.index_query, n, shape_.index_heads, shape_.index_dim, s.positions, layer.rotary,
                             -1.0f, shape_.quantize_index);
  const float scale = 1.0f / std::sqrt(static_cast<float>(shape_.index_dim)) / std::sqrt(static_cast<float>(shape_.index_heads));
  for (std::int64_t i = 0; i < n * shape_.index_heads; ++i) s.index_weights[i] *= scale;
}

// New entries straight into their slots; the new keys into the packs, and HCA entries into their copies.
void Network::compress(Step& s, std::size_t number) {
  const Timer timer(seconds, "compress");
  const Layer& layer = layers_[number];
  Context& context = s.context;
  s.compress_jobs.clear();
  for (std::size_t i = 0; i < s.segments.size(); ++i) {
    Live& sequence = *s.segments[i].sequence;
    const std::int64_t start = s.starts[i], count = s.segments[i].count, length = sequence.length;
    const LayerLayout& layout = sequence.shape.layers[number];
    const auto job = [&](const Compressor& weights, const Region& region, OpenRings& rings, float* kv, float* gate,
                         Finish finish) {
      kv += start * region.row_width;
      gate += start * region.row_width;
      context.compress->add_position_bias(context, gate, count, region.row_width, weights.ape, layer.ratio, length);
      const std::int64_t first = length / layer.ratio, last = (length + count) / layer.ratio;
      if (last > first)
        s.compress_jobs.push_back({rings.kv.rows(length, kv), rings.gate.rows(length, gate), first, last, layer.ratio,
                                   layer.ratio == kCsaRatio, weights.norm, shape_.norm_eps, layer.rotary, finish,
                                   sequence.entries(region, last)});
    };
    job(layer.main, layout.main, sequence.open(number, false), s.main_kv, s.main_gate,
        shape_.quantize_kv ? Finish::kKv : Finish::kPlain);
    if (layout.index.present)
      job(layer.index, layout.index, sequence.open(number, true), s.index_kv, s.index_gate,
          shape_.quantize_index ? Finish::kIndex : Finish::kPlain);
  }
  if (!s.compress_jobs.empty())
    context.compress->compress(context, s.compress_jobs.data(), static_cast<int>(s.compress_jobs.size()));
  for (const Segment& segment : s.segments) {
    Live& sequence = *segment.sequence;
    if (layer.ratio != kCsaRatio) {
      copy_entries(sequence, sequence.shape.layers[number].main, sequence.length / layer.ratio,
                   (sequence.length + segment.count) / layer.ratio);
      continue;
    }
    const Region& region = sequence.shape.layers[number].index;
    std::int64_t key = sequence.length / layer.ratio;
    const std::int64_t last = (sequence.length + segment.count) / layer.ratio;
    while (key < last) {
      const std::int64_t page = key / region.per_page, slot = key % region.per_page;
      const std::int64_t until = std::min(region.per_page, slot + last - key);
      Entries in_page = sequence.entries(region, until);
      in_page.pages = sequence.pages.data() + page;
      context.index->pack(sequence.shape.pack, in_page, slot, until,
                          sequence.packs[static_cast<std::size_t>(page)] + region.pack_offset);
      key += until - slot;
    }
  }
}

// Which entries each token looks at: the indexer's choice where there are more than top-k, else all that are visible.
void Network::choose(Step& s, std::size_t number) {
  const Layer& layer = layers_[number];
  s.chosen.assign(s.segments.size(), nullptr);
  if (layer.ratio != kCsaRatio) return;
  const Timer timer(seconds, "index");
  Context& context = s.context;
  s.topk_jobs.clear();
  for (const std::size_t i : s.order) {
    Live& sequence = *s.segments[i].sequence;
    const std::int64_t start = s.starts[i], count = s.segments[i].count;
    const std::int64_t keys = (sequence.length + count) / layer.ratio;
    if (keys <= shape_.topk) continue;
    auto* visible = s.take<std::int64_t>(count);
    for (std::int64_t j = 0; j < count; ++j) visible[j] = (sequence.length + j + 1) / layer.ratio;
    s.chosen[i] = s.take<std::int32_t>(count * shape_.topk);
    s.topk_jobs.push_back({s.index_query + start * shape_.index_heads * shape_.index_dim,
                           s.index_weights + start * shape_.index_heads,
                           count,
                           shape_.index_heads,
                           {sequence.shape.pack, sequence.packs.data(), sequence.shape.layers[number].index.pack_offset, keys},
                           visible,
                           shape_.topk,
                           s.chosen[i]});
  }
  if (!s.topk_jobs.empty())
    context.index->topk(context, s.topk_jobs.data(), static_cast<int>(s.topk_jobs.size()), &index_counters);
}

void Network::attend(Step& s, std::size_t number) {
  const Timer timer(seconds, "attend");
  const Layer& layer = layers_[number];
  Context& context = s.context;
  const std::int64_t width = shape_.heads * shape_.head_dim;
  s.attend_jobs.clear();
  for (const std::size_t i : s.order) {
    Live& sequence = *s.segments[i].sequence;
    const std::int64_t start = s.starts[i], count = s.segments[i].count;
    const std::int64_t end = sequence.length + count;
    const std::int64_t visible = layer.ratio ? end / layer.ratio : 0;
    AttendArgs job{};
    job.query = s.query + start * width;
    job.n = count;
    job.heads = shape_.heads;
    job.width = shape_.head_dim;
    job.position = sequence.length;
    const std::int64_t row = shape_.head_dim * (sequence.shape.window_codec == Codec::kF32 ? 4 : 2);
    job.window = sequence.window(number).rows(sequence.length, static_cast<std::uint8_t*>(s.window) + start * row);
    job.window_codec = sequence.shape.window_codec;
    job.window_size = shape_.window;
    const Region& main = sequence.shape.layers[number].main;
    if (layer.ratio) job.entries = layer.ratio == kCsaRatio ? sequence.entries(main, visible) : sequence.copied(main, visible);
    job.indices = s.chosen[i];
    job.k = shape_.topk;
    job.ratio = layer.ratio;
    job.sink = layer.sink;
    job.rotary = layer.rotary;
    job.precision = context.precision;
    job.out = s.heads + start * width;
    s.attend_jobs.push_back(job);
  }
  trace(s, number);
  context.attend->attend(context, s.attend_jobs.data(), static_cast<int>(s.attend_jobs.size()));
}

// Asks for traces of this layer, in the order of the segments: that of the jobs is a matter of where pages lie.
void Network::trace(Step& s, std::size_t number) {
  std::vector<AttendArgs*> job_of(s.segments.size());
  for (std::size_t at = 0; at < s.order.size(); ++at) job_of[s.order[at]] = &s.attend_jobs[at];
  for (std::size_t i = 0; i < s.segments.size(); ++i) {
    if (!s.segments[i].trace) continue;
    AttendArgs& job = *job_of[i];
    Trace trace{static_cast<std::int64_t>(number), static_cast<std::int64_t>(i), job.ratio, job.indices != nullptr, {}, {}, {}};
    trace.window_mass.resize(static_cast<std::size_t>(job.window_size));
    trace.entry_mass.resize(static_cast<std::size_t>(job.indices ? job.k : job.entries.count));
    if (job.indices) {
      const std::int32_t* last = job.indices + (job.n - 1) * job.k;
      trace.indices.assign(last, last + job.k);
    }
    job.trace = 1;
    job.entry_mass = trace.entry_mass.data();  // stay where they are when the trace is moved
    job.window_mass = trace.window_mass.data();
    traces.push_back(std::move(trace));
  }
}

// The rows the sequences will need once this step counts.
void Network::stage(Step& s, std::size_t number) {
  const Timer timer(seconds, "stage");
  const Layer& layer = layers_[number];
  for (std::size_t i = 0; i < s.segments.size(); ++i) {
    Live& sequence = *s.segments[i].sequence;
    const std::int64_t start = s.starts[i], count = s.segments[i].count, end = sequence.length + count;
    const std::int64_t row = shape_.head_dim * (sequence.shape.window_codec == Codec::kF32 ? 4 : 2);
    sequence.window(number).stage(static_cast<std::uint8_t*>(s.window) + start * row, count, shape_.window - 1, end);
    if (!layer.ratio) continue;
    const std::int64_t keep = Live::open_rows(layer.ratio, end);
    const LayerLayout& layout = sequence.shape.layers[number];
    const auto keep_rows = [&](OpenRings& rings, const Region& region, const float* kv, const float* gate) {
      rings.kv.stage(kv + start * region.row_width, count, keep, end);
      rings.gate.stage(gate + start * region.row_width, count, keep, end);
    };
    keep_rows(sequence.open(number, false), layout.main, s.main_kv, s.main_gate);
    if (layout.index.present) keep_rows(sequence.open(number, true), layout.index, s.index_kv, s.index_gate);
  }
}

void Network::experts(Step& s, std::size_t number) {
  const Layer& layer = layers_[number];
  Context& context = s.context;
  const Arena::Scope scope(context.arena);
  {
    const Timer timer(seconds, "hyper");
    context.rows->hyper_pre(context, hyper(layer.ffn_hyper, s.n, shape_.streams), s.streams, layer.ffn_norm, s.x, s.post,
                            s.comb);
  }
  auto* chosen = s.take<std::int32_t>(s.n * shape_.active);
  auto* weights = s.take<float>(s.n * shape_.active);
  {
    const Timer timer(seconds, "route");
    const RouteArgs args{s.x,           s.n,           &layer.gate,        layer.gate_bias, layer.gate_table, s.tokens,
                         shape_.active, shape_.route_scale, chosen, weights,         nullptr};
    context.linear->route(context, args);
  }
  {
    const Timer timer(seconds, "experts");
    const ExpertsArgs args{s.x,
                           s.n,
                           chosen,
                           weights,
                           shape_.active,
                           shape_.experts,
                           layer.w1.data(),
                           layer.w2.data(),
                           layer.w3.data(),
                           &layer.shared1,
                           &layer.shared2,
                           &layer.shared3,
                           shape_.limit,
                           shape_.simulate_experts,
                           context.precision,
                           s.out};
    context.linear->experts(context, args);
  }
  const Timer timer(seconds, "hyper");
  context.rows->hyper_post(context, s.n, shape_.streams, shape_.d, s.out, s.post, s.comb, s.streams);
}

void Network::logits(const float* streams, std::int64_t m, float* out) {
  Context& context = runtime_.context();
  const Timer timer(seconds, "head");
  const Arena::Scope scope(context.arena);
  auto* x = context.arena.take<float>(m * shape_.d);
  context.rows->hyper_head(context, hyper(head_hyper, m, shape_.streams), streams, final_norm, x);
  const Product product{&head, false, Precision::kFP32, out, shape_.vocabulary};
  context.linear->linear(context, x, m, shape_.d, &product, 1);
}

}  // namespace foveal
