// The one small layer over the machine's vector instructions.
//
// Every vector has 64 bytes (16 floats) on every machine, so that a kernel is written once and adds in the same order
// everywhere. Where registers are smaller it is a structure of vectors that fit (pieces.h). The compiler lowers plain
// arithmetic to AVX-512, AVX2, SSE or NEON; only what it cannot express (fused multiply-add, BF16 and int8 dot
// products, table look-ups) is written out below. Kernel files are compiled once for each instruction set, with
// FOVEAL_ISA naming the namespace (see CMakeLists.txt).
#pragma once

#ifndef FOVEAL_ISA
#error "simd.h is for kernel files, which are compiled with FOVEAL_ISA defined (CMakeLists.txt)"
#endif

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_FMA)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VBMI__) && \
    defined(__AVX512VNNI__)
#define FOVEAL_AVX512 1
#if defined(__AVX512BF16__)
#define FOVEAL_BF16 1  // products of BF16 pairs in one instruction; without it, fp32 products are the fastest
#endif
#elif defined(__AVX2__) && defined(__FMA__)
#define FOVEAL_AVX2 1
#endif

// GCC warns that passing 64-byte vectors differs between instruction sets (everything here is inlined or stays in one file),
// and of uninitialised values inside its own intrinsics.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define FOVEAL_INLINE static inline __attribute__((always_inline))

// Bytes of the widest vector this machine computes with.
#if FOVEAL_AVX512
#define FOVEAL_PIECE 64
#elif FOVEAL_AVX2
#define FOVEAL_PIECE 32
#else
#define FOVEAL_PIECE 16
#endif
namespace foveal::FOVEAL_ISA {
constexpr int kPieceBytes = FOVEAL_PIECE;
}

#include "pieces.h"

namespace foveal::FOVEAL_ISA {

typedef Vector<float, 64> F;          // 16 floats
typedef Vector<std::int32_t, 64> I;   // 16 integers
typedef Vector<std::uint32_t, 64> U;
typedef Vector<std::uint16_t, 64> H;  // 32 BF16 numbers
typedef Vector<std::uint8_t, 64> B;   // 64 bytes

constexpr int kLanes = 16;

// One machine vector, for loops that carry many accumulators.
typedef Vector<float, kPieceBytes> P;
typedef Vector<std::int32_t, kPieceBytes> PI;
constexpr int kPieceLanes = kPieceBytes / 4;
constexpr int kPieces = kLanes / kPieceLanes;

// Whole numbers: the smaller, the larger, a / b and a to a multiple of b, rounded up.
FOVEAL_INLINE std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
// Up to where, from `at` on and `end` at most, two sequences have the same pages.
FOVEAL_INLINE std::int64_t same_until(const std::uint8_t* const* a, const std::uint8_t* const* b, std::int64_t at,
                                      std::int64_t end) {
  while (at < end && a[at] == b[at]) ++at;
  return at;
}
FOVEAL_INLINE std::int64_t most(std::int64_t a, std::int64_t b) { return a > b ? a : b; }
FOVEAL_INLINE std::int64_t shares(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
FOVEAL_INLINE std::int64_t round_up(std::int64_t a, std::int64_t b) { return shares(a, b) * b; }

// ---------------------------------------------------------------- loads, stores, constants

template <class V>
FOVEAL_INLINE V load_as(const void* from) {
  if constexpr (kIsPieces<V>) {  // half by half: a copy of the whole would go through memory
    typedef decltype(V::low) Half;
    return {load_as<Half>(from), load_as<Half>(static_cast<const char*>(from) + sizeof(Half))};
  } else {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
  }
}
template <class V>
FOVEAL_INLINE void store_as(void* to, const V& v) {
  if constexpr (kIsPieces<V>) {
    store_as(to, v.low);
    store_as(static_cast<char*>(to) + sizeof(v.low), v.high);
  } else {
    std::memcpy(to, &v, sizeof v);
  }
}
FOVEAL_INLINE F load(const float* from) { return load_as<F>(from); }
FOVEAL_INLINE void store(float* to, F v) { store_as(to, v); }
FOVEAL_INLINE F zero() { return F{}; }
#if FOVEAL_AVX512
FOVEAL_INLINE F splat(float x) { return (F)_mm512_set1_ps(x); }
FOVEAL_INLINE I splat_int(std::int32_t x) { return (I)_mm512_set1_epi32(x); }
#else
FOVEAL_INLINE F splat(float x) { return Filled<F>::with(x); }
FOVEAL_INLINE I splat_int(std::int32_t x) { return Filled<I>::with(x); }
#endif
FOVEAL_INLINE U as_bits(F v) { return (U)v; }
FOVEAL_INLINE F from_bits(U v) { return (F)v; }
FOVEAL_INLINE F to_float(I v) { return convert<float>(v); }

// The first n (0 to 16) numbers; the rest is 0. Reads nothing behind them.
FOVEAL_INLINE F load_some(const float* from, std::int64_t n) {
#if FOVEAL_AVX512
  return (F)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), from);
#else
  if (n >= kLanes) return load(from);
  float lanes[kLanes] = {};
  std::memcpy(lanes, from, (std::size_t)n * sizeof(float));
  return load(lanes);
#endif
}
FOVEAL_INLINE void store_some(float* to, F v, std::int64_t n) {
#if FOVEAL_AVX512
  _mm512_mask_storeu_ps(to, (__mmask16)((1u << n) - 1), (__m512)v);
#else
  if (n >= kLanes) return store(to, v);
  float lanes[kLanes];
  store(lanes, v);
  std::memcpy(to, lanes, (std::size_t)n * sizeof(float));
#endif
}
// The first n (0 to 64) bytes; the rest is 0. Reads nothing behind them.
FOVEAL_INLINE B load_bytes(const void* from, std::int64_t n) {
#if FOVEAL_AVX512
  const __mmask64 mask = n >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << n) - 1;
  return (B)_mm512_maskz_loadu_epi8(mask, from);
