// One sequence as the network works on it: where its pages lie, and its tail in rings that a step writes in place.
//
// Nothing counts before `commit`. A step leaves its last rows in a staging area and its entries in page slots behind
// the length; a step that fails is forgotten with this object. Python's `foveal.cache.Sequence` owns the pages and
// holds one of these while it is being run; the saved form of a tail is made from it when somebody asks. Many of them
// share their pages, so what counts is what one takes itself: rings, and staging of a few rows. What a long step needs
// beyond those is let go after it.
#pragma once

#include <cstdint>
#include <vector>

#include "core.h"
#include "indexer.h"

namespace foveal {

// One compressor's entries inside a page (Python: foveal.cache.layout.Region) and its open rows.
struct Region {
  bool present = false;
  Codec codec = Codec::kBF16;
  std::int64_t offset = 0;       // in a page
  std::int64_t per_page = 0;
  std::int64_t entry_bytes = 0;
  std::int64_t width = 0;        // e
  std::int64_t row_width = 0;    // of kv and of gate: 2 e in CSA layers, e in HCA layers
  std::int64_t pack_offset = 0;  // of index keys, and of HCA entries: in a slab, behind what its pages' slots take
};

struct LayerLayout {
  std::int64_t ratio = 0;
  Region main, index;
};

// What a step streams through lies in slabs, layer by layer: of `slots` pages the index keys in the order of the dot
// products (packs), and copies of the HCA entries. A layer's part of one page is `key_bytes` or `copy_bytes`; that of the
// next slot follows, so that memory is read in one go, page after page.
struct CacheShape {
  std::int64_t window = 0;     // W
  std::int64_t head_dim = 0;   // c
  std::int64_t rotary = 0;     // R
  Codec window_codec = Codec::kBF16;
  std::vector<LayerLayout> layers;
  PackShape pack{PackKind::kFP4, 0, 0};
  std::int64_t slots = 1, key_bytes = 0, copy_bytes = 0;
  std::int64_t slot_bytes = 0;  // of one page, in all layers

  std::int64_t slab_bytes() const { return slots * slot_bytes; }
};

// Rows by position in a ring, and the newest rows of a step that is not committed yet.
class Ring {
 public:
  Ring(std::int64_t capacity, std::int64_t row_bytes);  // capacity: rounded up to a power of two

  std::int64_t row_bytes() const { return row_bytes_; }
  // For kernels: the past, and `fresh` rows from `length` on.
  Rows rows(std::int64_t length, const void* fresh) const;
  // Keeps the last `keep` of `count` rows that end before position `end`, until commit.
  void stage(const void* rows, std::int64_t count, std::int64_t keep, std::int64_t end);
  void commit();
  // Rows [first, last) from or to contiguous memory, past the staging.
  void put(std::int64_t first, std::int64_t last, const void* from);
  void get(std::int64_t first, std::int64_t last, void* to) const;

 private:
  std::int64_t mask_, row_bytes_;
  std::vector<std::uint8_t> data_, staging_;  // staging: filled only during a step
  std::int64_t staged_first_ = 0;
};

struct OpenRings {
  Ring kv, gate;
};

class Live {
 public:
  explicit Live(const CacheShape& shape);

  const CacheShape shape;
  std::int64_t length = 0;
  std::vector<std::uint8_t*> pages;
  std::vector<std::uint8_t*> packs;   // where a page's slot begins in the first layer's keys...
  std::vector<std::uint8_t*> copies;  // ...and in the first layer's HCA entries

  void add_page(std::uint8_t* page, std::uint8_t* slab, std::int64_t slot);

  Ring& window(std::size_t layer) { return windows_[layer]; }
  OpenRings& open(std::size_t layer, bool index) { return open_[open_at_[layer] + (index ? 1 : 0)]; }

  // Rows a compressor still needs after `tokens` tokens (Python: open_row_count).
  static std::int64_t open_rows(std::int64_t ratio, std::int64_t tokens);
  // Entries of a compressor in place, `count` of them.
  Entries entries(const Region& region, std::int64_t count) const;
  // The same of an HCA layer, from the copies.
  Entries copied(const Region& region, std::int64_t count) const;

  void commit(std::int64_t tokens);

 private:
  std::vector<Ring> windows_;
  std::vector<OpenRings> open_;
  std::vector<std::size_t> open_at_;
};

}  // namespace foveal
