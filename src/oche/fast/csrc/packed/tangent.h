// How a cell's values move when its arguments do: tangents of the forward pass.
//
// A name that ends in _t is the tangent (the derivative along the given direction) of the name without it; a direction that is null is
// zero. Formulas: the docstring of `packed_op.py`. ReLU masks and the taps that maxima came from are constant.

#pragma once

#include "back.h"

namespace {

// tile = max(N, 0), tile_t = [N > 0] N_t with N = x, N_t = t, or N = a x + b, N_t = a t + tilt x + level (map: a, b, tilt, level)
template <class T>
void fill_both(const T* x, const T* t, int64_t ld, int h, int w, int c, const T* map, T* tile, T* tile_t) {
    const int tw = w + 2 * PAD;
    const V<T> zero = {};
    for (int y = 0; y < h; ++y)
        for (int i = 0; i < w; ++i) {
            const int64_t from = (int64_t(y) * w + i) * ld, to = (int64_t(y + PAD) * tw + i + PAD) * c;
            for (int b = 0; b < c; b += Vector<T>::width) {
                V<T> v = at(x + from + b), d = at(t + from + b);
                if (map) d = at(map + b) * d + at(map + 2 * c + b) * v + at(map + 3 * c + b), v = at(map + b) * v + at(map + c + b);
                at(tile + to + b) = v > zero ? v : zero;
                at(tile_t + to + b) = v > zero ? d : zero;
            }
        }
}

// the tangent of pooled values `out` of x along t: the first tap that is the maximum gives it
template <class T>
void pool_tangent(const Pool<T>& pool, bool max, const T* x, const T* t, const T* out, T* out_t) {
    const V<T> zero = {};
    for (int b = 0; b < pool.c; b += Vector<T>::width)
        for (int oy = 0; oy < pool.ho(); ++oy)
            for (int ox = 0; ox < pool.wo(); ++ox) {
                const int64_t o = (int64_t(oy) * pool.wo() + ox) * pool.c + b;
                V<T> v = zero;
                if (max) {
                    const V<T> top = at(out + o);
                    V<T> open = zero + T(1);
                    pool.taps(oy, ox, [&](int64_t i) {
                        auto hit = at(x + i * pool.ld + b) == top;
                        v += hit ? open * at(t + i * pool.ld + b) : zero;
                        open = hit ? zero : open;
                    });
                } else {
                    int count = 0;
                    pool.taps(oy, ox, [&](int64_t i) { v += at(t + i * pool.ld + b), ++count; });
                    v = v * T(1.0 / count);
                }
                at(out_t + o) = v;
            }
}

template <class T> struct Tangent : Back<T> {
    using Base = Back<T>;
    using Base::c; using Base::ho; using Base::wo; using Base::nt; using Base::p; using Base::units;
    const T* const* input_t;
    const double* w_t;
    const T *depth_t, *point_t, *gamma_t, *beta_t;
    T *saved_t, *out_t;                                  // like saved and out
    std::vector<double> mean_t, kappa;                   // (slots, lanes): tangent of the mean; mean of (T - m) r T_t

    Tangent(const Plan& plan, const Unit* u) : Base(plan, u) {}

    const T* state_t(int j, int64_t n) const {
        if (j < p.inputs) return input_t[j] + n * p.height * p.width * c;
        return out_t + n * this->pixels() * p.nodes * c + (j - p.inputs) * c;
    }
    T* kept_t(int64_t offset, int64_t n) const { return saved_t + offset + n * this->pixels() * c; }
    const T* term_t(const Unit& u, int64_t n) const {
        if (u.kind == SKIP) return state_t(int(u.src), n);
        return u.kind == EXTRA ? nullptr : kept_t(u.term, n);
    }
    double scale_t(int64_t norm, int l) const { return norm >= 0 && gamma_t ? double(gamma_t[norm * c + l]) : 0.0; }
    double shift_t(int64_t norm, int l) const { return norm >= 0 && beta_t ? double(beta_t[norm * c + l]) : 0.0; }
    static bool pooling(const Unit& u) { return u.kind == MAXPOOL || u.kind == AVGPOOL; }

    // ------------------------------------------------------------ forward

    void run_tangent() {
        this->sums.assign(size_t(p.n) * p.slots * 2 * c, 0.0);
        mean_t.assign(size_t(p.slots) * c, 0.0), kappa = mean_t;
        for (int j = 0; j < p.inputs + p.nodes; ++j) {
            if (j >= p.inputs) combine_t(j);
            sources_t(j);
            seconds_t(j);
        }
    }

    // the tangent of g r (y - m) + s is a y_t + b y + e
    void norm_t(int64_t norm, int64_t slot, int l, double& a, double& b, double& e) const {
        const double g = this->scale(norm, l), m = this->mean[slot * c + l], r = this->rstd[slot * c + l];
        a = g * r, b = scale_t(norm, l) * r - g * r * r * kappa[slot * c + l];
        e = shift_t(norm, l) - a * mean_t[slot * c + l] - b * m;
    }

    // rows of fill_both's map for the first batch norm of a separable convolution
    void first_map(const Unit& u, Buffer<T>& map) const {
        map.resize(4 * c);
        this->first_norm(u, map.data(), map.data() + c);
        for (int l = 0; l < c; ++l) {
            double a, b, e;
            norm_t(u.norm1, u.slot1, l, a, b, e);
            map[2 * c + l] = T(b), map[3 * c + l] = T(e);
        }
    }

    // one image's sums of y_t and of (y - m) y_t
    void keep_sums_t(int64_t n, int64_t slot, const T* y, const T* y_t) {
        double* to = &this->sums[(n * p.slots + slot) * 2 * c];
        for (int l = 0; l < c; l += Vector<T>::width) {
            V<T> m = {}, s1 = {}, s2 = {};
            for (int k = 0; k < Vector<T>::width; ++k) m[k] = T(this->mean[slot * c + l + k]);
            for (int64_t x = 0; x < this->pixels(); ++x) {
                const V<T> t = at(y_t + x * c + l);
                s1 += t, s2 += (at(y + x * c + l) - m) * t;
            }
            for (int k = 0; k < Vector<T>::width; ++k) to[l + k] = double(s1[k]), to[c + l + k] = double(s2[k]);
        }
    }

    void measure_t(int64_t slot) {
        std::vector<double> s(2 * c, 0.0);
        for (int64_t n = 0; n < p.n; ++n)
            for (int l = 0; l < 2 * c; ++l) s[l] += this->sums[(n * p.slots + slot) * 2 * c + l];
        this->fold(s.data()), this->fold(s.data() + c);
        for (int l = 0; l < c; ++l) {
            const double m = this->mean[slot * c + l];
            mean_t[slot * c + l] = s[l] / this->count();
            kappa[slot * c + l] = (s[c + l] - (m - double(T(m))) * s[l]) * this->rstd[slot * c + l] / this->count();
        }
    }

    // y_t = P (D tile_t + D_t tile) + P_t (D tile), one image
    void separable_t(const T* tile, const T* tile_t, int tw, int k, int d, int s, int64_t taps, int64_t matrix, T* y_t, T* row, T* row_t) const {
        for (int oy = 0; oy < ho; ++oy) {
            T* to = y_t + int64_t(oy) * wo * c;
            depthwise<T>(k, d, s, tile_t, tw, c, oy, wo, this->depth + taps, row_t, false);
            if (depth_t) depthwise<T>(k, d, s, tile, tw, c, oy, wo, depth_t + taps, row_t, true);
            pointwise<T>(row_t, wo, c, this->point + matrix * c * c, to, c, nullptr, nullptr);
            if (!point_t) continue;
            depthwise<T>(k, d, s, tile, tw, c, oy, wo, this->depth + taps, row, false);
            pointwise<T>(row, wo, c, point_t + matrix * c * c, to, c, nullptr, to);
        }
    }

    void halve_t(const T* tile, const T* tile_t, int tw, const Unit& u, T* y_t, T* row) const {
        const int64_t matrices[2] = {u.p1, u.p2};
        for (int oy = 0; oy < ho; ++oy)
            for (int from = 0; from < 2; ++from) {
                T* to = y_t + int64_t(oy) * wo * c;
                this->gather(tile_t, tw, oy, from, row);
                pointwise<T>(row, wo, c, this->point + matrices[from] * c * c, to, c, nullptr, from ? to : nullptr);
                if (!point_t) continue;
                this->gather(tile, tw, oy, from, row);
                pointwise<T>(row, wo, c, point_t + matrices[from] * c * c, to, c, nullptr, to);
            }
    }

    void sources_t(int j) {
        const int h = this->height(j), wd = this->width(j), s = this->stride(j), tw = wd + 2 * PAD;
        const bool convolving = this->convolves(j);
        auto mine = [&](const Unit& u) { return u.src == j && u.kind != SKIP && u.kind != EXTRA && (!pooling(u) || u.first); };
#pragma omp parallel num_threads(nt)
        {
            Buffer<T> tile(convolving ? this->tile_size(j) : 0, T(0)), tile_t(tile), row(size_t(wo) * c), row_t(row);
#pragma omp for schedule(dynamic)
            for (int64_t n = 0; n < p.n; ++n) {
                const T *x = this->state(j, n), *t = state_t(j, n);
                if (convolving) fill_both<T>(x, t, this->ld(j), h, wd, c, nullptr, tile.data(), tile_t.data());
                for (int i = 0; i < p.units; ++i) {
                    const Unit& u = units[i];
                    if (!mine(u)) continue;
                    const int64_t offset = u.kind == SEP ? u.y1 : u.term;
                    const T* y = pooling(u) ? this->pool(offset, n) : this->kept(offset, n);
                    T* y_t = kept_t(offset, n);
                    if (pooling(u)) pool_tangent<T>({h, wd, c, s, this->ld(j)}, u.kind == MAXPOOL, x, t, y, y_t);
                    else if (u.kind == HALVE) halve_t(tile.data(), tile_t.data(), tw, u, y_t, row.data());
                    else separable_t(tile.data(), tile_t.data(), tw, int(u.k), this->dilation(u), s, u.d1, u.p1, y_t, row.data(), row_t.data());
                    keep_sums_t(n, u.kind == SEP ? u.slot1 : u.slot2, y, y_t);
                }
            }
        }
        for (int i = 0; i < p.units; ++i)
            if (mine(units[i])) measure_t(units[i].kind == SEP ? units[i].slot1 : units[i].slot2);
    }

    void seconds_t(int j) {
        const int tw = wo + 2 * PAD;
        bool any = false;
        for (int i = 0; i < p.units; ++i) any = any || (units[i].src == j && units[i].kind == SEP);
        if (!any) return;
#pragma omp parallel num_threads(nt)
        {
            Buffer<T> tile(size_t(ho + 2 * PAD) * tw * c, T(0)), tile_t(tile), row(size_t(wo) * c), row_t(row), map;
            for (int i = 0; i < p.units; ++i) {
                const Unit& u = units[i];
                if (u.src != j || u.kind != SEP) continue;
                first_map(u, map);
#pragma omp for schedule(dynamic) nowait
                for (int64_t n = 0; n < p.n; ++n) {
                    fill_both<T>(this->kept(u.y1, n), kept_t(u.y1, n), c, ho, wo, c, map.data(), tile.data(), tile_t.data());
                    separable_t(tile.data(), tile_t.data(), tw, int(u.k), 1, 1, u.d2, u.p2, kept_t(u.term, n), row.data(), row_t.data());
                    keep_sums_t(n, u.slot2, this->kept(u.term, n), kept_t(u.term, n));
                }
            }
        }
        for (int i = 0; i < p.units; ++i)
            if (units[i].src == j && units[i].kind == SEP) measure_t(units[i].slot2);
    }

    void combine_t(int j) {
        std::vector<const Unit*> terms;
        Buffer<T> of_t, of;  // factors of T_t and of T
        Buffer<T> constant(c);
        std::vector<double> exact(c, 0.0);
        for (int i = 0; i < p.units; ++i) {
            const Unit& u = units[i];
            if (u.dst != j) continue;
            terms.push_back(&u);
            const double weight = this->w[u.weight], weight_t = w_t[u.weight];
            for (int l = 0; l < c; ++l) {
                double a = 1, b = 0, e = 0, value = 1, base = 0;
                if (u.norm2 >= 0) {
                    norm_t(u.norm2, u.slot2, l, a, b, e);
                    value = a, base = this->shift(u.norm2, l) - a * this->mean[u.slot2 * c + l];
                }
                of_t.push_back(T(weight * a)), of.push_back(T(weight * b + weight_t * value));
                exact[l] += weight * e + weight_t * base;
            }
        }
        for (int l = 0; l < c; ++l) constant[l] = T(exact[l]);
        const int64_t ld = this->ld(j);
#pragma omp parallel for schedule(dynamic) num_threads(nt)
        for (int64_t n = 0; n < p.n; ++n) {
            T* to = const_cast<T*>(state_t(j, n));
            for (int64_t first = 0; first < this->pixels(); first += this->chunk()) {
                const int64_t last = std::min(this->pixels(), first + this->chunk());
                this->spread(constant.data(), first, last, ld, to);
                for (size_t k = 0; k < terms.size(); ++k) {
                    const T* from_t = term_t(*terms[k], n);
                    this->term(*terms[k], n, [&](const T* from, int64_t step) {
                        this->add(of.data() + k * c, from, step, first, last, ld, to);
                        if (from_t) this->add(of_t.data() + k * c, from_t, step, first, last, ld, to);
                    });
                }
            }
        }
    }
};

}  // namespace
