// The forward pass of a cell of separable convolutions, pools and skips.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>
#include "pixels.h"
#include "pooling.h"

namespace {

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
#pragma omp parallel for schedule(dynamic) num_threads(nt)
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

}  // namespace
