// Compares the kernels of two machines: crosscheck ISA > FILE on the one, crosscheck ISA FILE on the other (make arm).
//
// It needs no Python, so it runs where only a C++ compiler is at hand, or under an emulator. Inputs are made of
// integers, the same everywhere. What is exact must be equal to the bit; other results may differ by what contraction
// (a * b + c rounded once or twice) and the system's mathematics do, relative to the largest number of a result.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "attend.h"
#include "compress.h"
#include "indexer_pack.h"
#include "linear.h"
#include "rows.h"
#include "runtime.h"
#include "sampling.h"

namespace foveal {
namespace {

using Floats = std::vector<float>;
using Bytes = std::vector<std::uint8_t>;

constexpr float kSums = 2e-5f;        // sums of products
constexpr float kRounded = 0x1p-8f;   // where a sum is rounded to BF16 or FP8 before it goes on
constexpr float kEqual = 0.0f;

struct Result {
  std::string name;
  float bound;
  Floats values;
};

// Sixty-four bits at a time (SplitMix64).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t bits() {
    std::uint64_t x = state_ += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  }
  std::int64_t below(std::int64_t n) { return static_cast<std::int64_t>(bits() >> 33) % n; }
  // About normal: four dice, in steps of 2^-12.
  float number() {
    std::int64_t total = 0;
    for (int i = 0; i < 4; ++i) total += below(1 << 13) - (1 << 12);
    return static_cast<float>(total) / 4096.0f;
  }
  Floats numbers(std::int64_t count) {
    Floats made(static_cast<std::size_t>(count));
    for (float& x : made) x = number();
    return made;
  }
  Bytes bytes(std::int64_t count, std::int64_t from, std::int64_t to) {
    Bytes made(static_cast<std::size_t>(count));
    for (auto& x : made) x = static_cast<std::uint8_t>(from + below(to - from));
    return made;
  }

 private:
  std::uint64_t state_;
};

std::vector<std::uint16_t> narrowed(const Floats& x) {
  std::vector<std::uint16_t> made;
  for (const float v : x) made.push_back(static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(v) >> 16));
  return made;
}

template <class T>
Floats as_floats(const std::vector<T>& x) {
  return Floats(x.begin(), x.end());
}

// A weight and its memory.
struct Weight {
  Matrix matrix;
  Bytes data, scale;

  Weight(Random& random, Format format, std::int64_t rows, std::int64_t columns) {
    const std::int64_t count = rows * columns;
    if (format == Format::kF32) {
      const Floats x = random.numbers(count);
      data.resize(x.size() * 4);
      std::memcpy(data.data(), x.data(), data.size());
    } else if (format == Format::kBF16) {
      const auto x = narrowed(random.numbers(count));
      data.resize(x.size() * 2);
      std::memcpy(data.data(), x.data(), data.size());
    } else if (format == Format::kFP8) {
      data = random.bytes(count, 0, 0x7f);  // no NaN
      for (auto& code : data) code = static_cast<std::uint8_t>(code | random.below(2) << 7);
      scale = random.bytes((rows + 127) / 128 * ((columns + 127) / 128), 116, 122);
    } else {
      data = random.bytes(count / 2, 0, 256);
      scale = random.bytes(rows * ((columns + 31) / 32), 120, 128);
    }
    matrix = {format, data.data(), scale.data(), rows, columns};
  }
};

struct Check {
  Runtime& runtime;
  std::vector<Result>& results;

  Context& context() const { return runtime.context(); }
  void add(const std::string& name, float bound, Floats values) const {
    results.push_back({name, bound, std::move(values)});
  }
};

const char* name_of(Format format) {
  switch (format) {
    case Format::kF32: return "f32";
    case Format::kBF16: return "bf16";
    case Format::kFP8: return "fp8";
    case Format::kFP4: return "fp4";
  }
  return "";
}

// ---------------------------------------------------------------- products

