// Splits a range of independent rows over threads. Rows, not pieces of a row: each row's result never depends on how
// many threads there are.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace foveal {

// Calls body(first, last) for consecutive sub-ranges that cover [0, rows), on at most `threads` threads (0: as many as
// the machine has). One of them is the calling thread. The first exception that a body throws is thrown again here.
template <class Body>
void parallel_rows(std::int64_t rows, int threads, const Body& body) {
  const int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  const std::int64_t wanted = threads > 0 ? threads : cores;
  const std::int64_t workers = std::max<std::int64_t>(1, std::min(wanted, rows));
  std::exception_ptr error;
  std::mutex error_lock;
  const auto run = [&](std::int64_t worker) {
    try {
      body(rows * worker / workers, rows * (worker + 1) / workers);
    } catch (...) {
      const std::lock_guard<std::mutex> guard(error_lock);
      if (!error) error = std::current_exception();
    }
  };
  std::vector<std::thread> pool;
  pool.reserve(workers - 1);
  for (std::int64_t worker = 1; worker < workers; ++worker) {
    try {
      pool.emplace_back(run, worker);
    } catch (const std::system_error&) {  // the system has no thread left to give: do the work here
      run(worker);
    }
  }
  run(0);
  for (auto& thread : pool) thread.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace foveal
