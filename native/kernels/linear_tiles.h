// Tiles of R weight rows by T tokens: the one loop that all products run through.
//
// An output is 16 partial sums over ascending columns, then a fixed tree over them, so that one token alone and a tile
// of many give the same bits. Sixteen sums are added up together, transposing on the way.
#pragma once

#include "linear_formats.h"

namespace foveal::FOVEAL_ISA {
namespace {

#if FOVEAL_AVX512
constexpr int kTileTokens = 4;
#else
constexpr int kTileTokens = 2;  // half as many registers
#endif

// One step: R rows are decoded one after the other, each meets all tokens.
template <class D, int Terms, int R, int T, class Load>
FOVEAL_INLINE void decoded_step(D& d, std::int64_t s, const typename D::Element* const* x, typename D::Sum* sums,
                                const Load& load) {
  using V = typename D::V;
  constexpr int kVectors = D::kVectors;
  D::enter(d, s);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    V w[kVectors];
    load(r, s, w);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t)
#pragma GCC unroll 2
        for (int term = 0; term < Terms; ++term)
          sums[r * T + t] =
              D::dot(sums[r * T + t], w[v], load_as<V>(x[t] + ((s * kVectors + v) * Terms + term) * D::kElements));
  }
}

// One step of rows that are decoded already: a vector of each row and one of a token stay in registers.
template <class D, int Terms, int R, int T>
FOVEAL_INLINE void ready_step(D& d, std::int64_t s, const typename D::Element* const* x, typename D::Sum* sums) {
  using V = typename D::V;
#pragma GCC unroll 4
  for (int v = 0; v < D::kVectors; ++v) {
    V w[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) w[r] = D::load_vector(d, r, s, v);
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t)
#pragma GCC unroll 2
      for (int term = 0; term < Terms; ++term) {
        const V y = load_as<V>(x[t] + ((s * D::kVectors + v) * Terms + term) * D::kElements);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sums[r * T + t] = D::dot(sums[r * T + t], w[r], y);
      }
  }
}

// One part of the lanes of what run_tile does.
template <class D, int Terms, int R, int T>
FOVEAL_INLINE void run_part(D& d, std::int64_t begin, std::int64_t steps, bool tail, const std::uint8_t* const* tokens, std::int64_t ahead,
                            const F* from, F* acc) {
  using Element = typename D::Element;
  using V = typename D::V;
  using Sum = typename D::Sum;
  Sum sums[R * T];
  if (from) {
#pragma GCC unroll 16
    for (int i = 0; i < R * T; ++i) sums[i] = load_as<Sum>((const float*)(from + i) + d.lane);
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < R * T; ++i) sums[i] = Sum{};
  }
  const Element* x[T];
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) x[t] = (const Element*)tokens[t] + d.lane;
  if constexpr (D::kReady) {
    for (std::int64_t s = begin; s < steps; ++s) ready_step<D, Terms, R, T>(d, s, x, sums);
  } else {
    for (std::int64_t s = begin; s < steps; ++s)
      decoded_step<D, Terms, R, T>(d, s, x, sums, [&](int r, std::int64_t at, V* w) __attribute__((always_inline)) {
        D::fetch(d, r + ahead, at);
        D::load_step(d, r, at, w);
      });
    if (tail)
      decoded_step<D, Terms, R, T>(d, steps, x, sums, [&](int r, std::int64_t at, V* w) __attribute__((always_inline)) {
        D::load_tail(d, r, at, w);
      });
  }
#pragma GCC unroll 16
  for (int i = 0; i < R * T; ++i) std::memcpy((float*)(acc + i) + d.lane, &sums[i], sizeof sums[i]);
}

// acc[r * T + t]: row r of the decoder times token t, from step `begin` to whole step `steps` and, with `tail`, over one
// that is cut short; on top of `from` unless that is null. `ahead` rows further on, what will be needed next is fetched.
template <class D, int Terms, int R, int T>
FOVEAL_INLINE void run_tile(D& d, std::int64_t begin, std::int64_t steps, bool tail, const std::uint8_t* const* tokens, std::int64_t ahead,
                            const F* from, F* acc) {
  if constexpr (D::kParts == 1) {
    run_part<D, Terms, R, T>(d, begin, steps, tail, tokens, ahead, from, acc);
  } else {
    for (d.lane = 0; d.lane < kLanes; d.lane += kLanes / D::kParts)
      run_part<D, Terms, R, T>(d, begin, steps, tail, tokens, ahead, from, acc);
  }
}

