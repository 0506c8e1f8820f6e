// What a job's tokens look at, and the scratch memory of one task.
//
// A task's queries are laid out once, the way the products want them: spread over the lanes, or (few heads) row by row;
// in two BF16 terms where the numerics ask for it.
#pragma once

#include "attend_rows.h"

namespace foveal::FOVEAL_ISA {
namespace {

constexpr float kFloor = -1e30f;  // a running maximum that is below any logit
constexpr float kLog2E = 1.44269504f;  // logits and maxima are multiplied by it: weights are powers of two
constexpr float kLowest = -__builtin_inff();

// ---------------------------------------------------------------- what a job looks at

FOVEAL_INLINE std::int64_t visible_of(const AttendArgs& args, std::int64_t token) {
  if (args.ratio <= 0) return 0;
  return least(args.entries.count, (args.position + token + 1) / args.ratio);
}

// Numbers of the list before the first -1.
FOVEAL_INLINE std::int64_t chosen_of(const AttendArgs& args, std::int64_t token) {
  const std::int32_t* list = args.indices + token * args.k;
  std::int64_t low = 0, high = args.k;
  while (low < high) {
    const std::int64_t middle = (low + high) / 2;
    if (list[middle] < 0)
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

FOVEAL_INLINE std::int64_t entries_of(const AttendArgs& args, std::int64_t token) {
  return args.indices != nullptr ? chosen_of(args, token) : visible_of(args, token);
}

FOVEAL_INLINE std::int64_t oldest_of(const AttendArgs& args, std::int64_t token) {
  return most(0, args.position + token - args.window_size + 1);
}

// Where entries [first, first + count) of token's list lie.
void locate_entries(const AttendArgs& args, std::int64_t token, std::int64_t first, std::int64_t count,
                    const std::uint8_t** rows) {
  const Entries& entries = args.entries;
  const std::int64_t per_page = entries.per_page;
  if (args.indices == nullptr) {
    std::int64_t page = first / per_page, slot = first % per_page;
    for (std::int64_t i = 0; i < count; ++i) {
      rows[i] = entries.pages[page] + entries.offset + slot * entries.entry_bytes;
      if (++slot < per_page) continue;
      slot = 0;
      ++page;
    }
    return;
  }
  if (args.rows != nullptr) {
    std::memcpy(rows, args.rows + token * args.k + first, static_cast<std::size_t>(count) * sizeof(*rows));
    return;
  }
  const std::int32_t* list = args.indices + token * args.k + first;
  if ((per_page & (per_page - 1)) != 0) {
    for (std::int64_t i = 0; i < count; ++i) rows[i] = entries.at(list[i]);
    return;
  }
  const int shift = __builtin_ctzll(static_cast<unsigned long long>(per_page));
  for (std::int64_t i = 0; i < count; ++i)
    rows[i] = entries.pages[list[i] >> shift] + entries.offset + (list[i] & (per_page - 1)) * entries.entry_bytes;
}

FOVEAL_INLINE void fetch(const std::uint8_t* const* rows, std::int64_t count, std::int64_t bytes) {
  for (std::int64_t i = 0; i < count; ++i)
    for (std::int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(rows[i] + b);
}

// ---------------------------------------------------------------- scratch of a task

// How rows of one codec are multiplied: as pairs of BF16 numbers or as floats; `low` is the second term of each number.
struct Operand {
  RowShape shape;
  bool pairs, rounded;
  std::int64_t padded;            // with few heads: elements between two rows of the queries; else 0
  const std::uint32_t *query, *low;
};

// An online softmax so far: maximum and sum of each lane, and the weighted sums [block, lane, 64], blocks `stride` apart.
struct Partial {
  float *peak, *total, *sums;
  std::int64_t stride;
};

struct Work {
  const AttendArgs* args;
  std::int64_t row, count;        // query rows (token * H + head): lanes of this task
  std::int64_t lanes, blocks;     // lanes with slack; blocks of 64 channels
  Operand window, entries;
  TileMemory memory;
  float* logits;                  // [kTileRows, lanes]
  std::uint32_t *weights, *low;   // [kTileRows / Kind::kNumbers, lanes]
  float *scale, *ones, *sink;     // [lanes]
  std::int32_t *from, *to;        // [lanes]: rows of a tile that a lane sees
  std::int64_t* tokens;           // [lanes]
};

FOVEAL_INLINE std::int64_t lanes_for(std::int64_t count) { return round_up(count, kLanes) + kLanes; }

FOVEAL_INLINE std::int64_t partial_floats(std::int64_t count, std::int64_t width) {
  return lanes_for(count) * (2 + shares(width, kBlock) * kBlock);
}

FOVEAL_INLINE Partial partial_at(float* memory, std::int64_t count) {
  const std::int64_t lanes = lanes_for(count);
  return {memory, memory + lanes, memory + 2 * lanes, lanes * kBlock};
}

// The part that begins with lane `lane`.
FOVEAL_INLINE Partial from_lane(const Partial& all, std::int64_t lane) {
  return {all.peak + lane, all.total + lane, all.sums + lane * kBlock, all.stride};
}

// In memory that nobody has used. Lanes that nobody computes begin as zeros too: what lies there by chance may be
// denormal numbers, which some machines multiply a hundred times as slowly.
FOVEAL_INLINE Partial new_partial(float* memory, std::int64_t count) {
  std::memset(memory, 0, static_cast<std::size_t>(2 * lanes_for(count)) * sizeof(float));
  return partial_at(memory, count);
}

// Nothing yet, but for the sink if it is to be counted.
void clear(const Work& work, const Partial& partial, std::int64_t lane, std::int64_t count, bool with_sink) {
  for (std::int64_t block = 0; block < work.blocks; ++block)
    std::memset(partial.sums + block * partial.stride + lane * kBlock, 0,
                static_cast<std::size_t>(count * kBlock) * sizeof(float));
  for (std::int64_t at = lane; at < lane + count; at += kLanes) {
    const std::int64_t there = least(kLanes, lane + count - at);
    const F sink = load(work.sink + at) * splat(kLog2E), peak = max(sink, splat(kFloor));
    store_some(partial.peak + at, peak, there);
    store_some(partial.total + at, with_sink ? weight_of(sink - peak) : zero(), there);
  }
}

// Queries as 4-byte elements [elements, lanes].
void spread_queries(const Work& work, const std::uint32_t* rows, std::int64_t stride, std::int64_t elements,
                    std::uint32_t* to) {
  std::memset(to, 0, static_cast<std::size_t>(elements * work.lanes) * sizeof(std::uint32_t));
  constexpr std::int64_t kPatch = 16;  // square patches, so that what is read stays near
  for (std::int64_t start = 0; start < elements; start += kPatch)
    for (std::int64_t from = 0; from < work.count; from += kPatch)
      for (std::int64_t i = start; i < least(start + kPatch, elements); ++i)
        for (std::int64_t lane = from; lane < least(from + kPatch, work.count); ++lane)
          to[i * work.lanes + lane] = rows[lane * stride + i];
}

// Query rows as BF16 numbers `padded` apart, and what rounding took from them if `low` is wanted; zeros between.
void narrow_queries(const Work& work, std::int64_t padded, std::uint16_t* high, std::uint16_t* low) {
  const std::int64_t width = work.args->width;
  for (std::int64_t lane = 0; lane < work.count; ++lane) {
    const float* from = work.args->query + (work.row + lane) * width;
    for (std::int64_t c = 0; c < padded; c += kLanes) {
      const F x = load_some(from + c, most(0, least(kLanes, width - c)));
      store_narrow(high + lane * padded + c, x);
      if (low != nullptr) store_narrow(low + lane * padded + c, x - widen(high + lane * padded + c));
    }
  }
}

// Whether vectors across the channels (each with a sum over its lanes to pay for) are better than vectors across the
// heads: instructions a row. A matter of the model, not of the batch, since the two add in different orders.
FOVEAL_INLINE bool few_heads(const AttendArgs& args, std::int64_t numbers) {
#if FOVEAL_AVX512
  const std::int64_t across_channels = args.heads * (args.width + 48 * numbers) / (kLanes * numbers);
  const std::int64_t across_heads = shares(args.heads, kLanes) * args.width / numbers;
  return 4 * across_channels < 3 * across_heads;
#else
  (void)args, (void)numbers;
  return false;
#endif
}

void prepare_pairs(const Work& work, Arena& arena, Operand& operand) {
  const std::int64_t width = work.args->width, elements = shares(width, 2), padded = round_up(width, 32);
  const bool two = work.args->precision == Precision::kFP32, few = few_heads(*work.args, 2);
  const std::int64_t room = few ? work.lanes * padded / 2 : elements * work.lanes;
  auto* query = arena.take<std::uint32_t>(room);
  auto* low = two ? arena.take<std::uint32_t>(room) : nullptr;
  operand.query = query;
  operand.low = low;
  if (few) {
    operand.padded = padded / 2;
    std::memset(query, 0, static_cast<std::size_t>(room) * sizeof(std::uint32_t));
    if (two) std::memset(low, 0, static_cast<std::size_t>(room) * sizeof(std::uint32_t));
    return narrow_queries(work, padded, reinterpret_cast<std::uint16_t*>(query), reinterpret_cast<std::uint16_t*>(low));
  }
  const Arena::Scope scope(arena);
  auto* high_rows = arena.take<std::uint16_t>(padded * work.count);
  auto* low_rows = two ? arena.take<std::uint16_t>(padded * work.count) : nullptr;
  narrow_queries(work, padded, high_rows, low_rows);
  spread_queries(work, reinterpret_cast<const std::uint32_t*>(high_rows), padded / 2, elements, query);
  if (two) spread_queries(work, reinterpret_cast<const std::uint32_t*>(low_rows), padded / 2, elements, low);
}

void prepare_floats(const Work& work, Arena& arena, Operand& operand) {
  const std::int64_t width = work.args->width, padded = round_up(width, kLanes);
  auto* query = arena.take<std::uint32_t>(padded * work.lanes);
  operand.query = query;
  operand.low = nullptr;
  const Arena::Scope scope(arena);
  const float* rows = work.args->query + work.row * width;
  if (operand.rounded) {
    auto* copy = arena.take<float>(work.count * width);
    for (std::int64_t i = 0; i < work.count * width; ++i) copy[i] = widen_one(narrow_one(rows[i]));
    rows = copy;
  }
  if (!few_heads(*work.args, 1))
    return spread_queries(work, reinterpret_cast<const std::uint32_t*>(rows), width, width, query);
  operand.padded = padded;
  std::memset(query, 0, static_cast<std::size_t>(padded * work.lanes) * sizeof(float));
  for (std::int64_t lane = 0; lane < work.count; ++lane)
    std::memcpy(query + lane * padded, rows + lane * width, static_cast<std::size_t>(width) * sizeof(float));
}

Operand operand_of(const Work& work, Arena& arena, Codec codec, std::int64_t rotary) {
  Operand operand{{codec, work.args->width, rotary}, false, false, 0, nullptr, nullptr};
  const bool plain = codec == Codec::kF32;
#if FOVEAL_BF16
  operand.pairs = !plain;
#else
  operand.rounded = !plain && work.args->precision == Precision::kBF16;
#endif
  if (operand.pairs)
    prepare_pairs(work, arena, operand);
  else
    prepare_floats(work, arena, operand);
  return operand;
}

// What is known of each lane.
void take_lanes(Work& work, Arena& arena) {
  work.scale = arena.take<float>(work.lanes);
  work.ones = arena.take<float>(work.lanes);
  work.sink = arena.take<float>(work.lanes);
  work.from = arena.take<std::int32_t>(work.lanes);
  work.to = arena.take<std::int32_t>(work.lanes);
  work.tokens = arena.take<std::int64_t>(work.lanes);
  std::int64_t token = work.row / work.args->heads, head = work.row % work.args->heads;
  for (std::int64_t lane = 0; lane < work.lanes; ++lane) {
    work.ones[lane] = 1.0f;
    work.sink[lane] = work.args->sink[head];
    work.from[lane] = work.to[lane] = 0;
    work.tokens[lane] = token;
    if (++head < work.args->heads) continue;
    head = 0;
    ++token;
  }
}

Work make_work(const AttendArgs& args, std::int64_t row, std::int64_t count, Arena& arena) {
  Work work{};
  work.args = &args;
  work.row = row;
  work.count = count;
  work.lanes = lanes_for(count);
  work.blocks = shares(args.width, kBlock);
  work.memory = take_tile(arena, args.width);
  work.logits = arena.take<float>(kTileRows * work.lanes);
  work.weights = arena.take<std::uint32_t>(kTileRows * work.lanes);
  work.low = arena.take<std::uint32_t>(kTileRows * work.lanes);
  take_lanes(work, arena);
  std::memset(work.logits, 0, static_cast<std::size_t>(kTileRows * work.lanes) * sizeof(float));
  work.window = operand_of(work, arena, args.window_codec, 0);
  const bool any = args.indices != nullptr ? args.k > 0 : args.ratio > 0;
  const Codec codec = args.entries.codec;
  if (!any) return work;
  work.entries = work.window;
  work.entries.shape = {codec, args.width, args.entries.rotary};
  if ((codec == Codec::kF32) != (args.window_codec == Codec::kF32))
    work.entries = operand_of(work, arena, codec, args.entries.rotary);
  return work;
}

template <class Body>
FOVEAL_INLINE void for_each(Context& context, bool small, std::int64_t count, const Body& body) {
  if (small)
    for (std::int64_t i = 0; i < count; ++i) body(i, 0);
  else
    context.pool.run(count, body);
}

}  // namespace
}  // namespace foveal::FOVEAL_ISA
