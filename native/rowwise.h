// What kernels on single rows share: how tokens are dealt to threads, sums of squares, rotary embedding.
//
// What is special here: sines and cosines are computed once for a token and used for all its heads. Angles are fp32
// products as in the official code; they are reduced in double precision, so that a million positions lose nothing.
#pragma once

#include "core.h"
#include "rounding.h"
#include "rows.h"

namespace foveal::FOVEAL_ISA {


// Below this many numbers touched (some 10 microseconds) waking the other threads costs more than they save.
constexpr std::int64_t kInline = 98304;
constexpr std::int64_t kTaskFloats = 32768;

// body(token, thread) for each of n tokens, each touching some `floats` numbers.
template <class Body>
FOVEAL_INLINE void each_token(Context& context, std::int64_t n, std::int64_t floats, const Body& body) {
  if (n * floats < kInline || n == 1 || context.pool.threads() == 1) {
    for (std::int64_t token = 0; token < n; ++token) body(token, 0);
    return;
  }
  const std::int64_t grain = least(most(1, kTaskFloats / most(1, floats)), shares(n, context.pool.threads()));
  context.pool.run(shares(n, grain), [&](std::int64_t task, int thread) {
    const std::int64_t last = least(n, (task + 1) * grain);
    for (std::int64_t token = task * grain; token < last; ++token) body(token, thread);
  });
}

// Four accumulators in turn, then (0 + 1) + (2 + 3), then over the lanes.
[[maybe_unused]] static float sum_of_squares(const float* x, std::int64_t width) {
  F acc[4] = {zero(), zero(), zero(), zero()};
  std::int64_t i = 0;
  for (; i + 4 * kLanes <= width; i += 4 * kLanes)
    for (int j = 0; j < 4; ++j) {
      const F v = load(x + i + j * kLanes);
      acc[j] = fma(v, v, acc[j]);
    }
  for (int j = 0; i < width; ++j, i += kLanes) {
    const F v = load_some(x + i, least(kLanes, width - i));
    acc[j] = fma(v, v, acc[j]);
  }
  return sum((acc[0] + acc[1]) + (acc[2] + acc[3]));
}

FOVEAL_INLINE float rms_factor(float squares, std::int64_t width, float eps) {
  return 1.0f / __builtin_sqrtf(squares / (float)width + eps);
}

// to = x * factor (* weight)
FOVEAL_INLINE void scale_row(const float* x, std::int64_t width, float factor, const float* weight, float* to) {
  const F f = splat(factor);
  std::int64_t i = 0;
  if (weight == nullptr) {
    for (; i + kLanes <= width; i += kLanes) store(to + i, load(x + i) * f);
    if (i < width) store_some(to + i, load_some(x + i, width - i) * f, width - i);
    return;
  }
  for (; i + kLanes <= width; i += kLanes) store(to + i, load(x + i) * f * load(weight + i));
  if (i < width) store_some(to + i, load_some(x + i, width - i) * f * load_some(weight + i, width - i), width - i);
}

FOVEAL_INLINE void rms_row(const float* x, std::int64_t width, const float* weight, float eps, float* to) {
  scale_row(x, width, rms_factor(sum_of_squares(x, width), width, eps), weight, to);
}

// ---------------------------------------------------------------- rotary embedding

typedef double D __attribute__((vector_size(64)));        // 8 doubles
typedef float F8 __attribute__((vector_size(32)));        // 8 floats
typedef std::int32_t I8 __attribute__((vector_size(32)));  // 8 integers

// angle = quadrant * pi / 2 + rest, |rest| <= pi / 4.
FOVEAL_INLINE void reduce_angle(F8 angle, F8* rest, I8* quadrant) {
  const D a = __builtin_convertvector(angle, D);
  const D magic = D{} + 0x1.8p52;
  const D k = (a * 0x1.45f306dc9c883p-1 + magic) - magic;
  // pi / 2 in 33 bits and the rest: k times the first is exact for every position there is.
  const D r = (a - k * 0x1.921fb544p0) - k * 0x1.0b4611a626331p-34;
  *rest = __builtin_convertvector(r, F8);
  *quadrant = __builtin_convertvector(k, I8);
}

FOVEAL_INLINE void sine_cosine(F angle, F* sine, F* cosine) {
  F8 half[2], rest[2];
  I8 quadrants[2];
  std::memcpy(half, &angle, sizeof angle);
  reduce_angle(half[0], &rest[0], &quadrants[0]);
  reduce_angle(half[1], &rest[1], &quadrants[1]);
  const F x = load_as<F>(rest);
  const I quadrant = load_as<I>(quadrants);
  const F z = x * x;
  F s = fma(splat(-1.9515295891e-4f), z, splat(8.3321608736e-3f));
  s = fma(s, z, splat(-1.6666654611e-1f));
  s = fma(s * z, x, x);
  F c = fma(splat(2.443315711809948e-5f), z, splat(-1.388731625493765e-3f));
  c = fma(c, z, splat(4.166664568298827e-2f));
  c = fma(c * z, z, fma(splat(-0.5f), z, splat(1.0f)));
  const I odd = (quadrant & 1) != 0;
  const F sin_value = odd ? c : s, cos_value = odd ? s : c;
  *sine = from_bits(as_bits(sin_value) ^ ((U)(quadrant & 2) << 30));
  *cosine = from_bits(as_bits(cos_value) ^ ((U)((quadrant + 1) & 2) << 30));
}

// cos, cos, ... and -sin, sin, ... of each pair, for as many channels as rotate (padded to whole vectors).
struct Turn {
  const float* cosine;
  const float* sine;
};
FOVEAL_INLINE std::int64_t turn_floats(const Rotary& rotary) { return shares(rotary.half, kLanes) * 4 * kLanes; }

// `memory` has turn_floats(rotary) floats.
[[maybe_unused]] static Turn make_turn(const Rotary& rotary, std::int64_t position, bool inverse, float* memory) {
  float* const cosine = memory;
  float* const sine = memory + turn_floats(rotary) / 2;
  const F at = splat((float)position);
  const U flip = splat_bits(inverse ? 0x80000000u : 0u);
  for (std::int64_t i = 0; i < rotary.half; i += kLanes) {
    F s, c;
    sine_cosine(at * load_some(rotary.frequencies + i, least(kLanes, rotary.half - i)), &s, &c);
    s = from_bits(as_bits(s) ^ flip);
    const F minus = -s;
    const I first{0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7};
    const I pair{16, 0, 17, 1, 18, 2, 19, 3, 20, 4, 21, 5, 22, 6, 23, 7};
    store(cosine + 2 * i, __builtin_shuffle(c, first));
    store(cosine + 2 * i + kLanes, __builtin_shuffle(c, first + 8));
    store(sine + 2 * i, __builtin_shuffle(s, minus, pair));
    store(sine + 2 * i + kLanes, __builtin_shuffle(s, minus, pair + 8));
  }
  return {cosine, sine};
}

FOVEAL_INLINE F swap_pairs(F v) {
  return __builtin_shuffle(v, I{1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14});
}

// (a, b) -> (a cos - b sin, a sin + b cos) on 2 * half channels, each product rounded as torch rounds it.
FOVEAL_INLINE void turn_row(float* x, std::int64_t half, const Turn& turn) {
  const std::int64_t channels = 2 * half;
  std::int64_t i = 0;
  for (; i + kLanes <= channels; i += kLanes) {
    const F v = load(x + i);
    store(x + i, v * load(turn.cosine + i) + swap_pairs(v) * load(turn.sine + i));
  }
  if (i < channels) {
    const F v = load_some(x + i, channels - i);
    store_some(x + i, v * load(turn.cosine + i) + swap_pairs(v) * load(turn.sine + i), channels - i);
  }
}

}  // namespace foveal::FOVEAL_ISA
