// Cache entries to bytes and back, in a file of their own (compress_codec.cpp); see core.h for the layouts.
#pragma once

#include "compress.h"

namespace foveal::FOVEAL_ISA {

void encode(Codec codec, const float* entry, std::int64_t width, std::int64_t rotary, std::uint8_t* to);
void decode(Codec codec, const std::uint8_t* from, std::int64_t width, std::int64_t rotary, float* entry);

}  // namespace foveal::FOVEAL_ISA
