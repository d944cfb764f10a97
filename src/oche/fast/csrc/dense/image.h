// Sums over an image: pools, weighted sums of terms, and the dot products of gradients.

#pragma once

#include <vector>
#include "../lanes.h"

namespace {

// to (height, width, lanes) += factor box(from): 3x3 averages of what lies inside the image, or (BACK) the transpose of that; line: scratch
template <class T, bool BACK>
void average(int height, int width, int lanes, const T* from, T* to, T* line) {
    auto inside = [](int i, int size) { return T(1.0 / (1 + (i > 0) + (i + 1 < size))); };
    const int64_t row = int64_t(width) * lanes;
    for (int y = 0; y < height; ++y) {
        const T above = y > 0 ? (BACK ? inside(y - 1, height) : T(1)) : T(0), here = BACK ? inside(y, height) : T(1);
        const T below = y + 1 < height ? (BACK ? inside(y + 1, height) : T(1)) : T(0);
        const T *p = from + y * row, *up = y > 0 ? p - row : p, *down = y + 1 < height ? p + row : p;
        for (int x = 0; x < width; ++x) {
            const T scale = BACK ? inside(x, width) : T(1);
            for (int l = x * lanes; l < (x + 1) * lanes; l += Vector<T>::width)
                at(line + l) = (at(up + l) * above + at(p + l) * here + at(down + l) * below) * scale;
        }
        for (int x = 0; x < width; ++x) {
            const T scale = BACK ? T(1) : inside(x, width) * inside(y, height);
            for (int l = x * lanes; l < (x + 1) * lanes; l += Vector<T>::width) {
                V<T> s = at(line + l);
                if (x > 0) s += at(line + l - lanes);
                if (x + 1 < width) s += at(line + l + lanes);
                at(to + y * row + l) += s * scale;
            }
        }
    }
}

// to (pixels, lanes) = or += sum_k a_k x_k + b: a (n, lanes), b (lanes) or null for zero
template <class T, int N>
void sum_some(const T* const* x, const T* a, const T* b, int64_t pixels, int lanes, T* to, bool add) {
    for (int l = 0; l < lanes; l += Vector<T>::width) {
        V<T> f[N];
        for (int k = 0; k < N; ++k) f[k] = at(a + k * lanes + l);
        const V<T> constant = b ? at(b + l) : V<T>{};
        for (int64_t i = l; i < pixels * lanes; i += lanes) {
            V<T> v = add ? at(to + i) + constant : constant;
#pragma GCC unroll 4
            for (int k = 0; k < N; ++k) v += f[k] * load(x[k] + i);
            at(to + i) = v;
        }
    }
}
template <class T>
void sum(const std::vector<const T*>& x, const T* a, const T* b, int64_t pixels, int lanes, T* to, bool add) {
    const int n = int(x.size());
    for (int k = 0; k < n || (k == 0 && !add); k += 4, a += 4 * lanes, b = nullptr) {
        const T* const* some = x.data() + k;
        const bool more = add || k > 0;
        if (n - k >= 4) sum_some<T, 4>(some, a, b, pixels, lanes, to, more);
        else if (n - k == 3) sum_some<T, 3>(some, a, b, pixels, lanes, to, more);
        else if (n - k == 2) sum_some<T, 2>(some, a, b, pixels, lanes, to, more);
        else if (n - k == 1) sum_some<T, 1>(some, a, b, pixels, lanes, to, more);
        else sum_some<T, 0>(some, a, b, pixels, lanes, to, more);
    }
}

// sums (2, lanes) in fp64: of g, and of g (x - pivot)
template <class T>
void dots(const T* g, const T* x, const T* pivot, int64_t pixels, int lanes, double* sums) {
    for (int l = 0; l < lanes; l += Vector<T>::width) {
        V<T> s[4] = {}, q[4] = {};
        const V<T> m = pivot ? at(pivot + l) : V<T>{};
        int64_t i = 0;
        for (; i + 4 <= pixels; i += 4)
#pragma GCC unroll 4
            for (int k = 0; k < 4; ++k) {
                const V<T> v = load(g + (i + k) * lanes + l);
                s[k] += v, q[k] += v * (load(x + (i + k) * lanes + l) - m);
            }
        for (; i < pixels; ++i) s[0] += at(g + i * lanes + l), q[0] += at(g + i * lanes + l) * (at(x + i * lanes + l) - m);
        const V<T> a = (s[0] + s[1]) + (s[2] + s[3]), b = (q[0] + q[1]) + (q[2] + q[3]);
        for (int k = 0; k < Vector<T>::width; ++k) sums[l + k] += a[k], sums[lanes + l + k] += b[k];
    }
}

}  // namespace