#else
  if (n >= 64) return load_as<B>(from);
  std::uint8_t bytes[64] = {};
  std::memcpy(bytes, from, (std::size_t)n);
  return load_as<B>(bytes);
#endif
}

// ---------------------------------------------------------------- arithmetic

// a * b + c, rounded once where the machine can (twice in the portable build without a fused instruction).
FOVEAL_INLINE P fma(P a, P b, P c) {
#if FOVEAL_AVX512
  return (P)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif FOVEAL_AVX2
  return (P)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_FEATURE_FMA)
  return (P)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}
// The second one where either is NaN: what the instruction does (which the compiler does not see by itself on AVX-512).
FOVEAL_INLINE P max(P a, P b) {
#if FOVEAL_AVX512
  return (P)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return a > b ? a : b;
#endif
}
FOVEAL_INLINE P min(P a, P b) {
#if FOVEAL_AVX512
  return (P)_mm512_min_ps((__m512)a, (__m512)b);
#else
  return a < b ? a : b;
#endif
}
template <int n>
FOVEAL_INLINE Pieces<float, n> fma(const Pieces<float, n>& a, const Pieces<float, n>& b, const Pieces<float, n>& c) {
  return {fma(a.low, b.low, c.low), fma(a.high, b.high, c.high)};
}
template <int n>
FOVEAL_INLINE Pieces<float, n> max(const Pieces<float, n>& a, const Pieces<float, n>& b) {
  return {max(a.low, b.low), max(a.high, b.high)};
}
template <int n>
FOVEAL_INLINE Pieces<float, n> min(const Pieces<float, n>& a, const Pieces<float, n>& b) {
  return {min(a.low, b.low), min(a.high, b.high)};
}
FOVEAL_INLINE P piece(float x) { return P{} + x; }
FOVEAL_INLINE F abs(F v) { return from_bits(as_bits(v) & 0x7fffffffu); }

// Sum and maximum over the lanes, always in this order: halves, quarters, eighths, pairs.
FOVEAL_INLINE float sum(P v) {
#if FOVEAL_AVX512
  const __m256 a = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
#elif FOVEAL_AVX2
  const __m256 a = (__m256)v;
#endif
#if FOVEAL_AVX512 || FOVEAL_AVX2
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
#else
  return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}
FOVEAL_INLINE float largest(P v) {
#if FOVEAL_AVX512
  return _mm512_reduce_max_ps((__m512)v);
#else
  float r = v[0];
  for (int i = 1; i < kPieceLanes; ++i) r = v[i] > r ? v[i] : r;
  return r;
#endif
}
template <int n>
FOVEAL_INLINE float sum(const Pieces<float, n>& v) {
  return sum(v.low + v.high);
}
template <int n>
FOVEAL_INLINE float largest(const Pieces<float, n>& v) {
  return largest(max(v.low, v.high));
}

