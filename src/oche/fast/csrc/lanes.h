// How do the kernels name the processor's vectors? As GCC vector types of VECTOR_BYTES, which `native.py` sets per instruction set.

#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num() { return 0; }
#endif

#ifndef VECTOR_BYTES
#define VECTOR_BYTES 16
#endif
#if VECTOR_BYTES > 16
#include <immintrin.h>
#endif
#define INLINE inline __attribute__((always_inline))

namespace {

template <class T> struct Vector {
    typedef T type __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(T)), may_alias));
    static constexpr int width = VECTOR_BYTES / sizeof(T);
};
template <class T> using V = typename Vector<T>::type;

constexpr std::size_t LINE = 64;  // bytes of a cache line: a vector that lies in two costs two loads

template <class T> struct Lines {
    using value_type = T;
    Lines() = default;
    template <class U> Lines(const Lines<U>&) {}
    T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(LINE))); }
    void deallocate(T* p, std::size_t) { ::operator delete(p, std::align_val_t(LINE)); }
    template <class U> bool operator==(const Lines<U>&) const { return true; }
    template <class U> bool operator!=(const Lines<U>&) const { return false; }
};
template <class T> using Buffer = std::vector<T, Lines<T>>;

template <class T> INLINE V<T>& at(T* p) { return *reinterpret_cast<V<T>*>(p); }
template <class T> INLINE const V<T>& at(const T* p) { return *reinterpret_cast<const V<T>*>(p); }

// *p = v past the caches, which it would only push others out of; p at the start of a vector
template <class T> INLINE void stream(T* p, V<T> v) {
#if VECTOR_BYTES == 64
    if constexpr (sizeof(T) == 4) _mm512_stream_ps(reinterpret_cast<float*>(p), reinterpret_cast<__m512&>(v));
    else _mm512_stream_pd(reinterpret_cast<double*>(p), reinterpret_cast<__m512d&>(v));
#elif VECTOR_BYTES == 32
    if constexpr (sizeof(T) == 4) _mm256_stream_ps(reinterpret_cast<float*>(p), reinterpret_cast<__m256&>(v));
    else _mm256_stream_pd(reinterpret_cast<double*>(p), reinterpret_cast<__m256d&>(v));
#else
    at(p) = v;
#endif
}

// ---------------------------------------------------------------- any number of lanes

// f(U{}, first lane) for vectors of lanes, then for the single lanes that are left
template <class T, class F> INLINE void by_lanes(int64_t c, F f) {
    int64_t l = 0;
    for (; l + Vector<T>::width <= c; l += Vector<T>::width) f(V<T>{}, l);
    for (; l < c; ++l) f(T(0), l);
}
template <class U, class T> INLINE const U& get(const T* p) { return *reinterpret_cast<const U*>(p); }
template <class U, class T> INLINE U& set(T* p) { return *reinterpret_cast<U*>(p); }

// ---------------------------------------------------------------- values kept in half of the bytes

struct Half {  // bfloat16: the upper half of a float
    std::uint16_t bits;
};
typedef std::uint16_t Halves __attribute__((vector_size(VECTOR_BYTES / 2), aligned(alignof(Half)), may_alias));
typedef V<std::uint32_t> Words;

// to the nearest, of two equally near ones to the even one; what is no number stays none
INLINE Halves rounded(V<float> v) {
    const Words bits = (Words)v, near = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return __builtin_convertvector(v == v ? near : (bits >> 16) | 0x40, Halves);
}

// what was kept long ago, as vectors of T; the processor reads ahead within a page, this beyond it
constexpr std::ptrdiff_t AHEAD = 4096;  // bytes

template <class T> INLINE V<T> load(const T* p) {
    __builtin_prefetch(reinterpret_cast<const char*>(p) + AHEAD);
    return at(p);
}
INLINE V<float> load(const Half* p) {
    __builtin_prefetch(reinterpret_cast<const char*>(p) + AHEAD);
#if VECTOR_BYTES == 64
    const Words bits = (Words)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif VECTOR_BYTES == 32
    const Words bits = (Words)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
    const Words bits = __builtin_convertvector(*reinterpret_cast<const Halves*>(p), Words);
#endif
    return (V<float>)(bits << 16);
}

template <class T> INLINE void store(T* p, V<T> v) { at(p) = v; }
INLINE void store(Half* p, V<float> v) { *reinterpret_cast<Halves*>(p) = rounded(v); }

INLINE void stream(Half* p, V<float> v) {
#if VECTOR_BYTES == 64
    const Halves h = rounded(v);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<const __m256i&>(h));
#elif VECTOR_BYTES == 32
    const Halves h = rounded(v);
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), reinterpret_cast<const __m128i&>(h));
#else
    store(p, v);
#endif
}

}  // namespace
