// Linear maps of a shared input, the grouped output projection, and the router.
//
// All products of one input are one parallel region, and the input is rounded, split and permuted once for all products
// that want it in the same way.
#include "linear.h"

#include <cmath>

#include "linear_parts.h"

namespace foveal::FOVEAL_ISA {
namespace {

constexpr std::int64_t kChunk = 512;  // tokens whose prepared rows stay in the shared cache
constexpr int kLayouts = 16;          // 4 orders, quantised or not, one term or two

// The layouts that some products need, each once.
struct Layouts {
  Layout list[kLayouts];
  std::uint8_t* rows[kLayouts];
  int count = 0;

  int add(const Layout& layout) {
    for (int i = 0; i < count; ++i)
      if (list[i] == layout) return i;
    list[count] = layout;
    return count++;
  }
};

void linear_chunk(Context& context, const float* x, std::int64_t n, std::int64_t x_stride, const Product* products,
                  int count, std::int64_t start, bool exact) {
  const Arena::Scope scope(context.arena);
  Part* parts = context.arena.take<Part>(count);
  Layouts layouts;
  for (int i = 0; i < count; ++i) {
    const Product& product = products[i];
    const Layout layout = layout_for(*product.weight, product.simulate, product.precision, exact);
    const int which = layouts.add(layout);
    parts[i] = {product.weight,
                0,
                product.weight->rows,
                layout,
                {nullptr, which, nullptr},
                {product.y + start * product.y_stride, product.y_stride, nullptr, false},
                0,
                0};
  }
  for (int i = 0; i < layouts.count; ++i)
    layouts.rows[i] = context.arena.take<std::uint8_t>(n * layouts.list[i].row_bytes());
  prepare_rows(context, x, n, x_stride, layouts.list, layouts.rows, layouts.count);
  for (int i = 0; i < count; ++i) parts[i].x = {layouts.rows[parts[i].x.stride], parts[i].layout.row_bytes(), nullptr};
  run_parts(context, parts, count, n);
}

void linear_as(Context& context, const float* x, std::int64_t n, std::int64_t x_stride, const Product* products,
               int count, bool exact) {
  if (count == 0) return;
  for (std::int64_t start = 0; start < n; start += kChunk)
    linear_chunk(context, x + start * x_stride, least(kChunk, n - start), x_stride, products, count, start, exact);
}

// wo_a as one product for each group, of its rows with its heads: [n, groups * rows of a group].
void group_down(Context& context, const GroupedArgs& args, const float* heads, std::int64_t n, float* latent) {
  const Arena::Scope scope(context.arena);
  const std::int64_t width = args.wo_a->columns, rows = args.wo_a->rows / args.groups;
  const Layout layout = layout_for(*args.wo_a, false, args.precision, false);
  std::uint8_t* prepared = context.arena.take<std::uint8_t>(n * args.groups * layout.row_bytes());
  prepare_rows(context, heads, n * args.groups, width, &layout, &prepared, 1);
  Part* parts = context.arena.take<Part>(args.groups);
  for (std::int64_t g = 0; g < args.groups; ++g)
    parts[g] = {args.wo_a,
                g * rows,
                rows,
                layout,
                {prepared + g * layout.row_bytes(), args.groups * layout.row_bytes(), nullptr},
                {latent + g * rows, args.wo_a->rows, nullptr, false},
                0,
                0};
  run_parts(context, parts, args.groups, n);
}

void grouped_output(Context& context, const GroupedArgs& args) {
  for (std::int64_t start = 0; start < args.n; start += kChunk) {
    const Arena::Scope scope(context.arena);
    const std::int64_t n = least(kChunk, args.n - start);
    float* latent = context.arena.take<float>(n * args.wo_a->rows);
    group_down(context, args, args.heads + start * args.groups * args.wo_a->columns, n, latent);
    const Product up{args.wo_b, args.simulate, args.precision, args.y + start * args.wo_b->rows, args.wo_b->rows};
    linear(context, latent, n, args.wo_a->rows, &up, 1);
  }
}

// ---------------------------------------------------------------- the router

// sqrt(log(1 + e^x)); above 20 the logarithm is x itself, as PyTorch has it.
FOVEAL_INLINE float affinity_of(float x) { return __builtin_sqrtf(x > 20.0f ? x : ::log1pf(::expf(x))); }

// The `active` largest of affinity + bias, descending, the lowest expert first among equals.
void choose_best(const float* affinity, const float* bias, std::int64_t experts, std::int64_t active,
                 std::int32_t* chosen) {
  for (std::int64_t a = 0; a < active; ++a) {
    std::int64_t best = -1;
    float most = 0.0f;
    for (std::int64_t e = 0; e < experts; ++e) {
      bool taken = false;
      for (std::int64_t b = 0; b < a; ++b) taken |= chosen[b] == e;
      const float value = affinity[e] + (bias ? bias[e] : 0.0f);
      if (taken || (best >= 0 && !(value > most))) continue;
      best = e;
      most = value;
    }
    chosen[a] = (std::int32_t)best;
  }
}

void route_token(const RouteArgs& args, std::int64_t t, float* affinity) {
  const std::int64_t experts = args.gate->rows, active = args.active;
  for (std::int64_t e = 0; e < experts; ++e) affinity[e] = affinity_of(affinity[e]);
  std::int32_t* chosen = args.chosen + t * active;
  if (args.table)
    for (std::int64_t a = 0; a < active; ++a) chosen[a] = (std::int32_t)args.table[args.tokens[t] * active + a];
  else
    choose_best(affinity, args.bias, experts, active, chosen);
  float total = 0.0f;
  for (std::int64_t a = 0; a < active; ++a) total += affinity[chosen[a]];
  for (std::int64_t a = 0; a < active; ++a) args.weights[t * active + a] = affinity[chosen[a]] / total * args.scale;
}

void route(Context& context, const RouteArgs& args) {
  const Arena::Scope scope(context.arena);
  const std::int64_t experts = args.gate->rows;
  float* affinity = args.affinity ? args.affinity : context.arena.take<float>(args.n * experts);
  const Product product{args.gate, false, Precision::kFP32, affinity, experts};
  linear_as(context, args.y, args.n, args.gate->columns, &product, 1, true);
  const std::int64_t each = 25 * experts, together = most(1, kTaskNanoseconds / each);
  run_tasks(context, shares(args.n, together), args.n * each, [&](std::int64_t task, int) {
    for (std::int64_t t = task * together; t < least(args.n, (task + 1) * together); ++t)
      route_token(args, t, affinity + t * experts);
  });
}

}  // namespace

void linear(Context& context, const float* x, std::int64_t n, std::int64_t x_stride, const Product* products,
            int count) {
  linear_as(context, x, n, x_stride, products, count, false);
}

extern const LinearOps linear_ops;
const LinearOps linear_ops{linear, grouped_output, route, experts};

}  // namespace foveal::FOVEAL_ISA
