// Entries that several sequences see in the same places: read, decoded and multiplied once for all of them.
//
// Agents on one base share its pages, and in layers that look at every entry they see the same rows there. Their query
// rows become the lanes of one task for each stretch of entries that they share; where they part, each goes on alone, or
// with those that share more. A lane's sums do not know who lies beside it, so they are the same bits as alone.
#pragma once

#include "attend_softmax.h"

namespace foveal::FOVEAL_ISA {
namespace {

constexpr std::int64_t kStretch = 4 * kTileRows;  // entries of a segment
constexpr std::int64_t kSharedLanes = 256;        // of a task that several jobs share
constexpr std::int64_t kFewLanes = 128;           // a job with more of its own has tiles busy enough

// Some stretches for some jobs together.
struct Together {
  AttendArgs args;          // as if it were one job, with the queries of all; good for these stretches only
  std::int64_t first, end;  // stretches
  float* memory;            // of their partials

  Partial partial(std::int64_t stretch) const {
    const std::int64_t rows = args.n * args.heads;
    return partial_at(memory + (stretch - first) * partial_floats(rows, args.width), rows);
  }
};

// Who shares what. A job that shares anything has `parts`: its partials, window first, empty where it computes its own.
struct Sharing {
  Together* groups;
  std::int64_t count, stretches;
  Partial** parts;  // [jobs], null: shares nothing
};

Partial* new_parts(Context& context, std::int64_t segments) {
  auto* parts = context.arena.take<Partial>(segments);
  for (std::int64_t s = 0; s < segments; ++s) parts[s] = Partial{};
  return parts;
}

FOVEAL_INLINE std::int64_t segments_of(const AttendArgs& args) {
  const std::int64_t listed = args.indices != nullptr ? args.k : visible_of(args, args.n - 1);
  return 1 + shares(listed, kStretch);
}

FOVEAL_INLINE bool may_share(const AttendArgs& args) {
  return args.indices == nullptr && args.ratio > 0 && args.n > 0 && args.n * args.heads <= kFewLanes &&
         visible_of(args, 0) >= kStretch;
}

FOVEAL_INLINE bool alike(const AttendArgs& a, const AttendArgs& b) {
  const Entries &x = a.entries, &y = b.entries;
  return a.heads == b.heads && a.width == b.width && a.sink == b.sink && a.precision == b.precision &&
         a.window_codec == b.window_codec && x.codec == y.codec && x.offset == y.offset && x.per_page == y.per_page &&
         x.entry_bytes == y.entry_bytes && x.rotary == y.rotary;
}

// How many of the first stretches, from `from` on known to be shared, all tokens of both see in the same places.
std::int64_t shared_stretches(const AttendArgs& a, const AttendArgs& b, std::int64_t from) {
  const std::int64_t per_page = a.entries.per_page, seen = least(visible_of(a, 0), visible_of(b, 0));
  const std::int64_t page = same_until(a.entries.pages, b.entries.pages, from * kStretch / per_page, seen / per_page);
  return most(from, page * per_page / kStretch);
}

// Finds who shares what among jobs that lie side by side.
class Sharer {
 public:
  Sharer(Context& context, const AttendArgs* jobs, int count) : context_(context), jobs_(jobs), count_(count) {}

  Sharing find() {
    Sharing found{nullptr, 0, 0, context_.arena.take<Partial*>(count_)};
    for (int j = 0; j < count_; ++j) found.parts[j] = nullptr;
    if (count_ < 2) return found;
    found.groups = context_.arena.take<Together>(2 * count_);
    for (int j = 0; j < count_;) {
      int end = j + 1;
      if (may_share(jobs_[j]))
        while (end < count_ && may_share(jobs_[end]) && alike(jobs_[j], jobs_[end])) ++end;
      if (end - j > 1) split(found, j, end, 0, nullptr);
      j = end;
    }
    return found;
  }

 private:
  // Groups among jobs [first, last), which share all stretches before `from`.
  void split(Sharing& found, int first, int last, std::int64_t from, const float* queries) {
    for (int j = first; j < last;) {
      std::int64_t common = visible_of(jobs_[j], 0) / kStretch, lanes = rows_of(j);
      int end = j + 1;
      for (; end < last && lanes + rows_of(end) <= kSharedLanes; lanes += rows_of(end++)) {
        const std::int64_t same = shared_stretches(jobs_[j], jobs_[end], from);
        if (same <= from) break;
        common = least(common, same);
      }
      if (end - j > 1 && common > from) {
        const float* gathered = queries != nullptr ? queries + offset(first, j) : gather(j, end);
        add(found, j, end, from, common, gathered);
        split(found, j, end, common, gathered);
      }
      j = end;
    }
  }

  std::int64_t rows_of(int job) const { return jobs_[job].n * jobs_[job].heads; }

  std::int64_t offset(int first, int last) const {
    std::int64_t floats = 0;
    for (int j = first; j < last; ++j) floats += rows_of(j) * jobs_[j].width;
    return floats;
  }

  const float* gather(int first, int last) {
    auto* queries = context_.arena.take<float>(offset(first, last));
    for (int j = first; j < last; ++j)
      std::memcpy(queries + offset(first, j), jobs_[j].query, static_cast<std::size_t>(offset(j, j + 1)) * sizeof(float));
    return queries;
  }

  void add(Sharing& found, int first, int last, std::int64_t from, std::int64_t end, const float* queries) {
    Together& group = found.groups[found.count++];
    group = Together{jobs_[first], from, end, nullptr};
    group.args.query = queries;
    group.args.n = 0;
    for (int j = first; j < last; ++j) group.args.n += jobs_[j].n;
    const std::int64_t rows = group.args.n * group.args.heads, floats = partial_floats(rows, group.args.width);
    group.memory = context_.arena.take<float>((end - from) * floats);
    for (std::int64_t s = from; s < end; ++s) new_partial(group.memory + (s - from) * floats, rows);
    found.stretches += end - from;
    std::int64_t lane = 0;
    for (int j = first; j < last; lane += rows_of(j++)) {
      if (found.parts[j] == nullptr) found.parts[j] = new_parts(context_, segments_of(jobs_[j]));
      for (std::int64_t s = from; s < end; ++s) found.parts[j][1 + s] = from_lane(group.partial(s), lane);
    }
  }

  Context& context_;
  const AttendArgs* jobs_;
  int count_;
};

}  // namespace
}  // namespace foveal::FOVEAL_ISA
