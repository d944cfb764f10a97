// Max and average pools of an image with any number of channels, odd windows and any stride, forward and backward.

#pragma once

#include <limits>
#include "../flat.h"

namespace {

// Windows of k x k pixels about every stride-th one; pixels beyond the border count for nothing.
template <class T> struct Window {
    const bool average;
    const int64_t height, width, c, k, stride, pad, ho, wo;
    const int64_t wide;          // numbers of a row between columns that are beyond the border
    Buffer<T> share;             // by output: 1 / columns of its window that are there

    Window(bool average_, int64_t height_, int64_t width_, int64_t c_, int64_t k_, int64_t stride_)
        : average(average_), height(height_), width(width_), c(c_), k(k_), stride(stride_), pad(k_ / 2), ho((height_ + stride_ - 1) / stride_),
          wo((width_ + stride_ - 1) / stride_), wide((width_ + 2 * pad + stride_) * c_ + WIDTH<T>), share(wo * c_) {
        for (int64_t x = 0; x < wo; ++x)
            std::fill_n(share.begin() + x * c, c, T(1) / T(std::min(width, x * stride - pad + k) - std::max<int64_t>(0, x * stride - pad)));
    }

    int64_t above(int64_t y) const { return std::max<int64_t>(0, y * stride - pad); }             // the first row of output y's windows
    int64_t below(int64_t y) const { return std::min(height, y * stride - pad + k); }              // the one behind its last
    // f(where in an output's row, where in a padded row, how many): numbers whose windows are alike but for a shift
    template <class F> INLINE void stretches(F f) const {
        if (stride == 1) f(int64_t(0), int64_t(0), wo * c);
        else
            for (int64_t x = 0; x < wo; ++x) f(x * c, x * stride * c, c);
    }
    template <class F> static INLINE void vectors(int64_t length, F f) {
        int64_t i = 0;
        for (; i + WIDTH<T> <= length; i += WIDTH<T>) f(i, WIDTH<T>);
        if (i < length) f(i, int(length - i));
    }

    // out (ho, wo, c) of x (height, width, c); rows of a window first, then its columns
    void forward(const T* x, T* out, Buffer<T>& line) const { average ? forward_by<true>(x, out, line) : forward_by<false>(x, out, line); }

    // dx += what the gradient g of `out` sends back; of several equal maxima the first one takes it
    void backward(const T* x, const T* out, const T* g, T* dx, Buffer<T>& tile, Buffer<T>& line) const {
        average ? backward_mean(g, dx, line) : backward_max(x, out, g, dx, tile, line);
    }

private:
    template <bool MEAN> void forward_by(const T* x, T* out, Buffer<T>& line) const {
        line.assign(wide, MEAN ? T(0) : -std::numeric_limits<T>::infinity());
        T* const row = line.data() + pad * c;
        const int64_t length = width * c, steps = k, pixel = c;
        auto join = [](V<T> a, V<T> b) { return MEAN ? a + b : (b > a || b != b) ? b : a; };
        for (int64_t y = 0; y < ho; ++y) {
            const T* from = x + above(y) * length;
            const int64_t rows = below(y) - above(y);
            vectors(length, [=](int64_t i, int lanes) {
                V<T> v = load_some(from + i, lanes);
                for (int64_t r = 1; r < rows; ++r) v = join(v, load_some(from + r * length + i, lanes));
                store_some(row + i, v, lanes);
            });
            T* const to = out + y * wo * c;
            const T *first = line.data(), *part = share.data(), weight = T(1) / T(rows);
            stretches([=](int64_t o, int64_t in, int64_t some) {
                vectors(some, [=](int64_t i, int lanes) {
                    V<T> v = at(first + in + i);
                    for (int64_t s = 1; s < steps; ++s) v = join(v, at(first + in + s * pixel + i));
                    if (MEAN) v = v * load_some(part + o + i, lanes) * weight;
                    store_some(to + o + i, v, lanes);
                });
            });
        }
    }

    void backward_mean(const T* g, T* dx, Buffer<T>& line) const {
        line.assign(wide, T(0));
        const int64_t length = width * c;
        for (int64_t y = 0; y < ho; ++y) {
            const T *from = g + y * wo * c, *part = share.data(), weight = T(1) / T(below(y) - above(y));
            T* const row = line.data();
            std::fill(line.begin(), line.end(), T(0));
            stretches([=](int64_t o, int64_t in, int64_t some) {
                for (int64_t s = 0; s < k; ++s)
                    vectors(some, [=](int64_t i, int lanes) {
                        T* const to = row + in + s * c + i;
                        store_some(to, load_some(to, lanes) + load_some(from + o + i, lanes) * load_some(part + o + i, lanes) * weight, lanes);
                    });
            });
            for (int64_t r = above(y); r < below(y); ++r) add(row + pad * c, dx + r * length);
        }
    }

    void backward_max(const T* x, const T* out, const T* g, T* dx, Buffer<T>& tile, Buffer<T>& sums) const {
        const int64_t length = width * c;
        tile.assign(height * wide, std::numeric_limits<T>::quiet_NaN()), sums.assign(height * wide, T(0));
        for (int64_t r = 0; r < height; ++r) std::copy_n(x + r * length, length, tile.data() + r * wide + pad * c);
        for (int64_t y = 0; y < ho; ++y) {
            const T *top = out + y * wo * c, *from = g + y * wo * c, *values = tile.data() + above(y) * wide;
            T* const to = sums.data() + above(y) * wide;
            const int64_t rows = below(y) - above(y), columns = k, row = wide, pixel = c;
            stretches([=](int64_t o, int64_t in, int64_t some) {
                vectors(some, [=](int64_t i, int lanes) {
                    const V<T> most = load_some(top + o + i, lanes), zero = {};
                    V<T> left = load_some(from + o + i, lanes);
                    for (int64_t r = 0; r < rows; ++r)
                        for (int64_t s = 0; s < columns; ++s) {
                            const int64_t place = r * row + in + s * pixel + i;
                            const auto hit = load_some(values + place, lanes) == most;
                            store_some(to + place, load_some(to + place, lanes) + (hit ? left : zero), lanes);
                            left = hit ? zero : left;
                        }
                });
            });
        }
        for (int64_t r = 0; r < height; ++r) add(sums.data() + r * wide + pad * c, dx + r * length);
    }

    void add(const T* from, T* to) const {
        vectors(width * c, [=](int64_t i, int lanes) { store_some(to + i, load_some(to + i, lanes) + load_some(from + i, lanes), lanes); });
    }
};

}  // namespace
