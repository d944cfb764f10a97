// The passes of a stage (`pass.h`) in C's calling convention, called by `stages.py`, whose docstring has the formulas; `Stage` must match
// `CStage` there.

#include "pass.h"

#define EXPORT_STAGES(T, NAME)                                                                                                 \
    extern "C" void oche_stage_forward_##NAME(const Stage* s, const T* x, const T* a, const T* b, const T* taps, const T* matrix, \
                                              T* y, double* mean, double* variance) {                                          \
        forward<T>(*s, x, a, b, taps, matrix, y, mean, variance);                                                              \
    }                                                                                                                          \
    extern "C" void oche_stage_backward_##NAME(const Stage* s, const T* x, const T* a, const T* b, const T* taps,              \
                                               const T* matrix, const T* g, const T* y, const T* map, const T* factor,         \
                                               const T* pivot, const T* also, T* dx, double* sums, T* dtaps, T* dmatrix) {       \
        backward<T>(*s, a, b, taps, matrix, {x, g, y, map, factor, pivot, dx, also, dtaps || dmatrix}, sums, dtaps, dmatrix); \
    }
EXPORT_STAGES(float, f32)
EXPORT_STAGES(double, f64)
