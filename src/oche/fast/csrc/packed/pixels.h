// What happens to the pixels of one image: ReLU into a padded tile, depthwise and 1x1 convolutions and their gradients.
//
// Tiles and rows stay in cache. The usual shapes are compiled in, by `BY_LANES` and `BY_SHAPE`.

#pragma once

#include <cstring>
#include "../lanes.h"
#include "plan.h"

namespace {

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

}  // namespace
