// One tile of rows for one task: logits, an online softmax, weighted sums; and how two parts of a softmax become one.
//
// Rows that a lane does not see get a logit of -inf before the maximum is taken, so they change neither the maximum nor
// the sums, by a single bit: a tile may be shared by tokens that see different parts of it.
#pragma once

#include "attend_work.h"

namespace foveal::FOVEAL_ISA {
namespace {

// Rows whose weights are computed side by side: as many as there are registers for.
#if FOVEAL_AVX512
constexpr int kWeighed = 4;
#else
constexpr int kWeighed = 1;
#endif

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
FOVEAL_INLINE void put_weights(Pairs, const F* weight, bool, std::uint32_t* to, std::uint32_t* low) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                                         23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const auto rows = (__m512i)_mm512_cvtne2ps_pbh((__m512)weight[1], (__m512)weight[0]);
  const U both = (U)_mm512_permutexvar_epi16(order, rows);
  std::memcpy(to, &both, sizeof both);
  if (low == nullptr) return;
  const F rest[2] = {weight[0] - from_bits(both << 16), weight[1] - from_bits(both & 0xffff0000u)};
  put_weights(Pairs{}, rest, false, low, nullptr);
}
#endif

// The highest of 16 lanes' logits in rows [first, last); with `masked`, those that a lane does not see become -inf.
FOVEAL_INLINE F highest_of(const Work& work, std::int64_t at, std::int64_t first, std::int64_t last, bool masked) {
  float* logits = work.logits + at;
  if (!masked) {
    F highest[4] = {splat(kLowest), splat(kLowest), splat(kLowest), splat(kLowest)};  // so that none waits for another
    for (std::int64_t r = first; r < last; r += 4)
      for (std::int64_t i = 0; i < 4; ++i) highest[i] = max(highest[i], load(logits + (r + i) * work.lanes));
    return max(max(highest[0], highest[1]), max(highest[2], highest[3]));
  }
  const I from = load_as<I>(work.from + at), to = load_as<I>(work.to + at);
  F highest = splat(kLowest);
  for (std::int64_t r = first; r < last; ++r) {
    const I row = splat_int(static_cast<std::int32_t>(r));
    const F x = select((row >= from) & (row < to), load(logits + r * work.lanes), splat(kLowest));
    store(logits + r * work.lanes, x);
    highest = max(highest, x);
  }
  return highest;
}

// Lanes [lane, lane + count) of rows [first, last): logits become weights; maximum and sum move on; `scale` is what the
// sums so far shrink by.
template <class Kind>
void soften(const Work& work, const Operand& operand, const Partial& partial, std::int64_t lane, std::int64_t count,
            std::int64_t first, std::int64_t last, bool masked) {
  constexpr int kRows = kWeighed;
  const F factor = splat(kLog2E / __builtin_sqrtf(static_cast<float>(work.args->width)));
  for (std::int64_t at = lane; at < lane + count; at += kLanes) {
    const std::int64_t there = least(kLanes, lane + count - at);
    const F before = load(partial.peak + at), peak = max(before, highest_of(work, at, first, last, masked) * factor);
    const F scale = weight_of(before - peak);
    F total = load(partial.total + at) * scale;
    for (std::int64_t r = first; r < last; r += kRows) {
      F x[kRows], weight[kRows];
      for (int i = 0; i < kRows; ++i) x[i] = fma(load(work.logits + (r + i) * work.lanes + at), factor, -peak);
      weigh(x, weight);
      for (int i = 0; i < kRows; ++i) total = total + weight[i];
      for (int i = 0; i < kRows; i += Kind::kNumbers) {
        const std::int64_t step = (r + i) / Kind::kNumbers * work.lanes + at;
        std::uint32_t* low = operand.low != nullptr ? work.low + step : nullptr;
        put_weights(Kind{}, weight + i, operand.rounded, work.weights + step, low);
      }
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
                   partial.sums + lane * kBlock, partial.stride);
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
  for (std::int64_t at = lane; at < lane + count; at += kLanes) {
    const std::int64_t there = least(kLanes, lane + count - at);
    const F a = load(onto.peak + at), b = load(next.peak + at), peak = max(a, b);
    const F keep = weight_of(a - peak), add = weight_of(b - peak);
    store_some(onto.peak + at, peak, there);
    store_some(onto.total + at, load(onto.total + at) * keep + load(next.total + at) * add, there);
    float kept[kLanes], added[kLanes];
    store(kept, keep);
    store(added, add);
    for (std::int64_t block = 0; block < work.blocks; ++block)
      for (std::int64_t i = 0; i < there; ++i) {
        float* to = onto.sums + block * onto.stride + (at + i) * kBlock;
        const float* from = next.sums + block * next.stride + (at + i) * kBlock;
        const F x = splat(kept[i]), y = splat(added[i]);
        for (std::int64_t c = 0; c < kBlock; c += kLanes) store(to + c, fma(load(from + c), y, load(to + c) * x));
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
      store(row + c, load(partial.sums + c / kBlock * partial.stride + lane * kBlock + c % kBlock) * factor);
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
