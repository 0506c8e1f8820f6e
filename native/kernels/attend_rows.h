// Rows of the cache made ready for a tile: decoded where they must be, and laid out for the weighted sums.
//
// BF16 rows are multiplied with the queries where they lie in the cache; only the weighted sums get a copy, in which
// the numbers of two rows alternate. Machines without BF16 dot products work on fp32 copies.
#pragma once

#include "attend_tile.h"

namespace foveal::FOVEAL_ISA {
namespace {

// Memory for one tile, taken once for a task.
struct TileMemory {
  std::uint8_t* decoded;  // BF16 rows that cannot be used in place
  std::uint8_t* values;
  std::uint8_t* zeros;    // one row of zeros
};

struct RowShape {
  Codec codec;
  std::int64_t width;
  std::int64_t rotary;
};

// ---------------------------------------------------------------- FP8

// What an E8M0 byte means.
FOVEAL_INLINE float scale_of(std::uint8_t e8m0) {
  if (e8m0 == 255) return __builtin_nanf("");
  const std::uint32_t bits = e8m0 > 0 ? static_cast<std::uint32_t>(e8m0) << 23 : 0x00400000u;
  return load_as<float>(&bits);
}

// 16 E4M3 codes, exactly.
FOVEAL_INLINE F decode_e4m3(const std::uint8_t* from, std::int64_t count) {
  std::uint8_t codes[kLanes] = {};
  if (count < kLanes) std::memcpy(codes, from, static_cast<std::size_t>(count));
  const U code = widen_lanes<U>(count < kLanes ? codes : from);
  const F magnitude = from_bits((code & 0x7fu) << 20) * splat(0x1p120f);
  const U bits = as_bits(magnitude) | (code & 0x80u) << 24;
  return from_bits(select((code & 0x7fu) == 0x7fu, bits | 0x7fc00000u, bits));
}

#if FOVEAL_AVX512
struct Bytes128 {
  alignas(64) std::uint8_t low[128], high[128];
};
// The BF16 number of each E4M3 magnitude.
constexpr Bytes128 make_e4m3() {
  Bytes128 table{};
  for (int code = 1; code < 128; ++code) {
    int exponent = code >> 3, mantissa = code & 7;
    if (exponent == 0) {
      exponent = 1;
      while (mantissa < 8) {
        mantissa <<= 1;
        --exponent;
      }
    } else {
      mantissa += 8;
    }
    const int bits = (exponent - 7 + 127) << 7 | (mantissa - 8) << 4;
    table.low[code] = static_cast<std::uint8_t>(bits & 255);
    table.high[code] = static_cast<std::uint8_t>(bits >> 8);
  }
  return table;
}
constexpr Bytes128 kE4M3 = make_e4m3();

// 1 to 64 codes times a power of two as BF16, 32 in each vector; false (and nothing) where a code or the scale is out of
// the ordinary.
FOVEAL_INLINE bool decode_codes(const std::uint8_t* from, std::int64_t count, std::uint8_t e8m0, __m512i* to) {
  if (e8m0 < 27 || e8m0 > 227) return false;
  const auto raw = (__m512i)load_bytes(from, count);
  const __m512i seven = _mm512_set1_epi8(0x7f);
  if (_mm512_cmpeq_epi8_mask(_mm512_and_si512(raw, seven), seven) != 0) return false;
  const __m512i code = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), raw);
  const auto look_up = [&](const std::uint8_t* table) __attribute__((always_inline)) {
    return _mm512_permutex2var_epi8(_mm512_load_si512(table), code, _mm512_load_si512(table + 64));
  };
  const __m512i low = look_up(kE4M3.low), plain = look_up(kE4M3.high);
  const __m512i high = _mm512_ternarylogic_epi32(code, _mm512_set1_epi8(-128), plain, 0xea);  // (a & b) | c
  const __m512i power = _mm512_set1_epi16(static_cast<short>((e8m0 - 127) * 128));
  const __m512i magnitude = _mm512_set1_epi16(0x7fff);
  const __m512i first = _mm512_unpacklo_epi8(low, high), second = _mm512_unpackhi_epi8(low, high);
  to[0] = _mm512_mask_add_epi16(first, _mm512_test_epi16_mask(first, magnitude), first, power);
  to[1] = _mm512_mask_add_epi16(second, _mm512_test_epi16_mask(second, magnitude), second, power);
  return true;
}

