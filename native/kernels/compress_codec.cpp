// Cache entries to bytes and back.
//
// Codes are computed with vector arithmetic on fp32 bits, without tables, and are bit for bit those of
// foveal.cache.codec: whatever one side writes the other reads.
#include "compress_codec.h"

#include "rounding.h"

namespace foveal::FOVEAL_ISA {
namespace {

constexpr std::int64_t kKvBlock = 64, kIndexBlock = 32;


// Where the parts of a kKvFP8 entry begin.
struct KvLayout {
  std::int64_t plain, scales, blocks, end;
  KvLayout(std::int64_t width, std::int64_t rotary)
      : plain(width - rotary),
        scales(plain + 2 * rotary),
        blocks((plain + kKvBlock - 1) / kKvBlock),
        end((scales + blocks + 7) / 8 * 8) {}
};

FOVEAL_INLINE void store_codes(std::uint8_t* to, U codes, std::int64_t some) {
  if (some >= kLanes) return to_bytes(codes, to);
  std::uint8_t bytes[kLanes];
  to_bytes(codes, bytes);
  std::memcpy(to, bytes, (std::size_t)some);
}
FOVEAL_INLINE U load_codes(const std::uint8_t* from, std::int64_t some) {
  if (some >= kLanes) return from_bytes(from);
  std::uint8_t bytes[kLanes] = {};
  std::memcpy(bytes, from, (std::size_t)some);
  return from_bytes(bytes);
}

void encode_bf16(const float* from, std::int64_t count, std::uint8_t* to) {
  for (std::int64_t i = 0; i < count; i += kLanes) {
    std::uint16_t v[kLanes];  // the bytes may begin at an odd address
    store_narrow(v, load_some(from + i, least(kLanes, count - i)));
    std::memcpy(to + 2 * i, v, (std::size_t)least(kLanes, count - i) * 2);
  }
}
void decode_bf16(const std::uint8_t* from, std::int64_t count, float* to) {
  for (std::int64_t i = 0; i < count; i += kLanes) {
    std::uint16_t v[kLanes] = {};
    std::memcpy(v, from + 2 * i, (std::size_t)least(kLanes, count - i) * 2);
    store_some(to + i, widen(v), least(kLanes, count - i));
  }
}

void encode_kv(const float* entry, std::int64_t width, std::int64_t rotary, std::uint8_t* to) {
  const KvLayout at(width, rotary);
  for (std::int64_t b = 0; b < at.blocks; ++b) {
    const std::int64_t first = b * kKvBlock, last = least(at.plain, first + kKvBlock);
    const float scale = scale_of<E4M3>(amax_bits(entry + first, last - first));
    const F inverse = splat(1.0f / scale);
    for (std::int64_t i = first; i < last; i += kLanes) {
      const std::int64_t some = least(kLanes, last - i);
      store_codes(to + i, code_e4m3(to_grid<E4M3>(load_some(entry + i, some) * inverse)), some);
    }
    to[at.scales + b] = code_e8m0(scale);
  }
  encode_bf16(entry + at.plain, rotary, to + at.plain);
  for (std::int64_t i = at.scales + at.blocks; i < at.end; ++i) to[i] = 0;
}

void decode_kv(const std::uint8_t* from, std::int64_t width, std::int64_t rotary, float* entry) {
  const KvLayout at(width, rotary);
  for (std::int64_t i = 0; i < at.plain; i += kLanes) {
    const std::int64_t some = least(kLanes, at.plain - i);
    const F scale = splat(value_e8m0(from[at.scales + i / kKvBlock]));
    store_some(entry + i, value_e4m3(load_codes(from + i, some)) * scale, some);
  }
  decode_bf16(from + at.plain, rotary, entry + at.plain);
}

void encode_index_fp4(const float* entry, std::int64_t width, std::uint8_t* to) {
  for (std::int64_t first = 0; first < width; first += kIndexBlock) {
    const std::int64_t last = least(width, first + kIndexBlock);
    const float scale = scale_of<E2M1>(amax_bits(entry + first, last - first));
    const F inverse = splat(1.0f / scale);
    for (std::int64_t i = first; i < last; i += kLanes) {
      const std::int64_t some = least(kLanes, last - i);
      std::uint8_t codes[kLanes];
      store_codes(codes, code_e2m1(to_grid<E2M1>(load_some(entry + i, some) * inverse)), kLanes);
      for (std::int64_t k = 0; k < some / 2; ++k)
        to[i / 2 + k] = (std::uint8_t)(codes[2 * k] | (codes[2 * k + 1] << 4));
    }
    to[width / 2 + first / kIndexBlock] = code_e8m0(scale);
  }
}

void decode_index_fp4(const std::uint8_t* from, std::int64_t width, float* entry) {
  for (std::int64_t i = 0; i < width; i += kLanes) {
    const std::int64_t some = least(kLanes, width - i);
    std::uint8_t codes[kLanes] = {};
    for (std::int64_t k = 0; k < some / 2; ++k) {
      codes[2 * k] = from[i / 2 + k] & 15;
      codes[2 * k + 1] = from[i / 2 + k] >> 4;
    }
    const F scale = splat(value_e8m0(from[width / 2 + i / kIndexBlock]));
    store_some(entry + i, value_e2m1(load_codes(codes, kLanes)) * scale, some);
  }
}

// One scale for the whole key, amax / 448, at least the smallest normal number.
void encode_index_fp8(const float* entry, std::int64_t width, std::uint8_t* to) {
  const float quotient = float_of(amax_bits(entry, width)) / E4M3::kLargest;
  const float scale = quotient < 0x1p-126f ? 0x1p-126f : quotient;
  for (std::int64_t i = 0; i < width; i += kLanes) {
    const std::int64_t some = least(kLanes, width - i);
    store_codes(to + i, code_e4m3(to_grid<E4M3>(load_some(entry + i, some) / splat(scale))), some);
  }
  std::memcpy(to + width, &scale, sizeof scale);
}

void decode_index_fp8(const std::uint8_t* from, std::int64_t width, float* entry) {
  float scale;
  std::memcpy(&scale, from + width, sizeof scale);
  for (std::int64_t i = 0; i < width; i += kLanes) {
    const std::int64_t some = least(kLanes, width - i);
    store_some(entry + i, value_e4m3(load_codes(from + i, some)) * splat(scale), some);
  }
}

}  // namespace

void encode(Codec codec, const float* entry, std::int64_t width, std::int64_t rotary, std::uint8_t* to) {
  switch (codec) {
    case Codec::kF32: std::memcpy(to, entry, (std::size_t)width * sizeof(float)); return;
    case Codec::kBF16: encode_bf16(entry, width, to); return;
    case Codec::kKvFP8: encode_kv(entry, width, rotary, to); return;
    case Codec::kIndexFP4: encode_index_fp4(entry, width, to); return;
    case Codec::kIndexFP8: encode_index_fp8(entry, width, to); return;
  }
}

void decode(Codec codec, const std::uint8_t* from, std::int64_t width, std::int64_t rotary, float* entry) {
  switch (codec) {
    case Codec::kF32: std::memcpy(entry, from, (std::size_t)width * sizeof(float)); return;
    case Codec::kBF16: decode_bf16(from, width, entry); return;
    case Codec::kKvFP8: decode_kv(from, width, rotary, entry); return;
    case Codec::kIndexFP4: decode_index_fp4(from, width, entry); return;
    case Codec::kIndexFP8: decode_index_fp8(from, width, entry); return;
  }
}

}  // namespace foveal::FOVEAL_ISA
