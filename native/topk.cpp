// Exact top-k of many rows, with a total order, in columns' order.
//
// What is special here: no heap and no sort. Scores become unsigned keys of the same order; three histograms over 11,
// 11 and 10 bits of the key find the k-th highest key exactly; one more pass over the row writes the columns above it,
// and as many of those equal to it as still fit, lowest columns first. So ties are settled, and the result is ascending,
// for nothing.
#include "topk.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "parallel.h"

namespace foveal {
namespace {

constexpr std::int64_t kScoresPerThread = 32768;  // below this a thread costs more to start than it saves

// Order-preserving: a < b (NaN below everything) exactly when key(a) < key(b).
inline std::uint32_t key_of(float score) {
  if (std::isnan(score)) return 0;
  const auto bits = std::bit_cast<std::uint32_t>(score + 0.0f);  // adding +0 turns -0 into +0
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

struct Digit {
  int shift;
  int bits;
};
constexpr std::array<Digit, 3> kDigits{{{21, 11}, {10, 11}, {0, 10}}};

struct Threshold {
  std::uint32_t key;     // the k-th highest key
  std::int64_t at_key;   // how many of the k have exactly this key
};

// The k-th highest of `count` keys, 1 <= k <= count: fixes the key's digits from the highest down.
Threshold find_threshold(const float* scores, std::int64_t count, std::int64_t k) {
  std::uint32_t prefix = 0;
  std::uint32_t fixed = 0;  // mask of the bits of `prefix` that are decided
  std::int64_t left = k;
  std::array<std::int64_t, 2048> histogram;
  for (const auto [shift, bits] : kDigits) {
    const std::uint32_t mask = (1u << bits) - 1;
    histogram.fill(0);
    for (std::int64_t column = 0; column < count; ++column) {
      const std::uint32_t key = key_of(scores[column]);
      if ((key & fixed) == prefix) ++histogram[(key >> shift) & mask];
    }
    std::uint32_t digit = mask;
    while (histogram[digit] < left) left -= histogram[digit--];
    prefix |= digit << shift;
    fixed |= mask << shift;
  }
  return {prefix, left};
}

void choose(const float* scores, std::int64_t count, std::int64_t k, std::int64_t* chosen) {
  if (k >= count) {
    for (std::int64_t column = 0; column < count; ++column) chosen[column] = column;
    std::fill(chosen + count, chosen + k, -1);
    return;
  }
  if (k == 0) return;
  auto [key, at_key] = find_threshold(scores, count, k);
  std::int64_t written = 0;
  for (std::int64_t column = 0; written < k; ++column) {
    const std::uint32_t candidate = key_of(scores[column]);
    if (candidate > key || (candidate == key && at_key-- > 0)) chosen[written++] = column;
  }
}

}  // namespace

void topk_lowest(const float* scores, const std::int64_t* visible, std::int64_t rows, std::int64_t columns,
                 std::int64_t k, std::int64_t* chosen, int threads) {
  if (rows * columns < 2 * kScoresPerThread) threads = 1;
  parallel_rows(rows, threads, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t row = first; row < last; ++row) {
      const std::int64_t count = std::clamp<std::int64_t>(visible[row], 0, columns);
      choose(scores + row * columns, count, k, chosen + row * k);
    }
  });
}

}  // namespace foveal
