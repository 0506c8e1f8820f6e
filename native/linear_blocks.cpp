// Blocks of products: which loop suits the number of tokens, and how much of a weight is decoded at a time.
#include "linear_blocks.h"

#include <type_traits>

#include "linear_tiles.h"

namespace foveal::FOVEAL_ISA {
namespace {

constexpr std::int64_t kNearBytes = 32 << 10;  // decoded rows for few tokens stay in the first-level cache,
constexpr std::int64_t kFarBytes = 384 << 10;  // for many in the second
constexpr std::int64_t kMany = 32;

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
FOVEAL_INLINE void stream_tokens(const Job& job) {
  const std::uint8_t* x[T];
  float* y[T];
  pointers<T>(job, 0, x, y);
  stream<D, Terms, T>(job.weight, job.first, job.last, x, y, job.y.add);
}

template <class D, int Terms, int T>
FOVEAL_INLINE void block_tokens(const Job& job, const typename D::Element* rows, std::int64_t row, std::int64_t count, std::int64_t t) {
  const std::uint8_t* x[T];
  float* y[T];
  pointers<T>(job, t, x, y);
  using Arithmetic = std::conditional_t<D::kVectors == Wide::kVectors, Wide,
#if FOVEAL_AVX512
                                        Half
#else
                                        Wide
#endif
                                        >;
  block_tile<Arithmetic, Terms, T>(rows, count, (job.weight.columns + kStep - 1) / kStep, x, y, row - job.first, job.y.add);
}

template <class D, int Terms>
void blocks(const Job& job) {
  using Element = typename D::Element;
  const std::int64_t width = (job.weight.columns + kStep - 1) / kStep * kStep;
  const std::int64_t bytes = width * (std::int64_t)sizeof(Element);
  std::int64_t most = (job.n > kMany ? kFarBytes : kNearBytes) / bytes / 4 * 4;
  most = most < 4 ? 4 : most;
  const std::int64_t rows = job.last - job.first < most ? (job.last - job.first + 3) / 4 * 4 : most;
  Arena::Scope scope(job.scratch);
  Element* decoded = job.scratch.take<Element>(rows * width);
  for (std::int64_t row = job.first; row < job.last; row += rows) {
    const std::int64_t count = job.last - row < rows ? job.last - row : rows;
    decode_rows<D>(job.weight, row, count, (count + 3) / 4 * 4, decoded);
    std::int64_t t = 0;
    for (; t + 4 <= job.n; t += 4) block_tokens<D, Terms, 4>(job, decoded, row, count, t);
    if (job.n - t == 3) block_tokens<D, Terms, 3>(job, decoded, row, count, t);
    if (job.n - t == 2) block_tokens<D, Terms, 2>(job, decoded, row, count, t);
    if (job.n - t == 1) block_tokens<D, Terms, 1>(job, decoded, row, count, t);
  }
}

template <class D, int Terms>
void multiply_as(const Job& job) {
  switch (job.n) {
    case 1: return stream_tokens<D, Terms, 1>(job);
    case 2: return stream_tokens<D, Terms, 2>(job);
    case 3: return stream_tokens<D, Terms, 3>(job);
    case 4: return stream_tokens<D, Terms, 4>(job);
    default: return blocks<D, Terms>(job);
  }
}

}  // namespace

void multiply(const Matrix& weight, std::int64_t first, std::int64_t last, const Layout& layout, const Input& x, std::int64_t n,
              const Output& y, Arena& scratch) {
  if (n == 0 || first >= last) return;
  const Job job{weight, first, last, x, n, y, scratch};
#if FOVEAL_AVX512
  if (layout.half) switch (weight.format) {
      case Format::kFP4: return layout.terms == 2 ? multiply_as<HalfFP4, 2>(job) : multiply_as<HalfFP4, 1>(job);
      case Format::kFP8: return layout.terms == 2 ? multiply_as<HalfFP8, 2>(job) : multiply_as<HalfFP8, 1>(job);
      default: return layout.terms == 2 ? multiply_as<HalfBF16, 2>(job) : multiply_as<HalfBF16, 1>(job);
    }
#else
  (void)layout;
#endif
  switch (weight.format) {
    case Format::kF32: return multiply_as<WideF32, 1>(job);
    case Format::kBF16: return multiply_as<WideBF16, 1>(job);
    case Format::kFP8: return multiply_as<WideFP8, 1>(job);
    case Format::kFP4: return multiply_as<WideFP4, 1>(job);
  }
}

std::int64_t weight_row_bytes(const Matrix& weight) {
  switch (weight.format) {
    case Format::kF32: return 4 * weight.columns;
    case Format::kBF16: return 2 * weight.columns;
    case Format::kFP8: return weight.columns;
    case Format::kFP4: return weight.columns / 2 + (weight.columns + 31) / 32;
  }
  return 0;
}

std::int64_t product_cost(const Matrix& weight, std::int64_t rows, std::int64_t n, const Layout& layout) {
  constexpr std::int64_t kBytesANanosecond = 20, kProductsANanosecond = 60;
  const std::int64_t reading = rows * weight_row_bytes(weight) / kBytesANanosecond;
  const std::int64_t adding = rows * weight.columns * n * layout.terms / (layout.half ? kProductsANanosecond : kProductsANanosecond / 3);
  return reading > adding ? reading : adding;
}

}  // namespace foveal::FOVEAL_ISA
