// How is a cell of dense convolutions, average pools and skips computed in few passes over memory?
//
// Plain C interface, called through ctypes; the plan and the units are written by `dense.py` and must match `Plan` and `Unit` below.
// Arrays are N H W C with C a multiple of BLOCK lanes. `fold` images may sit side by side in the lanes: statistics are then folded
// over them. A group of images is the unit of parallel work. Formulas: the docstring of `dense.py`.
//
// 3x3 convolutions are Winograd's F(2x2, 3x3) (Lavin & Gray, CVPR 2016), 2.25 times fewer products: with Y = A'[(G g G') * (B' d B)]A
// the input's transform serves all out-edges of a state, the output's transform all in-edges of its gradient. Operands of products
// are kept in blocks of 16 lanes, so that every address within a product is a constant.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "lanes.h"

namespace {

constexpr int BLOCK = 16;   // lanes of a block
constexpr int TILES = 16;   // tiles of 2x2 pixels whose products are taken together
constexpr int BATCH = 32;   // the same for weight gradients, where the sums are the large operand

enum Kind : int64_t { WIDE, POINT, SKIP, POOL };  // 3x3 and 1x1 convolution, identity, 3x3 average

struct Unit {  // one candidate of one edge
    int64_t kind, src, dst, weight;  // weight: position in the flattened op weights
    int64_t conv, term;              // number of the convolution and its batch norm; offset of T in the saved buffer, -1: computed anew
};

struct Plan {
    int64_t n, height, width, lanes, channels, fold, inputs, nodes, units, convs, group, threads;
    double eps;
};

template <class T> struct Filter {  // a weight (out, in, k, k) where it lies, strides in elements
    T* at;
    int64_t out, in, y, x;
};

// ---------------------------------------------------------------- products of blocks

// y (X rows) = or += a (X, 16 blocks) b; a's blocks `astep` apart, b (16 blocks, 16) at columns NB vectors apart by `bstep`
template <class T, int NB, int X>
INLINE void product_some(const T* a, int blocks, int64_t astep, const T* b, int64_t bstep, T* y, int64_t ystep, int64_t yblock, bool add,
                         V<T>* sums) {
    V<T> acc[X][NB];
#pragma GCC unroll 16
    for (int x = 0; x < X; ++x)
#pragma GCC unroll 2
        for (int c = 0; c < NB; ++c) acc[x][c] = add ? at(y + x * ystep + c * yblock) : V<T>{};
    for (int k = 0; k < blocks; ++k) {
        const T *p = a + k * astep, *q = b + int64_t(k) * BLOCK * BLOCK;
        for (int i = 0; i < BLOCK; ++i) {
            V<T> f[NB];
#pragma GCC unroll 2
            for (int c = 0; c < NB; ++c) f[c] = at(q + i * BLOCK + c * bstep);
#pragma GCC unroll 16
            for (int x = 0; x < X; ++x)
#pragma GCC unroll 2
                for (int c = 0; c < NB; ++c) acc[x][c] += p[x * BLOCK + i] * f[c];
        }
    }
#pragma GCC unroll 16
    for (int x = 0; x < X; ++x)
#pragma GCC unroll 2
        for (int c = 0; c < NB; ++c) {
            at(y + x * ystep + c * yblock) = acc[x][c];
            if (sums) sums[2 * c] += acc[x][c], sums[2 * c + 1] += acc[x][c] * acc[x][c];
        }
}

template <class T, int NB> constexpr int rows_at_once() { return VECTOR_BYTES == 64 ? 16 / NB : 8 / NB; }

// distance of two neighbouring vectors of columns: in one block, or one block apart
template <class T> INLINE int64_t apart(int64_t step) { return Vector<T>::width < BLOCK ? Vector<T>::width : step; }

// columns of lane l in an array of blocks that lie `step` apart
INLINE int64_t column(int l, int64_t step) { return l / BLOCK * step + l % BLOCK; }

// f(std::integral_constant vectors, first lane) over all lanes, two vectors at a time
template <class T, class F> INLINE void by_columns(int lanes, F f) {
    constexpr int W = Vector<T>::width;
    int l = 0;
    for (; l + 2 * W <= lanes; l += 2 * W) f(std::integral_constant<int, 2>{}, l);
    for (; l < lanes; l += W) f(std::integral_constant<int, 1>{}, l);
}

// y (rows, lanes) = or += a m: a in blocks (blocks, rows, 16), m in blocks of columns (lanes / 16, 16 blocks, 16); sums (2, lanes)
template <class T>
void pointwise(const T* a, int rows, int blocks, const T* m, int lanes, T* y, bool add, T* sums) {
    const int64_t astep = int64_t(rows) * BLOCK, mstep = int64_t(blocks) * BLOCK * BLOCK;
    by_columns<T>(lanes, [&](auto count, int l) {
        constexpr int NB = decltype(count)::value, W = Vector<T>::width, X = rows_at_once<T, NB>();
        V<T> s[2 * NB] = {};
        const T* q = m + column(l, mstep);
        int x = 0;
        for (; x + X <= rows; x += X)
            product_some<T, NB, X>(a + x * BLOCK, blocks, astep, q, apart<T>(mstep), y + int64_t(x) * lanes + l, lanes, W, add, sums ? s : nullptr);
        for (; x < rows; ++x)
            product_some<T, NB, 1>(a + x * BLOCK, blocks, astep, q, apart<T>(mstep), y + int64_t(x) * lanes + l, lanes, W, add, sums ? s : nullptr);
        if (sums)
            for (int c = 0; c < NB; ++c) at(sums + l + c * W) += s[2 * c], at(sums + lanes + l + c * W) += s[2 * c + 1];
    });
}

// d (blocks 16, lanes) += a' g over rows; a (blocks, rows, 16) and g (lanes / 16, rows, 16), their blocks `step` apart
template <class T>
void outer(const T* a, const T* g, int rows, int64_t step, int blocks, int lanes, T* d) {
    by_columns<T>(lanes, [&](auto count, int l) {
        constexpr int NB = decltype(count)::value, W = Vector<T>::width, I = rows_at_once<T, NB>();
        const T* q = g + column(l, step);
        for (int k = 0; k < blocks; ++k)
            for (int i = 0; i < BLOCK; i += I) {
                V<T> acc[I][NB] = {};
                const T* p = a + k * step + i;
                for (int x = 0; x < rows; ++x) {
                    V<T> f[NB];
#pragma GCC unroll 2
                    for (int c = 0; c < NB; ++c) f[c] = at(q + x * BLOCK + c * apart<T>(step));
#pragma GCC unroll 16
                    for (int j = 0; j < I; ++j)
#pragma GCC unroll 2
                        for (int c = 0; c < NB; ++c) acc[j][c] += p[x * BLOCK + j] * f[c];
                }
#pragma GCC unroll 16
                for (int j = 0; j < I; ++j)
#pragma GCC unroll 2
                    for (int c = 0; c < NB; ++c) at(d + (int64_t(k) * BLOCK + i + j) * lanes + l + c * W) += acc[j][c];
            }
    });
}

// ---------------------------------------------------------------- Winograd's transforms

struct Tiles {  // 2x2 tiles of images that lie padded by one pixel, and by one more where a side is odd
    int height, width, lanes;
    int down() const { return (height + 1) / 2; }
    int across() const { return (width + 1) / 2; }
    int count() const { return down() * across(); }
    int64_t row() const { return int64_t(2 * across() + 2) * lanes; }
    int64_t image() const { return (2 * down() + 2) * row(); }
    // where tile t's 4x4 patch begins
    int64_t patch(int t) const {
        const int in = t % count();
        return t / count() * image() + 2 * (in / across()) * row() + 2 * (in % across()) * lanes;
    }
};

struct Spots {  // where the tiles of a block lie in images without padding, and whether their second row and column are inside
    int64_t at[TILES];
    bool below[TILES], beside[TILES];
    int n;

