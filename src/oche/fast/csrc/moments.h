// What the stages of a network that learns have in common: activations and their slopes, stores past the caches, moments.

#pragma once

#include "flat.h"

namespace {

enum Activation : int64_t { NONE, RELU, RELU6 };

template <class T, int KIND> INLINE V<T> activated(V<T> v) {  // what is no number stays none
    const V<T> zero = {}, six = zero + T(6);
    if (KIND == NONE) return v;
    v = zero > v ? zero : v;
    return KIND == RELU6 ? (v > six ? six : v) : v;
}

// g where the activation of v has the slope 1, else 0
template <class T, int KIND> INLINE V<T> passed(V<T> v, V<T> g) {
    const V<T> zero = {}, six = zero + T(6);
    if (KIND == NONE) return g;
    g = v <= zero ? zero : g;
    return KIND == RELU6 ? (v >= six ? zero : g) : g;
}

template <int KIND> using Kind = std::integral_constant<int, KIND>;
// f with the kind of activation as a constant, and whether there is a batch norm before it
template <class F> INLINE void by_kind(int64_t kind, bool normed, F f) {
    if (kind == NONE) normed ? f(Kind<NONE>{}, std::true_type{}) : f(Kind<NONE>{}, std::false_type{});
    else if (kind == RELU) normed ? f(Kind<RELU>{}, std::true_type{}) : f(Kind<RELU>{}, std::false_type{});
    else normed ? f(Kind<RELU6>{}, std::true_type{}) : f(Kind<RELU6>{}, std::false_type{});
}

// to = v past the caches where that pays: whole lines of planes that no cache holds
constexpr int64_t LARGE = 1 << 21;  // bytes
template <class T> INLINE void put(T* to, V<T> v, int lanes, bool past) {
    if (past && lanes == WIDTH<T>) stream(to, v);
    else store_some(to, v, lanes);
}
template <class T> bool past_caches(const T* to, int64_t elements) {
    return VECTOR_BYTES == 64 && elements * int64_t(sizeof(T)) > LARGE && reinterpret_cast<uintptr_t>(to) % VECTOR_BYTES == 0;
}
template <class T> INLINE V<T> take(const T* p, int lanes) { return lanes == WIDTH<T> ? load(p) : load_part(p, lanes); }

// ---------------------------------------------------------------- moments

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
