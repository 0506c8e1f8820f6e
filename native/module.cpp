// The Python face of the native library: checks shapes, lets go of the GIL, calls the kernels.
//
// Tensors cross as DLPack (nanobind's ndarray), so nothing here knows torch; results are allocated here and handed over
// as torch tensors without a copy.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <memory>
#include <stdexcept>
#include <string>

#include "topk.h"

namespace nb = nanobind;

namespace {

template <class T, std::size_t Rank>
using Input = nb::ndarray<const T, nb::ndim<Rank>, nb::c_contig, nb::device::cpu>;

nb::ndarray<nb::pytorch, std::int64_t> topk_lowest(const Input<float, 2>& scores,
                                                   const Input<std::int64_t, 1>& visible, std::int64_t k,
                                                   int threads) {
  const auto rows = static_cast<std::int64_t>(scores.shape(0));
  const auto columns = static_cast<std::int64_t>(scores.shape(1));
  if (static_cast<std::int64_t>(visible.shape(0)) != rows)
    throw std::invalid_argument("visible has " + std::to_string(visible.shape(0)) + " elements for " +
                                std::to_string(rows) + " rows of scores; it must have one for each");
  if (k < 0) throw std::invalid_argument("k is " + std::to_string(k) + "; it must be at least 0");
  if (threads < 0) throw std::invalid_argument("threads is " + std::to_string(threads) + "; it must be at least 0");

  auto memory = std::make_unique<std::int64_t[]>(static_cast<std::size_t>(rows) * static_cast<std::size_t>(k));
  std::int64_t* chosen = memory.get();
  {
    nb::gil_scoped_release release;
    foveal::topk_lowest(scores.data(), visible.data(), rows, columns, k, chosen, threads);
  }
  nb::capsule owner(chosen, [](void* pointer) noexcept { delete[] static_cast<std::int64_t*>(pointer); });
  memory.release();  // the capsule has it now
  return {chosen, {static_cast<std::size_t>(rows), static_cast<std::size_t>(k)}, owner};
}

}  // namespace

NB_MODULE(_native, module) {
  module.doc() = "Foveal's native kernels for the CPU. Tensors are passed as DLPack; see native/ for the sources.";
  module.def("topk_lowest", &topk_lowest, nb::arg("scores").noconvert(), nb::arg("visible").noconvert(), nb::arg("k"), nb::kw_only(),
             nb::arg("threads") = 0,
             "Columns of the k highest of the first visible[i] scores of each row, ascending, padded with -1.\n\n"
             "scores: float32 [n, s]. visible: int64 [n], taken as between 0 and s. Both contiguous, on the CPU. k: at\n"
             "least 0.\n"
             "threads: at most so many; 0 for as many as the machine has. Returns int64 [n, k].\n\n"
             "Equal scores: the lower column wins. NaN ranks below -inf. Raises ValueError for a wrong length of\n"
             "visible or a negative k, TypeError for other dtypes, ranks, strides or devices.");
}
