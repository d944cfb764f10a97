// A node: the sum of stages' outputs after their batch norms, and what its gradient is multiplied by.

#pragma once

#include "stage.h"

namespace {

struct Node {
    int64_t n, pixels, channels, terms, activation, threads;
};

// pixels of c numbers to and from a plane whose pixels have ld
template <class T> void apart(const T* from, int64_t pixels, int64_t c, int64_t from_ld, T* to, int64_t to_ld) {
    const int64_t end = c / WIDTH<T> * WIDTH<T>;
    const int rest = int(c - end);
    for (int64_t p = 0; p < pixels; ++p, from += from_ld, to += to_ld) {
        for (int64_t l = 0; l < end; l += WIDTH<T>) at(to + l) = at(from + l);
        if (rest) store_part(to + end, load_part(from + end, rest), rest);
    }
}

// out = the activation of the sum over terms of f (a x + b), a and b (terms, channels), f by term (n) or null; written to `beside` too, whose pixels
// have ld numbers. One of the two may be null.
template <class T> void join(const Node& s, const T* const* x, const T* a, const T* b, const T* const* f, T* out, T* beside = nullptr, int64_t ld = 0) {
    const int64_t c = s.channels, period = period_of<T>(c), size = s.pixels * c, step = beside ? PIXELS * c : size;
#pragma omp parallel num_threads(int(s.threads))
    {
        Buffer<T> scale(s.terms * period), shift(period), one(period), row(beside ? PIXELS * c : 0);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < s.n; ++n) {
            std::fill(shift.begin(), shift.end(), T(0));
            for (int64_t t = 0; t < s.terms; ++t) {
                const T factor = f && f[t] ? f[t][n] : T(1);
                spread(a + t * c, c, scale.data() + t * period, factor);
                spread(b + t * c, c, one.data(), factor);
                for (int64_t i = 0; i < period; ++i) shift[i] += one[i];
            }
            const T *scale_ = scale.data(), *shift_ = shift.data();
            const int64_t terms = s.terms;
            const bool past = out && past_caches(out + n * size, s.n * size);
            for (int64_t from = 0; from < size; from += step) {
                const int64_t first = n * size + from, some = std::min(step, size - from);
                T* const near = row.data();
                by_kind(s.activation, false, [&](auto kind, auto) {
                    along<T>(some, period, [=](int64_t i, int64_t place, int lanes) {
                        V<T> v = at(shift_ + place);
                        for (int64_t t = 0; t < terms; ++t) v += at(scale_ + t * period + place) * take(x[t] + first + i, lanes);
                        v = activated<T, kind()>(v);
                        if (out) put(out + first + i, v, lanes, past);
                        if (beside) store_some(near + i, v, lanes);
                    });
                });
                if (beside) apart(near, some / c, c, c, beside + first / c * ld, ld);
            }
        }
    }
}

// sums (terms, 2, channels): of f g (x - pivot) and of f g for each term. `before` is called for an image before its g is read.
template <class T, class F> void dots(const Node& s, const T* const* x, const T* pivot, const T* const* f, const T* g, F before, double* sums) {
    const int64_t period = period_of<T>(s.channels), size = s.pixels * s.channels, width = (s.terms + 1) * s.channels;
    Buffer<T> about(s.terms * period);
    for (int64_t t = 0; t < s.terms; ++t) spread(pivot + t * s.channels, s.channels, about.data() + t * period);
    std::vector<double> each(s.n * width);
#pragma omp parallel num_threads(int(s.threads))
    {
        Buffer<T> total(period);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < s.n; ++n) {
            before(n);
            for (int64_t t = 0; s.terms && t <= s.terms; ++t) {
                const T *from = g + n * size, *other = t < s.terms ? x[t] + n * size : nullptr;
                std::fill(total.begin(), total.end(), T(0));
                by_place<T>(size, period, [&](int64_t v) {
                    V<T> sum[2] = {};
                    const V<T> m = other ? at(about.data() + t * period + v) : V<T>{};
                    int64_t i = v;
                    for (; i + period + WIDTH<T> <= size; i += 2 * period)
                        for (int j = 0; j < 2; ++j) sum[j] += other ? at(from + i + j * period) * (at(other + i + j * period) - m) : at(from + i + j * period);
                    for (; i < size; i += period) {
                        const int lanes = int(std::min<int64_t>(WIDTH<T>, size - i));
                        sum[0] += other ? load_some(from + i, lanes) * (load_some(other + i, lanes) - m) : load_some(from + i, lanes);
                    }
                    at(total.data() + v) += sum[0] + sum[1];
                });
                gathered(total.data(), s.channels, &each[n * width + t * s.channels]);
            }
        }
    }
    for (int64_t n = 0; n < s.n; ++n)
        for (int64_t t = 0; t < s.terms; ++t)
            for (int64_t l = 0; l < s.channels; ++l) {
                const double factor = f && f[t] ? double(f[t][n]) : 1.0;
                sums[2 * t * s.channels + l] += factor * each[n * width + t * s.channels + l];
                sums[(2 * t + 1) * s.channels + l] += factor * each[n * width + s.terms * s.channels + l];
            }
}

}  // namespace
