// How is a cell of dense convolutions, average pools and skips computed in few passes over memory?
//
// Plain C interface, called through ctypes; the plan and the units are written by `dense.py` and must match `Plan` and `Unit` below.
// Arrays are N H W C with C a multiple of BLOCK lanes. `fold` images may sit side by side in the lanes: statistics are then folded
// over them. A group of images is the unit of parallel work. Formulas: the docstring of `dense.py`.
//
// 3x3 convolutions are Winograd's F(2x2, 3x3) (Lavin & Gray, CVPR 2016), 2.25 times fewer products: with Y = A'[(G g G') * (B' d B)]A
// the input's transform serves all out-edges of a state, the output's transform all in-edges of its gradient. Operands of products
// are kept in blocks of 16 lanes, so that every address within a product is a constant.

#include "back.h"

namespace {

template <class T>
void forward(const Plan* plan, const int64_t* units, const T* const* input, const double* w, const Filter<const T>* filter,
             const T* gamma, const T* beta, T* saved, T* out, double* mean, double* rstd) {
    Dense<T> cell(*plan, units);
    cell.input = input, cell.w = w, cell.filter = filter, cell.gamma = gamma, cell.beta = beta;
    cell.saved = saved, cell.out = out, cell.mean = mean, cell.rstd = rstd;
    cell.run_forward();
}

template <class T>
void backward(const Plan* plan, const int64_t* units, const T* const* input, const double* w, const Filter<const T>* filter,
              const T* gamma, const T* beta, T* saved, T* out, double* mean, double* rstd, const T* dout, T* const* dinput, double* dw,
              const Filter<T>* dfilter, double* dgamma, double* dbeta, T* work) {
    DenseBack<T> cell(*plan, units);
    cell.input = input, cell.w = w, cell.filter = filter, cell.gamma = gamma, cell.beta = beta;
    cell.saved = saved, cell.out = out, cell.mean = mean, cell.rstd = rstd;
    cell.dout = dout, cell.dinput = dinput, cell.dw = dw, cell.dfilter = dfilter, cell.dgamma = dgamma, cell.dbeta = dbeta;
    cell.work = work;
    cell.run_backward();
}

}  // namespace

#define EXPORT(T, NAME)                                                                                                            \
    extern "C" void oche_dense_forward_##NAME(const Plan* plan, const int64_t* units, const T* const* input, const double* w,      \
                                              const Filter<const T>* filter, const T* gamma, const T* beta, T* saved, T* out,      \
                                              double* mean, double* rstd) {                                                        \
        forward<T>(plan, units, input, w, filter, gamma, beta, saved, out, mean, rstd);                                            \
    }                                                                                                                              \
    extern "C" void oche_dense_backward_##NAME(const Plan* plan, const int64_t* units, const T* const* input, const double* w,     \
                                               const Filter<const T>* filter, const T* gamma, const T* beta, T* saved, T* out,     \
                                               double* mean, double* rstd, const T* dout, T* const* dinput, double* dw,            \
                                               const Filter<T>* dfilter, double* dgamma, double* dbeta, T* work) {                 \
        backward<T>(plan, units, input, w, filter, gamma, beta, saved, out, mean, rstd, dout, dinput, dw, dfilter, dgamma, dbeta, work); \
    }
EXPORT(float, f32)
EXPORT(double, f64)
