// From a page's bytes to its pack.
//
// Scales are made canonical on the way. A block of zeros takes the scale of its neighbours, so that what decides
// between the integer and the float path is the spread of the scales that matter.
#include "indexer_ops.h"

namespace foveal::FOVEAL_ISA {
namespace {

FOVEAL_INLINE float power_of_two(std::uint8_t e8m0) {
  if (e8m0 == 255) return __builtin_nanf("");
  const std::uint32_t bits = e8m0 == 0 ? 0x00400000u : static_cast<std::uint32_t>(e8m0) << 23;
  return load_as<float>(&bits);
}

FOVEAL_INLINE float from_e4m3(std::uint8_t code) {
  const int exponent = (code >> 3) & 15, mantissa = code & 7;
  if ((code & 0x7f) == 0x7f) return __builtin_nanf("");
  const float magnitude = exponent == 0 ? static_cast<float>(mantissa) * 0x1p-9f
                                        : static_cast<float>(8 + mantissa) * 0x1p-10f * static_cast<float>(1 << exponent);
  return code & 0x80 ? -magnitude : magnitude;
}

// Twice the value of each FP4 code.
constexpr std::int8_t kTwice[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// Channel c of the key at `from`.
float channel(Codec codec, const std::uint8_t* from, std::int64_t width, std::int64_t c) {
  switch (codec) {
    case Codec::kF32: return load_as<float>(from + 4 * c);
    case Codec::kBF16: return widen_one(load_as<std::uint16_t>(from + 2 * c));
    case Codec::kIndexFP8: return from_e4m3(from[c]) * load_as<float>(from + width);
    case Codec::kIndexFP4: {
      const int code = (from[c / 2] >> (4 * (c & 1))) & 15;
      return 0.5f * static_cast<float>(kTwice[code]) * power_of_two(from[width / 2 + c / kPackBlock]);
    }
    case Codec::kKvFP8: break;  // never a key's
  }
  return 0.0f;
}

// ---------------------------------------------------------------- FP4

constexpr std::int64_t kBlockPairs = kPackBlock / 8;

struct Fp4Block {
  std::uint32_t pairs[kBlockPairs];  // as they lie in a pack: byte b holds the codes of channels b and 4 + b of eight
  std::uint8_t scale;
  bool zero;
};

// The four nibbles of x, a byte each.
FOVEAL_INLINE std::uint32_t spread(std::uint32_t x) {
  x = (x | x << 8) & 0x00ff00ffu;
  return (x | x << 4) & 0x0f0f0f0fu;
}
// Eight codes as the cache stores them -> as a pack does; minus zero becomes zero.
FOVEAL_INLINE std::uint32_t pair_of(std::uint32_t codes) {
  const std::uint32_t magnitude = codes & 0x77777777u, nonzero = (magnitude + 0x77777777u) & 0x88888888u;
  const std::uint32_t clean = magnitude | (codes & nonzero);
  return spread(clean & 0xffffu) | spread(clean >> 16) << 4;
}

// The code of the FP4 number nearest to x (|x| <= 6), ties to the even code.
FOVEAL_INLINE std::uint8_t nearest_code(float x) {
  const float m = x < 0 ? -x : x;
  const int code = m <= 0.25f   ? 0
                   : m < 0.75f  ? 1
                   : m <= 1.25f ? 2
                   : m < 1.75f  ? 3
                   : m <= 2.5f  ? 4
                   : m < 3.5f   ? 5
                   : m <= 5.0f  ? 6
                                : 7;
  return static_cast<std::uint8_t>(code | (x < 0 && code != 0 ? 8 : 0));
}

// `count` numbers by the rule of foveal.formats: scale 2^ceil(log2(amax / 6)), at least 2^-126.
void encode_block(const float* x, std::int64_t count, Fp4Block* block) {
  float amax = 0.0f;
  bool finite = true;
  for (std::int64_t c = 0; c < count; ++c) {
    const float m = x[c] < 0 ? -x[c] : x[c];
    finite = finite && m <= 3.4028234e38f;
    amax = m > amax ? m : amax;
  }
  const float least = 6.0f * 0x1p-126f;
  const float sixth = (amax > least ? amax : least) * (1.0f / 6.0f);
  const auto bits = load_as<std::uint32_t>(&sixth);
  block->scale = finite ? static_cast<std::uint8_t>((bits + 0x007fffffu) >> 23) : 255;
  const float inverse = 1.0f / power_of_two(block->scale);
  for (std::int64_t pair = 0; pair < kBlockPairs; ++pair) {
    std::uint32_t codes = 0;
    for (std::int64_t i = 0; i < 8; ++i) {
      const std::int64_t c = 8 * pair + i;
      const float scaled = c < count && finite ? x[c] * inverse : 0.0f;
      codes |= static_cast<std::uint32_t>(nearest_code(scaled < -6.0f ? -6.0f : scaled > 6.0f ? 6.0f : scaled)) << (4 * i);
    }
    block->pairs[pair] = pair_of(codes);
  }
}

void read_block(Codec codec, const std::uint8_t* from, std::int64_t width, std::int64_t index, Fp4Block* block) {
  const std::int64_t first = index * kPackBlock;
  const std::int64_t count = width - first < kPackBlock ? width - first : kPackBlock;
  if (codec == Codec::kIndexFP4) {
    std::uint8_t bytes[kPackBlock / 2] = {};
    std::memcpy(bytes, from + first / 2, static_cast<std::size_t>((count + 1) / 2));
    if (count % 2 != 0) bytes[count / 2] &= 15;
    for (std::int64_t pair = 0; pair < kBlockPairs; ++pair)
      block->pairs[pair] = pair_of(load_as<std::uint32_t>(bytes + 4 * pair));
    block->scale = from[width / 2 + index];
  } else {
    float values[kPackBlock];
    for (std::int64_t c = 0; c < count; ++c) values[c] = channel(codec, from, width, first + c);
    encode_block(values, count, block);
  }
  std::uint32_t any = 0;
  for (const std::uint32_t pair : block->pairs) any |= pair;
  block->zero = block->scale != 255 && any == 0;
}

void pack_fp4(const PackLayout& layout, Codec codec, const std::uint8_t* from, std::int64_t slot, std::uint8_t* pack) {
  std::uint8_t lowest = 255;  // of the scales of blocks that are not all zero
  bool any = false;
  for (std::int64_t b = 0; b < layout.blocks; ++b) {
    Fp4Block block;
    read_block(codec, from, layout.width, b, &block);
    pack[b * kPackKeys + slot] = block.scale;
    if (!block.zero) {
      any = true;
      lowest = block.scale < lowest ? block.scale : lowest;
    }
    for (std::int64_t i = 0; i < least(kBlockPairs, layout.pairs - b * kBlockPairs); ++i)
      std::memcpy(pack + layout.codes + (b * kBlockPairs + i) * kStepBytes + slot * 4, &block.pairs[i], 4);
  }
  // Blocks of zeros take the least scale of the others (any scale is right for them).
  for (std::int64_t b = 0; b < layout.blocks; ++b) {
    std::uint8_t* scale = pack + b * kPackKeys + slot;
    bool zero = true;
    for (std::int64_t pair = b * 4; pair < b * 4 + 4 && pair < layout.pairs; ++pair) {
      const auto codes = load_as<std::uint32_t>(pack + layout.codes + pair * kStepBytes + slot * 4);
      zero = zero && codes == 0;
    }
    if (zero && *scale != 255) *scale = any ? lowest : 127;
  }
}

// ---------------------------------------------------------------- the others

void pack_bf16(const PackLayout& layout, Codec codec, const std::uint8_t* from, std::int64_t slot, std::uint8_t* pack) {
  for (std::int64_t c = 0; c < layout.width; ++c) {
    const std::uint16_t bits = narrow_one(channel(codec, from, layout.width, c));
    std::memcpy(pack + (c / 2) * kStepBytes + slot * 4 + (c & 1) * 2, &bits, sizeof bits);
  }
}

void pack_f32(const PackLayout& layout, Codec codec, const std::uint8_t* from, std::int64_t slot, std::uint8_t* pack) {
  for (std::int64_t c = 0; c < layout.width; ++c) {
    const float value = channel(codec, from, layout.width, c);
    std::memcpy(pack + c * kStepBytes + slot * 4, &value, sizeof value);
  }
}

void clear(const PackLayout& layout, std::uint8_t* pack) {
  std::memset(pack, 127, static_cast<std::size_t>(layout.codes));
  std::memset(pack + layout.codes, 0, static_cast<std::size_t>(layout.bytes - layout.codes));
}

}  // namespace

void index_pack(const PackShape& shape, const Entries& page, std::int64_t first, std::int64_t last, std::uint8_t* pack) {
  const PackLayout layout = pack_layout(shape);
  if (first == 0) clear(layout, pack);
  for (std::int64_t slot = first; slot < last; ++slot) {
    const std::uint8_t* from = page.at(slot);
    switch (shape.kind) {
      case PackKind::kFP4: pack_fp4(layout, page.codec, from, slot, pack); break;
      case PackKind::kBF16: pack_bf16(layout, page.codec, from, slot, pack); break;
      case PackKind::kF32: pack_f32(layout, page.codec, from, slot, pack); break;
    }
  }
}

}  // namespace foveal::FOVEAL_ISA
