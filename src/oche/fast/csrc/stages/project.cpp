// A projection into a node: a 1x1 convolution without batch norm, of one pixel of each window or of the window's mean, and its gradients.
//
// Plain C interface, called by `projections.py`; `Projection` must match `CProjection` there. Windows do not overlap; those at the lower and
// the right border may be cut. The weight is given as (ci, co). An image is the unit of parallel work.

#include "../past.h"

namespace {

struct Projection {
    int64_t n, height, width, ci, co, down, right;  // down, right: sides of a window
    int64_t mean;                                   // 0: of its first pixel
    int64_t threads;
};

template <class T> struct Windows {
    const Projection& s;
    const int64_t ho, wo;
    explicit Windows(const Projection& s_) : s(s_), ho((s.height + s.down - 1) / s.down), wo((s.width + s.right - 1) / s.right) {}

    // f(first number of a window, its rows and columns that count, first number of its pixel in a line of the output)
    template <class F> INLINE void along_row(int64_t r, F f) const {
        const int64_t rows = s.mean ? std::min(s.down, s.height - r * s.down) : 1;
        for (int64_t o = 0; o < wo; ++o)
            f((r * s.down * s.width + o * s.right) * s.ci, rows, s.mean ? std::min(s.right, s.width - o * s.right) : 1, o * s.ci);
    }
    // line (wo, ci) = what row r of the output reads of an image
    void read(const T* x, int64_t r, T* line) const {
        const int64_t c = s.ci, row = s.width * s.ci;
        along_row(r, [=](int64_t from, int64_t rows, int64_t columns, int64_t to) {
            const T share = T(1) / T(rows * columns);
            for (int64_t l = 0; l < c; l += WIDTH<T>) {
                const int lanes = int(std::min<int64_t>(WIDTH<T>, c - l));
                V<T> sum = {};
                for (int64_t y = 0; y < rows; ++y)
                    for (int64_t i = 0; i < columns; ++i) sum += take(x + from + y * row + i * c + l, lanes);
                store_some(line + to + l, sum * share, lanes);
            }
        });
    }
    // dx += what the gradient of such a line sends back
    void give(const T* line, int64_t r, T* dx) const {
        const int64_t c = s.ci, row = s.width * s.ci;
        along_row(r, [=](int64_t to, int64_t rows, int64_t columns, int64_t from) {
            const T share = T(1) / T(rows * columns);
            for (int64_t l = 0; l < c; l += WIDTH<T>) {
                const int lanes = int(std::min<int64_t>(WIDTH<T>, c - l));
                const V<T> g = load_some(line + from + l, lanes) * share;
                for (int64_t y = 0; y < rows; ++y)
                    for (int64_t i = 0; i < columns; ++i) {
                        T* const where = dx + to + y * row + i * c + l;
                        store_some(where, take(where, lanes) + g, lanes);
                    }
            }
        });
    }
};

template <class T> void project_forward(const Projection& s, const T* x, const T* weight, T* y) {
    const Windows<T> windows(s);
    Buffer<T> matrix(s.ci * whole<T>(s.co), T(0));
    for (int64_t i = 0; i < s.ci; ++i) std::copy_n(weight + i * s.co, s.co, matrix.data() + i * whole<T>(s.co));
#pragma omp parallel num_threads(int(s.threads))
    {
        Buffer<T> line(windows.wo * s.ci);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < s.n; ++n)
            for (int64_t r = 0; r < windows.ho; ++r) {
                windows.read(x + n * s.height * s.width * s.ci, r, line.data());
                product(line.data(), windows.wo, s.ci, matrix.data(), s.co, y + (n * windows.ho + r) * windows.wo * s.co);
            }
    }
}

// dx += and dweight = gradients of x and of the weight; either may be null
template <class T> void project_backward(const Projection& s, const T* x, const T* weight, const T* g, T* dx, T* dweight) {
    const Windows<T> windows(s);
    const int64_t ld = whole<T>(s.co), turn = whole<T>(s.ci), length = windows.wo * s.co;
    Buffer<T> turned(s.co * turn, T(0));
    for (int64_t i = 0; i < s.ci; ++i)
        for (int64_t o = 0; o < s.co; ++o) turned[o * turn + i] = weight[i * s.co + o];
    std::vector<Buffer<T>> sums(s.threads, Buffer<T>(dweight ? s.ci * ld : 0, T(0)));
#pragma omp parallel num_threads(int(s.threads))
    {
        Buffer<T> line(windows.wo * s.ci), dline(line.size()), row(length + WIDTH<T>, T(0));
#pragma omp for schedule(static)
        for (int64_t n = 0; n < s.n; ++n)
            for (int64_t r = 0; r < windows.ho; ++r) {
                const int64_t image = n * s.height * s.width * s.ci;
                std::copy_n(g + (n * windows.ho + r) * length, length, row.data());  // `outer` reads a vector behind it
                if (dweight) {
                    windows.read(x + image, r, line.data());
                    outer(line.data(), row.data(), windows.wo, s.ci, s.co, sums[omp_get_thread_num()].data());
                }
                if (!dx) continue;
                product(row.data(), windows.wo, s.co, turned.data(), s.ci, dline.data());
                windows.give(dline.data(), r, dx + image);
            }
    }
    for (int64_t i = 0; dweight && i < s.ci; ++i)
        for (int64_t o = 0; o < s.co; ++o) {
            dweight[i * s.co + o] = 0;
            for (const auto& sum : sums) dweight[i * s.co + o] += sum[i * ld + o];
        }
}

}  // namespace

#define EXPORT_PROJECT(T, NAME)                                                                                               \
    extern "C" void oche_project_forward_##NAME(const Projection* s, const T* x, const T* weight, T* y) {                     \
        project_forward<T>(*s, x, weight, y);                                                                                  \
    }                                                                                                                          \
    extern "C" void oche_project_backward_##NAME(const Projection* s, const T* x, const T* weight, const T* g, T* dx, T* dweight) { \
        project_backward<T>(*s, x, weight, g, dx, dweight);                                                                    \
    }
EXPORT_PROJECT(float, f32)
EXPORT_PROJECT(double, f64)
