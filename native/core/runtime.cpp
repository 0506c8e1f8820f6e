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

struct Isa {
  const char* name;
  bool runs_here;
  Kernels kernels;
};

#define FOVEAL_ISA_OF(isa, runs_here)                                                                               \
  Isa {                                                                                                             \
    #isa, runs_here, {&isa::linear_ops, &isa::row_ops, &isa::compress_ops, &isa::index_ops, &isa::attend_ops, &isa::sample_ops} \
  }

#if defined(__x86_64__)
[[maybe_unused]] bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
[[maybe_unused]] bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
}
#endif

// Those of this build (FOVEAL_ISAS in CMakeLists.txt), best first.
std::vector<Isa> all_isas() {
  std::vector<Isa> isas;
#if FOVEAL_WITH_avx512bf16
  isas.push_back(FOVEAL_ISA_OF(avx512bf16, has_avx512() && __builtin_cpu_supports("avx512bf16")));
#endif
#if FOVEAL_WITH_avx512
  isas.push_back(FOVEAL_ISA_OF(avx512, has_avx512()));
#endif
#if FOVEAL_WITH_avx2
  isas.push_back(FOVEAL_ISA_OF(avx2, has_avx2()));
#endif
#if FOVEAL_WITH_portable
  isas.push_back(FOVEAL_ISA_OF(portable, true));
#endif
  return isas;
}

Isa choose(const std::string& name) {
  std::string names;
  for (const Isa& isa : all_isas()) {
    if (!isa.runs_here) continue;
    if (name.empty() || name == isa.name) return isa;
    names += std::string(names.empty() ? "" : ", ") + isa.name;
  }
  throw std::invalid_argument("no kernels for \"" + name + "\" on this machine; there are: " + names);
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
  for (const Isa& isa : all_isas())
    if (isa.runs_here) names.emplace_back(isa.name);
  return names;
}

Runtime::Runtime(int threads, const std::string& isa, Precision precision)
    : pool_(threads > 0 ? threads : physical_cores()) {
  const Isa chosen = choose(isa);
  isa_ = chosen.name;
  for (int thread = 0; thread < pool_.threads(); ++thread) of_thread_.push_back(std::make_unique<Arena>());
  context_ = std::make_unique<Context>(Context{chosen.kernels, pool_, arena_, of_thread_, precision});
}

std::int64_t Runtime::growths() const {
  std::int64_t total = arena_.growths();
  for (const auto& arena : of_thread_) total += arena->growths();
  return total;
}

std::size_t Runtime::scratch_bytes() const {
  std::size_t total = arena_.capacity();
  for (const auto& arena : of_thread_) total += arena->capacity();
  return total;
}

}  // namespace foveal
