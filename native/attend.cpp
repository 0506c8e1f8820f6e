// Attention's jobs: which rows a token looks at, in which order they are summed, and how the work is cut up.
//
// What is special here: a token's rows fall into segments that depend on its own position only: the raw window, then
// stretches of 256 entries (or chosen entries). Each segment is one online softmax over tiles of 64 rows; segments are
// joined in order. Segments, tokens and heads may be spread over threads as is convenient: the sums stay the same.
#include "attend_softmax.h"
#include "attend_trace.h"

namespace foveal::FOVEAL_ISA {
namespace {

constexpr std::int64_t kStretch = 4 * kTileRows;
constexpr std::int64_t kWideRow = 256;          // channels from which on a task has fewer lanes
constexpr std::int64_t kTasksPerThread = 4;
constexpr std::int64_t kSmallWork = 1'200'000;  // multiplications that one thread does at once

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
    const std::int64_t first = most(0, oldest - base) / kGroup * kGroup;
    const std::int64_t last = least(kTileRows, round_up(end - base, kGroup));
    const bool masked = args.position + head + 1 - base < last || oldest_of(args, tail) - base > first;
    for (std::int64_t lane = 0; masked && lane < work.count; ++lane) {
      const std::int64_t token = work.tokens[lane];
      see(work, lane, oldest_of(args, token) - base, args.position + token + 1 - base);
    }
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

// Asks for the first rows of a list, which then arrive while the window, or another token's list, is being worked on.
void fetch_first(const AttendArgs& args, std::int64_t token) {
  const std::uint8_t* rows[kTileRows];
  const std::int64_t count = least(kTileRows, entries_of(args, token));
  locate_entries(args, token, 0, count, rows);
  fetch(rows, count, args.entries.entry_bytes);
}

void run_all(const Work& work, const Partial& main, Arena& arena) {
  const AttendArgs& args = *work.args;
  clear(work, main, 0, work.count, true);
  fetch_first(args, work.tokens[0]);
  run_window(work, main);
  if (args.indices == nullptr && args.ratio <= 0) return;
  const Partial next = new_partial(work, arena.take<float>(partial_floats(work.count, args.width)));
  if (args.indices == nullptr) return run_list(work, main, next, work.tokens[0], 0, work.count, arena);
  for (std::int64_t lane = 0; lane < work.count;) {
    const std::int64_t token = work.tokens[lane], end = least(work.count, (token + 1) * args.heads - work.row);
    if (end < work.count) fetch_first(args, token + 1);
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
  if (task.partials != nullptr) {
    const Partial partial = new_partial(work, task.partials + task.segment * floats);
    return run_segment(work, partial, task.segment, arena);
  }
  const Partial main = new_partial(work, arena.take<float>(floats));
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

FOVEAL_INLINE std::int64_t most_lanes(const AttendArgs& args) { return args.width >= kWideRow ? 64 : 256; }

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

// Lanes of a task: few enough that every thread has something to do.
std::int64_t choose_lanes(const AttendArgs* jobs, int count, int threads) {
  std::int64_t total = 0;
  for (int j = 0; j < count; ++j) total += jobs[j].n * jobs[j].heads;
  std::int64_t lanes = 256;
  while (lanes > 32 && total < 2 * threads * lanes) lanes /= 2;
  return lanes;
}

void attend(Context& context, const AttendArgs* jobs, int count) {
  const Arena::Scope scope(context.arena);
  const int threads = context.pool.threads();
  std::int64_t work = 0, room = 0, whole = 0, made = 0;
  for (int j = 0; j < count; ++j) work += work_of(jobs[j]);
  const bool small = threads == 1 || work < kSmallWork;
  const std::int64_t lanes = small ? 256 : choose_lanes(jobs, count, threads);
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

}  // namespace

extern const AttendOps attend_ops;
const AttendOps attend_ops{attend};

}  // namespace foveal::FOVEAL_ISA