#if FOVEAL_AVX512

// Halves of two sums in one vector; then quarters of four, eighths of eight, the sums of sixteen.
FOVEAL_INLINE __m512 join_halves(F a, F b) {
  return _mm512_add_ps(_mm512_insertf32x8((__m512)a, _mm512_castps512_ps256((__m512)b), 1),
                       _mm512_shuffle_f32x4((__m512)a, (__m512)b, 0xee));
}
FOVEAL_INLINE __m512 join_quarters(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
FOVEAL_INLINE __m512 join_eighths(__m512 a, __m512 b) {
  const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
  return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
}
FOVEAL_INLINE __m512 join_pairs(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}
FOVEAL_INLINE __m512 join_four(const F* a) { return join_quarters(join_halves(a[0], a[1]), join_halves(a[2], a[3])); }

#endif

// simd.h's sum().
FOVEAL_INLINE float total(const F* acc) {
#if FOVEAL_AVX2
  const float* v = (const float*)acc;
  const __m256 a = _mm256_add_ps(_mm256_loadu_ps(v), _mm256_loadu_ps(v + 8));
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
#else
  return sum(*acc);
#endif
}

#if FOVEAL_AVX512
// The sums of 4 rows for 4 tokens, token by token.
FOVEAL_INLINE __m512 add_up_square(const F* acc) {
  const __m512 low = join_eighths(join_four(acc), join_four(acc + 4));
  const __m512 high = join_eighths(join_four(acc + 8), join_four(acc + 12));
  return join_pairs(low, high);
}
#endif

// The sums of R rows for T tokens: totals[t * R + r].
template <int R, int T>
FOVEAL_INLINE void add_up(const F* acc, float* totals) {
#if FOVEAL_AVX512
  if constexpr (R == 4 && T == 4) {
    _mm512_storeu_ps(totals, add_up_square(acc));
    return;
  } else if constexpr (R == 8 && T == 1) {
    const __m512 both = join_eighths(join_four(acc), join_four(acc + 4));
    const __m512 sums = join_pairs(both, both);  // lanes 4l and 4l + 1: rows l and 4 + l
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm256_storeu_ps(totals, _mm512_castps512_ps256(_mm512_permutexvar_ps(order, sums)));
    return;
  } else if constexpr (R == 4 && T == 1) {
    const __m512 four = join_four(acc);
    const __m512 eighths = join_eighths(four, four);
    const __m512 sums = join_pairs(eighths, eighths);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm_storeu_ps(totals, _mm512_castps512_ps128(_mm512_permutexvar_ps(order, sums)));
    return;
  }
#endif
#pragma GCC unroll 16
  for (int i = 0; i < R * T; ++i) totals[i % T * R + i / T] = total(acc + i);
}

// Stores or adds the first `rows` of R sums of T tokens.
template <int R, int T>
FOVEAL_INLINE void put(const F* acc, std::int64_t rows, float* const* y, std::int64_t at, bool add) {
#if FOVEAL_AVX512
  if constexpr (R == 4 && T == 4) {
    if (rows == R) {
      const __m512 totals = add_up_square(acc);
      const __m128 parts[4] = {_mm512_castps512_ps128(totals), _mm512_extractf32x4_ps(totals, 1),
                               _mm512_extractf32x4_ps(totals, 2), _mm512_extractf32x4_ps(totals, 3)};
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t)
        _mm_storeu_ps(y[t] + at, add ? _mm_add_ps(_mm_loadu_ps(y[t] + at), parts[t]) : parts[t]);
      return;
    }
  }
#endif
  float totals[R * T];
  add_up<R, T>(acc, totals);
  for (int t = 0; t < T; ++t) {
    float* to = y[t] + at;
    if (rows == R) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) to[r] = add ? to[r] + totals[t * R + r] : totals[t * R + r];
    } else {
      for (int r = 0; r < rows; ++r) to[r] = add ? to[r] + totals[t * R + r] : totals[t * R + r];
    }
  }
}

// How far a weight's rows can be taken together from `row` on: FP8 scales change every 128.
FOVEAL_INLINE std::int64_t same_scale(std::int64_t row, std::int64_t last) {
  const std::int64_t edge = (row / kFP8Rows + 1) * kFP8Rows;
  return (edge < last ? edge : last) - row;
}

