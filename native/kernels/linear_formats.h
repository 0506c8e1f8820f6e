// How weights become vectors: one decoder for each format and arithmetic.
//
// A decoder delivers 64 columns of a row a step, in whatever order is cheapest, scales included; activations are
// permuted to that order once instead (linear_input.h). FP8 and FP4 codes are looked up in tables of BF16 numbers that
// already carry the block's scale, so that scaling costs nothing and zero stays zero.
#pragma once

#include "linear_blocks.h"

namespace foveal::FOVEAL_ISA {
namespace {

// ---------------------------------------------------------------- fp32 arithmetic, on every machine

// The machine's own vectors: a compiler keeps wider ones in memory. A kernel goes over its columns once for each part
// of the 16 lanes, so that the lanes' sums are those of simd.h's F on every machine.
#if FOVEAL_AVX512
constexpr int kNative = 16;
#elif FOVEAL_AVX2
constexpr int kNative = 8;
#else
constexpr int kNative = 4;
#endif
typedef float N __attribute__((vector_size(4 * kNative)));
typedef std::int32_t NI __attribute__((vector_size(4 * kNative)));
typedef std::uint32_t NU __attribute__((vector_size(4 * kNative)));
typedef std::uint8_t NB __attribute__((vector_size(kNative)));
typedef std::uint16_t NH __attribute__((vector_size(2 * kNative)));

FOVEAL_INLINE N fma_native(N a, N b, N c) {
#if FOVEAL_AVX512
  return fma(a, b, c);
#elif FOVEAL_AVX2
  return (N)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_FEATURE_FMA)
  N r;
  for (int i = 0; i < kNative; ++i) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return r;
#else
  return a * b + c;
#endif
}

FOVEAL_INLINE NU widen_bytes(const std::uint8_t* from) {
#if FOVEAL_AVX2
  return (NU)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from));
#else
  return __builtin_convertvector(load_as<NB>(from), NU);
#endif
}

FOVEAL_INLINE NU widen_words(const std::uint16_t* from) {
#if FOVEAL_AVX2
  return (NU)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from));
#else
  return __builtin_convertvector(load_as<NH>(from), NU);
#endif
}

struct Wide {
  using V = N;
  using Sum = N;
  using Element = float;
  static constexpr int kVectors = 4;  // groups of 16 lanes a step
  static constexpr int kElements = 16;
  static constexpr int kParts = 16 / kNative;
  static constexpr bool kReady = false;
  std::int64_t lane = 0;  // where the part in work begins
  FOVEAL_INLINE N dot(N acc, N w, N x) { return fma_native(w, x, acc); }
};

