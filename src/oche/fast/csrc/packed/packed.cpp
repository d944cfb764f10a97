// How is a cell of depthwise-separable candidates, pools and skips computed in few passes over memory?
//
// Plain C interface, called through ctypes by `library.py`; the plan's layout is written by `packed.py` and must match `Unit` below.
// Arrays are N H W C with C a multiple of 16 lanes. `fold` images may sit side by side in the lanes: statistics are then
// folded over them. One image is the unit of parallel work; its tiles stay in cache. Formulas: the docstring of `packed.py`.
// T is what is computed in, S what y and T are kept as for the backward: T itself or, for float, Half. Pools are kept as T.
// Compiled once per instruction set (-DVECTOR_BYTES=16, 32 or 64); no finite-math assumption (max pools start at -inf).

#include "back.h"

namespace {

template <class T, class S>
void forward(const Plan* plan, const int64_t* units, const T* const* input, const double* w, const T* depth, const T* point,
             const T* gamma, const T* beta, const T* const* extra, S* saved, T* pools, T* out, double* mean, double* rstd) {
    Cell<T, S> cell(*plan, reinterpret_cast<const Unit*>(units));
    cell.input = input, cell.w = w, cell.depth = depth, cell.point = point, cell.gamma = gamma, cell.beta = beta;
    cell.extra = extra, cell.saved = saved, cell.pools = pools, cell.out = out, cell.mean = mean, cell.rstd = rstd;
    cell.run_forward();
}

template <class T, class S>
void backward(const Plan* plan, const int64_t* units, const T* const* input, const double* w, const T* depth, const T* point,
              const T* gamma, const T* beta, const T* const* extra, S* saved, T* pools, T* out, double* mean, double* rstd,
              const T* dout, T* const* dinput, double* dw, T* ddepth, T* dpoint, double* dgamma, double* dbeta, T* work) {
    Back<T, S> cell(*plan, reinterpret_cast<const Unit*>(units));
    cell.input = input, cell.w = w, cell.depth = depth, cell.point = point, cell.gamma = gamma, cell.beta = beta;
    cell.extra = extra, cell.saved = saved, cell.pools = pools, cell.out = out, cell.mean = mean, cell.rstd = rstd;
    cell.dout = dout, cell.dinput = dinput, cell.dw = dw, cell.ddepth = ddepth, cell.dpoint = dpoint;
    cell.dgamma = dgamma, cell.dbeta = dbeta, cell.learn = ddepth != nullptr;
    cell.grads = work, cell.dv = work + plan->nodes * plan->n * cell.pixels() * plan->lanes;
    cell.pool_again();
    cell.run_backward();
}

}  // namespace

#include "partial.h"

#define EXPORT(T, S, NAME)                                                                                                     \
    extern "C" void oche_forward_##NAME(const Plan* plan, const int64_t* units, const T* const* input, const double* w,        \
                                        const T* depth, const T* point, const T* gamma, const T* beta, const T* const* extra,  \
                                        S* saved, T* pools, T* out, double* mean, double* rstd) {                              \
        forward<T, S>(plan, units, input, w, depth, point, gamma, beta, extra, saved, pools, out, mean, rstd);                 \
    }                                                                                                                          \
    extern "C" void oche_backward_##NAME(const Plan* plan, const int64_t* units, const T* const* input, const double* w,       \
                                         const T* depth, const T* point, const T* gamma, const T* beta, const T* const* extra, \
                                         S* saved, T* pools, T* out, double* mean, double* rstd, const T* dout,                \
                                         T* const* dinput, double* dw, T* ddepth, T* dpoint, double* dgamma, double* dbeta,    \
                                         T* work) {                                                                            \
        backward<T, S>(plan, units, input, w, depth, point, gamma, beta, extra, saved, pools, out, mean, rstd, dout, dinput,   \
                       dw, ddepth, dpoint, dgamma, dbeta, work);                                                               \
    }
EXPORT(float, float, f32)
EXPORT(float, Half, bf16)
EXPORT(double, double, f64)
EXPORT_PARTIAL(float, float, f32)
EXPORT_PARTIAL(float, Half, bf16)
EXPORT_PARTIAL(double, double, f64)
