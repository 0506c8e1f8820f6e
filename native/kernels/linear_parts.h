// Several products as one parallel region: each thread takes blocks of rows, whichever product they belong to.
#pragma once

#include "linear.h"
#include "linear_blocks.h"

namespace foveal::FOVEAL_ISA {
namespace {

constexpr std::int64_t kInlineNanoseconds = 6000;  // less work than this is not worth waking another thread
constexpr std::int64_t kTaskNanoseconds = 10000;


// Rows [first, first + rows) of a weight times an input.
struct Part {
  const Matrix* weight;
  std::int64_t first, rows;
  Layout layout;
  Input x;
  Output y;
  std::int64_t block;  // rows a task takes
  std::int64_t tasks;
};

// Tasks as [0, tasks) on all threads, or here when there is little to do.
template <class Body>
FOVEAL_INLINE void run_tasks(Context& context, std::int64_t tasks, std::int64_t nanoseconds, const Body& body) {
  if (nanoseconds < kInlineNanoseconds || context.pool.threads() == 1)
    for (std::int64_t task = 0; task < tasks; ++task) body(task, 0);
  else
    context.pool.run(tasks, body);
}

FOVEAL_INLINE void run_parts(Context& context, Part* parts, std::int64_t count, std::int64_t n) {
  std::int64_t cost = 0, tasks = 0;
  for (std::int64_t i = 0; i < count; ++i) cost += product_cost(*parts[i].weight, parts[i].rows, n, parts[i].layout);
  // Enough tasks to even out the threads' speeds; long streams for few tokens, whole decoded blocks for many.
  const std::int64_t share = cost / (8 * context.pool.threads());
  const std::int64_t wanted =
      most(kTaskNanoseconds, n > kFewTokens ? share : least(share, 16 * kTaskNanoseconds));
  for (std::int64_t i = 0; i < count; ++i) {
    Part& part = parts[i];
    const std::int64_t mine = most(1, product_cost(*part.weight, part.rows, n, part.layout));
    const std::int64_t multiple = n > kFewTokens ? 16 : 8;
    part.block = most(multiple, part.rows * wanted / mine / multiple * multiple);
    if (n > kFewTokens) part.block = least(part.block, block_rows(part.layout));
    part.tasks = shares(part.rows, part.block);
    tasks += part.tasks;
  }
  run_tasks(context, tasks, cost, [&](std::int64_t task, int thread) {
    const Part* part = parts;
    for (; task >= part->tasks; ++part) task -= part->tasks;
    const std::int64_t first = part->first + task * part->block;
    const std::int64_t last = least(first + part->block, part->first + part->rows);
    Output y = part->y;
    y.base += first - part->first;
    multiply(*part->weight, first, last, part->layout, part->x, n, y, context.own(thread));
  });
}

// Prepares rows t of x (x_stride floats apart) for each layout: to[i] + t * layouts[i].row_bytes().
FOVEAL_INLINE void prepare_rows(Context& context, const float* x, std::int64_t n, std::int64_t x_stride,
                                const Layout* layouts, std::uint8_t* const* to, std::int64_t count) {
  constexpr std::int64_t kNumbersANanosecond = 4;
  const std::int64_t each = most(1, layouts[0].columns * count / kNumbersANanosecond);
  const std::int64_t together = most(1, kTaskNanoseconds / each);
  run_tasks(context, shares(n, together), n * each, [&](std::int64_t task, int) {
    for (std::int64_t t = task * together; t < least(n, (task + 1) * together); ++t)
      for (std::int64_t i = 0; i < count; ++i)
        prepare(layouts[i], x + t * x_stride, 0, layouts[i].columns, to[i] + t * layouts[i].row_bytes());
  });
}

}  // namespace

void linear(Context& context, const float* x, std::int64_t n, std::int64_t x_stride, const Product* products,
            int count);
void experts(Context& context, const ExpertsArgs& args);

}  // namespace foveal::FOVEAL_ISA
