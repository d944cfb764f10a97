// A node: the sum of stages' outputs after their batch norms, and what its gradient is multiplied by.

#pragma once

#include "stage.h"

namespace {

struct Node {
    int64_t n, pixels, channels, terms, activation, threads;
};

// out = the activation of the sum over terms of f (a x + b), a and b (terms, channels), f (terms, n) or null
template <class T> void join(const Node& s, const T* const* x, const T* a, const T* b, const T* f, T* out) {
    const int64_t period = period_of<T>(s.channels), size = s.pixels * s.channels;
#pragma omp parallel num_threads(int(s.threads))
    {
        Buffer<T> scale(s.terms * period), shift(period), one(period);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < s.n; ++n) {
            std::fill(shift.begin(), shift.end(), T(0));
            for (int64_t t = 0; t < s.terms; ++t) {
                const T factor = f ? f[t * s.n + n] : T(1);
                spread(a + t * s.channels, s.channels, scale.data() + t * period, factor);
                spread(b + t * s.channels, s.channels, one.data(), factor);
                for (int64_t i = 0; i < period; ++i) shift[i] += one[i];
            }
            const T *scale_ = scale.data(), *shift_ = shift.data();
            const int64_t terms = s.terms, first = n * size;
            const bool past = past_caches(out + first, s.n * size);
            by_kind(s.activation, false, [&](auto kind, auto) {
                along<T>(size, period, [=](int64_t i, int64_t place, int lanes) {
                    V<T> v = at(shift_ + place);
                    for (int64_t t = 0; t < terms; ++t) v += at(scale_ + t * period + place) * take(x[t] + first + i, lanes);
                    put(out + first + i, activated<T, kind()>(v), lanes, past);
                });
            });
        }
    }
}

// sums (terms + 1, channels): of f g (x - pivot) for each term, last unused; and of f g: (terms, channels) behind. Behind an activation, g
// is what passes it where it gave `out`, and is left in `passing`
template <class T>
void dots(const Node& s, const T* const* x, const T* pivot, const T* f, const T* g, const T* out, T* passing, double* sums) {
    const int64_t period = period_of<T>(s.channels), size = s.pixels * s.channels, width = (s.terms + 1) * s.channels;
    Buffer<T> about(s.terms * period);
    for (int64_t t = 0; t < s.terms; ++t) spread(pivot + t * s.channels, s.channels, about.data() + t * period);
    std::vector<double> each(s.n * width);
#pragma omp parallel num_threads(int(s.threads))
    {
        Buffer<T> total(period);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < s.n; ++n) {
            if (out)
                by_kind(s.activation, false, [&](auto kind, auto) {
                    along<T>(size, period, [=](int64_t i, int64_t, int lanes) {
                        const int64_t at_ = n * size + i;
                        store_some(passing + at_, passed<T, kind()>(take(out + at_, lanes), take(g + at_, lanes)), lanes);
                    });
                });
            for (int64_t t = 0; t <= s.terms; ++t) {
                const T *from = (out ? passing : g) + n * size, *other = t < s.terms ? x[t] + n * size : nullptr;
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
                const double factor = f ? double(f[t * s.n + n]) : 1.0;
                sums[2 * t * s.channels + l] += factor * each[n * width + t * s.channels + l];
                sums[(2 * t + 1) * s.channels + l] += factor * each[n * width + s.terms * s.channels + l];
            }
}

}  // namespace
