// Embedding, norms, rotary embedding and run-time quantisation of rows.
//
// What stands between two products is one pass over a row in the cache: norm, rotation, rounding and the conversion to
// the cache's format. Every token is computed alone, in one order.
#include "rows.h"

#include "rows_hyper.h"
#include "rowwise.h"

namespace foveal::FOVEAL_ISA {
namespace {

void widen_row(const std::uint16_t* from, std::int64_t width, float* to) {
  std::int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) store(to + i, widen(from + i));
  for (; i < width; ++i) to[i] = widen_one(from[i]);
}

void narrow_row(const float* from, std::int64_t width, std::uint16_t* to) {
  std::int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) store_narrow(to + i, load(from + i));
  for (; i < width; ++i) to[i] = narrow_one(from[i]);
}

void embed(Context& context, const Matrix& table, const std::int64_t* tokens, std::int64_t n, std::int64_t streams,
           float* out) {
  const std::int64_t d = table.columns;
  each_token(context, n, d * (streams + 1), [&](std::int64_t i, int) {
    float* const first = out + i * streams * d;
    if (table.format == Format::kBF16)
      widen_row(static_cast<const std::uint16_t*>(table.data) + tokens[i] * d, d, first);
    else
      std::memcpy(first, static_cast<const float*>(table.data) + tokens[i] * d, (std::size_t)d * sizeof(float));
    for (std::int64_t s = 1; s < streams; ++s) std::memcpy(first + s * d, first, (std::size_t)d * sizeof(float));
  });
}

void rms_norm(Context& context, const float* x, std::int64_t n, std::int64_t width, std::int64_t x_stride,
              const float* weight, float eps, float* out) {
  each_token(context, n, 2 * width,
             [&](std::int64_t i, int) { rms_row(x + i * x_stride, width, weight, eps, out + i * width); });
}

// ---------------------------------------------------------------- rotation

void rotate(Context& context, float* x, std::int64_t n, std::int64_t heads, std::int64_t c,
            const std::int64_t* positions, const Rotary& rotary, bool inverse) {
  each_token(context, n, heads * 2 * rotary.half, [&](std::int64_t i, int thread) {
    Arena::Scope scope(context.own(thread));
    const Turn turn = make_turn(rotary, positions[i], inverse, context.own(thread).take<float>(turn_floats(rotary)));
    for (std::int64_t h = 0; h < heads; ++h) turn_row(x + (i * heads + h + 1) * c - 2 * rotary.half, rotary.half, turn);
  });
}

void finish_query(Context& context, float* x, std::int64_t n, std::int64_t heads, std::int64_t c,
                  const std::int64_t* positions, const Rotary& rotary, float eps, bool quantize) {
  const std::int64_t work = heads * c * (quantize ? 4 : 1);
  each_token(context, n, work, [&](std::int64_t i, int thread) {
    Arena::Scope scope(context.own(thread));
    const Turn turn = make_turn(rotary, positions[i], false, context.own(thread).take<float>(turn_floats(rotary)));
    for (std::int64_t h = 0; h < heads; ++h) {
      float* const head = x + (i * heads + h) * c;
      if (eps >= 0) rms_row(head, c, nullptr, eps, head);
      turn_row(head + c - 2 * rotary.half, rotary.half, turn);
      if (quantize) quantize_index_row(head, c);
    }
  });
}

void finish_kv(Context& context, const float* x, std::int64_t n, std::int64_t c, std::int64_t x_stride,
               const std::int64_t* positions, const Rotary& rotary, const float* weight, float eps, bool quantize,
               Codec codec, void* rows) {
  each_token(context, n, 4 * c, [&](std::int64_t i, int thread) {
    Arena::Scope scope(context.own(thread));
    const Turn turn = make_turn(rotary, positions[i], false, context.own(thread).take<float>(turn_floats(rotary)));
    float* const row = codec == Codec::kF32 ? static_cast<float*>(rows) + i * c : context.own(thread).take<float>(c);
    rms_row(x + i * x_stride, c, weight, eps, row);
    turn_row(row + c - 2 * rotary.half, rotary.half, turn);
    if (quantize) quantize_kv_row(row, c, 2 * rotary.half);
    if (codec != Codec::kF32) narrow_row(row, c, static_cast<std::uint16_t*>(rows) + i * c);
  });
}

// ---------------------------------------------------------------- run-time quantisation

void quantize_kv(Context& context, float* x, std::int64_t n, std::int64_t c, std::int64_t rotary) {
  each_token(context, n, 2 * c, [&](std::int64_t i, int) { quantize_kv_row(x + i * c, c, rotary); });
}

void quantize_index(Context& context, float* x, std::int64_t n, std::int64_t width) {
  each_token(context, n, 4 * width, [&](std::int64_t i, int) { quantize_index_row(x + i * width, width); });
}

void quantize_activations(Context& context, float* x, std::int64_t n, std::int64_t width) {
  each_token(context, n, 2 * width, [&](std::int64_t i, int) { round_blocks<E4M3, 128>(x + i * width, width); });
}

}  // namespace

extern const RowOps row_ops;
const RowOps row_ops{embed,     hyper_pre, hyper_post,  hyper_head,     rms_norm, finish_query,
                     finish_kv, rotate,    quantize_kv, quantize_index, quantize_activations};

}  // namespace foveal::FOVEAL_ISA
