// Blocks of products: which loop suits the number of tokens, and how much of a weight is decoded at a time.
#include "linear_blocks.h"

#include <type_traits>

#include "linear_tiles.h"

namespace foveal::FOVEAL_ISA {
namespace {

// Bytes of a block of decoded rows, which stay in the second-level cache, and tokens that pass by before the next rows'
// turn. Numbers of four bytes need more of both levels; machines that use them with AVX-512 have a megabyte and more.
#if FOVEAL_AVX512 && !FOVEAL_BF16
constexpr std::int64_t kDecodedBytes = 512 << 10, kTokenGroup = 16;
#else
constexpr std::int64_t kDecodedBytes = 256 << 10, kTokenGroup = 32;
#endif
constexpr std::int64_t kRowGroup = 16;             // rows whose chunk of columns stays in the first-level cache
constexpr std::int64_t kStreamBytes = 64 << 10;    // of a weight that several groups of few tokens pass over in turn

struct Job {
  const Matrix& weight;
  std::int64_t first, last;
  const Input& x;
  std::int64_t n;
  const Output& y;
  Arena& scratch;
};

template <int T>
FOVEAL_INLINE void pointers(const Job& job, std::int64_t t, const std::uint8_t** x, float** y) {
  for (int i = 0; i < T; ++i) {
    x[i] = job.x.at(t + i);
    y[i] = job.y.at(t + i);
  }
}

template <class D, int Terms, int T>
FOVEAL_INLINE void stream_tokens(const Job& job, std::int64_t row, std::int64_t last, std::int64_t t) {
  const std::uint8_t* x[T];
  float* y[T];
  pointers<T>(job, t, x, y);
  stream<D, Terms, T>(job.weight, job.first, row, last, x, y, job.y.add);
}

// Calls body with the number of tokens as a constant: full tiles, then what is left.
template <class Body>
FOVEAL_INLINE void by_tiles(std::int64_t first, std::int64_t last, const Body& body) {
  for (; first + kTileTokens <= last; first += kTileTokens) body(std::integral_constant<int, kTileTokens>(), first);
  if constexpr (kTileTokens > 2) {
    if (last - first == 3) body(std::integral_constant<int, 3>(), first);
    if (last - first == 2) body(std::integral_constant<int, 2>(), first);
  }
  if (last - first == 1) body(std::integral_constant<int, 1>(), first);
}

template <class D, int Terms>
void few_tokens(const Job& job) {
  std::int64_t rows = job.last - job.first;
  if (job.n > kTileTokens) rows = kStreamBytes / weight_row_bytes(job.weight) / 8 * 8;
  rows = rows < 8 ? 8 : rows;
  for (std::int64_t row = job.first; row < job.last; row += rows) {
    const std::int64_t last = row + rows < job.last ? row + rows : job.last;
    by_tiles(0, job.n,
             [&](auto tokens, std::int64_t t) { stream_tokens<D, Terms, decltype(tokens)::value>(job, row, last, t); });
  }
}

// Rows [first, last) of the decoded block, whose row 0 is the weight's `row`, for tokens [start, end).
template <class Arithmetic, int Terms>
void group(const Job& job, const Decoded<Arithmetic>& decoded, std::int64_t row, std::int64_t count, std::int64_t first,
           std::int64_t last, std::int64_t start, std::int64_t end, F* waiting) {
  for (std::int64_t chunk = 0; chunk < decoded.chunks(); ++chunk)
    by_tiles(start, end, [&](auto tokens, std::int64_t t) {
      constexpr int kTokens = decltype(tokens)::value;
      const std::uint8_t* x[kTokens];
      float* y[kTokens];
      pointers<kTokens>(job, t, x, y);
      chunk_tile<Arithmetic, Terms, kTokens>(job.weight, row, decoded, chunk, first, last, count, x, waiting + (t - start) * kRowGroup,
                                             y, row - job.first, job.y.add);
    });
}

FOVEAL_INLINE std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

FOVEAL_INLINE std::int64_t decoded_rows(std::int64_t row_bytes) {
  const std::int64_t rows = kDecodedBytes / row_bytes / kRowGroup * kRowGroup;
  return rows < kRowGroup ? kRowGroup : rows;
}

template <class D, class Arithmetic, int Terms>
void many_tokens(const Job& job) {
  using Element = typename D::Element;
  const std::int64_t steps = (job.weight.columns + kStep - 1) / kStep;
  const std::int64_t rows =
      smaller(decoded_rows(steps * kStep * (std::int64_t)sizeof(Element)), (job.last - job.first + 3) / 4 * 4);
  Arena::Scope scope(job.scratch);
  Decoded<Arithmetic> decoded{job.scratch.take<Element>(rows * steps * kStep), steps, 0};
  F* waiting = job.scratch.take<F>(kRowGroup * kTokenGroup);
  for (std::int64_t row = job.first; row < job.last; row += rows) {
    const std::int64_t count = smaller(rows, job.last - row);
    decoded.padded = (count + 3) / 4 * 4;
    decode_block<D, Arithmetic>(job.weight, row, count, decoded);
    for (std::int64_t t = 0; t < job.n; t += kTokenGroup)
      for (std::int64_t first = 0; first < decoded.padded; first += kRowGroup)
        group<Arithmetic, Terms>(job, decoded, row, count, first, smaller(first + kRowGroup, decoded.padded), t,
                                 smaller(t + kTokenGroup, job.n), waiting);
  }
}

template <class D, class Arithmetic, int Terms>
void multiply_as(const Job& job) {
  if (job.n <= kFewTokens)
    few_tokens<D, Terms>(job);
  else
    many_tokens<D, Arithmetic, Terms>(job);
}

}  // namespace

void multiply(const Matrix& weight, std::int64_t first, std::int64_t last, const Layout& layout, const Input& x,
              std::int64_t n, const Output& y, Arena& scratch) {
  if (n == 0 || first >= last) return;
  const Job job{weight, first, last, x, n, y, scratch};
#if FOVEAL_BF16
  if (layout.half) switch (weight.format) {
      case Format::kFP4:
        return layout.terms == 2 ? multiply_as<HalfFP4, Half, 2>(job) : multiply_as<HalfFP4, Half, 1>(job);
      case Format::kFP8:
        return layout.terms == 2 ? multiply_as<HalfFP8, Half, 2>(job) : multiply_as<HalfFP8, Half, 1>(job);
      default:
        return layout.terms == 2 ? multiply_as<HalfBF16, Half, 2>(job) : multiply_as<HalfBF16, Half, 1>(job);
    }
#else
  (void)layout;
#endif
  switch (weight.format) {
    case Format::kF32:
      return multiply_as<WideF32, Wide, 1>(job);
    case Format::kBF16:
      return multiply_as<WideBF16, Wide, 1>(job);
    case Format::kFP8:
      return multiply_as<WideFP8, Wide, 1>(job);
    case Format::kFP4:
      return multiply_as<WideFP4, Wide, 1>(job);
  }
}

std::int64_t block_rows(const Layout& layout) {
  return decoded_rows(layout.steps() * layout.step_bytes() / layout.terms);
}

std::int64_t weight_row_bytes(const Matrix& weight) {
  switch (weight.format) {
    case Format::kF32:
      return 4 * weight.columns;
    case Format::kBF16:
      return 2 * weight.columns;
    case Format::kFP8:
      return weight.columns;
    case Format::kFP4:
      return weight.columns / 2 + (weight.columns + 31) / 32;
  }
  return 0;
}

// Rates that a core reaches: few tokens wait for the weight's bytes, many compute.
std::int64_t product_cost(const Matrix& weight, std::int64_t rows, std::int64_t n, const Layout& layout) {
  constexpr std::int64_t bytes_a_nanosecond = 12;
  const std::int64_t products_a_nanosecond = layout.half ? 150 / layout.terms : 50;
  const std::int64_t reading = rows * weight_row_bytes(weight) / bytes_a_nanosecond;
  const std::int64_t adding = rows * weight.columns * n / products_a_nanosecond;
  return reading > adding ? reading : adding;
}

}  // namespace foveal::FOVEAL_ISA
