// The backward pass of a cell of dense convolutions.

#pragma once

#include "cell.h"

namespace {

// gradients of all that a cell was given, states from the last to the first
template <class T> struct DenseBack : Dense<T> {
    using Base = Dense<T>;
    using Base::p; using Base::units; using Base::w; using Base::saved; using Base::mean; using Base::rstd; using Base::c; using Base::plane;
    using Base::tiles; using Base::groups; using Base::u; using Base::matrix; using Base::slope; using Base::level; using Base::tilt;
    using Base::states; using Base::pixels; using Base::begin; using Base::size; using Base::state; using Base::scale; using Base::shift;
    using Base::count; using Base::from; using Base::scratch; using Base::padded; using Base::pad; using Base::rectify; using Base::term;
    using Base::parallel; using Base::load_matrix; using Base::load_wide;
    const T* dout;
    T* const* dinput;              // null where nobody asks
    double* dw;                    // (ops): zeros
    const Filter<T>* dfilter;      // null where no weight learns
    double *dgamma, *dbeta;        // (convs, channels)
    T* work;                       // gradients of the nodes but the last, then the pooled gradients of all

    DenseBack(const Plan& plan, const int64_t* table) : Base(plan, table) {}

    T* gradient(int j) const { return work + (j - p.inputs) * p.n * plane; }
    const T* gradient(int j, int64_t n) const { return (j + 1 == states() ? dout : gradient(j)) + n * plane; }
    T* pooled(int j) const { return work + (p.nodes - 1 + j - p.inputs) * p.n * plane; }
    const T* pivot(const Unit& x, T* to) const {
        for (int l = 0; l < c; ++l) to[l] = T(mean[x.conv * c + l]);
        return to;
    }
    bool reaches(int j, int64_t kind) const {  // whether node j has a candidate of this kind
        for (int i = 0; i < p.units; ++i)
            if (units[i].dst == j && units[i].kind == kind) return true;
        return false;
    }
    // a g + b + e t of an image, by f(y, x, first lane, value); a lane's coefficients stay in registers
    template <class F> INLINE void mapped(int i, const T* g, const T* t, F f) const {
        const int64_t height = p.height, width = p.width, lanes = c;
        for (int64_t l = 0; l < lanes; l += Vector<T>::width) {
            const V<T> a = at(slope.data() + i * lanes + l), b = at(level.data() + i * lanes + l), e = at(tilt.data() + i * lanes + l);
            int64_t k = l;
            for (int64_t y = 0; y < height; ++y)
                for (int64_t x = 0; x < width; ++x, k += lanes) f(y, x, l, a * load(g + k) + b + e * load(t + k));
        }
    }
    // the same into a padded tile whose border is zero
    void pad_map(int i, const T* g, const T* t, T* to) const {
        const int64_t row = tiles.row(), lanes = c;
        mapped(i, g, t, [=](int64_t y, int64_t x, int64_t l, V<T> value) { at(to + (y + 1) * row + (x + 1) * lanes + l) = value; });
    }

    void run_backward() {
        std::vector<Buffer<T>> turned(p.convs);
        for (int i = 0; i < p.units; ++i)
            if (units[i].kind == POINT) load_matrix(units[i].conv, false, matrix[units[i].conv]), load_matrix(units[i].conv, true, turned[units[i].conv]);
        const int64_t width = p.units * 2 * c;
        std::vector<double> each(groups * width, 0.0);
        parallel(groups, [&](int64_t g) {
            T* room = scratch(3 * plane);
            for (int64_t n = begin(g); n < begin(g) + size(g); ++n) measure(states() - 1, n, room, each.data() + g * width);
        });
        for (int j = states() - 2; j >= 0; --j) {
            for (int i = 0; i < p.units; ++i)
                if (units[i].src == j) coefficients(i, each.data() + i * 2 * c);
            const bool wanted = j >= p.inputs || dinput[j];
            if (!wanted && !dfilter) continue;
            const std::vector<int> wide = from(j, WIDE), point = from(j, POINT);
            const int64_t size = (wide.size() * 16 + point.size()) * c * c;
            const Parts parts(groups, p.threads, dfilter);
            std::vector<Buffer<T>> sums(dfilter ? parts.count : 0);
            if (!wide.empty()) load_wide(wide, true);
            parallel(parts.count, [&](int64_t part) {
                if (dfilter) sums[part].assign(size, T(0));
                for (int64_t g = parts.begin(part); g < parts.end(part); ++g)
                    descend(j, g, wide, point, turned, wanted, dfilter ? sums[part].data() : nullptr, each.data() + g * width);
            });
            if (dfilter) store(wide, point, sums);
        }
    }

    // of image n, as soon as node j's gradient of it is complete: the pooled gradient, and sums for every unit into j: (units, 2, c)
    void measure(int j, int64_t n, T* room, double* sums) const {
        T *rectified = room, *made = room + plane, *line = room + 2 * plane;
        if (reaches(j, POOL)) {
            T* to = pooled(j) + n * plane;
            std::memset(to, 0, plane * sizeof(T));
            average<T, true>(int(p.height), int(p.width), c, gradient(j, n), to, line);
        }
        int64_t source = -1;
        for (int i = 0; i < p.units; ++i) {
            const Unit& q = units[i];
            if (q.dst != j) continue;
            if (q.kind == POINT && q.term < 0 && source != q.src) rectify(state(int(q.src), n), rectified), source = q.src;
            if (q.kind == SKIP) dots<T>(gradient(j, n), state(int(q.src), n), nullptr, pixels(), c, sums + i * 2 * c);
            else if (q.kind == POOL) dots<T>(pooled(j) + n * plane, state(int(q.src), n), nullptr, pixels(), c, sums + i * 2 * c);
            else dots<T>(gradient(j, n), term(q, n, rectified, made), pivot(q, line), pixels(), c, sums + i * 2 * c);
        }
    }

    // the sums' meaning: gradients of op weight, scale and shift, and the map dT = a G + b + e T
    void coefficients(int i, const double* parts) {
        const Unit& q = units[i];
        for (int ch = 0; ch < p.channels; ++ch) {
            double r1 = 0, r2 = 0;
            for (int64_t g = 0; g < groups; ++g)
                for (int64_t f = 0; f < p.fold; ++f) {
                    const double* at_ = parts + g * p.units * 2 * c + f * p.channels + ch;
                    r1 += at_[0], r2 += at_[c];
                }
            if (q.conv < 0) {
                dw[q.weight] += r2;
                continue;
            }
            const double m = mean[q.conv * c + ch], r = rstd[q.conv * c + ch], weight = w[q.weight];
            const double s = (r2 - (m - double(T(m))) * r1) * r, a = weight * scale(q.conv, ch) * r;
            dw[q.weight] += scale(q.conv, ch) * s + shift(q.conv, ch) * r1;
            dgamma[q.conv * p.channels + ch] = weight * s, dbeta[q.conv * p.channels + ch] = weight * r1;
            for (int64_t f = 0; f < p.fold; ++f) {
                const int64_t l = i * c + f * p.channels + ch;
                slope[l] = T(a), level[l] = T(-a * (r1 - s * m * r) / count()), tilt[l] = T(-a * s * r / count());
            }
        }
    }

    // dh_j of a group from all that leads out of it, measured into `each`, and the weights' gradients (wide (16, c, c) each, then point (c, c))
    // added to `learn`
    void descend(int j, int64_t g, const std::vector<int>& wide, const std::vector<int>& point, const std::vector<Buffer<T>>& turned,
                 bool wanted, T* learn, double* each) {
        const int e = int(wide.size());
        const int64_t all = p.group * plane, many = int64_t(16) * TILES, batch = int64_t(16) * BATCH;
        const int64_t products = std::max(many * c * std::max(e, 1) + many * 2 * Vector<T>::width, 2 * batch * c);
        T* sums = scratch(all + 3 * plane + (e + 1) * padded() + products);
        T *rectified = sums + all, *made = rectified + plane, *turn = made + plane, *tile = turn + plane, *v = tile + (e + 1) * padded();
        std::memset(sums, 0, all * sizeof(T));
        for (int64_t i = 0; i < size(g) && !point.empty(); ++i) {
            const int64_t n = begin(g) + i;
            rectify(state(j, n), rectified);
            for (size_t k = 0; k < point.size(); ++k) {
                const Unit& q = units[point[k]];
                const T *t = term(q, n, rectified, made), *d = gradient(int(q.dst), n);
                const int64_t width = p.width, step = pixels() * BLOCK;
                mapped(point[k], d, t, [=](int64_t y, int64_t x, int64_t l, V<T> value) {
                    at(turn + (y * width + x) * BLOCK + column(int(l), step)) = value;
                });
                if (wanted) pointwise(turn, int(pixels()), c / BLOCK, turned[q.conv].data(), c, sums + i * plane, true, static_cast<T*>(nullptr));
                if (learn) outer(rectified, turn, int(pixels()), pixels() * BLOCK, c / BLOCK, c, learn + (e * 16 + k) * c * c);
            }
        }
        const int total = int(size(g)) * tiles.count();
        const int64_t step = 16 * int64_t(e) * c * BLOCK;
        if (e) std::memset(tile, 0, e * padded() * sizeof(T));
        for (int k = 0; k < e; ++k)
            for (int64_t i = 0; i < size(g); ++i) {
                const Unit& q = units[wide[k]];
                const int64_t n = begin(g) + i;
                pad_map(wide[k], gradient(int(q.dst), n), saved + q.term + n * plane, tile + k * padded() + i * tiles.image());
            }
        for (int first = 0; first < total && e && wanted; first += TILES) {
            const Spots spots(tiles, first, total);
            for (int k = 0; k < e; ++k) transform_input(tiles, tile + k * padded(), first, spots.n, TILES, k * c / BLOCK, e * c / BLOCK, v);
            by_columns<T>(c, [&](auto count, int l) {
                constexpr int NB = decltype(count)::value;
                T* y[NB];
                for (int b = 0; b < NB; ++b) y[b] = sums + l + b * Vector<T>::width;
                transform_output<T, NB, true>(tiles, spots, v, e * c / BLOCK, u.data() + column(l, step), step, v + many * e * c, y, nullptr);
            });
        }
        if (learn && e) {
            T *h = tile + e * padded(), *z = v + batch * c;
            pad(j, g, h);
            for (int first = 0; first < total; first += BATCH) {
                const int n = std::min(BATCH, total - first);
                transform_input(tiles, h, first, n, BATCH, 0, c / BLOCK, v);
                for (int k = 0; k < e; ++k) {
                    transform_gradient(tiles, tile + k * padded(), first, n, BATCH, z);
                    for (int f = 0; f < 16; ++f)
                        outer(v + f * BATCH * c, z + f * BATCH * c, BATCH, BATCH * BLOCK, c / BLOCK, c, learn + (k * 16 + f) * int64_t(c) * c);
                }
            }
        }
        if (!wanted) return;
        for (int64_t i = 0; i < size(g); ++i) {
            finish(j, begin(g) + i, sums + i * plane);
            if (j >= p.inputs) measure(j, begin(g) + i, rectified, each);
        }
    }

    // dh = (h > 0) sums + what identities and pools send back
    void finish(int j, int64_t n, const T* sums) {
        T* to = (j < p.inputs ? dinput[j] : gradient(j)) + n * plane;
        const T* h = state(j, n);
        const V<T> zero = {};
        const int64_t end = plane;
        for (int64_t i = 0; i < end; i += Vector<T>::width) at(to + i) = load(h + i) > zero ? at(sums + i) : zero;
        std::vector<const T*> x;
        Buffer<T> a;
        for (int i = 0; i < p.units; ++i)
            if (units[i].src == j && units[i].conv < 0) {
                x.push_back(units[i].kind == SKIP ? gradient(int(units[i].dst), n) : pooled(int(units[i].dst)) + n * plane);
                a.insert(a.end(), c, T(w[units[i].weight]));
            }
        sum(x, a.data(), static_cast<const T*>(nullptr), pixels(), c, to, true);
    }

    // the parts' sums into the gradients of the weights
    void store(const std::vector<int>& wide, const std::vector<int>& point, const std::vector<Buffer<T>>& sums) const {
        const int64_t e = wide.size(), square = int64_t(c) * c, convs = e + int64_t(point.size());
#pragma omp parallel for schedule(dynamic, 4) num_threads(int(p.threads))
        for (int64_t k = 0; k < convs * p.channels; ++k) {
            const int64_t mine = k / p.channels, i = k % p.channels;
            const bool is_wide = mine < e;
            const Filter<T>& f = dfilter[units[is_wide ? wide[mine] : point[mine - e]].conv];
            for (int64_t o = 0; o < p.channels; ++o) {
                T d[16] = {};
                for (const Buffer<T>& s : sums)
                    for (int64_t fold = 0; fold < p.fold; ++fold) {
                        const int64_t lane = (fold * p.channels + i) * c + fold * p.channels + o;
                        if (!is_wide) d[0] += s[(16 * e + mine - e) * square + lane];
                        for (int q = 0; q < 16 && is_wide; ++q) d[q] += s[(mine * 16 + q) * square + lane];
                    }
                T* to = f.at + o * f.out + i * f.in;
                if (!is_wide) {
                    *to = d[0];
                    continue;
                }
                T grad[9];
                transform_back(d, grad);
                for (int y = 0; y < 3; ++y)
                    for (int x = 0; x < 3; ++x) to[y * f.y + x * f.x] = grad[3 * y + x];
            }
        }
    }
};

}  // namespace
