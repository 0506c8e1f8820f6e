// The indexer's jobs: which tokens and which pages a task scores, and how the best of several tasks become one answer.
//
// A task is a block of tokens times a range of pages, and unpacks each page once for all of them. The tokens may belong
// to several sequences: where these begin with the same pages (agents on one base), they are scored together. With few
// tokens the pages are split among tasks, each of which finds its own best; the best of them all are the answer. Since
// scores and order alone define the answer, no way of splitting changes it.
#include <cmath>

#include "indexer_page.h"
#include "indexer_select.h"

namespace foveal::FOVEAL_ISA {
namespace {

constexpr std::int64_t kBlockTokens = 64;        // share an unpacked page
constexpr std::int64_t kLeastPages = 32;         // of a range, and of what several sequences share
constexpr std::int64_t kTasksPerThread = 4;
constexpr std::int64_t kSmallWork = 4'000'000;   // multiplications that one thread does at once
constexpr std::int64_t kFetchAhead = 16384;      // bytes

// ---------------------------------------------------------------- what there is to do

// A token that has more to look at than it may choose. With more than one list, the best of each of its page ranges go to
// `found` [lists, 2, k], and their number to `counts` [lists].
struct Member {
  const TopkArgs* args;
  std::int64_t token, visible;
  std::int64_t lists;
  std::int32_t* found;
  std::int64_t* counts;
};

// Members [first, last) times pages [page, end), cut into blocks and ranges; its first range fills list `list`.
struct Segment {
  std::int64_t first, last;
  std::int64_t page, end;
  std::int64_t blocks, ranges;
  std::int64_t list;
};

// One block and one range of a segment.
struct Task {
  std::int64_t first, last;
  std::int64_t page, end;
  std::int64_t list;
  std::int64_t scored;
};

struct Plan {
  Member* members;
  Segment* segments;
  Task* tasks;
  std::int64_t member_count, segment_count, task_count;
  bool small;  // not worth waking other threads
};

// One job's members, and the pages they see.
struct Share {
  std::int64_t first, last, pages;
};

FOVEAL_INLINE std::int64_t visible_of(const TopkArgs& args, std::int64_t token) {
  return most(0, least(args.visible[token], args.keys.count));
}

void write_chosen(const TopkArgs& args, std::int64_t token, const std::int32_t* index, std::int64_t count) {
  std::int32_t* to = args.chosen + token * args.k;
  for (std::int64_t i = 0; i < args.k; ++i) to[i] = i < count ? index[i] : -1;
}

// A job's tokens become members, but those that may look at everything they see, which is written at once.
Share gather(const TopkArgs& args, Plan& plan) {
  const std::int64_t first = plan.member_count;
  std::int64_t deepest = 0;
  for (std::int64_t t = 0; t < args.n; ++t) {
    const std::int64_t visible = visible_of(args, t);
    if (visible > args.k && args.k > 0) {
      plan.members[plan.member_count++] = Member{&args, t, visible, 0, nullptr, nullptr};
      deepest = most(deepest, visible);
      continue;
    }
    std::int32_t* to = args.chosen + t * args.k;
    for (std::int64_t i = 0; i < args.k; ++i) to[i] = i < visible ? static_cast<std::int32_t>(i) : -1;
  }
  return {first, plan.member_count, shares(deepest, args.keys.shape.keys)};
}

// Up to which page, of `pages` at most, two jobs have the same ones from `page` on; `page` when their keys are not of
// one kind.
std::int64_t shared_until(const TopkArgs& a, const TopkArgs& b, std::int64_t page, std::int64_t pages) {
  const PackShape &x = a.keys.shape, &y = b.keys.shape;
  if (x.kind != y.kind || x.width != y.width || x.keys != y.keys) return page;
  if (a.keys.offset != b.keys.offset || a.heads != b.heads) return page;
  return same_until(a.keys.packs, b.keys.packs, page, pages);
}

void add_segment(Plan& plan, std::int64_t first, std::int64_t last, std::int64_t page, std::int64_t end) {
  if (first < last && page < end)
    plan.segments[plan.segment_count++] = Segment{first, last, page, end, shares(last - first, kBlockTokens), 1, 0};
}

// Pages from `page` on of jobs [first, last). Neighbours that go on with the same pages share a segment; behind it they
// may still go on in smaller groups.
void add_segments(const TopkArgs* jobs, int first, int last, std::int64_t page, const Share* share, Plan& plan) {
  for (int j = first; j < last;) {
    std::int64_t common = share[j].pages;
    int end = j + 1;
    for (; end < last; ++end) {
      const std::int64_t until = shared_until(jobs[j], jobs[end], page, least(common, share[end].pages));
      if (until < page + kLeastPages) break;
      common = until;
    }
    add_segment(plan, share[j].first, share[end - 1].last, page, common);
    if (end - j > 1) add_segments(jobs, j, end, common, share, plan);
    j = end;
  }
}

FOVEAL_INLINE std::int64_t work_of(const Plan& plan, const Segment& segment) {
  const TopkArgs& args = *plan.members[segment.first].args;
  return (segment.last - segment.first) * (segment.end - segment.page) * kPackKeys * args.heads * args.keys.shape.width;
}

// Decides on ranges, so that the tasks are of about one size and enough for all threads, and where their lists go.
void cut(Context& context, Plan& plan) {
  std::int64_t work = 0, tasks = 0;
  for (std::int64_t s = 0; s < plan.segment_count; ++s) work += work_of(plan, plan.segments[s]);
  const std::int64_t threads = context.pool.threads();
  plan.small = threads == 1 || work < kSmallWork;
  const double each = static_cast<double>(work) / static_cast<double>(threads * kTasksPerThread);
  for (std::int64_t s = 0; s < plan.segment_count; ++s) {
    Segment& segment = plan.segments[s];
    if (!plan.small) {
      const double wanted = static_cast<double>(work_of(plan, segment)) / each / static_cast<double>(segment.blocks);
      const std::int64_t most_ranges = (segment.end - segment.page) / kLeastPages;
      segment.ranges = most(1, least(static_cast<std::int64_t>(std::llround(wanted)), most_ranges));
    }
    segment.list = plan.members[segment.first].lists;
    for (std::int64_t m = segment.first; m < segment.last; ++m) plan.members[m].lists += segment.ranges;
    tasks += segment.blocks * segment.ranges;
  }
  plan.tasks = context.arena.take<Task>(tasks);
  plan.task_count = 0;
  for (std::int64_t m = 0; m < plan.member_count; ++m) {
    Member& member = plan.members[m];
    if (member.lists < 2) continue;
    member.found = context.arena.take<std::int32_t>(member.lists * 2 * member.args->k);
    member.counts = context.arena.take<std::int64_t>(member.lists);
  }
}

void add_tasks(Plan& plan, const Segment& segment) {
  const std::int64_t members = segment.last - segment.first, pages = segment.end - segment.page;
  for (std::int64_t b = 0; b < segment.blocks; ++b)
    for (std::int64_t r = 0; r < segment.ranges; ++r)
      plan.tasks[plan.task_count++] = Task{segment.first + members * b / segment.blocks,
                                           segment.first + members * (b + 1) / segment.blocks,
                                           segment.page + pages * r / segment.ranges,
                                           segment.page + pages * (r + 1) / segment.ranges,
                                           segment.list + r,
                                           0};
}

Plan make_plan(Context& context, const TopkArgs* jobs, int count) {
  std::int64_t tokens = 0;
  for (int j = 0; j < count; ++j) tokens += jobs[j].n;
  Plan plan{context.arena.take<Member>(tokens), context.arena.take<Segment>(2 * count), nullptr, 0, 0, 0, true};
  auto* share = context.arena.take<Share>(count);
  for (int j = 0; j < count; ++j) share[j] = gather(jobs[j], plan);
  add_segments(jobs, 0, count, 0, share, plan);
  cut(context, plan);
  for (std::int64_t s = 0; s < plan.segment_count; ++s) add_tasks(plan, plan.segments[s]);
  return plan;
}

// ---------------------------------------------------------------- doing it

struct Token {
  Query query;
  Best best;
  const Member* member;
};

// What a page's keys score for one token, and how many of them count.
struct PageScores {
  F group[kGroups];
  Token* token;
  std::int64_t valid;
};

// Asks for a page ahead of its use: pages lie anywhere, so the machine cannot foresee where the next begins.
FOVEAL_INLINE void fetch(const Packs& keys, std::int64_t page, std::int64_t bytes) {
  if (page * keys.shape.keys >= keys.count) return;
  const std::uint8_t* at = keys.packs[page] + keys.offset;
  for (std::int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(at + i, 0, 2);
}

void finish(Token& token, std::int64_t list) {
  compact(token.best);
  const Member& member = *token.member;
  const auto bytes = static_cast<std::size_t>(token.best.count) * sizeof(std::int32_t);
  if (member.lists == 1) return write_chosen(*member.args, member.token, token.best.index, token.best.count);
  std::int32_t* to = member.found + list * 2 * member.args->k;
  std::memcpy(to, token.best.order, bytes);
  std::memcpy(to + member.args->k, token.best.index, bytes);
  member.counts[list] = token.best.count;
}

void run_task(Context& context, const Plan& plan, Task& task, int thread) {
  Arena& arena = context.own(thread);
  const Arena::Scope scope(arena);
  const Packs& packs = plan.members[task.first].args->keys;
  const Job job = job_of(context, *plan.members[task.first].args);
  const std::int64_t count = task.last - task.first, keys = packs.shape.keys;
  auto* tokens = arena.take<Token>(count);
  auto* scores = arena.take<PageScores>(count);
  std::int64_t deepest = 0;
  for (std::int64_t t = 0; t < count; ++t) {
    const Member& member = plan.members[task.first + t];
    tokens[t] = Token{prepare(job, *member.args, member.token, arena), {}, &member};
    deepest = most(deepest, member.visible);
    task.scored += most(0, least(member.visible, task.end * keys) - task.page * keys);
  }
  for (std::int64_t t = 0; t < count; ++t) {  // behind the queries, which are read again and again
    const std::int64_t k = tokens[t].member->args->k;
    tokens[t].best = make_best(arena.take<std::int32_t>(2 * capacity_for(k)), k);
  }
  const std::int64_t end = least(shares(deepest, keys), task.end), ahead = most(1, kFetchAhead / job.layout.bytes);
  Page page(job, count, arena);
  for (std::int64_t p = task.page; p < end; ++p) {
    if (p + ahead < end) fetch(packs, p + ahead, job.layout.bytes);
    page.open(p);
    // All tokens are scored before any of them chooses, and those that will are listed: whether a page holds something to
    // choose cannot be foretold, so there is no branch on it between the products.
    std::int64_t waiting = 0;
    for (std::int64_t t = 0; t < count; ++t) {
      const std::int64_t valid = tokens[t].member->visible - p * keys;
      if (valid <= 0) continue;
      PageScores& mine = scores[waiting];
      page.score(tokens[t].query, mine.group);
      mine.token = tokens + t;
      mine.valid = least(keys, valid);
      waiting += may_choose(tokens[t].best, mine.group);
    }
    for (std::int64_t i = 0; i < waiting; ++i)
      offer(scores[i].token->best, scores[i].group, p * keys, scores[i].valid);
  }
  for (std::int64_t t = 0; t < count; ++t) finish(tokens[t], task.list);
}

// The best of all lists of a member.
void merge(Context& context, const Member& member, int thread) {
  Arena& arena = context.own(thread);
  const Arena::Scope scope(arena);
  const std::int64_t k = member.args->k, room = (shares(member.lists * k, kLanes) + 1) * kLanes;
  auto* memory = arena.take<std::int32_t>(2 * room);
  Best best{memory, memory + room, 0, k, 0.0f, true};
  for (std::int64_t list = 0; list < member.lists; ++list) {
    const auto bytes = static_cast<std::size_t>(member.counts[list]) * sizeof(std::int32_t);
    std::memcpy(best.order + best.count, member.found + list * 2 * k, bytes);
    std::memcpy(best.index + best.count, member.found + list * 2 * k + k, bytes);
    best.count += member.counts[list];
  }
  compact(best);
  write_chosen(*member.args, member.token, best.index, best.count);
}

template <class Body>
FOVEAL_INLINE void for_each(Context& context, bool small, std::int64_t count, const Body& body) {
  if (small)
    for (std::int64_t i = 0; i < count; ++i) body(i, 0);
  else
    context.pool.run(count, body);
}

void index_topk(Context& context, const TopkArgs* jobs, int count, IndexCounters* counters) {
  const Arena::Scope scope(context.arena);
  const Plan plan = make_plan(context, jobs, count);
  for_each(context, plan.small, plan.task_count,
           [&](std::int64_t i, int thread) { run_task(context, plan, plan.tasks[i], thread); });
  for_each(context, plan.small || plan.member_count < 4, plan.member_count, [&](std::int64_t i, int thread) {
    if (plan.members[i].lists > 1) merge(context, plan.members[i], thread);
  });
  if (counters == nullptr) return;
  for (int j = 0; j < count; ++j)
    for (std::int64_t t = 0; t < jobs[j].n; ++t) counters->seen += visible_of(jobs[j], t);
  for (std::int64_t i = 0; i < plan.task_count; ++i) counters->scored += plan.tasks[i].scored;
}

// ---------------------------------------------------------------- all scores

void index_scores(Context& context, const TopkArgs& args, float* scores) {
  const Job job = job_of(context, args);
  const std::int64_t keys = args.keys.shape.keys, pages = shares(args.keys.count, keys);
  const std::int64_t blocks = shares(args.n, kBlockTokens);
  const bool small = args.n * args.keys.count * args.heads * job.layout.width < kSmallWork;
  for_each(context, small, blocks, [&](std::int64_t block, int thread) {
    Arena& arena = context.own(thread);
    const Arena::Scope scope(arena);
    const std::int64_t first = block * kBlockTokens, tokens = least(kBlockTokens, args.n - first);
    auto* queries = arena.take<Query>(tokens);
    for (std::int64_t t = 0; t < tokens; ++t) queries[t] = prepare(job, args, first + t, arena);
    Page page(job, tokens, arena);
    for (std::int64_t p = 0; p < pages; ++p) {
      page.open(p);
      const std::int64_t valid = least(keys, args.keys.count - p * keys);
      for (std::int64_t t = 0; t < tokens; ++t) {
        F score[kGroups];
        page.score(queries[t], score);
        std::memcpy(scores + (first + t) * args.keys.count + p * keys, score, static_cast<std::size_t>(valid) * 4);
      }
    }
  });
}

}  // namespace

extern const IndexOps index_ops;
const IndexOps index_ops{index_pack, index_topk, index_scores};

}  // namespace foveal::FOVEAL_ISA
