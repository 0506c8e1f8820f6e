// Scores of 64 keys at a time, out of their pack.
//
// An FP4 dot product is one integer sum. A query times a power of two is integers up to 48 in magnitude; a key likewise
// up to 96, as long as the scales of its blocks are at most a factor of 8 apart, which the Hadamard rotation makes the
// rule. So scales meet the sum once a head (in its weight) and once a key, and every number up to there is exact. Where
// a query or a page is not like that, the same sum is made in fp32, and wherever both ways apply they give the same
// bits: a score depends on its query and its key alone.
//
// The order of all other sums is fixed as well: channels ascending, then heads ascending.
#pragma once

#include "indexer_ops.h"

namespace foveal::FOVEAL_ISA {
namespace {

#if FOVEAL_AVX512
constexpr int kHeadTile = 4;  // 16 sums, 4 key vectors and a query number fill two thirds of the 32 registers
constexpr bool kPacked = true;
#else
constexpr int kHeadTile = 1;
constexpr bool kPacked = false;  // too few registers to score keys as they are unpacked
#endif
constexpr int kGroups = static_cast<int>(kPackGroups);

constexpr int kQueryPeak = 48;  // of an integer query
constexpr int kKeyBias = 96;    // what makes an integer key unsigned
constexpr int kSpread = 3;      // largest difference of exponents inside an integer key
constexpr std::int64_t kWidestExact = 3640;  // channels up to which an integer dot product is exact in fp32

// One page as dot products want it.
struct Operand {
  const std::uint8_t* keys;  // [steps, 4, 64 bytes]
  F scale[kGroups];          // of each key, kFP4
  bool exact;                // integer keys (kFP4)
};

// One token's query. kFP4: bytes [heads, 4 * steps] and `bias` [heads], `weights` times the heads' scales, unless not
// `exact`. kBF16: [heads, steps] pairs, and the same again of what the first left over (`low`, null: one term). kF32: floats.
struct Query {
  const std::uint8_t* numbers;
  const std::uint8_t* low;
  const std::int32_t* bias;
  const float* weights;
  const float* plain;          // [heads, width], as given
  const float* plain_weights;  // [heads], as given
  bool exact;
};

// NaN stays.
FOVEAL_INLINE F relu(F v) { return max(zero(), v); }

// ---------------------------------------------------------------- relu of the dot products of N heads with 64 keys

// The sums of N heads with 64 keys: their start, and one step of them.
template <int N>
FOVEAL_INLINE void start(const Query& query, std::int64_t head, I (&acc)[N][kGroups]) {
  for (int h = 0; h < N; ++h)
    for (int g = 0; g < kGroups; ++g) acc[h][g] = splat_int(query.bias[head + h]);
}
template <int N>
FOVEAL_INLINE void add_step(const B (&key)[kGroups], const std::uint8_t* numbers, std::int64_t steps, std::int64_t step,
                            I (&acc)[N][kGroups]) {
  for (int h = 0; h < N; ++h) {
    const B q = (B)splat_int(load_as<std::int32_t>(numbers + (h * steps + step) * 4));
    for (int g = 0; g < kGroups; ++g) acc[h][g] = dot_int8(acc[h][g], key[g], q);
  }
}
// The compiler makes a comparison and a blend of this, which compete with the products for their place in the machine.
FOVEAL_INLINE F relu_float(I v) {
#if FOVEAL_AVX512
  return to_float((I)_mm512_max_epi32((__m512i)v, __m512i{}));
#else
  return to_float(select(v > 0, v, I{}));
#endif
}

#if FOVEAL_AVX2
// In half vectors, which this machine has: products of bytes in pairs fit 16 bits (2 * 192 * 48 < 32768).
struct Integers {
  template <int N>
  FOVEAL_INLINE void dots(const std::uint8_t* keys, std::int64_t steps, const Query& query, std::int64_t head,
                          F (&out)[N][kGroups]) {
    static_assert(N == 1);
    const __m256i ones = _mm256_set1_epi16(1);
    const std::uint8_t* numbers = query.numbers + head * 4 * steps;
    __m256i acc[2 * kGroups];
    for (__m256i& sum : acc) sum = _mm256_set1_epi32(query.bias[head]);
    for (std::int64_t s = 0; s < steps; ++s) {
      const __m256i q = _mm256_set1_epi32(load_as<std::int32_t>(numbers + s * 4));
      for (int i = 0; i < 2 * kGroups; ++i) {
        const __m256i key = _mm256_loadu_si256((const __m256i*)(keys + s * kStepBytes) + i);
        acc[i] = _mm256_add_epi32(acc[i], _mm256_madd_epi16(_mm256_maddubs_epi16(key, q), ones));
      }
    }
    __m256 sums[2 * kGroups];
    for (int i = 0; i < 2 * kGroups; ++i)
      sums[i] = _mm256_cvtepi32_ps(_mm256_max_epi32(acc[i], _mm256_setzero_si256()));
    std::memcpy(&out[0], sums, sizeof sums);
  }
};
#else
struct Integers {
  template <int N>
  FOVEAL_INLINE void dots(const std::uint8_t* keys, std::int64_t steps, const Query& query, std::int64_t head,
                          F (&out)[N][kGroups]) {
    I acc[N][kGroups];
    start(query, head, acc);
    const std::uint8_t* numbers = query.numbers + head * 4 * steps;
    for (std::int64_t s = 0; s < steps; ++s) {
      B key[kGroups];
      for (int g = 0; g < kGroups; ++g) key[g] = load_as<B>(keys + s * kStepBytes + g * 64);
      add_step(key, numbers, steps, s, acc);
    }
    for (int h = 0; h < N; ++h)
      for (int g = 0; g < kGroups; ++g) out[h][g] = relu_float(acc[h][g]);
  }
};
#endif

struct Pairs {
  template <int N>
  FOVEAL_INLINE void dots(const std::uint8_t* keys, std::int64_t steps, const Query& query, std::int64_t head,
                          F (&out)[N][kGroups]) {
    const std::uint8_t* numbers = query.numbers + head * 4 * steps;
    const std::uint8_t* low = query.low != nullptr ? query.low + head * 4 * steps : nullptr;
    for (int h = 0; h < N; ++h)
      for (int g = 0; g < kGroups; ++g) out[h][g] = zero();
    for (std::int64_t s = 0; s < steps; ++s) {
      H key[kGroups];
      for (int g = 0; g < kGroups; ++g) key[g] = load_as<H>(keys + s * kStepBytes + g * 64);
      for (int h = 0; h < N; ++h) {
        const std::int64_t at = (h * steps + s) * 4;
        if (low != nullptr) {
          const auto q = (H)splat_int(load_as<std::int32_t>(low + at));
          for (int g = 0; g < kGroups; ++g) out[h][g] = dot_bf16(out[h][g], key[g], q);
        }
        const auto q = (H)splat_int(load_as<std::int32_t>(numbers + at));
        for (int g = 0; g < kGroups; ++g) out[h][g] = dot_bf16(out[h][g], key[g], q);
      }
    }
    for (int h = 0; h < N; ++h)
      for (int g = 0; g < kGroups; ++g) out[h][g] = relu(out[h][g]);
  }
};

struct Floats {
  template <int N>
  FOVEAL_INLINE void dots(const std::uint8_t* keys, std::int64_t steps, const Query& query, std::int64_t head,
                          F (&out)[N][kGroups]) {
    const float* numbers = query.plain + head * steps;
    for (int h = 0; h < N; ++h)
      for (int g = 0; g < kGroups; ++g) out[h][g] = zero();
    for (std::int64_t s = 0; s < steps; ++s) {
      F key[kGroups];
      for (int g = 0; g < kGroups; ++g) key[g] = load_as<F>(keys + s * kStepBytes + g * 64);
      for (int h = 0; h < N; ++h) {
        const F q = splat(numbers[h * steps + s]);
        for (int g = 0; g < kGroups; ++g) out[h][g] = fma(key[g], q, out[h][g]);
      }
    }
    for (int h = 0; h < N; ++h)
      for (int g = 0; g < kGroups; ++g) out[h][g] = relu(out[h][g]);
  }
};

template <class Kind, int N>
FOVEAL_INLINE void add_heads(const std::uint8_t* keys, std::int64_t steps, const Query& query, const float* weights,
                             std::int64_t head, F (&score)[kGroups]) {
  F dots[N][kGroups];
  Kind::template dots<N>(keys, steps, query, head, dots);
  for (int h = 0; h < N; ++h) {
    const F weight = splat(weights[head + h]);
    for (int g = 0; g < kGroups; ++g) score[g] = fma(weight, dots[h][g], score[g]);
  }
}

template <class Kind>
FOVEAL_INLINE void score_page(const std::uint8_t* keys, std::int64_t steps, const Query& query, const float* weights,
                std::int64_t heads, F (&score)[kGroups]) {
  F sum[kGroups] = {};  // a local: the compiler keeps it in registers
  std::int64_t head = 0;
  for (; head + kHeadTile <= heads; head += kHeadTile)
    add_heads<Kind, kHeadTile>(keys, steps, query, weights, head, sum);
  for (; head < heads; ++head) add_heads<Kind, 1>(keys, steps, query, weights, head, sum);
  for (int g = 0; g < kGroups; ++g) score[g] = sum[g];
}

// ---------------------------------------------------------------- FP4 pages

// Twice the value of each code, and half of what an E8M0 byte means.
constexpr std::int8_t kTwice[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

FOVEAL_INLINE float half_scale(std::uint8_t e8m0) {
  if (e8m0 == 255) return __builtin_nanf("");
  const std::uint32_t bits = e8m0 >= 2 ? static_cast<std::uint32_t>(e8m0 - 1) << 23 : 0x00400000u >> (1 - e8m0);
  return load_as<float>(&bits);
}

// The least E8M0 byte of each key's blocks; false when a page is not one of integer keys.
FOVEAL_INLINE bool least_scales(const std::uint8_t* pack, std::int64_t blocks, B* least) {
  B low = load_as<B>(pack), high = low;
  for (std::int64_t b = 1; b < blocks; ++b) {
    const B scale = load_as<B>(pack + b * kPackKeys);
    low = select(low < scale, low, scale);
    high = select(high > scale, high, scale);
  }
  *least = low;
  const B ones = (B)(high - low > kSpread) | (B)(low < 8) | (B)(high > 246);
#if FOVEAL_AVX512
  return _mm512_test_epi8_mask((__m512i)ones, (__m512i)ones) == 0;
#else
  std::uint64_t words[8], any = 0;
  std::memcpy(words, &ones, sizeof words);
  for (const std::uint64_t word : words) any |= word;
  return any == 0;
#endif
}

FOVEAL_INLINE F key_scale(const B& least, int group) {
#if FOVEAL_AVX512
  const __m512i lanes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)&least + group));
  return (F)_mm512_slli_epi32(lanes, 23);
#elif FOVEAL_AVX2
  const __m128i bytes = _mm_loadu_si128((const __m128i*)&least + group);
  const __m256i lanes[2] = {_mm256_slli_epi32(_mm256_cvtepu8_epi32(bytes), 23),
                            _mm256_slli_epi32(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)), 23)};
  return load_as<F>(lanes);
