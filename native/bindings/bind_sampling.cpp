#include <nanobind/stl/pair.h>

#include "bind.h"
#include "sampling.h"

namespace foveal {

void bind_sampling(nb::module_& module) {
  module.def(
      "greedy",
      [](Runtime& runtime, const In<float, 1>& logits) {
        std::int64_t token = -1;
        float log_sum = 0;
        require(logits.shape(0) > 0, "there are no logits to choose from");
        require(runtime.context().sample->greedy(logits.data(), static_cast<std::int64_t>(logits.shape(0)), &token, &log_sum),
                "the logits are not numbers (NaN), or none of them is finite");
        return std::make_pair(token, -log_sum);
      },
      nb::arg("runtime"), nb::arg("logits"),
      "The likeliest token (the lowest of equals) of logits fp32 [V], and its log-probability.\n\n"
      "Raises ValueError when a logit is NaN or none is finite.");
}

}  // namespace foveal
