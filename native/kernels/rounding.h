// Rounding to FP8 (E4M3), FP4 (E2M1) and BF16 as the official inference code does it, to the bit.
//
// Rounding stays in fp32. Adding and taking away 1.5 * 2^23 steps of the small format's grid lets fp32's own rounding
// (nearest, ties to even) cut at that step. Largest magnitudes are found on the bits, as unsigned integers, where NaN
// is above everything: a block with an infinity or NaN in it becomes NaN as a whole, by itself.
#pragma once

#include "simd.h"

namespace foveal::FOVEAL_ISA {

// A block's scale is the smallest power of two >= max(amax, floor) / largest; the quotient is a product in fp32.
struct E4M3 {
  static constexpr float kLargest = 448.0f, kReciprocal = (float)(1.0 / 448.0), kFloor = 1e-4f;
  static constexpr int kMantissa = 3, kLeastExponent = -6;
};
struct E2M1 {
  static constexpr float kLargest = 6.0f, kReciprocal = (float)(1.0 / 6.0), kFloor = 6.0f * 0x1p-126f;
  static constexpr int kMantissa = 1, kLeastExponent = 0;
};

FOVEAL_INLINE std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
FOVEAL_INLINE float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
FOVEAL_INLINE U splat_bits(std::uint32_t x) { return (U)splat_int((std::int32_t)x); }
// The larger of unsigned integers: one instruction, which the compiler does not find by itself on AVX-512.
FOVEAL_INLINE U max_bits(U a, U b) {
#if FOVEAL_AVX512
  return (U)_mm512_max_epu32((__m512i)a, (__m512i)b);
#else
  return select(a > b, a, b);
#endif
}
template <class V>
FOVEAL_INLINE std::uint32_t largest_bits(const V& v) {
  if constexpr (kIsPieces<V>) return largest_bits(select(v.low > v.high, v.low, v.high));
#if FOVEAL_AVX512
  return _mm512_reduce_max_epu32((__m512i)v);
#else
  else {
    std::uint32_t lanes[kPieceLanes], r = 0;
    store_as(lanes, v);
    for (const std::uint32_t lane : lanes) r = lane > r ? lane : r;
    return r;
  }
#endif
}
// 16 integers below 256 as bytes, and back.
FOVEAL_INLINE void to_bytes(U v, std::uint8_t* to) {
#if FOVEAL_AVX512
  _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)v));
#else
  store_lowest(to, v);
#endif
}
FOVEAL_INLINE U from_bytes(const std::uint8_t* from) { return widen_lanes<U>(from); }

// The largest magnitude of `count` numbers, as bits (NaN above infinity above the rest).
FOVEAL_INLINE std::uint32_t amax_bits(const float* x, std::int64_t count) {
  const U magnitude = splat_bits(0x7fffffffu);
  U top{};
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) top = max_bits(top, as_bits(load(x + i)) & magnitude);
  if (i < count) top = max_bits(top, as_bits(load_some(x + i, count - i)) & magnitude);
  return largest_bits(top);
}

// The power-of-two scale of a block with this largest magnitude; NaN for an infinity or NaN.
template <class Grid>
FOVEAL_INLINE float scale_of(std::uint32_t amax) {
  if (amax >= 0x7f800000u) return float_of(0x7fc00000u);
  const float peak = float_of(amax);
  const float quotient = (peak < Grid::kFloor ? Grid::kFloor : peak) * Grid::kReciprocal;
  return float_of((bits_of(quotient) + 0x7fffffu) & 0x7f800000u);
}

// The nearest number of the grid, without a bound; keeps the sign of zero, NaN stays.
template <class Grid>
FOVEAL_INLINE F round_to_grid(F v) {
  const U least = splat_bits((std::uint32_t)(Grid::kLeastExponent + 127) << 23);
  const F binade = from_bits(max_bits(as_bits(v) & 0x7f800000u, least));
  const F magic = binade * splat(1.5f * (float)(1 << (23 - Grid::kMantissa)));
  const U rounded = as_bits((v + magic) - magic);
  return from_bits((rounded & 0x7fffffffu) | (as_bits(v) & 0x80000000u));
}

