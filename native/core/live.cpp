#include "live.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace foveal {

constexpr std::int64_t kCsaRatio = 4;
constexpr std::int64_t kKeptRows = 8;  // staging that a ring keeps from step to step: decoding then allocates nothing

Ring::Ring(std::int64_t capacity, std::int64_t row_bytes)
    : mask_(static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(std::max<std::int64_t>(capacity, 1)))) - 1),
      row_bytes_(row_bytes),
      data_(static_cast<std::size_t>((mask_ + 1) * row_bytes)) {}

Rows Ring::rows(std::int64_t length, const void* fresh) const {
  return {data_.data(), static_cast<const std::uint8_t*>(fresh), mask_, length, row_bytes_};
}

void Ring::stage(const void* rows, std::int64_t count, std::int64_t keep, std::int64_t end) {
  const std::int64_t staged = std::min(count, keep);
  staged_first_ = end - staged;
  const auto* last = static_cast<const std::uint8_t*>(rows) + count * row_bytes_;
  staging_.assign(last - staged * row_bytes_, last);
}

void Ring::commit() {
  put(staged_first_, staged_first_ + static_cast<std::int64_t>(staging_.size()) / row_bytes_, staging_.data());
  staging_.clear();
  if (staging_.capacity() > static_cast<std::size_t>(kKeptRows * row_bytes_)) staging_.shrink_to_fit();
}

void Ring::put(std::int64_t first, std::int64_t last, const void* from) {
  const auto* row = static_cast<const std::uint8_t*>(from);
  for (std::int64_t p = first; p < last; ++p, row += row_bytes_)
    std::memcpy(data_.data() + (p & mask_) * row_bytes_, row, static_cast<std::size_t>(row_bytes_));
}

void Ring::get(std::int64_t first, std::int64_t last, void* to) const {
  auto* row = static_cast<std::uint8_t*>(to);
  for (std::int64_t p = first; p < last; ++p, row += row_bytes_)
    std::memcpy(row, data_.data() + (p & mask_) * row_bytes_, static_cast<std::size_t>(row_bytes_));
}

Live::Live(const CacheShape& shape_) : shape(shape_) {
  const std::int64_t number = shape.window_codec == Codec::kF32 ? 4 : 2;
  for (const LayerLayout& layer : shape.layers) {
    windows_.emplace_back(std::max<std::int64_t>(shape.window - 1, 1), shape.head_dim * number);
    open_at_.push_back(open_.size());
    const std::int64_t most = layer.ratio == kCsaRatio ? 2 * kCsaRatio - 1 : layer.ratio - 1;
    for (const Region* region : {&layer.main, &layer.index}) {
      if (!region->present) continue;
      const std::int64_t bytes = region->row_width * static_cast<std::int64_t>(sizeof(float));
      open_.push_back({Ring(most, bytes), Ring(most, bytes)});
    }
  }
}

std::int64_t Live::open_rows(std::int64_t ratio, std::int64_t tokens) {
  return (ratio == kCsaRatio && tokens >= ratio ? ratio : 0) + tokens % ratio;
}

Entries Live::entries(const Region& region, std::int64_t count) const {
  return {region.codec, pages.data(), region.offset, region.per_page, region.entry_bytes, count, region.width, shape.rotary};
}

Entries Live::copied(const Region& region, std::int64_t count) const {
  Entries found = entries(region, count);
  found.pages = copies.data();
  found.offset = region.pack_offset;
  return found;
}

void Live::add_page(std::uint8_t* page, std::uint8_t* slab, std::int64_t slot) {
  pages.push_back(page);
  packs.push_back(slab + slot * shape.key_bytes);
  copies.push_back(slab + slot * shape.copy_bytes);
}

void Live::commit(std::int64_t tokens) {
  for (Ring& ring : windows_) ring.commit();
  for (OpenRings& rings : open_) {
    rings.kv.commit();
    rings.gate.commit();
  }
  length += tokens;
}

}  // namespace foveal