// How many rows further on weights are fetched: as far as memory is late, and not so far that a short run of rows would
// be over before.
FOVEAL_INLINE std::int64_t rows_ahead(const Matrix& weight, std::int64_t rows) {
  constexpr std::int64_t kAheadBytes = 16 << 10;
  const std::int64_t wanted = least(shares(kAheadBytes, weight_row_bytes(weight)), rows / 4);
  return round_up(most(1, wanted), 8);
}

// Asks for the first bytes of some rows, which nobody has fetched.
FOVEAL_INLINE void fetch_first(const Matrix& weight, std::int64_t row, std::int64_t rows) {
  constexpr std::int64_t kFirstBytes = 2 << 10;
  const std::int64_t bytes = weight.format == Format::kFP4 ? weight.columns / 2 : weight_row_bytes(weight);
  const auto* from = (const std::uint8_t*)weight.data + row * bytes;
  for (std::int64_t i = 0; i < least(kFirstBytes, rows * bytes); i += 64) __builtin_prefetch(from + i);
}

// The span of `count` rows, of those that are there.
FOVEAL_INLINE Span span_of(const Matrix& weight, std::int64_t row, std::int64_t count) {
  const std::int64_t all = shares(weight.columns, kStep);
  if (!weight.spans) return {0, (std::uint16_t)least(all, kSpanNone)};
  const std::int64_t last = least(row + count, weight.rows) - 1;
  Span span{kSpanNone, 0};
  for (std::int64_t i = row / kSpanRows; i <= last / kSpanRows; ++i) {
    const Span one = weight.spans[i];
    if (one.end == one.first) continue;
    span.first = one.first < span.first ? one.first : span.first;
    span.end = one.end > span.end ? one.end : span.end;
  }
  return span.end == 0 ? Span{0, 0} : span;
}

// Few tokens: weights are decoded in registers, R rows at a time.
template <class D, int Terms, int R, int T>
FOVEAL_INLINE std::int64_t stream_tile(const Matrix& weight, std::int64_t row, std::int64_t ahead, std::int64_t first,
                                       const std::uint8_t* const* x, float* const* y, bool add) {
  F acc[R * T];
  D d(weight, row);
  const std::int64_t whole = weight.columns / kStep;
  if (weight.spans) {
    const Span span = span_of(weight, row, R);
    run_tile<D, Terms, R, T>(d, span.first, least(span.end, whole), span.end > whole, x, ahead, nullptr, acc);
  } else {
    run_tile<D, Terms, R, T>(d, 0, whole, weight.columns % kStep != 0, x, ahead, nullptr, acc);
  }
  put<R, T>(acc, R, y, row - first, add);
  return row + R;
}

// Rows [row, last) of a weight for T tokens; y's columns begin at row `first`.
template <class D, int Terms, int T>
void stream(const Matrix& weight, std::int64_t first, std::int64_t row, std::int64_t last, const std::uint8_t* const* x,
            float* const* y, bool add) {
  constexpr int kRows = T == 1 ? D::kRows : 4;
  const std::int64_t far = rows_ahead(weight, last - row);
  fetch_first(weight, row, last - row);
  while (row < last) {
    const std::int64_t room = same_scale(row, last), ahead = row + kRows + far <= last ? far : 0;
    if (room >= kRows)
      row = stream_tile<D, Terms, kRows, T>(weight, row, ahead, first, x, y, add);
    else if (kRows > 4 && room >= 4)
      row = stream_tile<D, Terms, 4, T>(weight, row, ahead, first, x, y, add);
    else
      row = stream_tile<D, Terms, 1, T>(weight, row, ahead, first, x, y, add);
  }
}

// Decoded rows, in chunks of columns that fit the first-level cache together with the activations they meet: chunk
// after chunk, in each row after row, zeros up to whole steps and up to `padded` rows.
template <class Arithmetic>
struct Decoded {
  using Element = typename Arithmetic::Element;
  static constexpr std::int64_t kChunkSteps = 2048 / (kStep * (std::int64_t)sizeof(Element));
  Element* data;
  std::int64_t steps, padded;

  std::int64_t chunks() const { return (steps + kChunkSteps - 1) / kChunkSteps; }
  std::int64_t chunk_steps(std::int64_t chunk) const {
    const std::int64_t left = steps - chunk * kChunkSteps;
    return left < kChunkSteps ? left : kChunkSteps;
  }
  Element* at(std::int64_t chunk, std::int64_t row) const {
    return data + (chunk * kChunkSteps * padded + row * chunk_steps(chunk)) * kStep;
  }
};

