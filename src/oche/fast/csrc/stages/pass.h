// A stage's passes, forward and backward: what a batch norm and an activation make of x, a depthwise and a 1x1 convolution of that, or one of
// them.
//
// Arrays are N H W C with any number of channels (`flat.h`). One image is the unit of parallel work: what lies between x and y stays in cache,
// and moments are taken image by image and joined in their order, so that they do not depend on the number of threads.

#pragma once

#include <cmath>
#include "moments.h"
#include "stage.h"

namespace {

// ---------------------------------------------------------------- forward

template <class T>
void forward(const Stage& given, const T* x, const T* a, const T* b, const T* taps, const T* matrix, T* y, double* mean, double* variance) {
    const Shape<T> s(given, a, b, taps, matrix);
    std::vector<double> each(s.n * 2 * s.co);
#pragma omp parallel num_threads(int(s.threads))
    {
        Buffer<T> tile(s.k ? s.tile_size() : 0, T(0)), z(std::max(s.wo, PIXELS) * s.ci + WIDTH<T>);
        Buffer<T> row(std::max(s.wo, PIXELS) * s.co + WIDTH<T>);
        Moments<T> moments(s.co);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < s.n; ++n) {
            const T* from = x + n * s.height * s.width * s.ci;
            T* to = y + n * s.ho * s.wo * s.co;
            moments.begin();
            if (s.k) s.fill(from, tile.data());
            const int64_t pixels = s.ho * s.wo, step = s.k ? s.wo : PIXELS;
            for (int64_t i = 0; i < pixels; i += step) {
                const int64_t some = std::min(step, pixels - i);
                if (s.k) convolved(s, tile.data(), i / s.wo, s.point ? z.data() : row.data());
                else s.act(from + i * s.ci, some * s.ci, z.data());
                if (s.point) product(z.data(), some, s.ci, s.matrix.data(), s.co, row.data());
                moments.add(row.data(), some * s.co, to + i * s.co, past_caches(to + i * s.co, s.n * pixels * s.co));
            }
            moments.end(pixels, &each[n * 2 * s.co]);
        }
    }
    joined(each.data(), s.n, s.co, s.ho * s.wo, mean, variance);
}

// ---------------------------------------------------------------- backward

// What one thread needs: dy = slope f g + level + tilt y, f one number an image
template <class T> struct Work {
    Buffer<T> tile, dz, dy, z, dx, phase, slope, level, tilt, dtaps, dmatrix, s1, s2;

    Work(const Shape<T>& s, const T* map, bool learn) {
        const int64_t pixels = s.k ? s.ho * s.wo : PIXELS, wide = std::max(s.width, PIXELS);
        if (s.k) tile.assign(s.tile_size(), T(0)), dz.assign(s.drows * s.drow + WIDTH<T>, T(0));
        else dz.resize(PIXELS * s.ci + WIDTH<T>);
        dy.assign(pixels * s.co + WIDTH<T>, T(0)), z.assign(pixels * s.ci + WIDTH<T>, T(0));
        dx.resize(wide * s.ci + WIDTH<T>), phase.resize(wide * s.ci + WIDTH<T>);
        slope.resize(s.out), level = slope, tilt = slope;
        spread(map + s.co, s.co, level.data()), spread(map + 2 * s.co, s.co, tilt.data());
        s1.resize(s.in), s2.resize(s.in);
        if (learn) dtaps.assign(s.k * s.k * s.in, T(0)), dmatrix.assign(s.point ? s.ci * whole<T>(s.co) : 0, T(0));
    }

    void affine(const T* g, const T* y, int64_t length, int64_t period, T* to) const {
        const T *slope_ = slope.data(), *level_ = level.data(), *tilt_ = tilt.data();
        along<T>(length, period, [=](int64_t i, int64_t place, int lanes) {
            const V<T> v = at(slope_ + place) * take(g + i, lanes) + at(level_ + place);
            store_some(to + i, v + at(tilt_ + place) * take(y + i, lanes), lanes);
        });
    }
};

