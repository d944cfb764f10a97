// The backward pass of such a cell.

#pragma once

#include "../pieces.h"
#include "cell.h"

namespace {

// Backward: states from the last to the first; a state's gradient is complete when all its out-edges are done. Weight gradients
// are added up by parts of the images, whichever thread has them, so that a run can be repeated bit for bit.
template <class T, class S = T> struct Back : Cell<T, S> {
    using Base = Cell<T, S>;
    using Base::c; using Base::ho; using Base::wo; using Base::nt; using Base::p; using Base::units;
    const T* dout;
    bool learn;                                          // whether depthwise and pointwise weights want gradients
    T *ddepth, *dpoint;                                  // like depth and point, or null
    double *dgamma, *dbeta, *dw;                         // (norms, lanes), (norms, lanes), (ops,)
    T* const* dinput;
    T *grads, *dv;                                       // workspace: G of the nodes; gradients before the second ReLU, one
                                                         // plane per separable unit of the present source
    Buffer<T> flipped, turned;                           // reversed taps, transposed matrices
    Buffer<T> slope, level, tilt;                        // per unit: dT = slope G + level + tilt T
    std::vector<double> dots;                            // (n, units + 1, lanes): sum G T, last sum G
    std::vector<Buffer<T>> local;                        // per part of the images: weight gradients

    Back(const Plan& plan, const Unit* u) : Base(plan, u) {}

    T* gradient(int j, int64_t n) {
        if (j < p.inputs) return dinput[j] + n * p.height * p.width * c;
        return grads + ((j - p.inputs) * p.n + n) * this->pixels() * c;
    }

    // taps from the last to the first, matrices transposed
    void reverse(const T* taps, const T* matrices, Buffer<T>& flip, Buffer<T>& turn) const {
        for (int i = 0; i < p.units && taps; ++i) {
            const Unit& u = units[i];
            if (u.kind != SEP && u.kind != DIL) continue;
            const int64_t offsets[2] = {u.d1, u.d2};
            for (int s = 0; s < (u.kind == SEP ? 2 : 1); ++s)
                for (int t = 0; t < u.k * u.k; ++t)
                    std::memcpy(&flip[offsets[s] + t * c], taps + offsets[s] + (u.k * u.k - 1 - t) * c, c * sizeof(T));
        }
        for (int64_t m = 0; m < p.points && matrices; ++m)
            for (int i = 0; i < c; ++i)
                for (int o = 0; o < c; ++o) turn[(m * c + o) * c + i] = matrices[(m * c + i) * c + o];
    }

    void prepare() {
        flipped.resize(p.depth), turned.resize(size_t(p.points) * c * c);
        reverse(this->depth, this->point, flipped, turned);
        slope.assign(size_t(p.units) * c, T(0)), level = slope, tilt = slope;
        if (!learn) return;
        local.resize(parts().count);
#pragma omp parallel for schedule(dynamic) num_threads(nt)
        for (size_t i = 0; i < local.size(); ++i) local[i].assign(size_t(p.depth) + size_t(p.points) * c * c, T(0));
    }

    Parts parts() const { return Parts(p.n, nt, learn); }

    void run_backward() {
        prepare();
        for (int j = int(p.inputs + p.nodes) - 1; j >= 0; --j) {
            seconds_back(j);
            sources_back(j);
            if (j >= p.inputs) coefficients(j);
        }
        add_local();
    }

    void add_local() {
        if (!learn) return;
        const int64_t size = p.depth + p.points * c * c, some = 1 << 14;
#pragma omp parallel for schedule(dynamic) num_threads(nt)
        for (int64_t first = 0; first < size; first += some)
            for (const auto& l : local)
                for (int64_t i = first; i < std::min(size, first + some); ++i) (i < p.depth ? ddepth[i] : dpoint[i - p.depth]) += l[i];
    }

    struct Scratch {
        Buffer<T> tile, dz, dy, z, dx, row, total;
    };

    // from dy (ho, wo, c) of y = (depthwise of tile) matrix: dx (h, w, c), added or set, and weight gradients
    void separable_back(Scratch& s, int h, int wd, int k, int d, int st, int64_t taps, int64_t matrix, T* dx, bool add, int64_t part) {
        const int tw = wd + 2 * PAD;
        const T* turn = turned.data() + matrix * c * c;
        for (int oy = 0; oy < ho; ++oy) {
            T* to = s.dz.data() + (int64_t(oy * st + PAD) * tw + PAD) * c;
            pointwise<T>(s.dy.data() + int64_t(oy) * wo * c, wo, c, turn, to, int64_t(st) * c, nullptr, nullptr);
        }
        for (int y = 0; y < h; ++y) depthwise<T>(k, d, 1, s.dz.data(), tw, c, y, wd, flipped.data() + taps, dx + int64_t(y) * wd * c, add);
        if (!learn) return;
        for (int oy = 0; oy < ho; ++oy)
            depthwise<T>(k, d, st, s.tile.data(), tw, c, oy, wo, this->depth + taps, s.z.data() + int64_t(oy) * wo * c, false);
        outer<T>(s.z.data(), s.dy.data(), ho * wo, c, local[part].data() + p.depth + matrix * c * c);
        T* dd = local[part].data() + taps;
#define CALL(K, D, S) BY_LANES(c, taps_gradient, (s.tile.data(), s.dz.data(), tw, c, ho, wo, dd), T, K, D, S)
        BY_SHAPE(k, d, st, CALL);
#undef CALL
    }

    // dy = slope G + level + tilt T of one image
    template <class F> void affine(const T* g, const F* t, int64_t step, const T* a, const T* b, const T* e, T* dy) const {
        BY_LANES(c, affine_rows, (g, t, step, a, b, e, int(this->pixels()), c, dy), T, F);
    }

    void map_of(double factor, double r1, double q, double m, double r, T& a, T& b, T& e) const {
        a = T(factor), b = T(-factor * (r1 - q * m * r) / this->count()), e = T(-factor * q * r / this->count());
    }

    void seconds_back(int j) {
        std::vector<int> mine;
        for (int i = 0; i < p.units; ++i)
            if (units[i].src == j && units[i].kind == SEP) mine.push_back(i);
        if (mine.empty()) return;
        const size_t plane = size_t(p.n) * this->pixels() * c;
        std::vector<double> both(size_t(p.n) * mine.size() * 2 * c);
        const int tw = wo + 2 * PAD;
        const Parts parts = this->parts();
        Pieces pieces(nt, int64_t(mine.size()) * parts.count);
#pragma omp parallel num_threads(nt)
        {
            Scratch s;
            s.tile.assign(size_t(ho + 2 * PAD) * tw * c, T(0)), s.dz = s.tile;
            s.dy.resize(this->pixels() * c), s.z.resize(this->pixels() * c), s.total.resize(2 * c);
            Buffer<T> a(c), b(c);
            for (int64_t piece; pieces.take(piece);) {
                const int64_t k = piece / parts.count, part = piece % parts.count;
                const Unit& u = units[mine[k]];
                this->first_norm(u, a.data(), b.data());
                for (int64_t n = parts.begin(part); n < parts.end(part); ++n) {
                    const S* y1 = this->kept(u.y1, n);
                    affine(gradient(int(u.dst), n), this->kept(u.term, n), c, &slope[mine[k] * c], &level[mine[k] * c], &tilt[mine[k] * c], s.dy.data());
                    if (learn) fill<T>(y1, c, ho, wo, c, a.data(), b.data(), s.tile.data());
                    T* v = dv + k * plane + n * this->pixels() * c;
                    separable_back(s, ho, wo, int(u.k), 1, 1, u.d2, u.p2, v, false, part);
                    const V<T> zero = {};
                    for (int l = 0; l < c; l += Vector<T>::width) {
                        V<T> s1 = {}, s2 = {};
                        const V<T> al = at(a.data() + l), bl = at(b.data() + l);
                        for (int64_t x = 0; x < this->pixels(); ++x) {
                            const V<T> y = load(y1 + x * c + l);
                            V<T> g = at(v + x * c + l);
                            g = y * al + bl > zero ? g : zero;
                            at(v + x * c + l) = g;
                            s1 += g, s2 += g * y;
                        }
                        at(s.total.data() + l) = s1, at(s.total.data() + c + l) = s2;
                    }
                    for (int l = 0; l < 2 * c; ++l) both[(n * mine.size() + k) * 2 * c + l] = double(s.total[l]);
                }
            }
        }
        first.resize(mine.size() * 3 * c);
        for (size_t k = 0; k < mine.size(); ++k) {
            const Unit& u = units[mine[k]];
            std::vector<double> r(2 * c, 0.0);
            for (int64_t n = 0; n < p.n; ++n)
                for (int l = 0; l < 2 * c; ++l) r[l] += both[(n * mine.size() + k) * 2 * c + l];
            const double *m = this->mean + u.slot1 * c, *rs = this->rstd + u.slot1 * c;
            for (int l = 0; l < c; ++l) dgamma[u.norm1 * c + l] = (r[c + l] - m[l] * r[l]) * rs[l], dbeta[u.norm1 * c + l] = r[l];
            this->fold(r.data()), this->fold(r.data() + c);
            T* f = first.data() + k * 3 * c;
            for (int l = 0; l < c; ++l)
                map_of(this->scale(u.norm1, l) * rs[l], r[l], (r[c + l] - m[l] * r[l]) * rs[l], m[l], rs[l], f[l], f[c + l], f[2 * c + l]);
        }
    }
    Buffer<T> first;  // per separable unit of the present source: the map of its first batch norm

    void sources_back(int j) {
        const bool convolving = this->convolves(j);
        if (j >= p.inputs) dots.assign(size_t(p.n) * (p.units + 1) * c, 0.0);
        const Parts parts = this->parts();
        Pieces pieces(nt, parts.count);
#pragma omp parallel num_threads(nt)
        {
            Scratch s;
            if (convolving) s.tile.assign(this->tile_size(j), T(0)), s.dz = s.tile;
            s.dy.resize(this->pixels() * c), s.z.resize(this->pixels() * c), s.row.resize(size_t(std::max(wo, this->width(j))) * c);
            s.dx.resize(size_t(this->height(j)) * this->width(j) * c);
            for (int64_t part; pieces.take(part);)
                for (int64_t n = parts.begin(part); n < parts.end(part); ++n) source_back(j, n, part, convolving, s);
        }
    }

    // one image, and what it adds to the weights' gradients of its part
    void source_back(int j, int64_t n, int64_t part, bool convolving, Scratch& s) {
        const int h = this->height(j), wd = this->width(j), st = this->stride(j);
        const size_t plane = size_t(p.n) * this->pixels() * c;
        const T* x = this->state(j, n);
        T* g = gradient(j, n);
        std::memset(s.dx.data(), 0, s.dx.size() * sizeof(T));
        if (convolving) fill<T>(x, this->ld(j), h, wd, c, nullptr, nullptr, s.tile.data());
        size_t k = 0;
        for (int i = 0; i < p.units; ++i) {
            const Unit& u = units[i];
            if (u.src != j) continue;
            if (u.kind == SEP) {
                const T* f = first.data() + k * 3 * c;
                affine(dv + k * plane + n * this->pixels() * c, this->kept(u.y1, n), c, f, f + c, f + 2 * c, s.dy.data());
                separable_back(s, h, wd, int(u.k), 1, st, u.d1, u.p1, s.dx.data(), true, part);
                ++k;
            } else if (u.kind == DIL || u.kind == HALVE) {
                affine(gradient(int(u.dst), n), this->kept(u.term, n), c, &slope[i * c], &level[i * c], &tilt[i * c], s.dy.data());
                if (u.kind == DIL) separable_back(s, h, wd, int(u.k), 2, st, u.d1, u.p1, s.dx.data(), true, part);
                else halve_back(s, u, h, wd, part);
            }
        }
        finish(j, n, x, g, int64_t(h) * wd, convolving, s);
        if (j >= p.inputs) measure_gradient(j, n, g);
    }

    void halve_back(Scratch& s, const Unit& u, int h, int wd, int64_t part) {
        const int tw = wd + 2 * PAD;
        const int64_t matrices[2] = {u.p1, u.p2};
        for (int from = 0; from < 2; ++from) {
            for (int oy = 0; oy < ho; ++oy) {
                pointwise<T>(s.dy.data() + int64_t(oy) * wo * c, wo, c, turned.data() + matrices[from] * c * c, s.row.data(), c, nullptr, nullptr);
                const int y = 2 * oy + from;
                if (y >= h) continue;
                for (int ox = 0; ox < wo && 2 * ox + from < wd; ++ox) {
                    T* to = s.dx.data() + (int64_t(y) * wd + 2 * ox + from) * c;
                    for (int l = 0; l < c; ++l) to[l] += s.row[ox * c + l];
                }
            }
            if (!learn) continue;
            for (int oy = 0; oy < ho; ++oy) this->gather(s.tile.data(), tw, oy, from, s.z.data() + int64_t(oy) * wo * c);
            outer<T>(s.z.data(), s.dy.data(), ho * wo, c, local[part].data() + p.depth + matrices[from] * c * c);
        }
    }

    // G of the state: through the ReLU, plus the cell's output, skips and pools
    virtual void finish(int j, int64_t n, const T* x, T* g, int64_t own, bool convolving, Scratch& s) {
        const V<T> zero = {};
        const bool shown = dout && j >= p.inputs && (p.concat || j == p.inputs + p.nodes - 1);
        const int64_t od = p.concat ? p.nodes * c : c;
        const T* above = shown ? dout + n * own * od + (p.concat ? (j - p.inputs) * c : 0) : nullptr;
        for (int64_t i = 0; i < own; ++i)
            for (int l = 0; l < c; l += Vector<T>::width) {
                V<T> v = zero;
                if (convolving) v = at(x + i * this->ld(j) + l) > zero ? at(s.dx.data() + i * c + l) : zero;
                if (above) v += at(above + i * od + l);
                at(g + i * c + l) = v;
            }
        for (int kind = MAXPOOL; kind <= SKIP; ++kind) {
            const T* pooled = nullptr;
            Buffer<T> b, e;
            for (int i = 0; i < p.units; ++i) {
                const Unit& u = units[i];
                if (u.src != j || u.kind != kind) continue;
                const T* from = gradient(int(u.dst), n);
                const T* a = &slope[i * c];
                T* to = kind == SKIP ? g : s.dy.data();
                if (kind != SKIP && !pooled) {
                    pooled = this->pool(u.term, n);
                    b.assign(c, T(0)), e = b;
                    std::memset(s.dy.data(), 0, s.dy.size() * sizeof(T));
                }
                if (kind != SKIP)
                    for (int l = 0; l < c; ++l) b[l] += level[i * c + l], e[l] += tilt[i * c + l];
                for (int64_t q = 0; q < this->pixels(); ++q)
                    for (int l = 0; l < c; l += Vector<T>::width) at(to + q * c + l) += at(a + l) * at(from + q * c + l);
            }
            if (!pooled) continue;
            for (int64_t q = 0; q < this->pixels(); ++q)
                for (int l = 0; l < c; l += Vector<T>::width)
                    at(s.dy.data() + q * c + l) += at(b.data() + l) + at(e.data() + l) * at(pooled + q * c + l);
            Pool<T>{this->height(j), this->width(j), c, this->stride(j), this->ld(j)}.backward(kind == MAXPOOL, x, pooled, s.dy.data(), g);
        }
    }

    // sum G, and sum G (T - its mean) for every term into node j, one image
    void measure_gradient(int j, int64_t n, const T* g) {
        Buffer<T> about(c);
        for (int i = 0; i <= p.units; ++i) {
            if (i < p.units && units[i].dst != j) continue;
            double* to = &dots[(n * (p.units + 1) + i) * c];
            if (i == p.units) {
                dot(g, static_cast<const T*>(nullptr), 0, nullptr, to);
                continue;
            }
            for (int l = 0; l < c; ++l) about[l] = pivot(units[i], l);
            this->term(units[i], n, [&](const auto* t, int64_t step) { dot(g, t, step, about.data(), to); });
        }
    }

    // sum G (T - m) of one image, or sum G without a T
    template <class F> void dot(const T* g, const F* t, int64_t step, const T* mean, double* to) const {
        for (int l = 0; l < c; l += Vector<T>::width) {
            V<T> s[4] = {};
            const V<T> m = t ? at(mean + l) : V<T>{};
            int64_t x = 0;
            for (; x + 4 <= this->pixels(); x += 4)
#pragma GCC unroll 4
                for (int k = 0; k < 4; ++k) s[k] += t ? at(g + (x + k) * c + l) * (load(t + (x + k) * step + l) - m) : at(g + (x + k) * c + l);
            for (; x < this->pixels(); ++x) s[0] += t ? at(g + x * c + l) * (load(t + x * step + l) - m) : at(g + x * c + l);
            s[0] = (s[0] + s[1]) + (s[2] + s[3]);
            for (int k = 0; k < Vector<T>::width; ++k) to[l + k] = double(s[0][k]);
        }
    }

    // the mean as the kernels' type holds it; 0 for a term without batch norm
    T pivot(const Unit& u, int l) const { return u.norm2 >= 0 ? T(this->mean[u.slot2 * c + l]) : T(0); }

    void coefficients(int j) {
        auto total = [&](int i) {
            std::vector<double> s(c, 0.0);
            for (int64_t n = 0; n < p.n; ++n)
                for (int l = 0; l < c; ++l) s[l] += dots[(n * (p.units + 1) + i) * c + l];
            return s;
        };
        const std::vector<double> lane = total(int(p.units));
        std::vector<double> r1 = lane;
        this->fold(r1.data());
        for (int i = 0; i < p.units; ++i) {
            const Unit& u = units[i];
            if (u.dst != j) continue;
            std::vector<double> r2 = total(i);
            const double weight = this->w[u.weight];
            if (u.norm2 < 0) {
                for (int l = 0; l < c; ++l) dw[u.weight] += r2[l], slope[i * c + l] = T(weight);
                continue;
            }
            const double *m = this->mean + u.slot2 * c, *r = this->rstd + u.slot2 * c;
            for (int l = 0; l < c; ++l) {
                const double q = (r2[l] - (m[l] - pivot(u, l)) * lane[l]) * r[l];
                dw[u.weight] += this->scale(u.norm2, l) * q + this->shift(u.norm2, l) * lane[l];
                dgamma[u.norm2 * c + l] = weight * q, dbeta[u.norm2 * c + l] = weight * lane[l];
            }
            this->fold(r2.data());
            for (int l = 0; l < c; ++l)
                map_of(weight * this->scale(u.norm2, l) * r[l], r1[l], (r2[l] - (m[l] - pivot(u, l)) * r1[l]) * r[l], m[l], r[l],
                       slope[i * c + l], level[i * c + l], tilt[i * c + l]);
        }
    }
};

}  // namespace
