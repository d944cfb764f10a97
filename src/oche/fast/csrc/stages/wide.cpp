// A stage of a network that learns whose convolution is dense: what a batch norm and an activation make of x, convolved.
//
// Plain C interface, called by `stages.py`, whose docstring has the formulas; `Stage` must match `CStage` there. The weight is given as
// (k k ci, co). An image, or a few small ones, is the unit of parallel work, as in `pass.h`.

#include <cmath>
#include "wide.h"

namespace {

// rows of `some` pixels with `c` channels to and from rows whose pixels have `wide` numbers
template <class T> void widen(const T* from, int64_t some, int64_t c, int64_t wide, T* to) {
    for (int64_t i = 0; i < some; ++i) std::memcpy(to + i * wide, from + i * c, c * sizeof(T));
}
template <class T> const T* narrow(const T* from, int64_t some, int64_t c, int64_t wide, T* to) {
    if (c == wide) return from;
    for (int64_t i = 0; i < some; ++i) std::memcpy(to + i * c, from + i * wide, c * sizeof(T));
    return to;
}

template <class T> struct WideWork {
    Buffer<T> tile, dy, out, v, sums, line, dmatrix;
    Buffer<T> slope, level, tilt, s1, s2;

    WideWork(const Wide<T>& s, bool backward, bool learn) {
        const Stage& g = s.given;
        const int64_t lanes = std::max(s.from, s.into), products = int64_t(16) * TILES * (lanes + 2 * WIDTH<T>);
        if (!backward || learn) tile.assign(s.x_tile(), T(0));
        if (backward) dy.assign(s.dy_tile(), T(0));
        out.resize(s.winograd ? s.group * g.height * g.width * lanes : std::max(s.wo, g.width) * std::max(g.ci, g.co) + WIDTH<T>);
        line.resize(std::max(g.width, s.wo) * std::max(g.ci, g.co) + WIDTH<T>);
        if (s.winograd) v.resize(std::max(products, int64_t(16) * BATCH * (s.from + s.into))), sums.assign(2 * lanes, T(0));
        if (!backward) return;
        if (learn) dmatrix.assign(s.winograd ? 16 * s.from * s.into : g.k * g.k * g.ci * whole<T>(g.co), T(0));
        slope.resize(period_of<T>(g.co)), level = slope, tilt = slope;
        s1.resize(s.input.in), s2.resize(s.input.in);
    }
};

// the activations of an image into a tile
template <class T> void fill(const Wide<T>& s, WideWork<T>& w, const T* x, int64_t image) {
    const int64_t c = s.given.ci, width = s.given.width;
    for (int64_t r = 0; r < s.given.height; ++r) {
        T* to = s.x_at(w.tile.data(), image, r);
        s.input.act(x + r * width * c, width * c, s.from == c ? to : w.line.data());
        if (s.from != c) widen(w.line.data(), width, c, s.from, to);
    }
}

template <class T>
void wide_forward(const Stage& given, const T* x, const T* a, const T* b, const T* weight, T* y, double* mean, double* variance) {
    const Wide<T> s(given, a, b, weight, false);
    const int64_t c = given.co, plane = s.ho * s.wo * c, size = given.height * given.width;
    std::vector<double> each(given.n * 2 * c);
#pragma omp parallel num_threads(int(given.threads))
    {
        WideWork<T> w(s, false, false);
        Moments<T> moments(c);
#pragma omp for schedule(static)
        for (int64_t group = 0; group < s.images(); ++group) {
            const int64_t first = group * s.group, last = std::min(given.n, first + s.group);
            for (int64_t n = first; n < last; ++n) fill(s, w, x + n * size * given.ci, n - first);
            if (s.winograd) winograd_run(s.x_tiles, s.y_tiles, w.tile.data(), int(last - first) * s.x_tiles.count(), s.matrix.data(), w.v.data(), w.sums.data(), w.out.data());
            for (int64_t n = first; n < last; ++n) {
                moments.begin();
                for (int64_t r = 0; r < s.ho; ++r) {
                    const T* row = w.out.data() + ((n - first) * s.ho + r) * s.wo * s.into;
                    if (s.winograd) row = narrow(row, s.wo, c, s.into, w.line.data());
                    else runs_row(w.tile.data() + r * given.stride * s.x_row, given.stride * given.ci, s.forth, s.matrix.data(), s.wo, c, w.out.data()), row = w.out.data();
                    T* to = y + n * plane + r * s.wo * c;
                    moments.add(row, s.wo * c, to, past_caches(to, given.n * plane));
                }
                moments.end(s.ho * s.wo, &each[n * 2 * c]);
            }
        }
    }
    joined(each.data(), given.n, c, s.ho * s.wo, mean, variance);
}

template <class T> struct WideBack {
    const T *x, *g, *y, *map, *factor, *pivot;  // map (3, co): slope, level, tilt; factor (n) or null; pivot (ci), spread, or null
    T* dx;                                      // or null
    const T* also;                              // what is added to dx, or null; may be dx itself
    bool learn;
};

// dy = slope f g + level + tilt y of an image into its tile
template <class T> void affine(const Wide<T>& s, const WideBack<T>& t, WideWork<T>& w, int64_t n, int64_t image) {
    const int64_t c = s.given.co, length = s.wo * c, period = int64_t(w.slope.size());
    spread(t.map, c, w.slope.data(), t.factor ? t.factor[n] : T(1));
    const T *slope = w.slope.data(), *level = w.level.data(), *tilt = w.tilt.data();
    for (int64_t r = 0; r < s.ho; ++r) {
        const T *g = t.g + (n * s.ho + r) * length, *y = t.y + (n * s.ho + r) * length;
        T *row = s.dy_at(w.dy.data(), image, r), *to = s.into == c ? row : w.line.data();
        along<T>(length, period, [=](int64_t i, int64_t place, int lanes) {
            const V<T> v = at(slope + place) * take(g + i, lanes) + at(level + place);
            store_some(to + i, v + at(tilt + place) * take(y + i, lanes), lanes);
        });
        if (s.into != c) widen(to, s.wo, c, s.into, row);
    }
}

// dx from the gradient behind the activation, plus `also`; s1, s2: sums of it and of it times x - pivot, where there is a pivot
template <class T> void through(const Wide<T>& s, const WideBack<T>& t, WideWork<T>& w, const T* d, int64_t first, int64_t length) {
    const T *x = t.x + first, *pivot = t.pivot, *also = t.also ? t.also + first : nullptr;
    T *dx = t.dx + first, *w1 = w.s1.data(), *w2 = w.s2.data();
    const int64_t period = s.input.in;
    const bool past = past_caches(dx, s.given.n * s.given.height * s.given.width * s.given.ci);
    s.input.with_activation([&](auto kind, auto before) {
        by_place<T>(length, period, [=](int64_t v) {
            V<T> s1 = {}, s2 = {};
            const V<T> m = pivot ? at(pivot + v) : V<T>{};
            for (int64_t i = v; i < length; i += period) {
                const int lanes = int(std::min<int64_t>(WIDTH<T>, length - i));
                const V<T> from = load_some(x + i, lanes);
                V<T> g = passed<T, kind()>(before(from, v), load_some(d + i, lanes));
                s1 += g, s2 += g * (from - m);
                if (also) g += load_some(also + i, lanes);
                put(dx + i, g, lanes, past);
            }
            at(w1 + v) += s1, at(w2 + v) += s2;
        });
    });
}

// row r of the gradient behind the activation of image n, of which dy is in the tile: the rows' products by phase
template <class T> void turned_back(const Wide<T>& s, WideWork<T>& w, int64_t r, T* to) {
    const Stage& g = s.given;
    for (int64_t phase = 0; phase < g.stride; ++phase) {
        const int64_t first = (phase - s.pad % g.stride + g.stride) % g.stride;  // the first pixel of this phase
        if (first >= g.width) continue;
        const int64_t count = (g.width - first + g.stride - 1) / g.stride;
        const T* from = w.dy.data() + (s.above + (r + s.pad) / g.stride) * s.dy_row + (s.above + (first + s.pad) / g.stride) * g.co;
        T* row = g.stride == 1 ? to : w.line.data();
        runs_row(from, g.co, s.back[(r + s.pad) % g.stride * g.stride + phase], s.turned.data(), count, g.ci, row);
        for (int64_t i = 0; g.stride > 1 && i < count; ++i) std::memcpy(to + (first + i * g.stride) * g.ci, row + i * g.ci, g.ci * sizeof(T));
    }
}

// a group of images from `first` to before `last`
template <class T> void group_back(const Wide<T>& s, const WideBack<T>& t, WideWork<T>& w, int64_t first, int64_t last, double* each) {
    const Stage& g = s.given;
    const int64_t size = g.height * g.width * g.ci, total = (last - first) * s.x_tiles.count();
    for (int64_t n = first; n < last; ++n) {
        affine(s, t, w, n, n - first);
        if (t.learn) fill(s, w, t.x + n * size, n - first);
    }
    if (t.learn && !s.winograd)
        runs_gradient(w.tile.data(), g.stride * s.x_row, g.stride * g.ci, s.forth, s.dy_at(w.dy.data(), 0, 0), s.dy_row, s.ho, s.wo, g.co, w.dmatrix.data());
    for (int64_t i = 0; t.learn && s.winograd && i < total; i += BATCH) {
        const int some = int(std::min<int64_t>(BATCH, total - i));
        T *v = w.v.data(), *z = v + int64_t(16) * BATCH * s.from;
        transform_input(s.x_tiles, w.tile.data(), int(i), some, BATCH, 0, int(s.from / BLOCK), v);
        transform_gradient(s.y_tiles, w.dy.data(), int(i), some, BATCH, z);
        for (int f = 0; f < 16; ++f)
            outer(v + f * BATCH * s.from, z + f * BATCH * s.into, BATCH, int64_t(BATCH) * BLOCK, int(s.from / BLOCK), int(s.into), w.dmatrix.data() + f * s.from * s.into);
    }
    if (!t.dx) return;
    if (s.winograd) winograd_run(s.y_tiles, s.x_tiles, w.dy.data(), int(total), s.turned.data(), w.v.data(), w.sums.data(), w.out.data());
    for (int64_t n = first; n < last; ++n) {
        std::fill(w.s1.begin(), w.s1.end(), T(0)), std::fill(w.s2.begin(), w.s2.end(), T(0));
        for (int64_t r = 0; r < g.height; ++r) {
            const T* row = w.out.data() + ((n - first) * g.height + r) * g.width * s.from;
            if (s.winograd) row = narrow(row, g.width, g.ci, s.from, w.line.data());
            else turned_back(s, w, r, w.out.data()), row = w.out.data();
            through(s, t, w, row, n * size + r * g.width * g.ci, g.width * g.ci);
        }
        if (t.pivot) gathered(w.s1.data(), g.ci, each + 2 * n * g.ci), gathered(w.s2.data(), g.ci, each + (2 * n + 1) * g.ci);
    }
}

// dweight (k k ci, co) from the threads' sums
template <class T> void learnt(const Wide<T>& s, const std::vector<WideWork<T>>& parts, T* dweight) {
    const Stage& g = s.given;
    if (!s.winograd) {
        for (const auto& w : parts)
            for (int64_t i = 0; i < g.k * g.k * g.ci; ++i)
                for (int64_t o = 0; o < g.co; ++o) dweight[i * g.co + o] += w.dmatrix[i * whole<T>(g.co) + o];
        return;
    }
    for (int64_t i = 0; i < g.ci; ++i)
        for (int64_t o = 0; o < g.co; ++o) {
            T d[16] = {}, grad[9];
            for (const auto& w : parts)
                for (int f = 0; f < 16; ++f) d[f] += w.dmatrix[(f * s.from + i) * s.into + o];
            transform_back(d, grad);
            for (int t = 0; t < 9; ++t) dweight[(t * g.ci + i) * g.co + o] = grad[t];
        }
}

template <class T>
void wide_backward(const Stage& given, const T* a, const T* b, const T* weight, WideBack<T> t, double* sums, T* dweight) {
    const Wide<T> s(given, a, b, weight, true);
    Buffer<T> pivot(t.pivot ? s.input.in : 0);
    if (t.pivot) spread(t.pivot, given.ci, pivot.data()), t.pivot = pivot.data();
    std::vector<double> each(t.pivot ? given.n * 2 * given.ci : 0);
    std::vector<WideWork<T>> parts(given.threads, WideWork<T>(s, true, t.learn));
#pragma omp parallel num_threads(int(given.threads))
    {
        WideWork<T>& w = parts[omp_get_thread_num()];
        spread(t.map + given.co, given.co, w.level.data()), spread(t.map + 2 * given.co, given.co, w.tilt.data());
#pragma omp for schedule(static)
        for (int64_t group = 0; group < s.images(); ++group)
            group_back(s, t, w, group * s.group, std::min(given.n, (group + 1) * s.group), each.data());
    }
    for (int64_t i = 0; t.pivot && i < given.n; ++i)
        for (int64_t l = 0; l < 2 * given.ci; ++l) sums[l] += each[2 * i * given.ci + l];
    if (t.learn) learnt(s, parts, dweight);
}

}  // namespace

#define EXPORT_WIDE(T, NAME)                                                                                                   \
    extern "C" void oche_wide_forward_##NAME(const Stage* s, const T* x, const T* a, const T* b, const T* weight, T* y,        \
                                             double* mean, double* variance) {                                                 \
        wide_forward<T>(*s, x, a, b, weight, y, mean, variance);                                                               \
    }                                                                                                                          \
    extern "C" void oche_wide_backward_##NAME(const Stage* s, const T* x, const T* a, const T* b, const T* weight, const T* g, \
                                              const T* y, const T* map, const T* factor, const T* pivot, const T* also, T* dx, \
                                              double* sums, T* dweight) {                                                      \
        wide_backward<T>(*s, a, b, weight, {x, g, y, map, factor, pivot, dx, also, dweight != nullptr}, sums, dweight);              \
    }
EXPORT_WIDE(float, f32)
EXPORT_WIDE(double, f64)
