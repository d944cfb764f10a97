// What all images of a stage with a dense convolution share: the weights as they are multiplied, and where images lie in padded tiles.
//
// 3x3 convolutions with stride 1 are Winograd's (`../dense/winograd.h`) where channels fill enough of its blocks of 16 lanes and an image has
// enough tiles; others are products of rows (`runs.h`).

#pragma once

#include "../dense/winograd.h"
#include "moments.h"
#include "runs.h"
#include "stage.h"

namespace {

inline int64_t blocks_of(int64_t c) { return (c + BLOCK - 1) / BLOCK; }

// Winograd's products take 16 / 36 of the others' on lanes that are rounded up, and its transforms some time
inline bool by_winograd(const Stage& s) {
    const int64_t padded = blocks_of(s.ci) * blocks_of(s.co) * BLOCK * BLOCK;
    return s.k == 3 && s.stride == 1 && s.dilation == 1 && s.height * s.width >= 36 && padded * 2 <= s.ci * s.co * 3;
}

constexpr int GROUP = 64;  // tiles of small images that are taken together

template <class T> struct Wide {
    const Stage& given;
    const Shape<T> input;  // the activation of the input
    const bool winograd;
    const int64_t pad, ho, wo;
    const int64_t group;       // images that are taken together
    const int64_t from, into;  // numbers of a pixel in tiles of x and of dy: channels, for Winograd rounded up to blocks
    const Tiles x_tiles, y_tiles;
    int64_t x_row, dy_row, above, dy_rows;  // numbers of a row in tiles, rows (and pixels) before the first of dy, rows in all
    Runs forth;                     // what a pixel reads of x
    std::vector<Runs> back;         // what the transpose reads of dy, by a row's phase and a pixel's
    Buffer<T> matrix, turned;       // (k k ci, whole(co)); (k k co, whole(ci)) with the last tap first; Winograd: transformed, in blocks

    static Stage alone(Stage s) {
        s.k = 0, s.point = 0, s.co = s.ci, s.stride = 1;
        return s;
    }

    Wide(const Stage& s, const T* a, const T* b, const T* weight, bool backward)
        : given(s), input(alone(s), a, b, nullptr, nullptr), winograd(by_winograd(s)), pad(s.dilation * (s.k - 1) / 2),
          ho((s.height + s.stride - 1) / s.stride), wo((s.width + s.stride - 1) / s.stride),
          group(winograd ? std::max<int64_t>(1, GROUP / (((s.height + 1) / 2) * ((s.width + 1) / 2))) : 1),
          from(winograd ? blocks_of(s.ci) * BLOCK : s.ci), into(winograd ? blocks_of(s.co) * BLOCK : s.co),
          x_tiles{int(s.height), int(s.width), int(from)}, y_tiles{int(s.height), int(s.width), int(into)} {
        if (winograd) {
            x_row = x_tiles.row(), dy_row = y_tiles.row(), above = 1;
            transform(weight, backward);
            return;
        }
        x_row = (s.width + 2 * pad) * s.ci;
        above = (s.k - 1) * s.dilation / s.stride;
        dy_rows = above + std::max(ho, (s.height - 1 + pad) / s.stride + 1);
        dy_row = (above + std::max(wo, (s.width - 1 + pad) / s.stride + 1)) * s.co;
        for (int64_t t = 0; t < s.k * s.k; ++t) forth.add(t / s.k * s.dilation * x_row + t % s.k * s.dilation * s.ci, t * s.ci, s.ci);
        if (!backward) {
            spread_matrix(weight);
            return;
        }
        back.resize(s.stride * s.stride);
        for (int64_t t = s.k * s.k - 1, row = 0; t >= 0; --t, row += s.co) {
            const int64_t y = t / s.k * s.dilation, x = t % s.k * s.dilation;
            back[y % s.stride * s.stride + x % s.stride].add(-(y / s.stride * dy_row + x / s.stride * s.co), row, s.co);
        }
        turn_matrix(weight);
    }

    int64_t images() const { return (given.n + group - 1) / group; }  // groups of them
    int64_t x_tile() const { return (winograd ? group * x_tiles.image() : (given.height + 2 * pad) * x_row) + WIDTH<T>; }
    int64_t dy_tile() const { return (winograd ? group * y_tiles.image() : dy_rows * dy_row) + WIDTH<T>; }
    // where row r of an image of the group begins in a tile of x, of dy
    T* x_at(T* tile, int64_t image, int64_t r) const { return tile + image * x_tiles.image() * winograd + (r + pad) * x_row + pad * from; }
    T* dy_at(T* tile, int64_t image, int64_t r) const { return tile + image * y_tiles.image() * winograd + (r + above) * dy_row + above * into; }

private:
    void spread_matrix(const T* w) {
        const int64_t rows = given.k * given.k * given.ci, ld = whole<T>(given.co);
        matrix.assign(rows * ld, T(0));
        for (int64_t i = 0; i < rows; ++i) std::copy_n(w + i * given.co, given.co, matrix.data() + i * ld);
    }
    void turn_matrix(const T* w) {
        const int64_t taps = given.k * given.k, ld = whole<T>(given.ci);
        turned.assign(taps * given.co * ld, T(0));
        for (int64_t t = 0; t < taps; ++t)
            for (int64_t i = 0; i < given.ci; ++i)
                for (int64_t o = 0; o < given.co; ++o) turned[((taps - 1 - t) * given.co + o) * ld + i] = w[(t * given.ci + i) * given.co + o];
    }
    // forward: rows are what is read, columns what is written; backward the reverse, with taps flipped
    void transform(const T* w, bool backward) {
        const int64_t rows = backward ? into : from, step = 16 * rows * BLOCK, tap = given.ci * given.co;
        Buffer<T>& to = backward ? turned : matrix;
        to.assign(16 * from * into, T(0));
        for (int64_t i = 0; i < given.ci; ++i)
            for (int64_t o = 0; o < given.co; ++o) {
                T g[9], t[16];
                for (int y = 0; y < 9; ++y) g[y] = w[(backward ? 8 - y : y) * tap + i * given.co + o];
                transform_weight(g, t);
                const int64_t row = backward ? o : i, col = backward ? i : o;
                T* u = to.data() + col / BLOCK * step + row * BLOCK + col % BLOCK;
                for (int q = 0; q < 16; ++q) u[q * rows * BLOCK] = t[q];
            }
    }
};

// out (images, height, width, to.lanes) = Winograd's convolution of a padded tile of `total` tiles; v: 16 TILES (from's lanes + 2 vectors)
template <class T>
void winograd_run(const Tiles from, const Tiles to, const T* tile, int total, const T* u, T* v, T* sums, T* out) {
    const int64_t step = int64_t(16) * from.lanes * BLOCK;
    T* products = v + int64_t(16) * TILES * from.lanes;
    for (int first = 0; first < total; first += TILES) {
        const Spots spots(to, first, total);
        transform_input(from, tile, first, spots.n, TILES, 0, from.lanes / BLOCK, v);
        by_columns<T>(to.lanes, [&](auto count, int l) {
            constexpr int NB = decltype(count)::value;
            T *y[NB], *s[NB];
            for (int b = 0; b < NB; ++b) y[b] = out + l + b * Vector<T>::width, s[b] = sums + l + b * Vector<T>::width;
            transform_output<T, NB, false>(to, spots, v, from.lanes / BLOCK, u + column(l, step), step, products, y, s);
        });
    }
}

}  // namespace
