// The sums into a node of any candidates: `rows.py` has their signatures, `combine.py` the formulas.

#include <algorithm>
#include "lanes.h"

namespace {

constexpr int64_t BLOCK = 512;  // rows whose sums are taken together, the same for any number of threads

template <class T> struct Rows {  // (rows, c) values, ld apart
    const T* at;
    int64_t ld;
};

template <class T>
void moments(const T* x, int64_t ld, int64_t rows, int64_t c, int64_t threads, double* mean, double* variance) {
    const int64_t blocks = (rows + BLOCK - 1) / BLOCK;
    Buffer<T> parts(blocks * 3 * c);
#pragma omp parallel for schedule(dynamic) num_threads(int(threads))
    for (int64_t b = 0; b < blocks; ++b) {
        const T* from = x + b * BLOCK * ld;
        const int64_t n = std::min(BLOCK, rows - b * BLOCK);
        T* to = parts.data() + b * 3 * c;
        by_lanes<T>(c, [&](auto zero, int64_t l) {
            typedef decltype(zero) U;
            U s[4] = {}, q[4] = {};
            int64_t i = 0;
            for (; i + 4 <= n; i += 4)
                for (int k = 0; k < 4; ++k) s[k] += get<U>(from + (i + k) * ld + l);
            for (; i < n; ++i) s[0] += get<U>(from + i * ld + l);
            const U pivot = ((s[0] + s[1]) + (s[2] + s[3])) * T(1.0 / n);  // the mean may be far larger than the deviation
            s[0] = s[1] = s[2] = s[3] = zero;
            for (i = 0; i + 4 <= n; i += 4)
                for (int k = 0; k < 4; ++k) {
                    const U v = get<U>(from + (i + k) * ld + l) - pivot;
                    s[k] += v, q[k] += v * v;
                }
            for (; i < n; ++i) {
                const U v = get<U>(from + i * ld + l) - pivot;
                s[0] += v, q[0] += v * v;
            }
            set<U>(to + l) = pivot;
            set<U>(to + c + l) = (s[0] + s[1]) + (s[2] + s[3]);
            set<U>(to + 2 * c + l) = (q[0] + q[1]) + (q[2] + q[3]);
        });
    }
    for (int64_t l = 0; l < c; ++l) {
        double s = 0, q = 0;
        for (int64_t b = 0; b < blocks; ++b) {
            const double n = double(std::min(BLOCK, rows - b * BLOCK)), pivot = parts[b * 3 * c + l], d = parts[(b * 3 + 1) * c + l];
            s += d + n * pivot;
            q += parts[(b * 3 + 2) * c + l] + 2 * pivot * d + n * pivot * pivot;
        }
        mean[l] = s / rows;
        variance[l] = std::max(0.0, q / rows - mean[l] * mean[l]);
    }
}

// out (rows, c) = sum_t a_t x_t + b
template <class T>
void weighted(int64_t n, const Rows<T>* x, const T* a, const T* b, int64_t rows, int64_t c, int64_t threads, T* out) {
#pragma omp parallel for schedule(dynamic, 4) num_threads(int(threads))
    for (int64_t k = 0; k < (rows + BLOCK - 1) / BLOCK; ++k)
        by_lanes<T>(c, [&](auto zero, int64_t l) {
            typedef decltype(zero) U;
            for (int64_t i = k * BLOCK; i < std::min(rows, (k + 1) * BLOCK); ++i) {
                U v = get<U>(b + l);
                for (int64_t t = 0; t < n; ++t) v += get<U>(a + t * c + l) * get<U>(x[t].at + i * x[t].ld + l);
                set<U>(out + i * c + l) = v;
            }
        });
}

// r (n + 1, c): sum over rows of g (x_t - pivot_t), last sum of g
template <class T>
void dot_products(int64_t n, const Rows<T>* x, const T* pivot, const T* g, int64_t rows, int64_t c, int64_t threads, double* r) {
    const int64_t blocks = (rows + BLOCK - 1) / BLOCK, width = (n + 1) * c;
    Buffer<T> parts(blocks * width);
#pragma omp parallel for schedule(dynamic) num_threads(int(threads))
    for (int64_t b = 0; b < blocks; ++b)
        for (int64_t t = 0; t <= n; ++t)
            by_lanes<T>(c, [&](auto zero, int64_t l) {
                typedef decltype(zero) U;
                U s[4] = {};
                int64_t i = b * BLOCK;
                const int64_t end = std::min(rows, i + BLOCK);
                if (t == n) {
                    for (; i + 4 <= end; i += 4)
                        for (int k = 0; k < 4; ++k) s[k] += get<U>(g + (i + k) * c + l);
                    for (; i < end; ++i) s[0] += get<U>(g + i * c + l);
                } else {
                    const U m = get<U>(pivot + t * c + l);
                    const T* from = x[t].at + l;
                    for (; i + 4 <= end; i += 4)
                        for (int k = 0; k < 4; ++k) s[k] += get<U>(g + (i + k) * c + l) * (get<U>(from + (i + k) * x[t].ld) - m);
                    for (; i < end; ++i) s[0] += get<U>(g + i * c + l) * (get<U>(from + i * x[t].ld) - m);
                }
                set<U>(parts.data() + b * width + t * c + l) = (s[0] + s[1]) + (s[2] + s[3]);
            });
    for (int64_t i = 0; i < width; ++i) {
        double s = 0;
        for (int64_t b = 0; b < blocks; ++b) s += parts[b * width + i];
        r[i] = s;
    }
}

// dx_t (rows, c) = a_t g + b_t + e_t x_t, where it is wanted
template <class T>
void maps(int64_t n, const Rows<T>* x, const T* a, const T* b, const T* e, const T* g, int64_t rows, int64_t c, int64_t threads, T* const* dx) {
#pragma omp parallel for schedule(dynamic, 4) num_threads(int(threads))
    for (int64_t k = 0; k < (rows + BLOCK - 1) / BLOCK; ++k)
        for (int64_t t = 0; t < n; ++t) {
            if (!dx[t]) continue;
            by_lanes<T>(c, [&](auto zero, int64_t l) {
                typedef decltype(zero) U;
                const U at_ = get<U>(a + t * c + l), bt = get<U>(b + t * c + l), et = get<U>(e + t * c + l);
                for (int64_t i = k * BLOCK; i < std::min(rows, (k + 1) * BLOCK); ++i)
                    set<U>(dx[t] + i * c + l) = at_ * get<U>(g + i * c + l) + bt + et * get<U>(x[t].at + i * x[t].ld + l);
            });
        }
}

}  // namespace