// the gradient of row y of the padded image before the depthwise convolution, from a tile of dz, in the order of the image's pixels
template <class T> void turned_back(const Shape<T>& s, Work<T>& w, int64_t y, T* to) {
    for (int64_t ph = 0; ph < s.stride; ++ph) {
        const int64_t first = (ph - s.pad % s.stride + s.stride) % s.stride;  // the first pixel of this phase
        if (first >= s.width) continue;
        const int64_t count = (s.width - first + s.stride - 1) / s.stride, at_ = (first + s.pad) / s.stride;
        const T* from = w.dz.data() + (s.above + (y + s.pad) / s.stride) * s.drow + (s.left + at_) * s.ci;
        T* row = s.stride == 1 ? to : w.phase.data();
        taps_row(from, s.back[(y + s.pad) % s.stride * s.stride + ph], count * s.ci, s.in, row);
        for (int64_t i = 0; s.stride > 1 && i < count; ++i) std::memcpy(to + (first + i * s.stride) * s.ci, row + i * s.ci, s.ci * sizeof(T));
    }
}

// dx from the gradient behind the activation, plus `also`; s1, s2: sums of it and of it times x - pivot, where there is a pivot
template <class T> void through(const Shape<T>& s, Work<T>& w, const T* d, const T* x, int64_t length, const T* also, const T* pivot, T* dx) {
    const bool past = past_caches(dx, s.n * s.height * s.width * s.ci);
    T *w1 = w.s1.data(), *w2 = w.s2.data();
    const int64_t step = s.in;
    s.with_activation([&](auto kind, auto before) {
        if (!pivot) {
            along<T>(length, step, [=](int64_t i, int64_t place, int lanes) {
                V<T> v = passed<T, kind()>(before(load_some(x + i, lanes), place), load_some(d + i, lanes));
                if (also) v += load_some(also + i, lanes);
                put(dx + i, v, lanes, past);
            });
            return;
        }
        by_place<T>(length, step, [=](int64_t v) {
            V<T> s1 = {}, s2 = {};
            const V<T> m = at(pivot + v);
            for (int64_t i = v; i < length; i += step) {
                const int lanes = int(std::min<int64_t>(WIDTH<T>, length - i));
                const V<T> from = load_some(x + i, lanes);
                const V<T> g = passed<T, kind()>(before(from, v), load_some(d + i, lanes));
                s1 += g, s2 += g * (from - m);
                put(dx + i, g, lanes, past);
            }
            at(w1 + v) += s1, at(w2 + v) += s2;
        });
    });
}

template <class T> struct Back {
    const T *x, *g, *y, *map, *factor, *pivot;  // map (3, co): slope, level, tilt; factor (n) or null; pivot (ci) or null
    T* dx;                                      // or null
    const T* also;                              // what is added to dx, or null; may be dx itself
    bool learn;

    const T* also_at(const T* to) const { return also ? also + (to - dx) : nullptr; }
};

// one image whose depthwise convolution reaches over rows
template <class T> void image_back(const Shape<T>& s, const Back<T>& t, Work<T>& w, const T* x, const T* g, const T* y, const T* pivot, T* dx) {
    const int64_t wide = s.wo * s.ci;
    if (t.learn) s.fill(x, w.tile.data());
    for (int64_t r = 0; r < s.ho; ++r) {
        T* dz = w.dz.data() + (s.above + r) * s.drow + s.left * s.ci;
        const int64_t at_ = r * s.wo * s.co;
        w.affine(g + at_, y + at_, s.wo * s.co, s.out, s.point ? w.dy.data() + at_ : dz);
        if (!s.point) continue;
        product(w.dy.data() + at_, s.wo, s.co, s.turned.data(), s.ci, dz);
        if (t.learn) convolved(s, w.tile.data(), r, w.z.data() + r * wide);
    }
    if (t.learn) {
        if (s.point) outer(w.z.data(), w.dy.data(), s.ho * s.wo, s.ci, s.co, w.dmatrix.data());
        const T* dz = w.dz.data() + s.above * s.drow + s.left * s.ci;
        taps_gradient(w.tile.data(), s.forth.offsets, dz, s.ho, s.row * s.stride, s.drow, wide, s.in, w.dtaps.data());
    }
    for (int64_t r = 0; dx && r < s.height; ++r) {
        turned_back(s, w, r, w.dx.data());
        through(s, w, w.dx.data(), x + r * s.width * s.ci, s.width * s.ci, t.also_at(dx + r * s.width * s.ci), pivot, dx + r * s.width * s.ci);
    }
}

