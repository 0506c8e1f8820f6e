// Chosen entries that several tokens look at, decoded once for all of them.
//
// Agents on one base choose for themselves, but largely the same. FP8 rows that lie in pages they share become BF16 rows in
// scratch memory, which is what a tile makes of them anyway; so nothing changes but how often that is done.
#pragma once

#include "attend_shared.h"

namespace foveal::FOVEAL_ISA {
namespace {

constexpr std::int64_t kGatheredTokens = 64;      // more find rows enough in common to keep a tile busy
constexpr std::int64_t kGatheredBytes = 8 << 20;  // of decoded rows: what caches hold
constexpr std::int64_t kDecodedAtOnce = 64;       // rows of a task

// A set of numbers below a bound, and the place of each among them.
class Marked {
 public:
  Marked(Arena& arena, std::int64_t bound)
      : words_(shares(bound, 64)), bits_(arena.take<std::uint64_t>(words_)), before_(arena.take<std::int32_t>(words_)) {
    std::memset(bits_, 0, static_cast<std::size_t>(words_) * sizeof(std::uint64_t));
  }
  void mark(std::int64_t i) { bits_[i / 64] |= std::uint64_t{1} << (i % 64); }
  // How many there are; `place` is good from here on.
  std::int64_t count() {
    std::int64_t total = 0;
    for (std::int64_t w = 0; w < words_; ++w) {
      before_[w] = static_cast<std::int32_t>(total);
      total += __builtin_popcountll(bits_[w]);
    }
    return total;
  }
  std::int64_t place(std::int64_t i) const {
    return before_[i / 64] + __builtin_popcountll(bits_[i / 64] & ((std::uint64_t{1} << (i % 64)) - 1));
  }

 private:
  std::int64_t words_;
  std::uint64_t* bits_;
  std::int32_t* before_;
};

FOVEAL_INLINE bool may_gather(const AttendArgs& args) {
  return args.indices != nullptr && args.entries.codec == Codec::kKvFP8 && args.k > 0 && args.n > 0 &&
         args.n <= kGatheredTokens;
}

// Jobs [first, last) that choose from the same first `common` entries.
class Gathering {
 public:
  Gathering(Context& context, AttendArgs* jobs, int first, int last, std::int64_t common)
      : context_(context), jobs_(jobs), first_(first), last_(last), common_(common), marked_(context.arena, common) {}

  // Gives the jobs their rows decoded, where that spares enough.
  void run() {
    std::int64_t all = 0, own = 0;
    for_each_chosen([&](std::int64_t entry, AttendArgs&, std::int64_t) {
      ++all;
      if (entry < common_)
        marked_.mark(entry);
      else
        ++own;
    });
    const std::int64_t together = marked_.count(), count = together + own;
    const Entries& entries = jobs_[first_].entries;
    const std::int64_t row_bytes = 2 * entries.width;
    if (5 * count > 3 * all || count * row_bytes > kGatheredBytes) return;
    auto* decoded = context_.arena.take<std::uint8_t>(count * row_bytes);
    auto* from = context_.arena.take<const std::uint8_t*>(count);
    point(together, decoded, row_bytes, from);
    const RowShape shape{Codec::kKvFP8, entries.width, entries.rotary};
    context_.pool.run(shares(count, kDecodedAtOnce), [&](std::int64_t task, int) {
      for (std::int64_t i = task * kDecodedAtOnce; i < least(count, (task + 1) * kDecodedAtOnce); ++i)
        decode_kv(from[i], shape, reinterpret_cast<std::uint16_t*>(decoded + i * row_bytes));
    });
  }

 private:
  // Calls body(entry, job, place in the job's lists) for all that is chosen.
  template <class Body>
  void for_each_chosen(const Body& body) {
    for (int j = first_; j < last_; ++j)
      for (std::int64_t t = 0; t < jobs_[j].n; ++t)
        for (std::int64_t i = 0, end = chosen_of(jobs_[j], t); i < end; ++i)
          body(jobs_[j].indices[t * jobs_[j].k + i], jobs_[j], t * jobs_[j].k + i);
  }

  // Where each decoded row comes from, and where each job finds its own.
  void point(std::int64_t together, const std::uint8_t* decoded, std::int64_t row_bytes, const std::uint8_t** from) {
    const std::uint8_t** rows = nullptr;
    const AttendArgs* job = nullptr;
    std::int64_t next = together;
    for_each_chosen([&](std::int64_t entry, AttendArgs& args, std::int64_t at) {
      if (job != &args) {
        job = &args;
        args.rows = rows = context_.arena.take<const std::uint8_t*>(args.n * args.k);
      }
      const std::int64_t place = entry < common_ ? marked_.place(entry) : next++;
      from[place] = args.entries.at(entry);
      rows[at] = decoded + place * row_bytes;
    });
    for (int j = first_; j < last_; ++j) {
      if (jobs_[j].rows == nullptr) continue;
      jobs_[j].entries.codec = Codec::kBF16;
      jobs_[j].entries.entry_bytes = row_bytes;
    }
  }

  Context& context_;
  AttendArgs* jobs_;
  int first_, last_;
  std::int64_t common_;
  Marked marked_;
};

// The jobs with their chosen rows decoded where several tokens share them.
const AttendArgs* gathered(Context& context, const AttendArgs* jobs, int count) {
  bool any = false;
  for (int j = 0; j < count; ++j) any = any || may_gather(jobs[j]);
  if (!any) return jobs;
  auto* copies = context.arena.take<AttendArgs>(count);
  for (int j = 0; j < count; ++j) copies[j] = jobs[j];
  for (int j = 0; j < count;) {
    int end = j + 1;
    if (!may_gather(jobs[j])) {
      j = end;
      continue;
    }
    const Entries& entries = jobs[j].entries;
    std::int64_t pages = shares(entries.count, entries.per_page), tokens = jobs[j].n;
    for (; end < count && may_gather(jobs[end]) && alike(jobs[j], jobs[end]); tokens += jobs[end++].n) {
      const std::int64_t whole = jobs[end].entries.count / entries.per_page;
      const std::int64_t same = same_until(entries.pages, jobs[end].entries.pages, 0, least(pages, whole));
      if (tokens + jobs[end].n > kGatheredTokens || 2 * same < pages) break;
      pages = same;
    }
    if (tokens > 1) Gathering(context, copies, j, end, least(entries.count, pages * entries.per_page)).run();
    j = end;
  }
  return copies;
}

}  // namespace
}  // namespace foveal::FOVEAL_ISA