void check_linear(const Check& check) {
  for (const Format format : {Format::kF32, Format::kBF16, Format::kFP8, Format::kFP4})
    for (const std::int64_t n : {1, 3, 33})
      for (const bool simulate : {false, true}) {
        Random random(static_cast<std::uint64_t>(n) * 8 + static_cast<std::uint64_t>(format));
        const std::int64_t rows = 37, columns = 190;
        const Weight weight(random, format, rows, columns);
        const Floats x = random.numbers(n * columns);
        Floats y(static_cast<std::size_t>(n * rows));
        const Product product{&weight.matrix, simulate, Precision::kFP32, y.data(), rows};
        check.context().linear->linear(check.context(), x.data(), n, columns, &product, 1);
        check.add(std::string("linear ") + name_of(format) + (simulate ? " simulated" : "") + ", rows " + std::to_string(n),
                  kSums, y);
      }
}

void check_experts(const Check& check) {
  Random random(5);
  const std::int64_t n = 9, d = 96, inner = 160, count = 5, active = 2;
  std::vector<Weight> held;
  std::vector<Matrix> w1, w2, w3;
  for (std::int64_t e = 0; e <= count; ++e) {
    const Format format = e == count ? Format::kFP8 : Format::kFP4;
    held.emplace_back(random, format, inner, d);
    w1.push_back(held.back().matrix);
    held.emplace_back(random, format, d, inner);
    w2.push_back(held.back().matrix);
    held.emplace_back(random, format, inner, d);
    w3.push_back(held.back().matrix);
  }
  const Weight gate(random, Format::kF32, count, d);
  Floats y = random.numbers(n * d), bias = random.numbers(count);
  for (float& v : y) v *= 0.0625f;
  std::vector<std::int32_t> chosen(static_cast<std::size_t>(n * active));
  Floats weights(chosen.size()), out(y.size());
  const RouteArgs route{y.data(), n,    &gate.matrix,  bias.data(),    nullptr, nullptr,
                        active,   1.5f, chosen.data(), weights.data(), nullptr};
  check.context().linear->route(check.context(), route);
  check.add("route chosen", kEqual, as_floats(chosen));
  check.add("route weights", kSums, weights);
  ExpertsArgs args{y.data(),   n,          chosen.data(), weights.data(), active,     count,           w1.data(), w2.data(),
                   w3.data(),  &w1[5],     &w2[5],        &w3[5],         10.0f,      false,           Precision::kFP32,
                   out.data()};
  check.context().linear->experts(check.context(), args);
  check.add("experts", kSums, out);
  args.simulate = true;
  check.context().linear->experts(check.context(), args);
  check.add("experts simulated", 4 * kRounded, out);
}

// ---------------------------------------------------------------- rows

void check_hyper(const Check& check) {
  const RowOps& rows = *check.context().rows;
  for (const std::int64_t streams : {4, 3}) {
    Random random(static_cast<std::uint64_t>(streams));
    const std::int64_t n = 6, d = 85, mixes = (2 + streams) * streams;
    Floats fn = random.numbers(mixes * streams * d), base = random.numbers(mixes), scale = random.numbers(3);
    for (float& v : fn) v *= 0.0625f;
    Floats x = random.numbers(n * streams * d), norm = random.numbers(d);
    Floats out(static_cast<std::size_t>(n * d)), post(static_cast<std::size_t>(n * streams));
    Floats comb(static_cast<std::size_t>(n * streams * streams));
    const HyperArgs hyper{n, streams, d, fn.data(), base.data(), scale.data(), 20, 1e-6f, 1e-6f};
    rows.hyper_pre(check.context(), hyper, x.data(), norm.data(), out.data(), post.data(), comb.data());
    const std::string of = ", streams " + std::to_string(streams);
    check.add("hyper_pre x" + of, kSums, out);
    check.add("hyper_pre post" + of, kSums, post);
    check.add("hyper_pre comb" + of, kSums, comb);
    rows.hyper_post(check.context(), n, streams, d, out.data(), post.data(), comb.data(), x.data());
    check.add("hyper_post" + of, kSums, x);
    rows.hyper_head(check.context(), hyper, x.data(), norm.data(), out.data());
    check.add("hyper_head" + of, kSums, out);
  }
}

