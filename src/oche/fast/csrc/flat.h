// Rows of pixels as flat vectors, for any number of channels.
//
// In a row of N H W C memory the channel repeats every C numbers, so what belongs to channels (taps, scales, sums) is spread to one
// period, the least multiple of C that fills whole vectors, and no lane is lost to padding. The last vector of a row may be a part.

#pragma once

#include <algorithm>
#include <cstring>
#include <numeric>
#include "lanes.h"

namespace {

template <class T> constexpr int WIDTH = Vector<T>::width;

// ---------------------------------------------------------------- the first n lanes of a vector

#if VECTOR_BYTES == 32
alignas(64) const int32_t FIRST[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};  // from 8 - n on: n lanes of floats
INLINE __m256i first_lanes(int n) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(FIRST + 8 - n)); }
#endif

// the first n lanes at p, zeros behind them; nothing behind them is read
template <class T> INLINE V<T> load_part(const T* p, int n) {
    V<T> v = {};
#if VECTOR_BYTES == 64
    if constexpr (sizeof(T) == 4) reinterpret_cast<__m512&>(v) = _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
    else reinterpret_cast<__m512d&>(v) = _mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p);
#elif VECTOR_BYTES == 32
    if constexpr (sizeof(T) == 4) reinterpret_cast<__m256&>(v) = _mm256_maskload_ps(p, first_lanes(n));
    else reinterpret_cast<__m256d&>(v) = _mm256_maskload_pd(p, first_lanes(2 * n));
#else
    for (int i = 0; i < n; ++i) v[i] = p[i];
#endif
    return v;
}

template <class T> INLINE void store_part(T* p, V<T> v, int n) {
#if VECTOR_BYTES == 64
    if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), reinterpret_cast<__m512&>(v));
    else _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), reinterpret_cast<__m512d&>(v));
#elif VECTOR_BYTES == 32
    if constexpr (sizeof(T) == 4) _mm256_maskstore_ps(p, first_lanes(n), reinterpret_cast<__m256&>(v));
    else _mm256_maskstore_pd(p, first_lanes(2 * n), reinterpret_cast<__m256d&>(v));
#else
    for (int i = 0; i < n; ++i) p[i] = v[i];
#endif
}

template <class T> INLINE V<T> load_some(const T* p, int n) { return n == WIDTH<T> ? at(p) : load_part(p, n); }
template <class T> INLINE void store_some(T* p, V<T> v, int n) {
    if (n == WIDTH<T>) at(p) = v;
    else store_part(p, v, n);
}

// ---------------------------------------------------------------- periods

template <class T> int64_t whole(int64_t n) { return (n + WIDTH<T> - 1) / WIDTH<T> * WIDTH<T>; }
template <class T> int64_t period_of(int64_t c) { return std::lcm<int64_t>(c, WIDTH<T>); }

// a number per channel, spread to a period; `times` multiplies all of them
template <class T> void spread(const T* v, int64_t c, T* to, T times = T(1)) {
    for (int64_t first = 0, period = period_of<T>(c); first < period; first += c)
        for (int64_t l = 0; l < c; ++l) to[first + l] = v[l] * times;
}

// to (c) = the sums over a period's repetitions
template <class T> void gathered(const T* from, int64_t c, double* to) {
    std::fill_n(to, c, 0.0);
    for (int64_t first = 0, period = period_of<T>(c); first < period; first += c)
        for (int64_t l = 0; l < c; ++l) to[l] += double(from[first + l]);
}

// f(place in the row, place in the period, lanes) for every vector of a row of `length` numbers
template <class T, class F> INLINE void along(int64_t length, int64_t period, F f) {
    int64_t i = 0, at_ = 0;
    for (; i + WIDTH<T> <= length; i += WIDTH<T>) {
        f(i, at_, WIDTH<T>);
        if ((at_ += WIDTH<T>) == period) at_ = 0;
    }
    if (i < length) f(i, at_, int(length - i));
}

// f(first place of a channel vector) for one period; inside, places of the same channels are `period` apart
template <class T, class F> INLINE void by_place(int64_t length, int64_t period, F f) {
    for (int64_t v = 0; v < std::min(length, period); v += WIDTH<T>) f(v);
}

// ---------------------------------------------------------------- a row of a depthwise convolution

template <class T> struct Taps {  // how far from the row's start each tap reads, and its values, of one period
    std::vector<int64_t> offsets;
    std::vector<const T*> values;
    void add(int64_t offset, const T* v) { offsets.push_back(offset), values.push_back(v); }
};

