// Hyper-connections, in a file of their own (rows_hyper.cpp); see rows.h for what they compute.
#pragma once

#include "rows.h"

namespace foveal::FOVEAL_ISA {

void hyper_pre(Context& context, const HyperArgs& hyper, const float* streams, const float* norm, float* x, float* post,
               float* comb);
void hyper_post(Context& context, std::int64_t n, std::int64_t count, std::int64_t d, const float* out,
                const float* post, const float* comb, float* streams);
void hyper_head(Context& context, const HyperArgs& hyper, const float* streams, const float* norm, float* x);

}  // namespace foveal::FOVEAL_ISA
