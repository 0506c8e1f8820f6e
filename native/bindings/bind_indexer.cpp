// The indexer for Python: packed keys as an object, scores and top-k over them.
//
// `IndexKeys` owns packs of plain keys, so that tests and the operations on tensors run the very kernels that the
// network runs on the packs of its pages.
#include "bind.h"

#include <cmath>
#include <cstring>
#include <map>
#include <memory>

#include "indexer_pack.h"

namespace foveal {

std::int64_t pack_bytes(const PackShape& shape) { return pack_layout(shape).bytes; }

namespace {

constexpr std::size_t kAlign = 64;

template <class T>
T named(const std::map<std::string, T>& names, const std::string& name, const char* what) {
  const auto found = names.find(name);
  if (found != names.end()) return found->second;
  std::string all;
  for (const auto& [key, value] : names) all += (all.empty() ? "" : ", ") + key;
  throw std::invalid_argument(std::string(what) + " \"" + name + "\"; it must be one of " + all);
}

Codec key_codec_of(const std::string& name) {
  static const std::map<std::string, Codec> codecs{
      {"f32", Codec::kF32}, {"bf16", Codec::kBF16}, {"fp4", Codec::kIndexFP4}, {"fp8", Codec::kIndexFP8}};
  return named(codecs, name, "key codec");
}

std::int64_t key_bytes(Codec codec, std::int64_t width) {
  switch (codec) {
    case Codec::kF32: return 4 * width;
    case Codec::kBF16: return 2 * width;
    case Codec::kIndexFP4: return width / 2 + (width + 31) / 32;
    case Codec::kIndexFP8: return width + 4;
    case Codec::kKvFP8: break;
  }
  return 0;
}

// Whether up to 32 numbers are FP4 codes times one power of two.
bool is_fp4_block(const float* x, std::int64_t count) {
  float peak = 0.0f;
  for (std::int64_t c = 0; c < count; ++c) {
    if (!std::isfinite(x[c])) return false;
    peak = std::max(peak, std::fabs(x[c]));
  }
  if (peak == 0.0f) return true;
  int exponent;
  const float mantissa = std::frexp(peak, &exponent);  // 6 = 0.75 * 2^3, 4 = 0.5 * 2^3
  if (mantissa != 0.5f && mantissa != 0.75f) return false;
  for (std::int64_t c = 0; c < count; ++c) {
    const float value = std::fabs(std::ldexp(x[c], 4 - exponent));  // twice the code's value: up to 12
    if (value != std::floor(value) || (value > 4.0f && value != 6.0f && value != 8.0f && value != 12.0f)) return false;
  }
  return true;
}

bool is_fp4(const float* x, std::int64_t rows, std::int64_t width) {
  for (std::int64_t row = 0; row < rows; ++row)
    for (std::int64_t c = 0; c < width; c += kPackBlock)
      if (!is_fp4_block(x + row * width + c, std::min(kPackBlock, width - c))) return false;
  return true;
}

// Keys of one layer, packed in pages of up to 64.
class IndexKeys {
 public:
  IndexKeys(Runtime& runtime, const Bytes& data, std::int64_t count, std::int64_t width, const std::string& codec,
            const std::string& kind, std::int64_t per_page, std::int64_t step)
      : shape_{pack_kind_of(kind), width, per_page}, count_(0) {
    require(per_page >= 1 && per_page <= kPackKeys, "a page has 1 to 64 keys, not " + std::to_string(per_page));
    require(width >= 1, "keys need at least one channel");
    add(runtime, data, count, codec, step);
  }

  // The full pages of `base`, shared, and more keys behind them.
  IndexKeys(const IndexKeys& base, Runtime& runtime, const Bytes& data, std::int64_t count, const std::string& codec)
      : shape_(base.shape_), count_(base.count_ / base.shape_.keys * base.shape_.keys), memory_(base.memory_),
        packs_(base.packs_.begin(), base.packs_.begin() + count_ / shape_.keys) {
    add(runtime, data, count, codec, kPackKeys);
  }

