// The lightning indexer (report section 2.3.2): which entries of a CSA layer each token looks at.
//
// Scoring and choosing are one pass; there is no matrix of scores. Keys are scored out of a *pack*, a derived copy of a
// page's keys in the order the dot products want (FP4 keys as int8 operands, else as BF16 or fp32), made when the keys
// are written and never saved. No key is passed over by bounds: docs/indexer.md says why.
#pragma once

#include "core.h"

namespace foveal {

enum class PackKind : std::uint8_t {
  kFP4,   // keys (and queries) are exactly FP4 after the Hadamard rotation: integer dot products, exact
  kBF16,  // keys are exactly BF16
  kF32,
};

struct PackShape {
  PackKind kind;
  std::int64_t width;  // ci
  std::int64_t keys;   // of a page: 64
};

// Keys of one sequence: packs[p] holds keys p * shape.keys and on.
struct Packs {
  PackShape shape;
  const std::uint8_t* const* packs;
  std::int64_t offset;  // of this layer inside a pack
  std::int64_t count;
};

struct TopkArgs {
  const float* query;           // [n, I, ci]
  const float* weights;         // [n, I]
  std::int64_t n, heads;
  Packs keys;
  const std::int64_t* visible;  // [n]: how many of the first keys a token may choose from
  std::int64_t k;
  std::int32_t* chosen;  // [n, k] ascending, then -1
};

// Keys that tokens could see, and those that were scored (a token that sees no more than k scores none).
struct IndexCounters {
  std::int64_t seen;    // visible keys of all tokens
  std::int64_t scored;
};

struct IndexOps {
  // Writes keys [first, last) of a page (slots, last <= shape.keys) into its pack from their bytes in the page
  // (`page.at(slot)`, one page). Slots are written in order; `first` 0 starts anew.
  void (*pack)(const PackShape& shape, const Entries& page, std::int64_t first, std::int64_t last, std::uint8_t* pack);
  // The k best-scored visible keys, score = sum over heads of weight * relu(q . key); exact; ties take the lowest index.
  void (*topk)(Context& context, const TopkArgs* jobs, int count, IndexCounters* counters);
  // All scores [n, count], for tests and for the indexer's loss.
  void (*scores)(Context& context, const TopkArgs& args, float* scores);
};

// Bytes of one page's pack for one layer, a multiple of 64.
std::int64_t pack_bytes(const PackShape& shape);

}  // namespace foveal

FOVEAL_EACH_ISA(extern const IndexOps index_ops;)