void check_rows(const Check& check) {
  const RowOps& rows = *check.context().rows;
  Random random(11);
  const std::int64_t n = 7, heads = 3, c = 128, half = 10;
  Floats frequencies;
  for (std::int64_t i = 0; i < half; ++i) frequencies.push_back(1.0f / static_cast<float>(1 + i * i * 97));
  const Rotary rotary{frequencies.data(), half};
  std::vector<std::int64_t> positions;
  for (std::int64_t i = 0; i < n; ++i) positions.push_back(random.below(1 << 20));
  const Floats x = random.numbers(n * heads * c), weight = random.numbers(c);
  Floats out(x.size());
  rows.rms_norm(check.context(), x.data(), n, c - 5, heads * c, weight.data(), 1e-6f, out.data());
  check.add("rms_norm", kSums, Floats(out.begin(), out.begin() + n * (c - 5)));
  out = x;
  rows.rotate(check.context(), out.data(), n, heads, c, positions.data(), rotary, true);
  check.add("rotate", kSums, out);
  out = x;
  rows.finish_query(check.context(), out.data(), n, heads, c, positions.data(), rotary, 1e-6f, false);
  check.add("finish_query", kSums, out);
  rows.finish_kv(check.context(), x.data(), n, c, heads * c, positions.data(), rotary, weight.data(), 1e-6f, false,
                 Codec::kF32, out.data());
  check.add("finish_kv", kSums, Floats(out.begin(), out.begin() + n * c));
  out = x;
  rows.quantize_kv(check.context(), out.data(), n * heads, c, 2 * half);
  check.add("quantize_kv", kEqual, out);
  out = x;
  rows.quantize_index(check.context(), out.data(), n * heads, c);
  check.add("quantize_index", kEqual, out);
  out = x;
  rows.quantize_activations(check.context(), out.data(), n, heads * c);
  check.add("quantize_activations", kEqual, out);
  std::int64_t token = 0;
  float log_sum = 0;
  check.context().sample->greedy(x.data(), n * heads * c - 3, &token, &log_sum);
  check.add("greedy", kSums, {static_cast<float>(token), log_sum});
}

// ---------------------------------------------------------------- the cache

void check_codecs(const Check& check) {
  const CompressOps& ops = *check.context().compress;
  for (const Codec codec : {Codec::kF32, Codec::kBF16, Codec::kKvFP8, Codec::kIndexFP4, Codec::kIndexFP8}) {
    Random random(17);
    const std::int64_t width = 100, rotary = 20;
    const Floats x = random.numbers(width);
    Bytes bytes(static_cast<std::size_t>(entry_bytes(codec, width, rotary)));
    Floats back(x.size());
    ops.encode(codec, x.data(), width, rotary, bytes.data());
    ops.decode(codec, bytes.data(), width, rotary, back.data());
    const std::string number = std::to_string(static_cast<int>(codec));
    check.add("encode, codec " + number, kEqual, as_floats(bytes));
    check.add("decode, codec " + number, kEqual, back);
  }
}

void check_compress(const Check& check) {
  for (const bool overlap : {true, false}) {
    Random random(19);
    const std::int64_t ratio = overlap ? 4 : 128, width = 84, count = 3, columns = overlap ? 2 * width : width;
    const Floats kv = random.numbers(count * ratio * columns), gate = random.numbers(count * ratio * columns);
    const Floats norm = random.numbers(width), frequencies{1.0f, 0.25f, 0.0625f};
    const auto rows = [&](const Floats& x) {
      return Rows{nullptr, reinterpret_cast<const std::uint8_t*>(x.data()), 0, 0, columns * 4};
    };
    Floats out(static_cast<std::size_t>(count * width));
    auto* page = reinterpret_cast<std::uint8_t*>(out.data());
    const Entries entries{Codec::kF32, &page, 0, count, width * 4, count, width, 6};
    const CompressArgs args{rows(kv), rows(gate), 0, count, ratio, overlap, norm.data(), 1e-6f,
                            {frequencies.data(), 3}, Finish::kPlain, entries};
    check.context().compress->compress(check.context(), &args, 1);
    check.add(overlap ? "compress CSA" : "compress HCA", kSums, out);
  }
}