  Packs packs() const { return {shape_, packs_.data(), 0, count_}; }
  std::int64_t count() const { return count_; }
  std::int64_t width() const { return shape_.width; }
  std::int64_t bytes() const { return static_cast<std::int64_t>(packs_.size()) * pack_bytes(shape_); }

 private:
  void add(Runtime& runtime, const Bytes& data, std::int64_t count, const std::string& codec, std::int64_t step) {
    const Codec stored = key_codec_of(codec);
    const std::int64_t width = shape_.width, per_page = shape_.keys, bytes = key_bytes(stored, width);
    require(count >= 0, "there cannot be fewer than 0 keys");
    require(step >= 1, "keys are written at least one at a time");
    require(stored != Codec::kIndexFP4 || width % 2 == 0, "FP4 keys need an even number of channels");
    require(static_cast<std::int64_t>(data.nbytes()) == count * bytes,
            "the keys have " + std::to_string(data.nbytes()) + " bytes; " + std::to_string(count) + " of " +
                std::to_string(width) + " channels as " + codec + " take " + std::to_string(count * bytes));
    const std::int64_t pages = (count + per_page - 1) / per_page;
    const auto size = static_cast<std::size_t>(pack_bytes(shape_)), old = packs_.size();
    const std::shared_ptr<std::uint8_t[]> memory(new std::uint8_t[static_cast<std::size_t>(pages) * size + kAlign]);
    auto* base = memory.get() + (kAlign - reinterpret_cast<std::uintptr_t>(memory.get()) % kAlign) % kAlign;
    memory_.push_back(memory);
    for (std::int64_t p = 0; p < pages; ++p) packs_.push_back(base + static_cast<std::size_t>(p) * size);
    const auto* from = static_cast<const std::uint8_t*>(data.data());
    Context& context = runtime.context();
    const nb::gil_scoped_release released;
    context.pool.run(pages, [&](std::int64_t p, int) {
      auto* at = const_cast<std::uint8_t*>(from) + p * per_page * bytes;
      const std::int64_t filled = std::min(per_page, count - p * per_page);
      const Entries page{stored, &at, 0, per_page, bytes, filled, width, 0};
      for (std::int64_t first = 0; first < filled; first += step)
        context.index->pack(shape_, page, first, std::min(first + step, filled), packs_[old + static_cast<std::size_t>(p)]);
    });
    count_ += count;
  }