FOVEAL_INLINE bool decode_block(const std::uint8_t* from, std::int64_t count, std::uint8_t e8m0, std::uint16_t* to) {
  __m512i pairs[2];
  if (!decode_codes(from, count, e8m0, pairs)) return false;
  const __mmask64 there = count >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << count) - 1;
  _mm512_mask_storeu_epi16(to, static_cast<__mmask32>(there), pairs[0]);
  _mm512_mask_storeu_epi16(to + 32, static_cast<__mmask32>(there >> 32), pairs[1]);
  return true;
}
#endif

// One KV row as BF16 numbers [width], exactly (numbers too small for BF16's exponents are rounded).
FOVEAL_INLINE void decode_kv(const std::uint8_t* from, const RowShape& shape, std::uint16_t* to) {
  const std::int64_t plain = shape.width - shape.rotary;
  const std::uint8_t* scales = from + plain + 2 * shape.rotary;
  for (std::int64_t c = 0; c < plain; c += 64) {
    const std::int64_t count = least(64, plain - c);
#if FOVEAL_AVX512
    if (decode_block(from + c, count, scales[c / 64], to + c)) continue;
#endif
    const F scale = splat(scale_of(scales[c / 64]));
    for (std::int64_t i = 0; i < count; i += kLanes) {
      std::uint16_t numbers[kLanes];
      store_narrow(numbers, decode_e4m3(from + c + i, least(kLanes, count - i)) * scale);
      std::memcpy(to + c + i, numbers, static_cast<std::size_t>(2 * least(kLanes, count - i)));
    }
  }
  std::memcpy(to + plain, from + plain, static_cast<std::size_t>(2 * shape.rotary));
}

// ---------------------------------------------------------------- fp32 tiles

// Channels [c, c + count) of a row as fp32.
FOVEAL_INLINE F widen_part(const std::uint16_t* from, std::int64_t count) {
  if (count == kLanes) return widen(from);
  std::uint16_t part[kLanes] = {};
  std::memcpy(part, from, static_cast<std::size_t>(2 * count));
  return widen(part);
}

#if FOVEAL_AVX512
// As `spread_floats`, for FP8 rows whose parts are whole vectors, without a detour through memory; false (and rubbish) where
// `decode_codes` says so.
FOVEAL_INLINE bool spread_kv(const std::uint8_t* from, const RowShape& shape, std::int64_t at, float* to) {
  const std::int64_t plain = shape.width - shape.rotary;
  if (plain % kLanes != 0 || shape.rotary % kLanes != 0) return false;
  const auto put = [&](std::int64_t c, __m256i numbers) __attribute__((always_inline)) {
    const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(numbers), 16);
    _mm512_storeu_si512(to + (c / kBlock * kTileRows + at) * kBlock + c % kBlock, wide);
  };
  const std::uint8_t* scales = from + plain + 2 * shape.rotary;
  for (std::int64_t c = 0; c < plain; c += 64) {
    const std::int64_t count = least(64, plain - c);
    __m512i pairs[2];
    if (!decode_codes(from + c, count, scales[c / 64], pairs)) return false;
    put(c, _mm512_castsi512_si256(pairs[0]));
    if (count > 16) put(c + 16, _mm512_extracti64x4_epi64(pairs[0], 1));
    if (count > 32) put(c + 32, _mm512_castsi512_si256(pairs[1]));
    if (count > 48) put(c + 48, _mm512_extracti64x4_epi64(pairs[1], 1));
  }
  for (std::int64_t c = plain; c < shape.width; c += kLanes)
    put(c, _mm256_loadu_si256((const __m256i*)(from + plain + 2 * (c - plain))));
  for (std::int64_t c = shape.width; c < round_up(shape.width, kBlock); c += kLanes) put(c, __m256i{});
  return true;
}
#endif

// A row into blocks [width / 64 rounded up][kTileRows][64] at row `at`; channels from `width` on are 0.
FOVEAL_INLINE void spread_floats(const std::uint8_t* from, const RowShape& shape, std::uint16_t* decoded,
                                 std::int64_t at, float* to) {
  const std::int64_t padded = round_up(shape.width, kBlock);
  const bool plain = shape.codec == Codec::kF32;
#if FOVEAL_AVX512
  if (shape.codec == Codec::kKvFP8 && from != nullptr && spread_kv(from, shape, at, to)) return;
#endif
  if (shape.codec == Codec::kKvFP8 && from != nullptr) {
    decode_kv(from, shape, decoded);
    from = reinterpret_cast<const std::uint8_t*>(decoded);
  }
  for (std::int64_t c = 0; c < padded; c += kLanes) {
    const std::int64_t count = from == nullptr ? 0 : most(0, least(kLanes, shape.width - c));
    F x = zero();
    if (count > 0 && plain) x = load_some(reinterpret_cast<const float*>(from) + c, count);
    if (count > 0 && !plain) x = widen_part(reinterpret_cast<const std::uint16_t*>(from) + c, count);
    store(to + (c / kBlock * kTileRows + at) * kBlock + c % kBlock, x);
  }
}

