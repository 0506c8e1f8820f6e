#include "sampling.h"

#include "simd.h"

namespace foveal::FOVEAL_ISA {
namespace {

constexpr float kLowest = -__builtin_inff();

F load_or_lowest(const float* from, std::int64_t left) {
  if (left >= kLanes) return load(from);
  float lanes[kLanes];
  for (std::int64_t i = 0; i < kLanes; ++i) lanes[i] = i < left ? from[i] : kLowest;
  return load(lanes);
}

bool greedy(const float* logits, std::int64_t count, std::int64_t* token, float* log_sum) {
  F best = splat(kLowest);
  I numbers = splat_int(-1);
  for (std::int64_t i = 0; i < count; i += kLanes) {
    const F v = load_or_lowest(logits + i, count - i);
    best = max(best, v);
    numbers &= (v == v);
  }
  const float top = largest(best);
  for (int i = 0; i < kLanes; ++i)
    if (numbers[i] == 0) return false;
  if (!(top > kLowest) || top == __builtin_inff()) return false;
  F total = zero();
  const F peak = splat(top);
  for (std::int64_t i = 0; i < count; i += kLanes) total = total + exp(load_or_lowest(logits + i, count - i) - peak);
  std::int64_t at = 0;
  while (logits[at] != top) ++at;
  *token = at;
  *log_sum = __builtin_logf(sum(total));
  return true;
}

}  // namespace

extern const SampleOps sample_ops;
const SampleOps sample_ops{greedy};

}  // namespace foveal::FOVEAL_ISA