    Spots(const Tiles& s, int first, int total) : n(std::min(TILES, total - first)) {
        for (int t = 0; t < n; ++t) {
            const int in = (first + t) % s.count(), image = (first + t) / s.count(), y = in / s.across() * 2, x = in % s.across() * 2;
            at[t] = ((int64_t(image) * s.height + y) * s.width + x) * s.lanes;
            below[t] = y + 1 < s.height, beside[t] = x + 1 < s.width;
        }
    }
};

// (rows of B') d: one dimension of the input's transform
template <class U> INLINE void spread(const U& a, const U& b, const U& c, const U& d, U* to, int step) {
    to[0] = a - c, to[step] = b + c, to[2 * step] = c - b, to[3 * step] = b - d;
}

// v (16, blocks, size, 16) = B' d B for `n` tiles from `first` on; `block`, `blocks`: where in v these lanes stand
template <class T>
void transform_input(const Tiles s, const T* padded, int first, int n, int size, int block, int blocks, T* v) {
    const int64_t step = int64_t(blocks) * size * BLOCK, row = s.row(), lanes = s.lanes;  // by value: a store may alias all else
    for (int t = 0; t < n; ++t) {
        const T* from = padded + s.patch(first + t);
        for (int l = 0; l < lanes; l += Vector<T>::width) {
            V<T> half[16], whole[16];
#pragma GCC unroll 4
            for (int x = 0; x < 4; ++x) {
                const T* p = from + x * lanes + l;
                spread<V<T>>(at(p), at(p + row), at(p + 2 * row), at(p + 3 * row), half + x, 4);
            }
#pragma GCC unroll 4
            for (int y = 0; y < 4; ++y) spread<V<T>>(half[4 * y], half[4 * y + 1], half[4 * y + 2], half[4 * y + 3], whole + 4 * y, 1);
            T* to = v + (int64_t(block) * size + t) * BLOCK + column(l, int64_t(size) * BLOCK);
#pragma GCC unroll 16
            for (int f = 0; f < 16; ++f) at(to + f * step) = whole[f];
        }
    }
    for (int t = n; t < size; ++t)
        for (int f = 0; f < 16; ++f)
            for (int l = 0; l < s.lanes; l += Vector<T>::width)
                at(v + f * step + (int64_t(block) * size + t) * BLOCK + column(l, int64_t(size) * BLOCK)) = V<T>{};
}

// z (16, lanes / 16, size, 16) = A dY A'
template <class T>
void transform_gradient(const Tiles s, const T* padded, int first, int n, int size, T* z) {
    const int64_t step = int64_t(s.lanes) * size, row = s.row(), lanes = s.lanes;
    for (int t = 0; t < n; ++t) {
        const T* from = padded + s.patch(first + t) + row + lanes;
        for (int l = 0; l < lanes; l += Vector<T>::width) {
            const V<T> a = at(from + l), b = at(from + lanes + l), c = at(from + row + l), d = at(from + row + lanes + l);
            const V<T> left[4] = {a, a + c, a - c, -c}, right[4] = {b, b + d, b - d, -d};
            T* to = z + int64_t(t) * BLOCK + column(l, int64_t(size) * BLOCK);
#pragma GCC unroll 4
            for (int y = 0; y < 4; ++y) {
                at(to + (4 * y) * step) = left[y], at(to + (4 * y + 1) * step) = left[y] + right[y];
                at(to + (4 * y + 2) * step) = left[y] - right[y], at(to + (4 * y + 3) * step) = -right[y];
            }
        }
    }
    for (int t = n; t < size; ++t)
        for (int f = 0; f < 16; ++f)
            for (int l = 0; l < s.lanes; l += Vector<T>::width)
                at(z + f * step + int64_t(t) * BLOCK + column(l, int64_t(size) * BLOCK)) = V<T>{};
}

// A' [v u] A for a block of tiles and NB vectors of columns: to y_c with sums s_c (2, lanes), or added to y_c without; m: scratch
template <class T, int NB, bool ADD>
void transform_output(const Tiles s, const Spots& spots, const T* v, int blocks, const T* u, int64_t ustep, T* m, T* const* y, T* const* sums) {
    constexpr int W = Vector<T>::width, X = rows_at_once<T, NB>(), R = 4 * NB * TILES * W;
    const int64_t across = int64_t(TILES) * BLOCK, vstep = blocks * across, size = int64_t(blocks) * BLOCK * BLOCK;
    for (int f = 0; f < 16; ++f)
        for (int x = 0; x < TILES; x += X)
            product_some<T, NB, X>(v + f * vstep + x * BLOCK, blocks, across, u + f * size, apart<T>(ustep), m + (f * NB * TILES + x) * W,
                                   W, TILES * W, false, nullptr);
    const int64_t right = s.lanes, down = int64_t(s.width) * s.lanes;
    for (int c = 0; c < NB; ++c) {
        V<T> s1 = {}, s2 = {};
        for (int t = 0; t < spots.n; ++t) {
            V<T> top[4], bottom[4];
#pragma GCC unroll 4
            for (int x = 0; x < 4; ++x) {
                const T* p = m + ((x * NB + c) * TILES + t) * W;
                const V<T> one = at(p + R), two = at(p + 2 * R);
                top[x] = at(p) + one + two, bottom[x] = one - two - at(p + 3 * R);
            }
            T* to = y[c] + spots.at[t];
            auto put = [&](T* where, V<T> value) {
                if (ADD) value += at(where);
                at(where) = value;
                if (!ADD) s1 += value, s2 += value * value;
            };
            put(to, top[0] + top[1] + top[2]);
            if (spots.beside[t]) put(to + right, top[1] - top[2] - top[3]);
            if (spots.below[t]) put(to + down, bottom[0] + bottom[1] + bottom[2]);
            if (spots.below[t] && spots.beside[t]) put(to + down + right, bottom[1] - bottom[2] - bottom[3]);
        }
        if (!ADD) at(sums[c]) += s1, at(sums[c] + s.lanes) += s2;
    }
}

// G g G', and back: G' d G
template <class T> void transform_weight(const T g[9], T u[16]) {
    T half[12];
    for (int x = 0; x < 3; ++x) {
        const T a = g[x], b = g[3 + x], c = g[6 + x];
        half[x] = a, half[3 + x] = (a + b + c) / 2, half[6 + x] = (a - b + c) / 2, half[9 + x] = c;
    }
    for (int y = 0; y < 4; ++y) {
        const T a = half[3 * y], b = half[3 * y + 1], c = half[3 * y + 2];
        u[4 * y] = a, u[4 * y + 1] = (a + b + c) / 2, u[4 * y + 2] = (a - b + c) / 2, u[4 * y + 3] = c;
    }
}
template <class T> void transform_back(const T d[16], T g[9]) {
    T half[12];
    for (int x = 0; x < 4; ++x) {
        const T p = (d[4 + x] + d[8 + x]) / 2, q = (d[4 + x] - d[8 + x]) / 2;
        half[x] = d[x] + p, half[4 + x] = q, half[8 + x] = p + d[12 + x];
    }
    for (int y = 0; y < 3; ++y) {
        const T *h = half + 4 * y, p = (h[1] + h[2]) / 2, q = (h[1] - h[2]) / 2;
        g[3 * y] = h[0] + p, g[3 * y + 1] = q, g[3 * y + 2] = p + h[3];
    }
}

// ---------------------------------------------------------------- one image

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
            for (int k = 0; k < N; ++k) v += f[k] * at(x[k] + i);
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
                const V<T> v = at(g + (i + k) * lanes + l);
                s[k] += v, q[k] += v * (at(x + (i + k) * lanes + l) - m);
            }
        for (; i < pixels; ++i) s[0] += at(g + i * lanes + l), q[0] += at(g + i * lanes + l) * (at(x + i * lanes + l) - m);
        const V<T> a = (s[0] + s[1]) + (s[2] + s[3]), b = (q[0] + q[1]) + (q[2] + q[3]);
        for (int k = 0; k < Vector<T>::width; ++k) sums[l + k] += a[k], sums[lanes + l + k] += b[k];
    }
}

