// Vectors that are wider than the machine's, as pairs of halves down to vectors that it has.
//
// A compiler keeps a vector that no register holds in memory. As a structure of halves it is taken apart into
// registers, and every lane sees the same operations in the same order as on a machine that has the whole. For simd.h,
// whose names (kPieceBytes, FOVEAL_INLINE) it uses.
#pragma once

namespace foveal::FOVEAL_ISA {

template <class E, int bytes>
struct Pieces;

template <class E, int bytes, bool fits = (bytes <= kPieceBytes)>
struct VectorOf {
  typedef Pieces<E, bytes> Type;
};
template <class E, int bytes>
struct VectorOf<E, bytes, true> {
  typedef E Type __attribute__((vector_size(bytes)));
};
// `bytes` bytes of E: the compiler's own vector where the machine has it.
template <class E, int bytes>
using Vector = typename VectorOf<E, bytes>::Type;

template <class E, int bytes>
struct Pieces {
  typedef Vector<E, bytes / 2> Half;
  Half low, high;

  // The same bits as other numbers.
  template <class To>
  __attribute__((always_inline)) explicit operator Pieces<To, bytes>() const {
    typedef Vector<To, bytes / 2> Other;
    return {(Other)low, (Other)high};
  }
  E operator[](int lane) const {
    E x;
    std::memcpy(&x, reinterpret_cast<const char*>(this) + lane * static_cast<int>(sizeof(E)), sizeof x);
    return x;
  }
};

template <class V>
constexpr bool kIsPieces = false;
template <class E, int bytes>
constexpr bool kIsPieces<Pieces<E, bytes>> = true;

// What a function of scalars takes as E, without deducing it.
template <class E>
struct Same {
  typedef E Type;
};
template <class E>
using Scalar = typename Same<E>::Type;

#define FOVEAL_LANEWISE(op)                                                                         \
  template <class E, int n>                                                                         \
  FOVEAL_INLINE Pieces<E, n> operator op(const Pieces<E, n>& a, const Pieces<E, n>& b) {            \
    return {a.low op b.low, a.high op b.high};                                                      \
  }                                                                                                 \
  template <class E, int n>                                                                         \
  FOVEAL_INLINE Pieces<E, n> operator op(const Pieces<E, n>& a, Scalar<E> b) {                      \
    return {a.low op b, a.high op b};                                                               \
  }                                                                                                 \
  template <class E, int n, class Other>                                                            \
  FOVEAL_INLINE Pieces<E, n>& operator op##=(Pieces<E, n>& a, const Other& b) {                     \
    return a = a op b;                                                                              \
  }
FOVEAL_LANEWISE(+)
FOVEAL_LANEWISE(-)
FOVEAL_LANEWISE(*)
FOVEAL_LANEWISE(/)
FOVEAL_LANEWISE(&)
FOVEAL_LANEWISE(|)
FOVEAL_LANEWISE(^)
FOVEAL_LANEWISE(<<)
FOVEAL_LANEWISE(>>)
#undef FOVEAL_LANEWISE
template <class E, int n>
FOVEAL_INLINE Pieces<E, n> operator-(const Pieces<E, n>& a) {
  return {-a.low, -a.high};
}

// -1 or 0 in each lane, as integers of the lane's size.
template <int bytes>
struct MaskOf;
template <>
struct MaskOf<1> {
  typedef std::int8_t Type;
};
template <>
struct MaskOf<4> {
  typedef std::int32_t Type;
};
#define FOVEAL_COMPARISON(op)                                                                                   \
  template <class E, int n>                                                                                     \
  FOVEAL_INLINE Pieces<typename MaskOf<sizeof(E)>::Type, n> operator op(const Pieces<E, n>& a, const Pieces<E, n>& b) { \
    return {a.low op b.low, a.high op b.high};                                                                  \
  }                                                                                                             \
  template <class E, int n>                                                                                     \
  FOVEAL_INLINE Pieces<typename MaskOf<sizeof(E)>::Type, n> operator op(const Pieces<E, n>& a, Scalar<E> b) {   \
    return {a.low op b, a.high op b};                                                                           \
  }
