// The one small layer over the machine's vector instructions.
//
// What is special here: every vector has 64 bytes (16 floats) on every machine, so that a kernel is written once and adds
// in the same order everywhere. The compiler lowers plain arithmetic on these types to AVX-512, AVX2, SSE or NEON; only
// what it cannot express (fused multiply-add, BF16 and int8 dot products, table look-ups) is written out below. Kernel
// files are compiled once for each instruction set, with FOVEAL_ISA naming the namespace (see CMakeLists.txt).
#pragma once

#ifndef FOVEAL_ISA
#error "simd.h is for kernel files, which are compiled with FOVEAL_ISA defined (CMakeLists.txt)"
#endif

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
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

namespace foveal::FOVEAL_ISA {

typedef float F __attribute__((vector_size(64)));            // 16 floats
typedef std::int32_t I __attribute__((vector_size(64)));     // 16 integers
typedef std::uint32_t U __attribute__((vector_size(64)));
typedef std::uint16_t H __attribute__((vector_size(64)));    // 32 BF16 numbers
typedef std::uint16_t H16 __attribute__((vector_size(32)));  // 16 BF16 numbers
typedef std::uint8_t B __attribute__((vector_size(64)));     // 64 bytes

constexpr int kLanes = 16;

// Whole numbers: the smaller, the larger, a / b and a to a multiple of b, rounded up.
FOVEAL_INLINE std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
FOVEAL_INLINE std::int64_t most(std::int64_t a, std::int64_t b) { return a > b ? a : b; }
FOVEAL_INLINE std::int64_t shares(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
FOVEAL_INLINE std::int64_t round_up(std::int64_t a, std::int64_t b) { return shares(a, b) * b; }

// ---------------------------------------------------------------- loads, stores, constants

template <class V>
FOVEAL_INLINE V load_as(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
FOVEAL_INLINE F load(const float* from) { return load_as<F>(from); }
FOVEAL_INLINE void store(float* to, F v) { std::memcpy(to, &v, sizeof v); }
FOVEAL_INLINE F splat(float x) { return F{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
FOVEAL_INLINE F zero() { return F{}; }
FOVEAL_INLINE I splat_int(std::int32_t x) { return I{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
FOVEAL_INLINE U as_bits(F v) { return (U)v; }
FOVEAL_INLINE F from_bits(U v) { return (F)v; }
FOVEAL_INLINE F to_float(I v) { return __builtin_convertvector(v, F); }

// The first n (0 to 16) numbers; the rest is 0. Reads nothing behind them.
FOVEAL_INLINE F load_some(const float* from, std::int64_t n) {
#if FOVEAL_AVX512
  return (F)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), from);
#else
  F v{};
  std::memcpy(&v, from, (std::size_t)n * sizeof(float));
  return v;
#endif
}
FOVEAL_INLINE void store_some(float* to, F v, std::int64_t n) {
#if FOVEAL_AVX512
  _mm512_mask_storeu_ps(to, (__mmask16)((1u << n) - 1), (__m512)v);
#else
  std::memcpy(to, &v, (std::size_t)n * sizeof(float));
#endif
}
// The first n (0 to 64) bytes; the rest is 0. Reads nothing behind them.
FOVEAL_INLINE B load_bytes(const void* from, std::int64_t n) {
#if FOVEAL_AVX512
  const __mmask64 mask = n >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << n) - 1;
  return (B)_mm512_maskz_loadu_epi8(mask, from);
#else
  B v{};
  std::memcpy(&v, from, (std::size_t)n);
  return v;
#endif
}

// ---------------------------------------------------------------- arithmetic

// a * b + c, rounded once where the machine can (twice in the portable build without a fused instruction).
FOVEAL_INLINE F fma(F a, F b, F c) {
#if FOVEAL_AVX512
  return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif FOVEAL_AVX2
  struct Halves { __m256 low, high; };
  Halves x, y, z;
  std::memcpy(&x, &a, 64);
  std::memcpy(&y, &b, 64);
  std::memcpy(&z, &c, 64);
  const Halves r{_mm256_fmadd_ps(x.low, y.low, z.low), _mm256_fmadd_ps(x.high, y.high, z.high)};
  return load_as<F>(&r);
#elif defined(__ARM_FEATURE_FMA)
  F r;
  for (int i = 0; i < kLanes; ++i) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return r;
#else
  return a * b + c;
#endif
}
// The second one where either is NaN: what the instruction does (which the compiler does not see by itself on AVX-512).
FOVEAL_INLINE F max(F a, F b) {
#if FOVEAL_AVX512
  return (F)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return a > b ? a : b;
#endif
}
FOVEAL_INLINE F min(F a, F b) {
#if FOVEAL_AVX512
  return (F)_mm512_min_ps((__m512)a, (__m512)b);
#else
  return a < b ? a : b;
#endif
}
FOVEAL_INLINE F abs(F v) { return from_bits(as_bits(v) & 0x7fffffffu); }
FOVEAL_INLINE F sqrt(F v) {
#if FOVEAL_AVX512
  return (F)_mm512_sqrt_ps((__m512)v);
#else
  F r;
  for (int i = 0; i < kLanes; ++i) r[i] = __builtin_sqrtf(v[i]);
  return r;
#endif
}
// Nearest integer, ties to even.
FOVEAL_INLINE F round(F v) {
  // Adding and taking away 1.5 * 2^23 rounds to an integer for |v| < 2^22; larger numbers do not occur where it is used.
  // (The build never allows the compiler to reorder floating-point sums.)
  const F magic = splat(12582912.0f);
  return (v + magic) - magic;
}

// Sum and maximum over the lanes, always in this order: halves, quarters, eighths, pairs.
FOVEAL_INLINE float sum(F v) {
#if FOVEAL_AVX512
  const __m256 a = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
#else
  float h[8], q[4];
  for (int i = 0; i < 8; ++i) h[i] = v[i] + v[i + 8];
  for (int i = 0; i < 4; ++i) q[i] = h[i] + h[i + 4];
  return (q[0] + q[2]) + (q[1] + q[3]);
#endif
}
FOVEAL_INLINE float largest(F v) {
#if FOVEAL_AVX512
  return _mm512_reduce_max_ps((__m512)v);
#else
  float r = v[0];
  for (int i = 1; i < kLanes; ++i) r = v[i] > r ? v[i] : r;
  return r;
#endif
}

// ---------------------------------------------------------------- pieces

// The widest vector this machine computes with at once: F itself, a half or a quarter. The compiler keeps wider ones in
// memory, so loops that carry accumulators are written with these, piece by piece: every lane sees the same operations.
#if FOVEAL_AVX512
constexpr int kPieceBytes = 64;
#elif FOVEAL_AVX2
constexpr int kPieceBytes = 32;
#else
constexpr int kPieceBytes = 16;
#endif
constexpr int kPieceLanes = kPieceBytes / 4;
constexpr int kPieces = kLanes / kPieceLanes;
typedef float P __attribute__((vector_size(kPieceBytes)));
typedef std::int32_t PI __attribute__((vector_size(kPieceBytes)));
typedef std::uint32_t PU __attribute__((vector_size(kPieceBytes)));

FOVEAL_INLINE P piece(float x) { return P{} + x; }
#if !FOVEAL_AVX512
FOVEAL_INLINE P fma(P a, P b, P c) {
#if FOVEAL_AVX2
  return (P)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_FEATURE_FMA)
  P r;
  for (int i = 0; i < kPieceLanes; ++i) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return r;
#else
  return a * b + c;
#endif
}
FOVEAL_INLINE P max(P a, P b) { return a > b ? a : b; }
FOVEAL_INLINE P min(P a, P b) { return a < b ? a : b; }
#endif

// e^v to about 1 ulp; 0 below -87.3, so that -inf gives 0. NaN stays NaN.
FOVEAL_INLINE P exp(P v) {
  const P low = piece(-87.3f), high = piece(88.3f), magic = piece(12582912.0f);
  const P x = min(max(v, low), high);
  const P n = (x * piece(1.44269504f) + magic) - magic;  // rounded, as round() does
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
#if !FOVEAL_AVX512
FOVEAL_INLINE F exp(F v) {
  P pieces[kPieces];
  std::memcpy(pieces, &v, sizeof v);
  for (P& x : pieces) x = exp(x);
  return load_as<F>(pieces);
}
#endif

// ---------------------------------------------------------------- BF16

// 16 BF16 numbers widened.
FOVEAL_INLINE F widen(const std::uint16_t* from) {
#if FOVEAL_AVX512
  return (F)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
#else
  U v;
  for (int i = 0; i < kLanes; ++i) v[i] = (std::uint32_t)from[i] << 16;
  return from_bits(v);
#endif
}
// 16 floats to BF16, nearest, ties to even, infinities kept, NaN stays NaN.
FOVEAL_INLINE H16 narrow(F v) {
  const U bits = as_bits(v);
  U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  rounded = v == v ? rounded : ((bits >> 16) | 0x40u);
#if FOVEAL_AVX512
  return (H16)_mm512_cvtepi32_epi16((__m512i)rounded);
#else
  H16 r;
  for (int i = 0; i < kLanes; ++i) r[i] = (std::uint16_t)rounded[i];
  return r;
#endif
}
FOVEAL_INLINE void store_narrow(std::uint16_t* to, F v) {
  const H16 r = narrow(v);
  std::memcpy(to, &r, sizeof r);
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
  const U x = load_as<U>(&a), y = load_as<U>(&b);
  acc = fma(from_bits(x & 0xffff0000u), from_bits(y & 0xffff0000u), acc);
  return fma(from_bits(x << 16), from_bits(y << 16), acc);
#endif
}

// acc[i] + sum over j of a[4i+j] (unsigned) * b[4i+j] (signed), exact as long as it fits 32 bits.
FOVEAL_INLINE I dot_int8(I acc, B a, B b) {
#if FOVEAL_AVX512
  return (I)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
#elif FOVEAL_AVX2
  // maddubs would saturate at 16 bits for large values; widen both sides instead.
  __m256i x[2], y[2], r[2];
  std::memcpy(x, &a, 64);
  std::memcpy(y, &b, 64);
  std::memcpy(r, &acc, 64);
  const __m256i even = _mm256_set1_epi16(0x00ff);
  for (int k = 0; k < 2; ++k) {
    const __m256i lo = _mm256_madd_epi16(_mm256_and_si256(x[k], even), _mm256_srai_epi16(_mm256_slli_epi16(y[k], 8), 8));
    const __m256i hi = _mm256_madd_epi16(_mm256_srli_epi16(x[k], 8), _mm256_srai_epi16(y[k], 8));
    r[k] = _mm256_add_epi32(r[k], _mm256_add_epi32(lo, hi));
  }
  return load_as<I>(r);
#else
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < 4; ++j) acc[i] += (std::int32_t)a[4 * i + j] * (std::int32_t)(std::int8_t)b[4 * i + j];
  return acc;
#endif
}

}  // namespace foveal::FOVEAL_ISA
