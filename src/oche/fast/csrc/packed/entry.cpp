// How does an input enter a cell? ReLU, 1x1 convolution and batch norm in two passes over memory.
//
// Rows are pixels, channels side by side, their numbers multiples of 16. Formulas: the docstring of `entry.py`.

#include "../pieces.h"
#include "pixels.h"

namespace {

constexpr int64_t BLOCK = 512;  // rows whose sums are taken together, the same for any number of threads
constexpr int CHUNK = 64;  // rows whose products are taken while they are in the nearest cache

// y (n, co; ld apart) = z (n, ci) p (ci, co), or added to y
template <class T, int C>
void product_of(const T* z, int n, int lanes, const T* p, int co, T* y, T* sums, bool add) {
    constexpr int W = Vector<T>::width;
    const int ci = C ? C : lanes;
    int b = 0;
    for (; b + 2 * W <= co; b += 2 * W) pointwise_blocks<T, 2>(z, n, ci, p + b, co, y + b, co, sums ? sums + b : nullptr, add ? y + b : nullptr);
    for (; b < co; b += W) pointwise_blocks<T, 1>(z, n, ci, p + b, co, y + b, co, sums ? sums + b : nullptr, add ? y + b : nullptr);
}

// dp (ci, co) += z (n, ci)^T dy (n, co)
template <class T, int C>
void outer_of(const T* z, const T* dy, int n, int lanes, int co, T* dp) {
    constexpr int W = Vector<T>::width, I1 = VECTOR_BYTES == 64 ? 16 : 8, I2 = VECTOR_BYTES == 64 ? 8 : 4;
    const int ci = C ? C : lanes;
    int b = 0;
    for (; b + 2 * W <= co; b += 2 * W)
        for (int i = 0; i < ci; i += I2) outer_some<T, I2, 2>(z + i, dy + b, n, ci, co, dp + int64_t(i) * co + b);
    for (; b < co; b += W)
        for (int i = 0; i < ci; i += I1) outer_some<T, I1, 1>(z + i, dy + b, n, ci, co, dp + int64_t(i) * co + b);
}

inline int panel_of(int64_t ci) { return ci % 64 == 0 ? 64 : ci % 32 == 0 ? 32 : 16; }

// z (n, width) = [x > 0] v of some of the channels: max(x, 0) where v is x
template <class T>
void gate(const T* x, const T* v, int64_t ld, int n, int width, T* z) {
    const V<T> zero = {};
    for (int i = 0; i < n; ++i)
        for (int l = 0; l < width; l += Vector<T>::width)
            at(z + i * width + l) = at(x + i * ld + l) > zero ? at(v + i * ld + l) : zero;
}

// y (rows, co) = max(x, 0) p and its mean and biased variance; x (rows, ci), p (ci, co)
template <class T>
void enter(const T* x, const T* p, int64_t rows, int64_t ci, int64_t co, int64_t threads, T* y, double* mean, double* variance) {
    const int64_t blocks = (rows + BLOCK - 1) / BLOCK;
    const int panel = panel_of(ci);
    Buffer<T> parts(blocks * 2 * co, T(0));
#pragma omp parallel num_threads(int(threads))
    {
        Buffer<T> z(CHUNK * panel);
#pragma omp for schedule(dynamic)
        for (int64_t k = 0; k < blocks; ++k)
            for (int64_t i = k * BLOCK; i < std::min(rows, (k + 1) * BLOCK); i += CHUNK) {
                const int n = int(std::min<int64_t>(CHUNK, rows - i));
                for (int64_t c = 0; c < ci; c += panel) {
                    gate(x + i * ci + c, x + i * ci + c, ci, n, panel, z.data());
                    T* sums = c + panel == ci ? parts.data() + k * 2 * co : nullptr;
                    BY_LANES(panel, product_of, (z.data(), n, panel, p + c * co, int(co), y + i * co, sums, c > 0), T);
                }
            }
    }
    for (int64_t l = 0; l < co; ++l) {
        double s = 0, q = 0;
        for (int64_t k = 0; k < blocks; ++k) s += double(parts[k * 2 * co + l]), q += double(parts[(k * 2 + 1) * co + l]);
        mean[l] = s / rows;
        variance[l] = std::max(0.0, q / rows - mean[l] * mean[l]);
    }
}

// From dy = a g + b + e y: dx (rows, ci) = (x > 0) dy turned, dp (ci, co) = max(x, 0)^T dy; either may be null. turned (co, ci)
template <class T>
void leave(const T* x, const T* y, const T* g, const T* turned, const T* a, const T* b, const T* e, int64_t rows, int64_t ci,
           int64_t co, int64_t threads, T* dx, T* dp) {
    const int panel = panel_of(ci), c_ = int(co);
    const Parts parts((rows + CHUNK - 1) / CHUNK, threads, dp);
    std::vector<Buffer<T>> local(dp ? parts.count : 0, Buffer<T>(ci * co, T(0)));
    Pieces pieces(threads, parts.count);
#pragma omp parallel num_threads(int(threads))
    {
        Buffer<T> z(CHUNK * panel), dy(CHUNK * co);
        for (int64_t part; pieces.take(part);)
            for (int64_t k = parts.begin(part); k < parts.end(part); ++k) {
                const int64_t first = k * CHUNK;
                const int n = int(std::min<int64_t>(CHUNK, rows - first));
                for (int64_t i = 0; i < n; ++i)
                    for (int64_t l = 0; l < co; l += Vector<T>::width)
                        at(dy.data() + i * co + l) = at(a + l) * at(g + (first + i) * co + l) + at(b + l) + at(e + l) * at(y + (first + i) * co + l);
                for (int64_t c = 0; dp && c < ci; c += panel) {
                    gate(x + first * ci + c, x + first * ci + c, ci, n, panel, z.data());
                    T* to = local[part].data() + c * co;
                    BY_LANES(panel, outer_of, (z.data(), dy.data(), n, panel, c_, to), T);
                }
                if (!dx) continue;
                T* to = dx + first * ci;
                BY_LANES(c_, product_of, (dy.data(), n, c_, turned, int(ci), to, nullptr, false), T);
                gate(x + first * ci, to, ci, n, int(ci), to);
            }
    }
    for (const auto& part : local)
        for (int64_t i = 0; i < ci * co; ++i) dp[i] += part[i];
}

// The tangent y_t (rows, co) = [x > 0] x_t p + max(x, 0) p_t; a direction that is null is zero, as in `tangent.h`.
// sums (5, co), with d = y - pivot: of y_t, d y_t, g, d g and y_t g
template <class T>
void enter_tangent(const T* x, const T* x_t, const T* p, const T* p_t, const T* y, const T* pivot, const T* g, int64_t rows, int64_t ci,
                   int64_t co, int64_t threads, T* y_t, double* sums) {
    const int64_t blocks = (rows + BLOCK - 1) / BLOCK, width = 5 * co;
    const int panel = panel_of(ci);
    Buffer<T> parts(blocks * width, T(0));
#pragma omp parallel num_threads(int(threads))
    {
        Buffer<T> z(CHUNK * panel);
#pragma omp for schedule(dynamic)
        for (int64_t k = 0; k < blocks; ++k)
            for (int64_t i = k * BLOCK; i < std::min(rows, (k + 1) * BLOCK); i += CHUNK) {
                const int n = int(std::min<int64_t>(CHUNK, rows - i));
                T *to = y_t + i * co, *part = parts.data() + k * width;
                if (!x_t && !p_t) std::fill_n(to, n * co, T(0));
                for (int64_t c = 0; c < ci; c += panel) {
                    const T* from = x + i * ci + c;
                    if (x_t) {
                        gate(from, x_t + i * ci + c, ci, n, panel, z.data());
                        BY_LANES(panel, product_of, (z.data(), n, panel, p + c * co, int(co), to, nullptr, c > 0), T);
                    }
                    if (p_t) {
                        gate(from, from, ci, n, panel, z.data());
                        BY_LANES(panel, product_of, (z.data(), n, panel, p_t + c * co, int(co), to, nullptr, c > 0 || x_t), T);
                    }
                }
                for (int64_t l = 0; l < co; l += Vector<T>::width) {
                    V<T> s[5] = {};
                    for (int64_t j = l; j < n * co; j += co) {
                        const V<T> t = at(to + j), d = at(y + i * co + j) - at(pivot + l), v = at(g + i * co + j);
                        s[0] += t, s[1] += d * t, s[2] += v, s[3] += d * v, s[4] += t * v;
                    }
                    for (int j = 0; j < 5; ++j) at(part + j * co + l) += s[j];
                }
            }
    }
    for (int64_t l = 0; l < width; ++l) {
        sums[l] = 0;
        for (int64_t k = 0; k < blocks; ++k) sums[l] += double(parts[k * width + l]);
    }
}

// The tangents of what `leave` gives, from dy = a g + b + e y and dy_t = a_t g + b_t + e_t y + e y_t; that of the output,
// a y_t + a_t y + c_t, takes the place of y_t. map (7, co): a, b, e, a_t, b_t, e_t, c_t
template <class T>
void leave_tangent(const T* x, const T* x_t, const T* y, const T* g, const T* turned, const T* turned_t, const T* map, int64_t rows,
                   int64_t ci, int64_t co, int64_t threads, T* y_t, T* dx, T* dp) {
    const int panel = panel_of(ci), c_ = int(co);
    const Parts parts((rows + CHUNK - 1) / CHUNK, threads, dp);
    std::vector<Buffer<T>> local(dp ? parts.count : 0, Buffer<T>(ci * co, T(0)));
    Pieces pieces(threads, parts.count);
#pragma omp parallel num_threads(int(threads))
    {
        Buffer<T> z(CHUNK * panel), dy(CHUNK * co), dy_t(CHUNK * co);
        for (int64_t part; pieces.take(part);)
            for (int64_t k = parts.begin(part); k < parts.end(part); ++k) {
                const int64_t first = k * CHUNK;
                const int n = int(std::min<int64_t>(CHUNK, rows - first));
                for (int64_t i = 0; i < n; ++i)
                    for (int64_t l = 0; l < co; l += Vector<T>::width) {
                        const T* m = map + l;
                        const int64_t to = i * co + l, from = first * co + to;
                        const V<T> v = at(g + from), u = at(y + from), t = at(y_t + from);
                        at(dy.data() + to) = at(m) * v + at(m + co) + at(m + 2 * co) * u;
                        at(dy_t.data() + to) = at(m + 3 * co) * v + at(m + 4 * co) + at(m + 5 * co) * u + at(m + 2 * co) * t;
                        at(y_t + from) = at(m) * t + at(m + 3 * co) * u + at(m + 6 * co);
                    }
                for (int64_t c = 0; dp && c < ci; c += panel) {
                    const T* from = x + first * ci + c;
                    T* to = local[part].data() + c * co;
                    gate(from, from, ci, n, panel, z.data());
                    BY_LANES(panel, outer_of, (z.data(), dy_t.data(), n, panel, c_, to), T);
                    if (!x_t) continue;
                    gate(from, x_t + first * ci + c, ci, n, panel, z.data());
                    BY_LANES(panel, outer_of, (z.data(), dy.data(), n, panel, c_, to), T);
                }
                if (!dx) continue;
                T* to = dx + first * ci;
                BY_LANES(c_, product_of, (dy_t.data(), n, c_, turned, int(ci), to, nullptr, false), T);
                if (turned_t) BY_LANES(c_, product_of, (dy.data(), n, c_, turned_t, int(ci), to, nullptr, true), T);
                gate(x + first * ci, to, ci, n, int(ci), to);
            }
    }
    for (const auto& part : local)
        for (int64_t i = 0; i < ci * co; ++i) dp[i] += part[i];
}

}  // namespace

