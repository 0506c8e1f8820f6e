// Activations as the decoders want them: rounded, split into BF16 terms, permuted, padded.
//
// This is done once for each token and layout, so that the work per weight needs no permutation at all.
#include "linear_blocks.h"
#include "rounding.h"

namespace foveal::FOVEAL_ISA {
namespace {

// 64 numbers for fp32 arithmetic.
FOVEAL_INLINE void put_wide(const Layout& layout, const float* x, float* to) {
  for (int half = 0; half < 2; ++half) {
    const float* from = x + 32 * half;
    if (layout.order == Format::kFP4) {
      for (int i = 0; i < kLanes; ++i) {
        to[32 * half + i] = from[2 * i];
        to[32 * half + kLanes + i] = from[2 * i + 1];
      }
    } else {
      store(to + 32 * half, load(from));
      store(to + 32 * half + kLanes, load(from + kLanes));
    }
  }
}

#if FOVEAL_AVX512
// The same in the orders in which BF16 numbers are split (linear_formats.h).
FOVEAL_INLINE void put_split(const Layout& layout, const float* x, float* to) {
  if (layout.order == Format::kFP4) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    for (int half = 0; half < 64; half += 32) {
      const auto a = (__m512)load(x + half), b = (__m512)load(x + half + kLanes);
      store(to + half, (F)_mm512_permutex2var_ps(a, even, b));
      store(to + half + kLanes, (F)_mm512_permutex2var_ps(a, odd, b));
    }
    return;
  }
  // Quarters of each 16: even and odd ones of the first 8, of the last 8; then a transposition of quarters.
  const __m512i parts = _mm512_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
  __m512 v[4];
  for (int i = 0; i < 4; ++i) v[i] = _mm512_permutexvar_ps(parts, (__m512)load(x + kLanes * i));
  const __m512 a = _mm512_shuffle_f32x4(v[0], v[1], 0x88), b = _mm512_shuffle_f32x4(v[0], v[1], 0xdd);
  const __m512 c = _mm512_shuffle_f32x4(v[2], v[3], 0x88), d = _mm512_shuffle_f32x4(v[2], v[3], 0xdd);
  store(to, (F)_mm512_shuffle_f32x4(a, c, 0x88));
  store(to + kLanes, (F)_mm512_shuffle_f32x4(b, d, 0x88));
  store(to + 2 * kLanes, (F)_mm512_shuffle_f32x4(a, c, 0xdd));
  store(to + 3 * kLanes, (F)_mm512_shuffle_f32x4(b, d, 0xdd));
}
#endif

#if FOVEAL_BF16

FOVEAL_INLINE __m512i pair(F low, F high) { return (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low); }
FOVEAL_INLINE F rest(F x, __m512i halves, int which) {
  const __m256i mine = which ? _mm512_extracti64x4_epi64(halves, 1) : _mm512_castsi512_si256(halves);
  return x - (F)_mm512_slli_epi32(_mm512_cvtepu16_epi32(mine), 16);
}

// 64 columns in two vectors, natural order -> the decoder's.
FOVEAL_INLINE void put_half(const Layout& layout, int term, __m512i first, __m512i second, std::uint8_t* to) {
  __m512i a = first, b = second;
  if (layout.order == Format::kFP8) {
    a = _mm512_shuffle_i64x2(first, second, 0x88);
    b = _mm512_shuffle_i64x2(first, second, 0xdd);
  } else if (layout.order == Format::kFP4) {
    std::uint16_t index[32];
    for (int i = 0; i < 32; ++i) index[i] = (std::uint16_t)(2 * i);
    const __m512i even = _mm512_loadu_si512(index);
    a = _mm512_permutex2var_epi16(first, even, second);
    b = _mm512_permutex2var_epi16(first, _mm512_add_epi16(even, _mm512_set1_epi16(1)), second);
  }
  _mm512_storeu_si512(to + 64 * term, a);
  _mm512_storeu_si512(to + 64 * (layout.terms + term), b);
}

// 64 numbers as BF16: the nearest, and with two terms the nearest to what is left.
FOVEAL_INLINE void put_pairs(const Layout& layout, const float* x, std::uint8_t* to) {
  F v[4];
  for (int i = 0; i < 4; ++i) v[i] = load(x + kLanes * i);
  for (int term = 0; term < layout.terms; ++term) {
    const __m512i first = pair(v[0], v[1]), second = pair(v[2], v[3]);
    put_half(layout, term, first, second, to);
    if (term + 1 == layout.terms) break;
    v[0] = rest(v[0], first, 0);
    v[1] = rest(v[1], first, 1);
    v[2] = rest(v[2], second, 0);
    v[3] = rest(v[3], second, 1);
  }
}

#endif

}  // namespace

Layout layout_for(const Matrix& weight, bool simulate, Precision precision, bool exact) {
  const bool plain = weight.format == Format::kF32 || exact;  // fp32 numbers, not rounded
#if FOVEAL_BF16
  const bool half = !plain;
#else
  const bool half = false;
#endif
  const bool one = simulate || precision == Precision::kBF16;
  const bool round = !half && !plain && !simulate && precision == Precision::kBF16;
#if FOVEAL_AVX512
  // In fp32, BF16 numbers come as FP4 ones do.
  const Format order = !half && weight.format == Format::kBF16 ? Format::kFP4 : weight.format;
#else
  // In fp32 the columns of all formats but FP4 come in their natural order.
  const Format order = weight.format == Format::kFP4 ? Format::kFP4 : Format::kF32;
#endif
  return {half, order, half && !one ? 2 : 1, simulate, round, weight.columns};
}

void prepare(const Layout& layout, const float* x, std::int64_t first, std::int64_t count, void* row) {
  const std::int64_t step_bytes = layout.step_bytes();
  auto* to = (std::uint8_t*)row + first / kStep * step_bytes;
  for (std::int64_t start = 0; start < count; start += kQuantBlock) {
    const std::int64_t left = count - start, here = left < kQuantBlock ? left : kQuantBlock;
    const float* from = x + start;
    float block[kQuantBlock];
    if (layout.simulate || layout.round || here < kQuantBlock) {
      for (int v = 0; v < 8; ++v) {
        const std::int64_t some = here - kLanes * v;
        store(block + kLanes * v, some >= kLanes ? load(from + kLanes * v)
                                  : some > 0     ? load_some(from + kLanes * v, some)
                                                 : zero());
      }
      if (layout.simulate) round_block<E4M3>(block, kQuantBlock);
      if (layout.round) round_bf16_row(block, kQuantBlock);
      from = block;
    }
    for (std::int64_t at = 0; at < here; at += kStep, to += step_bytes) {
#if FOVEAL_BF16
      if (layout.half) {
        put_pairs(layout, from + at, to);
        continue;
      }
#endif
#if FOVEAL_AVX512
      if (layout.order != Format::kF32) {
        put_split(layout, from + at, (float*)to);
        continue;
      }
#endif
      put_wide(layout, from + at, (float*)to);
    }
  }
}

}  // namespace foveal::FOVEAL_ISA
