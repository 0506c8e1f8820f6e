// The compressors: a softmax over a window's rows for each channel, then norm, rotation, rounding, and into the page.
//
// Rows are read where they lie (ring or step), in blocks of channels wide enough that a row's visit is worth it; each
// entry is one task from its rows to its bytes, so nothing is stored in between.
#include "compress.h"

#include "compress_codec.h"
#include "rowwise.h"

namespace foveal::FOVEAL_ISA {
namespace {

constexpr int kBlock = kPieces == 1 ? 4 : 2;  // vectors of channels worked on together
constexpr std::int64_t kEntryFloats = 4;       // work of one slot's channel, in numbers touched

// What is weighed for one entry: for each slot the rows of kv and gate, already at the half that counts.
struct Slots {
  const float** kv;
  const float** gate;
  std::int64_t count;
};

const float* row(const Rows& rows, std::int64_t position, std::int64_t channel) {
  return reinterpret_cast<const float*>(rows.at(position)) + channel;
}

void add_slots(const CompressArgs& args, std::int64_t first, std::int64_t channel, Slots& slots) {
  for (std::int64_t p = first; p < first + args.ratio; ++p, ++slots.count) {
    slots.kv[slots.count] = row(args.kv, p, channel);
    slots.gate[slots.count] = row(args.gate, p, channel);
  }
}

// CSA: the window before by its F halves, then the window itself by its S halves. HCA: the window itself.
Slots find_slots(const CompressArgs& args, std::int64_t entry, Arena& arena) {
  const std::int64_t most_slots = (args.overlap ? 2 : 1) * args.ratio;
  Slots slots{arena.take<const float*>(most_slots), arena.take<const float*>(most_slots), 0};
  const std::int64_t start = entry * args.ratio;
  if (args.overlap && entry > 0) add_slots(args, start - args.ratio, 0, slots);
  add_slots(args, start, args.overlap ? args.out.width : 0, slots);
  return slots;
}

// V pieces of channels from i on: two passes, the largest gate, then weights and sum.
template <int V>
FOVEAL_INLINE void weigh(const Slots& slots, std::int64_t i, float* to) {
  P top[V], total[V], acc[V];
  for (int v = 0; v < V; ++v) top[v] = load_as<P>(slots.gate[0] + i + v * kPieceLanes);
  for (std::int64_t s = 1; s < slots.count; ++s)
    for (int v = 0; v < V; ++v) top[v] = max(top[v], load_as<P>(slots.gate[s] + i + v * kPieceLanes));
  for (int v = 0; v < V; ++v) total[v] = acc[v] = P{};
  for (std::int64_t s = 0; s < slots.count; ++s)
    for (int v = 0; v < V; ++v) {
      const P weight = exp(load_as<P>(slots.gate[s] + i + v * kPieceLanes) - top[v]);
      total[v] = total[v] + weight;
      acc[v] = fma(weight, load_as<P>(slots.kv[s] + i + v * kPieceLanes), acc[v]);
    }
  for (int v = 0; v < V; ++v) {
    const P entry = acc[v] / total[v];
    std::memcpy(to + i + v * kPieceLanes, &entry, sizeof entry);
  }
}

// The last channels, fewer than 16, in the same order.
void weigh_some(const Slots& slots, std::int64_t i, std::int64_t some, float* to) {
  F top = load_some(slots.gate[0] + i, some), total = zero(), acc = zero();
  for (std::int64_t s = 1; s < slots.count; ++s) top = max(top, load_some(slots.gate[s] + i, some));
  for (std::int64_t s = 0; s < slots.count; ++s) {
    const F weight = exp(load_some(slots.gate[s] + i, some) - top);
    total = total + weight;
    acc = fma(weight, load_some(slots.kv[s] + i, some), acc);
  }
  store_some(to + i, acc / total, some);
}

void weigh_all(const Slots& slots, std::int64_t width, float* to) {
  std::int64_t i = 0;
  for (; i + kBlock * kPieceLanes <= width; i += kBlock * kPieceLanes) weigh<kBlock>(slots, i, to);
  for (; i + kPieceLanes <= width; i += kPieceLanes) weigh<1>(slots, i, to);
  if (i < width) weigh_some(slots, i, width - i, to);
}

void make_entry(const CompressArgs& args, std::int64_t entry, Arena& arena) {
  Arena::Scope scope(arena);
  const std::int64_t width = args.out.width, rotary = 2 * args.rotary.half;
  float* const x = arena.take<float>(width);
  weigh_all(find_slots(args, entry, arena), width, x);
  rms_row(x, width, args.norm, args.eps, x);
  const Turn turn = make_turn(args.rotary, entry * args.ratio, false, arena.take<float>(turn_floats(args.rotary)));
  turn_row(x + width - rotary, args.rotary.half, turn);
  if (args.finish == Finish::kKv) quantize_kv_row(x, width, rotary);
  if (args.finish == Finish::kIndex) quantize_index_row(x, width);
  encode(args.out.codec, x, width, args.out.rotary, args.out.at(entry));
}

std::int64_t work_of(const CompressArgs& job) {
  return (job.last - job.first) * (job.overlap ? 2 : 1) * job.ratio * job.out.width * kEntryFloats;
}

// Entry number `index` of all jobs' entries, one job after the other.
void make_nth(const CompressArgs* jobs, std::int64_t index, Arena& arena) {
  for (; index >= jobs->last - jobs->first; ++jobs) index -= jobs->last - jobs->first;
  make_entry(*jobs, jobs->first + index, arena);
}

void compress(Context& context, const CompressArgs* jobs, int count) {
  std::int64_t entries = 0, work = 0;
  for (int job = 0; job < count; ++job) {
    entries += jobs[job].last - jobs[job].first;
    work += work_of(jobs[job]);
  }
  const int threads = context.pool.threads();
  if (threads == 1 || entries <= 1 || work < kInline) {
    for (std::int64_t i = 0; i < entries; ++i) make_nth(jobs, i, context.own(0));
    return;
  }
  const std::int64_t grain = most(1, least(shares(entries, threads), kTaskFloats * entries / work));
  context.pool.run(shares(entries, grain), [&](std::int64_t task, int thread) {
    for (std::int64_t i = task * grain; i < least(entries, (task + 1) * grain); ++i)
      make_nth(jobs, i, context.own(thread));
  });
}

void add_position_bias(Context& context, float* gate, std::int64_t n, std::int64_t width, const float* ape,
                       std::int64_t ratio, std::int64_t position) {
  each_token(context, n, 2 * width, [&](std::int64_t t, int) {
    float* const to = gate + t * width;
    const float* const bias = ape + (position + t) % ratio * width;
    std::int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) store(to + i, load(to + i) + load(bias + i));
    for (; i < width; ++i) to[i] += bias[i];
  });
}

}  // namespace

extern const CompressOps compress_ops;
const CompressOps compress_ops{compress, add_position_bias, encode, decode};

}  // namespace foveal::FOVEAL_ISA