#define EXPORT_ENTRY(T, NAME)                                                                                                  \
    extern "C" void oche_enter_##NAME(const T* x, const T* p, int64_t rows, int64_t ci, int64_t co, int64_t threads, T* y,     \
                                      double* mean, double* variance) {                                                        \
        enter<T>(x, p, rows, ci, co, threads, y, mean, variance);                                                              \
    }                                                                                                                          \
    extern "C" void oche_leave_##NAME(const T* x, const T* y, const T* g, const T* turned, const T* a, const T* b, const T* e, \
                                      int64_t rows, int64_t ci, int64_t co, int64_t threads, T* dx, T* dp) {                   \
        leave<T>(x, y, g, turned, a, b, e, rows, ci, co, threads, dx, dp);                                                     \
    }                                                                                                                          \
    extern "C" void oche_enter_tangent_##NAME(const T* x, const T* x_t, const T* p, const T* p_t, const T* y, const T* pivot,  \
                                              const T* g, int64_t rows, int64_t ci, int64_t co, int64_t threads, T* y_t,       \
                                              double* sums) {                                                                  \
        enter_tangent<T>(x, x_t, p, p_t, y, pivot, g, rows, ci, co, threads, y_t, sums);                                       \
    }                                                                                                                          \
    extern "C" void oche_leave_tangent_##NAME(const T* x, const T* x_t, const T* y, const T* g, const T* turned,               \
                                              const T* turned_t, const T* map, int64_t rows, int64_t ci, int64_t co,           \
                                              int64_t threads, T* y_t, T* dx, T* dp) {                                         \
        leave_tangent<T>(x, x_t, y, g, turned, turned_t, map, rows, ci, co, threads, y_t, dx, dp);                             \
    }
EXPORT_ENTRY(float, f32)
EXPORT_ENTRY(double, f64)
