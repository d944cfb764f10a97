// How do the kernels name the processor's vectors? As GCC vector types of VECTOR_BYTES, which `native.py` sets per instruction set.

#pragma once

#include <cstddef>
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

}  // namespace