// one image of a 1x1 convolution, some pixels at a time
template <class T> void pixels_back(const Shape<T>& s, const Back<T>& t, Work<T>& w, const T* x, const T* g, const T* y, const T* pivot, T* dx) {
    for (int64_t i = 0; i < s.height * s.width; i += PIXELS) {
        const int64_t some = std::min(PIXELS, s.height * s.width - i);
        w.affine(g + i * s.co, y + i * s.co, some * s.co, s.out, w.dy.data());
        if (t.learn) {
            s.act(x + i * s.ci, some * s.ci, w.z.data());
            outer(w.z.data(), w.dy.data(), some, s.ci, s.co, w.dmatrix.data());
        }
        if (!dx) continue;
        product(w.dy.data(), some, s.co, s.turned.data(), s.ci, w.dz.data());
        through(s, w, w.dz.data(), x + i * s.ci, some * s.ci, t.also_at(dx + i * s.ci), pivot, dx + i * s.ci);
    }
}

template <class T>
void backward(const Stage& given, const T* a, const T* b, const T* taps, const T* matrix, const Back<T>& t, double* sums, T* dtaps, T* dmatrix) {
    const Shape<T> s(given, a, b, taps, matrix);
    Buffer<T> pivot(t.pivot ? s.in : 0);
    if (t.pivot) spread(t.pivot, s.ci, pivot.data());
    std::vector<double> each(t.pivot ? s.n * 2 * s.ci : 0);
    std::vector<Work<T>> parts(s.threads, Work<T>(s, t.map, t.learn));
#pragma omp parallel num_threads(int(s.threads))
    {
        Work<T>& w = parts[omp_get_thread_num()];
#pragma omp for schedule(static)
        for (int64_t n = 0; n < s.n; ++n) {
            const int64_t before = n * s.height * s.width * s.ci, behind = n * s.ho * s.wo * s.co;
            spread(t.map, s.co, w.slope.data(), t.factor ? t.factor[n] : T(1));
            std::fill(w.s1.begin(), w.s1.end(), T(0)), std::fill(w.s2.begin(), w.s2.end(), T(0));
            auto back = s.k ? image_back<T> : pixels_back<T>;
            back(s, t, w, t.x + before, t.g + behind, t.y + behind, t.pivot ? pivot.data() : nullptr, t.dx ? t.dx + before : nullptr);
            if (!t.pivot) continue;
            gathered(w.s1.data(), s.ci, &each[2 * n * s.ci]), gathered(w.s2.data(), s.ci, &each[(2 * n + 1) * s.ci]);
        }
    }
    for (int64_t i = 0; t.pivot && i < s.n; ++i)
        for (int64_t l = 0; l < 2 * s.ci; ++l) sums[l] += each[2 * i * s.ci + l];
    std::vector<double> tap(s.ci);
    for (const auto& w : parts) {
        if (!t.learn) break;
        for (int64_t k = 0; k < s.k * s.k; ++k) {
            gathered(w.dtaps.data() + k * s.in, s.ci, tap.data());
            for (int64_t l = 0; l < s.ci; ++l) dtaps[k * s.ci + l] += T(tap[l]);
        }
        for (int64_t i = 0; s.point && i < s.ci; ++i)
            for (int64_t o = 0; o < s.co; ++o) dmatrix[i * s.co + o] += w.dmatrix[i * whole<T>(s.co) + o];
    }
}

}  // namespace
