// Python's face of the products with weights.
#include "bind.h"
#include "linear.h"

#include <nanobind/stl/optional.h>

#include <optional>

namespace foveal {
namespace {

using Matrices = std::vector<const HeldMatrix*>;

std::int64_t size(const auto& array, std::size_t axis) { return static_cast<std::int64_t>(array.shape(axis)); }

std::string shape_of(std::int64_t a, std::int64_t b) {
  return std::string("[").append(std::to_string(a)).append(", ").append(std::to_string(b)).append("]");
}

void require_shape(const auto& array, std::int64_t rows, std::int64_t columns, const char* name) {
  require(size(array, 0) == rows && size(array, 1) == columns, std::string(name) + " is " +
                                                                   shape_of(size(array, 0), size(array, 1)) +
                                                                   "; it must be " + shape_of(rows, columns));
}

void require_matrix(const Matrix& matrix, std::int64_t rows, std::int64_t columns, const char* name) {
  require(
      matrix.rows == rows && matrix.columns == columns,
      std::string(name) + " is " + shape_of(matrix.rows, matrix.columns) + "; it must be " + shape_of(rows, columns));
}

void linear(Runtime& runtime, const In<float, 2>& x, const Matrices& weights, const std::vector<bool>& simulate,
            const std::vector<Out<float, 2>>& out) {
  const std::size_t count = weights.size();
  require(simulate.size() == count && out.size() == count, "weights, simulate and out must be of one length");
  std::vector<Product> products;
  for (std::size_t i = 0; i < count; ++i) {
    require(weights[i] != nullptr, "a weight is None");
    const Matrix& weight = weights[i]->matrix;
    require(weight.columns == size(x, 1),
            "x has " + std::to_string(size(x, 1)) + " columns, the weight " + std::to_string(weight.columns));
    require_shape(out[i], size(x, 0), weight.rows, "out");
    products.push_back({&weight, simulate[i], runtime.context().precision, out[i].data(), weight.rows});
  }
  const nb::gil_scoped_release release;
  runtime.context().linear->linear(runtime.context(), x.data(), size(x, 0), size(x, 1), products.data(),
                                   static_cast<int>(count));
}

void grouped_output(Runtime& runtime, const In<float, 2>& heads, const HeldMatrix& wo_a, const HeldMatrix& wo_b,
                    std::int64_t groups, bool simulate, const Out<float, 2>& out) {
  const Matrix &a = wo_a.matrix, &b = wo_b.matrix;
  require(groups > 0 && a.rows % groups == 0,
          "wo_a's " + std::to_string(a.rows) + " rows do not split into " + std::to_string(groups) + " groups");
  require_shape(heads, size(heads, 0), groups * a.columns, "heads");
  require_matrix(b, b.rows, a.rows, "wo_b");
  require_shape(out, size(heads, 0), b.rows, "out");
  const GroupedArgs args{heads.data(), size(heads, 0), groups, &a, &b, simulate, runtime.context().precision,
                         out.data()};
  const nb::gil_scoped_release release;
  runtime.context().linear->grouped_output(runtime.context(), args);
}

void check_table(const In<std::int64_t, 2>& table, const In<std::int64_t, 1>& tokens, std::int64_t experts) {
  for (std::int64_t t = 0; t < size(tokens, 0); ++t) {
    const std::int64_t token = tokens.data()[t];
    require(token >= 0 && token < size(table, 0),
            "token " + std::to_string(token) + " is not in the table of " + std::to_string(size(table, 0)));
    for (std::int64_t a = 0; a < size(table, 1); ++a) {
      const std::int64_t expert = table.data()[token * size(table, 1) + a];
      require(expert >= 0 && expert < experts,
              "the table names expert " + std::to_string(expert) + " of " + std::to_string(experts));
    }
  }
}

void route(Runtime& runtime, const In<float, 2>& y, const HeldMatrix& gate, const std::optional<In<float, 1>>& bias,
           const std::optional<In<std::int64_t, 2>>& table, const std::optional<In<std::int64_t, 1>>& tokens,
           float scale, const Out<std::int32_t, 2>& chosen, const Out<float, 2>& weights,
           const Out<float, 2>& affinity) {
  const std::int64_t n = size(y, 0), experts = gate.matrix.rows, active = size(chosen, 1);
  require_matrix(gate.matrix, experts, size(y, 1), "gate");
  require(active > 0 && active <= experts,
          std::to_string(active) + " active of " + std::to_string(experts) + " experts");
  require(!bias || size(*bias, 0) == experts, "bias must have one number for each expert");
  require(table.has_value() <= tokens.has_value(), "a table needs the tokens");
  require_shape(chosen, n, active, "chosen");
  require_shape(weights, n, active, "weights");
  require_shape(affinity, n, experts, "affinity");
  if (table && tokens) {
    require(size(*table, 1) == active && size(*tokens, 0) == n, "table must be [V, A] and tokens [n]");
    check_table(*table, *tokens, experts);
  }
  const RouteArgs args{y.data(),
                       n,
                       &gate.matrix,
                       bias ? bias->data() : nullptr,
                       table ? table->data() : nullptr,
                       table && tokens ? tokens->data() : nullptr,
                       active,
                       scale,
                       chosen.data(),
                       weights.data(),
                       affinity.data()};
  const nb::gil_scoped_release release;
  runtime.context().linear->route(runtime.context(), args);
}

// The matrices of all experts one after the other, as the kernels take them; all of one shape.
std::vector<Matrix> side_by_side(const Matrices& weights, std::int64_t rows, std::int64_t columns, const char* name) {
  std::vector<Matrix> found;
  for (const HeldMatrix* weight : weights) {
    require(weight != nullptr, std::string(name) + ": a weight is None");
    require_matrix(weight->matrix, rows, columns, name);
    found.push_back(weight->matrix);
  }
  return found;
}

void experts(Runtime& runtime, const In<float, 2>& y, const In<std::int32_t, 2>& chosen, const In<float, 2>& weights,
             const Matrices& w1, const Matrices& w2, const Matrices& w3, const Matrices& shared, float limit,
             bool simulate, const Out<float, 2>& out) {
  const std::int64_t n = size(y, 0), d = size(y, 1), count = static_cast<std::int64_t>(w1.size());
  require(count > 0 && w2.size() == w1.size() && w3.size() == w1.size(),
          "w1, w2 and w3 must be of one length, at least 1");
  require(shared.empty() || shared.size() == 3, "shared must be (w1, w2, w3) or empty");
  require(w1[0] != nullptr, "w1: a weight is None");
  const std::int64_t m = w1[0]->matrix.rows;
  const std::vector<Matrix> gate = side_by_side(w1, m, d, "w1"), down = side_by_side(w2, d, m, "w2"),
                            up = side_by_side(w3, m, d, "w3");
  if (!shared.empty()) {
    for (const HeldMatrix* weight : shared) require(weight != nullptr, "shared: a weight is None");
    const std::int64_t width = shared[0]->matrix.rows;
    require_matrix(shared[0]->matrix, width, d, "shared w1");
    require_matrix(shared[1]->matrix, d, width, "shared w2");
    require_matrix(shared[2]->matrix, width, d, "shared w3");
  }
  require_shape(chosen, n, size(chosen, 1), "chosen");
  require_shape(weights, n, size(chosen, 1), "weights");
  require_shape(out, n, d, "out");
  for (std::int64_t i = 0; i < n * size(chosen, 1); ++i)
    require(chosen.data()[i] >= 0 && chosen.data()[i] < count,
            "chosen names expert " + std::to_string(chosen.data()[i]) + " of " + std::to_string(count));
  const auto one = [&](std::size_t i) { return shared.empty() ? nullptr : &shared[i]->matrix; };
  const ExpertsArgs args{y.data(),  n,           chosen.data(), weights.data(), size(chosen, 1),
                         count,     gate.data(), down.data(),   up.data(),      one(0),
                         one(1),    one(2),      limit,         simulate,       runtime.context().precision,
                         out.data()};
  const nb::gil_scoped_release release;
  runtime.context().linear->experts(runtime.context(), args);
}

}  // namespace

void bind_linear(nb::module_& module) {
  module.def("linear", &linear, nb::arg("runtime"), nb::arg("x"), nb::arg("weights"), nb::arg("simulate"),
             nb::arg("out"),
             "Products of one input x [n, columns] with several weights: out[i] [n, rows] = x @ weights[i].T. Where "
             "simulate[i],\n"
             "x goes through FP8 first. Raises ValueError when shapes do not fit.");
  module.def("grouped_output", &grouped_output, nb::arg("runtime"), nb::arg("heads"), nb::arg("wo_a"), nb::arg("wo_b"),
             nb::arg("groups"), nb::arg("simulate"), nb::arg("out"),
             "heads [n, groups * width] through wo_a's rows of each group, then all through wo_b: out [n, d].");
  module.def("route", &route, nb::arg("runtime"), nb::arg("y"), nb::arg("gate"), nb::arg("bias").none(),
             nb::arg("table").none(), nb::arg("tokens").none(), nb::arg("scale"), nb::arg("chosen"), nb::arg("weights"),
             nb::arg("affinity"), "The experts of each token: fills chosen and weights [n, A] and affinity [n, E].");
  module.def("experts", &experts, nb::arg("runtime"), nb::arg("y"), nb::arg("chosen"), nb::arg("weights"),
             nb::arg("w1"), nb::arg("w2"), nb::arg("w3"), nb::arg("shared"), nb::arg("limit"), nb::arg("simulate"),
             nb::arg("out"),
             "SwiGLU experts of y [n, d], weighted, in ascending order, then the shared (w1, w2, w3): out [n, d].");
}

}  // namespace foveal
