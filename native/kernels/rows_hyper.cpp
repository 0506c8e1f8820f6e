// Hyper-connections: mixing coefficients from all streams, Sinkhorn, weighted sums.
//
// The coefficients' product (a few rows over all streams) keeps one accumulator of 16 lanes for each output, whatever
// the tile it is computed in, so few tokens may be split over rows and many over tokens with the same bits. With four
// streams the mixing matrix of a token is one register, and Sinkhorn runs in it.
#include "rows_hyper.h"

#include "rowwise.h"

namespace foveal::FOVEAL_ISA {
namespace {

constexpr std::int64_t kChunk = 1024;    // columns worked on at a time: 24 rows of them stay in the cache
constexpr std::int64_t kTokens = 16;     // tokens of one task
constexpr std::int64_t kSplit = 131072;  // products from which few tokens are split over rows

// A tile's accumulators and the operands of one step fit the registers (32 or 16).
#if FOVEAL_AVX512
constexpr int kTileTokens = 4, kTileRows = 6, kLoneRows = 12;
#else
constexpr int kTileTokens = 2, kTileRows = 4, kLoneRows = 8;
#endif

// What a product of flat streams [n, width] with fn [rows, width] works on; acc [n, rows, 16] are its accumulators.
struct Mix {
  const float* flat;
  const float* fn;
  float* acc;
  std::int64_t rows, width;
};

// Columns [from, to) of T tokens by R rows, for one piece of the lanes: what is left over goes into lanes in order.
template <int T, int R>
FOVEAL_INLINE void mix_lanes(const float* const* x, const float* const* w, std::int64_t from, std::int64_t to,
                             std::int64_t stride, float* lanes) {
  P acc[T][R];
  for (int t = 0; t < T; ++t)
    for (int r = 0; r < R; ++r) acc[t][r] = load_as<P>(lanes + t * stride + r * kLanes);
  for (std::int64_t i = from; i + kLanes <= to; i += kLanes) {
    P v[T];
    for (int t = 0; t < T; ++t) v[t] = load_as<P>(x[t] + i);
    for (int r = 0; r < R; ++r) {
      const P f = load_as<P>(w[r] + i);
      for (int t = 0; t < T; ++t) acc[t][r] = fma(v[t], f, acc[t][r]);
    }
  }
  for (int t = 0; t < T; ++t)
    for (int r = 0; r < R; ++r) std::memcpy(lanes + t * stride + r * kLanes, &acc[t][r], sizeof(P));
}

template <int T, int R>
FOVEAL_INLINE void mix_tile(const Mix& mix, std::int64_t token, std::int64_t row, std::int64_t from, std::int64_t to) {
  float* const lanes = mix.acc + (token * mix.rows + row) * kLanes;
  const std::int64_t stride = mix.rows * kLanes;
  for (int piece = 0; piece < kPieces; ++piece) {
    const float* x[T];
    const float* w[R];
    for (int t = 0; t < T; ++t) x[t] = mix.flat + (token + t) * mix.width + piece * kPieceLanes;
    for (int r = 0; r < R; ++r) w[r] = mix.fn + (row + r) * mix.width + piece * kPieceLanes;
    mix_lanes<T, R>(x, w, from, to, stride, lanes + piece * kPieceLanes);
  }
  const std::int64_t done = from + (to - from) / kLanes * kLanes;
  if (done == to) return;
  for (int t = 0; t < T; ++t)
    for (int r = 0; r < R; ++r) {
      float* const own = lanes + t * stride + r * kLanes;
      const F v = load_some(mix.flat + (token + t) * mix.width + done, to - done);
      store(own, fma(v, load_some(mix.fn + (row + r) * mix.width + done, to - done), load(own)));
    }
}

template <int R>
void mix_tokens(const Mix& mix, std::int64_t first, std::int64_t last, std::int64_t row, std::int64_t from,
                std::int64_t to) {
  std::int64_t token = first;
  for (; token + kTileTokens <= last; token += kTileTokens) mix_tile<kTileTokens, R>(mix, token, row, from, to);
  for (; token < last; ++token) mix_tile<1, R>(mix, token, row, from, to);
}

// Tokens [first, last) by rows [row, end): accumulators only.
void mix_block(const Mix& mix, std::int64_t first, std::int64_t last, std::int64_t row, std::int64_t end) {
  for (std::int64_t t = first; t < last; ++t)
    for (std::int64_t i = row * kLanes; i < end * kLanes; ++i) mix.acc[t * mix.rows * kLanes + i] = 0;
  for (std::int64_t from = 0; from < mix.width; from += kChunk) {
    const std::int64_t to = least(mix.width, from + kChunk);
    std::int64_t r = row;
    if (last - first == 1)
      for (; r + kLoneRows <= end; r += kLoneRows) mix_tile<1, kLoneRows>(mix, first, r, from, to);
    for (; r + kTileRows <= end; r += kTileRows) mix_tokens<kTileRows>(mix, first, last, r, from, to);
    for (; r < end; ++r) mix_tokens<1>(mix, first, last, r, from, to);
  }
}

// ---------------------------------------------------------------- coefficients

FOVEAL_INLINE F sigmoid(F v) { return splat(1.0f) / (splat(1.0f) + exp(-v)); }
FOVEAL_INLINE float sigmoid_one(float v) { return sigmoid(splat(v))[0]; }

// What a token's coefficients are: `pre` [S] and, but for the output head, post [S] and comb [S, S].
struct Coefficients {
  float* pre;
  float* post;
  float* comb;
};

// Sums and maxima over groups of four lanes (destinations of a source), and over lanes four apart (sources).
FOVEAL_INLINE F row_sums(F v) {
  const F pairs = v + swap_lanes<1>(v);
  return pairs + swap_lanes<2>(pairs);
}
FOVEAL_INLINE F column_sums(F v) {
  const F pairs = v + swap_lanes<4>(v);
  return pairs + swap_lanes<8>(pairs);
}

// T tokens side by side, each mixing matrix in one register: the divisions of one hide behind those of the others.
template <int T>
FOVEAL_INLINE void sinkhorn4(F* logits, int iterations, float eps) {
  const F e = splat(eps);
  F m[T];
  for (int t = 0; t < T; ++t) {
    const F pairs = max(logits[t], swap_lanes<1>(logits[t]));
    const F p = exp(logits[t] - max(pairs, swap_lanes<2>(pairs)));
    m[t] = p / row_sums(p) + e;
  }
  for (int t = 0; t < T; ++t) m[t] = m[t] / (column_sums(m[t]) + e);
  for (int i = 1; i < iterations; ++i) {
    for (int t = 0; t < T; ++t) m[t] = m[t] / (row_sums(m[t]) + e);
    for (int t = 0; t < T; ++t) m[t] = m[t] / (column_sums(m[t]) + e);
  }
  for (int t = 0; t < T; ++t) logits[t] = m[t];
}

// The 24 coefficients of T tokens with four streams, from their mixes [T, 24]. Lanes 0-3 of the first register are
// `pre`, 4-7 `post`.
template <int T>
FOVEAL_INLINE void coefficients4(const HyperArgs& hyper, const float* mix, const Coefficients* to) {
  const float a = hyper.scale[0], b = hyper.scale[1];
  const float e = hyper.eps;
  const float scales[kLanes] = {a, a, a, a, b, b, b, b}, factors[kLanes] = {1, 1, 1, 1, 2, 2, 2, 2};
  const float added[kLanes] = {e, e, e, e};
  const F scale = load(scales), factor = load(factors), plus = load(added);
  F logits[T];
  for (int t = 0; t < T; ++t) {
    const F gates = sigmoid(load_some(mix + t * 24, 8) * scale + load_some(hyper.base, 8)) * factor + plus;
    store_some(to[t].pre, gates, 4);
    float both[kLanes];
    store(both, gates);
    for (int i = 0; i < 4; ++i) to[t].post[i] = both[4 + i];
    logits[t] = load(mix + t * 24 + 8) * splat(hyper.scale[2]) + load(hyper.base + 8);
  }
  sinkhorn4<T>(logits, hyper.sinkhorn_iters, e);
  for (int t = 0; t < T; ++t) store(to[t].comb, logits[t]);
}

// Divides each row (or, with `columns`, each column) of m [S, S] by its sum + eps.
void normalise(float* m, std::int64_t s, float eps, bool columns) {
  const std::int64_t along = columns ? s : 1, across = columns ? 1 : s;
  for (std::int64_t i = 0; i < s; ++i) {
    float total = 0;
    for (std::int64_t j = 0; j < s; ++j) total += m[i * across + j * along];
    total += eps;
    for (std::int64_t j = 0; j < s; ++j) m[i * across + j * along] /= total;
  }
}

void softmax_rows(float* m, std::int64_t s, float eps) {
  for (std::int64_t j = 0; j < s; ++j) {
    float* const row = m + j * s;
    float top = row[0], total = 0;
    for (std::int64_t k = 1; k < s; ++k) top = row[k] > top ? row[k] : top;
    for (std::int64_t k = 0; k < s; ++k) total += row[k] = exp(splat(row[k] - top))[0];
    for (std::int64_t k = 0; k < s; ++k) row[k] = row[k] / total + eps;
  }
}

// Any number of streams.
void coefficients_any(const HyperArgs& hyper, const float* mix, const Coefficients& to) {
  const std::int64_t s = hyper.streams;
  for (std::int64_t j = 0; j < s; ++j) {
    to.pre[j] = sigmoid_one(mix[j] * hyper.scale[0] + hyper.base[j]) + hyper.eps;
    to.post[j] = 2 * sigmoid_one(mix[s + j] * hyper.scale[1] + hyper.base[s + j]);
  }
  for (std::int64_t i = 0; i < s * s; ++i) to.comb[i] = mix[2 * s + i] * hyper.scale[2] + hyper.base[2 * s + i];
  softmax_rows(to.comb, s, hyper.eps);
  normalise(to.comb, s, hyper.eps, true);
  for (int i = 1; i < hyper.sinkhorn_iters; ++i) {
    normalise(to.comb, s, hyper.eps, false);
    normalise(to.comb, s, hyper.eps, true);
  }
}

void head_coefficients(const HyperArgs& hyper, const float* mix, float* pre) {
  for (std::int64_t j = 0; j < hyper.streams; ++j)
    pre[j] = sigmoid_one(mix[j] * hyper.scale[0] + hyper.base[j]) + hyper.eps;
}

// ---------------------------------------------------------------- the weighted sum of streams

// S of them if known when compiling; columns of one vector.
template <int S>
FOVEAL_INLINE F weighted(const float* streams, std::int64_t count, std::int64_t d, const float* pre, std::int64_t i,
                         std::int64_t some) {
  F acc = splat(pre[0]) * load_some(streams + i, some);
  const std::int64_t last = S ? S : count;
  for (std::int64_t j = 1; j < last; ++j) acc = fma(splat(pre[j]), load_some(streams + j * d + i, some), acc);
  return acc;
}

// x = sum of pre_j * stream_j, then the norm; squares are summed on the way as sum_of_squares would.
template <int S>
void sum_streams(const HyperArgs& hyper, const float* streams, const float* pre, const float* norm, float* x) {
  const std::int64_t d = hyper.d;
  Squares squares;
  std::int64_t i = 0;
  const auto whole = [&](std::int64_t at) __attribute__((always_inline)) {
    const F v = weighted<S>(streams, hyper.streams, d, pre, at, kLanes);
    store(x + at, v);
    return v;
  };
  for (; i + 4 * kLanes <= d; i += 4 * kLanes) {
    squares.add<0>(whole(i));
    squares.add<1>(whole(i + kLanes));
    squares.add<2>(whole(i + 2 * kLanes));
    squares.add<3>(whole(i + 3 * kLanes));
  }
  const auto part = [&](std::int64_t at) {
    const std::int64_t some = least(kLanes, d - at);
    const F v = weighted<S>(streams, hyper.streams, d, pre, at, some);
    store_some(x + at, v, some);
    return v;
  };
  if (i < d) squares.add<0>(part(i));
  if (i + kLanes < d) squares.add<1>(part(i + kLanes));
  if (i + 2 * kLanes < d) squares.add<2>(part(i + 2 * kLanes));
  if (i + 3 * kLanes < d) squares.add<3>(part(i + 3 * kLanes));
  if (norm == nullptr) return;
  const float total = squares.total();
  scale_row(x, d, rms_factor(total, d, hyper.norm_eps), norm, x);
}

// ---------------------------------------------------------------- all of it for some tokens

// One call of hyper_pre or (post null) hyper_head.
struct Call {
  const HyperArgs& hyper;
  const float* streams;
  const float* norm;
  float* x;
  float* post;
  float* comb;
  std::int64_t rows;  // coefficients of a token
};

constexpr int kGroup = 4;  // tokens whose coefficients are computed side by side

// Accumulators [rows, 16] of one token -> its mixes.
void finish_mix(const Call& call, const float* acc, const float* flat, float* mix) {
  const std::int64_t width = call.hyper.streams * call.hyper.d;
  const float factor = rms_factor(sum_of_squares(flat, width), width, call.hyper.norm_eps);
  for (std::int64_t r = 0; r < call.rows; ++r) mix[r] = sum(load(acc + r * kLanes)) * factor;
}

void coefficients(const Call& call, const float* mix, const Coefficients* to, std::int64_t count) {
  if (call.post == nullptr) {
    for (std::int64_t t = 0; t < count; ++t) head_coefficients(call.hyper, mix + t * call.rows, to[t].pre);
  } else if (call.hyper.streams != 4) {
    for (std::int64_t t = 0; t < count; ++t) coefficients_any(call.hyper, mix + t * call.rows, to[t]);
  } else if (count == kGroup) {
    coefficients4<kGroup>(call.hyper, mix, to);
  } else {
    for (std::int64_t t = 0; t < count; ++t) coefficients4<1>(call.hyper, mix + t * call.rows, to + t);
  }
}

// The first n tokens from their accumulators acc [n, rows, 16].
void finish_tokens(const Call& call, Arena& arena, const float* acc, std::int64_t n) {
  Arena::Scope scope(arena);
  const std::int64_t s = call.hyper.streams, d = call.hyper.d;
  float* const mix = arena.take<float>(kGroup * call.rows);
  float* const pre = arena.take<float>(kGroup * s);
  Coefficients to[kGroup];
  for (std::int64_t token = 0; token < n; token += kGroup) {
    const std::int64_t count = least(kGroup, n - token);
    for (std::int64_t t = 0; t < count; ++t) {
      finish_mix(call, acc + (token + t) * call.rows * kLanes, call.streams + (token + t) * s * d, mix + t * call.rows);
      to[t] = {pre + t * s, call.post ? call.post + (token + t) * s : nullptr,
               call.comb ? call.comb + (token + t) * s * s : nullptr};
    }
    coefficients(call, mix, to, count);
    for (std::int64_t t = 0; t < count; ++t) {
      const float* const own = call.streams + (token + t) * s * d;
      float* const x = call.x + (token + t) * d;
      if (s == 4)
        sum_streams<4>(call.hyper, own, to[t].pre, call.norm, x);
      else
        sum_streams<0>(call.hyper, own, to[t].pre, call.norm, x);
    }
  }
}

// The same call for its tokens from `first` on.
Call part_of(const Call& call, std::int64_t first) {
  const std::int64_t s = call.hyper.streams, d = call.hyper.d;
  Call part = call;
  part.streams += first * s * d;
  part.x += first * d;
  if (part.post) part.post += first * s;
  if (part.comb) part.comb += first * s * s;
  return part;
}

Mix make_mix(const Call& call, Arena& arena, std::int64_t n) {
  float* const acc = arena.take<float>(n * call.rows * kLanes);
  return {call.streams, call.hyper.fn, acc, call.rows, call.hyper.streams * call.hyper.d};
}

// Tokens [first, last) on one thread.
void run_tokens(const Call& whole, Arena& arena, std::int64_t first, std::int64_t last) {
  Arena::Scope scope(arena);
  const Call call = part_of(whole, first);
  const Mix mix = make_mix(call, arena, last - first);
  mix_block(mix, 0, last - first, 0, call.rows);
  finish_tokens(call, arena, mix.acc, last - first);
}

// Few tokens: the rows of fn are dealt out, so that it is read once.
void split_rows(Context& context, const Call& call) {
  Arena::Scope scope(context.arena);
  const std::int64_t n = call.hyper.n;
  const Mix mix = make_mix(call, context.arena, n);
  const std::int64_t share = most(4, shares(mix.rows, context.pool.threads()));
  context.pool.run(shares(mix.rows, share), [&](std::int64_t task, int) {
    mix_block(mix, 0, n, task * share, least(mix.rows, (task + 1) * share));
  });
  finish_tokens(call, context.arena, mix.acc, n);
}

void run(Context& context, const Call& call) {
  const std::int64_t n = call.hyper.n, products = call.rows * call.hyper.streams * call.hyper.d;
  const int threads = context.pool.threads();
  if (threads > 1 && n < kTokens && products >= kSplit) return split_rows(context, call);
  std::int64_t share = kTokens;
  if (threads > 1 && n * products >= 4 * kSplit) share = least(kTokens, most(kGroup, shares(n, threads)));
  const auto task = [&](std::int64_t i, int thread) {
    run_tokens(call, context.own(thread), i * share, least(n, (i + 1) * share));
  };
  if (threads == 1 || n * products < 4 * kSplit) {
    for (std::int64_t i = 0; i < shares(n, share); ++i) task(i, 0);
    return;
  }
  context.pool.run(shares(n, share), task);
}

// Streams of one vector of columns: all are read before any is written.
FOVEAL_INLINE void post4(const float* out, const float* post, const float* comb, float* streams, std::int64_t d,
                         std::int64_t i, std::int64_t some) {
  F old[4];
  const F added = load_some(out + i, some);
  for (int j = 0; j < 4; ++j) old[j] = load_some(streams + j * d + i, some);
  for (int k = 0; k < 4; ++k) {
    F v = splat(post[k]) * added;
    for (int j = 0; j < 4; ++j) v = fma(splat(comb[j * 4 + k]), old[j], v);
    store_some(streams + k * d + i, v, some);
  }
}

void post_any(const float* out, const float* post, const float* comb, float* streams, std::int64_t s, std::int64_t d,
              std::int64_t i, std::int64_t some, F* old) {
  const F added = load_some(out + i, some);
  for (std::int64_t j = 0; j < s; ++j) old[j] = load_some(streams + j * d + i, some);
  for (std::int64_t k = 0; k < s; ++k) {
    F v = splat(post[k]) * added;
    for (std::int64_t j = 0; j < s; ++j) v = fma(splat(comb[j * s + k]), old[j], v);
    store_some(streams + k * d + i, v, some);
  }
}

void post_token(const float* out, const float* post, const float* comb, float* streams, std::int64_t s, std::int64_t d,
                Arena& arena) {
  std::int64_t i = 0;
  if (s == 4) {
    for (; i + kLanes <= d; i += kLanes) post4(out, post, comb, streams, d, i, kLanes);
    if (i < d) post4(out, post, comb, streams, d, i, d - i);
    return;
  }
  Arena::Scope scope(arena);
  F* const old = static_cast<F*>(arena.take_bytes((std::size_t)s * sizeof(F)));
  for (; i < d; i += kLanes) post_any(out, post, comb, streams, s, d, i, least(kLanes, d - i), old);
}

}  // namespace

void hyper_pre(Context& context, const HyperArgs& hyper, const float* streams, const float* norm, float* x, float* post,
               float* comb) {
  run(context, {hyper, streams, norm, x, post, comb, (2 + hyper.streams) * hyper.streams});
}

void hyper_head(Context& context, const HyperArgs& hyper, const float* streams, const float* norm, float* x) {
  run(context, {hyper, streams, norm, x, nullptr, nullptr, hyper.streams});
}

void hyper_post(Context& context, std::int64_t n, std::int64_t count, std::int64_t d, const float* out,
                const float* post, const float* comb, float* streams) {
  each_token(context, n, 2 * count * d, [&](std::int64_t i, int thread) {
    post_token(out + i * d, post + i * count, comb + i * count * count, streams + i * count * d, count, d,
               context.own(thread));
  });
}

}  // namespace foveal::FOVEAL_ISA
