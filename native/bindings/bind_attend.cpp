// Attention for Python: a job as an object that checks its arrays once, and jobs run together.
//
// A job takes rows as the network has them (a ring and fresh rows, entries in pages), so that tests reach the kernels'
// addressing; a plain tensor is the fresh rows of an empty past, and one page.
#include <nanobind/stl/optional.h>

#include <map>
#include <optional>

#include "attend.h"
#include "bind.h"
#include "compress.h"

namespace foveal {
namespace {

Codec row_codec(const std::string& name) {
  static const std::map<std::string, Codec> codecs{
      {"f32", Codec::kF32}, {"bf16", Codec::kBF16}, {"fp8", Codec::kKvFP8}};
  const auto found = codecs.find(name);
  require(found != codecs.end(), "codec \"" + name + "\"; it must be one of f32, bf16, fp8");
  return found->second;
}

std::int64_t size(std::size_t x) { return static_cast<std::int64_t>(x); }
std::string text(std::int64_t x) { return std::to_string(x); }

// One `AttendArgs` and the arrays it points into.
class AttendJob {
 public:
  AttendJob(const In<float, 3>& query, std::int64_t position, const Out<float, 3>& out, const In<float, 1>& sink,
            const In<float, 1>& frequencies, const Bytes& fresh, std::int64_t length, const std::optional<Bytes>& past,
            const std::string& window_codec, std::int64_t window_size, const std::vector<Bytes>& pages,
            const std::string& entry_codec, std::int64_t count, std::int64_t per_page, std::int64_t offset,
            std::int64_t rotary, std::int64_t ratio, const std::optional<In<std::int32_t, 2>>& indices,
            const std::optional<Out<float, 2>>& entry_mass, const std::optional<Out<float, 2>>& window_mass)
      : args{}, query_(query), out_(out), sink_(sink), frequencies_(frequencies), fresh_(fresh), past_(past),
        page_arrays_(pages), indices_(indices), entry_mass_(entry_mass), window_mass_(window_mass) {
    args.query = query.data();
    args.n = size(query.shape(0));
    args.heads = size(query.shape(1));
    args.width = size(query.shape(2));
    args.position = position;
    args.out = out.data();
    args.sink = sink.data();
    args.rotary = {frequencies.data(), size(frequencies.shape(0))};
    require(position >= 0 && args.heads >= 1 && args.width >= 1, "attention needs a position, a head and a channel");
    require(out.shape(0) == query.shape(0) && out.shape(1) == query.shape(1) && out.shape(2) == query.shape(2),
            "`out` must have the shape of `query`");
    require(size(sink.shape(0)) == args.heads, "`sink` must have one number a head");
    require(2 * args.rotary.half <= args.width, "more channels rotate than there are");
    set_window(length, window_codec, window_size);
    set_entries(entry_codec, count, per_page, offset, rotary, ratio);
    set_trace();
  }

  AttendArgs args;

 private:
  void set_window(std::int64_t length, const std::string& codec, std::int64_t window_size) {
    args.window_codec = row_codec(codec);
    require(args.window_codec != Codec::kKvFP8, "raw rows are f32 or bf16");
    require(window_size >= 1, "the window holds at least the token itself");
    args.window_size = window_size;
    const std::int64_t bytes = entry_bytes(args.window_codec, args.width, 0), end = args.position + args.n;
    require(length >= 0 && length <= args.position, "`length` must be from 0 to the position of the first token");
    require(size(fresh_.nbytes()) == (end - length) * bytes,
            "the fresh rows have " + text(size(fresh_.nbytes())) + " bytes; positions " + text(length) + " to " +
                text(end) + " of " + text(args.width) + " channels as " + codec + " take " +
                text((end - length) * bytes));
    const std::int64_t rows = past_ ? size(past_->nbytes()) / bytes : 0;
    const std::int64_t oldest = std::max<std::int64_t>(0, args.position - window_size + 1);
    require(!past_ || (size(past_->nbytes()) == rows * bytes && rows > 0 && (rows & (rows - 1)) == 0),
            "the past must be a ring of a power of two rows");
    require(args.n == 0 || rows >= length - oldest,
            "the first token looks back to position " + text(oldest) + ", but rows begin at " + text(length - rows));
    const auto* past = past_ ? static_cast<const std::uint8_t*>(past_->data()) : nullptr;
    args.window = {past, static_cast<const std::uint8_t*>(fresh_.data()), rows - 1, length, bytes};
  }

