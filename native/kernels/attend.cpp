// Attention's jobs: which rows a token looks at, in which order they are summed, and how the work is cut up.
//
// A token's rows fall into segments that depend on its own position only: the raw window, then stretches of 256 entries
// (or chosen entries). Each segment is one online softmax over tiles of 64 rows; segments are joined in order.
// Segments, tokens and heads may be spread over threads as is convenient, and lanes of several sequences lie side by
// side: the sums stay the same.
#include "attend_gathered.h"
#include "attend_trace.h"

namespace foveal::FOVEAL_ISA {
namespace {

constexpr std::int64_t kWideRow = 256;          // channels from which on a task has fewer lanes
constexpr std::int64_t kTasksPerThread = 4;
constexpr std::int64_t kRoundBytes = 64 << 20;  // of partials that wait to be joined
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

// Some query rows of a job, with all of their segments in turn, or with one.
struct Task {
  const AttendArgs* args;
  std::int64_t row, count;
  std::int64_t segment;  // 0: the window; s: entries (s - 1) * kStretch and on; -1: all
  Partial partial;       // of the one segment
};

// Query rows whose segments were computed apart, window first.
struct Join {
  const AttendArgs* args;
  std::int64_t row, count;
  const Partial* parts;
  std::int64_t segments;
};

struct Plan {
  Task* tasks;
  Join* joins;
  std::int64_t task_count, join_count;
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
  const Partial next = new_partial(arena.take<float>(partial_floats(work.count, args.width)), work.count);
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
  const Work work = make_work(*task.args, task.row, task.count, arena);
  if (task.segment >= 0) return run_segment(work, task.partial, task.segment, arena);
  const Partial main = new_partial(arena.take<float>(partial_floats(task.count, task.args->width)), task.count);
  run_all(work, main, arena);
  finish(work, main, arena);
}

// The segments of rows that were computed apart, in order.
void run_join(Context& context, const Join& todo, int thread) {
  Arena& arena = context.own(thread);
  const Arena::Scope scope(arena);
  Work work{};
  work.args = todo.args;
  work.row = todo.row;
  work.count = todo.count;
  work.lanes = lanes_for(todo.count);
  work.blocks = shares(todo.args->width, kBlock);
  take_lanes(work, arena);
  for (std::int64_t s = 1; s < todo.segments; ++s) join(work, todo.parts[0], todo.parts[s], 0, work.count);
  finish(work, todo.parts[0], arena);
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
  cutting.segments = segments_of(args);
  return cutting;
}

// Rows of a job as one task for each segment that nobody else computes (`parts` has none of it yet), and a join.
void add_segments(Context& context, const AttendArgs& args, std::int64_t row, std::int64_t count, Partial* parts,
                  std::int64_t segments, Plan& plan) {
  for (std::int64_t s = 0; s < segments; ++s) {
    if (parts[s].peak != nullptr) continue;
    parts[s] = new_partial(context.arena.take<float>(partial_floats(count, args.width)), count);
    plan.tasks[plan.task_count++] = Task{&args, row, count, s, parts[s]};
  }
  plan.joins[plan.join_count++] = Join{&args, row, count, parts, segments};
}

void add_job(Context& context, const AttendArgs& args, const Cutting& cutting, bool spread, Plan& plan) {
  const bool by_heads = cutting.lanes < args.heads;
  for (std::int64_t row = 0; row < args.n * args.heads;) {
    const std::int64_t left = by_heads ? args.heads - row % args.heads : args.n * args.heads - row;
    const std::int64_t count = least(cutting.lanes, left);
    const bool one_list = args.indices == nullptr || count <= args.heads;
    if (spread && cutting.segments > 1 && one_list)
      add_segments(context, args, row, count, new_parts(context, cutting.segments), cutting.segments, plan);
    else
      plan.tasks[plan.task_count++] = Task{&args, row, count, -1, Partial{}};
    row += count;
  }
}

// Stretches that several jobs share come first: they are the longest tasks.
void add_groups(const Sharing& sharing, Plan& plan) {
  for (std::int64_t g = 0; g < sharing.count; ++g) {
    const Together& group = sharing.groups[g];
    const std::int64_t rows = group.args.n * group.args.heads;
    for (std::int64_t s = group.first; s < group.end; ++s)
      plan.tasks[plan.task_count++] = Task{&group.args, 0, rows, s + 1, group.partial(s)};
  }
}

// Lanes of a task: few enough that every thread has something to do.
std::int64_t choose_lanes(const AttendArgs* jobs, int count, int threads) {
  std::int64_t total = 0;
  for (int j = 0; j < count; ++j) total += jobs[j].n * jobs[j].heads;
  std::int64_t lanes = 256;
  while (lanes > 32 && total < 2 * threads * lanes) lanes /= 2;
  return lanes;
}

void attend_round(Context& context, const AttendArgs* given, int count) {
  const Arena::Scope scope(context.arena);
  const AttendArgs* jobs = gathered(context, given, count);
  const int threads = context.pool.threads();
  const Sharing sharing = Sharer(context, jobs, count).find();
  std::int64_t work = 0, room = sharing.stretches, whole = 0;
  for (int j = 0; j < count; ++j) work += work_of(jobs[j]);
  const bool small = threads == 1 || work < kSmallWork;
  const std::int64_t lanes = small ? 256 : choose_lanes(jobs, count, threads);
  for (int j = 0; j < count; ++j) {
    const Cutting cutting = cut(jobs[j], lanes);
    whole += cutting.tasks;
    room += cutting.tasks * cutting.segments;
  }
  const bool spread = !small && whole < kTasksPerThread * threads;
  Plan plan{context.arena.take<Task>(room), context.arena.take<Join>(whole), 0, 0};
  add_groups(sharing, plan);
  for (int j = 0; j < count; ++j)
    if (Partial* parts = sharing.parts[j]; parts != nullptr)
      add_segments(context, jobs[j], 0, jobs[j].n * jobs[j].heads, parts, segments_of(jobs[j]), plan);
    else
      add_job(context, jobs[j], cut(jobs[j], lanes), spread, plan);
  for_each(context, small, plan.task_count, [&](std::int64_t i, int thread) { run_task(context, plan.tasks[i], thread); });
  for_each(context, small, plan.join_count, [&](std::int64_t i, int thread) { run_join(context, plan.joins[i], thread); });
  trace_jobs(context, jobs, count);
}

// Behind the last of the jobs, from `first` on, whose partials may be in memory together.
int end_of_round(const AttendArgs* jobs, int first, int count) {
  std::int64_t bytes = 0;
  int end = first;
  for (; end < count; ++end) {
    const AttendArgs& job = jobs[end];
    if (!may_share(job)) continue;
    const std::int64_t floats = job.n * job.heads * round_up(job.width, kBlock);
    bytes += 4 * floats * (segments_of(job) + 1);  // and the queries side by side
    if (bytes > kRoundBytes && end > first) break;
  }
  return end;
}

void attend(Context& context, const AttendArgs* jobs, int count) {
  for (int first = 0; first < count;) {
    const int end = end_of_round(jobs, first, count);
    attend_round(context, jobs + first, end - first);
    first = end;
  }
}

}  // namespace

extern const AttendOps attend_ops;
const AttendOps attend_ops{attend};

}  // namespace foveal::FOVEAL_ISA