// Decodes R rows from `row` on into places `place` and following.
template <class D, class Arithmetic, int R>
FOVEAL_INLINE void decode_rows(const Matrix& weight, std::int64_t row, std::int64_t place,
                               const Decoded<Arithmetic>& to) {
  using V = typename D::V;
  D d(weight, row);
  // As many columns as any tile reads that these rows are in.
  const std::int64_t before = place % 4, after = (place + R + 3) / 4 * 4 - place;
  const Span span = weight.spans ? span_of(weight, row - before, before + after) : Span{0, kSpanNone};
  const std::int64_t whole = weight.columns / kStep;
  for (std::int64_t chunk = 0; chunk < to.chunks(); ++chunk) {
    const std::int64_t first = chunk * to.kChunkSteps, steps = to.chunk_steps(chunk);
    typename D::Element* out = to.at(chunk, place);
    for (std::int64_t s = 0; s < steps; ++s, out += kStep) {
      if (first + s < span.first || first + s >= span.end) continue;
      D::enter(d, first + s);
#pragma GCC unroll 4
      for (int i = 0; i < R * D::kParts; ++i) {
        const int r = i % R;
        if constexpr (D::kParts > 1) d.lane = i / R * (kLanes / D::kParts);
        V w[D::kVectors];
        if (first + s < whole)
          D::load_step(d, r, first + s, w);
        else
          D::load_tail(d, r, first + s, w);
#pragma GCC unroll 4
        for (int v = 0; v < D::kVectors; ++v)
          std::memcpy(out + r * steps * kStep + v * D::kElements + d.lane, &w[v], sizeof w[v]);
      }
    }
  }
}

template <class D, class Arithmetic>
void decode_block(const Matrix& weight, std::int64_t row, std::int64_t count, const Decoded<Arithmetic>& to) {
  for (std::int64_t i = 0; i < count;) {
    if (same_scale(row + i, row + count) >= 4) {
      decode_rows<D, Arithmetic, 4>(weight, row + i, i, to);
      i += 4;
    } else {
      decode_rows<D, Arithmetic, 1>(weight, row + i, i, to);
      i += 1;
    }
  }
  for (std::int64_t i = count; i < to.padded; ++i)
    for (std::int64_t chunk = 0; chunk < to.chunks(); ++chunk)
      std::memset(to.at(chunk, i), 0, (std::size_t)(to.chunk_steps(chunk) * kStep) * sizeof(*to.data));
}

// One chunk of columns: decoded rows [first, last) times T tokens; decoded row 0 is row `block` of the weight. Sums wait in `waiting` from one chunk to the next,
// and after the last one go to y.
template <class Arithmetic, int Terms, int T>
void chunk_tile(const Matrix& weight, std::int64_t block, const Decoded<Arithmetic>& rows, std::int64_t chunk, std::int64_t first, std::int64_t last,
                std::int64_t count, const std::uint8_t* const* x, F* waiting, float* const* y, std::int64_t at,
                bool add) {
  using Element = typename Arithmetic::Element;
  const std::int64_t steps = rows.chunk_steps(chunk), stride = steps * kStep;
  const bool whole = chunk + 1 == rows.chunks();
  const Element* row = rows.at(chunk, first);
  const std::uint8_t* tokens[T];
  for (int t = 0; t < T; ++t)
    tokens[t] = x[t] + chunk * rows.kChunkSteps * kStep * Terms * (std::int64_t)sizeof(Element);
  for (std::int64_t r = first; r < last; r += 4, waiting += 4 * T, row += 4 * stride) {
    Ready<Arithmetic> ready(row, stride);
    const F* from = chunk ? waiting : nullptr;
    std::int64_t begin = 0, end = steps;
    if (weight.spans) {
      const Span span = span_of(weight, block + r, 4);
      const std::int64_t before = chunk * rows.kChunkSteps;
      begin = least(most(0, span.first - before), steps);
      end = most(begin, least(span.end - before, steps));
    }
    if (!whole) {
      run_tile<Ready<Arithmetic>, Terms, 4, T>(ready, begin, end, false, tokens, 0, from, waiting);
      continue;
    }
    F acc[4 * T];
    run_tile<Ready<Arithmetic>, Terms, 4, T>(ready, begin, end, false, tokens, 0, from, acc);
    put<4, T>(acc, count - r < 4 ? count - r : 4, y, at + r, add);
  }
}

}  // namespace
}  // namespace foveal::FOVEAL_ISA