// Keys and queries that are FP4 numbers and weights that are quarters: every score is exact.
void check_index(const Check& check, PackKind kind, const std::string& name) {
  Random random(23);
  const std::int64_t n = 5, heads = 3, width = 64, count = 1000, k = 37;
  const CompressOps& codec = *check.context().compress;
  Floats keys = random.numbers(count * width), query = random.numbers(n * heads * width), weights;
  const Codec stored = kind == PackKind::kFP4 ? Codec::kIndexFP4 : kind == PackKind::kBF16 ? Codec::kBF16 : Codec::kF32;
  const std::int64_t bytes = entry_bytes(stored, width, 0);
  Bytes raw(static_cast<std::size_t>(count * bytes));
  for (std::int64_t i = 0; i < count; ++i) codec.encode(stored, &keys[static_cast<std::size_t>(i * width)], width, 0, &raw[static_cast<std::size_t>(i * bytes)]);
  check.context().rows->quantize_index(check.context(), query.data(), n * heads, width);
  for (std::int64_t i = 0; i < n * heads; ++i) weights.push_back(static_cast<float>(random.below(8)) * 0.25f - 0.5f);
  const PackShape shape{kind, width, kPackKeys};
  const std::int64_t pages = (count + kPackKeys - 1) / kPackKeys, size = pack_layout(shape).bytes;
  Bytes memory(static_cast<std::size_t>(pages * size + 64));
  auto* base = memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64) % 64;
  std::vector<std::uint8_t*> packs;
  for (std::int64_t p = 0; p < pages; ++p) {
    packs.push_back(base + p * size);
    std::uint8_t* at = raw.data() + p * kPackKeys * bytes;
    const std::int64_t filled = std::min<std::int64_t>(kPackKeys, count - p * kPackKeys);
    check.context().index->pack(shape, {stored, &at, 0, kPackKeys, bytes, filled, width, 0}, 0, filled, packs.back());
  }
  std::vector<std::int64_t> visible{10, 64, 500, 999, 1000};
  std::vector<std::int32_t> chosen(static_cast<std::size_t>(n * k));
  Floats scores(static_cast<std::size_t>(n * count));
  const TopkArgs args{query.data(), weights.data(), n, heads, {shape, packs.data(), 0, count}, visible.data(), k, chosen.data()};
  IndexCounters counters{0, 0};
  check.context().index->scores(check.context(), args, scores.data());
  check.context().index->topk(check.context(), &args, 1, &counters);
  const bool exact = kind == PackKind::kFP4;
  check.add("index scores " + name, exact ? kEqual : kSums, scores);
  if (exact) check.add("index top-k " + name, kEqual, as_floats(chosen));
}

void check_attend(const Check& check, Codec codec, Precision precision, bool listed) {
  Random random(29);
  const std::int64_t n = 6, heads = 3, width = 136, rotary = 8, window = 16, ratio = 4, position = 200, k = 21;
  const std::int64_t count = (position + n) / ratio, bytes = entry_bytes(codec, width, rotary);
  const Codec raw = codec == Codec::kF32 ? Codec::kF32 : Codec::kBF16;
  const std::int64_t row_bytes = entry_bytes(raw, width, 0);
  const auto encoded = [&](Codec as, std::int64_t rows, std::int64_t size) {
    Bytes made(static_cast<std::size_t>(rows * size));
    for (std::int64_t r = 0; r < rows; ++r)
      check.context().compress->encode(as, random.numbers(width).data(), width, rotary, &made[static_cast<std::size_t>(r * size)]);
    return made;
  };
  const Bytes past = encoded(raw, window, row_bytes), fresh = encoded(raw, n, row_bytes);
  Bytes entries = encoded(codec, count, bytes);
  std::uint8_t* page = entries.data();
  std::vector<std::int32_t> indices;
  for (std::int64_t t = 0; t < n; ++t)
    for (std::int64_t i = 0; i < k; ++i) indices.push_back(i < k - t ? static_cast<std::int32_t>(2 * i + t % 2) : -1);
  const Floats query = random.numbers(n * heads * width), sink = random.numbers(heads), frequencies{1, 0.5f, 0.25f, 0.125f};
  Floats out(query.size()), entry_mass(static_cast<std::size_t>(2 * (listed ? k : count))), window_mass(2 * window);
  const AttendArgs args{query.data(), n, heads, width, position,
                        {past.data(), fresh.data(), window - 1, position, row_bytes}, raw, window,
                        {codec, &page, 0, count, bytes, count, width, codec == Codec::kKvFP8 ? rotary : 0},
                        listed ? indices.data() : nullptr, k, ratio, sink.data(), {frequencies.data(), rotary / 2},
                        precision, out.data(), 2, entry_mass.data(), window_mass.data()};
  check.context().attend->attend(check.context(), &args, 1);
  const std::string name = "attend, codec " + std::to_string(static_cast<int>(codec)) + (listed ? ", listed" : "") +
                           (precision == Precision::kFP32 ? "" : ", rounded");
  const float bound = precision == Precision::kFP32 ? kSums : kRounded;
  check.add(name, bound, out);
  check.add(name + ", entry mass", bound, entry_mass);
  check.add(name + ", window mass", bound, window_mass);
}

