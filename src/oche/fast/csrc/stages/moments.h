// Mean and variance of what a stage gives, image by image.

#pragma once

#include "../past.h"

namespace {

// Sums about a pivot, which keeps small numbers where the mean is large: the mean of the image's first row
template <class T> struct Moments {
    int64_t c, period;
    Buffer<T> pivot, s, q, about;
    std::vector<double> shift, sums, squares;
    bool fresh = true;
    explicit Moments(int64_t c_) : c(c_), period(period_of<T>(c_)), pivot(period), s(period), q(period), about(c_), shift(c_), sums(c_), squares(c_) {}

    void begin() {
        std::fill(s.begin(), s.end(), T(0)), std::fill(q.begin(), q.end(), T(0)), std::fill(pivot.begin(), pivot.end(), T(0));
        fresh = true;
    }
    // takes a row y in, and writes it to `to`
    void add(const T* y, int64_t length, T* to, bool past) {
        if (fresh) {
            pass<false>(y, length, nullptr, false);
            gathered(s.data(), c, shift.data());
            for (int64_t l = 0; l < c; ++l) about[l] = T(shift[l] * c / length);
            spread(about.data(), c, pivot.data());
            std::fill(s.begin(), s.end(), T(0)), fresh = false;
        }
        pass<true>(y, length, to, past);
    }
    // of `count` pixels: mean (c) and the sum of squares about it (c)
    void end(int64_t count, double* to) {
        gathered(s.data(), c, sums.data()), gathered(q.data(), c, squares.data());
        for (int64_t l = 0; l < c; ++l) to[l] = double(pivot[l]) + sums[l] / count, to[c + l] = squares[l] - sums[l] * sums[l] / count;
    }

private:
    template <bool SQUARES> void pass(const T* y, int64_t length, T* to, bool past) {
        T *s_ = s.data(), *q_ = q.data(), *pivot_ = pivot.data();
        const int64_t step = period;
        by_place<T>(length, step, [=](int64_t v) {
            V<T> sum = {}, square = {};
            const V<T> m = at(pivot_ + v);
            for (int64_t i = v; i < length; i += step) {
                const int lanes = int(std::min<int64_t>(WIDTH<T>, length - i));
                const V<T> from = load_some(y + i, lanes);
                V<T> d = from - m;
                if (lanes < WIDTH<T>)
                    for (int l = lanes; l < WIDTH<T>; ++l) d[l] = 0;
                sum += d;
                if (SQUARES) square += d * d, put(to + i, from, lanes, past);
            }
            at(s_ + v) += sum;
            if (SQUARES) at(q_ + v) += square;
        });
    }
};

// mean (c) and biased variance (c) of all images' moments (n, 2, c), of `count` pixels each
inline void joined(const double* each, int64_t n, int64_t c, int64_t count, double* mean, double* variance) {
    for (int64_t l = 0; l < c; ++l) {
        double m = 0, q = 0;
        for (int64_t i = 0; i < n; ++i) m += each[2 * i * c + l];
        m /= n;
        for (int64_t i = 0; i < n; ++i) {
            const double d = each[2 * i * c + l] - m;
            q += each[(2 * i + 1) * c + l] + d * d * count;
        }
        mean[l] = m, variance[l] = std::max(0.0, q / (double(n) * count));
    }
}

}  // namespace