template <class T, int X>
INLINE void taps_some(const T* from, const int64_t* offsets, const T* const* values, int64_t count, int64_t place, int64_t step, V<T>* acc) {
#pragma GCC unroll 16
    for (int x = 0; x < X; ++x) acc[x] = V<T>{};
    for (int64_t t = 0; t < count; ++t) {
        const V<T> tap = at(values[t] + place);
        const T *p = from + offsets[t], *q = p + 4 * step;
#pragma GCC unroll 16
        for (int x = 0; x < X; ++x) acc[x] += at(x < 4 ? p + x * step : q + (x - 4) * step) * tap;
    }
}

template <class T, int X>
INLINE int64_t taps_run(const T* from, const int64_t* offsets, const T* const* values, int64_t count, int64_t i, int64_t place, int64_t end, int64_t step, T* out) {
    for (; i + (X - 1) * step < end; i += X * step) {
        V<T> acc[X];
        taps_some<T, X>(from + i, offsets, values, count, place, step, acc);
#pragma GCC unroll 16
        for (int x = 0; x < X; ++x) at(out + i + x * step) = acc[x];
    }
    return i;
}

// out (length) = sum over taps of what they read times their values; vectors may be read behind `length`, none is written there
template <class T> void taps_row(const T* from, const Taps<T>& taps, int64_t length, int64_t period, T* out) {
    const int64_t end = length / WIDTH<T> * WIDTH<T>, count = int64_t(taps.offsets.size());  // end: of whole vectors
    const int64_t* offsets = taps.offsets.data();
    const T* const* values = taps.values.data();
    for (int64_t v = 0; v < std::min(end, period); v += WIDTH<T>) {
        int64_t i = taps_run<T, 8>(from, offsets, values, count, v, v, end, period, out);
        i = taps_run<T, 4>(from, offsets, values, count, i, v, end, period, out);
        i = taps_run<T, 2>(from, offsets, values, count, i, v, end, period, out);
        taps_run<T, 1>(from, offsets, values, count, i, v, end, period, out);
    }
    if (end == length) return;
    V<T> acc[1];
    taps_some<T, 1>(from + end, offsets, values, count, end % period, period, acc);
    store_part(out + end, acc[0], int(length - end));
}

// dtaps[t] (period) += sum over rows and places of dz times what the tap reads; rows are `down` apart in `from` and `dz_down` in dz, which is zero behind
// its rows as far as a vector reaches
template <class T, int N>
INLINE void taps_gradient_some(const T* from, const int64_t* offsets, const T* dz, int64_t rows, int64_t down, int64_t dz_down, int64_t length, int64_t period, T* dtaps) {
    by_place<T>(length, period, [&](int64_t v) {
        V<T> acc[N];
        const T* start[N];
#pragma GCC unroll 16
        for (int t = 0; t < N; ++t) acc[t] = V<T>{}, start[t] = from + offsets[t];
        for (int64_t y = 0; y < rows; ++y)
            for (int64_t i = v; i < length; i += period) {
                const V<T> g = at(dz + y * dz_down + i);
                const int64_t place = y * down + i;
#pragma GCC unroll 16
                for (int t = 0; t < N; ++t) acc[t] += g * at(start[t] + place);
            }
#pragma GCC unroll 16
        for (int t = 0; t < N; ++t) at(dtaps + t * period + v) += acc[t];
    });
}

template <class T>
void taps_gradient(const T* from, const std::vector<int64_t>& offsets, const T* dz, int64_t rows, int64_t down, int64_t dz_down, int64_t length, int64_t period, T* dtaps) {
    int64_t t = 0;
    const int64_t count = int64_t(offsets.size()), *o = offsets.data();
    for (; t + 9 <= count; t += 9) taps_gradient_some<T, 9>(from, o + t, dz, rows, down, dz_down, length, period, dtaps + t * period);
    for (; t + 4 <= count; t += 4) taps_gradient_some<T, 4>(from, o + t, dz, rows, down, dz_down, length, period, dtaps + t * period);
    for (; t < count; ++t) taps_gradient_some<T, 1>(from, o + t, dz, rows, down, dz_down, length, period, dtaps + t * period);
}

// ---------------------------------------------------------------- products of rows of pixels

template <class T, int B, int X>
INLINE void product_some(const T* z, int64_t ci, const T* p, int64_t ld, T* y, int64_t co, int last) {
    constexpr int W = WIDTH<T>;
    V<T> acc[X][B];
#pragma GCC unroll 16
    for (int x = 0; x < X; ++x)
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) acc[x][b] = V<T>{};
    const T* fours[(X + 3) / 4];  // rows by fours, so that few addresses are needed
