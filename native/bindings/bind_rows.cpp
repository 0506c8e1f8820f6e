// Python's face of the operations on single rows: checks shapes, lets go of the GIL, calls the kernels.
//
// Each function takes the runtime first, so that every instruction set can be tested. Inputs and outputs are contiguous
// float32 (unless said otherwise) that the caller made.
#include "bind.h"
#include "rows.h"

namespace foveal {
namespace {

using Floats1 = In<float, 1>;
using Floats2 = In<float, 2>;
using Floats3 = In<float, 3>;
using Integers = In<std::int64_t, 1>;

std::int64_t size(const auto& array, std::size_t axis) { return static_cast<std::int64_t>(array.shape(axis)); }

void require_shape(const auto& array, std::initializer_list<std::int64_t> wanted, const std::string& name) {
  std::size_t axis = 0;
  bool same = true;
  for (const std::int64_t length : wanted) same = size(array, axis++) == length && same;
  if (same) return;
  std::string is, should;
  axis = 0;
  for (const std::int64_t length : wanted) {
    is.append(std::to_string(size(array, axis++))).append(" ");
    should.append(std::to_string(length)).append(" ");
  }
  require(false, name + " has the shape [ " + is + "]; it must be [ " + should + "]");
}

Rotary rotary_of(const Floats1& frequencies, std::int64_t channels) {
  const Rotary rotary{frequencies.data(), size(frequencies, 0)};
  require(2 * rotary.half <= channels, std::to_string(2 * rotary.half) + " rotary channels do not fit into " +
                                           std::to_string(channels));
  return rotary;
}

void require_power_of_two(std::int64_t width) {
  require(width > 0 && (width & (width - 1)) == 0,
          "an index row has " + std::to_string(width) + " channels; the Hadamard rotation needs a power of two");
}

void embed(Runtime& runtime, const HeldMatrix& table, const Integers& tokens, const Out<float, 3>& out) {
  const Matrix& matrix = table.matrix;
  require(matrix.format == Format::kBF16 || matrix.format == Format::kF32, "an embedding must be bf16 or f32");
  require_shape(out, {size(tokens, 0), size(out, 1), matrix.columns}, "out");
  for (std::int64_t i = 0; i < size(tokens, 0); ++i) {
    const std::int64_t token = tokens.data()[i];
    if (token < 0 || token >= matrix.rows)
      require(false, "token " + std::to_string(token) + " is not among the " + std::to_string(matrix.rows) +
                         " of the embedding");
  }
  const nb::gil_scoped_release release;
  Context& context = runtime.context();
  context.rows->embed(context, matrix, tokens.data(), size(tokens, 0), size(out, 1), out.data());
}

// Shapes of one hyper-connection with `rows` coefficients a token and `scales` scales.
HyperArgs hyper_args(const Floats3& streams, const Floats2& fn, const Floats1& base, const Floats1& scale,
                     std::int64_t rows, std::int64_t scales, int iterations, float eps, float norm_eps) {
  const std::int64_t n = size(streams, 0), s = size(streams, 1), d = size(streams, 2);
  require(s > 0 && d > 0, "streams must have at least one stream and one channel");
  require_shape(fn, {rows, s * d}, "fn");
  require_shape(base, {rows}, "base");
  require_shape(scale, {scales}, "scale");
  return {n, s, d, fn.data(), base.data(), scale.data(), iterations, eps, norm_eps};
}

void hyper_pre(Runtime& runtime, const Floats3& streams, const Floats2& fn, const Floats1& base, const Floats1& scale,
               int iterations, float eps, float norm_eps, const Floats1& norm, const Out<float, 2>& x,
               const Out<float, 2>& post, const Out<float, 3>& comb) {
  const std::int64_t s = size(streams, 1);
  const HyperArgs args = hyper_args(streams, fn, base, scale, (2 + s) * s, 3, iterations, eps, norm_eps);
  require(iterations >= 1, "Sinkhorn needs at least one iteration");
  if (norm.is_valid()) require_shape(norm, {args.d}, "norm");
  require_shape(x, {args.n, args.d}, "x");
  require_shape(post, {args.n, s}, "post");
  require_shape(comb, {args.n, s, s}, "comb");
  const nb::gil_scoped_release release;
  Context& context = runtime.context();
  context.rows->hyper_pre(context, args, streams.data(), norm.is_valid() ? norm.data() : nullptr, x.data(), post.data(),
                          comb.data());
}

void hyper_head(Runtime& runtime, const Floats3& streams, const Floats2& fn, const Floats1& base, const Floats1& scale,
                float eps, float norm_eps, const Floats1& norm, const Out<float, 2>& x) {
  const HyperArgs args = hyper_args(streams, fn, base, scale, size(streams, 1), 1, 0, eps, norm_eps);
  if (norm.is_valid()) require_shape(norm, {args.d}, "norm");
  require_shape(x, {args.n, args.d}, "x");
  const nb::gil_scoped_release release;
  Context& context = runtime.context();
  context.rows->hyper_head(context, args, streams.data(), norm.is_valid() ? norm.data() : nullptr, x.data());
}

void hyper_post(Runtime& runtime, const Floats2& out, const Floats2& post, const Floats3& comb,
                const Out<float, 3>& streams) {
  const std::int64_t n = size(streams, 0), s = size(streams, 1), d = size(streams, 2);
  require_shape(out, {n, d}, "out");
  require_shape(post, {n, s}, "post");
  require_shape(comb, {n, s, s}, "comb");
  const nb::gil_scoped_release release;
  Context& context = runtime.context();
  context.rows->hyper_post(context, n, s, d, out.data(), post.data(), comb.data(), streams.data());
}

void rms_norm(Runtime& runtime, const Floats2& x, const Floats1& weight, float eps, const Out<float, 2>& out) {
  const std::int64_t n = size(x, 0), width = size(x, 1);
  if (weight.is_valid()) require_shape(weight, {width}, "weight");
  require_shape(out, {n, width}, "out");
  const nb::gil_scoped_release release;
  Context& context = runtime.context();
  context.rows->rms_norm(context, x.data(), n, width, width, weight.is_valid() ? weight.data() : nullptr, eps,
                         out.data());
}

void finish_query(Runtime& runtime, const Out<float, 3>& x, const Integers& positions, const Floats1& frequencies,
                  float eps, bool quantize) {
  const std::int64_t n = size(x, 0), heads = size(x, 1), c = size(x, 2);
  require_shape(positions, {n}, "positions");
  const Rotary rotary = rotary_of(frequencies, c);
  if (quantize) require_power_of_two(c);
  const nb::gil_scoped_release release;
  Context& context = runtime.context();
  context.rows->finish_query(context, x.data(), n, heads, c, positions.data(), rotary, eps, quantize);
}

// rows: float32 [n, c], or uint16 or bfloat16 [n, c] for BF16.
void finish_kv(Runtime& runtime, const Floats2& x, const Integers& positions, const Floats1& frequencies,
               const Floats1& weight, float eps, bool quantize,
               const nb::ndarray<nb::c_contig, nb::device::cpu>& rows) {
  const std::int64_t n = size(x, 0), c = size(x, 1);
  require_shape(positions, {n}, "positions");
  require_shape(weight, {c}, "weight");
  const Rotary rotary = rotary_of(frequencies, c);
  require(rows.ndim() == 2 && size(rows, 0) == n && size(rows, 1) == c, "rows must have the shape of x");
  const std::size_t item = rows.itemsize();
  require(item == 2 || item == 4, "rows must be float32, bfloat16 or uint16");
  const nb::gil_scoped_release release;
  Context& context = runtime.context();
  context.rows->finish_kv(context, x.data(), n, c, c, positions.data(), rotary, weight.data(), eps, quantize,
                          item == 4 ? Codec::kF32 : Codec::kBF16, rows.data());
}

void rotate(Runtime& runtime, const Out<float, 3>& x, const Integers& positions, const Floats1& frequencies,
            bool inverse) {
  const std::int64_t n = size(x, 0), heads = size(x, 1), c = size(x, 2);
  require_shape(positions, {n}, "positions");
  const Rotary rotary = rotary_of(frequencies, c);
  const nb::gil_scoped_release release;
  Context& context = runtime.context();
  context.rows->rotate(context, x.data(), n, heads, c, positions.data(), rotary, inverse);
}

void quantize_kv(Runtime& runtime, const Out<float, 2>& x, std::int64_t rotary) {
  require(rotary >= 0 && rotary <= size(x, 1), "x has fewer channels than rotate");
  const nb::gil_scoped_release release;
  Context& context = runtime.context();
  context.rows->quantize_kv(context, x.data(), size(x, 0), size(x, 1), rotary);
}

void quantize_index(Runtime& runtime, const Out<float, 2>& x) {
  require_power_of_two(size(x, 1));
  const nb::gil_scoped_release release;
  Context& context = runtime.context();
  context.rows->quantize_index(context, x.data(), size(x, 0), size(x, 1));
}

void quantize_activations(Runtime& runtime, const Out<float, 2>& x) {
  const nb::gil_scoped_release release;
  Context& context = runtime.context();
  context.rows->quantize_activations(context, x.data(), size(x, 0), size(x, 1));
}

auto strict(const char* name) { return nb::arg(name).noconvert(); }

void bind_hyper(nb::module_& module) {
  module.def("hyper_pre", &hyper_pre, nb::arg("runtime"), strict("streams"), strict("fn"), strict("base"),
             strict("scale"), nb::arg("iterations"), nb::arg("eps"), nb::arg("norm_eps"), strict("norm").none(),
             strict("x"), strict("post"), strict("comb"),
             "Streams [n, S, d] -> x [n, d] (RMS-normed and times `norm` [d] unless that is None), post [n, S], comb\n"
             "[n, S, S] (source, destination). fn [(2 + S) * S, S * d], base [(2 + S) * S], scale [3].");
  module.def("hyper_head", &hyper_head, nb::arg("runtime"), strict("streams"), strict("fn"), strict("base"),
             strict("scale"), nb::arg("eps"), nb::arg("norm_eps"), strict("norm").none(), strict("x"),
             "Streams [n, S, d] -> x [n, d] that the LM head reads. fn [S, S * d], base [S], scale [1].");
  module.def("hyper_post", &hyper_post, nb::arg("runtime"), strict("out"), strict("post"), strict("comb"),
             strict("streams"),
             "Streams [n, S, d] in place: destination k gets post_k * out + sum of comb[j, k] * stream_j.");
}

void bind_quantization(nb::module_& module) {
  module.def("quantize_kv", &quantize_kv, nb::arg("runtime"), strict("x"), nb::arg("rotary"),
             "x [n, c] in place: FP8 in blocks of 64 before the last `rotary` channels, BF16 on those.");
  module.def("quantize_index", &quantize_index, nb::arg("runtime"), strict("x"),
             "x [n, width] in place: Hadamard rotation, FP4 in blocks of 32. width must be a power of two.");
  module.def("quantize_activations", &quantize_activations, nb::arg("runtime"), strict("x"),
             "x [n, width] in place: FP8 in blocks of 128.");
}

}  // namespace

void bind_rows(nb::module_& module) {
  module.def("embed", &embed, nb::arg("runtime"), nb::arg("table"), strict("tokens"), strict("out"),
             "Rows of `table` (bf16 or f32) for tokens int64 [n], repeated for each stream: out [n, S, d].");
  bind_hyper(module);
  module.def("rms_norm", &rms_norm, nb::arg("runtime"), strict("x"), strict("weight").none(), nb::arg("eps"),
             strict("out"), "x [n, width] / rms, times weight [width] unless None -> out [n, width].");
  module.def("finish_query", &finish_query, nb::arg("runtime"), strict("x"), strict("positions"), strict("frequencies"),
             nb::arg("eps"), nb::arg("quantize"),
             "x [n, heads, c] in place: RMS norm of each head (eps < 0: none), rotation at int64 positions [n], with\n"
             "`quantize` the Hadamard rotation and FP4.");
  module.def("finish_kv", &finish_kv, nb::arg("runtime"), strict("x"), strict("positions"), strict("frequencies"),
             strict("weight"), nb::arg("eps"), nb::arg("quantize"), strict("rows"),
             "x [n, c]: RMS norm times weight, rotation, with `quantize` the FP8 of KV rows -> rows [n, c], float32,\n"
             "bfloat16 or (BF16 bits) uint16.");
  module.def("rotate", &rotate, nb::arg("runtime"), strict("x"), strict("positions"), strict("frequencies"),
             nb::arg("inverse"), "Rotates the last channels of x [n, heads, c] in place, as interleaved pairs.");
  bind_quantization(module);
}

}  // namespace foveal
