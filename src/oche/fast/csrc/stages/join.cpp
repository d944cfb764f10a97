// The passes of a node (`join.h`) in C's calling convention, called by `node.py`; `Node` must match `CNode` there.

#include "join.h"

#define EXPORT_JOIN(T, NAME)                                                                                                  \
    extern "C" void oche_join_##NAME(const Node* s, const T* const* x, const T* a, const T* b, const T* f, T* out) {           \
        join<T>(*s, x, a, b, f, out);                                                                                          \
    }                                                                                                                          \
    extern "C" void oche_join_dots_##NAME(const Node* s, const T* const* x, const T* pivot, const T* f, const T* g, \
                                           const T* out, T* passing, double* sums) { \
        dots<T>(*s, x, pivot, f, g, out, passing, sums);                                                                                     \
    }
EXPORT_JOIN(float, f32)
EXPORT_JOIN(double, f64)
