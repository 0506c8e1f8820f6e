// One tile of rows for one task: logits, an online softmax, weighted sums; and how two parts of a softmax become one.
//
// What is special here: rows that a lane does not see get a logit of -inf before the maximum is taken, so they change
// neither the maximum nor the sums, by a single bit: a tile may be shared by tokens that see different parts of it.
#pragma once

#include "attend_work.h"

namespace foveal::FOVEAL_ISA {
namespace {

// Weights of one or two rows as elements, and what rounding took from them.
FOVEAL_INLINE void put_weights(Floats, const F* weight, bool rounded, std::uint32_t* to, std::uint32_t*) {
  F x = weight[0];
  if (rounded) {
    const U bits = as_bits(x);
    x = from_bits((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
  }
  store(reinterpret_cast<float*>(to), x);
}
#if FOVEAL_BF16
FOVEAL_INLINE U high_bits(F x) {
  const U bits = as_bits(x);
  return bits + 0x7fffu + ((bits >> 16) & 1u);
}
FOVEAL_INLINE void put_weights(Pairs, const F* weight, bool, std::uint32_t* to, std::uint32_t* low) {
  const U a = high_bits(weight[0]), b = high_bits(weight[1]), both = a >> 16 | (b & 0xffff0000u);
  std::memcpy(to, &both, sizeof both);
  if (low == nullptr) return;
  const F rest[2] = {weight[0] - from_bits(a & 0xffff0000u), weight[1] - from_bits(b & 0xffff0000u)};
  put_weights(Pairs{}, rest, false, low, nullptr);
}
#endif

// Lanes [lane, lane + count) of rows [first, last): logits become weights; maximum and sum move on; `scale` is what the
// sums so far shrink by.
template <class Kind>
void soften(const Work& work, const Operand& operand, const Partial& partial, std::int64_t lane, std::int64_t count,
            std::int64_t first, std::int64_t last, bool masked) {
  const F factor = splat(1.0f / __builtin_sqrtf(static_cast<float>(work.args->width)));
  for (std::int64_t at = lane; at < lane + count; at += kLanes) {
    const std::int64_t there = least(kLanes, lane + count - at);
    const F before = load(partial.peak + at);
    const I from = load_as<I>(work.from + at), to = load_as<I>(work.to + at);
    F highest = splat(kLowest);
    for (std::int64_t r = first; r < last; ++r) {
      float* logit = work.logits + r * work.lanes + at;
      F x = load(logit);
      if (masked) {
        const I row = splat_int(static_cast<std::int32_t>(r));
        x = select((row >= from) & (row < to), x, splat(kLowest));
        store(logit, x);
      }
      highest = max(highest, x);
    }
    const F peak = max(before, highest * factor), scale = weight_of(before - peak);
    F total = load(partial.total + at) * scale;
    for (std::int64_t r = first; r < last; r += Kind::kNumbers) {
      F weight[Kind::kNumbers];
      for (std::int64_t i = 0; i < Kind::kNumbers; ++i) {
        weight[i] = weight_of(fma(load(work.logits + (r + i) * work.lanes + at), factor, -peak));
        total = total + weight[i];
      }
      const std::int64_t step = r / Kind::kNumbers * work.lanes + at;
      std::uint32_t* low = operand.low != nullptr ? work.low + step : nullptr;
      put_weights(Kind{}, weight, operand.rounded, work.weights + step, low);
    }
    store_some(partial.peak + at, peak, there);
    store_some(partial.total + at, total, there);
    store_some(work.scale + at, scale, there);
  }
}

// Logits of lanes [lane, lane + count) and rows [first, last).
template <class Kind>
void multiply(const Work& work, const Operand& operand, const Tile& tile, std::int64_t lane, std::int64_t count,
              std::int64_t first, std::int64_t last) {
  float* logits = work.logits + lane;
  bool fresh = true;
  const std::uint32_t* const terms[2] = {operand.query, operand.low};
  const std::int64_t elements = shares(work.args->width, Kind::kNumbers);
  for (const std::uint32_t* query : terms) {
    if (query == nullptr) continue;
#if FOVEAL_AVX512
    if (operand.padded > 0) {
      const std::uint32_t* from = query + lane * operand.padded;
      add_logits_few<Kind>(tile, first, last, elements, from, operand.padded, work.lanes, count, fresh, logits);
      fresh = false;
      continue;
    }
#endif
    add_logits<Kind>(tile, first, last, elements, query + lane, work.lanes, count, fresh, logits);
    fresh = false;
  }
}

// Rows of one tile, of which [first, last) are looked at by some lane; a null row is 0 and masked.
template <class Kind>
void run_tile_of(const Work& work, const Operand& operand, const Partial& partial, const std::uint8_t* const* rows,
                 std::int64_t lane, std::int64_t count, std::int64_t first, std::int64_t last, bool masked) {
  Tile tile;
  make_tile(Kind{}, rows, first, last, operand.shape, work.memory, tile);
  multiply<Kind>(work, operand, tile, lane, count, first, last);
  soften<Kind>(work, operand, partial, lane, count, first, last, masked);
  const auto add = [&](const std::uint32_t* weights, const float* scale) {
    add_sums<Kind>(tile, first, last, work.args->width, weights + lane, work.lanes, count, scale + lane,
                   partial.sums + lane * kBlock, work.block_stride());
  };
  add(work.weights, work.scale);
  if (operand.low != nullptr) add(work.low, work.ones);
}

void run_tile(const Work& work, const Operand& operand, const Partial& partial, const std::uint8_t* const* rows,
              std::int64_t lane, std::int64_t count, std::int64_t first, std::int64_t last, bool masked) {
#if FOVEAL_BF16
  if (operand.pairs) return run_tile_of<Pairs>(work, operand, partial, rows, lane, count, first, last, masked);
#endif
  run_tile_of<Floats>(work, operand, partial, rows, lane, count, first, last, masked);
}

// `onto` becomes both together, `onto` first.
void join(const Work& work, const Partial& onto, const Partial& next, std::int64_t lane, std::int64_t count) {
  for (std::int64_t i = lane; i < lane + count; ++i) {
    const float a = onto.peak[i], b = next.peak[i], peak = a > b ? a : b;
    const F keep = exp(splat(a - peak)), add = exp(splat(b - peak));
    onto.peak[i] = peak;
    onto.total[i] = onto.total[i] * keep[0] + next.total[i] * add[0];
    for (std::int64_t block = 0; block < work.blocks; ++block) {
      float* to = onto.sums + block * work.block_stride() + i * kBlock;
      const float* from = next.sums + block * work.block_stride() + i * kBlock;
      for (std::int64_t c = 0; c < kBlock; c += kLanes) store(to + c, fma(load(from + c), add, load(to + c) * keep));
    }
  }
}

FOVEAL_INLINE void turn(const AttendArgs& args, std::int64_t token, float* cosines, float* sines) {
  for (std::int64_t i = 0; i < args.rotary.half; ++i) {
    const float angle = static_cast<float>(args.position + token) * args.rotary.frequencies[i];
    cosines[i] = __builtin_cosf(angle);
    sines[i] = __builtin_sinf(angle);
  }
}

// Division by the sums, rotation back, and out.
void finish(const Work& work, const Partial& partial, Arena& arena) {
  const AttendArgs& args = *work.args;
  const Arena::Scope scope(arena);
  const std::int64_t half = args.rotary.half, still = args.width - 2 * half;
  auto* row = arena.take<float>(work.blocks * kBlock);
  auto* cosines = arena.take<float>(half);
  auto* sines = arena.take<float>(half);
  std::int64_t turned = -1;
  for (std::int64_t lane = 0; lane < work.count; ++lane) {
    const std::int64_t token = work.tokens[lane];
    if (turned != token) turn(args, token, cosines, sines);
    turned = token;
    const F factor = splat(1.0f / partial.total[lane]);
    for (std::int64_t c = 0; c < work.blocks * kBlock; c += kLanes)
      store(row + c, load(partial.sums + c / kBlock * work.block_stride() + lane * kBlock + c % kBlock) * factor);
    for (std::int64_t i = 0; i < half; ++i) {
      const float a = row[still + 2 * i], b = row[still + 2 * i + 1];
      row[still + 2 * i] = a * cosines[i] + b * sines[i];
      row[still + 2 * i + 1] = b * cosines[i] - a * sines[i];
    }
    std::memcpy(args.out + (work.row + lane) * args.width, row, static_cast<std::size_t>(args.width) * sizeof(float));
  }
}

}  // namespace
}  // namespace foveal::FOVEAL_ISA
