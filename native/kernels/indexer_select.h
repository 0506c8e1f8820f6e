// The k best of a stream of scores.
//
// Scores are collected while they are above a threshold that only rises. When the buffer is full the k-th best is found
// by bisection on order-preserving integers and what is below it is dropped, in place and in order. Keys come in
// ascending order, so of equal scores those kept are the first, and the result is ascending for nothing.
#pragma once

#include "simd.h"

namespace foveal::FOVEAL_ISA {
namespace {

constexpr std::int64_t kPageScores = 64;

// Order-preserving: a < b exactly when order_of(a) < order_of(b); -0 as +0, NaN as -inf.
FOVEAL_INLINE I order_of(F score) {
  const F low = splat(-__builtin_inff());
  const I bits = (I)(select(score == score, score, low) + zero());
  return bits ^ (I)(((U)(bits >> 31)) >> 1);
}
FOVEAL_INLINE std::int32_t order_of_one(float score) {  // not NaN
  const float plain = score + 0.0f;
  const auto bits = load_as<std::int32_t>(&plain);
  return bits ^ static_cast<std::int32_t>(static_cast<std::uint32_t>(bits >> 31) >> 1);
}
FOVEAL_INLINE float score_of(std::int32_t order) {
  const std::int32_t bits = order ^ static_cast<std::int32_t>(static_cast<std::uint32_t>(order >> 31) >> 1);
  return load_as<float>(&bits);
}

// Bit i: lane i of v is nonzero (-1).
FOVEAL_INLINE std::uint32_t mask_of(I v) {
#if FOVEAL_AVX512
  return _mm512_movepi32_mask((__m512i)v);
#elif FOVEAL_AVX2
  return static_cast<std::uint32_t>(_mm256_movemask_ps((__m256)v.low) | _mm256_movemask_ps((__m256)v.high) << 8);
#else
  std::uint32_t mask = 0;
  for (int i = 0; i < kLanes; ++i) mask |= static_cast<std::uint32_t>(v[i] & 1) << i;
  return mask;
#endif
}
// Bit i: a[i] > b[i].
FOVEAL_INLINE std::uint32_t mask_above(F a, F b) {
#if FOVEAL_AVX512
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ);
#else
  return mask_of(a > b);
#endif
}
// The lanes in `mask` to `to`, one after the other; may write up to 16 numbers.
FOVEAL_INLINE void store_lanes(std::int32_t* to, I v, std::uint32_t mask) {
#if FOVEAL_AVX512
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(mask), (__m512i)v));
#else
  for (; mask != 0; mask &= mask - 1) *to++ = v[__builtin_ctz(mask)];
