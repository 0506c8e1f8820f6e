// The two products of attention over one tile of rows: logits and weighted sums, and the softmax between them.
//
// Vectors run across the query heads of one or more tokens ("lanes"), so that a row of the cache is multiplied where it
// lies, two BF16 channels at a time, and no sum crosses a vector (but with very few heads). Every number is summed in
// one order, over channels for a logit and over rows for an output, whatever else is computed beside it.
#pragma once

#include "attend.h"
#include "simd.h"

namespace foveal::FOVEAL_ISA {
namespace {

constexpr std::int64_t kTileRows = 64;
constexpr std::int64_t kGroup = 16;   // rows that are computed or left out together
constexpr std::int64_t kBlock = 64;   // 4-byte elements of a row that are multiplied in one go
constexpr std::int64_t kBlockBytes = 4 * kBlock;


// ---------------------------------------------------------------- one machine vector

// N times 2^v for v that is not far above 0; exactly 1 for 0 and 0 below -126 (a denormal result takes some machines a
// hundred times as long), NaN for NaN. A polynomial of degree 5 in what rounding v leaves, to 2e-7; as much of it as can be
// is additions and shifts, which do not compete with the products for their place in the machine. Step by step for all
// of them, since each step waits for the one before.
template <int N>
FOVEAL_INLINE void weigh(const F (&v)[N], F (&weight)[N]) {
  constexpr float kTerms[] = {1.326472731e-3f, 9.671512991e-3f, 5.550733581e-2f, 2.402224243e-1f, 6.931470037e-1f, 1.0f};
  const F low = splat(-126.0f), magic = splat(12582912.0f + 127.0f);
  F shifted[N], r[N], p[N];  // `shifted`: its lowest bits are the exponent of 2^n, n being v's nearest integer
  for (int i = 0; i < N; ++i) shifted[i] = v[i] + magic;
  for (int i = 0; i < N; ++i) r[i] = v[i] - (shifted[i] - magic);
  for (int i = 0; i < N; ++i) p[i] = splat(kTerms[0]);
  for (int term = 1; term < 6; ++term)
    for (int i = 0; i < N; ++i) p[i] = fma(p[i], r[i], splat(kTerms[term]));
  for (int i = 0; i < N; ++i) {
    const F power = from_bits(as_bits(shifted[i]) << 23);
#if FOVEAL_AVX512
    const __mmask16 there = _mm512_cmp_ps_mask((__m512)v[i], (__m512)low, _CMP_NLT_UQ);
    weight[i] = (F)_mm512_maskz_mul_ps(there, (__m512)p[i], (__m512)power);
#else
    weight[i] = select(v[i] < low, zero(), p[i] * power);
#endif
  }
}
FOVEAL_INLINE F weight_of(F v) {
  const F all[1] = {v};
  F weight[1];
  weigh(all, weight);
  return weight[0];
}

#if FOVEAL_AVX512
typedef F Wide;
FOVEAL_INLINE Wide repeat(const void* from) { return (Wide)_mm512_set1_epi32(load_as<std::int32_t>(from)); }
FOVEAL_INLINE Wide wide_fma(Wide a, Wide b, Wide c) { return fma(a, b, c); }
#elif FOVEAL_AVX2
typedef float Wide __attribute__((vector_size(32)));
FOVEAL_INLINE Wide repeat(const void* from) { return (Wide)_mm256_set1_ps(load_as<float>(from)); }
FOVEAL_INLINE Wide wide_fma(Wide a, Wide b, Wide c) {
  return (Wide)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
#else
typedef float Wide __attribute__((vector_size(16)));
FOVEAL_INLINE Wide repeat(const void* from) {
  const float x = load_as<float>(from);
  return Wide{x, x, x, x};
}
FOVEAL_INLINE Wide wide_fma(Wide a, Wide b, Wide c) {
#if defined(__ARM_FEATURE_FMA)
  Wide r;
  for (int i = 0; i < 4; ++i) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return r;
#else
  return a * b + c;
#endif
}
#endif
constexpr int kWide = sizeof(Wide) / sizeof(float);

// What a 4-byte element is: one fp32 number, or two BF16 numbers that are summed together.
struct Floats {
  static constexpr std::int64_t kNumbers = 1;
  static constexpr bool kDense = true;  // rows of a tile's block lie one after the other
  static __attribute__((always_inline)) Wide dot(Wide sum, Wide a, Wide b) { return wide_fma(a, b, sum); }
};
#if FOVEAL_BF16
struct Pairs {
  static constexpr std::int64_t kNumbers = 2;
  static constexpr bool kDense = false;
  static __attribute__((always_inline)) Wide dot(Wide sum, Wide a, Wide b) { return dot_bf16(sum, (H)a, (H)b); }
};
#endif

// ---------------------------------------------------------------- logits

// A tile of rows, ready to be multiplied. Element i of row r of block b: key[r] + b * key_stride + 4 * i. Elements of
// weighted sums: step s (a row, or two with Pairs) of block b: value + b * value_stride + s * kBlockBytes.
struct Tile {
  const std::uint8_t* key[kTileRows];
  std::int64_t key_stride;
  const std::uint8_t* value;
  std::int64_t value_stride;
};

// Logits of R rows x N vectors of lanes, over `steps` elements; they are added to what is there unless `fresh`.
template <class Kind, int R, int N>
FOVEAL_INLINE void logits_patch(const std::uint8_t* const* key, std::int64_t offset, std::int64_t steps,
                                const std::uint32_t* query, std::int64_t lanes, bool fresh, float* logits) {
  Wide sum[R][N];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < N; ++v) sum[r][v] = fresh ? Wide{} : load_as<Wide>(logits + r * lanes + v * kWide);
  const std::uint8_t* at[R];
  for (int r = 0; r < R; ++r) at[r] = Kind::kDense ? key[0] + offset + r * kBlockBytes : key[r] + offset;
  for (std::int64_t i = 0; i < steps; ++i) {
    Wide q[N];
    for (int v = 0; v < N; ++v) q[v] = load_as<Wide>(query + i * lanes + v * kWide);
    for (int r = 0; r < R; ++r) {
      const Wide x = repeat(at[r] + 4 * i);
      for (int v = 0; v < N; ++v) sum[r][v] = Kind::dot(sum[r][v], q[v], x);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < N; ++v) std::memcpy(logits + r * lanes + v * kWide, &sum[r][v], sizeof(Wide));
}

template <class Kind, int R, int N>
FOVEAL_INLINE void logits_rows(const Tile& tile, std::int64_t first, std::int64_t last, std::int64_t offset,
                               std::int64_t steps, const std::uint32_t* query, std::int64_t lanes, bool fresh,
                               float* logits) {
  for (std::int64_t r = first; r < last; r += R)
    logits_patch<Kind, R, N>(tile.key + r, offset, steps, query, lanes, fresh, logits + r * lanes);
}

// logits[r, lane] (+)= key r . query lane for rows [first, last), both multiples of kGroup, and vectors of 16 lanes
// that cover `count` of them. `query` [elements, lanes] holds `elements` 4-byte elements of each lane.
template <class Kind>
void add_logits(const Tile& tile, std::int64_t first, std::int64_t last, std::int64_t elements,
                const std::uint32_t* query, std::int64_t lanes, std::int64_t count, bool fresh, float* logits) {
  const std::int64_t vectors = shares(count, kLanes) * (kLanes / kWide);
  for (std::int64_t block = 0; block * kBlock < elements; ++block) {
    const std::int64_t steps = least(kBlock, elements - block * kBlock), offset = block * tile.key_stride;
    const std::uint32_t* q = query + block * kBlock * lanes;
    const bool start = fresh && block == 0;
    std::int64_t v = 0;
    const auto at = [&](std::int64_t vector) { return vector * kWide; };
#if FOVEAL_AVX512
    for (; v + 4 <= vectors; v += 4)
      logits_rows<Kind, 4, 4>(tile, first, last, offset, steps, q + at(v), lanes, start, logits + at(v));
    for (; v + 2 <= vectors; v += 2)
      logits_rows<Kind, 8, 2>(tile, first, last, offset, steps, q + at(v), lanes, start, logits + at(v));
    for (; v < vectors; ++v)
      logits_rows<Kind, 16, 1>(tile, first, last, offset, steps, q + at(v), lanes, start, logits + at(v));
#else
    for (; v + 2 <= vectors; v += 2)
      logits_rows<Kind, 4, 2>(tile, first, last, offset, steps, q + at(v), lanes, start, logits + at(v));
#endif
  }
}

#if FOVEAL_AVX512
// The sums of 16 vectors, in order: halves and pairs of quarters of a lane group, then groups 0 + 1 and 2 + 3.
FOVEAL_INLINE F sums_of(const F (&x)[16]) {
  __m512 pairs[8], fours[4], eights[2];
  for (int i = 0; i < 8; ++i) {
    const auto a = (__m512)x[2 * i], b = (__m512)x[2 * i + 1];
    pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
    fours[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  for (int i = 0; i < 2; ++i)
    eights[i] = _mm512_add_ps(_mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0x88),
                              _mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0xdd));
  return (F)_mm512_add_ps(_mm512_shuffle_f32x4(eights[0], eights[1], 0x88),
                          _mm512_shuffle_f32x4(eights[0], eights[1], 0xdd));
}

// As `add_logits`, with vectors across the channels: for heads too few to fill a vector. `query` [lanes, padded], zeros
// behind `elements`, with rows up to a multiple of 4 behind the last lane.
template <class Kind>
void add_logits_few(const Tile& tile, std::int64_t first, std::int64_t last, std::int64_t elements,
                    const std::uint32_t* query, std::int64_t padded, std::int64_t lanes, std::int64_t count, bool fresh,
                    float* logits) {
  for (std::int64_t r = first; r < last; r += 4)
    for (std::int64_t lane = 0; lane < count; lane += 4) {
      F sum[16] = {};
      const std::uint32_t* q = query + lane * padded;
      const auto step = [&](std::int64_t at, const F (&x)[4]) __attribute__((always_inline)) {
        for (int l = 0; l < 4; ++l) {
          const F y = load_as<F>(q + l * padded + at);
          for (int i = 0; i < 4; ++i) sum[4 * i + l] = Kind::dot(sum[4 * i + l], y, x[i]);
        }
      };
      for (std::int64_t block = 0; block * kBlock < elements; ++block) {
        const std::int64_t start = block * kBlock, steps = least(kBlock, elements - start);
        const std::uint8_t* key[4];
        for (int i = 0; i < 4; ++i) key[i] = tile.key[r + i] + block * tile.key_stride;
        std::int64_t at = 0;
        for (; at + kLanes <= steps; at += kLanes) {
          F x[4];
          for (int i = 0; i < 4; ++i) x[i] = load_as<F>(key[i] + 4 * at);
          step(start + at, x);
        }
        if (at < steps) {
          F x[4];
          for (int i = 0; i < 4; ++i) x[i] = (F)load_bytes(key[i] + 4 * at, 4 * (steps - at));
          step(start + at, x);
        }
      }
      const F all = sums_of(sum);
      for (int i = 0; i < 4; ++i) {
        float* to = logits + (r + i) * lanes + lane;
        const __m128 part = load_as<__m128>(reinterpret_cast<const float*>(&all) + 4 * i);
        _mm_storeu_ps(to, fresh ? part : _mm_add_ps(_mm_loadu_ps(to), part));
      }
    }
}
#endif

// ---------------------------------------------------------------- weighted sums

// M lanes x N vectors of channels: sum = sum * scale + weights . values.
template <class Kind, int M, int N>
FOVEAL_INLINE void sums_patch(const std::uint32_t* weights, std::int64_t lanes, std::int64_t first, std::int64_t last,
                              const std::uint8_t* value, const float* scale, float* sums) {
  Wide sum[M][N];
  for (int m = 0; m < M; ++m) {
    const Wide factor = repeat(scale + m);
    for (int v = 0; v < N; ++v) sum[m][v] = load_as<Wide>(sums + m * kBlock + v * kWide) * factor;
  }
  for (std::int64_t s = first; s < last; ++s) {
    Wide x[N];
    for (int v = 0; v < N; ++v) x[v] = load_as<Wide>(value + s * kBlockBytes + v * sizeof(Wide));
    for (int m = 0; m < M; ++m) {
      const Wide weight = repeat(weights + s * lanes + m);
      for (int v = 0; v < N; ++v) sum[m][v] = Kind::dot(sum[m][v], weight, x[v]);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < N; ++v) std::memcpy(sums + m * kBlock + v * kWide, &sum[m][v], sizeof(Wide));
}

template <class Kind, int M>
FOVEAL_INLINE void sums_lanes(const std::uint32_t* weights, std::int64_t lanes, std::int64_t first, std::int64_t last,
                              const std::uint8_t* value, std::int64_t vectors, const float* scale, float* sums) {
  std::int64_t v = 0;
  for (; v + 4 <= vectors; v += 4)
    sums_patch<Kind, M, 4>(weights, lanes, first, last, value + v * sizeof(Wide), scale, sums + v * kWide);
  for (; v < vectors; ++v)
    sums_patch<Kind, M, 1>(weights, lanes, first, last, value + v * sizeof(Wide), scale, sums + v * kWide);
}

#if FOVEAL_AVX512
constexpr int kSumLanes = 4;
#else
constexpr int kSumLanes = 2;
#endif

// sums[block, lane, 64] = sums * scale[lane] + sum over rows [first, last) of weight * value, for `count` lanes and the
// blocks that hold `width` channels. `weights` [kTileRows / Kind::kNumbers, lanes]; block b of the sums is at b *
// stride.
template <class Kind>
void add_sums(const Tile& tile, std::int64_t first, std::int64_t last, std::int64_t width, const std::uint32_t* weights,
              std::int64_t lanes, std::int64_t count, const float* scale, float* sums, std::int64_t stride) {
  const std::int64_t from = first / Kind::kNumbers, to = last / Kind::kNumbers;
  for (std::int64_t block = 0; block * kBlock < width; ++block) {
    const std::int64_t vectors = shares(least(kBlock, width - block * kBlock), kWide);
    const std::uint8_t* value = tile.value + block * tile.value_stride;
    float* out = sums + block * stride;
    std::int64_t m = 0;
    for (; m + kSumLanes <= count; m += kSumLanes)
      sums_lanes<Kind, kSumLanes>(weights + m, lanes, from, to, value, vectors, scale + m, out + m * kBlock);
    for (; m < count; ++m)
      sums_lanes<Kind, 1>(weights + m, lanes, from, to, value, vectors, scale + m, out + m * kBlock);
  }
}

}  // namespace
}  // namespace foveal::FOVEAL_ISA
