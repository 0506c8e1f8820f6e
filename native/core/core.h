// What every part of the native library shares: where numbers lie, the pool of threads, scratch memory.
//
// Nothing is templated and nothing is inline but accessors, since this header is compiled for several instruction sets
// at once and the linker keeps only one copy of an inline function.
//
// Shape legend: n = tokens, d = hidden size, S = streams, H = heads, c = head_dim, R = rotary channels, I = indexer heads,
// ci = index_head_dim, k = entries looked at, W = sliding window, r = compress ratio, E = experts, A = active experts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace foveal {

// ---------------------------------------------------------------- weights

enum class Format : std::uint8_t {
  kF32,   // float [rows, columns]
  kBF16,  // uint16 [rows, columns]
  kFP8,   // E4M3 [rows, columns]; scale: E8M0 [ceil(rows / 128), ceil(columns / 128)]
  kFP4,   // E2M1 pairs, low nibble first, [rows, columns / 2]; scale: E8M0 [rows, ceil(columns / 32)]
};

// Steps of kSpanColumns columns, from `first` to before `end`, outside of which some rows hold zeros only.
struct Span {
  std::uint16_t first, end;
};
constexpr std::int64_t kSpanRows = 8, kSpanColumns = 64;
constexpr std::uint16_t kSpanNone = 0xffff;

// One weight as the checkpoint stores it, row-major and contiguous. y = x @ weight.T has `rows` columns.
struct Matrix {
  Format format = Format::kF32;
  const void* data = nullptr;
  const std::uint8_t* scale = nullptr;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  const Span* spans = nullptr;  // of each kSpanRows rows; null: all columns count
};

// The spans of a weight; none where they would not save much. A few rows are looked at first: a weight without zeros is
// not read.
std::vector<Span> find_spans(const Matrix& weight);

// ---------------------------------------------------------------- the cache as kernels see it

enum class Codec : std::uint8_t {
  kF32,       // float [e]
  kBF16,      // uint16 [e]
  kKvFP8,     // [e - R E4M3][R BF16][E8M0 for each 64 of the first e - R][zeros to a multiple of 8 bytes]
  kIndexFP4,  // [e / 2 E2M1 pairs, low nibble first][E8M0 for each 32]
  kIndexFP8,  // [e E4M3][one float scale]
};

// Bytes of one entry of e = width channels, R = rotary of which rotate.
std::int64_t entry_bytes(Codec codec, std::int64_t width, std::int64_t rotary);

// Compressed entries in place. Entry s is `entry_bytes` bytes of pages[s / per_page] from byte
// offset + (s % per_page) * entry_bytes on. A contiguous tensor is one page with per_page = count.
struct Entries {
  Codec codec = Codec::kBF16;
  std::uint8_t* const* pages = nullptr;
  std::int64_t offset = 0;
  std::int64_t per_page = 1;
  std::int64_t entry_bytes = 0;
  std::int64_t count = 0;
  std::int64_t width = 0;   // e
  std::int64_t rotary = 0;  // R

  std::uint8_t* at(std::int64_t s) const { return pages[s / per_page] + offset + (s % per_page) * entry_bytes; }
};

// Rows by absolute position: those before `length` lie in a ring of `mask` + 1 rows (position & mask), those of the step
// in progress, from `length` on, one after the other in `fresh`. Either pointer may be null when it has no rows.
struct Rows {
  const std::uint8_t* past = nullptr;
  const std::uint8_t* fresh = nullptr;
  std::int64_t mask = 0;
  std::int64_t length = 0;
  std::int64_t row_bytes = 0;

  const std::uint8_t* at(std::int64_t position) const {
    return position < length ? past + (position & mask) * row_bytes : fresh + (position - length) * row_bytes;
  }
};

// ---------------------------------------------------------------- threads and scratch

// A fixed set of threads that wait between two regions of a step by spinning shortly, then sleeping.
class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return threads_; }

  // Calls body(task, thread) for every task in [0, tasks), each once, on any of the threads (thread is 0 to
  // threads() - 1). Returns when all are done. The calling thread takes part. An exception leaves here, once.
  // What a task computes must not depend on the thread: results are the same for any number of threads.
  template <class Body>
  __attribute__((always_inline)) void run(std::int64_t tasks, const Body& body) {
    run_raw(
        tasks,
        [](const void* object, std::int64_t task, int thread) { (*static_cast<const Body*>(object))(task, thread); },
        &body);
  }

 private:
  using Call = void (*)(const void* object, std::int64_t task, int thread);
  void run_raw(std::int64_t tasks, Call call, const void* object);

  struct Impl;
  int threads_;
  std::unique_ptr<Impl> impl_;
};

// Scratch that grows to what a step needs and then allocates nothing more. Memory is 64-byte aligned and not cleared.
class Arena {
 public:
  Arena();
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  void* take_bytes(std::size_t bytes);
  template <class T>
  __attribute__((always_inline)) T* take(std::int64_t count) {
    return static_cast<T*>(take_bytes(static_cast<std::size_t>(count) * sizeof(T)));
  }

  // Gives back everything taken since it was made.
  class Scope {
   public:
    explicit Scope(Arena& arena);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Arena& arena_;
    std::size_t block_, used_;
  };

  std::int64_t growths() const;    // how often the system was asked for memory
  std::size_t capacity() const;    // bytes held

 private:
  struct Block {
    std::unique_ptr<std::uint8_t[]> memory;
    std::uint8_t* base;
    std::size_t size;
  };
  std::vector<Block> blocks_;
  std::size_t block_ = 0, used_ = 0;
  std::int64_t growths_ = 0;
};

// How activations that no run-time quantisation rounds enter a product with an 8-bit-mantissa weight or cache row.
enum class Precision : std::uint8_t {
  kBF16,  // rounded to BF16, as the official code does
  kFP32,  // as a sum of two BF16 numbers (16 bits of mantissa or more): agrees with fp32 to about 1e-5
};

struct LinearOps;
struct RowOps;
struct CompressOps;
struct IndexOps;
struct AttendOps;
struct SampleOps;

// The kernels of one instruction set.
struct Kernels {
  const LinearOps* linear;
  const RowOps* rows;
  const CompressOps* compress;
  const IndexOps* index;
  const AttendOps* attend;
  const SampleOps* sample;
};

// Everything a kernel needs besides its arguments. One for each network; used by one thread at a time.
struct Context : Kernels {
  Pool& pool;
  Arena& arena;                                    // shared scratch: taken before a parallel region
  std::vector<std::unique_ptr<Arena>>& of_thread;  // one for each thread: taken inside a region, under a Scope
  Precision precision;

  Arena& own(int thread) { return *of_thread[static_cast<std::size_t>(thread)]; }
};

}  // namespace foveal

// Declares something once in the namespace of each instruction set.
#if defined(__x86_64__) || defined(_M_X64)
#define FOVEAL_EACH_ISA(...)                                \
  namespace foveal::avx512bf16 { __VA_ARGS__ }              \
  namespace foveal::avx512 { __VA_ARGS__ }                  \
  namespace foveal::avx2 { __VA_ARGS__ }                    \
  namespace foveal::portable { __VA_ARGS__ }
#else
#define FOVEAL_EACH_ISA(...) \
  namespace foveal::portable { __VA_ARGS__ }
#endif
