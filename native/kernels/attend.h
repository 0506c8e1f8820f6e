// Attention over the raw window and the compressed entries, in one softmax with a sink (report section 2.3).
//
// Only the rows a token looks at are touched, where they lie: window rows in the tail's ring, entries in their pages.
// One online softmax runs over both in a fixed order (window oldest first, then entries ascending), so the result
// depends neither on the batch nor on the number of threads.
#pragma once

#include "core.h"
#include "rows.h"

namespace foveal {

// n consecutive tokens of one sequence. Token i stands at position `position` + i, looks at the raw rows of the last
// `window_size` positions up to its own, at its `indices` if there are any, else at the entries s < (position + i + 1) /
// ratio (ratio 0: none), and at the sink, which only enters the denominator. Softmax scale c^-1/2. The result is rotated
// back by the token's position.
struct AttendArgs {
  const float* query;  // [n, H, c], rotated
  std::int64_t n, heads, width;
  std::int64_t position;
  Rows window;  // of codec `window_codec` (kF32 or kBF16)
  Codec window_codec;
  std::int64_t window_size;
  Entries entries;
  const std::int32_t* indices;  // [n, k] ascending, padded with -1, or null
  std::int64_t k;
  std::int64_t ratio;
  const float* sink;  // [H]
  Rotary rotary;
  Precision precision;
  float* out;  // [n, H, c]
  // Attention weight summed over heads for the last `trace` tokens: entry_mass [trace, k] with indices, else
  // [trace, entries.count]; window_mass [trace, window_size], the last column being the token itself.
  std::int64_t trace;
  float* entry_mass;
  float* window_mass;
  // [n, k] where the chosen entries lie, in the order of `indices`; null: in their pages. Set by the kernels alone.
  const std::uint8_t* const* rows;
};

struct AttendOps {
  void (*attend)(Context& context, const AttendArgs* jobs, int count);
};

}  // namespace foveal

FOVEAL_EACH_ISA(extern const AttendOps attend_ops;)