// E8M0: 2^(code - 127); 255 is NaN.
FOVEAL_INLINE float scale_value(std::uint8_t code) {
  const std::uint32_t bits = code == 255 ? 0x7fc00000u : code == 0 ? 0x00400000u : (std::uint32_t)code << 23;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

#if FOVEAL_AVX512

// mantissa * 2^(exponent - 3) with mantissa in [8, 16), as BF16 with the scale 2^(code - 127).
constexpr std::uint16_t bf16_of(int mantissa, int exponent, int code) {
  const int field = exponent + code;
  if (code == 255) return 0x7fc0;
  if (field <= 0) return 0;  // below BF16's normal numbers, which the dot product takes as 0
  return (std::uint16_t)(field >= 255 ? 0x7f80 : field << 7 | (mantissa - 8) << 4);
}

constexpr std::uint16_t bf16_of_e4m3(int magnitude, int code) {
  if (magnitude == 127) return 0x7fc0;
  if (magnitude == 0) return code == 255 ? 0x7fc0 : 0;
  int mantissa = magnitude & 7, exponent = (magnitude >> 3) - 7;
  if (exponent == -7) {
    for (exponent = -6; mantissa < 8; --exponent) mantissa *= 2;
    return bf16_of(mantissa, exponent, code);
  }
  return bf16_of(mantissa + 8, exponent, code);
}

constexpr std::uint16_t bf16_of_e2m1(int magnitude, int code) {
  constexpr int mantissas[8] = {0, 8, 8, 12, 8, 12, 8, 12}, exponents[8] = {0, -1, 0, 0, 1, 1, 2, 2};
  if (magnitude == 0) return code == 255 ? 0x7fc0 : 0;
  return bf16_of(mantissas[magnitude], exponents[magnitude], code);
}

// For each scale: high bytes of the 128 magnitudes, then low bytes.
struct FP8Tables {
  alignas(64) std::uint8_t bytes[256][256];
  constexpr FP8Tables() : bytes() {
    for (int code = 0; code < 256; ++code)
      for (int magnitude = 0; magnitude < 128; ++magnitude) {
        const std::uint16_t bits = bf16_of_e4m3(magnitude, code);
        bytes[code][magnitude] = (std::uint8_t)(bits >> 8);
        bytes[code][128 + magnitude] = (std::uint8_t)(bits & 255);
      }
  }
};
// For each scale: the 16 codes' numbers.
struct FP4Tables {
  alignas(64) std::uint16_t words[256][16];
  constexpr FP4Tables() : words() {
    for (int code = 0; code < 256; ++code)
      for (int number = 0; number < 16; ++number)
        words[code][number] = (std::uint16_t)(bf16_of_e2m1(number & 7, code) | (number & 8) << 12);
  }
};
constexpr FP8Tables kFP8Tables;
constexpr FP4Tables kFP4Tables;


// 32 BF16 numbers as fp32: the even ones, then the odd ones.
FOVEAL_INLINE void split(__m512i pairs, N* w) {
  w[0] = (N)_mm512_slli_epi32(pairs, 16);
  w[1] = (N)_mm512_and_si512(pairs, _mm512_set1_epi32(-65536));
}

// An FP8 block's table in registers; looks codes up.
struct FP8Codes {
  __m512i high0, high1, low0, low1;
  FOVEAL_INLINE void enter(FP8Codes& d, std::uint8_t scale) {
    const std::uint8_t* table = kFP8Tables.bytes[scale];
    d.high0 = _mm512_load_si512(table);
    d.high1 = _mm512_load_si512(table + 64);
    d.low0 = _mm512_load_si512(table + 128);
    d.low1 = _mm512_load_si512(table + 192);
  }
  // Codes 16q to 16q + 7 come as BF16 in the first vector, 16q + 8 to 16q + 15 in the second (q = 0 to 3).
  FOVEAL_INLINE void decode(const FP8Codes& d, __m512i codes, __m512i* w) {
    const __m512i magnitude = _mm512_permutex2var_epi8(d.high0, codes, d.high1);  // looks at 7 bits of a code
    const __m512i low = _mm512_permutex2var_epi8(d.low0, codes, d.low1);
    const __m512i high =
        _mm512_ternarylogic_epi32(codes, _mm512_set1_epi8((char)0x80), magnitude, 0xea);  // (a & b) | c
    w[0] = _mm512_unpacklo_epi8(low, high);
    w[1] = _mm512_unpackhi_epi8(low, high);
  }
};

// For each scale: the 16 codes' numbers in fp32.
struct FP4Floats {
  alignas(64) float numbers[256][16];
  constexpr FP4Floats() : numbers() {
    constexpr double values[8] = {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0};
    double scale = 0x1p-127;
    for (int code = 0; code < 256; ++code, scale *= 2)
      for (int number = 0; number < 16; ++number) {
        const double value = values[number & 7] * scale;
        const float rounded = code == 255 ? __builtin_nanf("") : value < 0x1p128 ? (float)value : __builtin_inff();
        numbers[code][number] = number & 8 ? -rounded : rounded;
      }
  }
};
constexpr FP4Floats kFP4Floats;

// E2M1 pairs: four bits of a lane look into the table of their scale.
struct Nibbles {
  __m512 table;
  explicit Nibbles(std::uint8_t scale) : table(_mm512_load_ps(kFP4Floats.numbers[scale])) {}
  FOVEAL_INLINE void decode(const Nibbles& d, const std::uint8_t* from, N& even, N& odd) {
    const __m512i pairs = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from));
    even = (N)_mm512_permutexvar_ps(pairs, d.table);
    odd = (N)_mm512_permutexvar_ps(_mm512_srli_epi32(pairs, 4), d.table);
  }
};