// Numbers in units of the block's scale, from v * (1 / scale); NaN stays.
template <class Grid>
FOVEAL_INLINE F to_grid(F v) {
  return round_to_grid<Grid>(max(splat(-Grid::kLargest), min(splat(Grid::kLargest), v)));
}

// One block in place, through the format and back.
template <class Grid>
FOVEAL_INLINE void round_block(float* x, std::int64_t count) {
  const float scale = scale_of<Grid>(amax_bits(x, count));
  const F inverse = splat(1.0f / scale), forward = splat(scale);
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(x + i, to_grid<Grid>(load(x + i) * inverse) * forward);
  if (i < count) store_some(x + i, to_grid<Grid>(load_some(x + i, count - i) * inverse) * forward, count - i);
}

// `width` numbers in place in blocks of `block`, the last perhaps shorter.
template <class Grid, int block>
FOVEAL_INLINE void round_blocks(float* x, std::int64_t width) {
  std::int64_t i = 0;
  for (; i + block <= width; i += block) round_block<Grid>(x + i, block);
  if (i < width) round_block<Grid>(x + i, width - i);
}

// BF16's precision in fp32: nearest, ties to even, NaN stays.
FOVEAL_INLINE F round_bf16(F v) {
  const U bits = as_bits(v);
  const U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  return from_bits(select(v == v, rounded, bits | 0x400000u));
}
FOVEAL_INLINE void round_bf16_row(float* x, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(x + i, round_bf16(load(x + i)));
  if (i < count) store_some(x + i, round_bf16(load_some(x + i, count - i)), count - i);
}

// ---------------------------------------------------------------- codes

// Numbers of the E4M3 grid (magnitude up to 448, or NaN) -> codes 0..255.
FOVEAL_INLINE U code_e4m3(F v) {
  const F magnitude = abs(v);
  const U normal = (as_bits(magnitude) >> 20) - splat_bits((127 - 7) << 3);
  const U subnormal = (U)convert<std::int32_t>(min(magnitude, splat(1.0f)) * splat(512.0f));
  const U code = select(magnitude < splat(0x1p-6f), subnormal, normal);
  return select(v == v, code | ((as_bits(v) >> 24) & 0x80u), splat_bits(0x7f));
}
FOVEAL_INLINE F value_e4m3(U code) {
  const U low = code & 0x7fu;
  const F subnormal = to_float((I)low) * splat(0x1p-9f);
  const F normal = from_bits((low << 20) + (std::uint32_t)((127 - 7) << 23));
  F value = select(low < 8u, subnormal, normal);
  value = select(low == 0x7fu, from_bits(splat_bits(0x7fc00000u)), value);
  return from_bits(as_bits(value) | ((code & 0x80u) << 24));
}
// Numbers of the E2M1 grid (magnitude up to 6; NaN gives 7) -> codes 0..15.
FOVEAL_INLINE U code_e2m1(F v) {
  const F magnitude = abs(v);
  const U normal = (as_bits(magnitude) >> 22) - splat_bits((127 - 1) << 1);  // 1 -> 2, 1.5 -> 3, 2 -> 4 ... 6 -> 7
  const U small = select(magnitude < splat(0.25f), U{}, splat_bits(1));       // 0 and 0.5
  const U code = select(magnitude < splat(1.0f), small, normal);
  const U known = select(v == v, code, splat_bits(7));
  return known | ((as_bits(v) >> 28) & 8u);
}
FOVEAL_INLINE F value_e2m1(U code) {
  const U low = code & 7u;
  const F small = select(low == 0u, zero(), splat(0.5f));
  const F normal = from_bits((low << 22) + (std::uint32_t)((127 - 1) << 23));
  const F value = select(low < 2u, small, normal);
  return from_bits(as_bits(value) | ((code & 8u) << 28));
}
// The byte of a power-of-two scale (a normal number, or NaN), and back.
FOVEAL_INLINE std::uint8_t code_e8m0(float scale) {
  return scale == scale ? (std::uint8_t)(bits_of(scale) >> 23) : (std::uint8_t)255;
}
FOVEAL_INLINE float value_e8m0(std::uint8_t code) {
  if (code == 255) return float_of(0x7fc00000u);
  return float_of(code == 0 ? 0x00400000u : (std::uint32_t)code << 23);
}