// e^v to about 1 ulp; 0 below -87.3, so that -inf gives 0. NaN stays NaN.
FOVEAL_INLINE P exp(P v) {
  const P low = piece(-87.3f), high = piece(88.3f), magic = piece(12582912.0f);
  const P x = min(max(v, low), high);
  const P n = (x * piece(1.44269504f) + magic) - magic;  // to the nearest integer, ties to even
  P r = fma(n, piece(-0.693359375f), x);
  r = fma(n, piece(2.12194440e-4f), r);
  P p = piece(1.9875691500e-4f);
  p = fma(p, r, piece(1.3981999507e-3f));
  p = fma(p, r, piece(8.3334519073e-3f));
  p = fma(p, r, piece(4.1665795894e-2f));
  p = fma(p, r, piece(1.6666665459e-1f));
  p = fma(p, r, piece(5.0000001201e-1f));
  p = fma(p, r * r, r) + piece(1.0f);
  const PI exponent = __builtin_convertvector(n, PI);
  const P result = p * (P)((exponent + 127) << 23);
  const P nan_kept = v == v ? result : v;
  return v < low ? P{} : nan_kept;
}
template <int n>
FOVEAL_INLINE Pieces<float, n> exp(const Pieces<float, n>& v) {
  return {exp(v.low), exp(v.high)};
}

// ---------------------------------------------------------------- narrow numbers

// As many small numbers as V has lanes, each in a lane of its own.
template <class V, class Small>
FOVEAL_INLINE V widen_lanes(const Small* from) {
  if constexpr (sizeof(V) > kPieceBytes) {
    typedef decltype(V::low) Half;
    return {widen_lanes<Half>(from), widen_lanes<Half>(from + sizeof(Half) / 4)};
  } else {
    typedef Small Narrow __attribute__((vector_size(sizeof(Small) * kPieceLanes)));
    return __builtin_convertvector(load_as<Narrow>(from), V);
  }
}
// The lowest bits of each lane.
template <class Small, class V>
FOVEAL_INLINE void store_lowest(Small* to, const V& v) {
  if constexpr (sizeof(V) > kPieceBytes) {
    store_lowest(to, v.low);
    store_lowest(to + sizeof(V) / 8, v.high);
  } else {
    typedef Small Narrow __attribute__((vector_size(sizeof(Small) * kPieceLanes)));
    const Narrow lowest = __builtin_convertvector(v, Narrow);
    std::memcpy(to, &lowest, sizeof lowest);
  }
}

// 16 BF16 numbers widened.
FOVEAL_INLINE F widen(const std::uint16_t* from) {
#if FOVEAL_AVX512
  return (F)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
#else
  return from_bits(widen_lanes<U>(from) << 16);
#endif
}
// 16 floats to BF16, nearest, ties to even, infinities kept, NaN stays NaN.
FOVEAL_INLINE void store_narrow(std::uint16_t* to, F v) {
  const U bits = as_bits(v);
  const U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const U kept = select(v == v, rounded, (bits >> 16) | 0x40u);
#if FOVEAL_AVX512
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi32_epi16((__m512i)kept));
#else
  store_lowest(to, kept);
#endif
}
FOVEAL_INLINE float widen_one(std::uint16_t x) {
  const std::uint32_t bits = (std::uint32_t)x << 16;
  float r;
  std::memcpy(&r, &bits, sizeof r);
  return r;
}
FOVEAL_INLINE std::uint16_t narrow_one(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) return (std::uint16_t)((bits >> 16) | 0x40u);
  return (std::uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// acc[i] + a[2i+1] * b[2i+1] + a[2i] * b[2i], the odd product first; the instruction's denormal results are 0.
FOVEAL_INLINE F dot_bf16(F acc, H a, H b) {
#if FOVEAL_BF16
  return (F)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#else
  const U x = (U)a, y = (U)b;
  acc = fma(from_bits(x & 0xffff0000u), from_bits(y & 0xffff0000u), acc);
  return fma(from_bits(x << 16), from_bits(y << 16), acc);
#endif
}

// acc[i] + sum over j of a[4i+j] (unsigned) * b[4i+j] (signed), exact as long as it fits 32 bits.
FOVEAL_INLINE I dot_int8(I acc, B a, B b) {
#if FOVEAL_AVX512
  return (I)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
#else
  // Products of a byte and a signed byte fit 16 bits; their sums need not.
  typedef Vector<std::int16_t, 64> Words;
  const auto x = (Vector<std::uint16_t, 64>)a;
  const Words y = (Words)b;
  const I even = (I)((Words)(x & 0xff) * ((y << 8) >> 8)), odd = (I)((Words)(x >> 8) * (y >> 8));
  return acc + (((even << 16) >> 16) + (even >> 16)) + (((odd << 16) >> 16) + (odd >> 16));
#endif
}

}  // namespace foveal::FOVEAL_ISA
