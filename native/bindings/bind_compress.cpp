// Python's face of the compressors and of the cache's codecs: checks shapes, lets go of the GIL, calls the kernels.
//
// An entry's bytes are one row of a uint8 tensor, as in foveal.cache.codec.
#include <map>

#include "bind.h"
#include "compress.h"

namespace foveal {

namespace {

using Rows2 = In<float, 2>;
using Vector = In<float, 1>;

std::int64_t size(const auto& array, std::size_t axis) { return static_cast<std::int64_t>(array.shape(axis)); }

Finish finish_of(const std::string& name) {
  static const std::map<std::string, Finish> kinds{
      {"plain", Finish::kPlain}, {"kv", Finish::kKv}, {"index", Finish::kIndex}};
  const auto found = kinds.find(name);
  require(found != kinds.end(), "finish \"" + name + "\"; it must be one of plain, kv, index");
  return found->second;
}

// A codec bound to a width, checked.
struct Layout {
  Codec codec;
  std::int64_t width, rotary, bytes;
};
Layout layout_of(const std::string& name, std::int64_t width, std::int64_t rotary) {
  const Codec codec = codec_of(name);
  require(width > 0 && rotary >= 0 && rotary <= width,
          "an entry of " + std::to_string(width) + " channels cannot have " + std::to_string(rotary) + " rotary ones");
  require(codec != Codec::kIndexFP4 || width % 2 == 0,
          "an index key of " + std::to_string(width) + " channels cannot be packed: the width must be even");
  return {codec, width, rotary, entry_bytes(codec, width, rotary)};
}

void require_bytes(const auto& rows, std::int64_t count, const Layout& layout) {
  require(size(rows, 0) == count && size(rows, 1) == layout.bytes,
          "the bytes are [" + std::to_string(size(rows, 0)) + ", " + std::to_string(size(rows, 1)) +
              "]; they must be [" + std::to_string(count) + ", " + std::to_string(layout.bytes) + "]");
}

// Rows of the step, and (unless None) a ring of past rows, of which there must be a power of two.
Rows rows_of(const Rows2& past, const Rows2& fresh, std::int64_t length, const std::string& name) {
  Rows rows;
  rows.fresh = reinterpret_cast<const std::uint8_t*>(fresh.data());
  rows.length = length;
  rows.row_bytes = 4 * size(fresh, 1);
  if (!past.is_valid()) return rows;
  const std::int64_t slots = size(past, 0);
  require(slots > 0 && (slots & (slots - 1)) == 0, "the ring of " + name + " must have a power of two of rows");
  require(size(past, 1) == size(fresh, 1), "past and new rows of " + name + " differ in width");
  rows.past = reinterpret_cast<const std::uint8_t*>(past.data());
  rows.mask = slots - 1;
  return rows;
}

// Whether positions [from, to) are all there.
void require_rows(const Rows& rows, std::int64_t from, std::int64_t to, std::int64_t fresh, const std::string& name) {
  const std::int64_t past = rows.past == nullptr ? 0 : rows.mask + 1;
  require(from >= rows.length - past && to <= rows.length + fresh,
          name + " has rows of positions [" + std::to_string(rows.length - past) + ", " +
              std::to_string(rows.length + fresh) + "); the entries need [" + std::to_string(from) + ", " +
              std::to_string(to) + ")");
}


void compress(Runtime& runtime, const Rows2& past_kv, const Rows2& past_gate, const Rows2& kv, const Rows2& gate,
              std::int64_t length, std::int64_t first, std::int64_t last, std::int64_t ratio, bool overlap,
              const Vector& norm, float eps, const Vector& frequencies, const std::string& finish,
              const std::string& codec, const Out<std::uint8_t, 2>& out) {
  const std::int64_t width = size(norm, 0);
  CompressArgs args{};
  args.kv = rows_of(past_kv, kv, length, "kv");
  args.gate = rows_of(past_gate, gate, length, "gate");
  args.first = first;
  args.last = last;
  args.ratio = ratio;
  args.overlap = overlap;
  args.norm = norm.data();
  args.eps = eps;
  args.rotary = {frequencies.data(), size(frequencies, 0)};
  args.finish = finish_of(finish);
  require(ratio > 0 && first >= 0 && last >= first, "entries must be a range of windows of at least one token");
  const std::int64_t columns = (overlap ? 2 : 1) * width;
  require(size(kv, 1) == columns && size(gate, 1) == columns,
          "rows have " + std::to_string(size(kv, 1)) + " and " + std::to_string(size(gate, 1)) +
              " columns; both must have " + std::to_string(columns));
  const Layout layout = layout_of(codec, width, 2 * args.rotary.half);
  require(args.finish != Finish::kIndex || (width & (width - 1)) == 0,
          "an index key of " + std::to_string(width) + " channels: the Hadamard rotation needs a power of two");
  require_bytes(out, last - first, layout);
  if (last == first) return;
  const std::int64_t from = (first - (overlap && first > 0 ? 1 : 0)) * ratio;
  require_rows(args.kv, from, last * ratio, size(kv, 0), "kv");
  require_rows(args.gate, from, last * ratio, size(gate, 0), "gate");
  // One page whose first entry is number `first`.
  std::uint8_t* const page = out.data();
  args.out = {layout.codec, &page, -first * layout.bytes, last, layout.bytes, last, width, layout.rotary};
  const nb::gil_scoped_release release;
  Context& context = runtime.context();
  context.compress->compress(context, &args, 1);
}

void add_position_bias(Runtime& runtime, const Out<float, 2>& gate, const Rows2& ape, std::int64_t position) {
  require(size(ape, 0) > 0 && size(ape, 1) == size(gate, 1), "ape must have at least one row, as wide as gate's");
  require(position >= 0, "position is " + std::to_string(position) + "; it must be at least 0");
  const nb::gil_scoped_release release;
  Context& context = runtime.context();
  context.compress->add_position_bias(context, gate.data(), size(gate, 0), size(gate, 1), ape.data(), size(ape, 0),
                                      position);
}

void encode(Runtime& runtime, const std::string& codec, const Rows2& entries, std::int64_t rotary,
            const Out<std::uint8_t, 2>& out) {
  const Layout layout = layout_of(codec, size(entries, 1), rotary);
  require_bytes(out, size(entries, 0), layout);
  const nb::gil_scoped_release release;
  for (std::int64_t s = 0; s < size(entries, 0); ++s)
    runtime.context().compress->encode(layout.codec, entries.data() + s * layout.width, layout.width, rotary,
                                       out.data() + s * layout.bytes);
}

void decode(Runtime& runtime, const std::string& codec, const In<std::uint8_t, 2>& rows, std::int64_t rotary,
            const Out<float, 2>& entries) {
  const Layout layout = layout_of(codec, size(entries, 1), rotary);
  require_bytes(rows, size(entries, 0), layout);
  const nb::gil_scoped_release release;
  for (std::int64_t s = 0; s < size(entries, 0); ++s)
    runtime.context().compress->decode(layout.codec, rows.data() + s * layout.bytes, layout.width, rotary,
                                       entries.data() + s * layout.width);
}

auto strict(const char* name) { return nb::arg(name).noconvert(); }

}  // namespace

void bind_compress(nb::module_& module) {
  module.def("compress", &compress, nb::arg("runtime"), strict("past_kv").none(), strict("past_gate").none(),
             strict("kv"), strict("gate"), nb::arg("length"), nb::arg("first"), nb::arg("last"), nb::arg("ratio"),
             nb::arg("overlap"), strict("norm"), nb::arg("eps"), strict("frequencies"), nb::arg("finish"),
             nb::arg("codec"), strict("out"),
             "Entries [first, last) -> their bytes, uint8 [last - first, bytes of one]. kv and gate [rows, width]\n"
             "stand at positions `length` and on; past_kv and past_gate (or None) are rings of the positions before.\n"
             "width is e (HCA) or 2 e (CSA, `overlap`). finish: \"plain\", \"kv\" or \"index\"; codec: \"f32\", \"bf16\",\n"
             "\"kv_fp8\", \"index_fp4\" or \"index_fp8\". Raises ValueError for wrong shapes or missing rows.");
  module.def("add_position_bias", &add_position_bias, nb::arg("runtime"), strict("gate"), strict("ape"),
             nb::arg("position"), "gate [n, width] in place: adds ape[(position + i) % ratio]; ape [ratio, width].");
  module.def("encode_entries", &encode, nb::arg("runtime"), nb::arg("codec"), strict("entries"), nb::arg("rotary"),
             strict("out"), "Entries float32 [n, e] -> uint8 [n, bytes], as foveal.cache.codec does.");
  module.def("decode_entries", &decode, nb::arg("runtime"), nb::arg("codec"), strict("rows"), nb::arg("rotary"),
             strict("entries"), "The inverse of encode_entries.");
  module.def("entry_bytes",
             [](const std::string& codec, std::int64_t width, std::int64_t rotary) {
               return layout_of(codec, width, rotary).bytes;
             },
             nb::arg("codec"), nb::arg("width"), nb::arg("rotary"), "Bytes of one entry.");
}

}  // namespace foveal