  void set_entries(const std::string& codec, std::int64_t count, std::int64_t per_page, std::int64_t offset,
                   std::int64_t rotary, std::int64_t ratio) {
    require(count >= 0 && per_page >= 1 && offset >= 0, "entries need a count, a page size and an offset of 0 or more");
    require(rotary >= 0 && rotary <= args.width, "more channels rotate than an entry has");
    require(ratio >= 0, "the ratio must be 0 (no entries) or more");
    Entries& entries = args.entries;
    entries = {row_codec(codec), nullptr, offset, per_page, 0, count, args.width, rotary};
    entries.entry_bytes = entry_bytes(entries.codec, args.width, rotary);
    require(size(page_arrays_.size()) >= (count + per_page - 1) / per_page, "there are fewer pages than entries need");
    for (std::size_t p = 0; p < page_arrays_.size(); ++p) {
      const std::int64_t slots = std::min(per_page, count - size(p) * per_page);
      require(slots <= 0 || size(page_arrays_[p].nbytes()) >= offset + slots * entries.entry_bytes,
              "a page is too small for its entries of " + text(entries.entry_bytes) + " bytes");
      pages_.push_back(static_cast<std::uint8_t*>(const_cast<void*>(page_arrays_[p].data())));
    }
    entries.pages = pages_.data();
    args.ratio = ratio;
    if (!indices_) {
      const std::int64_t seen = args.n == 0 || ratio == 0 ? 0 : (args.position + args.n) / ratio;
      require(seen <= count, "the last token sees " + text(seen) + " entries; there are " + text(count));
      return;
    }
    require(size(indices_->shape(0)) == args.n, "`indices` must have one row a token");
    args.indices = indices_->data();
    args.k = size(indices_->shape(1));
    for (std::int64_t i = 0; i < args.n; ++i) {
      const std::int32_t* list = args.indices + i * args.k;
      for (std::int64_t j = 0; j < args.k; ++j)
        require(list[j] >= -1 && list[j] < count && (j == 0 || list[j] == -1 || list[j - 1] >= 0),
                "`indices` must be entries below " + text(count) + ", then -1");
    }
  }

  void set_trace() {
    require(entry_mass_.has_value() == window_mass_.has_value(), "a trace needs `entry_mass` and `window_mass`");
    if (!entry_mass_ || !window_mass_) return;
    args.trace = size(window_mass_->shape(0));
    const std::int64_t columns = args.indices != nullptr ? args.k : args.entries.count;
    require(args.trace <= args.n && size(window_mass_->shape(1)) == args.window_size,
            "`window_mass` must be [trace, window_size], trace up to the number of tokens");
    require(size(entry_mass_->shape(0)) == args.trace && size(entry_mass_->shape(1)) == columns,
            "`entry_mass` must be [trace, " + text(columns) + "]");
    args.entry_mass = entry_mass_->data();
    args.window_mass = window_mass_->data();
  }

  In<float, 3> query_;
  Out<float, 3> out_;
  In<float, 1> sink_, frequencies_;
  Bytes fresh_;
  std::optional<Bytes> past_;
  std::vector<Bytes> page_arrays_;
  std::vector<std::uint8_t*> pages_;
  std::optional<In<std::int32_t, 2>> indices_;
  std::optional<Out<float, 2>> entry_mass_, window_mass_;
};

void attend(Runtime& runtime, const std::vector<const AttendJob*>& jobs) {
  Context& context = runtime.context();
  std::vector<AttendArgs> args;
  for (const AttendJob* job : jobs) {
    args.push_back(job->args);
    args.back().precision = context.precision;
  }
  const nb::gil_scoped_release released;
  context.attend->attend(context, args.data(), static_cast<int>(args.size()));
}

constexpr const char* kJobText =
    "Attention of n consecutive tokens of one sequence: `query` [n, H, c] fp32, rotated; the first token stands at\n"
    "`position`; `out` [n, H, c]; `sink` [H]; `frequencies` [R / 2], radians a position.\n"
    "Raw rows (`window_codec` \"f32\" or \"bf16\"): `fresh` holds positions `length` to position + n; older ones lie\n"
    "in the ring `past`, position p in row p modulo its rows (a power of two). A token looks at the last\n"
    "`window_size`.\n"
    "Entries (`entry_codec` \"f32\", \"bf16\" or \"fp8\"): entry s is slot s % per_page, from byte `offset` on, of\n"
    "pages[s // per_page]; `count` of them, `rotary` rotary channels in FP8 ones. A token looks at its row of\n"
    "`indices` [n, k] int32 (ascending, then -1), else at the first (p + 1) // ratio (ratio 0: none).\n"
    "`entry_mass` [trace, k or count] and `window_mass` [trace, W] get the weight summed over heads for the last\n"
    "`trace` tokens. Raises ValueError for sizes that do not fit.";

}  // namespace

void bind_attend(nb::module_& module) {
  nb::class_<AttendJob>(module, "AttendJob", kJobText)
      .def(nb::init<const In<float, 3>&, std::int64_t, const Out<float, 3>&, const In<float, 1>&, const In<float, 1>&,
                    const Bytes&, std::int64_t, const std::optional<Bytes>&, const std::string&, std::int64_t,
                    const std::vector<Bytes>&, const std::string&, std::int64_t, std::int64_t, std::int64_t,
                    std::int64_t, std::int64_t, const std::optional<In<std::int32_t, 2>>&,
                    const std::optional<Out<float, 2>>&, const std::optional<Out<float, 2>>&>(),
           nb::kw_only(), nb::arg("query").noconvert(), nb::arg("position"), nb::arg("out").noconvert(),
           nb::arg("sink").noconvert(), nb::arg("frequencies").noconvert(), nb::arg("fresh").noconvert(),
           nb::arg("length"), nb::arg("past").noconvert() = nb::none(), nb::arg("window_codec"), nb::arg("window_size"),
           nb::arg("pages") = std::vector<Bytes>{}, nb::arg("entry_codec") = "bf16", nb::arg("count") = 0,
           nb::arg("per_page") = 1, nb::arg("offset") = 0, nb::arg("rotary") = 0, nb::arg("ratio") = 0,
           nb::arg("indices").noconvert() = nb::none(), nb::arg("entry_mass").noconvert() = nb::none(),
           nb::arg("window_mass").noconvert() = nb::none());
  module.def("attend", &attend, nb::arg("runtime"), nb::arg("jobs"), "Runs `AttendJob`s together.");
}

}  // namespace foveal
