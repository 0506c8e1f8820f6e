// What the binding files share: array types and the functions that fill the module.
//
// Tensors cross as DLPack (nanobind's ndarray), so nothing knows torch. Outputs are arrays the caller made; the GIL is
// released while kernels run.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>

#include "core.h"
#include "indexer.h"
#include "runtime.h"

namespace nb = nanobind;

namespace foveal {

// Contiguous CPU arrays. `noconvert` is the default here: a wrong dtype or stride is an error, never a silent copy.
template <class T, std::size_t Rank>
using In = nb::ndarray<const T, nb::ndim<Rank>, nb::c_contig, nb::device::cpu>;
template <class T, std::size_t Rank>
using Out = nb::ndarray<T, nb::ndim<Rank>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;  // any dtype, any rank: raw memory

// A weight that keeps its arrays alive. Python's class `Matrix`.
struct HeldMatrix {
  Matrix matrix;
  nb::object data, scale;
  std::vector<Span> spans;
};

inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

// By name: f32, bf16, kv_fp8, index_fp4, index_fp8; fp4, bf16, f32. Raise std::invalid_argument naming them.
Codec codec_of(const std::string& name);
PackKind pack_kind_of(const std::string& name);

void bind_linear(nb::module_& module);
void bind_rows(nb::module_& module);
void bind_compress(nb::module_& module);
void bind_indexer(nb::module_& module);
void bind_attend(nb::module_& module);
void bind_sampling(nb::module_& module);
void bind_network(nb::module_& module);

}  // namespace foveal