#define EXPORT_NODE(T, NAME)                                                                                                   \
    extern "C" void oche_moments_##NAME(const T* x, int64_t ld, int64_t rows, int64_t c, int64_t threads, double* m, double* v) { \
        moments<T>(x, ld, rows, c, threads, m, v);                                                                             \
    }                                                                                                                          \
    extern "C" void oche_weighted_##NAME(int64_t n, const Rows<T>* x, const T* a, const T* b, int64_t rows, int64_t c,         \
                                         int64_t threads, T* out) {                                                            \
        weighted<T>(n, x, a, b, rows, c, threads, out);                                                                        \
    }                                                                                                                          \
    extern "C" void oche_dots_##NAME(int64_t n, const Rows<T>* x, const T* pivot, const T* g, int64_t rows, int64_t c,         \
                                     int64_t threads, double* r) {                                                             \
        dot_products<T>(n, x, pivot, g, rows, c, threads, r);                                                                  \
    }                                                                                                                          \
    extern "C" void oche_maps_##NAME(int64_t n, const Rows<T>* x, const T* a, const T* b, const T* e, const T* g, int64_t rows, \
                                     int64_t c, int64_t threads, T* const* dx) {                                               \
        maps<T>(n, x, a, b, e, g, rows, c, threads, dx);                                                                       \
    }
EXPORT_NODE(float, f32)
EXPORT_NODE(double, f64)