void make_tile(Floats, const std::uint8_t* const* rows, std::int64_t first, std::int64_t last, const RowShape& shape,
               const TileMemory& memory, Tile& tile) {
  auto* values = reinterpret_cast<float*>(memory.values);
  auto* decoded = reinterpret_cast<std::uint16_t*>(memory.decoded);
  for (std::int64_t r = first; r < last; ++r) {
    spread_floats(rows[r], shape, decoded, r, values);
    tile.key[r] = memory.values + r * kBlockBytes;
  }
  tile.value = memory.values;
  tile.key_stride = tile.value_stride = kTileRows * kBlockBytes;
}

// ---------------------------------------------------------------- BF16 tiles

#if FOVEAL_BF16
// Rows a and b alternating, 64 channels of each, `count` of them there.
FOVEAL_INLINE void interleave(const std::uint16_t* a, const std::uint16_t* b, std::int64_t count, std::uint8_t* to) {
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,  //
                                       39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  for (std::int64_t half = 0; half < 2 && 32 * half < count; ++half) {
    const std::int64_t there = least(32, count - 32 * half);
    const auto x = (__m512i)load_bytes(a + 32 * half, 2 * there), y = (__m512i)load_bytes(b + 32 * half, 2 * there);
    _mm512_store_si512(to + 128 * half, _mm512_permutex2var_epi16(x, low, y));
    _mm512_store_si512(to + 128 * half + 64, _mm512_permutex2var_epi16(x, high, y));
  }
}

void make_tile(Pairs, const std::uint8_t* const* rows, std::int64_t first, std::int64_t last, const RowShape& shape,
               const TileMemory& memory, Tile& tile) {
  const std::int64_t row_bytes = 2 * round_up(shape.width, 2);
  for (std::int64_t r = first; r < last; ++r) {
    tile.key[r] = rows[r] == nullptr ? memory.zeros : rows[r];
    if (rows[r] == nullptr || (shape.codec == Codec::kBF16 && shape.width % 2 == 0)) continue;
    auto* to = reinterpret_cast<std::uint16_t*>(memory.decoded + r * row_bytes);
    if (shape.codec == Codec::kKvFP8)
      decode_kv(rows[r], shape, to);
    else
      std::memcpy(to, rows[r], static_cast<std::size_t>(2 * shape.width));
    if (shape.width % 2 != 0) to[shape.width] = 0;
    tile.key[r] = reinterpret_cast<const std::uint8_t*>(to);
  }
  tile.key_stride = kBlockBytes;
  tile.value = memory.values;
  tile.value_stride = kTileRows / 2 * kBlockBytes;
  for (std::int64_t r = first; r < last; r += 2) {
    const auto* a = reinterpret_cast<const std::uint16_t*>(tile.key[r]);
    const auto* b = reinterpret_cast<const std::uint16_t*>(tile.key[r + 1]);
    for (std::int64_t c = 0; c < shape.width; c += kBlock)
      interleave(a + c, b + c, least(kBlock, shape.width - c),
                 memory.values + c / kBlock * tile.value_stride + r / 2 * kBlockBytes);
  }
}
#endif

// Bytes that a tile of `width` channels takes at most.
FOVEAL_INLINE TileMemory take_tile(Arena& arena, std::int64_t width) {
  const std::int64_t blocks = shares(width, kBlock), row = 2 * round_up(width, 2);
  TileMemory memory{};
  memory.decoded = arena.take<std::uint8_t>(kTileRows * row);
  memory.values = arena.take<std::uint8_t>(blocks * kTileRows * kBlockBytes);
  memory.zeros = arena.take<std::uint8_t>(row);
  std::memset(memory.zeros, 0, static_cast<std::size_t>(row));
  return memory;
}

}  // namespace
}  // namespace foveal::FOVEAL_ISA