// ---------------------------------------------------------------- the cell

template <class T> struct Dense {
    const Plan& p;
    const Unit* units;
    const T* const* input;         // `inputs` pointers (n, height, width, lanes)
    const double* w;
    const Filter<const T>* filter;  // by convolution
    const T *gamma, *beta;         // (convs, channels), null where not affine
    T *saved, *out;                // nodes but the last, then the kept T; the last node
    double *mean, *rstd;           // (convs, lanes)
    const T* dout;
    T* const* dinput;              // null where nobody asks
    double* dw;                    // (ops): zeros
    const Filter<T>* dfilter;      // null where no weight learns
    double *dgamma, *dbeta;        // (convs, channels)
    T* work;                       // gradients of the nodes but the last, then the pooled gradients of all

    const int c;
    const int64_t plane;  // elements of an image
    const Tiles tiles;
    const int64_t groups;
    Buffer<T> u;                    // the present state's 3x3 weights, transformed
    std::vector<Buffer<T>> matrix;  // by convolution: 1x1 weights in blocks
    Buffer<T> slope, level, tilt;   // (units, lanes)

    Dense(const Plan& plan, const int64_t* table)
        : p(plan), units(reinterpret_cast<const Unit*>(table)), c(int(plan.lanes)), plane(plan.height * plan.width * plan.lanes),
          tiles{int(plan.height), int(plan.width), int(plan.lanes)}, groups((plan.n + plan.group - 1) / plan.group),
          matrix(plan.convs), slope(plan.units * plan.lanes), level(slope.size()), tilt(slope.size()) {}

    int states() const { return int(p.inputs + p.nodes); }
    int64_t pixels() const { return p.height * p.width; }
    int64_t begin(int64_t group) const { return group * p.group; }
    int64_t size(int64_t group) const { return std::min(p.group, p.n - begin(group)); }
    const T* state(int j, int64_t n) const { return (j < p.inputs ? input[j] : node(j)) + n * plane; }
    T* node(int j) const { return j + 1 == states() ? out : saved + (j - p.inputs) * p.n * plane; }
    T* gradient(int j) const { return work + (j - p.inputs) * p.n * plane; }
    const T* gradient(int j, int64_t n) const { return (j + 1 == states() ? dout : gradient(j)) + n * plane; }
    T* pooled(int j) const { return work + (p.nodes - 1 + j - p.inputs) * p.n * plane; }
    const T* pivot(const Unit& x, T* to) const {
        for (int l = 0; l < c; ++l) to[l] = T(mean[x.conv * c + l]);
        return to;
    }
    double scale(int64_t conv, int ch) const { return gamma ? double(gamma[conv * p.channels + ch]) : 1.0; }
    double shift(int64_t conv, int ch) const { return beta ? double(beta[conv * p.channels + ch]) : 0.0; }
    double count() const { return double(p.n) * p.fold * p.height * p.width; }

    std::vector<int> from(int j, int64_t kind) const {
        std::vector<int> found;
        for (int i = 0; i < p.units; ++i)
            if (units[i].src == j && units[i].kind == kind) found.push_back(i);
        return found;
    }
    bool reaches(int j, int64_t kind) const {  // whether node j has a candidate of this kind
        for (int i = 0; i < p.units; ++i)
            if (units[i].dst == j && units[i].kind == kind) return true;
        return false;
    }

    // scratch of a thread: `size` elements of any content, kept for the next call
    static T* scratch(size_t size) {
        static thread_local Buffer<T> mine;
        if (mine.size() < size) mine.assign(size, T(0));
        return mine.data();
    }
    size_t padded() const { return size_t(p.group) * tiles.image(); }

    // max(h, 0) of a group of images into padded tiles
    void pad(int j, int64_t g, T* to) const {
        const V<T> zero = {};
        std::memset(to, 0, padded() * sizeof(T));
        const int64_t width = p.width * c;
        for (int64_t i = 0; i < size(g); ++i) {
            const T* h = state(j, begin(g) + i);
            for (int64_t y = 0; y < p.height; ++y) {
                T* row = to + i * tiles.image() + (y + 1) * tiles.row() + c;
                for (int64_t x = 0; x < width; x += Vector<T>::width) {
                    const V<T> v = at(h + y * width + x);
                    at(row + x) = v > zero ? v : zero;
                }
            }
        }
    }
    // a g + b + e t of an image, by f(y, x, first lane, value); a lane's coefficients stay in registers
    template <class F> INLINE void mapped(int i, const T* g, const T* t, F f) const {
        const int64_t height = p.height, width = p.width, lanes = c;
        for (int64_t l = 0; l < lanes; l += Vector<T>::width) {
            const V<T> a = at(slope.data() + i * lanes + l), b = at(level.data() + i * lanes + l), e = at(tilt.data() + i * lanes + l);
            int64_t k = l;
            for (int64_t y = 0; y < height; ++y)
                for (int64_t x = 0; x < width; ++x, k += lanes) f(y, x, l, a * at(g + k) + b + e * at(t + k));
        }
    }
    // the same into a padded tile whose border is zero
    void pad_map(int i, const T* g, const T* t, T* to) const {
        const int64_t row = tiles.row(), lanes = c;
        mapped(i, g, t, [=](int64_t y, int64_t x, int64_t l, V<T> value) { at(to + (y + 1) * row + (x + 1) * lanes + l) = value; });
    }
    // max(h, 0) of an image in blocks (c / 16, pixels, 16)
    void rectify(const T* h, T* to) const {
        const V<T> zero = {};
        const int64_t n = pixels(), lanes = c;
        for (int64_t l = 0; l < lanes; l += Vector<T>::width) {
            T* block = to + column(int(l), n * BLOCK);
            for (int64_t x = 0; x < n; ++x) {
                const V<T> v = at(h + x * lanes + l);
                at(block + x * BLOCK) = v > zero ? v : zero;
            }
        }
    }
    // T of a convolution's image: kept, or (1x1) computed anew from the rectified source
    const T* term(const Unit& x, int64_t n, const T* rectified, T* to) const {
        if (x.term >= 0) return saved + x.term + n * plane;
        pointwise(rectified, int(pixels()), c / BLOCK, matrix[x.conv].data(), c, to, false, static_cast<T*>(nullptr));
        return to;
    }

    // f(group) over all groups, the same groups for the same thread whenever it is run
    template <class F> void parallel(F f) {
#pragma omp parallel for schedule(static) num_threads(int(p.threads))
        for (int64_t g = 0; g < groups; ++g) f(g);
    }

    // weight of a 1x1 convolution in blocks of columns (c / 16, c, 16); turned: out and in exchanged
    void load_matrix(int64_t conv, bool turned, Buffer<T>& to) const {
        to.assign(size_t(c) * c, T(0));
        const Filter<const T>& f = filter[conv];
        for (int64_t s = 0; s < p.fold; ++s)
            for (int64_t i = 0; i < p.channels; ++i)
                for (int64_t o = 0; o < p.channels; ++o) {
                    const int64_t row = s * p.channels + (turned ? o : i), col = s * p.channels + (turned ? i : o);
                    to[col / BLOCK * c * BLOCK + row * BLOCK + col % BLOCK] = f.at[o * f.out + i * f.in];
                }
    }
    // transformed weights of the 3x3 convolutions `mine` in blocks of columns: forward (columns: all outputs side by side) or
    // backward (rows: all outputs one after the other, taps flipped)
    void load_wide(const std::vector<int>& mine, bool back) {
        const int64_t e = mine.size(), rows = back ? e * c : c, step = 16 * rows * BLOCK;
        u.assign(size_t(16) * e * c * c, T(0));
#pragma omp parallel for schedule(static) num_threads(int(p.threads))
        for (int64_t k = 0; k < e * p.channels; ++k) {
            const Filter<const T>& f = filter[units[mine[k / p.channels]].conv];
            const int64_t o = k % p.channels;
            for (int64_t i = 0; i < p.channels; ++i) {
                T g[9], t[16];
                for (int y = 0; y < 3; ++y)
                    for (int x = 0; x < 3; ++x)
                        g[3 * y + x] = f.at[o * f.out + i * f.in + (back ? 2 - y : y) * f.y + (back ? 2 - x : x) * f.x];
                transform_weight(g, t);
                for (int64_t s = 0; s < p.fold; ++s) {
                    const int64_t outer = k / p.channels * c + s * p.channels + o, inner = s * p.channels + i;
                    const int64_t row = back ? outer : inner, col = back ? inner : outer;
                    T* to = u.data() + col / BLOCK * step + row * BLOCK + col % BLOCK;
                    for (int q = 0; q < 16; ++q) to[q * rows * BLOCK] = t[q];
                }
            }
        }
    }

    // ---------------------------------------------------------------- forward

    void run_forward() {
        for (int i = 0; i < p.units; ++i)
            if (units[i].kind == POINT) load_matrix(units[i].conv, false, matrix[units[i].conv]);
        for (int j = 0; j < states(); ++j) {
            const std::vector<int> wide = from(j, WIDE), point = from(j, POINT);
            if (!wide.empty()) load_wide(wide, false);
            const int64_t convs = wide.size() + point.size();
            Buffer<T> sums(groups * convs * 2 * c, T(0));
            parallel([&](int64_t g) {
                if (j >= p.inputs)
                    for (int64_t n = begin(g); n < begin(g) + size(g); ++n) gather(j, n);
                T* s = sums.data() + g * convs * 2 * c;
                if (!wide.empty()) convolve(j, g, wide, s);
                if (!point.empty()) mix(j, g, point, s + wide.size() * 2 * c);
            });
            int64_t k = 0;
            for (int i : wide) statistics(i, sums.data() + k++ * 2 * c, convs);
            for (int i : point) statistics(i, sums.data() + k++ * 2 * c, convs);
        }
    }

    // h_j of an image from all that leads into it
    void gather(int j, int64_t n) {
        T* to = node(j) + n * plane;
        std::vector<const T*> x;
        Buffer<T> a, b(c, T(0));
        int64_t again = 0;
        for (int i = 0; i < p.units; ++i) again += units[i].dst == j && units[i].kind == POINT && units[i].term < 0;
        T *rectified = scratch((2 + again) * plane), *made = rectified + plane;
        bool pools = false;
        int source = -1;
        for (int i = 0; i < p.units; ++i) {
            const Unit& q = units[i];
            if (q.dst != j || q.kind == POOL) {
                pools |= q.dst == j && q.kind == POOL;
                continue;
            }
            if (q.kind == SKIP) {
                x.push_back(state(int(q.src), n)), a.insert(a.end(), c, T(w[q.weight]));
                continue;
            }
            if (q.term < 0 && source != q.src) rectify(state(int(q.src), n), rectified), source = int(q.src);
            x.push_back(term(q, n, rectified, made));
            made += q.term < 0 ? plane : 0;
            for (int l = 0; l < c; ++l) a.push_back(slope[i * c + l]), b[l] += level[i * c + l];
        }
        sum(x, a.data(), b.data(), pixels(), c, to, false);
        if (!pools) return;
        x.clear(), a.clear();
        for (int i = 0; i < p.units; ++i)
            if (units[i].dst == j && units[i].kind == POOL)
                x.push_back(state(int(units[i].src), n)), a.insert(a.end(), c, T(w[units[i].weight]));
        sum(x, a.data(), static_cast<const T*>(nullptr), pixels(), c, rectified, false);
        average<T, false>(int(p.height), int(p.width), c, rectified, to, made);
    }

    void convolve(int j, int64_t g, const std::vector<int>& wide, T* sums) {
        const int total = int(size(g)) * tiles.count();
        const int64_t step = int64_t(16) * c * BLOCK, many = int64_t(16) * TILES;
        T *tile = scratch(padded() + many * c + many * 2 * Vector<T>::width), *v = tile + padded(), *m = v + many * c;
        pad(j, g, tile);
        for (int first = 0; first < total; first += TILES) {
            const Spots spots(tiles, first, total);
            transform_input(tiles, tile, first, spots.n, TILES, 0, c / BLOCK, v);
            by_columns<T>(int(wide.size()) * c, [&](auto count, int l) {
                constexpr int NB = decltype(count)::value;
                T *y[NB], *s[NB];
                for (int b = 0; b < NB; ++b) {
                    const int k = (l + b * Vector<T>::width) / c, lane = (l + b * Vector<T>::width) % c;
                    y[b] = saved + units[wide[k]].term + begin(g) * plane + lane, s[b] = sums + k * 2 * c + lane;
                }
                transform_output<T, NB, false>(tiles, spots, v, c / BLOCK, u.data() + column(l, step), step, m, y, s);
            });
        }
    }

    void mix(int j, int64_t g, const std::vector<int>& point, T* sums) {
        T *rectified = scratch(2 * plane), *made = rectified + plane;
        for (int64_t n = begin(g); n < begin(g) + size(g); ++n) {
            rectify(state(j, n), rectified);
            for (size_t k = 0; k < point.size(); ++k) {
                const Unit& q = units[point[k]];
                T* to = q.term < 0 ? made : saved + q.term + n * plane;
                pointwise(rectified, int(pixels()), c / BLOCK, matrix[q.conv].data(), c, to, false, sums + k * 2 * c);
            }
        }
    }

    // mean and 1/deviation of a convolution, and what its T is multiplied by
    void statistics(int i, const T* sums, int64_t convs) {
        const Unit& q = units[i];
        for (int ch = 0; ch < p.channels; ++ch) {
            double s1 = 0, s2 = 0;
            for (int64_t g = 0; g < groups; ++g)
                for (int64_t f = 0; f < p.fold; ++f) {
                    const T* at_ = sums + g * convs * 2 * c + f * p.channels + ch;
                    s1 += at_[0], s2 += at_[c];
                }
            const double m = s1 / count(), r = 1.0 / std::sqrt(std::max(0.0, s2 / count() - m * m) + p.eps);
            const double a = w[q.weight] * scale(q.conv, ch) * r, b = w[q.weight] * shift(q.conv, ch) - a * m;
            for (int64_t f = 0; f < p.fold; ++f) {
                const int64_t l = f * p.channels + ch;
                mean[q.conv * c + l] = m, rstd[q.conv * c + l] = r;
                slope[i * c + l] = T(a), level[i * c + l] = T(b);
            }
        }
    }

    // ---------------------------------------------------------------- backward

    void run_backward() {
        std::vector<Buffer<T>> turned(p.convs);
        for (int i = 0; i < p.units; ++i)
            if (units[i].kind == POINT) load_matrix(units[i].conv, false, matrix[units[i].conv]), load_matrix(units[i].conv, true, turned[units[i].conv]);
        for (int j = states() - 1; j >= 0; --j) {
            std::vector<double> parts(j + 1 < states() ? groups * p.units * 2 * c : 0, 0.0);
            if (j + 1 < states()) parallel([&](int64_t g) { measure(j, g, parts.data() + g * p.units * 2 * c); });
            for (int i = 0; i < p.units; ++i)
                if (units[i].src == j) coefficients(i, parts.data() + i * 2 * c);
            const bool wanted = j >= p.inputs || dinput[j];
            const std::vector<int> wide = from(j, WIDE), point = from(j, POINT);
            if (j + 1 < states() && (wanted || dfilter)) {
                const int64_t size = (wide.size() * 16 + point.size()) * c * c;
                std::vector<Buffer<T>> sums(dfilter ? p.threads : 0, Buffer<T>(size));
                if (!wide.empty()) load_wide(wide, true);
                parallel([&](int64_t g) { descend(j, g, wide, point, turned, wanted, dfilter ? sums[omp_get_thread_num()].data() : nullptr); });
                if (dfilter) store(wide, point, sums);
            }
            if (j >= p.inputs && reaches(j, POOL))
                parallel([&](int64_t g) {
                    T* line = scratch(p.width * c);
                    for (int64_t n = begin(g); n < begin(g) + this->size(g); ++n) {
                        T* to = pooled(j) + n * plane;
                        std::memset(to, 0, plane * sizeof(T));
                        average<T, true>(int(p.height), int(p.width), c, gradient(j, n), to, line);
                    }
                });
        }
    }

    // sums over a group for every unit out of state j: (units, 2, c)
    void measure(int j, int64_t g, double* sums) {
        T *rectified = scratch(2 * plane + c), *made = rectified + plane, *about = made + plane;
        const bool again = anew(j);
        for (int64_t n = begin(g); n < begin(g) + size(g); ++n) {
            if (again) rectify(state(j, n), rectified);
            for (int i = 0; i < p.units; ++i) {
                const Unit& q = units[i];
                if (q.src != j) continue;
                const int dst = int(q.dst);
                if (q.kind == SKIP) dots<T>(gradient(dst, n), state(j, n), nullptr, pixels(), c, sums + i * 2 * c);
                else if (q.kind == POOL) dots<T>(pooled(dst) + n * plane, state(j, n), nullptr, pixels(), c, sums + i * 2 * c);
                else dots<T>(gradient(dst, n), term(q, n, rectified, made), pivot(q, about), pixels(), c, sums + i * 2 * c);
            }
        }
    }
    bool anew(int j) const {
        for (int i = 0; i < p.units; ++i)
            if (units[i].src == j && units[i].kind == POINT && units[i].term < 0) return true;
        return false;
    }

    // the sums' meaning: gradients of op weight, scale and shift, and the map dT = a G + b + e T
    void coefficients(int i, const double* parts) {
        const Unit& q = units[i];
        for (int ch = 0; ch < p.channels; ++ch) {
            double r1 = 0, r2 = 0;
            for (int64_t g = 0; g < groups; ++g)
                for (int64_t f = 0; f < p.fold; ++f) {
                    const double* at_ = parts + g * p.units * 2 * c + f * p.channels + ch;
                    r1 += at_[0], r2 += at_[c];
                }
            if (q.conv < 0) {
                dw[q.weight] += r2;
                continue;
            }
            const double m = mean[q.conv * c + ch], r = rstd[q.conv * c + ch], weight = w[q.weight];
            const double s = (r2 - (m - double(T(m))) * r1) * r, a = weight * scale(q.conv, ch) * r;
            dw[q.weight] += scale(q.conv, ch) * s + shift(q.conv, ch) * r1;
            dgamma[q.conv * p.channels + ch] = weight * s, dbeta[q.conv * p.channels + ch] = weight * r1;
            for (int64_t f = 0; f < p.fold; ++f) {
                const int64_t l = i * c + f * p.channels + ch;
                slope[l] = T(a), level[l] = T(-a * (r1 - s * m * r) / count()), tilt[l] = T(-a * s * r / count());
            }
        }
    }

    // dh_j of a group from all that leads out of it, and the weights' gradients (wide (16, c, c) each, then point (c, c)) added to `learn`
    void descend(int j, int64_t g, const std::vector<int>& wide, const std::vector<int>& point, const std::vector<Buffer<T>>& turned,
                 bool wanted, T* learn) {
        const int e = int(wide.size());
        const int64_t all = p.group * plane, many = int64_t(16) * TILES, batch = int64_t(16) * BATCH;
        const int64_t products = std::max(many * c * std::max(e, 1) + many * 2 * Vector<T>::width, 2 * batch * c);
        T* sums = scratch(all + 3 * plane + (e + 1) * padded() + products);
        T *rectified = sums + all, *made = rectified + plane, *turn = made + plane, *tile = turn + plane, *v = tile + (e + 1) * padded();
        std::memset(sums, 0, all * sizeof(T));
        for (int64_t i = 0; i < size(g) && !point.empty(); ++i) {
            const int64_t n = begin(g) + i;
            rectify(state(j, n), rectified);
            for (size_t k = 0; k < point.size(); ++k) {
                const Unit& q = units[point[k]];
                const T *t = term(q, n, rectified, made), *d = gradient(int(q.dst), n);
                const int64_t width = p.width, step = pixels() * BLOCK;
                mapped(point[k], d, t, [=](int64_t y, int64_t x, int64_t l, V<T> value) {
                    at(turn + (y * width + x) * BLOCK + column(int(l), step)) = value;
                });
                if (wanted) pointwise(turn, int(pixels()), c / BLOCK, turned[q.conv].data(), c, sums + i * plane, true, static_cast<T*>(nullptr));
                if (learn) outer(rectified, turn, int(pixels()), pixels() * BLOCK, c / BLOCK, c, learn + (e * 16 + k) * c * c);
            }
        }
        const int total = int(size(g)) * tiles.count();
        const int64_t step = 16 * int64_t(e) * c * BLOCK;
        if (e) std::memset(tile, 0, e * padded() * sizeof(T));
        for (int k = 0; k < e; ++k)
            for (int64_t i = 0; i < size(g); ++i) {
                const Unit& q = units[wide[k]];
                const int64_t n = begin(g) + i;
                pad_map(wide[k], gradient(int(q.dst), n), saved + q.term + n * plane, tile + k * padded() + i * tiles.image());
            }
        for (int first = 0; first < total && e && wanted; first += TILES) {
            const Spots spots(tiles, first, total);
            for (int k = 0; k < e; ++k) transform_input(tiles, tile + k * padded(), first, spots.n, TILES, k * c / BLOCK, e * c / BLOCK, v);
            by_columns<T>(c, [&](auto count, int l) {
                constexpr int NB = decltype(count)::value;
                T* y[NB];
                for (int b = 0; b < NB; ++b) y[b] = sums + l + b * Vector<T>::width;
                transform_output<T, NB, true>(tiles, spots, v, e * c / BLOCK, u.data() + column(l, step), step, v + many * e * c, y, nullptr);
            });
        }
        if (learn && e) {
            T *h = tile + e * padded(), *z = v + batch * c;
            pad(j, g, h);
            for (int first = 0; first < total; first += BATCH) {
                const int n = std::min(BATCH, total - first);
                transform_input(tiles, h, first, n, BATCH, 0, c / BLOCK, v);
                for (int k = 0; k < e; ++k) {
                    transform_gradient(tiles, tile + k * padded(), first, n, BATCH, z);
                    for (int f = 0; f < 16; ++f)
                        outer(v + f * BATCH * c, z + f * BATCH * c, BATCH, BATCH * BLOCK, c / BLOCK, c, learn + (k * 16 + f) * int64_t(c) * c);
                }
            }
        }
        if (!wanted) return;
        for (int64_t i = 0; i < size(g); ++i) finish(j, begin(g) + i, sums + i * plane);
    }

    // dh = (h > 0) sums + what identities and pools send back
    void finish(int j, int64_t n, const T* sums) {
        T* to = (j < p.inputs ? dinput[j] : gradient(j)) + n * plane;
        const T* h = state(j, n);
        const V<T> zero = {};
        const int64_t end = plane;
        for (int64_t i = 0; i < end; i += Vector<T>::width) at(to + i) = at(h + i) > zero ? at(sums + i) : zero;
        std::vector<const T*> x;
        Buffer<T> a;
        for (int i = 0; i < p.units; ++i)
            if (units[i].src == j && units[i].conv < 0) {
                x.push_back(units[i].kind == SKIP ? gradient(int(units[i].dst), n) : pooled(int(units[i].dst)) + n * plane);
                a.insert(a.end(), c, T(w[units[i].weight]));
            }
        sum(x, a.data(), static_cast<const T*>(nullptr), pixels(), c, to, true);
    }

    // the threads' sums into the gradients of the weights
    void store(const std::vector<int>& wide, const std::vector<int>& point, const std::vector<Buffer<T>>& sums) const {
        const int64_t e = wide.size(), square = int64_t(c) * c, convs = e + int64_t(point.size());
#pragma omp parallel for schedule(static) num_threads(int(p.threads))
        for (int64_t k = 0; k < convs * p.channels; ++k) {
            const int64_t mine = k / p.channels, i = k % p.channels;
            const bool is_wide = mine < e;
            const Filter<T>& f = dfilter[units[is_wide ? wide[mine] : point[mine - e]].conv];
            for (int64_t o = 0; o < p.channels; ++o) {
                T d[16] = {};
                for (const Buffer<T>& s : sums)
                    for (int64_t fold = 0; fold < p.fold; ++fold) {
                        const int64_t lane = (fold * p.channels + i) * c + fold * p.channels + o;
                        if (!is_wide) d[0] += s[(16 * e + mine - e) * square + lane];
                        for (int q = 0; q < 16 && is_wide; ++q) d[q] += s[(mine * 16 + q) * square + lane];
                    }
                T* to = f.at + o * f.out + i * f.in;
                if (!is_wide) {
                    *to = d[0];
                    continue;
                }
                T grad[9];
                transform_back(d, grad);
                for (int y = 0; y < 3; ++y)
                    for (int x = 0; x < 3; ++x) to[y * f.y + x * f.x] = grad[3 * y + x];
            }
        }
    }
};

