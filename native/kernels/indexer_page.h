// Queries and pages of keys, made ready for scoring.
//
// A query becomes integers once a call, a page once for all tokens that look at it. Which way a score is made is
// decided here, by the query and the page.
#pragma once

#include "indexer_score.h"

namespace foveal::FOVEAL_ISA {
namespace {


// ---------------------------------------------------------------- queries

// Integers and their scale for `width` numbers; false when they are not integers times a power of two.
bool to_integers(const float* x, std::int64_t width, std::int64_t padded, std::int8_t* to, float* scale,
                 std::int32_t* sum) {
  F peaks = zero();
  for (std::int64_t c = 0; c < width; c += kLanes) peaks = max(abs(load_some(x + c, least(kLanes, width - c))), peaks);
  const float peak = largest(peaks);
  const auto bits = load_as<std::uint32_t>(&peak);
  const int exponent = static_cast<int>(bits >> 23) - 127;
  if (peak != 0.0f && (exponent < -90 || exponent > 90)) return false;
  // peak = 1.m * 2^exponent becomes a number from 25 to 48.
  const int up = peak == 0.0f ? 0 : ((bits & 0x7fffffu) <= 0x400000u ? 5 : 4) - exponent;
  const std::uint32_t factor_bits = static_cast<std::uint32_t>(127 + up) << 23;
  const std::uint32_t scale_bits = static_cast<std::uint32_t>(127 - up) << 23;
  const F factor = splat(load_as<float>(&factor_bits));
  I total{}, wrong{};
  for (std::int64_t c = 0; c < padded; c += kLanes) {
    const F scaled = c < width ? load_some(x + c, least(kLanes, width - c)) * factor : zero();
    const I whole = convert<std::int32_t>(scaled);
    wrong |= to_float(whole) != scaled;
    total += whole;
    for (std::int64_t i = 0; i < least(kLanes, padded - c); ++i) to[c + i] = static_cast<std::int8_t>(whole[i]);
  }
  std::int32_t added = 0, failed = 0;
  for (int i = 0; i < kLanes; ++i) {
    added += total[i];
    failed |= wrong[i];
  }
  *scale = load_as<float>(&scale_bits);
  *sum = added;
  return failed == 0;
}

// What all queries of a task share.
struct Job {
  std::int64_t heads;
  const Packs* keys;
  PackLayout layout;
  Precision precision;
};

FOVEAL_INLINE Job job_of(const Context& context, const TopkArgs& args) {
  return {args.heads, &args.keys, pack_layout(args.keys.shape), context.precision};
}

void prepare_integers(const Job& job, Query& query, Arena& arena) {
  const std::int64_t padded = 4 * job.layout.steps, width = job.layout.width;
  // In one piece: a block's queries are to stay in the first-level cache beside a page.
  auto* numbers = arena.take<std::int8_t>(job.heads * (padded + 8));
  auto* bias = reinterpret_cast<std::int32_t*>(numbers + job.heads * padded);
  auto* weights = reinterpret_cast<float*>(bias + job.heads);
  query.exact = width <= kWidestExact;
  for (std::int64_t h = 0; h < job.heads && query.exact; ++h) {
    float scale;
    std::int32_t sum;
    query.exact = to_integers(query.plain + h * width, width, padded, numbers + h * padded, &scale, &sum);
    bias[h] = -kKeyBias * sum;
    weights[h] = query.plain_weights[h] * (0.5f * scale);
  }
  query.numbers = reinterpret_cast<const std::uint8_t*>(numbers);
  query.bias = bias;
  query.weights = weights;
}

void prepare_pairs(const Job& job, Query& query, Arena& arena) {
  const std::int64_t padded = 2 * job.layout.steps, width = job.layout.width;
  const bool two = job.precision == Precision::kFP32;
  auto* high = arena.take<std::uint16_t>(job.heads * padded);
  auto* low = two ? arena.take<std::uint16_t>(job.heads * padded) : nullptr;
  for (std::int64_t h = 0; h < job.heads; ++h)
    for (std::int64_t c = 0; c < padded; ++c) {
      const float x = c < width ? query.plain[h * width + c] : 0.0f;
      high[h * padded + c] = narrow_one(x);
      if (two) low[h * padded + c] = narrow_one(x - widen_one(high[h * padded + c]));
    }
  query.numbers = reinterpret_cast<const std::uint8_t*>(high);
  query.low = reinterpret_cast<const std::uint8_t*>(low);
  query.weights = query.plain_weights;
}

Query prepare(const Job& job, const TopkArgs& args, std::int64_t token, Arena& arena) {
  Query query{};
  query.plain = args.query + token * job.heads * job.layout.width;
  query.plain_weights = args.weights + token * job.heads;
  switch (job.keys->shape.kind) {
    case PackKind::kFP4: prepare_integers(job, query, arena); break;
    case PackKind::kBF16: prepare_pairs(job, query, arena); break;
    case PackKind::kF32: query.weights = query.plain_weights; break;
  }
  return query;
}

// ---------------------------------------------------------------- pages

// A page of keys, unpacked when a query first needs it.
class Page {
 public:
  // `tokens`: how many will be scored.
  Page(const Job& job, std::int64_t tokens, Arena& arena) : job_(job) {
    if (job.keys->shape.kind != PackKind::kFP4) return;
    integers_ = arena.take<std::uint8_t>(job.layout.steps * kStepBytes);
    floats_ = arena.take<float>(job.layout.width * kPackKeys);
    direct_ = kPacked && tokens == 1 && job.heads == kHeadTile;
  }

  void open(std::int64_t page) {
    pack_ = job_.keys->packs[page] + job_.keys->offset;
    whole_ = !direct_ && job_.keys->shape.kind == PackKind::kFP4 && unpack_integers(job_.layout, pack_, integers_, scale_);
    decoded_ = false;
  }

  __attribute__((always_inline)) void score(const Query& query, F (&score)[kGroups]) {
    if (direct_ && query.exact && score_packed<kHeadTile>(job_.layout, pack_, query, score)) return;
    if (whole_ && query.exact) {
      score_page<Integers>(integers_, job_.layout.steps, query, query.weights, job_.heads, score);
      for (int g = 0; g < kGroups; ++g) score[g] = score[g] * scale_[g];
    } else {
      score_floats(query, score);
    }
  }

 private:
  __attribute__((noinline)) void score_floats(const Query& query, F (&score)[kGroups]) {
    const PackLayout& layout = job_.layout;
    switch (job_.keys->shape.kind) {
      case PackKind::kBF16: return score_page<Pairs>(pack_, layout.steps, query, query.weights, job_.heads, score);
      case PackKind::kF32: return score_page<Floats>(pack_, layout.steps, query, query.weights, job_.heads, score);
      case PackKind::kFP4: break;
    }
    if (!decoded_) unpack_floats(layout, pack_, floats_);
    decoded_ = true;
    const auto* keys = reinterpret_cast<const std::uint8_t*>(floats_);
    score_page<Floats>(keys, layout.width, query, query.plain_weights, job_.heads, score);
  }

  const Job& job_;
  const std::uint8_t* pack_ = nullptr;
  std::uint8_t* integers_ = nullptr;
  float* floats_ = nullptr;
  F scale_[kGroups];
  bool direct_ = false, whole_ = false, decoded_ = false;
};

}  // namespace
}  // namespace foveal::FOVEAL_ISA
