// The compressors of CSA and HCA, and the codecs of the cache (report section 2.3).
//
// The rows of the open window and those of the step in progress are read where they lie, and a finished entry goes
// straight into its slot of its page.
#pragma once

#include "core.h"
#include "rows.h"

namespace foveal {

// What happens to an entry after norm and rotation.
enum class Finish : std::uint8_t {
  kPlain,
  kKv,     // FP8 rounding of KV rows: the channels before the rotary ones in blocks of 64, BF16 on those
  kIndex,  // Hadamard rotation, then FP4 in blocks of 32
};

// Entries [first, last) of one compressor. Row p of kv and gate is the token's at position p: fp32, width e (HCA) or
// 2 * e (CSA: F half, S half); gate has the position bias in it. CSA entry s weighs rows 4s-4..4s-1 (F halves) and
// 4s..4s+3 (S halves), per channel; entry 0 has no F rows. HCA entry s weighs rows 128s..128s+127.
struct CompressArgs {
  Rows kv;
  Rows gate;
  std::int64_t first, last;
  std::int64_t ratio;
  bool overlap;  // CSA
  const float* norm;
  float eps;
  Rotary rotary;
  Finish finish;
  Entries out;  // `count` is not looked at
};

struct CompressOps {
  void (*compress)(Context& context, const CompressArgs* jobs, int count);
  // gate [n, width] in place: adds ape[(position) % ratio]; the first row stands at `position`.
  void (*add_position_bias)(Context& context, float* gate, std::int64_t n, std::int64_t width, const float* ape,
                            std::int64_t ratio, std::int64_t position);
  // One entry to bytes and back.
  void (*encode)(Codec codec, const float* entry, std::int64_t width, std::int64_t rotary, std::uint8_t* to);
  void (*decode)(Codec codec, const std::uint8_t* from, std::int64_t width, std::int64_t rotary, float* entry);
};

}  // namespace foveal

FOVEAL_EACH_ISA(extern const CompressOps compress_ops;)
