// Choosing the likeliest token.
#pragma once

#include "core.h"

namespace foveal {

struct SampleOps {
  // The first of the largest of `count` logits, and log of the sum of exp(logit - largest). False when a logit is NaN or
  // none is finite.
  bool (*greedy)(const float* logits, std::int64_t count, std::int64_t* token, float* log_sum);
};

}  // namespace foveal

FOVEAL_EACH_ISA(extern const SampleOps sample_ops;)