#else
  return from_bits(widen_lanes<U>((const std::uint8_t*)&least + group * kLanes) << 23);
#endif
}

#if FOVEAL_AVX512
// Entry 16 * d + code: the code's integer value times 2^d, plus the bias.
struct Table {
  alignas(64) std::uint8_t entries[64];
};
constexpr Table make_table() {
  Table table{};
  for (int d = 0; d <= kSpread; ++d)
    for (int code = 0; code < 16; ++code)
      table.entries[16 * d + code] = static_cast<std::uint8_t>(kKeyBias + kTwice[code] * (1 << d));
  return table;
}
constexpr Table kTable = make_table();

// Only the low six bits of an index count, so what lies above the code and the shift need not be cleared.
FOVEAL_INLINE void unpack_pair(const std::uint8_t* from, const B (&shift)[kGroups], std::uint8_t* to) {
  const __m512i table = _mm512_load_si512(kTable.entries), nibble = _mm512_set1_epi8(15);
  for (int g = 0; g < kGroups; ++g) {
    const __m512i raw = _mm512_loadu_si512(from + g * 64), d = (__m512i)shift[g];
    const __m512i low = _mm512_ternarylogic_epi32(raw, nibble, d, 0xea);  // (a & b) | c
    const __m512i high = _mm512_ternarylogic_epi32(_mm512_srli_epi32(raw, 4), nibble, d, 0xea);
    _mm512_store_si512(to + g * 64, _mm512_permutexvar_epi8(low, table));
    _mm512_store_si512(to + kStepBytes + g * 64, _mm512_permutexvar_epi8(high, table));
  }
}
// The differences of 16 keys where a table index has them, each four times.
FOVEAL_INLINE B shift_of(const B& difference, int group) {
  const __m512i lanes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)&difference + group));
  return (B)_mm512_mullo_epi32(lanes, _mm512_set1_epi32(0x10101010));
}

