// What kernels on single rows share: how tokens are dealt to threads, sums of squares, rotary embedding.
//
// Sines and cosines are computed once for a token and used for all its heads. Angles are fp32 products as in the
// official code; they are reduced in double precision, so that a million positions lose nothing.
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

// Four accumulators in turn, then (0 + 1) + (2 + 3), then over the lanes. Each has a name: an array that is indexed by a
// variable is kept in memory.
struct Squares {
  F a = zero(), b = zero(), c = zero(), d = zero();

  template <int which>
  __attribute__((always_inline)) void add(F v) {
    F& acc = which == 0 ? a : which == 1 ? b : which == 2 ? c : d;
    acc = fma(v, v, acc);
  }
  __attribute__((always_inline)) float total() const { return sum((a + b) + (c + d)); }
};

[[maybe_unused]] static float sum_of_squares(const float* x, std::int64_t width) {
  Squares squares;
  std::int64_t i = 0;
  for (; i + 4 * kLanes <= width; i += 4 * kLanes) {
    squares.add<0>(load(x + i));
    squares.add<1>(load(x + i + kLanes));
    squares.add<2>(load(x + i + 2 * kLanes));
    squares.add<3>(load(x + i + 3 * kLanes));
  }
  const auto some = [&](int j) { return least(kLanes, width - i - j * kLanes); };
  if (i < width) squares.add<0>(load_some(x + i, some(0)));
  if (i + kLanes < width) squares.add<1>(load_some(x + i + kLanes, some(1)));
  if (i + 2 * kLanes < width) squares.add<2>(load_some(x + i + 2 * kLanes, some(2)));
  if (i + 3 * kLanes < width) squares.add<3>(load_some(x + i + 3 * kLanes, some(3)));
  return squares.total();
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

// A machine vector of doubles, and as many floats and integers.
typedef double D __attribute__((vector_size(kPieceBytes)));
typedef float DF __attribute__((vector_size(kPieceBytes / 2)));
typedef std::int32_t DI __attribute__((vector_size(kPieceBytes / 2)));

// angle = quadrant * pi / 2 + rest, |rest| <= pi / 4.
FOVEAL_INLINE void reduce_angle(DF angle, DF* rest, DI* quadrant) {
  const D a = __builtin_convertvector(angle, D);
  const D magic = D{} + 0x1.8p52;
  const D k = (a * 0x1.45f306dc9c883p-1 + magic) - magic;
  // pi / 2 in 33 bits and the rest: k times the first is exact for every position there is.
  const D r = (a - k * 0x1.921fb544p0) - k * 0x1.0b4611a626331p-34;
  *rest = __builtin_convertvector(r, DF);
  *quadrant = __builtin_convertvector(k, DI);
}

FOVEAL_INLINE void sine_cosine(F angle, F* sine, F* cosine) {
  DF parts[2 * kPieces], rest[2 * kPieces];
  DI quadrants[2 * kPieces];
  store_as(parts, angle);
  for (int i = 0; i < 2 * kPieces; ++i) reduce_angle(parts[i], &rest[i], &quadrants[i]);
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
  const F sin_value = select(odd, c, s), cos_value = select(odd, s, c);
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
    F low, high;
    interleave(c, c, &low, &high);
    store(cosine + 2 * i, low);
    store(cosine + 2 * i + kLanes, high);
    interleave(-s, s, &low, &high);
    store(sine + 2 * i, low);
    store(sine + 2 * i + kLanes, high);
  }
  return {cosine, sine};
}

// (a, b) -> (a cos - b sin, a sin + b cos) on 2 * half channels, each product rounded as torch rounds it.
FOVEAL_INLINE void turn_row(float* x, std::int64_t half, const Turn& turn) {
  const std::int64_t channels = 2 * half;
  std::int64_t i = 0;
  for (; i + kLanes <= channels; i += kLanes) {
    const F v = load(x + i);
    store(x + i, v * load(turn.cosine + i) + swap_lanes<1>(v) * load(turn.sine + i));
  }
  if (i < channels) {
    const F v = load_some(x + i, channels - i);
    store_some(x + i, v * load(turn.cosine + i) + swap_lanes<1>(v) * load(turn.sine + i), channels - i);
  }
}

}  // namespace foveal::FOVEAL_ISA