FOVEAL_COMPARISON(<)
FOVEAL_COMPARISON(>)
FOVEAL_COMPARISON(<=)
FOVEAL_COMPARISON(>=)
FOVEAL_COMPARISON(==)
FOVEAL_COMPARISON(!=)
#undef FOVEAL_COMPARISON

// a where the mask is set, else b.
template <class M, class V>
FOVEAL_INLINE V select(M mask, V a, V b) {
  return mask ? a : b;
}
template <class M, class E, int n>
FOVEAL_INLINE Pieces<E, n> select(const Pieces<M, n>& mask, const Pieces<E, n>& a, const Pieces<E, n>& b) {
  return {select(mask.low, a.low, b.low), select(mask.high, a.high, b.high)};
}

// The same number in every lane.
template <class V>
struct Filled {
  template <class E>
  FOVEAL_INLINE V with(E x) {
    return V{} + x;
  }
};
template <class E, int n>
struct Filled<Pieces<E, n>> {
  FOVEAL_INLINE Pieces<E, n> with(E x) {
    const auto half = Filled<Vector<E, n / 2>>::with(x);
    return {half, half};
  }
};

// Numbers as the nearest of another type (integers: cut off), lane by lane.
template <class To, class V>
FOVEAL_INLINE Vector<To, sizeof(V)> convert(V v) {
  return __builtin_convertvector(v, Vector<To, sizeof(V)>);
}
template <class To, class E, int n>
FOVEAL_INLINE Pieces<To, n> convert(const Pieces<E, n>& v) {
  return {convert<To>(v.low), convert<To>(v.high)};
}

// The lanes of `a` and then of `b` that the numbers name, in their order. The two compilers have it under two names.
#if defined(__clang__)
#define FOVEAL_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define FOVEAL_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Vector<std::int32_t, sizeof(a)>{__VA_ARGS__})
#endif

// Lanes whose numbers differ in the bit `step` change places.
template <int step, class V>
FOVEAL_INLINE V swap_lanes(V v) {
  if constexpr (sizeof(V) == 64)
    return FOVEAL_SHUFFLE(v, v, 0 ^ step, 1 ^ step, 2 ^ step, 3 ^ step, 4 ^ step, 5 ^ step, 6 ^ step, 7 ^ step, 8 ^ step,
                          9 ^ step, 10 ^ step, 11 ^ step, 12 ^ step, 13 ^ step, 14 ^ step, 15 ^ step);
  else if constexpr (sizeof(V) == 32)
    return FOVEAL_SHUFFLE(v, v, 0 ^ step, 1 ^ step, 2 ^ step, 3 ^ step, 4 ^ step, 5 ^ step, 6 ^ step, 7 ^ step);
  else
    return FOVEAL_SHUFFLE(v, v, 0 ^ step, 1 ^ step, 2 ^ step, 3 ^ step);
}
template <int step, class E, int n>
FOVEAL_INLINE Pieces<E, n> swap_lanes(const Pieces<E, n>& v) {
  if constexpr (step * 2 * static_cast<int>(sizeof(E)) == n)
    return {v.high, v.low};
  else
    return {swap_lanes<step>(v.low), swap_lanes<step>(v.high)};
}

// a0 b0 a1 b1 ...: the first half of it to `low`, the second to `high`.
template <class V>
FOVEAL_INLINE void interleave(V a, V b, V* low, V* high) {
  if constexpr (sizeof(V) == 64) {
    *low = FOVEAL_SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    *high = FOVEAL_SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  } else if constexpr (sizeof(V) == 32) {
    *low = FOVEAL_SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    *high = FOVEAL_SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  } else {
    *low = FOVEAL_SHUFFLE(a, b, 0, 4, 1, 5);
    *high = FOVEAL_SHUFFLE(a, b, 2, 6, 3, 7);
  }
}
template <class E, int n>
FOVEAL_INLINE void interleave(const Pieces<E, n>& a, const Pieces<E, n>& b, Pieces<E, n>* low, Pieces<E, n>* high) {
  interleave(a.low, b.low, &low->low, &low->high);
  interleave(a.high, b.high, &high->low, &high->high);
}

}  // namespace foveal::FOVEAL_ISA