#elif FOVEAL_AVX2

// E4M3 codes times `factor`: as half-precision numbers 2^8 times too small, subnormals included.
FOVEAL_INLINE N decode_e4m3(const std::uint8_t* from, N factor) {
  const __m128i codes = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i*)from));
  const __m128i magnitude = _mm_and_si128(codes, _mm_set1_epi16(0x7f));
  const __m128i sign = _mm_slli_epi16(_mm_and_si128(codes, _mm_set1_epi16(0x80)), 8);
  const __m128i nan = _mm_and_si128(_mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f)), _mm_set1_epi16(0x7e00));
  const __m128i halves = _mm_or_si128(_mm_or_si128(_mm_slli_epi16(magnitude, 7), sign), nan);
  return (N)_mm256_cvtph_ps(halves) * (factor * 256.0f);
}

// The eight magnitudes of E2M1 times a block's scale, and of 8 bytes the even columns (low nibbles) and the odd ones. A
// permutation looks at three bits of a code only.
struct Nibbles {
  N table;
  explicit Nibbles(std::uint8_t scale) : table(N{0, 0.5f, 1, 1.5f, 2, 3, 4, 6} * scale_value(scale)) {}
  FOVEAL_INLINE void decode(const Nibbles& d, const std::uint8_t* from, N& even, N& odd) {
    const NU pairs = widen_bytes(from), upper = pairs >> 4;
    even = (N)((NU)_mm256_permutevar8x32_ps((__m256)d.table, (__m256i)pairs) ^ (pairs << 28 & 0x80000000u));
    odd = (N)((NU)_mm256_permutevar8x32_ps((__m256)d.table, (__m256i)upper) ^ (upper << 28 & 0x80000000u));
  }
};

#else

// E4M3 codes times `factor`. Subnormals are taken from 1.m * 2^-6, without denormal arithmetic.
FOVEAL_INLINE N decode_e4m3(const std::uint8_t* from, N factor) {
  const NU code = widen_bytes(from), magnitude = code & 0x7fu;
  const NU bits = magnitude << 20;
  const N normal = (N)(bits + (120u << 23));
  const N small = (N)(bits + (121u << 23)) - 0.015625f;
  N value = (NI)magnitude < 8 ? small : normal;
  value = (NI)magnitude == 127 ? (N)(bits | 0x7fc00000u) : value;
  return (N)((NU)value | ((code & 0x80u) << 24)) * factor;
}

// E2M1 pairs to numbers, in the same way: the even columns (low nibbles) and the odd ones.
struct Nibbles {
  N factor;
  explicit Nibbles(std::uint8_t scale) : factor(N{} + scale_value(scale)) {}
  FOVEAL_INLINE N decode_one(NU code) {
    const NU magnitude = code & 7u;
    const NU bits = magnitude << 22;
    const N normal = (N)(bits + (126u << 23));
    const N small = (N)(bits + (127u << 23)) - 1.0f;
    const N value = (NI)magnitude < 2 ? small : normal;
    return (N)((NU)value | ((code & 8u) << 28));
  }
  FOVEAL_INLINE void decode(const Nibbles& d, const std::uint8_t* from, N& even, N& odd) {
    const NU pairs = widen_bytes(from);
    even = decode_one(pairs & 15u) * d.factor;
    odd = decode_one(pairs >> 4) * d.factor;
  }
};