std::vector<Result> run(const std::string& isa) {
  std::vector<Result> results;
  Runtime runtime(2, isa, Precision::kFP32);
  const Check check{runtime, results};
  check_linear(check);
  check_experts(check);
  check_hyper(check);
  check_rows(check);
  check_codecs(check);
  check_compress(check);
  check_index(check, PackKind::kFP4, "fp4");
  check_index(check, PackKind::kBF16, "bf16");
  check_index(check, PackKind::kF32, "f32");
  for (const Codec codec : {Codec::kF32, Codec::kBF16, Codec::kKvFP8})
    for (const bool listed : {false, true})
      for (const Precision precision : {Precision::kFP32, Precision::kBF16}) check_attend(check, codec, precision, listed);
  return results;
}

// ---------------------------------------------------------------- comparing

// Largest difference over the largest magnitude; not a number, or of another length: infinite.
float difference(const Floats& a, const Floats& b) {
  if (a.size() != b.size()) return INFINITY;
  float most = 0, largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!std::isfinite(a[i]) || !std::isfinite(b[i])) return INFINITY;
    most = std::max(most, std::fabs(a[i] - b[i]));
    largest = std::max(largest, std::fabs(a[i]));
  }
  return most == 0 ? 0 : most / largest;
}

void write(const std::vector<Result>& results, std::FILE* to) {
  for (const Result& result : results) {
    const std::uint64_t count = result.values.size();
    std::fwrite(&count, sizeof count, 1, to);
    std::fwrite(result.values.data(), sizeof(float), result.values.size(), to);
  }
  if (std::fflush(to) != 0) throw std::runtime_error("the results could not be written");
}

// The next result of a file of `write`, from a build of the same source.
Floats next(std::FILE* from) {
  std::uint64_t count = 0;
  if (std::fread(&count, sizeof count, 1, from) != 1 || count > 1 << 24) throw std::runtime_error("not a file of results");
  Floats values(count);
  if (std::fread(values.data(), sizeof(float), count, from) != count) throw std::runtime_error("the file ends too early");
  return values;
}

bool compare(const std::vector<Result>& results, const char* path) {
  std::FILE* file = std::fopen(path, "rb");
  if (file == nullptr) throw std::runtime_error(std::string("cannot read ") + path);
  int wrong = 0, equal = 0;
  for (const Result& result : results) {
    const float found = difference(next(file), result.values);
    const bool good = found <= result.bound;
    if (found == 0) ++equal;
    if (!good) ++wrong;
    std::printf("%-40s %10.2g %10.2g%s\n", result.name.c_str(), static_cast<double>(found),
                static_cast<double>(result.bound), good ? "" : "  WRONG");
  }
  std::fclose(file);
  std::printf("%zu results, %d equal to the bit, %d out of bounds\n", results.size(), equal, wrong);
  return wrong == 0;
}

}  // namespace
}  // namespace foveal

int main(int argc, char** argv) {
  if (argc != 2 && argc != 3) {
    std::fprintf(stderr, "crosscheck ISA > FILE, or crosscheck ISA FILE to compare with it\n");
    return 2;
  }
  try {
    const auto results = foveal::run(argv[1]);
    if (argc == 3) return foveal::compare(results, argv[2]) ? 0 : 1;
    foveal::write(results, stdout);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "crosscheck: %s\n", error.what());
    return 1;
  }
  return 0;
}
