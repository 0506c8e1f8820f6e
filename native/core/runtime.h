// A runtime: threads, scratch and the kernels of one instruction set, as Python holds them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core.h"

namespace foveal {

// Instruction sets this build has kernels for and this machine can run, best first.
std::vector<std::string> available_isas();

class Runtime {
 public:
  // threads 0: the physical cores. isa "": the best. Raises std::invalid_argument naming the available ones.
  Runtime(int threads, const std::string& isa, Precision precision);

  Context& context() { return *context_; }
  int threads() const { return pool_.threads(); }
  const std::string& isa() const { return isa_; }
  // Requests to the system for scratch memory so far; constant in the steady state.
  std::int64_t growths() const;
  std::size_t scratch_bytes() const;

 private:
  Pool pool_;
  Arena arena_;
  std::vector<std::unique_ptr<Arena>> of_thread_;
  std::string isa_;
  std::unique_ptr<Context> context_;
};

}  // namespace foveal
