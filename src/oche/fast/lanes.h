// How do the kernels name the processor's vectors? As GCC vector types of VECTOR_BYTES, which `native.py` sets per instruction set.

#pragma once

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num() { return 0; }
#endif

#ifndef VECTOR_BYTES
#define VECTOR_BYTES 16
#endif
#define INLINE inline __attribute__((always_inline))

namespace {

template <class T> struct Vector {
    typedef T type __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(T)), may_alias));
    static constexpr int width = VECTOR_BYTES / sizeof(T);
};
template <class T> using V = typename Vector<T>::type;
template <class T> INLINE V<T>& at(T* p) { return *reinterpret_cast<V<T>*>(p); }
template <class T> INLINE const V<T>& at(const T* p) { return *reinterpret_cast<const V<T>*>(p); }

}  // namespace
