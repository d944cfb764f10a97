// How is a cell of depthwise-separable candidates, pools and skips computed in few passes over memory?
//
// Plain C interface, called through ctypes by `library.py`; the plan's layout is written by `packed.py` and must match `Unit` below.
// Arrays are N H W C with C a multiple of 16 lanes. `fold` images may sit side by side in the lanes: statistics are then
// folded over them. One image is the unit of parallel work; its tiles stay in cache. Formulas: the docstring of `packed.py`.
// T is what is computed in, S what y and T are kept as for the backward: T itself or, for float, Half. Pools are kept as T.
// Compiled once per instruction set (-DVECTOR_BYTES=16, 32 or 64); no finite-math assumption (max pools start at -inf).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>
#include "lanes.h"

namespace {

constexpr int PAD = 4;  // the widest border: 5x5 with dilation 2
constexpr int64_t CHUNK_BYTES = 32768;  // of a sum of terms

enum Kind : int64_t { SEP, DIL, MAXPOOL, AVGPOOL, SKIP, HALVE, EXTRA };

struct Unit {  // one candidate of one edge, or the entry of a pool; offsets in elements
    int64_t kind, k, src, dst, weight;      // weight: position in the flattened op weights
    int64_t d1, p1, d2, p2;                 // depthwise offsets in D, pointwise numbers in P (HALVE: even, odd)
    int64_t norm1, norm2;                   // batch norm numbers, -1 without
    int64_t slot1, slot2;                   // where the sums of y1 and of the term T are kept
    int64_t y1, term;                       // offsets of y1 and T in the saved buffer (SKIP: the state itself); of a pool, in the
                                            // buffer of pools, counted on from the end of the saved one
    int64_t first;                          // pools: 1 for the unit that computes the shared pool
};

struct Plan {
    int64_t n, height, width, lanes, channels, fold, inputs, nodes, stride, units, slots, norms, ops, depth, points, concat, threads;
    int64_t kept;  // elements of y and T in the saved buffer
    double eps;
};

// ---------------------------------------------------------------- one image

// The usual numbers of lanes are compiled in, so that addresses are constants; 0 takes any number
#define BY_LANES(c, NAME, ARGUMENTS, ...)                                                                         \
    do {                                                                                                          \
        if (sizeof(T) == 4 && c == 16) NAME<__VA_ARGS__, sizeof(T) == 4 ? 16 : 0> ARGUMENTS;                      \
        else if (sizeof(T) == 4 && c == 32) NAME<__VA_ARGS__, sizeof(T) == 4 ? 32 : 0> ARGUMENTS;                 \
        else if (sizeof(T) == 4 && c == 64) NAME<__VA_ARGS__, sizeof(T) == 4 ? 64 : 0> ARGUMENTS;                 \
        else NAME<__VA_ARGS__, 0> ARGUMENTS;                                                                      \
    } while (0)

// tile (h + 2 PAD, w + 2 PAD, c) = max(scale x + shift, 0) inside, border untouched
template <class T, class F>
void fill(const F* x, int64_t ld, int h, int w, int c, const T* scale, const T* shift, T* tile) {
    const int tw = w + 2 * PAD;
    const V<T> zero = {};
    for (int y = 0; y < h; ++y)
        for (int i = 0; i < w; ++i) {
            const F* from = x + (int64_t(y) * w + i) * ld;
            T* to = tile + (int64_t(y + PAD) * tw + i + PAD) * c;
            for (int b = 0; b < c; b += Vector<T>::width) {
                V<T> v = load(from + b);
                if (scale) v = v * at(scale + b) + at(shift + b);
                at(to + b) = v > zero ? v : zero;
            }
        }
}

template <class T, int K, int D, int S, int X>
INLINE void depthwise_some(const T* in, int64_t row, int c, const T* taps, T* out, bool add) {
    V<T> acc[X];
#pragma GCC unroll 16
    for (int x = 0; x < X; ++x) acc[x] = add ? at(out + x * c) : V<T>{};
    for (int ky = 0; ky < K; ++ky) {
        const T* p = in + ky * D * row;
#pragma GCC unroll 8
        for (int kx = 0; kx < K; ++kx) {
            const V<T> t = at(taps + (ky * K + kx) * c);
#pragma GCC unroll 16
            for (int x = 0; x < X; ++x) acc[x] += at(p + (x * S + kx * D) * c) * t;
        }
    }
#pragma GCC unroll 16
    for (int x = 0; x < X; ++x) at(out + x * c) = acc[x];
}

// one row of a depthwise convolution: out (wo, c) from a padded tile
template <class T, int K, int D, int S, int C>
void depthwise_row(const T* tile, int tw, int lanes, int oy, int wo, const T* taps, T* out, bool add) {
    const int c = C ? C : lanes;
    constexpr int P = PAD - D * (K - 1) / 2;
    const int64_t row = int64_t(tw) * c;
    const T* base = tile + (int64_t(oy) * S + P) * row + P * c;
    constexpr int X = VECTOR_BYTES == 64 ? 8 : 4;
    for (int b = 0; b < c; b += Vector<T>::width) {
        int x = 0;
        for (; x + X <= wo; x += X) depthwise_some<T, K, D, S, X>(base + x * S * c + b, row, c, taps + b, out + x * c + b, add);
        for (; x < wo; ++x) depthwise_some<T, K, D, S, 1>(base + x * S * c + b, row, c, taps + b, out + x * c + b, add);
    }
}

template <class T, int NB, int X, class S>
INLINE void pointwise_some(const T* z, int ci, const T* p, int co, S* y, int64_t ld, V<T>* sums, const T* onto) {
    constexpr int W = Vector<T>::width;
    V<T> acc[X][NB];
#pragma GCC unroll 16
    for (int x = 0; x < X; ++x)
#pragma GCC unroll 4
        for (int b = 0; b < NB; ++b) acc[x][b] = onto ? at(onto + x * ld + b * W) : V<T>{};
    for (int i = 0; i < ci; ++i) {
        V<T> q[NB];
#pragma GCC unroll 4
        for (int b = 0; b < NB; ++b) q[b] = at(p + i * co + b * W);
#pragma GCC unroll 16
        for (int x = 0; x < X; ++x)
#pragma GCC unroll 4
            for (int b = 0; b < NB; ++b) acc[x][b] += z[x * ci + i] * q[b];
    }
#pragma GCC unroll 16
    for (int x = 0; x < X; ++x)
#pragma GCC unroll 4
        for (int b = 0; b < NB; ++b) {
            if (sums) stream(y + x * ld + b * W, acc[x][b]);
            else store(y + x * ld + b * W, acc[x][b]);
            if (sums) sums[2 * b] += acc[x][b], sums[2 * b + 1] += acc[x][b] * acc[x][b];
        }
}

template <class T, int NB, class S>
INLINE void pointwise_blocks(const T* z, int n, int ci, const T* p, int co, S* y, int64_t ld, T* sums, const T* onto) {
    constexpr int W = Vector<T>::width, X = NB == 1 ? (VECTOR_BYTES == 64 ? 16 : 8) : (VECTOR_BYTES == 64 ? 8 : 4);
    V<T> s[2 * NB] = {};
    int x = 0;
    auto on = [&] { return onto ? onto + x * ld : nullptr; };
    for (; x + X <= n; x += X) pointwise_some<T, NB, X>(z + x * ci, ci, p, co, y + x * ld, ld, sums ? s : nullptr, on());
    for (; x + 4 <= n; x += 4) pointwise_some<T, NB, 4>(z + x * ci, ci, p, co, y + x * ld, ld, sums ? s : nullptr, on());
    for (; x < n; ++x) pointwise_some<T, NB, 1>(z + x * ci, ci, p, co, y + x * ld, ld, sums ? s : nullptr, on());
    if (sums)
        for (int b = 0; b < NB; ++b) at(sums + b * W) += s[2 * b], at(sums + co + b * W) += s[2 * b + 1];
}

template <class T, class S, bool DENSE, int C>
void pointwise_rows(const T* z, int n, int lanes, const T* p, S* y, int64_t step, T* sums, const T* onto) {
    constexpr int W = Vector<T>::width;
    const int ci = C ? C : lanes, co = ci;
    const int64_t ld = DENSE ? co : step;
    int b = 0;
    for (; b + 2 * W <= co; b += 2 * W) pointwise_blocks<T, 2>(z, n, ci, p + b, co, y + b, ld, sums ? sums + b : nullptr, onto ? onto + b : nullptr);
    for (; b < co; b += W) pointwise_blocks<T, 1>(z, n, ci, p + b, co, y + b, ld, sums ? sums + b : nullptr, onto ? onto + b : nullptr);
}

// y (n, c) = z (n, c) p (c, c), plus `onto` if there is any, pixels of both ld apart; sums (2, c): of y and of its squares
template <class T, class S>
void pointwise(const T* z, int n, int c, const T* p, S* y, int64_t ld, T* sums, const T* onto) {
    if (ld == c) BY_LANES(c, pointwise_rows, (z, n, c, p, y, ld, sums, onto), T, S, true);
    else BY_LANES(c, pointwise_rows, (z, n, c, p, y, ld, sums, onto), T, S, false);
}

template <class T, int I, int NB>
INLINE void outer_some(const T* z, const T* dy, int n, int ci, int co, T* dp) {
    constexpr int W = Vector<T>::width;
    V<T> acc[I][NB];
#pragma GCC unroll 16
    for (int i = 0; i < I; ++i)
#pragma GCC unroll 4
        for (int b = 0; b < NB; ++b) acc[i][b] = V<T>{};
    for (int x = 0; x < n; ++x) {
        V<T> g[NB];
#pragma GCC unroll 4
        for (int b = 0; b < NB; ++b) g[b] = at(dy + int64_t(x) * co + b * W);
#pragma GCC unroll 16
        for (int i = 0; i < I; ++i)
#pragma GCC unroll 4
            for (int b = 0; b < NB; ++b) acc[i][b] += z[int64_t(x) * ci + i] * g[b];
    }
#pragma GCC unroll 16
    for (int i = 0; i < I; ++i)
#pragma GCC unroll 4
        for (int b = 0; b < NB; ++b) at(dp + i * co + b * W) += acc[i][b];
}

template <class T, int C>
void outer_rows(const T* z, const T* dy, int n, int lanes, T* dp) {
    const int ci = C ? C : lanes, co = ci;
    constexpr int W = Vector<T>::width, I1 = VECTOR_BYTES == 64 ? 16 : 8, I2 = VECTOR_BYTES == 64 ? 8 : 4;
    int b = 0;
    for (; b + 2 * W <= co; b += 2 * W)
        for (int i = 0; i < ci; i += I2) outer_some<T, I2, 2>(z + i, dy + b, n, ci, co, dp + int64_t(i) * co + b);
    for (; b < co; b += W)
        for (int i = 0; i < ci; i += I1) outer_some<T, I1, 1>(z + i, dy + b, n, ci, co, dp + int64_t(i) * co + b);
}

// dp (c, c) += z^T dy; c is a multiple of 16
template <class T>
void outer(const T* z, const T* dy, int n, int c, T* dp) {
    BY_LANES(c, outer_rows, (z, dy, n, c, dp), T);
}

// dd (K K, c) += sum over pixels of dz times the tile under each tap; dz sits in a tile of its own, S apart
template <class T, int K, int D, int S, int C>
void taps_gradient(const T* tile, const T* dztile, int tw, int lanes, int ho, int wo, T* dd) {
    const int c = C ? C : lanes;
    constexpr int P = PAD - D * (K - 1) / 2, R = K * K <= 25 && VECTOR_BYTES == 64 ? K : (K == 3 ? 3 : 1);
    const int64_t row = int64_t(tw) * c;
    for (int b = 0; b < c; b += Vector<T>::width)
        for (int k0 = 0; k0 < K; k0 += R) {
            V<T> acc[R * K];
#pragma GCC unroll 32
            for (int t = 0; t < R * K; ++t) acc[t] = V<T>{};
            for (int y = 0; y < ho; ++y) {
                const T* g = dztile + (int64_t(y) * S + PAD) * row + PAD * c + b;
                const T* in = tile + (int64_t(y) * S + P + k0 * D) * row + P * c + b;
                for (int x = 0; x < wo; ++x) {
                    const V<T> v = at(g + x * S * c);
#pragma GCC unroll 8
                    for (int ky = 0; ky < R; ++ky)
#pragma GCC unroll 8
                        for (int kx = 0; kx < K; ++kx) acc[ky * K + kx] += v * at(in + ky * D * row + (x * S + kx * D) * c);
                }
            }
#pragma GCC unroll 32
            for (int t = 0; t < R * K; ++t) at(dd + (k0 * K + t) * c + b) += acc[t];
        }
}

#define BY_SHAPE(k, d, s, CALL)                                                                                   \
    do {                                                                                                          \
        if (k == 3 && d == 1 && s == 1) CALL(3, 1, 1);                                                            \
        else if (k == 5 && d == 1 && s == 1) CALL(5, 1, 1);                                                       \
        else if (k == 7 && d == 1 && s == 1) CALL(7, 1, 1);                                                       \
        else if (k == 3 && d == 2 && s == 1) CALL(3, 2, 1);                                                       \
        else if (k == 5 && d == 2 && s == 1) CALL(5, 2, 1);                                                       \
        else if (k == 3 && d == 1) CALL(3, 1, 2);                                                                 \
        else if (k == 5 && d == 1) CALL(5, 1, 2);                                                                 \
        else if (k == 7 && d == 1) CALL(7, 1, 2);                                                                 \
        else if (k == 3) CALL(3, 2, 2);                                                                           \
        else CALL(5, 2, 2);                                                                                       \
    } while (0)

template <class T>
void depthwise(int k, int d, int s, const T* tile, int tw, int c, int oy, int wo, const T* taps, T* out, bool add) {
#define CALL(K, D, S) BY_LANES(c, depthwise_row, (tile, tw, c, oy, wo, taps, out, add), T, K, D, S)
    BY_SHAPE(k, d, s, CALL);
#undef CALL
}

template <class T> struct Pool {
    int h, w, c, s;
    int64_t ld;
    int ho() const { return (h + s - 1) / s; }
    int wo() const { return (w + s - 1) / s; }

    // of the window of output o in an image n wide: its first pixel, its last one, how many
    int first(int o) const { return std::max(0, o * s - 1); }
    int last(int o, int n) const { return std::min(n - 1, o * s + 1); }
    int size(int o, int n) const { return last(o, n) - first(o) + 1; }

    template <class F> INLINE void taps(int oy, int ox, F f) const {
        const int y = oy * s - 1, x = ox * s - 1;
        if (y >= 0 && x >= 0 && y + 2 < h && x + 2 < w) {
#pragma GCC unroll 3
            for (int ky = 0; ky < 3; ++ky)
#pragma GCC unroll 3
                for (int kx = 0; kx < 3; ++kx) f(int64_t(y + ky) * w + x + kx);
            return;
        }
        for (int iy = first(oy); iy <= last(oy, h); ++iy)
            for (int ix = first(ox); ix <= last(ox, w); ++ix) f(int64_t(iy) * w + ix);
    }

    // sums (3, c), if not null: of the pooled values and of their squares about a pivot, the image's mean, which is the third row
    void forward(bool max, const T* x, T* out, T* sums) const { max ? forward_by<true>(x, out, sums) : forward_by<false>(x, out, sums); }

    // rows of a window first, then its columns
    template <bool MAX> void forward_by(const T* x, T* out, T* sums) const {
        const V<T> none = V<T>{} - (MAX ? std::numeric_limits<T>::infinity() : T(0));
        auto join = [](V<T> a, V<T> b_) { return MAX ? (b_ > a ? b_ : a) : a + b_; };
        Buffer<T> columns(size_t(w + 2) * Vector<T>::width);  // rows joined, between two columns of nothing
        auto column = [&](int i) -> V<T>& { return at(columns.data() + i * Vector<T>::width); };
        column(0) = column(w + 1) = none;
        const int64_t row = int64_t(w) * ld;
        for (int b = 0; b < c; b += Vector<T>::width) {
            V<T> total = {}, s1 = {}, s2 = {};
            for (int oy = 0; oy < ho(); ++oy) {
                const int rows = size(oy, h);
                const T* from = x + first(oy) * row + b;
                for (int i = 0; i < w; ++i, from += ld) {
                    V<T> v = at(from);
                    if (rows > 1) v = join(v, at(from + row));
                    if (rows > 2) v = join(v, at(from + 2 * row));
                    column(i + 1) = v;
                }
                const T share[3] = {T(1.0 / rows), T(1.0 / (2 * rows)), T(1.0 / (3 * rows))};
                T* to = out + int64_t(oy) * wo() * c + b;
                for (int ox = 0; ox < wo(); ++ox, to += c) {
                    V<T> v = join(join(column(ox * s), column(ox * s + 1)), column(ox * s + 2));
                    if (!MAX) v = v * share[size(ox, w) - 1];
                    at(to) = v;
                    total += v;
                }
            }
            if (!sums) continue;
            const V<T> pivot = total * T(1.0 / (ho() * wo()));  // a state's mean may be far larger than its deviation
            for (int i = 0; i < ho() * wo(); ++i) {
                const V<T> v = at(out + int64_t(i) * c + b) - pivot;
                s1 += v, s2 += v * v;
            }
            at(sums + b) += s1, at(sums + c + b) += s2, at(sums + 2 * c + b) = pivot;
        }
    }

    // dx += what the gradient d (ho, wo, c) of the pooled values sends back; the first tap that is the maximum takes it
    void backward(bool max, const T* x, const T* out, const T* d, T* dx) const { max ? backward_max(x, out, d, dx) : backward_mean(d, dx); }

    void backward_max(const T* x, const T* out, const T* d, T* dx) const {
        const V<T> zero = {};
        for (int b = 0; b < c; b += Vector<T>::width)
            for (int oy = 0; oy < ho(); ++oy)
                for (int ox = 0; ox < wo(); ++ox) {
                    const int64_t o = (int64_t(oy) * wo() + ox) * c + b;
                    V<T> left = at(d + o);
                    const V<T> top = at(out + o);
                    taps(oy, ox, [&](int64_t i) {
                        auto hit = at(x + i * ld + b) == top;
                        at(dx + i * c + b) += hit ? left : zero;
                        left = hit ? zero : left;
                    });
                }
    }

    void backward_mean(const T* d, T* dx) const {
        T share[10];  // by the number of pixels in a window
        for (int n = 1; n < 10; ++n) share[n] = T(1.0 / n);
        Buffer<T> columns(size_t(wo() + 2) * Vector<T>::width, T(0));  // of a row of dx: what its windows' rows send, between zeros
        auto column = [&](int i) -> V<T>& { return at(columns.data() + i * Vector<T>::width); };
        for (int b = 0; b < c; b += Vector<T>::width)
            for (int y = 0; y < h; ++y) {
                const int from = y / s, until = std::min(ho() - 1, (y + 1) / s);  // windows over this row, and perhaps the one before
                for (int ox = 0; ox < wo(); ++ox) {
                    V<T> v = {};
                    for (int oy = s == 1 ? std::max(0, from - 1) : from; oy <= until; ++oy)
                        v += at(d + (int64_t(oy) * wo() + ox) * c + b) * share[size(oy, h) * size(ox, w)];
                    column(ox + 1) = v;
                }
                T* to = dx + int64_t(y) * w * c + b;
                for (int i = 0; i < w; ++i, to += c) {
                    V<T> v = column(i / s + 1);
                    if (s == 1) v += column(i) + column(i + 2);
                    else if (i % 2) v += column(i / 2 + 2);
                    at(to) += v;
                }
            }
    }
};

// y (n, c) += a x, pixels of x and of y some way apart
template <class T, class F, int C>
void add_rows(const T* a, const F* x, int64_t step, int n, int lanes, T* y, int64_t ld) {
    const int c = C ? C : lanes;
    for (int i = 0; i < n; ++i)
        for (int l = 0; l < c; l += Vector<T>::width) at(y + i * ld + l) += at(a + l) * load(x + i * step + l);
}

// y (n, c) = a g + b + e x
template <class T, class F, int C>
void affine_rows(const T* g, const F* x, int64_t step, const T* a, const T* b, const T* e, int n, int lanes, T* y) {
    const int c = C ? C : lanes;
    for (int i = 0; i < n; ++i)
        for (int l = 0; l < c; l += Vector<T>::width) at(y + i * c + l) = at(a + l) * at(g + i * c + l) + at(b + l) + at(e + l) * load(x + i * step + l);
}

// ---------------------------------------------------------------- the cell

// computes in T and keeps y and T for the backward as S
template <class T, class S = T> struct Cell {
    const Plan& p;
    const Unit* units;
    const T* const* input;   // `inputs` pointers (n, height, width, lanes)
    const double* w;
    const T *depth, *point, *gamma, *beta;
    const T* const* extra;   // EXTRA terms, by Unit::term
    S* saved;                // y and T
    T* pools;                // pooled states, which are not kept: `pool_again`
    T* out;                  // nodes (n, ho, wo, nodes * lanes), or the last node alone behind the others
    double *mean, *rstd;     // (slots, lanes)
    int c, ho, wo, nt;
    int64_t node_step, image_step, node_ld;  // from node to node, image to image, pixel to pixel in `out`
    std::vector<double> sums;  // (n, slots, 2, lanes)

    Cell(const Plan& plan, const Unit* u) : p(plan), units(u), c(int(plan.lanes)), nt(int(plan.threads)) {
        ho = int((p.height + p.stride - 1) / p.stride), wo = int((p.width + p.stride - 1) / p.stride);
        node_step = c, node_ld = p.nodes * c, image_step = pixels() * node_ld;
    }
    virtual ~Cell() = default;

    int height(int j) const { return j < p.inputs ? int(p.height) : ho; }
    int width(int j) const { return j < p.inputs ? int(p.width) : wo; }
    int stride(int j) const { return j < p.inputs ? int(p.stride) : 1; }
    int64_t ld(int j) const { return j < p.inputs ? c : node_ld; }
    int64_t pixels() const { return int64_t(ho) * wo; }
    const T* state(int j, int64_t n) const {
        if (j < p.inputs) return input[j] + n * p.height * p.width * c;
        return out + n * image_step + (j - p.inputs) * node_step;
    }
    S* kept(int64_t offset, int64_t n) const { return saved + offset + n * pixels() * c; }
    // exact, for the gradient of a maximum goes where it is met again
    T* pool(int64_t offset, int64_t n) const { return pools + offset - p.kept + n * pixels() * c; }
    // f(first pixel, distance between pixels) of what a candidate adds to its node, as T or as S
    template <class F> INLINE void term(const Unit& u, int64_t n, F f) const {
        if (u.kind == SKIP) f(state(int(u.src), n), ld(int(u.src)));
        else if (u.kind == EXTRA) f(extra[u.term] + n * pixels() * c, int64_t(c));
        else if (u.kind == MAXPOOL || u.kind == AVGPOOL) f(static_cast<const T*>(pool(u.term, n)), int64_t(c));
        else f(static_cast<const S*>(kept(u.term, n)), int64_t(c));
    }
    static int dilation(const Unit& u) { return u.kind == DIL ? 2 : 1; }
    size_t tile_size(int j) const { return size_t(height(j) + 2 * PAD) * (width(j) + 2 * PAD) * c; }
    bool convolves(int j) const {
        for (int u = 0; u < p.units; ++u)
            if (units[u].src == j && (units[u].kind == SEP || units[u].kind == DIL || units[u].kind == HALVE)) return true;
        return false;
    }
    double count() const { return double(p.n) * p.fold * pixels(); }

    // lanes of the same channel added up, in place
    void fold(double* x) const {
        if (p.fold == 1) return;
        for (int i = 0; i < p.channels; ++i) {
            double s = 0;
            for (int f = 0; f < p.fold; ++f) s += x[f * p.channels + i];
            for (int f = 0; f < p.fold; ++f) x[f * p.channels + i] = s;
        }
    }

    void measure(int64_t slot) {
        std::vector<double> s(2 * c, 0.0);
        for (int64_t n = 0; n < p.n; ++n)
            for (int i = 0; i < 2 * c; ++i) s[i] += sums[(n * p.slots + slot) * 2 * c + i];
        fold(s.data()), fold(s.data() + c);
        for (int i = 0; i < c; ++i) {
            const double m = s[i] / count(), v = s[c + i] / count() - m * m;
            mean[slot * c + i] = m;
            rstd[slot * c + i] = 1 / std::sqrt((v > 0 ? v : 0) + p.eps);
        }
    }

    double scale(int64_t norm, int i) const { return norm >= 0 && gamma ? double(gamma[norm * c + i]) : 1.0; }
    double shift(int64_t norm, int i) const { return norm >= 0 && beta ? double(beta[norm * c + i]) : 0.0; }

    // the first batch norm of a separable convolution as one map of y1
    void first_norm(const Unit& u, T* a, T* b) const {
        for (int i = 0; i < c; ++i) {
            const double g = scale(u.norm1, i) * rstd[u.slot1 * c + i];
            a[i] = T(g), b[i] = T(shift(u.norm1, i) - g * mean[u.slot1 * c + i]);
        }
    }

    void keep_sums(int64_t n, int64_t slot, const T* s) {
        double* to = &sums[(n * p.slots + slot) * 2 * c];
        for (int i = 0; i < c; ++i) {
            const double pivot = s[2 * c + i], s1 = s[i], pixels_ = double(pixels());
            to[i] = s1 + pixels_ * pivot;
            to[c + i] = s[c + i] + 2 * pivot * s1 + pixels_ * pivot * pivot;
        }
    }

    void separable(const T* tile, int tw, int k, int d, int s, const T* taps, const T* matrix, S* y, T* row, T* total) const {
        for (int oy = 0; oy < ho; ++oy) {
            depthwise<T>(k, d, s, tile, tw, c, oy, wo, taps, row, false);
            pointwise<T>(row, wo, c, matrix, y + int64_t(oy) * wo * c, c, total, nullptr);
        }
    }

    // every second pixel of a tile, from (from, from)
    void gather(const T* tile, int tw, int oy, int from, T* row) const {
        for (int x = 0; x < wo; ++x) std::memcpy(row + x * c, tile + (int64_t(2 * oy + from + PAD) * tw + 2 * x + from + PAD) * c, c * sizeof(T));
    }

    void run_forward() {
        sums.assign(size_t(p.n) * p.slots * 2 * c, 0.0);
        for (int j = 0; j < p.inputs + p.nodes; ++j) {
            if (j >= p.inputs) combine(j);
            bool first = false, second = false;
            for (int u = 0; u < p.units; ++u)
                if (units[u].src == j) first = first || units[u].kind != SKIP, second = second || units[u].kind == SEP;
            if (first) sources(j);
            if (second) seconds(j);
        }
    }

    void sources(int j) {
        const int h = height(j), wd = width(j), s = stride(j), tw = wd + 2 * PAD;
        const bool convolving = convolves(j);
#pragma omp parallel num_threads(nt)
        {
            Buffer<T> tile(convolving ? tile_size(j) : 0, T(0)), row(size_t(wo) * c), even(row), total(3 * c);
#pragma omp for schedule(dynamic)
            for (int64_t n = 0; n < p.n; ++n) {
                if (convolving) fill<T>(state(j, n), ld(j), h, wd, c, nullptr, nullptr, tile.data());
                for (int i = 0; i < p.units; ++i) {
                    const Unit& u = units[i];
                    if (u.src != j || u.kind == SKIP || u.kind == EXTRA) continue;
                    std::fill(total.begin(), total.end(), T(0));
                    if (u.kind == MAXPOOL || u.kind == AVGPOOL) {
                        if (!u.first) continue;
                        Pool<T>{h, wd, c, s, ld(j)}.forward(u.kind == MAXPOOL, state(j, n), pool(u.term, n), total.data());
                    } else if (u.kind == HALVE) {
                        S* y = kept(u.term, n);
                        for (int oy = 0; oy < ho; ++oy) {
                            gather(tile.data(), tw, oy, 0, row.data());
                            pointwise<T>(row.data(), wo, c, point + u.p1 * c * c, even.data(), c, nullptr, nullptr);
                            gather(tile.data(), tw, oy, 1, row.data());
                            pointwise<T>(row.data(), wo, c, point + u.p2 * c * c, y + int64_t(oy) * wo * c, c, total.data(), even.data());
                        }
                    } else {
                        separable(tile.data(), tw, int(u.k), dilation(u), s, depth + u.d1, point + u.p1 * c * c,
                                  kept(u.kind == SEP ? u.y1 : u.term, n), row.data(), total.data());
                    }
                    keep_sums(n, u.kind == SEP ? u.slot1 : u.slot2, total.data());
                }
            }
        }
        for (int i = 0; i < p.units; ++i) {
            const Unit& u = units[i];
            if (u.src != j || u.kind == SKIP || u.kind == EXTRA) continue;
            if ((u.kind == MAXPOOL || u.kind == AVGPOOL) && !u.first) continue;
            measure(u.kind == SEP ? u.slot1 : u.slot2);
        }
    }

    // pools of all states, computed once more: cheaper than to keep them
    void pool_again() {
#pragma omp parallel for schedule(static) num_threads(nt)
        for (int64_t n = 0; n < p.n; ++n)
            for (int i = 0; i < p.units; ++i) {
                const Unit& u = units[i];
                const int j = int(u.src);
                if ((u.kind == MAXPOOL || u.kind == AVGPOOL) && u.first)
                    Pool<T>{height(j), width(j), c, stride(j), ld(j)}.forward(u.kind == MAXPOOL, state(j, n), pool(u.term, n), nullptr);
            }
    }

    void seconds(int j) {
        const int tw = wo + 2 * PAD;
#pragma omp parallel num_threads(nt)
        {
            Buffer<T> tile(size_t(ho + 2 * PAD) * tw * c, T(0)), row(size_t(wo) * c), total(3 * c), a(c), b(c);
            for (int i = 0; i < p.units; ++i) {
                const Unit& u = units[i];
                if (u.src != j || u.kind != SEP) continue;
                first_norm(u, a.data(), b.data());
#pragma omp for schedule(dynamic) nowait
                for (int64_t n = 0; n < p.n; ++n) {
                    std::fill(total.begin(), total.end(), T(0));
                    fill<T>(kept(u.y1, n), c, ho, wo, c, a.data(), b.data(), tile.data());
                    separable(tile.data(), tw, int(u.k), 1, 1, depth + u.d2, point + u.p2 * c * c, kept(u.term, n), row.data(), total.data());
                    keep_sums(n, u.slot2, total.data());
                }
            }
        }
        for (int i = 0; i < p.units; ++i)
            if (units[i].src == j && units[i].kind == SEP) measure(units[i].slot2);
    }

    // the candidates of a node, what each is multiplied by (terms, lanes), and what is added (lanes)
    void weights_of(int j, std::vector<const Unit*>& terms, Buffer<T>& a, Buffer<T>& b) const {
        std::vector<double> exact(c, 0.0);
        for (int i = 0; i < p.units; ++i) {
            const Unit& u = units[i];
            if (u.dst != j) continue;
            terms.push_back(&u);
            for (int l = 0; l < c; ++l) {
                const double r = u.norm2 >= 0 ? rstd[u.slot2 * c + l] : 1.0;
                const double factor = w[u.weight] * scale(u.norm2, l) * r;
                a.push_back(T(factor));
                if (u.norm2 >= 0) exact[l] += w[u.weight] * shift(u.norm2, l) - factor * mean[u.slot2 * c + l];
            }
        }
        for (int l = 0; l < c; ++l) b.push_back(T(exact[l]));
    }

    // pixels that are summed together: long enough for the processor to read ahead in a term, few enough to keep their sum at hand
    int64_t chunk() const { return std::max<int64_t>(1, CHUNK_BYTES / int64_t(c * sizeof(T))); }

    // to = b, a vector of lanes, for some pixels `ld` apart
    void spread(const T* b, int64_t first, int64_t last, int64_t ld, T* to) const {
        for (int64_t x = first; x < last; ++x)
            for (int l = 0; l < c; l += Vector<T>::width) at(to + x * ld + l) = at(b + l);
    }

    // to += a from, for some pixels
    template <class F> void add(const T* a, const F* from, int64_t step, int64_t first, int64_t last, int64_t ld, T* to) const {
        BY_LANES(c, add_rows, (a, from + first * step, step, int(last - first), c, to + first * ld, ld), T, F);
    }

    virtual void combine(int j) {
        std::vector<const Unit*> terms;
        Buffer<T> a, b;
        weights_of(j, terms, a, b);
#pragma omp parallel for schedule(dynamic) num_threads(nt)
        for (int64_t n = 0; n < p.n; ++n) {
            T* to = const_cast<T*>(state(j, n));
            for (int64_t first = 0; first < pixels(); first += chunk()) {
                const int64_t last = std::min(pixels(), first + chunk());
                spread(b.data(), first, last, ld(j), to);
                for (size_t t = 0; t < terms.size(); ++t)
                    term(*terms[t], n, [&](const auto* from, int64_t step) { add(a.data() + t * c, from, step, first, last, ld(j), to); });
            }
        }
    }
};

// Backward: states from the last to the first; a state's gradient is complete when all its out-edges are done. Weight gradients
// are added up by thread: images go to threads in a fixed way, so that a run can be repeated bit for bit.
template <class T, class S = T> struct Back : Cell<T, S> {
    using Base = Cell<T, S>;
    using Base::c; using Base::ho; using Base::wo; using Base::nt; using Base::p; using Base::units;
    const T* dout;
    bool learn;                                          // whether depthwise and pointwise weights want gradients
    T *ddepth, *dpoint;                                  // like depth and point, or null
    double *dgamma, *dbeta, *dw;                         // (norms, lanes), (norms, lanes), (ops,)
    T* const* dinput;
    T *grads, *dv;                                       // workspace: G of the nodes; gradients before the second ReLU, one
                                                         // plane per separable unit of the present source
    Buffer<T> flipped, turned;                           // reversed taps, transposed matrices
    Buffer<T> slope, level, tilt;                        // per unit: dT = slope G + level + tilt T
    std::vector<double> dots;                            // (n, units + 1, lanes): sum G T, last sum G
    std::vector<Buffer<T>> local;                        // per thread: weight gradients

    Back(const Plan& plan, const Unit* u) : Base(plan, u) {}

    T* gradient(int j, int64_t n) {
        if (j < p.inputs) return dinput[j] + n * p.height * p.width * c;
        return grads + ((j - p.inputs) * p.n + n) * this->pixels() * c;
    }

    // taps from the last to the first, matrices transposed
    void reverse(const T* taps, const T* matrices, Buffer<T>& flip, Buffer<T>& turn) const {
        for (int i = 0; i < p.units && taps; ++i) {
            const Unit& u = units[i];
            if (u.kind != SEP && u.kind != DIL) continue;
            const int64_t offsets[2] = {u.d1, u.d2};
            for (int s = 0; s < (u.kind == SEP ? 2 : 1); ++s)
                for (int t = 0; t < u.k * u.k; ++t)
                    std::memcpy(&flip[offsets[s] + t * c], taps + offsets[s] + (u.k * u.k - 1 - t) * c, c * sizeof(T));
        }
        for (int64_t m = 0; m < p.points && matrices; ++m)
            for (int i = 0; i < c; ++i)
                for (int o = 0; o < c; ++o) turn[(m * c + o) * c + i] = matrices[(m * c + i) * c + o];
    }

    void prepare() {
        flipped.resize(p.depth), turned.resize(size_t(p.points) * c * c);
        reverse(this->depth, this->point, flipped, turned);
        slope.assign(size_t(p.units) * c, T(0)), level = slope, tilt = slope;
        local.resize(nt);
        if (learn)
            for (auto& l : local) l.assign(size_t(p.depth) + size_t(p.points) * c * c, T(0));
    }

    void run_backward() {
        prepare();
        for (int j = int(p.inputs + p.nodes) - 1; j >= 0; --j) {
            seconds_back(j);
            sources_back(j);
            if (j >= p.inputs) coefficients(j);
        }
        add_local();
    }

    void add_local() {
        if (!learn) return;
        for (auto& l : local) {
            for (int64_t i = 0; i < p.depth; ++i) ddepth[i] += l[i];
            for (int64_t i = 0; i < p.points * c * c; ++i) dpoint[i] += l[p.depth + i];
        }
    }

    struct Scratch {
        Buffer<T> tile, dz, dy, z, dx, row, total;
    };

    // from dy (ho, wo, c) of y = (depthwise of tile) matrix: dx (h, w, c), added or set, and weight gradients
    void separable_back(Scratch& s, int h, int wd, int k, int d, int st, int64_t taps, int64_t matrix, T* dx, bool add) {
        const int tw = wd + 2 * PAD, thread = omp_get_thread_num();
        const T* turn = turned.data() + matrix * c * c;
        for (int oy = 0; oy < ho; ++oy) {
            T* to = s.dz.data() + (int64_t(oy * st + PAD) * tw + PAD) * c;
            pointwise<T>(s.dy.data() + int64_t(oy) * wo * c, wo, c, turn, to, int64_t(st) * c, nullptr, nullptr);
        }
        for (int y = 0; y < h; ++y) depthwise<T>(k, d, 1, s.dz.data(), tw, c, y, wd, flipped.data() + taps, dx + int64_t(y) * wd * c, add);
        if (!learn) return;
        for (int oy = 0; oy < ho; ++oy)
            depthwise<T>(k, d, st, s.tile.data(), tw, c, oy, wo, this->depth + taps, s.z.data() + int64_t(oy) * wo * c, false);
        outer<T>(s.z.data(), s.dy.data(), ho * wo, c, local[thread].data() + p.depth + matrix * c * c);
        T* dd = local[thread].data() + taps;
#define CALL(K, D, S) BY_LANES(c, taps_gradient, (s.tile.data(), s.dz.data(), tw, c, ho, wo, dd), T, K, D, S)
        BY_SHAPE(k, d, st, CALL);
#undef CALL
    }

    // dy = slope G + level + tilt T of one image
    template <class F> void affine(const T* g, const F* t, int64_t step, const T* a, const T* b, const T* e, T* dy) const {
        BY_LANES(c, affine_rows, (g, t, step, a, b, e, int(this->pixels()), c, dy), T, F);
    }

    void map_of(double factor, double r1, double q, double m, double r, T& a, T& b, T& e) const {
        a = T(factor), b = T(-factor * (r1 - q * m * r) / this->count()), e = T(-factor * q * r / this->count());
    }

    void seconds_back(int j) {
        std::vector<int> mine;
        for (int i = 0; i < p.units; ++i)
            if (units[i].src == j && units[i].kind == SEP) mine.push_back(i);
        if (mine.empty()) return;
        const size_t plane = size_t(p.n) * this->pixels() * c;
        std::vector<double> both(size_t(p.n) * mine.size() * 2 * c);
        const int tw = wo + 2 * PAD;
#pragma omp parallel num_threads(nt)
        {
            Scratch s;
            s.tile.assign(size_t(ho + 2 * PAD) * tw * c, T(0)), s.dz = s.tile;
            s.dy.resize(this->pixels() * c), s.z.resize(this->pixels() * c), s.total.resize(2 * c);
            Buffer<T> a(c), b(c);
            for (size_t k = 0; k < mine.size(); ++k) {
                const Unit& u = units[mine[k]];
                this->first_norm(u, a.data(), b.data());
#pragma omp for schedule(static) nowait
                for (int64_t n = 0; n < p.n; ++n) {
                    const S* y1 = this->kept(u.y1, n);
                    affine(gradient(int(u.dst), n), this->kept(u.term, n), c, &slope[mine[k] * c], &level[mine[k] * c], &tilt[mine[k] * c], s.dy.data());
                    if (learn) fill<T>(y1, c, ho, wo, c, a.data(), b.data(), s.tile.data());
                    T* v = dv + k * plane + n * this->pixels() * c;
                    separable_back(s, ho, wo, int(u.k), 1, 1, u.d2, u.p2, v, false);
                    const V<T> zero = {};
                    for (int l = 0; l < c; l += Vector<T>::width) {
                        V<T> s1 = {}, s2 = {};
                        const V<T> al = at(a.data() + l), bl = at(b.data() + l);
                        for (int64_t x = 0; x < this->pixels(); ++x) {
                            const V<T> y = load(y1 + x * c + l);
                            V<T> g = at(v + x * c + l);
                            g = y * al + bl > zero ? g : zero;
                            at(v + x * c + l) = g;
                            s1 += g, s2 += g * y;
                        }
                        at(s.total.data() + l) = s1, at(s.total.data() + c + l) = s2;
                    }
                    for (int l = 0; l < 2 * c; ++l) both[(n * mine.size() + k) * 2 * c + l] = double(s.total[l]);
                }
            }
        }
        first.resize(mine.size() * 3 * c);
        for (size_t k = 0; k < mine.size(); ++k) {
            const Unit& u = units[mine[k]];
            std::vector<double> r(2 * c, 0.0);
            for (int64_t n = 0; n < p.n; ++n)
                for (int l = 0; l < 2 * c; ++l) r[l] += both[(n * mine.size() + k) * 2 * c + l];
            const double *m = this->mean + u.slot1 * c, *rs = this->rstd + u.slot1 * c;
            for (int l = 0; l < c; ++l) dgamma[u.norm1 * c + l] = (r[c + l] - m[l] * r[l]) * rs[l], dbeta[u.norm1 * c + l] = r[l];
            this->fold(r.data()), this->fold(r.data() + c);
            T* f = first.data() + k * 3 * c;
            for (int l = 0; l < c; ++l)
                map_of(this->scale(u.norm1, l) * rs[l], r[l], (r[c + l] - m[l] * r[l]) * rs[l], m[l], rs[l], f[l], f[c + l], f[2 * c + l]);
        }
    }
    Buffer<T> first;  // per separable unit of the present source: the map of its first batch norm

    void sources_back(int j) {
        const int h = this->height(j), wd = this->width(j), st = this->stride(j);
        const bool convolving = this->convolves(j);
        const size_t plane = size_t(p.n) * this->pixels() * c;
        const int64_t own = int64_t(h) * wd;
        if (j >= p.inputs) dots.assign(size_t(p.n) * (p.units + 1) * c, 0.0);
#pragma omp parallel num_threads(nt)
        {
            Scratch s;
            if (convolving) s.tile.assign(this->tile_size(j), T(0)), s.dz = s.tile;
            s.dy.resize(this->pixels() * c), s.z.resize(this->pixels() * c), s.row.resize(size_t(std::max<int64_t>(wo, wd)) * c), s.dx.resize(own * c);
#pragma omp for schedule(static)
            for (int64_t n = 0; n < p.n; ++n) {
                const T* x = this->state(j, n);
                T* g = gradient(j, n);
                std::memset(s.dx.data(), 0, s.dx.size() * sizeof(T));
                if (convolving) fill<T>(x, this->ld(j), h, wd, c, nullptr, nullptr, s.tile.data());
                size_t k = 0;
                for (int i = 0; i < p.units; ++i) {
                    const Unit& u = units[i];
                    if (u.src != j) continue;
                    if (u.kind == SEP) {
                        const T* f = first.data() + k * 3 * c;
                        affine(dv + k * plane + n * this->pixels() * c, this->kept(u.y1, n), c, f, f + c, f + 2 * c, s.dy.data());
                        separable_back(s, h, wd, int(u.k), 1, st, u.d1, u.p1, s.dx.data(), true);
                        ++k;
                    } else if (u.kind == DIL || u.kind == HALVE) {
                        affine(gradient(int(u.dst), n), this->kept(u.term, n), c, &slope[i * c], &level[i * c], &tilt[i * c], s.dy.data());
                        if (u.kind == DIL) separable_back(s, h, wd, int(u.k), 2, st, u.d1, u.p1, s.dx.data(), true);
                        else halve_back(s, u, h, wd);
                    }
                }
                finish(j, n, x, g, own, convolving, s);
                if (j >= p.inputs) measure_gradient(j, n, g);
            }
        }
    }

    void halve_back(Scratch& s, const Unit& u, int h, int wd) {
        const int tw = wd + 2 * PAD;
        const int64_t matrices[2] = {u.p1, u.p2};
        for (int from = 0; from < 2; ++from) {
            for (int oy = 0; oy < ho; ++oy) {
                pointwise<T>(s.dy.data() + int64_t(oy) * wo * c, wo, c, turned.data() + matrices[from] * c * c, s.row.data(), c, nullptr, nullptr);
                const int y = 2 * oy + from;
                if (y >= h) continue;
                for (int ox = 0; ox < wo && 2 * ox + from < wd; ++ox) {
                    T* to = s.dx.data() + (int64_t(y) * wd + 2 * ox + from) * c;
                    for (int l = 0; l < c; ++l) to[l] += s.row[ox * c + l];
                }
            }
            if (!learn) continue;
            for (int oy = 0; oy < ho; ++oy) this->gather(s.tile.data(), tw, oy, from, s.z.data() + int64_t(oy) * wo * c);
            outer<T>(s.z.data(), s.dy.data(), ho * wo, c, local[omp_get_thread_num()].data() + p.depth + matrices[from] * c * c);
        }
    }

    // G of the state: through the ReLU, plus the cell's output, skips and pools
    virtual void finish(int j, int64_t n, const T* x, T* g, int64_t own, bool convolving, Scratch& s) {
        const V<T> zero = {};
        const bool shown = dout && j >= p.inputs && (p.concat || j == p.inputs + p.nodes - 1);
        const int64_t od = p.concat ? p.nodes * c : c;
        const T* above = shown ? dout + n * own * od + (p.concat ? (j - p.inputs) * c : 0) : nullptr;
        for (int64_t i = 0; i < own; ++i)
            for (int l = 0; l < c; l += Vector<T>::width) {
                V<T> v = zero;
                if (convolving) v = at(x + i * this->ld(j) + l) > zero ? at(s.dx.data() + i * c + l) : zero;
                if (above) v += at(above + i * od + l);
                at(g + i * c + l) = v;
            }
        for (int kind = MAXPOOL; kind <= SKIP; ++kind) {
            const T* pooled = nullptr;
            Buffer<T> b, e;
            for (int i = 0; i < p.units; ++i) {
                const Unit& u = units[i];
                if (u.src != j || u.kind != kind) continue;
                const T* from = gradient(int(u.dst), n);
                const T* a = &slope[i * c];
                T* to = kind == SKIP ? g : s.dy.data();
                if (kind != SKIP && !pooled) {
                    pooled = this->pool(u.term, n);
                    b.assign(c, T(0)), e = b;
                    std::memset(s.dy.data(), 0, s.dy.size() * sizeof(T));
                }
                if (kind != SKIP)
                    for (int l = 0; l < c; ++l) b[l] += level[i * c + l], e[l] += tilt[i * c + l];
                for (int64_t q = 0; q < this->pixels(); ++q)
                    for (int l = 0; l < c; l += Vector<T>::width) at(to + q * c + l) += at(a + l) * at(from + q * c + l);
            }
            if (!pooled) continue;
            for (int64_t q = 0; q < this->pixels(); ++q)
                for (int l = 0; l < c; l += Vector<T>::width)
                    at(s.dy.data() + q * c + l) += at(b.data() + l) + at(e.data() + l) * at(pooled + q * c + l);
            Pool<T>{this->height(j), this->width(j), c, this->stride(j), this->ld(j)}.backward(kind == MAXPOOL, x, pooled, s.dy.data(), g);
        }
    }

    // sum G, and sum G (T - its mean) for every term into node j, one image
    void measure_gradient(int j, int64_t n, const T* g) {
        Buffer<T> about(c);
        for (int i = 0; i <= p.units; ++i) {
            if (i < p.units && units[i].dst != j) continue;
            double* to = &dots[(n * (p.units + 1) + i) * c];
            if (i == p.units) {
                dot(g, static_cast<const T*>(nullptr), 0, nullptr, to);
                continue;
            }
            for (int l = 0; l < c; ++l) about[l] = pivot(units[i], l);
            this->term(units[i], n, [&](const auto* t, int64_t step) { dot(g, t, step, about.data(), to); });
        }
    }

    // sum G (T - m) of one image, or sum G without a T
    template <class F> void dot(const T* g, const F* t, int64_t step, const T* mean, double* to) const {
        for (int l = 0; l < c; l += Vector<T>::width) {
            V<T> s[4] = {};
            const V<T> m = t ? at(mean + l) : V<T>{};
            int64_t x = 0;
            for (; x + 4 <= this->pixels(); x += 4)
#pragma GCC unroll 4
                for (int k = 0; k < 4; ++k) s[k] += t ? at(g + (x + k) * c + l) * (load(t + (x + k) * step + l) - m) : at(g + (x + k) * c + l);
            for (; x < this->pixels(); ++x) s[0] += t ? at(g + x * c + l) * (load(t + x * step + l) - m) : at(g + x * c + l);
            s[0] = (s[0] + s[1]) + (s[2] + s[3]);
            for (int k = 0; k < Vector<T>::width; ++k) to[l + k] = double(s[0][k]);
        }
    }

    // the mean as the kernels' type holds it; 0 for a term without batch norm
    T pivot(const Unit& u, int l) const { return u.norm2 >= 0 ? T(this->mean[u.slot2 * c + l]) : T(0); }

    void coefficients(int j) {
        auto total = [&](int i) {
            std::vector<double> s(c, 0.0);
            for (int64_t n = 0; n < p.n; ++n)
                for (int l = 0; l < c; ++l) s[l] += dots[(n * (p.units + 1) + i) * c + l];
            return s;
        };
        const std::vector<double> lane = total(int(p.units));
        std::vector<double> r1 = lane;
        this->fold(r1.data());
        for (int i = 0; i < p.units; ++i) {
            const Unit& u = units[i];
            if (u.dst != j) continue;
            std::vector<double> r2 = total(i);
            const double weight = this->w[u.weight];
            if (u.norm2 < 0) {
                for (int l = 0; l < c; ++l) dw[u.weight] += r2[l], slope[i * c + l] = T(weight);
                continue;
            }
            const double *m = this->mean + u.slot2 * c, *r = this->rstd + u.slot2 * c;
            for (int l = 0; l < c; ++l) {
                const double q = (r2[l] - (m[l] - pivot(u, l)) * lane[l]) * r[l];
                dw[u.weight] += this->scale(u.norm2, l) * q + this->shift(u.norm2, l) * lane[l];
                dgamma[u.norm2 * c + l] = weight * q, dbeta[u.norm2 * c + l] = weight * lane[l];
            }
            this->fold(r2.data());
            for (int l = 0; l < c; ++l)
                map_of(weight * this->scale(u.norm2, l) * r[l], r1[l], (r2[l] - (m[l] - pivot(u, l)) * r1[l]) * r[l], m[l], r[l],
                       slope[i * c + l], level[i * c + l], tilt[i * c + l]);
        }
    }
};

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

// ---------------------------------------------------------------- a node of any candidates: `combine.py`

constexpr int64_t BLOCK = 512;  // rows whose sums are taken together, the same for any number of threads

template <class T> struct Rows {  // (rows, c) values, ld apart
    const T* at;
    int64_t ld;
};

// f(U{}, first lane) for vectors of lanes, then for the single lanes that are left
template <class T, class F> INLINE void by_lanes(int64_t c, F f) {
    int64_t l = 0;
    for (; l + Vector<T>::width <= c; l += Vector<T>::width) f(V<T>{}, l);
    for (; l < c; ++l) f(T(0), l);
}
template <class U, class T> INLINE const U& get(const T* p) { return *reinterpret_cast<const U*>(p); }
template <class U, class T> INLINE U& set(T* p) { return *reinterpret_cast<U*>(p); }

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
#pragma omp parallel for schedule(static) num_threads(int(threads))
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
#pragma omp parallel for schedule(static) num_threads(int(threads))
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

#include "entry.h"
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
EXPORT(float, float, f32)
EXPORT(float, Half, bf16)
EXPORT(double, double, f64)
EXPORT_NODE(float, f32)
EXPORT_NODE(double, f64)
EXPORT_ENTRY(float, f32)
EXPORT_ENTRY(double, f64)
EXPORT_PARTIAL(float, float, f32)
EXPORT_PARTIAL(float, Half, bf16)
EXPORT_PARTIAL(double, double, f64)

#include "second.h"  // the second derivative, in terms of the structures above