#endif

struct WideF32 : Wide {
  static constexpr int kRows = 4;
  const float* base;
  std::int64_t stride, columns;
  WideF32(const Matrix& m, std::int64_t row)
      : base((const float*)m.data + row * m.columns), stride(m.columns), columns(m.columns) {}
  FOVEAL_INLINE void enter(const WideF32&, std::int64_t) {}
  FOVEAL_INLINE void load_step(const WideF32& d, std::int64_t r, std::int64_t s, N* w) {
    const float* from = d.base + r * d.stride + s * kStep;
    for (int v = 0; v < 4; ++v) w[v] = load_as<N>(from + 16 * v + d.lane);
  }
  FOVEAL_INLINE void load_tail(const WideF32& d, std::int64_t r, std::int64_t s, N* w) {
    float padded[kStep] = {};
    std::memcpy(padded, d.base + r * d.stride + s * kStep, (std::size_t)(d.columns - s * kStep) * sizeof(float));
    for (int v = 0; v < 4; ++v) w[v] = load_as<N>(padded + 16 * v + d.lane);
  }
  FOVEAL_INLINE void fetch(const WideF32& d, std::int64_t r, std::int64_t s) {
    const float* from = d.base + r * d.stride + s * kStep;
    for (int v = 0; v < 4; ++v) __builtin_prefetch(from + 16 * v, 0, 2);
  }
};

struct WideBF16 : Wide {
  static constexpr int kRows = 4;
  const std::uint16_t* base;
  std::int64_t stride, columns;
  WideBF16(const Matrix& m, std::int64_t row)
      : base((const std::uint16_t*)m.data + row * m.columns), stride(m.columns), columns(m.columns) {}
  FOVEAL_INLINE void enter(const WideBF16&, std::int64_t) {}
  FOVEAL_INLINE void decode(const std::uint16_t* from, N* w) {
#if FOVEAL_AVX512
    split(_mm512_loadu_si512(from), w);
    split(_mm512_loadu_si512(from + 32), w + 2);
#else
    for (int v = 0; v < 4; ++v) w[v] = (N)(widen_words(from + 16 * v) << 16);
#endif
  }
  FOVEAL_INLINE void load_step(const WideBF16& d, std::int64_t r, std::int64_t s, N* w) {
    decode(d.base + r * d.stride + s * kStep + d.lane, w);
  }
  FOVEAL_INLINE void load_tail(const WideBF16& d, std::int64_t r, std::int64_t s, N* w) {
    std::uint16_t padded[kStep] = {};
    std::memcpy(padded, d.base + r * d.stride + s * kStep, (std::size_t)(d.columns - s * kStep) * 2);
    decode(padded + d.lane, w);
  }
  FOVEAL_INLINE void fetch(const WideBF16& d, std::int64_t r, std::int64_t s) {
    const std::uint16_t* from = d.base + r * d.stride + s * kStep;
    __builtin_prefetch(from, 0, 2);
    __builtin_prefetch(from + 32, 0, 2);
  }
};

