// The experts: tokens sorted by expert, two parallel regions, no weight of an expert that nobody chose is touched.
//
// The first region takes w1 and w3 together and leaves SwiGLU's result already quantised and permuted for w2; the
// second lets one thread own some output channels of all tokens, so that experts add up in ascending order.
#include "linear.h"
#include "linear_parts.h"

namespace foveal::FOVEAL_ISA {
namespace {

constexpr std::int64_t kChunk = 1024;  // tokens that are sorted together

// One expert with its tokens, or the shared expert with all.
struct Group {
  const Matrix *w1, *w2, *w3;
  Layout in1, in3, mid;
  const std::uint8_t *x1, *x3;  // prepared tokens
  const std::int32_t* tokens;   // of this group, or null: all
  const float* weights;         // one for each, or null: 1
  std::int64_t count;
  std::uint8_t* z;  // [count] rows for w2
  std::int64_t tasks;
};

// The layouts in which tokens are needed, each prepared once.
struct Prepared {
  Layout list[16];
  std::uint8_t* rows[16];
  int count = 0;

  const std::uint8_t* find(Context& context, const Layout& layout, std::int64_t n) {
    for (int i = 0; i < count; ++i)
      if (list[i] == layout) return rows[i];
    list[count] = layout;
    rows[count] = context.arena.take<std::uint8_t>(n * layout.row_bytes());
    return rows[count++];
  }
};

// min(a, limit) silu'd, times clamp(b), times the token's weight, into a. NaN stays NaN.
FOVEAL_INLINE void swiglu(float* a, const float* b, std::int64_t width, float limit, float weight) {
  const F high = splat(limit), low = splat(-limit), one = splat(1.0f);
  for (std::int64_t i = 0; i < width; i += kLanes) {
    const F gate = min(high, load(a + i));
    const F up = max(low, min(high, load(b + i)));
    store(a + i, gate / (one + exp(-gate)) * up * splat(weight));
  }
}

// Middle channels [first, first + width) of all of a group's tokens.
void inner(const Group& group, std::int64_t first, std::int64_t width, float limit, Arena& scratch) {
  const Arena::Scope scope(scratch);
  float* a = scratch.take<float>(group.count * kQuantBlock);
  float* b = scratch.take<float>(group.count * kQuantBlock);
  const Input x1{group.x1, group.in1.row_bytes(), group.tokens}, x3{group.x3, group.in3.row_bytes(), group.tokens};
  multiply(*group.w1, first, first + width, group.in1, x1, group.count, {a, kQuantBlock, nullptr, false}, scratch);
  multiply(*group.w3, first, first + width, group.in3, x3, group.count, {b, kQuantBlock, nullptr, false}, scratch);
  for (std::int64_t i = 0; i < group.count; ++i) {
    float* mine = a + i * kQuantBlock;
    for (std::int64_t c = width; c < kQuantBlock; ++c) mine[c] = b[i * kQuantBlock + c] = 0.0f;
    swiglu(mine, b + i * kQuantBlock, kQuantBlock, limit, group.weights ? group.weights[i] : 1.0f);
    prepare(group.mid, mine, first, width, group.z + i * group.mid.row_bytes());
  }
}

// Output channels [first, last) of all tokens: every group's contribution, one after the other.
void outer(const Group* groups, std::int64_t count, std::int64_t first, std::int64_t last, float* out, std::int64_t n,
           std::int64_t d, Arena& scratch) {
  for (std::int64_t t = 0; t < n; ++t)
    for (std::int64_t c = first; c < last; ++c) out[t * d + c] = 0.0f;
  for (std::int64_t g = 0; g < count; ++g) {
    const Group& group = groups[g];
    const Input z{group.z, group.mid.row_bytes(), nullptr};
    multiply(*group.w2, first, last, group.mid, z, group.count, {out + first, d, group.tokens, true}, scratch);
  }
}

struct Sorted {
  std::int32_t* tokens;  // [n * A], by expert, then by token
  float* weights;        // [n * A]
  std::int64_t* starts;  // [E + 1]
};

// A counting sort: stable, so that an expert sees its tokens in order.
Sorted sort_by_expert(Context& context, const ExpertsArgs& args, std::int64_t start, std::int64_t n) {
  const std::int64_t pairs = n * args.active;
  const std::int32_t* chosen = args.chosen + start * args.active;
  const float* weights = args.weights + start * args.active;
  Sorted sorted{context.arena.take<std::int32_t>(pairs), context.arena.take<float>(pairs),
                context.arena.take<std::int64_t>(args.experts + 1)};
  std::int64_t* next = context.arena.take<std::int64_t>(args.experts + 1);
  for (std::int64_t e = 0; e <= args.experts; ++e) sorted.starts[e] = 0;
  for (std::int64_t i = 0; i < pairs; ++i) ++sorted.starts[chosen[i] + 1];
  for (std::int64_t e = 0; e < args.experts; ++e) sorted.starts[e + 1] += sorted.starts[e];
  for (std::int64_t e = 0; e < args.experts; ++e) next[e] = sorted.starts[e];
  for (std::int64_t i = 0; i < pairs; ++i) {
    const std::int64_t at = next[chosen[i]]++;
    sorted.tokens[at] = (std::int32_t)(i / args.active);
    sorted.weights[at] = weights[i];
  }
  return sorted;
}

Group make_group(Context& context, const ExpertsArgs& args, Prepared& prepared, const Matrix* w1, const Matrix* w2,
                 const Matrix* w3, const std::int32_t* tokens, const float* weights, std::int64_t count,
                 std::int64_t n) {
  Group group{w1,
              w2,
              w3,
              layout_for(*w1, args.simulate, args.precision, false),
              layout_for(*w3, args.simulate, args.precision, false),
              layout_for(*w2, args.simulate, args.precision, false),
              nullptr,
              nullptr,
              tokens,
              weights,
              count,
              nullptr,
              shares(w1->rows, kQuantBlock)};
  group.x1 = prepared.find(context, group.in1, n);
  group.x3 = prepared.find(context, group.in3, n);
  group.z = context.arena.take<std::uint8_t>(count * group.mid.row_bytes());
  return group;
}

// One cost for each region: the work of all groups on `rows`.
std::int64_t region_cost(const Group* groups, std::int64_t count, bool first) {
  std::int64_t cost = 0;
  for (std::int64_t g = 0; g < count; ++g)
    cost += first ? 2 * product_cost(*groups[g].w1, groups[g].w1->rows, groups[g].count, groups[g].in1)
                  : product_cost(*groups[g].w2, groups[g].w2->rows, groups[g].count, groups[g].mid);
  return cost;
}

void run_groups(Context& context, const ExpertsArgs& args, const Group* groups, std::int64_t count, std::int64_t n,
                float* out) {
  std::int64_t tasks = 0;
  for (std::int64_t g = 0; g < count; ++g) tasks += groups[g].tasks;
  run_tasks(context, tasks, region_cost(groups, count, true), [&](std::int64_t task, int thread) {
    const Group* group = groups;
    for (; task >= group->tasks; ++group) task -= group->tasks;
    const std::int64_t first = task * kQuantBlock;
    inner(*group, first, least(kQuantBlock, group->w1->rows - first), args.limit, context.own(thread));
  });
  const std::int64_t d = groups[0].w2->rows, cost = region_cost(groups, count, false);
  const bool few = n <= kFewTokens;  // long runs of rows, so that memory keeps up
  std::int64_t block = most(8, d / ((few ? 2 : 8) * context.pool.threads()) / 8 * 8);
  block = least(block, few ? 128 : 64);
  run_tasks(context, shares(d, block), cost, [&](std::int64_t task, int thread) {
    outer(groups, count, task * block, least(d, (task + 1) * block), out, n, d, context.own(thread));
  });
}

void experts_chunk(Context& context, const ExpertsArgs& args, std::int64_t start, std::int64_t n) {
  const Arena::Scope scope(context.arena);
  const Sorted sorted = sort_by_expert(context, args, start, n);
  Prepared prepared;
  Group* groups = context.arena.take<Group>(args.experts + 1);
  std::int64_t count = 0;
  for (std::int64_t e = 0; e < args.experts; ++e) {
    const std::int64_t first = sorted.starts[e], mine = sorted.starts[e + 1] - first;
    if (mine > 0)
      groups[count++] = make_group(context, args, prepared, args.w1 + e, args.w2 + e, args.w3 + e,
                                   sorted.tokens + first, sorted.weights + first, mine, n);
  }
  if (args.shared1)
    groups[count++] =
        make_group(context, args, prepared, args.shared1, args.shared2, args.shared3, nullptr, nullptr, n, n);
  if (count == 0) return;
  const std::int64_t d = groups[0].w1->columns;
  prepare_rows(context, args.y + start * d, n, d, prepared.list, prepared.rows, prepared.count);
  run_groups(context, args, groups, count, n, args.out + start * d);
}

}  // namespace

void experts(Context& context, const ExpertsArgs& args) {
  for (std::int64_t start = 0; start < args.n; start += kChunk)
    experts_chunk(context, args, start, least(kChunk, args.n - start));
}

}  // namespace foveal::FOVEAL_ISA