#pragma GCC unroll 4
    for (int x = 0; x < X; x += 4) fours[x / 4] = z + x * ci;
    for (int64_t i = 0; i < ci; ++i, p += ld) {
        V<T> q[B];
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) q[b] = at(p + b * W);
#pragma GCC unroll 16
        for (int x = 0; x < X; ++x)
#pragma GCC unroll 4
            for (int b = 0; b < B; ++b) acc[x][b] += fours[x / 4][x % 4 * ci + i] * q[b];
    }
#pragma GCC unroll 16
    for (int x = 0; x < X; ++x)
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) store_some(y + x * co + b * W, acc[x][b], b == B - 1 ? last : W);
}

template <class T, int B>
void product_block(const T* z, int64_t n, int64_t ci, const T* p, int64_t ld, T* y, int64_t co, int last) {
    constexpr int X = VECTOR_BYTES == 64 ? (B == 1 ? 16 : 8) : (B == 1 ? 8 : 4);
    int64_t x = 0;
    for (; x + X <= n; x += X) product_some<T, B, X>(z + x * ci, ci, p, ld, y + x * co, co, last);
    for (; x + 4 <= n; x += 4) product_some<T, B, 4>(z + x * ci, ci, p, ld, y + x * co, co, last);
    for (; x < n; ++x) product_some<T, B, 1>(z + x * ci, ci, p, ld, y + x * co, co, last);
}

// f(first of B vectors, B as a constant, lanes of the last of them) over `lanes` numbers
template <class T, class F> INLINE void in_blocks(int64_t lanes, F f) {
    constexpr int W = WIDTH<T>;
    for (int64_t left = whole<T>(lanes) / W, b = 0; left > 0;) {
        const int take = left == 4 ? 2 : int(std::min<int64_t>(3, left));
        const int last = int(std::min<int64_t>(W, lanes - (b + take - 1) * W));
        if (take == 3) f(b * W, std::integral_constant<int, 3>{}, last);
        else if (take == 2) f(b * W, std::integral_constant<int, 2>{}, last);
        else f(b * W, std::integral_constant<int, 1>{}, last);
        b += take, left -= take;
    }
}

// y (n, co) = z (n, ci) p; p (ci, whole(co)), zero behind its columns
template <class T> void product(const T* z, int64_t n, int64_t ci, const T* p, int64_t co, T* y) {
    const int64_t ld = whole<T>(co);
    in_blocks<T>(co, [&](int64_t b, auto size, int last) { product_block<T, size()>(z, n, ci, p + b, ld, y + b, co, last); });
}

template <class T, int B, int I>
INLINE void outer_some(const T* z, const T* dy, int64_t n, int64_t ci, int64_t co, T* dp, int64_t ld) {
    constexpr int W = WIDTH<T>;
    V<T> acc[I][B];
#pragma GCC unroll 16
    for (int i = 0; i < I; ++i)
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) acc[i][b] = V<T>{};
    for (int64_t x = 0; x < n; ++x) {
        V<T> g[B];
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) g[b] = at(dy + x * co + b * W);
#pragma GCC unroll 16
        for (int i = 0; i < I; ++i)
#pragma GCC unroll 4
            for (int b = 0; b < B; ++b) acc[i][b] += z[x * ci + i] * g[b];
    }
#pragma GCC unroll 16
    for (int i = 0; i < I; ++i)
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) at(dp + i * ld + b * W) += acc[i][b];
}

// dp (ci, whole(co)) += z (n, ci)^T dy (n, co); behind dp's columns anything; a vector is read behind dy
template <class T> void outer(const T* z, const T* dy, int64_t n, int64_t ci, int64_t co, T* dp) {
    const int64_t ld = whole<T>(co);
    in_blocks<T>(co, [&](int64_t b, auto size, int) {
        constexpr int B = size(), I = VECTOR_BYTES == 64 ? (B == 1 ? 16 : 8) : (B == 1 ? 8 : 4);
        int64_t i = 0;
        for (; i + I <= ci; i += I) outer_some<T, B, I>(z + i, dy + b, n, ci, co, dp + i * ld + b, ld);
        for (; i + 4 <= ci; i += 4) outer_some<T, B, 4>(z + i, dy + b, n, ci, co, dp + i * ld + b, ld);
        for (; i < ci; ++i) outer_some<T, B, 1>(z + i, dy + b, n, ci, co, dp + i * ld + b, ld);
    });
}

}  // namespace