#endif
}
FOVEAL_INLINE I lanes_from(std::int32_t first) {
  constexpr std::int32_t kCount[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return splat_int(first) + load_as<I>(kCount);
}

// Room for `capacity` = capacity_for(k) candidates.
struct Best {
  std::int32_t* order;
  std::int32_t* index;
  std::int64_t count;
  std::int64_t k;
  float threshold;  // only what is above it comes in...
  bool open;        // ...unless everything does
};

FOVEAL_INLINE std::int64_t capacity_for(std::int64_t k) {
  const std::int64_t slack = k > 256 ? k / 2 : 128;
  return (k + slack + kPageScores + 15) / 16 * 16 + 16;
}
FOVEAL_INLINE Best make_best(std::int32_t* memory, std::int64_t k) {
  return Best{memory, memory + capacity_for(k), 0, k, 0.0f, true};
}

std::int64_t count_at_least(const std::int32_t* order, std::int64_t vectors, std::int32_t bound) {
  const I low = splat_int(bound);
  I total{};
  for (std::int64_t v = 0; v < vectors; ++v) total -= load_as<I>(order + v * kLanes) >= low;
  std::int64_t sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += total[i];
  return sum;
}

struct Cut {
  std::int32_t order;  // everything above stays,
  std::int64_t equal;  // and so many of those at it, the first ones
};

// Of `count` > k >= 1 numbers, in a buffer that may be written up to the next multiple of 16.
Cut find_cut(std::int32_t* order, std::int64_t count, std::int64_t k) {
  const std::int64_t vectors = (count + kLanes - 1) / kLanes;
  for (std::int64_t i = count; i < vectors * kLanes; ++i) order[i] = order[0];
  I least = load_as<I>(order), most = least;
  for (std::int64_t v = 1; v < vectors; ++v) {
    const I x = load_as<I>(order + v * kLanes);
    least = select(x < least, x, least);
    most = select(x > most, x, most);
  }
  std::int64_t low = INT32_MAX, high = INT32_MIN;
  for (int i = 0; i < kLanes; ++i) {
    low = least[i] < low ? least[i] : low;
    high = most[i] > high ? most[i] : high;
  }
  for (std::int64_t i = count; i < vectors * kLanes; ++i) order[i] = INT32_MIN;
  // count(>= low) >= k and count(>= high + 1) < k at every turn.
  ++high;
  while (high - low > 1) {
    const std::int64_t middle = low + (high - low) / 2;
    const std::int64_t reached = count_at_least(order, vectors, static_cast<std::int32_t>(middle));
    if (reached == k) return {static_cast<std::int32_t>(middle - 1), 0};
    if (reached > k) low = middle;
    else high = middle;
  }
  const std::int64_t above = high > INT32_MAX ? 0 : count_at_least(order, vectors, static_cast<std::int32_t>(high));
  return {static_cast<std::int32_t>(low), k - above};
}

// Keeps the k best.
void compact(Best& best) {
  if (best.count <= best.k) return;
  const Cut cut = find_cut(best.order, best.count, best.k);
  const I bound = splat_int(cut.order);
  std::int64_t kept = 0, equal = cut.equal;
  for (std::int64_t at = 0; at < best.count; at += kLanes) {
    const I order = load_as<I>(best.order + at), index = load_as<I>(best.index + at);
    std::uint32_t mask = mask_of(order > bound), ties = mask_of(order == bound);
    for (; ties != 0 && equal > 0; ties &= ties - 1, --equal) mask |= ties & (0u - ties);
    if (best.count - at < kLanes) mask &= (1u << (best.count - at)) - 1;
    store_lanes(best.order + kept, order, mask);
    store_lanes(best.index + kept, index, mask);
    kept += __builtin_popcount(mask);
  }
  best.count = kept;
  best.threshold = score_of(cut.equal > 0 ? cut.order : cut.order + 1);
  best.open = false;
}

// Whether a page's scores may be among the best: true where they are, and now and then of keys that do not count.
FOVEAL_INLINE bool may_choose(const Best& best, const F (&score)[4]) {
  const F bound = splat(best.threshold);
  F top = bound;
  for (int g = 0; g < 4; ++g) top = max(score[g], top);  // NaN leaves `top` as it is
  return best.open || mask_above(top, bound) != 0;
}

// Those of 64 scores that `mask` names come in: a few one by one, many vector by vector.
FOVEAL_INLINE void take_few(Best& best, const F (&score)[4], std::int64_t first, std::uint64_t mask) {
  for (; mask != 0; mask &= mask - 1, ++best.count) {
    const int i = __builtin_ctzll(mask);
    best.order[best.count] = order_of_one(load_as<float>(reinterpret_cast<const float*>(score) + i));
    best.index[best.count] = static_cast<std::int32_t>(first + i);
  }
}
FOVEAL_INLINE void take_many(Best& best, const F (&score)[4], std::int64_t first, std::uint64_t mask) {
  for (int g = 0; g < 4; ++g) {  // without a branch on each group: no way to foretell it
    const auto lanes = static_cast<std::uint32_t>(mask >> (16 * g)) & 0xffffu;
    store_lanes(best.order + best.count, order_of(score[g]), lanes);
    store_lanes(best.index + best.count, lanes_from(static_cast<std::int32_t>(first + 16 * g)), lanes);
    best.count += __builtin_popcount(lanes);
  }
}

// 64 scores of keys `first` and on, of which the first `valid` count.
FOVEAL_INLINE void offer(Best& best, const F (&score)[4], std::int64_t first, std::int64_t valid) {
  const std::uint64_t there = valid < kPageScores ? (std::uint64_t{1} << valid) - 1 : ~std::uint64_t{0};
  if (best.open) {
    take_many(best, score, first, there);
  } else {
    const F bound = splat(best.threshold);
    std::uint64_t mask = 0;
    for (int g = 0; g < 4; ++g) mask |= static_cast<std::uint64_t>(mask_above(score[g], bound)) << (16 * g);
    mask &= there;
    if (__builtin_popcountll(mask) <= 4)
      take_few(best, score, first, mask);
    else
      take_many(best, score, first, mask);
  }
  if (best.count + kPageScores + 16 > capacity_for(best.k)) compact(best);
}

}  // namespace
}  // namespace foveal::FOVEAL_ISA
