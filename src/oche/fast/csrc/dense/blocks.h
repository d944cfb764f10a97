// Products of matrices whose operands lie in blocks of 16 lanes, so that every address within a product is a constant.

#pragma once

#include <cstdint>
#include <type_traits>
#include "../lanes.h"

namespace {

constexpr int BLOCK = 16;   // lanes of a block

// y (X rows) = or += a (X, 16 blocks) b; a's blocks `astep` apart, b (16 blocks, 16) at columns NB vectors apart by `bstep`
template <class T, int NB, int X>
INLINE void product_some(const T* a, int blocks, int64_t astep, const T* b, int64_t bstep, T* y, int64_t ystep, int64_t yblock, bool add,
                         V<T>* sums) {
    V<T> acc[X][NB];
#pragma GCC unroll 16
    for (int x = 0; x < X; ++x)
#pragma GCC unroll 2
        for (int c = 0; c < NB; ++c) acc[x][c] = add ? at(y + x * ystep + c * yblock) : V<T>{};
    for (int k = 0; k < blocks; ++k) {
        const T *p = a + k * astep, *q = b + int64_t(k) * BLOCK * BLOCK;
        for (int i = 0; i < BLOCK; ++i) {
            V<T> f[NB];
#pragma GCC unroll 2
            for (int c = 0; c < NB; ++c) f[c] = at(q + i * BLOCK + c * bstep);
#pragma GCC unroll 16
            for (int x = 0; x < X; ++x)
#pragma GCC unroll 2
                for (int c = 0; c < NB; ++c) acc[x][c] += p[x * BLOCK + i] * f[c];
        }
    }
#pragma GCC unroll 16
    for (int x = 0; x < X; ++x)
#pragma GCC unroll 2
        for (int c = 0; c < NB; ++c) {
            at(y + x * ystep + c * yblock) = acc[x][c];
            if (sums) sums[2 * c] += acc[x][c], sums[2 * c + 1] += acc[x][c] * acc[x][c];
        }
}

template <class T, int NB> constexpr int rows_at_once() { return VECTOR_BYTES == 64 ? 16 / NB : 8 / NB; }

// distance of two neighbouring vectors of columns: in one block, or one block apart
template <class T> INLINE int64_t apart(int64_t step) { return Vector<T>::width < BLOCK ? Vector<T>::width : step; }

// columns of lane l in an array of blocks that lie `step` apart
INLINE int64_t column(int l, int64_t step) { return l / BLOCK * step + l % BLOCK; }

// f(std::integral_constant vectors, first lane) over all lanes, two vectors at a time
template <class T, class F> INLINE void by_columns(int lanes, F f) {
    constexpr int W = Vector<T>::width;
    int l = 0;
    for (; l + 2 * W <= lanes; l += 2 * W) f(std::integral_constant<int, 2>{}, l);
    for (; l < lanes; l += W) f(std::integral_constant<int, 1>{}, l);
}

// y (rows, lanes) = or += a m: a in blocks (blocks, rows, 16), m in blocks of columns (lanes / 16, 16 blocks, 16); sums (2, lanes)
template <class T>
void pointwise(const T* a, int rows, int blocks, const T* m, int lanes, T* y, bool add, T* sums) {
    const int64_t astep = int64_t(rows) * BLOCK, mstep = int64_t(blocks) * BLOCK * BLOCK;
    by_columns<T>(lanes, [&](auto count, int l) {
        constexpr int NB = decltype(count)::value, W = Vector<T>::width, X = rows_at_once<T, NB>();
        V<T> s[2 * NB] = {};
        const T* q = m + column(l, mstep);
        int x = 0;
        for (; x + X <= rows; x += X)
            product_some<T, NB, X>(a + x * BLOCK, blocks, astep, q, apart<T>(mstep), y + int64_t(x) * lanes + l, lanes, W, add, sums ? s : nullptr);
        for (; x < rows; ++x)
            product_some<T, NB, 1>(a + x * BLOCK, blocks, astep, q, apart<T>(mstep), y + int64_t(x) * lanes + l, lanes, W, add, sums ? s : nullptr);
        if (sums)
            for (int c = 0; c < NB; ++c) at(sums + l + c * W) += s[2 * c], at(sums + lanes + l + c * W) += s[2 * c + 1];
    });
}

// d (blocks 16, lanes) += a' g over rows; a (blocks, rows, 16) and g (lanes / 16, rows, 16), their blocks `step` apart
template <class T>
void outer(const T* a, const T* g, int rows, int64_t step, int blocks, int lanes, T* d) {
    by_columns<T>(lanes, [&](auto count, int l) {
        constexpr int NB = decltype(count)::value, W = Vector<T>::width, I = rows_at_once<T, NB>();
        const T* q = g + column(l, step);
        for (int k = 0; k < blocks; ++k)
            for (int i = 0; i < BLOCK; i += I) {
                V<T> acc[I][NB] = {};
                const T* p = a + k * step + i;
                for (int x = 0; x < rows; ++x) {
                    V<T> f[NB];
#pragma GCC unroll 2
                    for (int c = 0; c < NB; ++c) f[c] = at(q + x * BLOCK + c * apart<T>(step));
#pragma GCC unroll 16
                    for (int j = 0; j < I; ++j)
#pragma GCC unroll 2
                        for (int c = 0; c < NB; ++c) acc[j][c] += p[x * BLOCK + j] * f[c];
                }
#pragma GCC unroll 16
                for (int j = 0; j < I; ++j)
#pragma GCC unroll 2
                    for (int c = 0; c < NB; ++c) at(d + (int64_t(k) * BLOCK + i + j) * lanes + l + c * W) += acc[j][c];
            }
    });
}

}  // namespace