// For one token with one tile of heads: keys go from the pack through registers into the sums, bit for bit as by way of
// memory. False (and nothing) when the page has other keys than integers.
template <int N>
FOVEAL_INLINE bool score_packed(const PackLayout& layout, const std::uint8_t* pack, const Query& query,
                                F (&score)[kGroups]) {
  B least;
  if (!least_scales(pack, layout.blocks, &least)) return false;
  const __m512i table = _mm512_load_si512(kTable.entries), nibble = _mm512_set1_epi8(15);
  I acc[N][kGroups];
  start(query, 0, acc);
  for (std::int64_t block = 0; block < layout.blocks; ++block) {
    const B difference = load_as<B>(pack + block * kPackKeys) - least;
    __m512i shift[kGroups];
    for (int g = 0; g < kGroups; ++g) shift[g] = (__m512i)shift_of(difference, g);
    const std::int64_t end = 4 * block + 4 < layout.pairs ? 4 * block + 4 : layout.pairs;
    for (std::int64_t pair = 4 * block; pair < end; ++pair) {
      B low[kGroups], high[kGroups];
      for (int g = 0; g < kGroups; ++g) {
        const __m512i raw = _mm512_loadu_si512(pack + layout.codes + pair * kStepBytes + g * 64);
        const __m512i even = _mm512_ternarylogic_epi32(raw, nibble, shift[g], 0xea);
        const __m512i odd = _mm512_ternarylogic_epi32(_mm512_srli_epi32(raw, 4), nibble, shift[g], 0xea);
        low[g] = (B)_mm512_permutexvar_epi8(even, table);
        high[g] = (B)_mm512_permutexvar_epi8(odd, table);
      }
      add_step(low, query.numbers, layout.steps, 2 * pair, acc);
      add_step(high, query.numbers, layout.steps, 2 * pair + 1, acc);
    }
  }
  F sum[kGroups] = {};
  for (int h = 0; h < N; ++h) {
    const F weight = splat(query.weights[h]);
    for (int g = 0; g < kGroups; ++g) sum[g] = fma(weight, relu_float(acc[h][g]), sum[g]);
  }
  for (int g = 0; g < kGroups; ++g) score[g] = sum[g] * key_scale(least, g);
  return true;
}
#else
// Values shifted as numbers from 0 to 24, then given their bias: nothing crosses from one byte into the next.
#if FOVEAL_AVX2
FOVEAL_INLINE void unpack_half(const std::uint8_t* from, __m256i shift, std::uint8_t* to) {
  const __m256i table =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
  const __m256i nibble = _mm256_set1_epi8(15), raw = _mm256_loadu_si256((const __m256i*)from);
  const __m256i zero_at = _mm256_sllv_epi32(_mm256_set1_epi32(0x0c0c0c0c), shift);
  const __m256i bias = _mm256_sub_epi8(_mm256_set1_epi8(kKeyBias), zero_at);
  const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(raw, nibble));
  const __m256i high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi32(raw, 4), nibble));
  _mm256_storeu_si256((__m256i*)to, _mm256_add_epi8(_mm256_sllv_epi32(low, shift), bias));
  _mm256_storeu_si256((__m256i*)(to + kStepBytes), _mm256_add_epi8(_mm256_sllv_epi32(high, shift), bias));
}
FOVEAL_INLINE void unpack_pair(const std::uint8_t* from, const B (&shift)[kGroups], std::uint8_t* to) {
  __m256i by[2 * kGroups];
  std::memcpy(by, shift, sizeof by);
  for (int i = 0; i < 2 * kGroups; ++i) unpack_half(from + i * 32, by[i], to + i * 32);
}
FOVEAL_INLINE B shift_of(const B& difference, int group) {
  const __m128i bytes = _mm_loadu_si128((const __m128i*)&difference + group);
  const __m256i lanes[2] = {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
  return load_as<B>(lanes);
}
#else
FOVEAL_INLINE void unpack_pair(const std::uint8_t* from, const B (&shift)[kGroups], std::uint8_t* to) {
  for (int g = 0; g < kGroups; ++g)
    for (int i = 0; i < 64; ++i) {
      const int code = from[g * 64 + i], by = shift[g][i & ~3];
      to[g * 64 + i] = static_cast<std::uint8_t>(kKeyBias + kTwice[code & 15] * (1 << by));
      to[kStepBytes + g * 64 + i] = static_cast<std::uint8_t>(kKeyBias + kTwice[code >> 4] * (1 << by));
    }
}
FOVEAL_INLINE B shift_of(const B& difference, int group) {
  return (B)widen_lanes<U>((const std::uint8_t*)&difference + group * kLanes);
}
#endif
template <int N>
FOVEAL_INLINE bool score_packed(const PackLayout&, const std::uint8_t*, const Query&, F (&)[kGroups]) {
  return false;
}
#endif

// Integer keys of a page into `to` [steps, 4, 64]; false (and nothing) when the page has others.
bool unpack_integers(const PackLayout& layout, const std::uint8_t* pack, std::uint8_t* to, F (&scale)[kGroups]) {
  B least;
  if (!least_scales(pack, layout.blocks, &least)) return false;
  for (int g = 0; g < kGroups; ++g) scale[g] = key_scale(least, g);
  for (std::int64_t pair = 0; pair < layout.pairs; pair += 4) {
    const B difference = load_as<B>(pack + pair / 4 * kPackKeys) - least;
    B shift[kGroups];
    for (int g = 0; g < kGroups; ++g) shift[g] = shift_of(difference, g);
    const std::int64_t end = pair + 4 < layout.pairs ? pair + 4 : layout.pairs;
    for (std::int64_t p = pair; p < end; ++p)
      unpack_pair(pack + layout.codes + p * kStepBytes, shift, to + 2 * p * kStepBytes);
  }
  return true;
}

// The page as floats [width, 64], whatever its scales.
void unpack_floats(const PackLayout& layout, const std::uint8_t* pack, float* to) {
  for (std::int64_t c = 0; c < layout.width; ++c) {
    const std::uint8_t* codes = pack + layout.codes + c / 8 * kStepBytes + c % 4;
    const std::uint8_t* scales = pack + c / kPackBlock * kPackKeys;
    const int shift = c % 8 < 4 ? 0 : 4;
    for (std::int64_t key = 0; key < kPackKeys; ++key)
      to[c * kPackKeys + key] = static_cast<float>(kTwice[(codes[4 * key] >> shift) & 15]) * half_scale(scales[key]);
  }
}

}  // namespace
}  // namespace foveal::FOVEAL_ISA
