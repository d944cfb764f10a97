// Winograd's F(2x2, 3x3) (Lavin & Gray, CVPR 2016): 2.25 times fewer products than a 3x3 convolution. With Y = A'[(G g G') * (B' d B)]A
// the input's transform serves all out-edges of a state, the output's transform all in-edges of its gradient.

#pragma once

#include <algorithm>
#include "blocks.h"

namespace {

constexpr int TILES = 16;   // tiles of 2x2 pixels whose products are taken together
constexpr int BATCH = 32;   // the same for weight gradients, where the sums are the large operand

struct Tiles {  // 2x2 tiles of images that lie padded by one pixel, and by one more where a side is odd
    int height, width, lanes;
    int down() const { return (height + 1) / 2; }
    int across() const { return (width + 1) / 2; }
    int count() const { return down() * across(); }
    int64_t row() const { return int64_t(2 * across() + 2) * lanes; }
    int64_t image() const { return (2 * down() + 2) * row(); }
    // where tile t's 4x4 patch begins
    int64_t patch(int t) const {
        const int in = t % count();
        return t / count() * image() + 2 * (in / across()) * row() + 2 * (in % across()) * lanes;
    }
};

struct Spots {  // where the tiles of a block lie in images without padding, and whether their second row and column are inside
    int64_t at[TILES];
    bool below[TILES], beside[TILES];
    int n;

