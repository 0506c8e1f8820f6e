// How a page's keys lie in its pack: the one place where offsets are computed.
//
// The order is the dot products' own. Keys stand side by side in the lanes of vectors, sixteen a vector, so that a
// score never needs a sum across lanes; each step of a dot product (four channels as bytes, two as BF16, one as fp32)
// is four vectors in a row, the 64 keys of a page. FP4 keys stay 4 bits wide: a step's vector holds two steps, low
// nibbles first. A pack always has room for 64 keys.
#pragma once

#include "indexer.h"

namespace foveal {

constexpr std::int64_t kPackKeys = 64;
constexpr std::int64_t kPackGroups = 4;    // vectors of 16 keys
constexpr std::int64_t kPackBlock = 32;    // channels that share an FP4 scale
constexpr std::int64_t kStepBytes = 256;   // of one step of all keys, unpacked

// kFP4: [blocks, 64] E8M0 scale bytes; [pairs, 4, 16, 4] code bytes: byte b of key j in pair p holds channels 8p + b (low
// nibble) and 8p + 4 + b.
// kBF16: [steps, 4, 16, 2]. kF32: [steps, 4, 16].
struct PackLayout {
  std::int64_t width;
  std::int64_t blocks;  // scale blocks of a key, kFP4
  std::int64_t pairs;   // of steps, kFP4
  std::int64_t steps;   // of a dot product
  std::int64_t codes;   // byte offset of what follows the scales
  std::int64_t bytes;
};

static inline PackLayout pack_layout(const PackShape& shape) {
  const std::int64_t width = shape.width;
  PackLayout layout{width, 0, 0, 0, 0, 0};
  switch (shape.kind) {
    case PackKind::kFP4:
      layout.blocks = (width + kPackBlock - 1) / kPackBlock;
      layout.pairs = (width + 7) / 8;
      layout.steps = 2 * layout.pairs;
      layout.codes = layout.blocks * kPackKeys;
      layout.bytes = layout.codes + layout.pairs * kStepBytes;
      break;
    case PackKind::kBF16:
      layout.steps = (width + 1) / 2;
      layout.bytes = layout.steps * kStepBytes;
      break;
    case PackKind::kF32:
      layout.steps = width;
      layout.bytes = layout.steps * kStepBytes;
      break;
  }
  return layout;
}

}  // namespace foveal
