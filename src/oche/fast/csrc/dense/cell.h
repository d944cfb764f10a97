// A cell of dense convolutions, average pools and skips: its data, and the forward pass.

#pragma once

#include <cmath>
#include <cstring>
#include <vector>
#include "../past.h"
#include "../pieces.h"
#include "image.h"
#include "winograd.h"

namespace {

enum Kind : int64_t { WIDE, POINT, SKIP, POOL };  // 3x3 and 1x1 convolution, identity, 3x3 average

struct Unit {  // one candidate of one edge
    int64_t kind, src, dst, weight;  // weight: position in the flattened op weights
    int64_t conv, term;              // number of the convolution and its batch norm; offset of T in the saved buffer, -1: computed anew
};

struct Plan {
    int64_t n, height, width, lanes, channels, fold, inputs, nodes, units, convs, group, threads;
    double eps;
};

template <class T> struct Filter {  // a weight (out, in, k, k) where it lies, strides in elements
    T* at;
    int64_t out, in, y, x;
};

template <class T> struct Dense {
    const Plan& p;
    const Unit* units;
    const T* const* input;         // `inputs` pointers (n, height, width, lanes)
    const double* w;
    const Filter<const T>* filter;  // by convolution
    const T *gamma, *beta;         // (convs, channels), null where not affine
    T *saved, *out;                // nodes but the last, then the kept T; the last node
    double *mean, *rstd;           // (convs, lanes)

    const int c;
    const int64_t plane;  // elements of an image
    const Tiles tiles;
    const int64_t groups;
    Buffer<T> u;                    // the present state's 3x3 weights, transformed
    std::vector<Buffer<T>> matrix;  // by convolution: 1x1 weights in blocks
    Buffer<T> slope, level, tilt;   // (units, lanes): a node adds slope T + level; backward, dT = slope G + level + tilt T

    Dense(const Plan& plan, const int64_t* table)
        : p(plan), units(reinterpret_cast<const Unit*>(table)), c(int(plan.lanes)), plane(plan.height * plan.width * plan.lanes),
          tiles{int(plan.height), int(plan.width), int(plan.lanes)}, groups((plan.n + plan.group - 1) / plan.group),
          matrix(plan.convs), slope(plan.units * plan.lanes), level(slope.size()), tilt(slope.size()) {}

    int states() const { return int(p.inputs + p.nodes); }
    int64_t pixels() const { return p.height * p.width; }
    int64_t begin(int64_t group) const { return group * p.group; }
    int64_t size(int64_t group) const { return std::min(p.group, p.n - begin(group)); }
    const T* state(int j, int64_t n) const { return (j < p.inputs ? input[j] : node(j)) + n * plane; }
    T* node(int j) const { return j + 1 == states() ? out : saved + (j - p.inputs) * p.n * plane; }
    double scale(int64_t conv, int ch) const { return gamma ? double(gamma[conv * p.channels + ch]) : 1.0; }
    double shift(int64_t conv, int ch) const { return beta ? double(beta[conv * p.channels + ch]) : 0.0; }
    double count() const { return double(p.n) * p.fold * p.height * p.width; }

    std::vector<int> from(int j, int64_t kind) const {
        std::vector<int> found;
        for (int i = 0; i < p.units; ++i)
            if (units[i].src == j && units[i].kind == kind) found.push_back(i);
        return found;
    }

    // scratch of a thread: `size` elements of any content, kept for the next call
    static T* scratch(size_t size) {
        static thread_local Buffer<T> mine;
        if (mine.size() < size) mine.assign(size, T(0));
        return mine.data();
    }
    size_t padded() const { return size_t(p.group) * tiles.image(); }

    // max(h, 0) of a group of images into padded tiles
    void pad(int j, int64_t g, T* to) const {
        const V<T> zero = {};
        std::memset(to, 0, padded() * sizeof(T));
        const int64_t width = p.width * c;
        for (int64_t i = 0; i < size(g); ++i) {
            const T* h = state(j, begin(g) + i);
            for (int64_t y = 0; y < p.height; ++y) {
                T* row = to + i * tiles.image() + (y + 1) * tiles.row() + c;
                for (int64_t x = 0; x < width; x += Vector<T>::width) {
                    const V<T> v = load(h + y * width + x);
                    at(row + x) = v > zero ? v : zero;
                }
            }
        }
    }
    // max(h, 0) of an image in blocks (c / 16, pixels, 16)
    void rectify(const T* h, T* to) const {
        const V<T> zero = {};
        const int64_t n = pixels(), lanes = c;
        for (int64_t l = 0; l < lanes; l += Vector<T>::width) {
            T* block = to + column(int(l), n * BLOCK);
            for (int64_t x = 0; x < n; ++x) {
                const V<T> v = load(h + x * lanes + l);
                at(block + x * BLOCK) = v > zero ? v : zero;
            }
        }
    }
    // T of a convolution's image: kept, or (1x1) computed anew from the rectified source
    const T* term(const Unit& x, int64_t n, const T* rectified, T* to) const {
        if (x.term >= 0) return saved + x.term + n * plane;
        pointwise(rectified, int(pixels()), c / BLOCK, matrix[x.conv].data(), c, to, false, static_cast<T*>(nullptr));
        return to;
    }

    // f(piece) for each of `count` pieces
    template <class F> void parallel(int64_t count, F f) {
        Pieces pieces(p.threads, count);
#pragma omp parallel num_threads(int(p.threads))
        for (int64_t piece; pieces.take(piece);) f(piece);
    }

    // weight of a 1x1 convolution in blocks of columns (c / 16, c, 16); turned: out and in exchanged
    void load_matrix(int64_t conv, bool turned, Buffer<T>& to) const {
        to.assign(size_t(c) * c, T(0));
        const Filter<const T>& f = filter[conv];
        for (int64_t s = 0; s < p.fold; ++s)
            for (int64_t i = 0; i < p.channels; ++i)
                for (int64_t o = 0; o < p.channels; ++o) {
                    const int64_t row = s * p.channels + (turned ? o : i), col = s * p.channels + (turned ? i : o);
                    to[col / BLOCK * c * BLOCK + row * BLOCK + col % BLOCK] = f.at[o * f.out + i * f.in];
                }
    }
    // transformed weights of the 3x3 convolutions `mine` in blocks of columns: forward (columns: all outputs side by side) or
    // backward (rows: all outputs one after the other, taps flipped)
    void load_wide(const std::vector<int>& mine, bool back) {
        const int64_t e = mine.size(), rows = back ? e * c : c, step = 16 * rows * BLOCK;
        u.assign(size_t(16) * e * c * c, T(0));
#pragma omp parallel for schedule(dynamic, 4) num_threads(int(p.threads))
        for (int64_t k = 0; k < e * p.channels; ++k) {
            const Filter<const T>& f = filter[units[mine[k / p.channels]].conv];
            const int64_t o = k % p.channels;
            for (int64_t i = 0; i < p.channels; ++i) {
                T g[9], t[16];
                for (int y = 0; y < 3; ++y)
                    for (int x = 0; x < 3; ++x)
                        g[3 * y + x] = f.at[o * f.out + i * f.in + (back ? 2 - y : y) * f.y + (back ? 2 - x : x) * f.x];
                transform_weight(g, t);
                for (int64_t s = 0; s < p.fold; ++s) {
                    const int64_t outer = k / p.channels * c + s * p.channels + o, inner = s * p.channels + i;
                    const int64_t row = back ? outer : inner, col = back ? inner : outer;
                    T* to = u.data() + col / BLOCK * step + row * BLOCK + col % BLOCK;
                    for (int q = 0; q < 16; ++q) to[q * rows * BLOCK] = t[q];
                }
            }
        }
    }

    // ---------------------------------------------------------------- forward

    void run_forward() {
        for (int i = 0; i < p.units; ++i)
            if (units[i].kind == POINT) load_matrix(units[i].conv, false, matrix[units[i].conv]);
        for (int j = 0; j < states(); ++j) {
            const std::vector<int> wide = from(j, WIDE), point = from(j, POINT);
            if (!wide.empty()) load_wide(wide, false);
            const int64_t convs = wide.size() + point.size();
            Buffer<T> sums(groups * convs * 2 * c, T(0));
            parallel(groups, [&](int64_t g) {
                if (j >= p.inputs)
                    for (int64_t n = begin(g); n < begin(g) + size(g); ++n) gather(j, n);
                T* s = sums.data() + g * convs * 2 * c;
                if (!wide.empty()) convolve(j, g, wide, s);
                if (!point.empty()) mix(j, g, point, s + wide.size() * 2 * c);
            });
            int64_t k = 0;
            for (int i : wide) statistics(i, sums.data() + k++ * 2 * c, convs);
            for (int i : point) statistics(i, sums.data() + k++ * 2 * c, convs);
        }
    }

    // h_j of an image from all that leads into it
    void gather(int j, int64_t n) {
        T* to = node(j) + n * plane;
        std::vector<const T*> x;
        Buffer<T> a, b(c, T(0));
        int64_t again = 0;
        for (int i = 0; i < p.units; ++i) again += units[i].dst == j && units[i].kind == POINT && units[i].term < 0;
        T *rectified = scratch((2 + again) * plane), *made = rectified + plane;
        bool pools = false;
        int source = -1;
        for (int i = 0; i < p.units; ++i) {
            const Unit& q = units[i];
            if (q.dst != j || q.kind == POOL) {
                pools |= q.dst == j && q.kind == POOL;
                continue;
            }
            if (q.kind == SKIP) {
                x.push_back(state(int(q.src), n)), a.insert(a.end(), c, T(w[q.weight]));
                continue;
            }
            if (q.term < 0 && source != q.src) rectify(state(int(q.src), n), rectified), source = int(q.src);
            x.push_back(term(q, n, rectified, made));
            made += q.term < 0 ? plane : 0;
            for (int l = 0; l < c; ++l) a.push_back(slope[i * c + l]), b[l] += level[i * c + l];
        }
        sum(x, a.data(), b.data(), pixels(), c, to, false);
        if (!pools) return;
        x.clear(), a.clear();
        for (int i = 0; i < p.units; ++i)
            if (units[i].dst == j && units[i].kind == POOL)
                x.push_back(state(int(units[i].src), n)), a.insert(a.end(), c, T(w[units[i].weight]));
        sum(x, a.data(), static_cast<const T*>(nullptr), pixels(), c, rectified, false);
        average<T, false>(int(p.height), int(p.width), c, rectified, to, made);
    }

    void convolve(int j, int64_t g, const std::vector<int>& wide, T* sums) {
        const int total = int(size(g)) * tiles.count();
        const int64_t step = int64_t(16) * c * BLOCK, many = int64_t(16) * TILES;
        T *tile = scratch(padded() + many * c + many * 2 * Vector<T>::width), *v = tile + padded(), *m = v + many * c;
        pad(j, g, tile);
        const bool past = past_caches(saved, p.n * plane);
        for (int first = 0; first < total; first += TILES) {
            const Spots spots(tiles, first, total);
            transform_input(tiles, tile, first, spots.n, TILES, 0, c / BLOCK, v);
            by_columns<T>(int(wide.size()) * c, [&](auto count, int l) {
                constexpr int NB = decltype(count)::value;
                T *y[NB], *s[NB];
                for (int b = 0; b < NB; ++b) {
                    const int k = (l + b * Vector<T>::width) / c, lane = (l + b * Vector<T>::width) % c;
                    y[b] = saved + units[wide[k]].term + begin(g) * plane + lane, s[b] = sums + k * 2 * c + lane;
                }
                transform_output<T, NB, false>(tiles, spots, v, c / BLOCK, u.data() + column(l, step), step, m, y, s, past);
            });
        }
    }

    void mix(int j, int64_t g, const std::vector<int>& point, T* sums) {
        T *rectified = scratch(2 * plane), *made = rectified + plane;
        for (int64_t n = begin(g); n < begin(g) + size(g); ++n) {
            rectify(state(j, n), rectified);
            for (size_t k = 0; k < point.size(); ++k) {
                const Unit& q = units[point[k]];
                T* to = q.term < 0 ? made : saved + q.term + n * plane;
                pointwise(rectified, int(pixels()), c / BLOCK, matrix[q.conv].data(), c, to, false, sums + k * 2 * c);
            }
        }
    }

    // mean and 1/deviation of a convolution, and what its T is multiplied by
    void statistics(int i, const T* sums, int64_t convs) {
        const Unit& q = units[i];
        for (int ch = 0; ch < p.channels; ++ch) {
            double s1 = 0, s2 = 0;
            for (int64_t g = 0; g < groups; ++g)
                for (int64_t f = 0; f < p.fold; ++f) {
                    const T* at_ = sums + g * convs * 2 * c + f * p.channels + ch;
                    s1 += at_[0], s2 += at_[c];
                }
            const double m = s1 / count(), r = 1.0 / std::sqrt(std::max(0.0, s2 / count() - m * m) + p.eps);
            const double a = w[q.weight] * scale(q.conv, ch) * r, b = w[q.weight] * shift(q.conv, ch) - a * m;
            for (int64_t f = 0; f < p.fold; ++f) {
                const int64_t l = f * p.channels + ch;
                mean[q.conv * c + l] = m, rstd[q.conv * c + l] = r;
                slope[i * c + l] = T(a), level[i * c + l] = T(b);
            }
        }
    }
};

}  // namespace
