// What the files of the indexer share inside one instruction set.
#pragma once

#include "indexer_pack.h"
#include "simd.h"

namespace foveal::FOVEAL_ISA {

void index_pack(const PackShape& shape, const Entries& page, std::int64_t first, std::int64_t last, std::uint8_t* pack);

}  // namespace foveal::FOVEAL_ISA
