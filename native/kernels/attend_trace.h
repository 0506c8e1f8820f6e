// Where a token looked: the weights of single tokens, kept for those alone.
//
// This is a second pass with all logits of one token in memory, so that attention itself neither keeps nor computes
// anything for it.
#pragma once

#include "attend_softmax.h"

namespace foveal::FOVEAL_ISA {
namespace {

// Logits of one token with everything it looks at, [rows, lanes], then weights; kept for traced tokens only.
struct Traced {
  float* logits;
  std::int64_t rows, lanes;
};

void keep_logits(const Work& work, const Operand& operand, const std::uint8_t* const* rows, std::int64_t count,
                 float* to) {
  for (std::int64_t base = 0; base < count; base += kTileRows) {
    const std::int64_t there = least(kTileRows, count - base), last = round_up(there, kGroup);
    const std::uint8_t* part[kTileRows];
    for (std::int64_t r = 0; r < kTileRows; ++r) part[r] = r < there ? rows[base + r] : nullptr;
    Tile tile;
    const auto add = [&](auto kind) {
      using Kind = decltype(kind);
      make_tile(kind, part, 0, last, operand.shape, work.memory, tile);
      multiply<Kind>(work, operand, tile, 0, work.count, 0, last);
    };
#if FOVEAL_BF16
    if (operand.pairs)
      add(Pairs{});
    else
#endif
      add(Floats{});
    std::memcpy(to + base * work.lanes, work.logits, static_cast<std::size_t>(there * work.lanes) * sizeof(float));
  }
}

// Weights of all rows, summed over the heads.
void sum_weights(const Work& work, const Traced& traced, float* mass) {
  const F factor = splat(1.0f / __builtin_sqrtf(static_cast<float>(work.args->width)));
  for (std::int64_t r = 0; r < traced.rows; ++r) mass[r] = 0.0f;
  for (std::int64_t lane = 0; lane < work.count; lane += kLanes) {
    const std::int64_t there = least(kLanes, work.count - lane);
    const F sink = load_some(work.args->sink + (work.row + lane) % work.args->heads, there);
    F peak = max(sink, splat(kFloor));
    for (std::int64_t r = 0; r < traced.rows; ++r)
      peak = max(peak, load(traced.logits + r * traced.lanes + lane) * factor);
    F total = exp(sink - peak);
    for (std::int64_t r = 0; r < traced.rows; ++r) {
      float* at = traced.logits + r * traced.lanes + lane;
      const F weight = exp(load(at) * factor - peak);
      store(at, weight);
      total = total + weight;
    }
    const F share = splat(1.0f) / total;
    for (std::int64_t r = 0; r < traced.rows; ++r) {
      const F weight = load(traced.logits + r * traced.lanes + lane) * share;
      float kept[kLanes] = {};
      store_some(kept, weight, there);
      mass[r] += sum(load(kept));
    }
  }
}

// One of the last `trace` tokens; `at` counts them.
void trace_token(Context& context, const AttendArgs& args, std::int64_t at, int thread) {
  Arena& arena = context.own(thread);
  const Arena::Scope scope(arena);
  const std::int64_t token = args.n - args.trace + at, oldest = oldest_of(args, token);
  const std::int64_t near = args.position + token + 1 - oldest, far = entries_of(args, token);
  const Work work = make_work(args, token * args.heads, args.heads, arena);
  const Traced traced{arena.take<float>((near + far) * work.lanes), near + far, work.lanes};
  auto* rows = arena.take<const std::uint8_t*>(near + far);
  for (std::int64_t i = 0; i < near; ++i) rows[i] = args.window.at(oldest + i);
  locate_entries(args, token, 0, far, rows + near);
  keep_logits(work, work.window, rows, near, traced.logits);
  if (far > 0) keep_logits(work, work.entries, rows + near, far, traced.logits + near * work.lanes);
  auto* mass = arena.take<float>(near + far);
  sum_weights(work, traced, mass);
  float* window = args.window_mass + at * args.window_size;
  for (std::int64_t i = 0; i < args.window_size; ++i) {
    const std::int64_t r = i - (args.window_size - near);
    window[i] = r < 0 ? 0.0f : mass[r];
  }
  const std::int64_t columns = args.indices != nullptr ? args.k : args.entries.count;
  for (std::int64_t i = 0; i < columns; ++i) args.entry_mass[at * columns + i] = i < far ? mass[near + i] : 0.0f;
}

void trace_jobs(Context& context, const AttendArgs* jobs, int count) {
  for (int j = 0; j < count; ++j) {
    const AttendArgs& args = jobs[j];
    for_each(context, args.trace <= 1, args.heads > 0 ? args.trace : 0,
             [&](std::int64_t at, int thread) { trace_token(context, args, at, thread); });
  }
}

}  // namespace
}  // namespace foveal::FOVEAL_ISA
