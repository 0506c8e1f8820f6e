// The pool of threads and the scratch memory.
#include "core.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace foveal {
namespace {

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// How long a worker looks out for the next region before it sleeps: longer than Python needs between two steps of a
// decoding loop, so that a generation never pays for waking up.
constexpr std::chrono::microseconds kSpin{300};

}  // namespace

struct Pool::Impl {
  std::vector<std::thread> workers;
  std::mutex lock;
  std::condition_variable wake;
  std::atomic<std::uint64_t> region{0};  // even: idle; each region adds 2
  std::atomic<bool> stop{false};
  std::atomic<int> sleeping{0};

  Call call = nullptr;
  const void* object = nullptr;
  std::int64_t tasks = 0;
  std::atomic<std::int64_t> next{0};
  std::atomic<int> busy{0};
  std::exception_ptr error;
  std::mutex error_lock;

  void work(int thread) {
    try {
      for (std::int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;)
        call(object, task, thread);
    } catch (...) {
      const std::lock_guard<std::mutex> guard(error_lock);
      if (!error) error = std::current_exception();
      next.store(tasks, std::memory_order_relaxed);
    }
  }

  // Waits until the region is no longer `seen`; false when the pool ends.
  bool wait(std::uint64_t seen) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int i = 0; i < 256; ++i) {
        if (region.load(std::memory_order_acquire) != seen) return true;
        if (stop.load(std::memory_order_relaxed)) return false;
        relax();
      }
    } while (std::chrono::steady_clock::now() < until);
    std::unique_lock<std::mutex> guard(lock);
    sleeping.fetch_add(1);
    wake.wait(guard, [&] { return region.load() != seen || stop.load(); });
    sleeping.fetch_sub(1);
    return !stop.load();
  }

  void loop(int thread) {
    std::uint64_t seen = 0;
    while (wait(seen)) {
      seen = region.load(std::memory_order_acquire);
      work(thread);
      busy.fetch_sub(1, std::memory_order_release);
    }
  }
};

Pool::Pool(int threads) : threads_(1), impl_(std::make_unique<Impl>()) {
  for (int thread = 1; thread < threads; ++thread) {
    try {
      impl_->workers.emplace_back([impl = impl_.get(), thread] { impl->loop(thread); });
    } catch (const std::system_error&) {
      break;  // the system has no thread left to give: the others do the work
    }
    ++threads_;
  }
}

Pool::~Pool() {
  {
    const std::lock_guard<std::mutex> guard(impl_->lock);
    impl_->stop.store(true);
  }
  impl_->wake.notify_all();
  for (auto& worker : impl_->workers) worker.join();
}

void Pool::run_raw(std::int64_t tasks, Call call, const void* object) {
  if (tasks <= 1 || threads_ == 1) {
    for (std::int64_t task = 0; task < tasks; ++task) call(object, task, 0);
    return;
  }
  Impl& pool = *impl_;
  pool.call = call;
  pool.object = object;
  pool.tasks = tasks;
  pool.next.store(0, std::memory_order_relaxed);
  pool.busy.store(threads_ - 1, std::memory_order_relaxed);
  pool.region.fetch_add(2, std::memory_order_seq_cst);
  if (pool.sleeping.load(std::memory_order_seq_cst) > 0) {
    const std::lock_guard<std::mutex> guard(pool.lock);
    pool.wake.notify_all();
  }
  pool.work(0);
  while (pool.busy.load(std::memory_order_acquire) > 0) relax();
  if (pool.error) {
    std::exception_ptr error;
    std::swap(error, pool.error);
    std::rethrow_exception(error);
  }
}

// ---------------------------------------------------------------- the cache

std::int64_t entry_bytes(Codec codec, std::int64_t width, std::int64_t rotary) {
  switch (codec) {
    case Codec::kF32: return 4 * width;
    case Codec::kBF16: return 2 * width;
    case Codec::kKvFP8: return (width + rotary + (width - rotary + 63) / 64 + 7) / 8 * 8;
    case Codec::kIndexFP4: return width / 2 + (width + 31) / 32;
    case Codec::kIndexFP8: return width + 4;
  }
  return 0;
}

// ---------------------------------------------------------------- scratch

namespace {
constexpr std::size_t kAlign = 64;
constexpr std::size_t kFirstBlock = std::size_t{1} << 16;
}  // namespace

Arena::Arena() = default;
Arena::~Arena() = default;

void* Arena::take_bytes(std::size_t bytes) {
  bytes = (bytes + kAlign - 1) / kAlign * kAlign;
  while (block_ < blocks_.size() && used_ + bytes > blocks_[block_].size) {
    ++block_;
    used_ = 0;
  }
  if (block_ == blocks_.size()) {
    const std::size_t size = std::max({bytes, kFirstBlock, capacity()});  // each block doubles what there is
    Block block{std::make_unique_for_overwrite<std::uint8_t[]>(size + kAlign), nullptr, size};
    const auto address = reinterpret_cast<std::uintptr_t>(block.memory.get());
    block.base = block.memory.get() + (kAlign - address % kAlign) % kAlign;
    blocks_.push_back(std::move(block));
    ++growths_;
  }
  void* taken = blocks_[block_].base + used_;
  used_ += bytes;
  return taken;
}

Arena::Scope::Scope(Arena& arena) : arena_(arena), block_(arena.block_), used_(arena.used_) {}

Arena::Scope::~Scope() {
  arena_.block_ = block_;
  arena_.used_ = used_;
}

std::int64_t Arena::growths() const { return growths_; }

std::size_t Arena::capacity() const {
  std::size_t total = 0;
  for (const Block& block : blocks_) total += block.size;
  return total;
}

}  // namespace foveal
