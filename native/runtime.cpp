// Which kernels run here, and the objects they share.
#include "runtime.h"

#include <fstream>
#include <set>
#include <stdexcept>
#include <thread>
#include <utility>

#include "attend.h"
#include "compress.h"
#include "indexer.h"
#include "linear.h"
#include "rows.h"
#include "sampling.h"

namespace foveal {
namespace {

struct Kernels {
  const char* name;
  bool runs_here;
  const LinearOps* linear;
  const RowOps* rows;
  const CompressOps* compress;
  const IndexOps* index;
  const AttendOps* attend;
  const SampleOps* sample;
};

#define FOVEAL_KERNELS(isa, runs_here) \
  Kernels {                       \
    #isa, runs_here, &isa::linear_ops, &isa::row_ops, &isa::compress_ops, &isa::index_ops, &isa::attend_ops, \
        &isa::sample_ops          \
  }

// Best first.
std::vector<Kernels> all_kernels() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni") &&
                      __builtin_cpu_supports("avx512bf16");
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return {FOVEAL_KERNELS(avx512, avx512), FOVEAL_KERNELS(avx2, avx2), FOVEAL_KERNELS(portable, true)};
#else
  return {FOVEAL_KERNELS(portable, true)};
#endif
}

Kernels choose(const std::string& isa) {
  std::string names;
  for (const Kernels& kernels : all_kernels()) {
    if (!kernels.runs_here) continue;
    if (isa.empty() || isa == kernels.name) return kernels;
    names += std::string(names.empty() ? "" : ", ") + kernels.name;
  }
  throw std::invalid_argument("no kernels for \"" + isa + "\" on this machine; there are: " + names);
}

// Cores without their hyper-threads, as Linux lists them; elsewhere what the system says.
int physical_cores() {
  const int logical = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  std::set<std::string> cores;
  for (int cpu = 0; cpu < logical; ++cpu) {
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
    std::string siblings;
    if (!std::getline(file, siblings)) return logical;
    cores.insert(siblings);
  }
  return static_cast<int>(cores.size());
}

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Kernels& kernels : all_kernels())
    if (kernels.runs_here) names.emplace_back(kernels.name);
  return names;
}

Runtime::Runtime(int threads, const std::string& isa, Precision precision)
    : pool_(threads > 0 ? threads : physical_cores()) {
  const Kernels kernels = choose(isa);
  isa_ = kernels.name;
  for (int thread = 0; thread < pool_.threads(); ++thread) private_.push_back(std::make_unique<Arena>());
  context_ = std::make_unique<Context>(Context{pool_, arena_, private_, precision, kernels.linear, kernels.rows,
                                               kernels.compress, kernels.index, kernels.attend, kernels.sample});
}

std::int64_t Runtime::growths() const {
  std::int64_t total = arena_.growths();
  for (const auto& arena : private_) total += arena->growths();
  return total;
}

std::size_t Runtime::scratch_bytes() const {
  std::size_t total = arena_.capacity();
  for (const auto& arena : private_) total += arena->capacity();
  return total;
}

}  // namespace foveal
