// How a cell's gradients change when its arguments move: tangents of the backward pass, and both passes together (`tangent.h`).

#include "tangent.h"

namespace {

// the gradients and their tangents, states from the last to the first
template <class T> struct Second : Tangent<T> {
    using Base = Tangent<T>;
    using Base::c; using Base::ho; using Base::wo; using Base::nt; using Base::p; using Base::units; using Base::learn;
    using Base::slope; using Base::level; using Base::tilt; using Base::dots; using Base::first; using Base::local;
    using Base::w_t; using Base::depth_t; using Base::point_t; using Base::mean_t; using Base::kappa;
    using Base::state_t; using Base::kept_t; using Base::term_t; using Base::scale_t; using Base::shift_t; using Base::pooling;
    using Base::first_map; using Base::norm_t;
    T *grads_t, *dv_t;                                   // like grads, which is given here, and dv
    Buffer<T> flipped_t, turned_t;
    Buffer<T> slope_t, level_t, tilt_t;             // per unit: dT_t = slope_t G + slope G_t + level_t + tilt_t T + tilt T_t
    Buffer<T> first_t;

    Second(const Plan& plan, const Unit* u) : Base(plan, u) {}

    T* gradient_t(int j, int64_t n) const {
        if (j < p.inputs) return this->dinput[j] + n * p.height * p.width * c;
        return grads_t + ((j - p.inputs) * p.n + n) * this->pixels() * c;
    }

    void run_backward_t() {
        this->prepare();
        flipped_t.resize(depth_t ? p.depth : 0), turned_t.resize(point_t ? size_t(p.points) * c * c : 0);
        this->reverse(depth_t, point_t, flipped_t, turned_t);
        slope_t.assign(size_t(p.units) * c, T(0)), level_t = slope_t, tilt_t = slope_t;
        for (int j = int(p.inputs + p.nodes) - 1; j >= 0; --j) {
            seconds_back_t(j);
            sources_back_t(j);
            if (j >= p.inputs) coefficients_t(j);
        }
        this->add_local();
    }

    struct Scratch {
        Buffer<T> tile, tile_t, dz, dz_t, dy, dy_t, z, z_t, dx_t, row, map;
    };

    // from dy and dy_t: dx_t (h, w, c), added or set, dx where it is wanted, and the tangents of the weight gradients
    void separable_back_t(Scratch& s, int h, int wd, int k, int d, int st, int64_t taps, int64_t matrix, T* dx, T* dx_t, bool add, int64_t part) {
        const int tw = wd + 2 * PAD;
        const int64_t square = int64_t(c) * c;
        const T *turn = this->turned.data() + matrix * square, *flip = this->flipped.data() + taps;
        const bool both = dx || depth_t || learn;
        for (int oy = 0; oy < ho; ++oy) {
            const int64_t to = (int64_t(oy * st + PAD) * tw + PAD) * c, from = int64_t(oy) * wo * c;
            if (both) pointwise<T>(&s.dy[from], wo, c, turn, &s.dz[to], int64_t(st) * c, nullptr, nullptr);
            pointwise<T>(&s.dy_t[from], wo, c, turn, &s.dz_t[to], int64_t(st) * c, nullptr, nullptr);
            if (point_t) pointwise<T>(&s.dy[from], wo, c, turned_t.data() + matrix * square, &s.dz_t[to], int64_t(st) * c, nullptr, &s.dz_t[to]);
        }
        for (int y = 0; y < h; ++y) {
            const int64_t to = int64_t(y) * wd * c;
            depthwise<T>(k, d, 1, s.dz_t.data(), tw, c, y, wd, flip, dx_t + to, add);
            if (depth_t) depthwise<T>(k, d, 1, s.dz.data(), tw, c, y, wd, flipped_t.data() + taps, dx_t + to, true);
            if (dx) depthwise<T>(k, d, 1, s.dz.data(), tw, c, y, wd, flip, dx + to, false);
        }
        if (!learn) return;
        for (int oy = 0; oy < ho; ++oy) {
            const int64_t to = int64_t(oy) * wo * c;
            depthwise<T>(k, d, st, s.tile.data(), tw, c, oy, wo, this->depth + taps, &s.z[to], false);
            depthwise<T>(k, d, st, s.tile_t.data(), tw, c, oy, wo, this->depth + taps, &s.z_t[to], false);
            if (depth_t) depthwise<T>(k, d, st, s.tile.data(), tw, c, oy, wo, depth_t + taps, &s.z_t[to], true);
        }
        T* mine = local[part].data();
        outer<T>(s.z.data(), s.dy_t.data(), ho * wo, c, mine + p.depth + matrix * square);
        outer<T>(s.z_t.data(), s.dy.data(), ho * wo, c, mine + p.depth + matrix * square);
        T* dd = mine + taps;
#define CALL(K, D, S) BY_LANES(c, taps_gradient, (s.tile.data(), s.dz_t.data(), tw, c, ho, wo, dd), T, K, D, S)
        BY_SHAPE(k, d, st, CALL);
#undef CALL
#define CALL(K, D, S) BY_LANES(c, taps_gradient, (s.tile_t.data(), s.dz.data(), tw, c, ho, wo, dd), T, K, D, S)
        BY_SHAPE(k, d, st, CALL);
#undef CALL
    }

    void halve_back_t(Scratch& s, const Unit& u, int h, int wd, int64_t part) {
        const int tw = wd + 2 * PAD;
        const int64_t matrices[2] = {u.p1, u.p2}, square = int64_t(c) * c;
        for (int from = 0; from < 2; ++from) {
            for (int oy = 0; oy < ho; ++oy) {
                const int64_t at_ = int64_t(oy) * wo * c;
                pointwise<T>(&s.dy_t[at_], wo, c, this->turned.data() + matrices[from] * square, s.row.data(), c, nullptr, nullptr);
                if (point_t) pointwise<T>(&s.dy[at_], wo, c, turned_t.data() + matrices[from] * square, s.row.data(), c, nullptr, s.row.data());
                const int y = 2 * oy + from;
                if (y >= h) continue;
                for (int ox = 0; ox < wo && 2 * ox + from < wd; ++ox) {
                    T* to = s.dx_t.data() + (int64_t(y) * wd + 2 * ox + from) * c;
                    for (int l = 0; l < c; ++l) to[l] += s.row[ox * c + l];
                }
            }
            if (!learn) continue;
            T* dp = local[part].data() + p.depth + matrices[from] * square;
            for (int oy = 0; oy < ho; ++oy) {
                this->gather(s.tile.data(), tw, oy, from, &s.z[int64_t(oy) * wo * c]);
                this->gather(s.tile_t.data(), tw, oy, from, &s.z_t[int64_t(oy) * wo * c]);
            }
            outer<T>(s.z.data(), s.dy_t.data(), ho * wo, c, dp);
            outer<T>(s.z_t.data(), s.dy.data(), ho * wo, c, dp);
        }
    }

    // dy = a g + b + e t and its tangent, one image
    void affine_both(const T* g, const T* g_t, const T* t, const T* t_t, const T* const (&f)[6], T* dy, T* dy_t) const {
        for (int64_t x = 0; x < this->pixels(); ++x)
            for (int l = 0; l < c; l += Vector<T>::width) {
                const int64_t i = x * c + l;
                const V<T> a = at(f[0] + l), e = at(f[2] + l), gi = at(g + i), ti = at(t + i);
                at(dy + i) = a * gi + at(f[1] + l) + e * ti;
                at(dy_t + i) = at(f[3] + l) * gi + a * at(g_t + i) + at(f[4] + l) + at(f[5] + l) * ti + e * at(t_t + i);
            }
    }

    void affine_of(int i, int64_t n, Scratch& s) {
        const Unit& u = units[i];
        const size_t o = size_t(i) * c;
        const T* const f[6] = {&slope[o], &level[o], &tilt[o], &slope_t[o], &level_t[o], &tilt_t[o]};
        affine_both(this->gradient(int(u.dst), n), gradient_t(int(u.dst), n), this->kept(u.term, n), kept_t(u.term, n), f, s.dy.data(), s.dy_t.data());
    }

    // what a batch norm's backward is made of, at one lane or channel, with tangents
    struct Sums {
        double r1, q, r1_t, q_t;
    };
    // raw: sums of G, G (T - about), G_t, G_t (T - about), G (T_t - about_t)
    Sums sums_of(int64_t slot, int l, const double (&raw)[5], double about, double about_t) const {
        const double m = this->mean[slot * c + l], r = this->rstd[slot * c + l];
        const double q = (raw[1] - (m - about) * raw[0]) * r;
        const double q_t = (raw[3] - (m - about) * raw[2] + raw[4] - (mean_t[slot * c + l] - about_t) * raw[0] - kappa[slot * c + l] * q) * r;
        return {raw[0], q, raw[2], q_t};
    }
    // the maps dT = slope G + level + tilt T and its tangent, for factor = w g r with tangent factor_t
    void maps_of(int64_t slot, int l, double factor, double factor_t, const Sums& s, T& a, T& b, T& e, T& a_t, T& b_t, T& e_t) const {
        const double m = this->mean[slot * c + l], r = this->rstd[slot * c + l], m_t = mean_t[slot * c + l], k = kappa[slot * c + l];
        this->map_of(factor, s.r1, s.q, m, r, a, b, e);
        const double tilted = factor_t * s.q + factor * (s.q_t - s.q * k * r);  // r_t = -k r r
        a_t = T(factor_t), e_t = T(-tilted * r / this->count());
        b_t = T((-factor_t * s.r1 - factor * s.r1_t + (tilted * m + factor * s.q * m_t) * r) / this->count());
    }

    void seconds_back_t(int j) {
        std::vector<int> mine;
        for (int i = 0; i < p.units; ++i)
            if (units[i].src == j && units[i].kind == SEP) mine.push_back(i);
        if (mine.empty()) return;
        const size_t plane = size_t(p.n) * this->pixels() * c;
        std::vector<double> all(size_t(p.n) * mine.size() * 5 * c);
        const int tw = wo + 2 * PAD;
        const Parts parts = this->parts();
        Pieces pieces(nt, int64_t(mine.size()) * parts.count);
#pragma omp parallel num_threads(nt)
        {
            Scratch s;
            s.dz.assign(size_t(ho + 2 * PAD) * tw * c, T(0)), s.dz_t = s.dz;
            if (learn) s.tile = s.dz, s.tile_t = s.dz;
            s.dy.resize(this->pixels() * c), s.dy_t = s.dy, s.z = s.dy, s.z_t = s.dy;
            for (int64_t piece; pieces.take(piece);) {
                const int64_t k = piece / parts.count, part = piece % parts.count;
                const Unit& u = units[mine[k]];
                first_map(u, s.map);
                for (int64_t n = parts.begin(part); n < parts.end(part); ++n) {
                    const T *y1 = this->kept(u.y1, n), *y1_t = kept_t(u.y1, n);
                    affine_of(mine[k], n, s);
                    if (learn) fill_both<T>(y1, y1_t, c, ho, wo, c, s.map.data(), s.tile.data(), s.tile_t.data());
                    T *v = this->dv + k * plane + n * this->pixels() * c, *v_t = dv_t + k * plane + n * this->pixels() * c;
                    separable_back_t(s, ho, wo, int(u.k), 1, 1, u.d2, u.p2, v, v_t, false, part);
                    const V<T> zero = {};
                    for (int l = 0; l < c; l += Vector<T>::width) {
                        V<T> r[5] = {}, m = zero, m_t = zero;
                        for (int x = 0; x < Vector<T>::width; ++x) m[x] = T(this->mean[u.slot1 * c + l + x]), m_t[x] = T(mean_t[u.slot1 * c + l + x]);
                        const V<T> a = at(s.map.data() + l), b = at(s.map.data() + c + l);
                        for (int64_t x = 0; x < this->pixels(); ++x) {
                            const V<T> y = at(y1 + x * c + l);
                            auto open = y * a + b > zero;
                            const V<T> g = open ? at(v + x * c + l) : zero, g_t = open ? at(v_t + x * c + l) : zero;
                            at(v + x * c + l) = g, at(v_t + x * c + l) = g_t;
                            r[0] += g, r[1] += g * (y - m), r[2] += g_t, r[3] += g_t * (y - m), r[4] += g * (at(y1_t + x * c + l) - m_t);
                        }
                        for (int q = 0; q < 5; ++q)
                            for (int x = 0; x < Vector<T>::width; ++x) all[((n * mine.size() + k) * 5 + q) * c + l + x] = double(r[q][x]);
                    }
                }
            }
        }
        first.resize(mine.size() * 3 * c), first_t.resize(first.size());
        for (size_t k = 0; k < mine.size(); ++k) {
            const Unit& u = units[mine[k]];
            std::vector<double> r(5 * c, 0.0);
            for (int64_t n = 0; n < p.n; ++n)
                for (int l = 0; l < 5 * c; ++l) r[l] += all[(n * mine.size() + k) * 5 * c + l];
            auto sums = [&](int l) {
                const double raw[5] = {r[l], r[c + l], r[2 * c + l], r[3 * c + l], r[4 * c + l]};
                return sums_of(u.slot1, l, raw, double(T(this->mean[u.slot1 * c + l])), double(T(mean_t[u.slot1 * c + l])));
            };
            for (int l = 0; l < c; ++l) {
                const Sums s = sums(l);
                this->dgamma[u.norm1 * c + l] = s.q_t, this->dbeta[u.norm1 * c + l] = s.r1_t;
            }
            for (int q = 0; q < 5; ++q) this->fold(r.data() + q * c);
            T *f = first.data() + k * 3 * c, *f_t = first_t.data() + k * 3 * c;
            for (int l = 0; l < c; ++l) {
                double a, a_t, e;
                norm_t(u.norm1, u.slot1, l, a, a_t, e);
                maps_of(u.slot1, l, a, a_t, sums(l), f[l], f[c + l], f[2 * c + l], f_t[l], f_t[c + l], f_t[2 * c + l]);
            }
        }
    }

    void sources_back_t(int j) {
        const int h = this->height(j), wd = this->width(j), st = this->stride(j);
        const bool convolving = this->convolves(j);
        const size_t plane = size_t(p.n) * this->pixels() * c;
        const int64_t own = int64_t(h) * wd;
        if (j >= p.inputs) dots.assign(size_t(p.n) * (p.units + 1) * 3 * c, 0.0);
        const Parts parts = this->parts();
        Pieces pieces(nt, parts.count);
#pragma omp parallel num_threads(nt)
        {
            Scratch s;
            if (convolving) s.dz.assign(this->tile_size(j), T(0)), s.dz_t = s.dz;
            if (convolving && learn) s.tile = s.dz, s.tile_t = s.dz;
            s.dy.resize(this->pixels() * c), s.dy_t = s.dy, s.z = s.dy, s.z_t = s.dy;
            s.row.resize(size_t(std::max<int64_t>(wo, wd)) * c), s.dx_t.resize(own * c);
            for (int64_t part; pieces.take(part);)
                for (int64_t n = parts.begin(part); n < parts.end(part); ++n) {
                    const T* x = this->state(j, n);
                    std::fill(s.dx_t.begin(), s.dx_t.end(), T(0));
                    if (convolving && learn) fill_both<T>(x, state_t(j, n), this->ld(j), h, wd, c, nullptr, s.tile.data(), s.tile_t.data());
                    size_t k = 0;
                    for (int i = 0; i < p.units; ++i) {
                        const Unit& u = units[i];
                        if (u.src != j) continue;
                        if (u.kind == SEP) {
                            const T *f = first.data() + k * 3 * c, *f_t = first_t.data() + k * 3 * c;
                            const T* const maps[6] = {f, f + c, f + 2 * c, f_t, f_t + c, f_t + 2 * c};
                            const int64_t o = k * plane + n * this->pixels() * c;
                            affine_both(this->dv + o, dv_t + o, this->kept(u.y1, n), kept_t(u.y1, n), maps, s.dy.data(), s.dy_t.data());
                            separable_back_t(s, h, wd, int(u.k), 1, st, u.d1, u.p1, nullptr, s.dx_t.data(), true, part);
                            ++k;
                        } else if (u.kind == DIL || u.kind == HALVE) {
                            affine_of(i, n, s);
                            if (u.kind == DIL) separable_back_t(s, h, wd, int(u.k), 2, st, u.d1, u.p1, nullptr, s.dx_t.data(), true, part);
                            else halve_back_t(s, u, h, wd, part);
                        }
                    }
                    finish_t(j, n, x, own, convolving, s);
                    if (j >= p.inputs) measure_gradient_t(j, n);
                }
        }
    }

    // G_t of the state: through the ReLU, plus skips and pools; the gradient of the cell's output has no tangent here
    void finish_t(int j, int64_t n, const T* x, int64_t own, bool convolving, Scratch& s) {
        const V<T> zero = {};
        T* g_t = gradient_t(j, n);
        for (int64_t i = 0; i < own; ++i)
            for (int l = 0; l < c; l += Vector<T>::width)
                at(g_t + i * c + l) = convolving && l < c ? (at(x + i * this->ld(j) + l) > zero ? at(&s.dx_t[i * c + l]) : zero) : zero;
        for (int kind = MAXPOOL; kind <= SKIP; ++kind) {
            const T *pooled = nullptr, *pooled_t = nullptr;
            Buffer<T> b, e, e_t;
            for (int i = 0; i < p.units; ++i) {
                const Unit& u = units[i];
                if (u.src != j || u.kind != kind) continue;
                const T *from = this->gradient(int(u.dst), n), *from_t = gradient_t(int(u.dst), n);
                T* to = kind == SKIP ? g_t : s.dy_t.data();
                if (kind != SKIP && !pooled) {
                    pooled = this->pool(u.term, n), pooled_t = kept_t(u.term, n);
                    b.assign(c, T(0)), e = b, e_t = b;
                    std::fill(s.dy_t.begin(), s.dy_t.end(), T(0));
                }
                if (kind != SKIP)
                    for (int l = 0; l < c; ++l) b[l] += level_t[i * c + l], e[l] += tilt[i * c + l], e_t[l] += tilt_t[i * c + l];
                for (int64_t q = 0; q < this->pixels(); ++q)
                    for (int l = 0; l < c; l += Vector<T>::width)
                        at(to + q * c + l) += at(&slope[i * c + l]) * at(from_t + q * c + l) + at(&slope_t[i * c + l]) * at(from + q * c + l);
            }
            if (!pooled) continue;
            for (int64_t q = 0; q < this->pixels(); ++q)
                for (int l = 0; l < c; l += Vector<T>::width)
                    at(&s.dy_t[q * c + l]) += at(&b[l]) + at(&e_t[l]) * at(pooled + q * c + l) + at(&e[l]) * at(pooled_t + q * c + l);
            Pool<T>{this->height(j), this->width(j), c, this->stride(j), this->ld(j)}.backward(kind == MAXPOOL, x, pooled, s.dy_t.data(), g_t);
        }
    }

    T pivot_t(const Unit& u, int l) const { return u.norm2 >= 0 ? T(mean_t[u.slot2 * c + l]) : T(0); }

    // one image's sums for every term into node j: of G (T - m), G_t (T - m), G (T_t - m_t); last of G and G_t
    void measure_gradient_t(int j, int64_t n) {
        const T *g = this->gradient(j, n), *g_t = gradient_t(j, n);
        for (int i = 0; i <= p.units; ++i) {
            if (i < p.units && units[i].dst != j) continue;
            const T *t = nullptr, *t_t = i < p.units ? term_t(units[i], n) : nullptr;
            int64_t step = 0;
            if (i < p.units) this->term(units[i], n, [&](const T* from, int64_t apart) { t = from, step = apart; });
            for (int l = 0; l < c; l += Vector<T>::width) {
                V<T> r[3] = {}, m = {}, m_t = {};
                if (t)
                    for (int k = 0; k < Vector<T>::width; ++k) m[k] = this->pivot(units[i], l + k), m_t[k] = pivot_t(units[i], l + k);
                for (int64_t x = 0; x < this->pixels(); ++x) {
                    const V<T> a = at(g + x * c + l), a_t = at(g_t + x * c + l);
                    if (!t) {
                        r[0] += a, r[1] += a_t;
                        continue;
                    }
                    const V<T> v = at(t + x * step + l) - m;
                    r[0] += a * v, r[1] += a_t * v;
                    if (t_t) r[2] += a * (at(t_t + x * step + l) - m_t);
                }
                for (int q = 0; q < 3; ++q)
                    for (int k = 0; k < Vector<T>::width; ++k) dots[((n * (p.units + 1) + i) * 3 + q) * c + l + k] = double(r[q][k]);
            }
        }
    }

    void coefficients_t(int j) {
        auto total = [&](int i) {
            std::vector<double> s(3 * c, 0.0);
            for (int64_t n = 0; n < p.n; ++n)
                for (int l = 0; l < 3 * c; ++l) s[l] += dots[(n * (p.units + 1) + i) * 3 * c + l];
            return s;
        };
        const std::vector<double> lane = total(int(p.units));
        std::vector<double> r1 = lane;
        this->fold(r1.data()), this->fold(r1.data() + c);
        for (int i = 0; i < p.units; ++i) {
            const Unit& u = units[i];
            if (u.dst != j) continue;
            std::vector<double> d = total(i);
            const double weight = this->w[u.weight], weight_t = w_t[u.weight];
            if (u.norm2 < 0) {
                for (int l = 0; l < c; ++l) {
                    this->dw[u.weight] += d[c + l] + d[2 * c + l];
                    slope[i * c + l] = T(weight), slope_t[i * c + l] = T(weight_t);
                }
                continue;
            }
            auto sums = [&](const std::vector<double>& r, int l) {
                const double raw[5] = {r[l], d[l], r[c + l], d[c + l], d[2 * c + l]};
                return sums_of(u.slot2, l, raw, double(this->pivot(u, l)), double(pivot_t(u, l)));
            };
            for (int l = 0; l < c; ++l) {
                const Sums s = sums(lane, l);
                this->dw[u.weight] += scale_t(u.norm2, l) * s.q + this->scale(u.norm2, l) * s.q_t + shift_t(u.norm2, l) * s.r1 + this->shift(u.norm2, l) * s.r1_t;
                this->dgamma[u.norm2 * c + l] = weight_t * s.q + weight * s.q_t, this->dbeta[u.norm2 * c + l] = weight_t * s.r1 + weight * s.r1_t;
            }
            for (int q = 0; q < 3; ++q) this->fold(d.data() + q * c);
            for (int l = 0; l < c; ++l) {
                double a, a_t, e;
                norm_t(u.norm2, u.slot2, l, a, a_t, e);
                const size_t o = size_t(i) * c + l;
                maps_of(u.slot2, l, weight * a, weight_t * a + weight * a_t, sums(r1, l), slope[o], level[o], tilt[o], slope_t[o], level_t[o], tilt_t[o]);
            }
        }
    }
};

template <class T>
void second(const Plan* plan, const int64_t* units, const T* const* input, const double* w, const T* depth, const T* point,
            const T* gamma, const T* beta, const T* const* extra, T* saved, T* pools, T* out, double* mean, double* rstd, T* grads,
            const T* const* input_t, const double* w_t, const T* depth_t, const T* point_t, const T* gamma_t, const T* beta_t,
            T* saved_t, T* out_t, T* const* dinput, double* dw, T* ddepth, T* dpoint, double* dgamma, double* dbeta, T* work) {
    Second<T> cell(*plan, reinterpret_cast<const Unit*>(units));
    cell.input = input, cell.w = w, cell.depth = depth, cell.point = point, cell.gamma = gamma, cell.beta = beta;
    cell.extra = extra, cell.saved = saved, cell.pools = pools, cell.out = out, cell.mean = mean, cell.rstd = rstd, cell.grads = grads;
    cell.input_t = input_t, cell.w_t = w_t, cell.depth_t = depth_t, cell.point_t = point_t, cell.gamma_t = gamma_t;
    cell.beta_t = beta_t, cell.saved_t = saved_t, cell.out_t = out_t;
    cell.dinput = dinput, cell.dw = dw, cell.ddepth = ddepth, cell.dpoint = dpoint;
    cell.dgamma = dgamma, cell.dbeta = dbeta, cell.learn = ddepth != nullptr;
    const int64_t plane = plan->n * cell.pixels() * plan->lanes;
    int64_t separable = 0;  // most of one source
    for (int64_t j = 0; j < plan->inputs + plan->nodes; ++j) {
        int64_t count = 0;
        for (int64_t u = 0; u < plan->units; ++u) count += cell.units[u].src == j && cell.units[u].kind == SEP;
        separable = std::max(separable, count);
    }
    cell.grads_t = work, cell.dv = work + plan->nodes * plane, cell.dv_t = cell.dv + separable * plane;
    cell.pool_again();
    cell.run_tangent();
    cell.run_backward_t();
}

}  // namespace

#define EXPORT_SECOND(T, NAME)                                                                                                 \
    extern "C" void oche_second_##NAME(const Plan* plan, const int64_t* units, const T* const* input, const double* w,         \
                                       const T* depth, const T* point, const T* gamma, const T* beta, const T* const* extra,   \
                                       T* saved, T* pools, T* out, double* mean, double* rstd, T* grads, const T* const* input_t, \
                                       const double* w_t, const T* depth_t, const T* point_t, const T* gamma_t,                \
                                       const T* beta_t, T* saved_t, T* out_t, T* const* dinput, double* dw, T* ddepth,         \
                                       T* dpoint, double* dgamma, double* dbeta, T* work) {                                    \
        second<T>(plan, units, input, w, depth, point, gamma, beta, extra, saved, pools, out, mean, rstd, grads, input_t, w_t, \
                  depth_t, point_t, gamma_t, beta_t, saved_t, out_t, dinput, dw, ddepth, dpoint, dgamma, dbeta, work);         \
    }
EXPORT_SECOND(float, f32)
EXPORT_SECOND(double, f64)
