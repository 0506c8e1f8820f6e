// Python's view of the network, of a sequence in work, and of the shape of its cache.
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>

#include <map>
#include <optional>
#include <tuple>

#include "bind.h"
#include "network.h"

namespace foveal {
namespace {

// codec, offset in a page, entries a page, bytes an entry, width, row width.
using RegionTuple = std::tuple<std::string, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t>;
using LayerTuple = std::tuple<std::int64_t, std::optional<RegionTuple>, std::optional<RegionTuple>>;

Region region_of(const RegionTuple& t) {
  return {true, codec_of(std::get<0>(t)), std::get<1>(t), std::get<2>(t), std::get<3>(t), std::get<4>(t), std::get<5>(t), 0};
}

CacheShape make_shape(std::int64_t window, std::int64_t head_dim, std::int64_t rotary, const std::string& window_codec,
                      const std::string& pack_kind, const std::vector<LayerTuple>& layers, std::int64_t slots) {
  require(slots > 0, "a slab has at least one slot");
  CacheShape shape;
  shape.slots = slots;
  shape.window = window;
  shape.head_dim = head_dim;
  shape.rotary = rotary;
  shape.window_codec = codec_of(window_codec);
  shape.pack.kind = pack_kind_of(pack_kind);
  for (const auto& [ratio, main, index] : layers) {
    LayerLayout layer;
    layer.ratio = ratio;
    if (main) layer.main = region_of(*main);
    if (index) {
      layer.index = region_of(*index);
      shape.pack.width = layer.index.width;
      shape.pack.keys = layer.index.per_page;
      shape.key_bytes = pack_bytes(shape.pack);
      layer.index.pack_offset = slots * shape.slot_bytes;
      shape.slot_bytes += shape.key_bytes;
    }
    shape.layers.push_back(layer);
  }
  for (LayerLayout& layer : shape.layers) {
    if (!layer.main.present || layer.index.present) continue;
    shape.copy_bytes = layer.main.per_page * layer.main.entry_bytes;
    layer.main.pack_offset = slots * shape.slot_bytes;
    shape.slot_bytes += shape.copy_bytes;
  }
  return shape;
}

std::uint8_t* memory_of(const nb::object& object, std::size_t bytes, const char* what) {
  const auto array = nb::cast<nb::ndarray<nb::c_contig, nb::device::cpu>>(object);
  require(array.nbytes() >= bytes, std::string(what) + " has " + std::to_string(array.nbytes()) + " bytes, needs " +
                                       std::to_string(bytes));
  return static_cast<std::uint8_t*>(array.data());
}

// Fills a page's slot with what its first `tokens` tokens left.
void fill_slot(Runtime& runtime, const CacheShape& shape, std::uint8_t* page, std::uint8_t* slab, std::int64_t slot,
               std::int64_t tokens) {
  for (const LayerLayout& layer : shape.layers) {
    if (!layer.main.present) continue;
    const Region& region = layer.index.present ? layer.index : layer.main;
    const std::int64_t count = tokens / layer.ratio;
    const Entries entries{region.codec, &page, region.offset, region.per_page, region.entry_bytes, count, region.width, shape.rotary};
    std::uint8_t* to = slab + region.pack_offset + slot * (layer.index.present ? shape.key_bytes : shape.copy_bytes);
    if (count == 0) continue;
    if (layer.index.present)
      runtime.context().index->pack(shape.pack, entries, 0, count, to);
    else
      std::memcpy(to, page + region.offset, static_cast<std::size_t>(count * region.entry_bytes));
  }
}

// Addresses of memory that Python holds: page, slab, slot.
using PageTuple = std::tuple<std::uintptr_t, std::uintptr_t, std::int64_t>;

void fill_slots(Runtime& runtime, const CacheShape& shape, const std::vector<PageTuple>& pages,
                const std::vector<std::int64_t>& tokens) {
  require(pages.size() == tokens.size(), "pages and their tokens must be of one number");
  const nb::gil_scoped_release release;
  runtime.context().pool.run(static_cast<std::int64_t>(pages.size()), [&](std::int64_t i, int) {
    const auto& [page, slab, slot] = pages[static_cast<std::size_t>(i)];
    fill_slot(runtime, shape, reinterpret_cast<std::uint8_t*>(page), reinterpret_cast<std::uint8_t*>(slab), slot,
              tokens[static_cast<std::size_t>(i)]);
  });
}

void bind_live(nb::module_& module) {
  nb::class_<CacheShape>(module, "CacheShape", "Where a sequence's entries lie (foveal.backends.cpu.live makes it).")
      .def("__init__",
           [](CacheShape* self, std::int64_t window, std::int64_t head_dim, std::int64_t rotary, const std::string& codec,
              const std::string& pack_kind, const std::vector<LayerTuple>& layers, std::int64_t slots) {
             new (self) CacheShape(make_shape(window, head_dim, rotary, codec, pack_kind, layers, slots));
           })
      .def_ro("slots", &CacheShape::slots)
      .def_ro("slot_bytes", &CacheShape::slot_bytes)
      .def_prop_ro("slab_bytes", &CacheShape::slab_bytes);
  module.def("fill_slots", &fill_slots,
             "Fill the slots of (page address, slab address, slot) with what the first tokens[i] tokens left in page i, in\n"
             "all layers. The caller holds the memory, and vouches for its size.");
  nb::class_<Live>(module, "Live", "A sequence in work: pages, and its tail in rings (foveal.backends.cpu.live owns it).")
      .def(nb::init<const CacheShape&>())
      .def_rw("length", &Live::length)
      .def_prop_ro("page_count", [](const Live& live) { return live.pages.size(); })
      .def("add_pages",
           [](Live& live, const std::vector<PageTuple>& pages) {
             for (const auto& [page, slab, slot] : pages) {
               require(slot >= 0 && slot < live.shape.slots, "no such slot in a slab");
               live.add_page(reinterpret_cast<std::uint8_t*>(page), reinterpret_cast<std::uint8_t*>(slab), slot);
             }
           })
      .def("put_window",
           [](Live& live, std::size_t layer, std::int64_t first, std::int64_t last, const nb::object& rows) {
             Ring& ring = live.window(layer);
             ring.put(first, last, memory_of(rows, static_cast<std::size_t>((last - first) * ring.row_bytes()), "window"));
           })
      .def("get_window",
           [](Live& live, std::size_t layer, std::int64_t first, std::int64_t last, const nb::object& rows) {
             const Ring& ring = live.window(layer);
             ring.get(first, last, memory_of(rows, static_cast<std::size_t>((last - first) * ring.row_bytes()), "window"));
           })
      .def("put_open",
           [](Live& live, std::size_t layer, bool index, std::int64_t first, std::int64_t last, const nb::object& kv,
              const nb::object& gate) {
             OpenRings& rings = live.open(layer, index);
             const auto bytes = static_cast<std::size_t>((last - first) * rings.kv.row_bytes());
             rings.kv.put(first, last, memory_of(kv, bytes, "open rows"));
             rings.gate.put(first, last, memory_of(gate, bytes, "open gates"));
           })
      .def("get_open",
           [](Live& live, std::size_t layer, bool index, std::int64_t first, std::int64_t last, const nb::object& kv,
              const nb::object& gate) {
             const OpenRings& rings = live.open(layer, index);
             const auto bytes = static_cast<std::size_t>((last - first) * rings.kv.row_bytes());
             rings.kv.get(first, last, memory_of(kv, bytes, "open rows"));
             rings.gate.get(first, last, memory_of(gate, bytes, "open gates"));
           })
      .def("commit", &Live::commit);
}

// Python's class `Network`: the network, and what its pointers point into.
struct HeldNetwork {
  nb::object runtime;
  Network network;
  std::vector<nb::object> held;

