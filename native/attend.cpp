// Attention's jobs: which rows a token looks at, in which order they are summed, and how the work is cut up.
//
// What is special here: a token's rows fall into segments that depend on its own position only: the raw window, then
// stretches of 256 entries (or chosen entries). Each segment is one online softmax over tiles of 64 rows; segments are
// joined in order. Segments, tokens and heads may be spread over threads as is convenient: the sums stay the same.
#include "attend_rows.h"

namespace foveal::FOVEAL_ISA {
namespace {

constexpr std::int64_t kStretch = 4 * kTileRows;
constexpr std::int64_t kWideRow = 256;          // channels from which on a task has fewer lanes
constexpr std::int64_t kTasksPerThread = 4;
constexpr std::int64_t kSmallWork = 1'200'000;  // multiplications that one thread does at once
constexpr float kFloor = -1e30f;                // a running maximum that is below any logit
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
  std::int64_t padded;            // with few heads: BF16 numbers between two rows of the queries; else 0
  const std::uint32_t *query, *low;
};

// An online softmax so far: maximum and sum of each lane, and the weighted sums [block, lane, 64].
struct Partial {
  float *peak, *total, *sums;
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

  std::int64_t block_stride() const { return lanes * kBlock; }
};

FOVEAL_INLINE std::int64_t lanes_for(std::int64_t count) { return round_up(count, kLanes) + kLanes; }

FOVEAL_INLINE std::int64_t partial_floats(std::int64_t count, std::int64_t width) {
  return lanes_for(count) * (2 + shares(width, kBlock) * kBlock);
}

FOVEAL_INLINE Partial partial_at(const Work& work, float* memory) {
  return {memory, memory + work.lanes, memory + 2 * work.lanes};
}

// Nothing yet, but for the sink if it is to be counted.
void clear(const Work& work, const Partial& partial, std::int64_t lane, std::int64_t count, bool with_sink) {
  for (std::int64_t block = 0; block < work.blocks; ++block)
    std::memset(partial.sums + block * work.block_stride() + lane * kBlock, 0,
                static_cast<std::size_t>(count * kBlock) * sizeof(float));
  for (std::int64_t at = lane; at < lane + count; at += kLanes) {
    const std::int64_t there = least(kLanes, lane + count - at);
    const F sink = load(work.sink + at), peak = max(sink, splat(kFloor));
    store_some(partial.peak + at, peak, there);
    store_some(partial.total + at, with_sink ? exp(sink - peak) : zero(), there);
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

// Whether vectors across the channels are better than vectors across the heads: a matter of the model, not of the batch.
FOVEAL_INLINE bool few_heads(const AttendArgs& args) {
  const std::int64_t across_channels = args.heads * (args.width + 96) / 32, across_heads = shares(args.heads, 16) * args.width / 2;
  return 4 * across_channels < 3 * across_heads;
}

void prepare_pairs(const Work& work, Arena& arena, Operand& operand) {
  const std::int64_t width = work.args->width, elements = shares(width, 2), padded = round_up(width, 32);
  const bool two = work.args->precision == Precision::kFP32, few = few_heads(*work.args);
  const std::int64_t room = few ? work.lanes * padded / 2 : elements * work.lanes;
  auto* query = arena.take<std::uint32_t>(room);
  auto* low = two ? arena.take<std::uint32_t>(room) : nullptr;
  operand.query = query;
  operand.low = low;
  if (few) {
    operand.padded = padded;
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
  const std::int64_t width = work.args->width;
  auto* query = arena.take<std::uint32_t>(width * work.lanes);
  operand.query = query;
  operand.low = nullptr;
  const Arena::Scope scope(arena);
  const float* rows = work.args->query + work.row * width;
  if (operand.rounded) {
    auto* copy = arena.take<float>(work.count * width);
    for (std::int64_t i = 0; i < work.count * width; ++i) copy[i] = widen_one(narrow_one(rows[i]));
    rows = copy;
  }
  spread_queries(work, reinterpret_cast<const std::uint32_t*>(rows), width, width, query);
}

Operand operand_of(const Work& work, Arena& arena, Codec codec, std::int64_t rotary) {
  Operand operand{{codec, work.args->width, rotary}, false, false, 0, nullptr, nullptr};
  const bool plain = codec == Codec::kF32;
#if FOVEAL_AVX512
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

// ---------------------------------------------------------------- softmax

// Weights of one or two rows as elements, and what rounding took from them.
FOVEAL_INLINE void put_weights(Floats, const F* weight, bool rounded, std::uint32_t* to, std::uint32_t*) {
  F x = weight[0];
  if (rounded) {
    const U bits = as_bits(x);
    x = from_bits((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
  }
  store(reinterpret_cast<float*>(to), x);
}
#if FOVEAL_AVX512
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
        x = (row >= from) & (row < to) ? x : splat(kLowest);
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
      put_weights(Kind{}, weight, operand.rounded, work.weights + step, operand.low != nullptr ? work.low + step : nullptr);
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
  for (const std::uint32_t* query : terms) {
    if (query == nullptr) continue;
#if FOVEAL_AVX512
    if (operand.padded > 0) {
      const auto* from = reinterpret_cast<const std::uint16_t*>(query) + lane * operand.padded;
      add_logits_few(tile, first, last, work.args->width, from, operand.padded, work.lanes, count, fresh, logits);
      fresh = false;
      continue;
    }
#endif
    const std::int64_t elements = shares(work.args->width, Kind::kNumbers);
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
  const std::int64_t width = work.args->width;
  multiply<Kind>(work, operand, tile, lane, count, first, last);
  soften<Kind>(work, operand, partial, lane, count, first, last, masked);
  float* sums = partial.sums + lane * kBlock;
  add_sums<Kind>(tile, first, last, width, work.weights + lane, work.lanes, count, work.scale + lane, sums, work.block_stride());
  if (operand.low != nullptr)
    add_sums<Kind>(tile, first, last, width, work.low + lane, work.lanes, count, work.ones + lane, sums, work.block_stride());
}

void run_tile(const Work& work, const Operand& operand, const Partial& partial, const std::uint8_t* const* rows,
              std::int64_t lane, std::int64_t count, std::int64_t first, std::int64_t last, bool masked) {
#if FOVEAL_AVX512
  if (operand.pairs) return run_tile_of<Pairs>(work, operand, partial, rows, lane, count, first, last, masked);
#endif
  run_tile_of<Floats>(work, operand, partial, rows, lane, count, first, last, masked);
}

// ---------------------------------------------------------------- segments

FOVEAL_INLINE void see(const Work& work, std::int64_t lane, std::int64_t from, std::int64_t to) {
  work.from[lane] = static_cast<std::int32_t>(most(0, least(from, kTileRows)));
  work.to[lane] = static_cast<std::int32_t>(most(0, least(to, kTileRows)));
}

// The raw window, in tiles that begin at multiples of kTileRows.
void run_window(const Work& work, const Partial& partial) {
  const AttendArgs& args = *work.args;
  const std::int64_t head = work.tokens[0], tail = work.tokens[work.count - 1];
  const std::int64_t oldest = oldest_of(args, head), end = args.position + tail + 1;
  for (std::int64_t base = oldest / kTileRows * kTileRows; base < end; base += kTileRows) {
    const std::uint8_t* rows[kTileRows];
    for (std::int64_t r = 0; r < kTileRows; ++r)
      rows[r] = base + r >= oldest && base + r < end ? args.window.at(base + r) : nullptr;
    for (std::int64_t lane = 0; lane < work.count; ++lane) {
      const std::int64_t token = work.tokens[lane];
      see(work, lane, oldest_of(args, token) - base, args.position + token + 1 - base);
    }
    const std::int64_t first = most(0, oldest - base) / kGroup * kGroup;
    const std::int64_t last = least(kTileRows, round_up(end - base, kGroup));
    const bool masked = args.position + head + 1 - base < last || oldest_of(args, tail) - base > first;
    run_tile(work, work.window, partial, rows, 0, work.count, first, last, masked);
  }
}

// Entries [first, last) of the list that lanes [lane, lane + count) share; `rows` begins at entry `first`. `seen`: how
// many entries of the list the first of the lanes sees; `fetched`: how many rows there are.
void run_entries(const Work& work, const Partial& partial, std::int64_t lane, std::int64_t count, std::int64_t first,
                 std::int64_t last, std::int64_t seen, const std::uint8_t* const* rows, std::int64_t fetched) {
  const AttendArgs& args = *work.args;
  for (std::int64_t base = first; base < last; base += kTileRows) {
    const std::uint8_t* tile[kTileRows];
    const std::int64_t there = least(kTileRows, last - base), ahead = base - first + kTileRows;
    for (std::int64_t r = 0; r < kTileRows; ++r) tile[r] = r < there ? rows[base - first + r] : nullptr;
    if (ahead < fetched) fetch(rows + ahead, least(kTileRows, fetched - ahead), args.entries.entry_bytes);
    const bool masked = seen < base + round_up(there, kGroup);
    if (masked)
      for (std::int64_t i = lane; i < lane + count; ++i)
        see(work, i, 0, (args.indices != nullptr ? seen : visible_of(args, work.tokens[i])) - base);
    run_tile(work, work.entries, partial, tile, lane, count, 0, round_up(there, kGroup), masked);
  }
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

// ---------------------------------------------------------------- tasks

// Some query rows of a job, with all of their segments, or (partials given) with one.
struct Task {
  const AttendArgs* args;
  std::int64_t row, count;
  std::int64_t segment;  // 0: the window; s: entries (s - 1) * kStretch and on; -1: all, in turn
  float* partials;       // [segments, partial_floats]
  std::int64_t segments;
};

// Lanes of one list of entries, all of its segments in turn.
void run_list(const Work& work, const Partial& main, const Partial& next, std::int64_t token, std::int64_t lane,
              std::int64_t count, Arena& arena) {
  const AttendArgs& args = *work.args;
  const std::int64_t end = entries_of(args, work.tokens[lane + count - 1]), seen = entries_of(args, token);
  const Arena::Scope scope(arena);
  auto* rows = arena.take<const std::uint8_t*>(end);
  locate_entries(args, token, 0, end, rows);
  for (std::int64_t first = 0; first < end; first += kStretch) {
    clear(work, next, lane, count, false);
    run_entries(work, next, lane, count, first, least(end, first + kStretch), seen, rows + first, end - first);
    join(work, main, next, lane, count);
  }
}

void run_all(const Work& work, const Partial& main, Arena& arena) {
  const AttendArgs& args = *work.args;
  clear(work, main, 0, work.count, true);
  run_window(work, main);
  if (args.indices == nullptr && args.ratio <= 0) return;
  const Partial next = partial_at(work, arena.take<float>(partial_floats(work.count, args.width)));
  if (args.indices == nullptr) return run_list(work, main, next, work.tokens[0], 0, work.count, arena);
  for (std::int64_t lane = 0; lane < work.count;) {
    const std::int64_t token = work.tokens[lane], end = least(work.count, (token + 1) * args.heads - work.row);
    run_list(work, main, next, token, lane, end - lane, arena);
    lane = end;
  }
}

// One segment of lanes that all look at one list.
void run_segment(const Work& work, const Partial& partial, std::int64_t segment, Arena& arena) {
  const AttendArgs& args = *work.args;
  clear(work, partial, 0, work.count, segment == 0);
  if (segment == 0) return run_window(work, partial);
  const std::int64_t token = work.tokens[0], first = (segment - 1) * kStretch;
  const std::int64_t end = least(first + kStretch, entries_of(args, work.tokens[work.count - 1]));
  if (end <= first) return;
  auto* rows = arena.take<const std::uint8_t*>(end - first);
  locate_entries(args, token, first, end - first, rows);
  fetch(rows, least(kTileRows, end - first), args.entries.entry_bytes);
  run_entries(work, partial, 0, work.count, first, end, entries_of(args, token), rows, end - first);
}

void run_task(Context& context, const Task& task, int thread) {
  Arena& arena = context.own(thread);
  const Arena::Scope scope(arena);
  const std::int64_t floats = partial_floats(task.count, task.args->width);
  const Work work = make_work(*task.args, task.row, task.count, arena);
  if (task.partials != nullptr) return run_segment(work, partial_at(work, task.partials + task.segment * floats), task.segment, arena);
  const Partial main = partial_at(work, arena.take<float>(floats));
  run_all(work, main, arena);
  finish(work, main, arena);
}

// The segments of a task that was spread, in order.
void join_task(Context& context, const Task& task, int thread) {
  Arena& arena = context.own(thread);
  const Arena::Scope scope(arena);
  Work work{};
  work.args = task.args;
  work.row = task.row;
  work.count = task.count;
  work.lanes = lanes_for(task.count);
  work.blocks = shares(task.args->width, kBlock);
  take_lanes(work, arena);
  const std::int64_t floats = partial_floats(task.count, task.args->width);
  const Partial main = partial_at(work, task.partials);
  for (std::int64_t s = 1; s < task.segments; ++s)
    join(work, main, partial_at(work, task.partials + s * floats), 0, work.count);
  finish(work, main, arena);
}

// ---------------------------------------------------------------- cutting

struct Cutting {
  std::int64_t lanes;  // of a task: some heads of a token, or all heads of some tokens
  std::int64_t tasks;  // not counting segments
  std::int64_t segments;
};

FOVEAL_INLINE std::int64_t most_lanes(const AttendArgs& args) { return args.width >= kWideRow ? 64 : 128; }

FOVEAL_INLINE std::int64_t work_of(const AttendArgs& args) {
  if (args.n == 0) return 0;
  const std::int64_t window = least(args.window_size, args.position + args.n);
  const std::int64_t listed = args.indices != nullptr ? args.k : visible_of(args, args.n - 1);
  return 2 * args.n * args.heads * args.width * (window + listed);
}

FOVEAL_INLINE Cutting cut(const AttendArgs& args, std::int64_t lanes) {
  Cutting cutting{};
  if (args.n == 0 || args.heads == 0) return cutting;
  lanes = least(lanes, most_lanes(args));
  const std::int64_t parts = shares(args.heads, lanes);  // of the heads of one token
  cutting.lanes = parts > 1 ? round_up(shares(args.heads, parts), kLanes) : lanes / args.heads * args.heads;
  cutting.tasks = parts > 1 ? args.n * shares(args.heads, cutting.lanes) : shares(args.n * args.heads, cutting.lanes);
  const std::int64_t listed = args.indices != nullptr ? args.k : visible_of(args, args.n - 1);
  cutting.segments = 1 + shares(listed, kStretch);
  return cutting;
}

// Tasks of a job into `tasks`, their number returned.
std::int64_t make_tasks(Context& context, const AttendArgs& args, const Cutting& cutting, bool spread, Task* tasks) {
  std::int64_t made = 0;
  const bool by_heads = cutting.lanes < args.heads;
  for (std::int64_t row = 0; row < args.n * args.heads;) {
    const std::int64_t left = by_heads ? args.heads - row % args.heads : args.n * args.heads - row;
    const std::int64_t count = least(cutting.lanes, left), floats = partial_floats(count, args.width);
    const bool one_list = args.indices == nullptr || count <= args.heads;
    const bool split = spread && cutting.segments > 1 && one_list;
    float* partials = split ? context.arena.take<float>(cutting.segments * floats) : nullptr;
    for (std::int64_t s = 0; s < (split ? cutting.segments : 1); ++s)
      tasks[made++] = Task{&args, row, count, split ? s : -1, partials, cutting.segments};
    row += count;
  }
  return made;
}

template <class Body>
FOVEAL_INLINE void for_each(Context& context, bool small, std::int64_t count, const Body& body) {
  if (small)
    for (std::int64_t i = 0; i < count; ++i) body(i, 0);
  else
    context.pool.run(count, body);
}

// Lanes of a task: few enough that every thread has something to do.
std::int64_t choose_lanes(const AttendArgs* jobs, int count, int threads) {
  std::int64_t total = 0;
  for (int j = 0; j < count; ++j) total += jobs[j].n * jobs[j].heads;
  std::int64_t lanes = 128;
  while (lanes > 32 && total < 2 * threads * lanes) lanes /= 2;
  return lanes;
}

void trace_jobs(Context& context, const AttendArgs* jobs, int count);

void attend(Context& context, const AttendArgs* jobs, int count) {
  const Arena::Scope scope(context.arena);
  const int threads = context.pool.threads();
  std::int64_t work = 0, room = 0, whole = 0, made = 0;
  for (int j = 0; j < count; ++j) work += work_of(jobs[j]);
  const bool small = threads == 1 || work < kSmallWork;
  const std::int64_t lanes = small ? 128 : choose_lanes(jobs, count, threads);
  for (int j = 0; j < count; ++j) {
    const Cutting cutting = cut(jobs[j], lanes);
    whole += cutting.tasks;
    room += cutting.tasks * cutting.segments;
  }
  const bool spread = !small && whole < kTasksPerThread * threads;
  auto* tasks = context.arena.take<Task>(spread ? room : whole);
  for (int j = 0; j < count; ++j) made += make_tasks(context, jobs[j], cut(jobs[j], lanes), spread, tasks + made);
  for_each(context, small, made, [&](std::int64_t i, int thread) { run_task(context, tasks[i], thread); });
  if (spread)
    context.pool.run(made, [&](std::int64_t i, int thread) {
      if (tasks[i].segment == 0) join_task(context, tasks[i], thread);
    });
  trace_jobs(context, jobs, count);
}

// ---------------------------------------------------------------- trace

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
#if FOVEAL_AVX512
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
      F weight = load(traced.logits + r * traced.lanes + lane) * share;
      for (std::int64_t i = there; i < kLanes; ++i) weight[i] = 0.0f;
      mass[r] += sum(weight);
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

extern const AttendOps attend_ops;
const AttendOps attend_ops{attend};

}  // namespace foveal::FOVEAL_ISA