// ---------------------------------------------------------------- whole rows

// The sign bit in lanes whose number has the bit `step`.
template <int step>
struct Flip {
  alignas(64) std::uint32_t lanes[kLanes];
  constexpr Flip() : lanes{} {
    for (int i = 0; i < kLanes; ++i) lanes[i] = (i & step) != 0 ? 0x80000000u : 0u;
  }
};
template <int step>
constexpr Flip<step> kFlip;

// Neighbours `step` lanes apart: (a + b, a - b).
template <int step>
FOVEAL_INLINE F butterfly(F v) {
  return swap_lanes<step>(v) + from_bits(as_bits(v) ^ load_as<U>(kFlip<step>.lanes));
}
FOVEAL_INLINE F hadamard16(F v) { return butterfly<8>(butterfly<4>(butterfly<2>(butterfly<1>(v)))); }

// Hadamard rotation of 16 * count numbers held in registers, without the final factor.
template <int count>
FOVEAL_INLINE void hadamard_vectors(F* v) {
  for (int i = 0; i < count; ++i) v[i] = hadamard16(v[i]);
  for (int step = 1; step < count; step *= 2)
    for (int i = 0; i < count; ++i)
      if ((i & step) == 0) {
        const F a = v[i], b = v[i + step];
        v[i] = a + b;
        v[i + step] = a - b;
      }
}

// What the indexer does to its queries and keys: orthonormal Hadamard rotation (Sylvester order), FP4 in blocks of 32.
template <int count>
FOVEAL_INLINE void quantize_index_vectors(float* x, float factor) {
  F v[count];
  for (int i = 0; i < count; ++i) v[i] = load(x + i * kLanes);
  hadamard_vectors<count>(v);
  for (int i = 0; i < count; ++i) v[i] = v[i] * splat(factor);
  for (int i = 0; i < count; i += 2) {
    const float scale = scale_of<E2M1>(largest_bits(max_bits(as_bits(abs(v[i])), as_bits(abs(v[i + 1])))));
    const F inverse = splat(1.0f / scale), forward = splat(scale);
    store(x + i * kLanes, to_grid<E2M1>(v[i] * inverse) * forward);
    store(x + (i + 1) * kLanes, to_grid<E2M1>(v[i + 1] * inverse) * forward);
  }
}

// Any power of two, in memory.
[[maybe_unused]] static void quantize_index_any(float* x, std::int64_t width, float factor) {
  for (std::int64_t step = 1; step < width; step *= 2)
    for (std::int64_t i = 0; i < width; ++i)
      if ((i & step) == 0) {
        const float a = x[i], b = x[i + step];
        x[i] = a + b;
        x[i + step] = a - b;
      }
  for (std::int64_t i = 0; i < width; ++i) x[i] *= factor;
  round_blocks<E2M1, 32>(x, width);
}
// width must be a power of two.
[[maybe_unused]] static void quantize_index_row(float* x, std::int64_t width) {
  const float factor = (float)(1.0 / __builtin_sqrt((double)width));
  if (width == 128) return quantize_index_vectors<8>(x, factor);
  if (width == 64) return quantize_index_vectors<4>(x, factor);
  if (width == 32) return quantize_index_vectors<2>(x, factor);
  quantize_index_any(x, width, factor);
}

// KV rows: E4M3 in blocks of 64 on all but the last `rotary` channels, BF16 on those.
[[maybe_unused]] static void quantize_kv_row(float* x, std::int64_t width, std::int64_t rotary) {
  round_blocks<E4M3, 64>(x, width - rotary);
  round_bf16_row(x + width - rotary, rotary);
}

}  // namespace foveal::FOVEAL_ISA