template <class T>
void forward(const Plan* plan, const int64_t* units, const T* const* input, const double* w, const Filter<const T>* filter,
             const T* gamma, const T* beta, T* saved, T* out, double* mean, double* rstd) {
    Dense<T> cell(*plan, units);
    cell.input = input, cell.w = w, cell.filter = filter, cell.gamma = gamma, cell.beta = beta;
    cell.saved = saved, cell.out = out, cell.mean = mean, cell.rstd = rstd;
    cell.run_forward();
}

template <class T>
void backward(const Plan* plan, const int64_t* units, const T* const* input, const double* w, const Filter<const T>* filter,
              const T* gamma, const T* beta, T* saved, T* out, double* mean, double* rstd, const T* dout, T* const* dinput, double* dw,
              const Filter<T>* dfilter, double* dgamma, double* dbeta, T* work) {
    Dense<T> cell(*plan, units);
    cell.input = input, cell.w = w, cell.filter = filter, cell.gamma = gamma, cell.beta = beta;
    cell.saved = saved, cell.out = out, cell.mean = mean, cell.rstd = rstd;
    cell.dout = dout, cell.dinput = dinput, cell.dw = dw, cell.dfilter = dfilter, cell.dgamma = dgamma, cell.dbeta = dbeta;
    cell.work = work;
    cell.run_backward();
}

}  // namespace

#define EXPORT(T, NAME)                                                                                                            \
    extern "C" void oche_dense_forward_##NAME(const Plan* plan, const int64_t* units, const T* const* input, const double* w,      \
                                              const Filter<const T>* filter, const T* gamma, const T* beta, T* saved, T* out,      \
                                              double* mean, double* rstd) {                                                        \
        forward<T>(plan, units, input, w, filter, gamma, beta, saved, out, mean, rstd);                                            \
    }                                                                                                                              \
    extern "C" void oche_dense_backward_##NAME(const Plan* plan, const int64_t* units, const T* const* input, const double* w,     \
                                               const Filter<const T>* filter, const T* gamma, const T* beta, T* saved, T* out,     \
                                               double* mean, double* rstd, const T* dout, T* const* dinput, double* dw,            \
                                               const Filter<T>* dfilter, double* dgamma, double* dbeta, T* work) {                 \
        backward<T>(plan, units, input, w, filter, gamma, beta, saved, out, mean, rstd, dout, dinput, dw, dfilter, dgamma, dbeta, work); \
    }
EXPORT(float, f32)
EXPORT(double, f64)