  PackShape shape_;
  std::int64_t count_;
  std::vector<std::shared_ptr<std::uint8_t[]>> memory_;
  std::vector<std::uint8_t*> packs_;
};

void check_queries(const In<float, 3>& query, const In<float, 2>& weights, const IndexKeys& keys) {
  require(static_cast<std::int64_t>(query.shape(2)) == keys.width(),
          "the queries have " + std::to_string(query.shape(2)) + " channels, the keys " + std::to_string(keys.width()));
  require(weights.shape(0) == query.shape(0) && weights.shape(1) == query.shape(1),
          "the weights must be [tokens, heads] like the queries");
}

TopkArgs arguments(const In<float, 3>& query, const In<float, 2>& weights, const IndexKeys& keys) {
  return {query.data(),     weights.data(), static_cast<std::int64_t>(query.shape(0)),
          static_cast<std::int64_t>(query.shape(1)), keys.packs(), nullptr, 0, nullptr};
}

void scores(Runtime& runtime, const In<float, 3>& query, const In<float, 2>& weights, const IndexKeys& keys,
            const Out<float, 2>& out) {
  check_queries(query, weights, keys);
  require(out.shape(0) == query.shape(0) && static_cast<std::int64_t>(out.shape(1)) == keys.count(),
          "the scores must be [tokens, keys]");
  const TopkArgs args = arguments(query, weights, keys);
  const nb::gil_scoped_release released;
  runtime.context().index->scores(runtime.context(), args, out.data());
}



// An array as it is: a copy made for the call would not live as long as the jobs do.
template <class Array>
Array array(const nb::object& from) {
  Array found;
  if (!nb::try_cast<Array>(from, found, false))
    throw nb::type_error("a job's arrays must be contiguous, of the right rank, and float32, int64 (visible) or int32 (chosen)");
  return found;
}

nb::tuple topk(Runtime& runtime, const std::vector<nb::tuple>& jobs) {
  std::vector<TopkArgs> args;
  for (const nb::tuple& job : jobs) {
    require(job.size() == 5, "a job is (query, weights, keys, visible, chosen)");
    const auto query = array<In<float, 3>>(job[0]);
    const auto weights = array<In<float, 2>>(job[1]);
    const auto& keys = nb::cast<const IndexKeys&>(job[2]);
    const auto visible = array<In<std::int64_t, 1>>(job[3]);
    const auto chosen = array<Out<std::int32_t, 2>>(job[4]);
    check_queries(query, weights, keys);
    require(visible.shape(0) == query.shape(0), "`visible` must have one number a token");
    require(chosen.shape(0) == query.shape(0), "`chosen` must have one row a token");
    TopkArgs one = arguments(query, weights, keys);
    one.visible = visible.data();
    one.k = static_cast<std::int64_t>(chosen.shape(1));
    one.chosen = chosen.data();
    args.push_back(one);
  }
  IndexCounters counters{0, 0};
  {
    const nb::gil_scoped_release released;
    runtime.context().index->topk(runtime.context(), args.data(), static_cast<int>(args.size()), &counters);
  }
  return nb::make_tuple(counters.seen, counters.scored);
}

}  // namespace

void bind_indexer(nb::module_& module) {
  nb::class_<IndexKeys>(module, "IndexKeys",
                        "Index keys packed for scoring. `data`: raw bytes of `count` keys of `width` channels, stored as\n"
                        "`codec` \"f32\", \"bf16\", \"fp4\" or \"fp8\". `kind`: \"fp4\" (the keys are exactly FP4 in blocks of 32;\n"
                        "others are rounded to it), \"bf16\" or \"f32\". `per_page`: 1 to 64 keys, written `step` at a time.\n"
                        "ValueError for sizes that do not fit.")
      .def(nb::init<Runtime&, const Bytes&, std::int64_t, std::int64_t, const std::string&, const std::string&,
                    std::int64_t, std::int64_t>(),
           nb::arg("runtime"), nb::arg("data").noconvert(), nb::arg("count"), nb::arg("width"), nb::kw_only(), nb::arg("codec"),
           nb::arg("kind"), nb::arg("per_page") = kPackKeys, nb::arg("step") = kPackKeys)
      .def(
          "forked",
          [](const IndexKeys& base, Runtime& runtime, const Bytes& data, std::int64_t count, const std::string& codec) {
            return IndexKeys(base, runtime, data, count, codec);
          },
          nb::arg("runtime"), nb::arg("data").noconvert(), nb::arg("count"), nb::kw_only(), nb::arg("codec"),
          "The full pages of these keys, shared, and `count` more keys behind them.")
      .def_prop_ro("count", &IndexKeys::count)
      .def_prop_ro("width", &IndexKeys::width)
      .def_prop_ro("nbytes", &IndexKeys::bytes, "Bytes of all packs.");
  module.def(
      "index_is_fp4",
      [](const In<float, 2>& x) {
        const nb::gil_scoped_release released;
        return is_fp4(x.data(), static_cast<std::int64_t>(x.shape(0)), static_cast<std::int64_t>(x.shape(1)));
      },
      nb::arg("x").noconvert(), "Whether rows [n, width] fp32 are FP4 codes times one power of two in every block of 32.");
  module.def("index_scores", &scores, nb::arg("runtime"), nb::arg("query").noconvert(),
             nb::arg("weights").noconvert(), nb::arg("keys"), nb::arg("out").noconvert(), "Scores of queries [n, I, ci] with weights [n, I] over all keys into out [n, keys], fp32.");
  module.def("index_topk", &topk, nb::arg("runtime"), nb::arg("jobs"),
             "For every job (query [n, I, ci], weights [n, I], keys, visible [n] int64, chosen [n, k] int32): the k best of\n"
             "the first visible[i] keys, ascending, then -1; ties take the lowest index. Returns how many keys were visible\n"
             "and how many were scored, of all tokens.");
}

}  // namespace foveal