#if FOVEAL_AVX512
struct WideFP8 : Wide {
  static constexpr int kRows = 8;
  const std::uint8_t* base;
  const std::uint8_t* scale;
  std::int64_t stride, columns;
  FP8Codes codes;
  WideFP8(const Matrix& m, std::int64_t row)
      : base((const std::uint8_t*)m.data + row * m.columns),
        scale(m.scale + row / kFP8Rows * ((m.columns + 127) / 128)),
        stride(m.columns),
        columns(m.columns) {}
  FOVEAL_INLINE void enter(WideFP8& d, std::int64_t s) { FP8Codes::enter(d.codes, d.scale[s / 2]); }
  FOVEAL_INLINE void decode(const WideFP8& d, __m512i codes, N* w) {
    __m512i pairs[2];
    FP8Codes::decode(d.codes, codes, pairs);
    split(pairs[0], w);
    split(pairs[1], w + 2);
  }
  FOVEAL_INLINE void load_step(const WideFP8& d, std::int64_t r, std::int64_t s, N* w) {
    decode(d, _mm512_loadu_si512(d.base + r * d.stride + s * kStep), w);
  }
  FOVEAL_INLINE void load_tail(const WideFP8& d, std::int64_t r, std::int64_t s, N* w) {
    decode(d, (__m512i)load_bytes(d.base + r * d.stride + s * kStep, d.columns - s * kStep), w);
  }
  FOVEAL_INLINE void fetch(const WideFP8& d, std::int64_t r, std::int64_t s) {
    __builtin_prefetch(d.base + r * d.stride + s * kStep, 0, 2);
  }
};
#else
struct WideFP8 : Wide {
  static constexpr int kRows = 4;
  const std::uint8_t* base;
  const std::uint8_t* scale;
  std::int64_t stride, columns;
  N factor;
  WideFP8(const Matrix& m, std::int64_t row)
      : base((const std::uint8_t*)m.data + row * m.columns),
        scale(m.scale + row / kFP8Rows * ((m.columns + 127) / 128)),
        stride(m.columns),
        columns(m.columns),
        factor(N{}) {}
  FOVEAL_INLINE void enter(WideFP8& d, std::int64_t s) { d.factor = N{} + scale_value(d.scale[s / 2]); }
  FOVEAL_INLINE void decode(const WideFP8& d, const std::uint8_t* from, N* w) {
    for (int v = 0; v < 4; ++v) w[v] = decode_e4m3(from + 16 * v, d.factor);
  }
  FOVEAL_INLINE void load_step(const WideFP8& d, std::int64_t r, std::int64_t s, N* w) {
    decode(d, d.base + r * d.stride + s * kStep + d.lane, w);
  }
  FOVEAL_INLINE void load_tail(const WideFP8& d, std::int64_t r, std::int64_t s, N* w) {
    std::uint8_t padded[kStep] = {};
    std::memcpy(padded, d.base + r * d.stride + s * kStep, (std::size_t)(d.columns - s * kStep));
    decode(d, padded + d.lane, w);
  }
  FOVEAL_INLINE void fetch(const WideFP8& d, std::int64_t r, std::int64_t s) {
    __builtin_prefetch(d.base + r * d.stride + s * kStep, 0, 2);
  }
};
#endif

// 32 columns come as their 16 even ones, then their 16 odd ones.
struct WideFP4 : Wide {
  static constexpr int kRows = 4;
  const std::uint8_t* base;
  const std::uint8_t* scale;
  std::int64_t stride, columns, blocks;
  WideFP4(const Matrix& m, std::int64_t row)
      : base((const std::uint8_t*)m.data + row * (m.columns / 2)),
        scale(m.scale + row * ((m.columns + 31) / 32)),
        stride(m.columns / 2),
        columns(m.columns),
        blocks((m.columns + 31) / 32) {}
  FOVEAL_INLINE void enter(const WideFP4&, std::int64_t) {}
  FOVEAL_INLINE void decode(const std::uint8_t* from, std::uint8_t first, std::uint8_t second, N* w) {
    for (int half = 0; half < 2; ++half)
      Nibbles::decode(Nibbles(half ? second : first), from + 16 * half, w[2 * half], w[2 * half + 1]);
  }
  FOVEAL_INLINE void load_step(const WideFP4& d, std::int64_t r, std::int64_t s, N* w) {
    const std::uint8_t* scales = d.scale + r * d.blocks + 2 * s;
    decode(d.base + r * d.stride + s * (kStep / 2) + d.lane, scales[0], scales[1], w);
  }
  FOVEAL_INLINE void load_tail(const WideFP4& d, std::int64_t r, std::int64_t s, N* w) {
    std::uint8_t padded[kStep / 2] = {};
    std::memcpy(padded, d.base + r * d.stride + s * (kStep / 2), (std::size_t)(d.columns - s * kStep) / 2);
    const std::uint8_t* scales = d.scale + r * d.blocks;
    // A block that does not exist holds zeros only: any finite scale will do.
    decode(padded + d.lane, scales[2 * s], 2 * s + 1 < d.blocks ? scales[2 * s + 1] : 127, w);
  }
  FOVEAL_INLINE void fetch(const WideFP4& d, std::int64_t r, std::int64_t s) {
    __builtin_prefetch(d.base + r * d.stride + s * (kStep / 2), 0, 2);
  }
};

