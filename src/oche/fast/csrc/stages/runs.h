// Dense convolutions of any kernel, stride and dilation as products of rows: what a pixel reads of a padded tile are a few runs of numbers.

#pragma once

#include <type_traits>
#include <vector>
#include "../flat.h"

namespace {

struct Run {  // `length` numbers of a tile from `at` on, counted from where the pixel begins, times the matrix's rows from `row` on
    int64_t at, row, length;
};

struct Runs : std::vector<Run> {
    void add(int64_t at, int64_t row, int64_t length) {
        if (!empty() && back().at + back().length == at && back().row + back().length == row) back().length += length;
        else push_back({at, row, length});
    }
};

template <class T, int B, int X>
INLINE void runs_some(const T* from, int64_t step, const Runs& runs, const T* matrix, int64_t ld, T* y, int64_t co, int last) {
    constexpr int W = WIDTH<T>;
    V<T> acc[X][B];
#pragma GCC unroll 16
    for (int x = 0; x < X; ++x)
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) acc[x][b] = V<T>{};
    for (const Run& run : runs) {
        const T *p = matrix + run.row * ld, *fours[(X + 3) / 4];  // pixels by fours, so that few addresses are needed
#pragma GCC unroll 4
        for (int x = 0; x < X; x += 4) fours[x / 4] = from + run.at + x * step;
        for (int64_t i = 0; i < run.length; ++i, p += ld) {
            V<T> q[B];
#pragma GCC unroll 4
            for (int b = 0; b < B; ++b) q[b] = at(p + b * W);
#pragma GCC unroll 16
            for (int x = 0; x < X; ++x)
#pragma GCC unroll 4
                for (int b = 0; b < B; ++b) acc[x][b] += fours[x / 4][x % 4 * step + i] * q[b];
        }
    }
#pragma GCC unroll 16
    for (int x = 0; x < X; ++x)
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) store_some(y + x * co + b * W, acc[x][b], b == B - 1 ? last : W);
}

// y (n, co) = what n pixels `step` apart read, times the matrix (rows, whole(co)), which is zero behind its columns
template <class T> void runs_row(const T* from, int64_t step, const Runs& runs, const T* matrix, int64_t n, int64_t co, T* y) {
    const int64_t ld = whole<T>(co);
    in_blocks<T>(co, [&](int64_t b, auto size, int last) {
        constexpr int B = size(), X = VECTOR_BYTES == 64 ? (B == 1 ? 16 : 8) : (B == 1 ? 8 : 4);
        int64_t x = 0;
        for (; x + X <= n; x += X) runs_some<T, B, X>(from + x * step, step, runs, matrix + b, ld, y + x * co + b, co, last);
        for (; x + 4 <= n; x += 4) runs_some<T, B, 4>(from + x * step, step, runs, matrix + b, ld, y + x * co + b, co, last);
        for (; x < n; ++x) runs_some<T, B, 1>(from + x * step, step, runs, matrix + b, ld, y + x * co + b, co, last);
    });
}

template <class T, int B, int I>
INLINE void runs_gradient_some(const T* from, int64_t down, int64_t step, const T* dy, int64_t dy_down, int64_t rows, int64_t n, int64_t co, T* to, int64_t ld) {
    constexpr int W = WIDTH<T>;
    V<T> acc[I][B];
#pragma GCC unroll 16
    for (int i = 0; i < I; ++i)
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) acc[i][b] = V<T>{};
    for (int64_t y = 0; y < rows; ++y) {
        const T *z = from + y * down, *g = dy + y * dy_down;
        for (int64_t x = 0; x < n; ++x, z += step, g += co) {
            V<T> q[B];
#pragma GCC unroll 4
            for (int b = 0; b < B; ++b) q[b] = at(g + b * W);
#pragma GCC unroll 16
            for (int i = 0; i < I; ++i)
#pragma GCC unroll 4
                for (int b = 0; b < B; ++b) acc[i][b] += z[i] * q[b];
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < I; ++i)
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) at(to + i * ld + b * W) += acc[i][b];
}

// dmatrix (rows, whole(co)) += by runs, what pixels read times dy: `rows` rows of n pixels, `down` apart in the tile and `dy_down` in dy;
// behind dmatrix's columns anything; a vector is read behind dy
template <class T>
void runs_gradient(const T* from, int64_t down, int64_t step, const Runs& runs, const T* dy, int64_t dy_down, int64_t rows, int64_t n, int64_t co, T* dmatrix) {
    const int64_t ld = whole<T>(co);
    in_blocks<T>(co, [&](int64_t b, auto size, int) {
        constexpr int B = size(), I = VECTOR_BYTES == 64 ? (B == 1 ? 16 : 8) : (B == 1 ? 8 : 4);
        for (const Run& run : runs) {
            T* to = dmatrix + run.row * ld + b;
            const T* z = from + run.at;
            int64_t i = 0;
            for (; i + I <= run.length; i += I) runs_gradient_some<T, B, I>(z + i, down, step, dy + b, dy_down, rows, n, co, to + i * ld, ld);
            for (; i + 4 <= run.length; i += 4) runs_gradient_some<T, B, 4>(z + i, down, step, dy + b, dy_down, rows, n, co, to + i * ld, ld);
            for (; i < run.length; ++i) runs_gradient_some<T, B, 1>(z + i, down, step, dy + b, dy_down, rows, n, co, to + i * ld, ld);
        }
    });
}

}  // namespace
