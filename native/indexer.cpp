// The indexer's jobs: which tokens and which pages a task scores, and how the best of several tasks become one answer.
//
// What is special here: a task is a block of tokens times a range of pages. Each page is unpacked once for the block. With
// few tokens the pages are split among tasks, each of which finds its own best; the best of them all are the answer. Since
// the answer is defined by scores and order alone, no way of splitting changes it.
#include "indexer_score.h"
#include "indexer_select.h"

namespace foveal::FOVEAL_ISA {
namespace {

constexpr std::int64_t kBlockTokens = 32;        // share an unpacked page
constexpr std::int64_t kLeastPages = 32;         // of a range
constexpr std::int64_t kTasksPerThread = 4;
constexpr std::int64_t kSmallWork = 4'000'000;   // multiplications that one thread does at once

FOVEAL_INLINE std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
FOVEAL_INLINE std::int64_t most(std::int64_t a, std::int64_t b) { return a > b ? a : b; }
FOVEAL_INLINE std::int64_t shares(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

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
  const std::uint32_t factor_bits = static_cast<std::uint32_t>(127 + up) << 23, scale_bits = static_cast<std::uint32_t>(127 - up) << 23;
  const F factor = splat(load_as<float>(&factor_bits));
  I total{}, wrong{};
  for (std::int64_t c = 0; c < padded; c += kLanes) {
    const F scaled = c < width ? load_some(x + c, least(kLanes, width - c)) * factor : zero();
    const I whole = __builtin_convertvector(scaled, I);
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

struct Job {
  const float* query;
  const float* weights;
  std::int64_t heads;
  const Packs* keys;
  PackLayout layout;
  Precision precision;
};

void prepare_integers(const Job& job, Query& query, Arena& arena) {
  const std::int64_t padded = 4 * job.layout.steps, width = job.layout.width;
  auto* numbers = arena.take<std::int8_t>(job.heads * padded);
  auto* bias = arena.take<std::int32_t>(job.heads);
  auto* weights = arena.take<float>(job.heads);
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

Query prepare(const Job& job, std::int64_t token, Arena& arena) {
  Query query{};
  query.plain = job.query + token * job.heads * job.layout.width;
  query.plain_weights = job.weights + token * job.heads;
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

// Asks for a page ahead of its use: pages lie anywhere, so the machine cannot foresee where the next begins.
FOVEAL_INLINE void fetch(const Packs& keys, std::int64_t page, std::int64_t bytes) {
  if (page * keys.shape.keys >= keys.count) return;
  const std::uint8_t* at = keys.packs[page] + keys.offset;
  for (std::int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(at + i);
}

// ---------------------------------------------------------------- tasks

// Tokens [token, token + tokens) of a job with pages [page, end). With more than one range, the best of each range go to
// `found` [tokens, ranges, 2, k] and their number to `counts` [tokens, ranges].
struct Task {
  const TopkArgs* args;
  PackLayout layout;
  std::int64_t token, tokens;
  std::int64_t page, end;
  std::int64_t range, ranges;
  std::int32_t* found;
  std::int64_t* counts;
  std::int64_t scored;
};

FOVEAL_INLINE std::int64_t visible_of(const TopkArgs& args, std::int64_t token) {
  return most(0, least(args.visible[token], args.keys.count));
}

void write_chosen(const TopkArgs& args, std::int64_t token, const std::int32_t* index, std::int64_t count) {
  std::int32_t* to = args.chosen + token * args.k;
  for (std::int64_t i = 0; i < args.k; ++i) to[i] = i < count ? index[i] : -1;
}

// A token that may look at everything it sees.
bool choose_all(const TopkArgs& args, std::int64_t token) {
  const std::int64_t visible = visible_of(args, token);
  if (visible > args.k) return false;
  std::int32_t* to = args.chosen + token * args.k;
  for (std::int64_t i = 0; i < args.k; ++i) to[i] = i < visible ? static_cast<std::int32_t>(i) : -1;
  return true;
}

struct Token {
  Query query;
  Best best;
  std::int64_t number, visible;
};

void finish(Task& task, const Token& token) {
  const TopkArgs& args = *task.args;
  if (task.ranges == 1) return write_chosen(args, token.number, token.best.index, token.best.count);
  const std::int64_t slot = (token.number - task.token) * task.ranges + task.range;
  std::int32_t* to = task.found + slot * 2 * args.k;
  std::memcpy(to, token.best.order, static_cast<std::size_t>(token.best.count) * 4);
  std::memcpy(to + args.k, token.best.index, static_cast<std::size_t>(token.best.count) * 4);
  task.counts[slot] = token.best.count;
}

void run_task(Context& context, Task& task, int thread) {
  const TopkArgs& args = *task.args;
  Arena& arena = context.own(thread);
  const Arena::Scope scope(arena);
  const Job job{args.query, args.weights, args.heads, &args.keys, task.layout, context.precision};
  auto* tokens = arena.take<Token>(task.tokens);
  std::int64_t count = 0, end = 0;
  for (std::int64_t t = task.token; t < task.token + task.tokens; ++t) {
    const std::int64_t visible = visible_of(args, t);
    if (visible <= args.k) continue;
    auto* memory = arena.take<std::int32_t>(2 * capacity_for(args.k));
    tokens[count++] = Token{prepare(job, t, arena), make_best(memory, args.k), t, visible};
    end = most(end, shares(visible, args.keys.shape.keys));
  }
  end = least(end, task.end);
  Page page(job, count, arena);
  const std::int64_t keys = args.keys.shape.keys, ahead = most(1, 8192 / task.layout.bytes);
  for (std::int64_t p = task.page; p < end; ++p) {
    fetch(args.keys, p + ahead, task.layout.bytes);
    page.open(p);
    const std::int64_t first = p * keys;
    for (std::int64_t t = 0; t < count; ++t) {
      const std::int64_t valid = least(keys, tokens[t].visible - first);
      if (valid <= 0) continue;
      F score[kGroups];
      page.score(tokens[t].query, score);
      offer(tokens[t].best, score, first, valid);
      task.scored += valid;
    }
  }
  for (std::int64_t t = 0; t < count; ++t) {
    compact(tokens[t].best);
    finish(task, tokens[t]);
  }
}

// The best of all ranges of a token.
void merge(Context& context, const Task& task, std::int64_t token, int thread) {
  const TopkArgs& args = *task.args;
  Arena& arena = context.own(thread);
  const Arena::Scope scope(arena);
  const std::int64_t room = shares(task.ranges * args.k, kLanes) * kLanes + kLanes;
  auto* memory = arena.take<std::int32_t>(2 * room);
  Best best{memory, memory + room, 0, args.k, 0.0f, true};
  for (std::int64_t range = 0; range < task.ranges; ++range) {
    const std::int64_t slot = (token - task.token) * task.ranges + range, count = task.counts[slot];
    const std::int32_t* from = task.found + slot * 2 * args.k;
    std::memcpy(best.order + best.count, from, static_cast<std::size_t>(count) * 4);
    std::memcpy(best.index + best.count, from + args.k, static_cast<std::size_t>(count) * 4);
    best.count += count;
  }
  compact(best);
  write_chosen(args, token, best.index, best.count);
}

// How one job is cut up.
struct Cutting {
  std::int64_t tokens;  // of a block
  std::int64_t blocks;
  std::int64_t pages;   // up to the last visible key
  std::int64_t ranges;
};

FOVEAL_INLINE std::int64_t work_of(const TopkArgs& args, std::int64_t* pages) {
  std::int64_t total = 0, deepest = 0;
  for (std::int64_t t = 0; t < args.n; ++t) {
    const std::int64_t visible = visible_of(args, t);
    if (visible <= args.k || args.k == 0) continue;
    total += visible;
    deepest = most(deepest, visible);
  }
  *pages = shares(deepest, args.keys.shape.keys);
  return total * args.heads * args.keys.shape.width;
}

void cut(const TopkArgs* jobs, int count, int threads, Cutting* cuttings, bool* small) {
  std::int64_t blocks = 0, work = 0;
  for (int j = 0; j < count; ++j) {
    Cutting& cutting = cuttings[j];
    work += work_of(jobs[j], &cutting.pages);
    cutting.blocks = shares(jobs[j].n, kBlockTokens);
    cutting.tokens = cutting.blocks > 0 ? shares(jobs[j].n, cutting.blocks) : 1;
    if (cutting.pages > 0) blocks += cutting.blocks;
  }
  *small = threads == 1 || work < kSmallWork;
  const std::int64_t ranges = *small || blocks == 0 ? 1 : shares(threads * kTasksPerThread, blocks);
  for (int j = 0; j < count; ++j)
    cuttings[j].ranges = most(1, least(ranges, cuttings[j].pages / kLeastPages));
}

std::int64_t make_tasks(Context& context, const TopkArgs& args, const Cutting& cutting, Task* tasks) {
  std::int64_t made = 0;
  if (cutting.pages == 0) return made;
  for (std::int64_t token = 0; token < args.n; token += cutting.tokens) {
    const std::int64_t tokens = least(cutting.tokens, args.n - token), ranges = cutting.ranges;
    const bool split = ranges > 1;
    auto* found = split ? context.arena.take<std::int32_t>(tokens * ranges * 2 * args.k) : nullptr;
    auto* counts = split ? context.arena.take<std::int64_t>(tokens * ranges) : nullptr;
    for (std::int64_t r = 0; r < ranges; ++r)
      tasks[made++] = Task{&args, pack_layout(args.keys.shape), token, tokens, cutting.pages * r / ranges,
                           cutting.pages * (r + 1) / ranges, r, ranges, found, counts, 0};
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

void index_topk(Context& context, const TopkArgs* jobs, int count, IndexCounters* counters) {
  const Arena::Scope scope(context.arena);
  auto* cuttings = context.arena.take<Cutting>(count);
  bool small;
  cut(jobs, count, context.pool.threads(), cuttings, &small);
  std::int64_t room = 0, made = 0;
  for (int j = 0; j < count; ++j) room += cuttings[j].blocks * cuttings[j].ranges;
  auto* tasks = context.arena.take<Task>(room);
  for (int j = 0; j < count; ++j) {
    for (std::int64_t t = 0; t < jobs[j].n; ++t) {
      choose_all(jobs[j], t);
      if (counters != nullptr) counters->seen += visible_of(jobs[j], t);
    }
    made += make_tasks(context, jobs[j], cuttings[j], tasks + made);
  }
  for_each(context, small, made, [&](std::int64_t i, int thread) { run_task(context, tasks[i], thread); });
  for (std::int64_t i = 0; i < made; ++i) {
    if (counters != nullptr) counters->scored += tasks[i].scored;
    const Task& task = tasks[i];
    if (task.ranges == 1 || task.range != 0) continue;
    for_each(context, task.tokens == 1, task.tokens, [&](std::int64_t t, int thread) {
      const TopkArgs& args = *task.args;
      if (visible_of(args, task.token + t) > args.k) merge(context, task, task.token + t, thread);
    });
  }
}

// ---------------------------------------------------------------- all scores

void index_scores(Context& context, const TopkArgs& args, float* scores) {
  const PackLayout layout = pack_layout(args.keys.shape);
  const std::int64_t keys = args.keys.shape.keys, pages = shares(args.keys.count, keys);
  const std::int64_t blocks = shares(args.n, kBlockTokens);
  const bool small = args.n * args.keys.count * args.heads * layout.width < kSmallWork;
  for_each(context, small, blocks, [&](std::int64_t block, int thread) {
    Arena& arena = context.own(thread);
    const Arena::Scope scope(arena);
    const Job job{args.query, args.weights, args.heads, &args.keys, layout, context.precision};
    const std::int64_t first = block * kBlockTokens, tokens = least(kBlockTokens, args.n - first);
    auto* queries = arena.take<Query>(tokens);
    for (std::int64_t t = 0; t < tokens; ++t) queries[t] = prepare(job, first + t, arena);
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