  const float* floats(const nb::dict& of, const char* name, std::int64_t count) {
    const nb::object object = of[name];
    const auto array = nb::cast<nb::ndarray<const float, nb::c_contig, nb::device::cpu>>(object);
    require(static_cast<std::int64_t>(array.size()) == count,
            std::string(name) + " has " + std::to_string(array.size()) + " numbers, must have " + std::to_string(count));
    held.push_back(object);
    return array.data();
  }
  Matrix matrix(const nb::dict& of, const char* name, std::int64_t rows, std::int64_t columns) {
    const nb::object object = of[name];
    held.push_back(object);
    return checked(object, name, rows, columns);
  }
  std::vector<Matrix> matrices(const nb::dict& of, const char* name, std::int64_t rows, std::int64_t columns) {
    std::vector<Matrix> found;
    for (nb::handle object : nb::cast<nb::list>(of[name])) {
      held.push_back(nb::borrow(object));
      found.push_back(checked(object, name, rows, columns));
    }
    require(static_cast<std::int64_t>(found.size()) == network.shape().experts, std::string(name) + ": one for each expert is due");
    return found;
  }
  static Matrix checked(nb::handle object, const char* name, std::int64_t rows, std::int64_t columns) {
    const Matrix& matrix = nb::cast<const HeldMatrix&>(object).matrix;
    require(matrix.rows == rows && matrix.columns == columns,
            std::string(name) + " is [" + std::to_string(matrix.rows) + ", " + std::to_string(matrix.columns) +
                "], must be [" + std::to_string(rows) + ", " + std::to_string(columns) + "]");
    return matrix;
  }
  Hyper hyper(const nb::dict& of, const std::string& prefix, std::int64_t rows, std::int64_t scales) {
    const std::int64_t width = network.shape().streams * network.shape().d;
    return {floats(of, (prefix + "_fn").c_str(), rows * width), floats(of, (prefix + "_base").c_str(), rows),
            floats(of, (prefix + "_scale").c_str(), scales)};
  }
  Compressor compressor(const nb::dict& of, const std::string& prefix, std::int64_t ratio, std::int64_t width) {
    const std::int64_t rows = ratio == 4 ? 2 * width : width;
    return {matrix(of, (prefix + "_wkv").c_str(), rows, network.shape().d),
            matrix(of, (prefix + "_wgate").c_str(), rows, network.shape().d),
            floats(of, (prefix + "_ape").c_str(), ratio * rows), floats(of, (prefix + "_norm").c_str(), width)};
  }
  void add_layer(const nb::dict& of);
};

NetworkShape network_shape(const nb::dict& of) {
  const auto whole = [&](const char* name) { return nb::cast<std::int64_t>(of[name]); };
  const auto real = [&](const char* name) { return nb::cast<float>(of[name]); };
  const auto flag = [&](const char* name) { return nb::cast<bool>(of[name]); };
  return {whole("d"),
          whole("streams"),
          whole("heads"),
          whole("head_dim"),
          whole("q_lora"),
          whole("groups"),
          whole("window"),
          whole("vocabulary"),
          whole("index_heads"),
          whole("index_dim"),
          whole("topk"),
          whole("experts"),
          whole("active"),
          real("route_scale"),
          real("limit"),
          real("norm_eps"),
          real("hyper_eps"),
          nb::cast<int>(of["sinkhorn_iters"]),
          flag("simulate_linear"),
          flag("simulate_experts"),
          flag("quantize_kv"),
          flag("quantize_index")};
}

void HeldNetwork::add_layer(const nb::dict& of) {
  const NetworkShape& s = network.shape();
  const std::int64_t heads = s.heads * s.head_dim, mixes = (2 + s.streams) * s.streams;
  const auto whole = [&](const char* name) { return nb::cast<std::int64_t>(of[name]); };
  const auto o_lora = whole("o_lora"), width = whole("expert_width"), shared = whole("shared_width");
  Layer layer;
  layer.ratio = whole("ratio");
  layer.attention_hyper = hyper(of, "hc_attn", mixes, 3);
  layer.ffn_hyper = hyper(of, "hc_ffn", mixes, 3);
  layer.attention_norm = floats(of, "attn_norm", s.d);
  layer.ffn_norm = floats(of, "ffn_norm", s.d);
  layer.wq_a = matrix(of, "wq_a", s.q_lora, s.d);
  layer.wq_b = matrix(of, "wq_b", heads, s.q_lora);
  layer.wkv = matrix(of, "wkv", s.head_dim, s.d);
  layer.wo_a = matrix(of, "wo_a", s.groups * o_lora, heads / s.groups);
  layer.wo_b = matrix(of, "wo_b", s.d, s.groups * o_lora);
  layer.q_norm = floats(of, "q_norm", s.q_lora);
  layer.kv_norm = floats(of, "kv_norm", s.head_dim);
  layer.sink = floats(of, "sink", s.heads);
  const auto half = whole("rotary_half");
  layer.rotary = {floats(of, "frequencies", half), half};
  if (layer.ratio) layer.main = compressor(of, "main", layer.ratio, s.head_dim);
  if (layer.ratio == 4) {
    layer.index = compressor(of, "index", layer.ratio, s.index_dim);
    layer.index_wq_b = matrix(of, "index_wq_b", s.index_heads * s.index_dim, s.q_lora);
    layer.index_weights = matrix(of, "index_weights", s.index_heads, s.d);
  }
  layer.gate = matrix(of, "gate", s.experts, s.d);
  if (of.contains("gate_table")) {
    const auto table = nb::cast<nb::ndarray<const std::int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>>(of["gate_table"]);
    require(static_cast<std::int64_t>(table.size()) == s.vocabulary * s.active, "gate_table must be [V, A]");
    held.push_back(of["gate_table"]);
    layer.gate_table = table.data();
  } else {
    layer.gate_bias = floats(of, "gate_bias", s.experts);
  }
  layer.w1 = matrices(of, "w1", width, s.d);
  layer.w2 = matrices(of, "w2", s.d, width);
  layer.w3 = matrices(of, "w3", width, s.d);
  layer.shared1 = matrix(of, "shared1", shared, s.d);
  layer.shared2 = matrix(of, "shared2", s.d, shared);
  layer.shared3 = matrix(of, "shared3", shared, s.d);
  network.layers().push_back(std::move(layer));
}

void step(HeldNetwork& self, const In<std::int64_t, 1>& tokens, const std::vector<std::tuple<Live*, std::int64_t, bool>>& segments,
          const Out<float, 3>& streams) {
  const NetworkShape& shape = self.network.shape();
  std::vector<Segment> parts;
  std::int64_t total = 0;
  for (const auto& [live, count, trace] : segments) {
    require(live != nullptr && count > 0, "every segment needs a sequence and at least one token");
    require(live->shape.layers.size() >= self.network.layers().size() && live->shape.head_dim == shape.head_dim,
            "the sequence was made for another network");
    require(static_cast<std::int64_t>(live->pages.size()) * 256 >= live->length + count, "the sequence lacks pages for the step");
    parts.push_back({live, count, trace});
    total += count;
  }
  require(total == static_cast<std::int64_t>(tokens.shape(0)) && total == static_cast<std::int64_t>(streams.shape(0)),
          "tokens, segments and streams must be of one length");
  require(static_cast<std::int64_t>(streams.shape(1)) == shape.streams && static_cast<std::int64_t>(streams.shape(2)) == shape.d,
          "streams must be [n, S, d]");
  for (std::int64_t i = 0; i < total; ++i)
    require(tokens.data()[i] >= 0 && tokens.data()[i] < shape.vocabulary,
            "token ids must be from 0 to " + std::to_string(shape.vocabulary - 1));
  const nb::gil_scoped_release release;
  if (total > 0) self.network.step(tokens.data(), parts, streams.data());
}

nb::list traces(const HeldNetwork& self) {
  nb::list found;
  for (const Trace& trace : self.network.traces) {
    const auto bytes = [](const auto& v) { return nb::bytes(reinterpret_cast<const char*>(v.data()), v.size() * sizeof(v[0])); };
    found.append(nb::make_tuple(trace.layer, trace.segment, trace.ratio, trace.indexed, bytes(trace.indices),
                                bytes(trace.entry_mass), bytes(trace.window_mass)));
  }
  return found;
}

}  // namespace

void bind_network(nb::module_& module) {
  bind_live(module);
  nb::class_<HeldNetwork>(module, "Network", "All layers in one call (foveal.backends.cpu makes it).")
      .def("__init__",
           [](HeldNetwork* self, const nb::object& runtime, const nb::dict& shape) {
             new (self) HeldNetwork{runtime, Network(nb::cast<Runtime&>(runtime), network_shape(shape)), {}};
           })
      .def("add_layer", &HeldNetwork::add_layer)
      .def("set_ends",
           [](HeldNetwork& self, const nb::dict& of) {
             const NetworkShape& s = self.network.shape();
             self.network.embedding = self.matrix(of, "embedding", s.vocabulary, s.d);
             self.network.head = self.matrix(of, "head", s.vocabulary, s.d);
             self.network.final_norm = self.floats(of, "norm", s.d);
             self.network.head_hyper = self.hyper(of, "hc_head", s.streams, 1);
           })
      .def("step", &step, nb::arg("tokens"), nb::arg("segments"), nb::arg("streams"),
           "Run the next tokens int64 [n] of (Live, count, trace) segments; fills streams fp32 [n, S, d]. The sequences hold\n"
           "the step uncommitted. Raises ValueError when sizes, pages or token ids do not fit; nothing has changed then.")
      .def("logits",
           [](HeldNetwork& self, const In<float, 3>& streams, const Out<float, 2>& out) {
             const NetworkShape& s = self.network.shape();
             require(static_cast<std::int64_t>(streams.shape(1)) == s.streams && static_cast<std::int64_t>(streams.shape(2)) == s.d &&
                         streams.shape(0) == out.shape(0) && static_cast<std::int64_t>(out.shape(1)) == s.vocabulary,
                     "streams must be [m, S, d] and logits [m, V]");
             const nb::gil_scoped_release release;
             self.network.logits(streams.data(), static_cast<std::int64_t>(streams.shape(0)), out.data());
           })
      .def("traces", &traces)
      .def("seconds", [](const HeldNetwork& self) { return self.network.seconds; })
      .def("index_counters",
           [](const HeldNetwork& self) { return std::make_tuple(self.network.index_counters.seen, self.network.index_counters.scored); })
      .def("reset_profile", [](HeldNetwork& self) {
        for (auto& [name, seconds] : self.network.seconds) seconds = 0;
        self.network.index_counters = {0, 0};
      });
}

}  // namespace foveal