    Spots(const Tiles& s, int first, int total) : n(std::min(TILES, total - first)) {
        for (int t = 0; t < n; ++t) {
            const int in = (first + t) % s.count(), image = (first + t) / s.count(), y = in / s.across() * 2, x = in % s.across() * 2;
            at[t] = ((int64_t(image) * s.height + y) * s.width + x) * s.lanes;
            below[t] = y + 1 < s.height, beside[t] = x + 1 < s.width;
        }
    }
};

// (rows of B') d: one dimension of the input's transform
template <class U> INLINE void spread(const U& a, const U& b, const U& c, const U& d, U* to, int step) {
    to[0] = a - c, to[step] = b + c, to[2 * step] = c - b, to[3 * step] = b - d;
}

// v (16, blocks, size, 16) = B' d B for `n` tiles from `first` on; `block`, `blocks`: where in v these lanes stand
template <class T>
void transform_input(const Tiles s, const T* padded, int first, int n, int size, int block, int blocks, T* v) {
    const int64_t step = int64_t(blocks) * size * BLOCK, row = s.row(), lanes = s.lanes;  // by value: a store may alias all else
    for (int t = 0; t < n; ++t) {
        const T* from = padded + s.patch(first + t);
        for (int l = 0; l < lanes; l += Vector<T>::width) {
            V<T> half[16], whole[16];
#pragma GCC unroll 4
            for (int x = 0; x < 4; ++x) {
                const T* p = from + x * lanes + l;
                spread<V<T>>(at(p), at(p + row), at(p + 2 * row), at(p + 3 * row), half + x, 4);
            }
#pragma GCC unroll 4
            for (int y = 0; y < 4; ++y) spread<V<T>>(half[4 * y], half[4 * y + 1], half[4 * y + 2], half[4 * y + 3], whole + 4 * y, 1);
            T* to = v + (int64_t(block) * size + t) * BLOCK + column(l, int64_t(size) * BLOCK);
#pragma GCC unroll 16
            for (int f = 0; f < 16; ++f) at(to + f * step) = whole[f];
        }
    }
    for (int t = n; t < size; ++t)
        for (int f = 0; f < 16; ++f)
            for (int l = 0; l < s.lanes; l += Vector<T>::width)
                at(v + f * step + (int64_t(block) * size + t) * BLOCK + column(l, int64_t(size) * BLOCK)) = V<T>{};
}

// z (16, lanes / 16, size, 16) = A dY A'
template <class T>
void transform_gradient(const Tiles s, const T* padded, int first, int n, int size, T* z) {
    const int64_t step = int64_t(s.lanes) * size, row = s.row(), lanes = s.lanes;
    for (int t = 0; t < n; ++t) {
        const T* from = padded + s.patch(first + t) + row + lanes;
        for (int l = 0; l < lanes; l += Vector<T>::width) {
            const V<T> a = at(from + l), b = at(from + lanes + l), c = at(from + row + l), d = at(from + row + lanes + l);
            const V<T> left[4] = {a, a + c, a - c, -c}, right[4] = {b, b + d, b - d, -d};
            T* to = z + int64_t(t) * BLOCK + column(l, int64_t(size) * BLOCK);
#pragma GCC unroll 4
            for (int y = 0; y < 4; ++y) {
                at(to + (4 * y) * step) = left[y], at(to + (4 * y + 1) * step) = left[y] + right[y];
                at(to + (4 * y + 2) * step) = left[y] - right[y], at(to + (4 * y + 3) * step) = -right[y];
            }
        }
    }
    for (int t = n; t < size; ++t)
        for (int f = 0; f < 16; ++f)
            for (int l = 0; l < s.lanes; l += Vector<T>::width)
                at(z + f * step + int64_t(t) * BLOCK + column(l, int64_t(size) * BLOCK)) = V<T>{};
}

// A' [v u] A for a block of tiles and NB vectors of columns: to y_c with sums s_c (2, lanes), past the caches if asked, or added to y_c
// without; m: scratch
template <class T, int NB, bool ADD>
void transform_output(const Tiles s, const Spots& spots, const T* v, int blocks, const T* u, int64_t ustep, T* m, T* const* y, T* const* sums,
                      bool past = false) {
    constexpr int W = Vector<T>::width, X = rows_at_once<T, NB>(), R = 4 * NB * TILES * W;
    const int64_t across = int64_t(TILES) * BLOCK, vstep = blocks * across, size = int64_t(blocks) * BLOCK * BLOCK;
    for (int f = 0; f < 16; ++f)
        for (int x = 0; x < TILES; x += X)
            product_some<T, NB, X>(v + f * vstep + x * BLOCK, blocks, across, u + f * size, apart<T>(ustep), m + (f * NB * TILES + x) * W,
                                   W, TILES * W, false, nullptr);
    const int64_t right = s.lanes, down = int64_t(s.width) * s.lanes;
    for (int c = 0; c < NB; ++c) {
        V<T> s1 = {}, s2 = {};
        for (int t = 0; t < spots.n; ++t) {
            V<T> top[4], bottom[4];
#pragma GCC unroll 4
            for (int x = 0; x < 4; ++x) {
                const T* p = m + ((x * NB + c) * TILES + t) * W;
                const V<T> one = at(p + R), two = at(p + 2 * R);
                top[x] = at(p) + one + two, bottom[x] = one - two - at(p + 3 * R);
            }
            T* to = y[c] + spots.at[t];
            auto put = [&](T* where, V<T> value) {
                if (ADD) value += at(where);
                if (!ADD && past) stream(where, value);
                else at(where) = value;
                if (!ADD) s1 += value, s2 += value * value;
            };
            put(to, top[0] + top[1] + top[2]);
            if (spots.beside[t]) put(to + right, top[1] - top[2] - top[3]);
            if (spots.below[t]) put(to + down, bottom[0] + bottom[1] + bottom[2]);
            if (spots.below[t] && spots.beside[t]) put(to + down + right, bottom[1] - bottom[2] - bottom[3]);
        }
        if (!ADD) at(sums[c]) += s1, at(sums[c] + s.lanes) += s2;
    }
}

// G g G', and back: G' d G
template <class T> void transform_weight(const T g[9], T u[16]) {
    T half[12];
    for (int x = 0; x < 3; ++x) {
        const T a = g[x], b = g[3 + x], c = g[6 + x];
        half[x] = a, half[3 + x] = (a + b + c) / 2, half[6 + x] = (a - b + c) / 2, half[9 + x] = c;
    }
    for (int y = 0; y < 4; ++y) {
        const T a = half[3 * y], b = half[3 * y + 1], c = half[3 * y + 2];
        u[4 * y] = a, u[4 * y + 1] = (a + b + c) / 2, u[4 * y + 2] = (a - b + c) / 2, u[4 * y + 3] = c;
    }
}
template <class T> void transform_back(const T d[16], T g[9]) {
    T half[12];
    for (int x = 0; x < 4; ++x) {
        const T p = (d[4 + x] + d[8 + x]) / 2, q = (d[4 + x] - d[8 + x]) / 2;
        half[x] = d[x] + p, half[4 + x] = q, half[8 + x] = p + d[12 + x];
    }
    for (int y = 0; y < 3; ++y) {
        const T *h = half + 4 * y, p = (h[1] + h[2]) / 2, q = (h[1] - h[2]) / 2;
        g[3 * y] = h[0] + p, g[3 * y + 1] = q, g[3 * y + 2] = p + h[3];
    }
}

}  // namespace
