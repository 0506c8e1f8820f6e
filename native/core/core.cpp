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

// A region is open while it has places left. A worker that comes too late for one finds it closed and is not waited for:
// neither one that sleeps, nor those beyond the number of tasks.
struct Pool::Impl {
  // Of `state`: workers inside a region, places left in it, and its number.
  static constexpr std::uint64_t kInside = 1, kPlace = std::uint64_t{1} << 16, kRegion = std::uint64_t{1} << 32;
  static std::uint64_t inside(std::uint64_t state) { return state % kPlace; }
  static std::uint64_t places(std::uint64_t state) { return state % kRegion / kPlace; }
  static std::uint64_t region(std::uint64_t state) { return state / kRegion; }

  std::vector<std::thread> workers;
  std::mutex lock;
  std::condition_variable wake;
  std::atomic<std::uint64_t> state{0};
  std::atomic<bool> stop{false};
  std::atomic<int> sleeping{0};

  // Written while nobody is inside, read inside.
  Call call = nullptr;
  const void* object = nullptr;
  std::int64_t tasks = 0;
  std::atomic<std::int64_t> next{0};
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

  // Opens the next region for `count` workers.
  void open(std::uint64_t count) {
    const std::uint64_t now = state.load(std::memory_order_relaxed);
    state.store((region(now) + 1) * kRegion + count * kPlace, std::memory_order_seq_cst);
    if (sleeping.load(std::memory_order_seq_cst) == 0) return;
    const std::lock_guard<std::mutex> guard(lock);
    wake.notify_all();
  }

  // Lets nobody in any more, and returns when all are out.
  void close() {
    state.fetch_and(~(kRegion - kPlace), std::memory_order_relaxed);
    while (inside(state.load(std::memory_order_acquire)) > 0) relax();
  }

  // Takes a place in the region of `now`, if there is one; `now` becomes what the state is.
  bool enter(std::uint64_t& now) {
    while (places(now) > 0)
      if (state.compare_exchange_weak(now, now - kPlace + kInside, std::memory_order_acquire)) return true;
    return false;
  }

  // Waits until the region is no longer `seen`; false when the pool ends.
  bool wait(std::uint64_t seen) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int i = 0; i < 256; ++i) {
        if (region(state.load(std::memory_order_acquire)) != seen) return true;
        if (stop.load(std::memory_order_relaxed)) return false;
        relax();
      }
    } while (std::chrono::steady_clock::now() < until);
    std::unique_lock<std::mutex> guard(lock);
    sleeping.fetch_add(1);
    wake.wait(guard, [&] { return region(state.load()) != seen || stop.load(); });
    sleeping.fetch_sub(1);
    return !stop.load();
  }

  void loop(int thread) {
    std::uint64_t seen = 0;
    while (wait(seen)) {
      std::uint64_t now = state.load(std::memory_order_acquire);
      if (enter(now)) {
        work(thread);
        state.fetch_sub(kInside, std::memory_order_release);
      }
      seen = region(now);
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
  pool.open(static_cast<std::uint64_t>(std::min<std::int64_t>(tasks, threads_) - 1));
  pool.work(0);
  pool.close();
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
