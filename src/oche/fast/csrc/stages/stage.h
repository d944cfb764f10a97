// What all images of a stage share: its shape, weights spread to periods, and the activation that its input is loaded through.

#pragma once

#include <type_traits>
#include "../past.h"

namespace {

enum Activation : int64_t { NONE, RELU, RELU6 };

struct Stage {
    int64_t n, height, width, ci, co;
    int64_t k, stride, dilation;  // k = 0: no depthwise convolution
    int64_t point;                // 1 with a 1x1 convolution
    int64_t activation, threads;
};

constexpr int64_t PIXELS = 64;  // taken at a time where there is no depthwise convolution

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

template <class T> struct Shape : Stage {
    int64_t pad, ho, wo, in, out;    // in, out: periods of the channels before and behind
    int64_t segment, row;            // of a padded tile: the pixels of one phase in a row, all phases
    int64_t left, above, drow, drows;  // of a tile of dz: pixels before a row, rows above the first, length and number of rows
    Taps<T> forth;                     // what a row of the depthwise convolution reads in a tile
    std::vector<Taps<T>> back;         // what its transpose reads of dz, by a row's phase and a pixel's
    Buffer<T> taps, matrix, turned;  // taps spread to periods; matrices with whole vectors in a row, and transposed
    Buffer<T> a, b;                  // before the activation: a x + b; empty without a batch norm

    Shape(const Stage& s, const T* a_, const T* b_, const T* taps_, const T* matrix_) : Stage(s) {
        pad = k ? dilation * (k - 1) / 2 : 0;
        ho = (height + stride - 1) / stride, wo = (width + stride - 1) / stride;
        in = period_of<T>(ci), out = period_of<T>(co);
        segment = whole<T>((width + 2 * pad + stride - 1) / stride * ci) + WIDTH<T>;
        row = segment * stride;
        left = above = k ? (k - 1) * dilation / stride : 0;
        drows = above + std::max(ho, (height - 1 + pad) / stride + 1);
        drow = whole<T>((left + std::max(wo, (width - 1 + pad) / stride + 1)) * ci) + WIDTH<T>;
        taps.resize(k * k * in);
        for (int64_t t = 0; t < k * k; ++t) spread(taps_ + t * ci, ci, taps.data() + t * in);
        back.resize(stride * stride);
        for (int64_t t = 0; t < k * k; ++t) {
            const int64_t y = t / k * dilation, x = t % k * dilation;
            forth.add(y * row + x % stride * segment + x / stride * ci, taps.data() + t * in);
            back[y % stride * stride + x % stride].add(-(y / stride * drow + x / stride * ci), taps.data() + t * in);
        }
        if (point) {
            const int64_t ld = whole<T>(co), turn = whole<T>(ci);
            matrix.assign(ci * ld, T(0)), turned.assign(co * turn, T(0));
            for (int64_t i = 0; i < ci; ++i)
                for (int64_t o = 0; o < co; ++o) matrix[i * ld + o] = turned[o * turn + i] = matrix_[i * co + o];
        }
        if (a_) {
            a.resize(in), b.resize(in);
            spread(a_, ci, a.data()), spread(b_, ci, b.data());
        }
    }

    int64_t tile_size() const { return (height + 2 * pad) * row + WIDTH<T>; }
    // f(a kind of activation, v -> a v + b) with both as constants
    template <class F> INLINE void with_activation(F f) const {
        const T *a_ = a.data(), *b_ = b.data();
        by_kind(activation, !a.empty(), [&](auto kind, auto normed) {
            f(kind, [=](V<T> v, int64_t place) { return normed() ? v * at(a_ + place) + at(b_ + place) : v; });
        });
    }

    // to = the activation of some numbers of x, the first of channel 0
    void act(const T* x, int64_t length, T* to) const {
        with_activation([&](auto kind, auto before) {
            along<T>(length, in, [=](int64_t i, int64_t place, int lanes) {
                store_some(to + i, activated<T, kind()>(before(take(x + i, lanes), place)), lanes);
            });
        });
    }

    // the activations of an image between zeros, a row's pixels sorted by phase: `stride` apart
    void fill(const T* x, T* tile) const {
        for (int64_t y = 0; y < height; ++y) {
            T* to = tile + (y + pad) * row;
            const T* from = x + y * width * ci;
            if (stride == 1) act(from, width * ci, to + pad * ci);
            else
                for (int64_t i = 0; i < width; ++i) act(from + i * ci, ci, to + (i + pad) % stride * segment + (i + pad) / stride * ci);
        }
    }
};

// z (wo, ci) = row y of the depthwise convolution of a tile
template <class T> void convolved(const Shape<T>& s, const T* tile, int64_t y, T* z) {
    taps_row(tile + y * s.stride * s.row, s.forth, s.wo * s.ci, s.in, z);
}

}  // namespace