// Rows already decoded, padded to whole steps.
template <class Arithmetic>
struct Ready : Arithmetic {
  static constexpr bool kReady = true;
  using Element = typename Arithmetic::Element;
  using V = typename Arithmetic::V;
  const Element* base;
  std::int64_t stride, columns;
  Ready(const Element* base_, std::int64_t stride_) : base(base_), stride(stride_), columns(stride_) {}
  FOVEAL_INLINE V load_vector(const Ready& d, std::int64_t r, std::int64_t s, int v) {
    return load_as<V>(d.base + r * d.stride + s * kStep + Arithmetic::kElements * v + d.lane);
  }
};

// ---------------------------------------------------------------- pairs of BF16 numbers

#if FOVEAL_BF16

struct Half {
  using V = H;
  using Sum = F;
  using Element = std::uint16_t;
  static constexpr int kVectors = 2;  // a step
  static constexpr int kElements = 32;
  static constexpr int kParts = 1;
  static constexpr bool kReady = false;
  static constexpr std::int64_t lane = 0;
  FOVEAL_INLINE F dot(F acc, H w, H x) { return dot_bf16(acc, w, x); }
};

struct HalfBF16 : Half {
  static constexpr int kRows = 8;
  const std::uint16_t* base;
  std::int64_t stride, columns;
  HalfBF16(const Matrix& m, std::int64_t row)
      : base((const std::uint16_t*)m.data + row * m.columns), stride(m.columns), columns(m.columns) {}
  FOVEAL_INLINE void enter(const HalfBF16&, std::int64_t) {}
  FOVEAL_INLINE void load_step(const HalfBF16& d, std::int64_t r, std::int64_t s, H* w) {
    const std::uint16_t* from = d.base + r * d.stride + s * kStep;
    w[0] = load_as<H>(from);
    w[1] = load_as<H>(from + 32);
  }
  FOVEAL_INLINE void load_tail(const HalfBF16& d, std::int64_t r, std::int64_t s, H* w) {
    const std::uint16_t* from = d.base + r * d.stride + s * kStep;
    const std::int64_t left = 2 * (d.columns - s * kStep);
    w[0] = (H)load_bytes(from, left);
    w[1] = left > 64 ? (H)load_bytes(from + 32, left - 64) : H{};
  }
  FOVEAL_INLINE void fetch(const HalfBF16& d, std::int64_t r, std::int64_t s) {
    const std::uint16_t* from = d.base + r * d.stride + s * kStep;
    __builtin_prefetch(from, 0, 2);
    __builtin_prefetch(from + 32, 0, 2);
  }
};

