// The passes of a node (`join.h`) in C's calling convention, called by `node.py`; `Node` must match `CNode` there.

#include "join.h"

namespace {

// the sums of `dots`; behind an activation, g is what passes it where it gave `out`, and is left in `passing`
template <class T>
void dots_behind(const Node& s, const T* const* x, const T* pivot, const T* const* f, const T* g, const T* out, T* passing, double* sums) {
    const int64_t size = s.pixels * s.channels, period = period_of<T>(s.channels);
    dots<T>(s, x, pivot, f, out ? passing : g, [=, &s](int64_t n) {
        if (out)
            by_kind(s.activation, false, [&](auto kind, auto) {
                along<T>(size, period, [=](int64_t i, int64_t, int lanes) {
                    const int64_t at_ = n * size + i;
                    store_some(passing + at_, passed<T, kind()>(take(out + at_, lanes), take(g + at_, lanes)), lanes);
                });
            });
    }, sums);
}

}  // namespace

#define EXPORT_JOIN(T, NAME)                                                                                                  \
    extern "C" void oche_join_##NAME(const Node* s, const T* const* x, const T* a, const T* b, const T* const* f, T* out) {   \
        join<T>(*s, x, a, b, f, out);                                                                                          \
    }                                                                                                                          \
    extern "C" void oche_join_dots_##NAME(const Node* s, const T* const* x, const T* pivot, const T* const* f, const T* g,    \
                                          const T* out, T* passing, double* sums) {                                            \
        dots_behind<T>(*s, x, pivot, f, g, out, passing, sums);                                                                \
    }
EXPORT_JOIN(float, f32)
EXPORT_JOIN(double, f64)
