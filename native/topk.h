#pragma once

#include <cstdint>

namespace foveal {

// For every row i of `scores` [rows, columns], contiguous: the columns of the k highest among the first visible[i]
// scores, ascending, written to `chosen` [rows, k]; what is left of the row is -1.
//
// Equal scores: the lower column wins. +0 and -0 are equal. -inf is a score like any other; NaN ranks below it, so that
// it is chosen only when everything else is. visible[i] is taken as at least 0 and at most `columns`.
void topk_lowest(const float* scores, const std::int64_t* visible, std::int64_t rows, std::int64_t columns,
                 std::int64_t k, std::int64_t* chosen, int threads);

}  // namespace foveal