// Columns 16q to 16q + 7 come in the first vector, 16q + 8 to 16q + 15 in the second (q = 0 to 3).
struct HalfFP8 : Half {
  static constexpr int kRows = 8;
  const std::uint8_t* base;
  const std::uint8_t* scale;
  std::int64_t stride, columns;
  FP8Codes codes;
  HalfFP8(const Matrix& m, std::int64_t row)
      : base((const std::uint8_t*)m.data + row * m.columns),
        scale(m.scale + row / kFP8Rows * ((m.columns + 127) / 128)),
        stride(m.columns),
        columns(m.columns) {}
  FOVEAL_INLINE void enter(HalfFP8& d, std::int64_t s) { FP8Codes::enter(d.codes, d.scale[s / 2]); }
  FOVEAL_INLINE void decode(const HalfFP8& d, __m512i codes, H* w) {
    __m512i pairs[2];
    FP8Codes::decode(d.codes, codes, pairs);
    w[0] = (H)pairs[0];
    w[1] = (H)pairs[1];
  }
  FOVEAL_INLINE void load_step(const HalfFP8& d, std::int64_t r, std::int64_t s, H* w) {
    decode(d, _mm512_loadu_si512(d.base + r * d.stride + s * kStep), w);
  }
  FOVEAL_INLINE void load_tail(const HalfFP8& d, std::int64_t r, std::int64_t s, H* w) {
    decode(d, (__m512i)load_bytes(d.base + r * d.stride + s * kStep, d.columns - s * kStep), w);
  }
  FOVEAL_INLINE void fetch(const HalfFP8& d, std::int64_t r, std::int64_t s) {
    __builtin_prefetch(d.base + r * d.stride + s * kStep, 0, 2);
  }
};

// Even columns come in the first vector, odd ones in the second.
struct HalfFP4 : Half {
  static constexpr int kRows = 4;
  const std::uint8_t* base;
  const std::uint8_t* scale;
  std::int64_t stride, columns, blocks;
  HalfFP4(const Matrix& m, std::int64_t row)
      : base((const std::uint8_t*)m.data + row * (m.columns / 2)),
        scale(m.scale + row * ((m.columns + 31) / 32)),
        stride(m.columns / 2),
        columns(m.columns),
        blocks((m.columns + 31) / 32) {}
  FOVEAL_INLINE void enter(const HalfFP4&, std::int64_t) {}
  FOVEAL_INLINE void decode(__m256i codes, std::uint8_t first, std::uint8_t second, H* w) {
    const __m512i words = _mm512_cvtepu8_epi16(codes);
    const __m512i table =
        _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_load_si256((const __m256i*)kFP4Tables.words[first])),
                           _mm256_load_si256((const __m256i*)kFP4Tables.words[second]), 1);
    const __m512i upper = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(16), 1);  // second block's half
    const __m512i even = _mm512_ternarylogic_epi32(words, _mm512_set1_epi16(15), upper, 0xea);   // (a & b) | c
    const __m512i odd = _mm512_or_si512(_mm512_srli_epi16(words, 4), upper);
    w[0] = (H)_mm512_permutexvar_epi16(even, table);
    w[1] = (H)_mm512_permutexvar_epi16(odd, table);
  }
  FOVEAL_INLINE void load_step(const HalfFP4& d, std::int64_t r, std::int64_t s, H* w) {
    const std::uint8_t* scales = d.scale + r * d.blocks + 2 * s;
    decode(_mm256_loadu_si256((const __m256i*)(d.base + r * d.stride + s * (kStep / 2))), scales[0], scales[1], w);
  }
  FOVEAL_INLINE void load_tail(const HalfFP4& d, std::int64_t r, std::int64_t s, H* w) {
    const std::uint8_t* scales = d.scale + r * d.blocks;
    const __m512i codes = (__m512i)load_bytes(d.base + r * d.stride + s * (kStep / 2), (d.columns - s * kStep) / 2);
    // A block that does not exist holds zeros only: any finite scale will do.
    decode(_mm512_castsi512_si256(codes), scales[2 * s], 2 * s + 1 < d.blocks ? scales[2 * s + 1] : 127, w);
  }
  FOVEAL_INLINE void fetch(const HalfFP4& d, std::int64_t r, std::int64_t s) {
    __builtin_prefetch(d.base + r * d.stride + s * (kStep / 2), 0, 2);
  }
};

#endif  // FOVEAL_BF16

}  // namespace
}  // namespace foveal::FOVEAL_ISA
