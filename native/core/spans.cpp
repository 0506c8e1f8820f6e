// Which columns of a weight's rows hold anything but zeros.
#include <algorithm>
#include <cstring>

#include "core.h"

namespace foveal {
namespace {

constexpr std::int64_t kProbes = 32;  // rows that are looked at before the whole weight is

std::int64_t row_bytes(const Matrix& weight) {
  switch (weight.format) {
    case Format::kF32: return 4 * weight.columns;
    case Format::kBF16: return 2 * weight.columns;
    case Format::kFP8: return weight.columns;
    case Format::kFP4: return weight.columns / 2;
  }
  return 0;
}

// All bits but the signs of eight bytes of numbers.
std::uint64_t magnitudes(Format format) {
  switch (format) {
    case Format::kF32: return 0x7fffffff7fffffffULL;
    case Format::kBF16: return 0x7fff7fff7fff7fffULL;
    case Format::kFP8: return 0x7f7f7f7f7f7f7f7fULL;
    case Format::kFP4: return 0x7777777777777777ULL;
  }
  return 0;
}

bool any(const std::uint8_t* from, std::int64_t bytes, std::uint64_t mask) {
  std::uint64_t found = 0;
  for (; bytes >= 8; bytes -= 8, from += 8) {
    std::uint64_t word;
    std::memcpy(&word, from, 8);
    found |= word & mask;
  }
  std::uint64_t word = 0;
  std::memcpy(&word, from, static_cast<std::size_t>(bytes));
  return ((found | word) & mask) != 0;
}

// A scale that is not a number makes one of zeros as well.
bool scaled_by_nan(const Matrix& weight, std::int64_t row, std::int64_t step) {
  if (weight.format == Format::kFP8)
    return weight.scale[row / 128 * ((weight.columns + 127) / 128) + step * kSpanColumns / 128] == 255;
  if (weight.format != Format::kFP4) return false;
  const std::int64_t blocks = (weight.columns + 31) / 32, first = step * kSpanColumns / 32;
  const std::uint8_t* scales = weight.scale + row * blocks;
  return scales[first] == 255 || (first + 1 < blocks && scales[first + 1] == 255);
}

bool used(const Matrix& weight, std::int64_t row, std::int64_t step) {
  const std::int64_t bytes = row_bytes(weight), each = bytes * kSpanColumns / weight.columns;
  const auto* from = static_cast<const std::uint8_t*>(weight.data) + row * bytes + step * each;
  return any(from, std::min(each, bytes - step * each), magnitudes(weight.format)) || scaled_by_nan(weight, row, step);
}

// The span of one row joined to what `span` holds already.
void join(const Matrix& weight, std::int64_t row, std::int64_t steps, Span& span) {
  for (std::int64_t s = 0; s < std::min<std::int64_t>(span.first, steps); ++s)
    if (used(weight, row, s)) span.first = static_cast<std::uint16_t>(s);
  for (std::int64_t s = steps - 1; s >= span.end; --s)
    if (used(weight, row, s)) span.end = static_cast<std::uint16_t>(s + 1);
}

}  // namespace

std::vector<Span> find_spans(const Matrix& weight) {
  const std::int64_t steps = (weight.columns + kSpanColumns - 1) / kSpanColumns;
  if (steps > kSpanNone) return {};
  const auto joined = [&](std::int64_t first, std::int64_t last) {
    Span span{kSpanNone, 0};
    for (std::int64_t row = first; row < last; ++row) join(weight, row, steps, span);
    return span.end == 0 ? Span{0, 0} : span;
  };
  const auto width = [](const Span& span) { return static_cast<std::int64_t>(span.end - span.first); };
  bool probed = false;
  for (std::int64_t i = 0; i < kProbes && !probed; ++i) {
    const std::int64_t row = i * weight.rows / kProbes;
    probed = width(joined(row, row + 1)) < steps;
  }
  if (!probed) return {};
  std::vector<Span> spans;
  std::int64_t all = 0;
  for (std::int64_t row = 0; row < weight.rows; row += kSpanRows) {
    spans.push_back(joined(row, std::min(row + kSpanRows, weight.rows)));
    all += width(spans.back());
  }
  constexpr std::int64_t kWorthwhile = 16;  // fewer zeros than a part in so many are read
  if (all * kWorthwhile > static_cast<std::int64_t>(spans.size()) * steps * (kWorthwhile - 1)) return {};
  return spans;
}

}  // namespace foveal
