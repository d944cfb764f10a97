// 3x3 max and average pools of one image, forward and backward.

#pragma once

#include <algorithm>
#include <limits>
#include "../lanes.h"

namespace {

template <class T> struct Pool {
    int h, w, c, s;
    int64_t ld;
    int ho() const { return (h + s - 1) / s; }
    int wo() const { return (w + s - 1) / s; }

    // of the window of output o in an image n wide: its first pixel, its last one, how many
    int first(int o) const { return std::max(0, o * s - 1); }
    int last(int o, int n) const { return std::min(n - 1, o * s + 1); }
    int size(int o, int n) const { return last(o, n) - first(o) + 1; }

    template <class F> INLINE void taps(int oy, int ox, F f) const {
        const int y = oy * s - 1, x = ox * s - 1;
        if (y >= 0 && x >= 0 && y + 2 < h && x + 2 < w) {
#pragma GCC unroll 3
            for (int ky = 0; ky < 3; ++ky)
#pragma GCC unroll 3
                for (int kx = 0; kx < 3; ++kx) f(int64_t(y + ky) * w + x + kx);
            return;
        }
        for (int iy = first(oy); iy <= last(oy, h); ++iy)
            for (int ix = first(ox); ix <= last(ox, w); ++ix) f(int64_t(iy) * w + ix);
    }

    // sums (3, c), if not null: of the pooled values and of their squares about a pivot, the image's mean, which is the third row
    void forward(bool max, const T* x, T* out, T* sums) const { max ? forward_by<true>(x, out, sums) : forward_by<false>(x, out, sums); }

    // rows of a window first, then its columns
    template <bool MAX> void forward_by(const T* x, T* out, T* sums) const {
        const V<T> none = V<T>{} - (MAX ? std::numeric_limits<T>::infinity() : T(0));
        auto join = [](V<T> a, V<T> b_) { return MAX ? (b_ > a ? b_ : a) : a + b_; };
        Buffer<T> columns(size_t(w + 2) * Vector<T>::width);  // rows joined, between two columns of nothing
        auto column = [&](int i) -> V<T>& { return at(columns.data() + i * Vector<T>::width); };
        column(0) = column(w + 1) = none;
        const int64_t row = int64_t(w) * ld;
        for (int b = 0; b < c; b += Vector<T>::width) {
            V<T> total = {}, s1 = {}, s2 = {};
            for (int oy = 0; oy < ho(); ++oy) {
                const int rows = size(oy, h);
                const T* from = x + first(oy) * row + b;
                for (int i = 0; i < w; ++i, from += ld) {
                    V<T> v = at(from);
                    if (rows > 1) v = join(v, at(from + row));
                    if (rows > 2) v = join(v, at(from + 2 * row));
                    column(i + 1) = v;
                }
                const T share[3] = {T(1.0 / rows), T(1.0 / (2 * rows)), T(1.0 / (3 * rows))};
                T* to = out + int64_t(oy) * wo() * c + b;
                for (int ox = 0; ox < wo(); ++ox, to += c) {
                    V<T> v = join(join(column(ox * s), column(ox * s + 1)), column(ox * s + 2));
                    if (!MAX) v = v * share[size(ox, w) - 1];
                    at(to) = v;
                    total += v;
                }
            }
            if (!sums) continue;
            const V<T> pivot = total * T(1.0 / (ho() * wo()));  // a state's mean may be far larger than its deviation
            for (int i = 0; i < ho() * wo(); ++i) {
                const V<T> v = at(out + int64_t(i) * c + b) - pivot;
                s1 += v, s2 += v * v;
            }
            at(sums + b) += s1, at(sums + c + b) += s2, at(sums + 2 * c + b) = pivot;
        }
    }

    // dx += what the gradient d (ho, wo, c) of the pooled values sends back; the first tap that is the maximum takes it
    void backward(bool max, const T* x, const T* out, const T* d, T* dx) const { max ? backward_max(x, out, d, dx) : backward_mean(d, dx); }

    void backward_max(const T* x, const T* out, const T* d, T* dx) const {
        const V<T> zero = {};
        for (int b = 0; b < c; b += Vector<T>::width)
            for (int oy = 0; oy < ho(); ++oy)
                for (int ox = 0; ox < wo(); ++ox) {
                    const int64_t o = (int64_t(oy) * wo() + ox) * c + b;
                    V<T> left = at(d + o);
                    const V<T> top = at(out + o);
                    taps(oy, ox, [&](int64_t i) {
                        auto hit = at(x + i * ld + b) == top;
                        at(dx + i * c + b) += hit ? left : zero;
                        left = hit ? zero : left;
                    });
                }
    }

    void backward_mean(const T* d, T* dx) const {
        T share[10];  // by the number of pixels in a window
        for (int n = 1; n < 10; ++n) share[n] = T(1.0 / n);
        Buffer<T> columns(size_t(wo() + 2) * Vector<T>::width, T(0));  // of a row of dx: what its windows' rows send, between zeros
        auto column = [&](int i) -> V<T>& { return at(columns.data() + i * Vector<T>::width); };
        for (int b = 0; b < c; b += Vector<T>::width)
            for (int y = 0; y < h; ++y) {
                const int from = y / s, until = std::min(ho() - 1, (y + 1) / s);  // windows over this row, and perhaps the one before
                for (int ox = 0; ox < wo(); ++ox) {
                    V<T> v = {};
                    for (int oy = s == 1 ? std::max(0, from - 1) : from; oy <= until; ++oy)
                        v += at(d + (int64_t(oy) * wo() + ox) * c + b) * share[size(oy, h) * size(ox, w)];
                    column(ox + 1) = v;
                }
                T* to = dx + int64_t(y) * w * c + b;
                for (int i = 0; i < w; ++i, to += c) {
                    V<T> v = column(i / s + 1);
                    if (s == 1) v += column(i) + column(i + 2);
                    else if (i % 2) v += column(i / 2 + 2);
                    at(to) += v;
                }
            }
    }
};

}  // namespace
