// The module itself: the runtime, weights, and each part's operations.
#include "bind.h"

#include <map>

namespace foveal {
namespace {

Format format_of(const std::string& name) {
  static const std::map<std::string, Format> formats{
      {"f32", Format::kF32}, {"bf16", Format::kBF16}, {"fp8", Format::kFP8}, {"fp4", Format::kFP4}};
  const auto found = formats.find(name);
  require(found != formats.end(), "weight format \"" + name + "\"; it must be one of f32, bf16, fp8, fp4");
  return found->second;
}

std::size_t weight_bytes(Format format, std::int64_t rows, std::int64_t columns) {
  const auto count = static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns);
  switch (format) {
    case Format::kF32: return 4 * count;
    case Format::kBF16: return 2 * count;
    case Format::kFP8: return count;
    case Format::kFP4: return count / 2;
  }
  return 0;
}

std::size_t scale_bytes(Format format, std::int64_t rows, std::int64_t columns) {
  if (format == Format::kFP8) return static_cast<std::size_t>((rows + 127) / 128 * ((columns + 127) / 128));
  if (format == Format::kFP4) return static_cast<std::size_t>(rows * ((columns + 31) / 32));
  return 0;
}

HeldMatrix make_matrix(const std::string& format, std::int64_t rows, std::int64_t columns, const nb::object& data,
                       const nb::object& scale, bool skip_zeros) {
  HeldMatrix held{{format_of(format), nullptr, nullptr, rows, columns}, data, scale, {}};
  const Format kind = held.matrix.format;
  require(rows > 0 && columns > 0, "a weight needs at least one row and one column");
  require(kind != Format::kFP4 || columns % 2 == 0, "an FP4 weight needs an even number of columns");
  const auto bytes = nb::cast<Bytes>(data);
  require(bytes.nbytes() == weight_bytes(kind, rows, columns),
          "the weight has " + std::to_string(bytes.nbytes()) + " bytes; " + format + " [" + std::to_string(rows) + ", " +
              std::to_string(columns) + "] takes " + std::to_string(weight_bytes(kind, rows, columns)));
  held.matrix.data = bytes.data();
  const std::size_t wanted = scale_bytes(kind, rows, columns);
  if (wanted != 0) {
    const auto scales = nb::cast<Bytes>(scale);
    require(scales.nbytes() == wanted, "the weight's scales have " + std::to_string(scales.nbytes()) + " bytes; E8M0 for " +
                                           format + " [" + std::to_string(rows) + ", " + std::to_string(columns) +
                                           "] takes " + std::to_string(wanted));
    held.matrix.scale = static_cast<const std::uint8_t*>(scales.data());
  }
  if (skip_zeros) held.spans = find_spans(held.matrix);
  if (!held.spans.empty()) held.matrix.spans = held.spans.data();  // a move leaves them where they are
  return held;
}

}  // namespace

Codec codec_of(const std::string& name) {
  static const std::map<std::string, Codec> codecs{{"f32", Codec::kF32},
                                                   {"bf16", Codec::kBF16},
                                                   {"kv_fp8", Codec::kKvFP8},
                                                   {"index_fp4", Codec::kIndexFP4},
                                                   {"index_fp8", Codec::kIndexFP8}};
  const auto found = codecs.find(name);
  require(found != codecs.end(), "codec \"" + name + "\"; it must be one of f32, bf16, kv_fp8, index_fp4, index_fp8");
  return found->second;
}

PackKind pack_kind_of(const std::string& name) {
  static const std::map<std::string, PackKind> kinds{
      {"fp4", PackKind::kFP4}, {"bf16", PackKind::kBF16}, {"f32", PackKind::kF32}};
  const auto found = kinds.find(name);
  require(found != kinds.end(), "pack kind \"" + name + "\"; it must be one of fp4, bf16, f32");
  return found->second;
}

}  // namespace foveal

NB_MODULE(_native, module) {
  using namespace foveal;
  module.doc() = "Foveal's native kernels for the CPU. Tensors are passed as DLPack; see native/ for the sources.";
  module.def("available_isas", &available_isas, "Instruction sets with kernels in this build that this machine runs.");
  nb::class_<HeldMatrix>(module, "Matrix",
                         "A weight [rows, columns] as the checkpoint stores it: \"f32\", \"bf16\", \"fp8\" (E4M3, E8M0 scales\n"
                         "of 128 x 128 blocks) or \"fp4\" (packed E2M1, E8M0 scales of 1 x 32 blocks). Keeps its arrays alive.\n"
                         "skip_zeros: blocks of zeros are looked for now and not read later; inputs must be finite.\n"
                         "Raises ValueError when the sizes do not fit.")
      .def("__init__",
           [](HeldMatrix* self, const std::string& format, std::int64_t rows, std::int64_t columns, const nb::object& data,
              const nb::object& scale, bool skip_zeros) {
             new (self) HeldMatrix(make_matrix(format, rows, columns, data, scale, skip_zeros));
           },
           nb::arg("format"), nb::arg("rows"), nb::arg("columns"), nb::arg("data"), nb::arg("scale") = nb::none(),
           nb::kw_only(), nb::arg("skip_zeros") = false)
      .def_prop_ro("skipped",
                   [](const HeldMatrix& self) {
                     const std::int64_t steps = (self.matrix.columns + kSpanColumns - 1) / kSpanColumns;
                     std::int64_t read = 0;
                     for (const Span& span : self.spans) read += span.end - span.first;
                     const auto all = static_cast<double>(steps) * static_cast<double>(self.spans.size());
                     return self.spans.empty() ? 0.0 : 1.0 - static_cast<double>(read) / all;
                   },
                   "The part of the weight that is zeros and never read.");
  nb::class_<Runtime>(module, "Runtime",
                      "Threads, scratch memory and the kernels of one instruction set. threads 0: the physical cores;\n"
                      "isa \"\": the best one here. exact: activations enter products as two BF16 numbers (agrees with fp32\n"
                      "to about 1e-5) instead of one. To be used from one thread at a time.")
      .def("__init__",
           [](Runtime* self, int threads, const std::string& isa, bool exact) {
             new (self) Runtime(threads, isa, exact ? Precision::kFP32 : Precision::kBF16);
           },
           nb::kw_only(), nb::arg("threads") = 0, nb::arg("isa") = "", nb::arg("exact") = false)
      .def_prop_ro("threads", &Runtime::threads)
      .def_prop_ro("isa", &Runtime::isa)
      .def_prop_ro("growths", &Runtime::growths, "Requests to the system for scratch memory so far.")
      .def_prop_ro("scratch_bytes", &Runtime::scratch_bytes);
#ifdef FOVEAL_BIND_ALL  // a build of some parts only
  FOVEAL_BIND_ALL
#else
  bind_linear(module);
  bind_rows(module);
  bind_compress(module);
  bind_indexer(module);
  bind_attend(module);
  bind_sampling(module);
  bind_network(module);
#endif
}
