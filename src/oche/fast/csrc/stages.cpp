// A stage of a network that learns: what a batch norm and an activation make of x, a depthwise and a 1x1 convolution of that, or one of
// them; and a node, the sum of stages' outputs after their batch norms.
//
// Plain C interface, called by `stages.py`, whose docstring has the formulas; `Stage` must match `CStage` there. Arrays are N H W C with
// any number of channels (`flat.h`). One image is the unit of parallel work: what lies between x and y stays in cache, and moments are
// taken image by image and joined in their order, so that they do not depend on the number of threads.

#include <cmath>
#include "flat.h"

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

// ---------------------------------------------------------------- what all images share

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

// ---------------------------------------------------------------- forward

template <class T>
void forward(const Stage& given, const T* x, const T* a, const T* b, const T* taps, const T* matrix, T* y, double* mean, double* variance) {
    const Shape<T> s(given, a, b, taps, matrix);
    std::vector<double> each(s.n * 2 * s.co);
#pragma omp parallel num_threads(int(s.threads))
    {
        Buffer<T> tile(s.k ? s.tile_size() : 0, T(0)), z(std::max(s.wo, PIXELS) * s.ci + WIDTH<T>);
        Buffer<T> row(std::max(s.wo, PIXELS) * s.co + WIDTH<T>);
        Moments<T> moments(s.co);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < s.n; ++n) {
            const T* from = x + n * s.height * s.width * s.ci;
            T* to = y + n * s.ho * s.wo * s.co;
            moments.begin();
            if (s.k) s.fill(from, tile.data());
            const int64_t pixels = s.ho * s.wo, step = s.k ? s.wo : PIXELS;
            for (int64_t i = 0; i < pixels; i += step) {
                const int64_t some = std::min(step, pixels - i);
                if (s.k) convolved(s, tile.data(), i / s.wo, s.point ? z.data() : row.data());
                else s.act(from + i * s.ci, some * s.ci, z.data());
                if (s.point) product(z.data(), some, s.ci, s.matrix.data(), s.co, row.data());
                moments.add(row.data(), some * s.co, to + i * s.co, past_caches(to + i * s.co, s.n * pixels * s.co));
            }
            moments.end(pixels, &each[n * 2 * s.co]);
        }
    }
    joined(each.data(), s.n, s.co, s.ho * s.wo, mean, variance);
}

// ---------------------------------------------------------------- backward

// What one thread needs: dy = slope f g + level + tilt y, f one number an image
template <class T> struct Work {
    Buffer<T> tile, dz, dy, z, dx, phase, slope, level, tilt, dtaps, dmatrix, s1, s2;

    Work(const Shape<T>& s, const T* map, bool learn) {
        const int64_t pixels = s.k ? s.ho * s.wo : PIXELS, wide = std::max(s.width, PIXELS);
        if (s.k) tile.assign(s.tile_size(), T(0)), dz.assign(s.drows * s.drow + WIDTH<T>, T(0));
        else dz.resize(PIXELS * s.ci + WIDTH<T>);
        dy.assign(pixels * s.co + WIDTH<T>, T(0)), z.assign(pixels * s.ci + WIDTH<T>, T(0));
        dx.resize(wide * s.ci + WIDTH<T>), phase.resize(wide * s.ci + WIDTH<T>);
        slope.resize(s.out), level = slope, tilt = slope;
        spread(map + s.co, s.co, level.data()), spread(map + 2 * s.co, s.co, tilt.data());
        s1.resize(s.in), s2.resize(s.in);
        if (learn) dtaps.assign(s.k * s.k * s.in, T(0)), dmatrix.assign(s.point ? s.ci * whole<T>(s.co) : 0, T(0));
    }

    void affine(const T* g, const T* y, int64_t length, int64_t period, T* to) const {
        const T *slope_ = slope.data(), *level_ = level.data(), *tilt_ = tilt.data();
        along<T>(length, period, [=](int64_t i, int64_t place, int lanes) {
            const V<T> v = at(slope_ + place) * take(g + i, lanes) + at(level_ + place);
            store_some(to + i, v + at(tilt_ + place) * take(y + i, lanes), lanes);
        });
    }
};

// the gradient of row y of the padded image before the depthwise convolution, from a tile of dz, in the order of the image's pixels
template <class T> void turned_back(const Shape<T>& s, Work<T>& w, int64_t y, T* to) {
    for (int64_t ph = 0; ph < s.stride; ++ph) {
        const int64_t first = (ph - s.pad % s.stride + s.stride) % s.stride;  // the first pixel of this phase
        if (first >= s.width) continue;
        const int64_t count = (s.width - first + s.stride - 1) / s.stride, at_ = (first + s.pad) / s.stride;
        const T* from = w.dz.data() + (s.above + (y + s.pad) / s.stride) * s.drow + (s.left + at_) * s.ci;
        T* row = s.stride == 1 ? to : w.phase.data();
        taps_row(from, s.back[(y + s.pad) % s.stride * s.stride + ph], count * s.ci, s.in, row);
        for (int64_t i = 0; s.stride > 1 && i < count; ++i) std::memcpy(to + (first + i * s.stride) * s.ci, row + i * s.ci, s.ci * sizeof(T));
    }
}

// dx (set, or added to) from the gradient behind the activation; s1, s2: sums of it and of it times x - pivot, where there is a pivot
template <class T> void through(const Shape<T>& s, Work<T>& w, const T* d, const T* x, int64_t length, bool add, const T* pivot, T* dx) {
    const bool past = !add && past_caches(dx, s.n * s.height * s.width * s.ci);
    T *w1 = w.s1.data(), *w2 = w.s2.data();
    const int64_t step = s.in;
    s.with_activation([&](auto kind, auto before) {
        if (!pivot) {
            along<T>(length, step, [=](int64_t i, int64_t place, int lanes) {
                V<T> v = passed<T, kind()>(before(load_some(x + i, lanes), place), load_some(d + i, lanes));
                if (add) v += load_some(dx + i, lanes);
                put(dx + i, v, lanes, past);
            });
            return;
        }
        by_place<T>(length, step, [=](int64_t v) {
            V<T> s1 = {}, s2 = {};
            const V<T> m = at(pivot + v);
            for (int64_t i = v; i < length; i += step) {
                const int lanes = int(std::min<int64_t>(WIDTH<T>, length - i));
                const V<T> from = load_some(x + i, lanes);
                const V<T> g = passed<T, kind()>(before(from, v), load_some(d + i, lanes));
                s1 += g, s2 += g * (from - m);
                put(dx + i, g, lanes, past);
            }
            at(w1 + v) += s1, at(w2 + v) += s2;
        });
    });
}

template <class T> struct Back {
    const T *x, *g, *y, *map, *factor, *pivot;  // map (3, co): slope, level, tilt; factor (n) or null; pivot (ci) or null
    T* dx;                                      // or null
    bool add, learn;
};

// one image whose depthwise convolution reaches over rows
template <class T> void image_back(const Shape<T>& s, const Back<T>& t, Work<T>& w, const T* x, const T* g, const T* y, const T* pivot, T* dx) {
    const int64_t wide = s.wo * s.ci;
    if (t.learn) s.fill(x, w.tile.data());
    for (int64_t r = 0; r < s.ho; ++r) {
        T* dz = w.dz.data() + (s.above + r) * s.drow + s.left * s.ci;
        const int64_t at_ = r * s.wo * s.co;
        w.affine(g + at_, y + at_, s.wo * s.co, s.out, s.point ? w.dy.data() + at_ : dz);
        if (!s.point) continue;
        product(w.dy.data() + at_, s.wo, s.co, s.turned.data(), s.ci, dz);
        if (t.learn) convolved(s, w.tile.data(), r, w.z.data() + r * wide);
    }
    if (t.learn) {
        if (s.point) outer(w.z.data(), w.dy.data(), s.ho * s.wo, s.ci, s.co, w.dmatrix.data());
        const T* dz = w.dz.data() + s.above * s.drow + s.left * s.ci;
        taps_gradient(w.tile.data(), s.forth.offsets, dz, s.ho, s.row * s.stride, s.drow, wide, s.in, w.dtaps.data());
    }
    for (int64_t r = 0; dx && r < s.height; ++r) {
        turned_back(s, w, r, w.dx.data());
        through(s, w, w.dx.data(), x + r * s.width * s.ci, s.width * s.ci, t.add, pivot, dx + r * s.width * s.ci);
    }
}

// one image of a 1x1 convolution, some pixels at a time
template <class T> void pixels_back(const Shape<T>& s, const Back<T>& t, Work<T>& w, const T* x, const T* g, const T* y, const T* pivot, T* dx) {
    for (int64_t i = 0; i < s.height * s.width; i += PIXELS) {
        const int64_t some = std::min(PIXELS, s.height * s.width - i);
        w.affine(g + i * s.co, y + i * s.co, some * s.co, s.out, w.dy.data());
        if (t.learn) {
            s.act(x + i * s.ci, some * s.ci, w.z.data());
            outer(w.z.data(), w.dy.data(), some, s.ci, s.co, w.dmatrix.data());
        }
        if (!dx) continue;
        product(w.dy.data(), some, s.co, s.turned.data(), s.ci, w.dz.data());
        through(s, w, w.dz.data(), x + i * s.ci, some * s.ci, t.add, pivot, dx + i * s.ci);
    }
}

template <class T>
void backward(const Stage& given, const T* a, const T* b, const T* taps, const T* matrix, const Back<T>& t, double* sums, T* dtaps, T* dmatrix) {
    const Shape<T> s(given, a, b, taps, matrix);
    Buffer<T> pivot(t.pivot ? s.in : 0);
    if (t.pivot) spread(t.pivot, s.ci, pivot.data());
    std::vector<double> each(t.pivot ? s.n * 2 * s.ci : 0);
    std::vector<Work<T>> parts(s.threads, Work<T>(s, t.map, t.learn));
#pragma omp parallel num_threads(int(s.threads))
    {
        Work<T>& w = parts[omp_get_thread_num()];
#pragma omp for schedule(static)
        for (int64_t n = 0; n < s.n; ++n) {
            const int64_t before = n * s.height * s.width * s.ci, behind = n * s.ho * s.wo * s.co;
            spread(t.map, s.co, w.slope.data(), t.factor ? t.factor[n] : T(1));
            std::fill(w.s1.begin(), w.s1.end(), T(0)), std::fill(w.s2.begin(), w.s2.end(), T(0));
            auto back = s.k ? image_back<T> : pixels_back<T>;
            back(s, t, w, t.x + before, t.g + behind, t.y + behind, t.pivot ? pivot.data() : nullptr, t.dx ? t.dx + before : nullptr);
            if (!t.pivot) continue;
            gathered(w.s1.data(), s.ci, &each[2 * n * s.ci]), gathered(w.s2.data(), s.ci, &each[(2 * n + 1) * s.ci]);
        }
    }
    for (int64_t i = 0; t.pivot && i < s.n; ++i)
        for (int64_t l = 0; l < 2 * s.ci; ++l) sums[l] += each[2 * i * s.ci + l];
    std::vector<double> tap(s.ci);
    for (const auto& w : parts) {
        if (!t.learn) break;
        for (int64_t k = 0; k < s.k * s.k; ++k) {
            gathered(w.dtaps.data() + k * s.in, s.ci, tap.data());
            for (int64_t l = 0; l < s.ci; ++l) dtaps[k * s.ci + l] += T(tap[l]);
        }
        for (int64_t i = 0; s.point && i < s.ci; ++i)
            for (int64_t o = 0; o < s.co; ++o) dmatrix[i * s.co + o] += w.dmatrix[i * whole<T>(s.co) + o];
    }
}

// ---------------------------------------------------------------- nodes

struct Node {
    int64_t n, pixels, channels, terms, threads;
};

// out = sum over terms of f (a x + b), a and b (terms, channels), f (terms, n) or null
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
            along<T>(size, period, [=](int64_t i, int64_t place, int lanes) {
                V<T> v = at(shift_ + place);
                for (int64_t t = 0; t < terms; ++t) v += at(scale_ + t * period + place) * take(x[t] + first + i, lanes);
                put(out + first + i, v, lanes, past);
            });
        }
    }
}

// sums (terms + 1, channels): of f g (x - pivot) for each term, last unused; and of f g: (terms, channels) behind
template <class T> void dots(const Node& s, const T* const* x, const T* pivot, const T* f, const T* g, double* sums) {
    const int64_t period = period_of<T>(s.channels), size = s.pixels * s.channels, width = (s.terms + 1) * s.channels;
    Buffer<T> about(s.terms * period);
    for (int64_t t = 0; t < s.terms; ++t) spread(pivot + t * s.channels, s.channels, about.data() + t * period);
    std::vector<double> each(s.n * width);
#pragma omp parallel num_threads(int(s.threads))
    {
        Buffer<T> total(period);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < s.n; ++n)
            for (int64_t t = 0; t <= s.terms; ++t) {
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
    for (int64_t n = 0; n < s.n; ++n)
        for (int64_t t = 0; t < s.terms; ++t)
            for (int64_t l = 0; l < s.channels; ++l) {
                const double factor = f ? double(f[t * s.n + n]) : 1.0;
                sums[2 * t * s.channels + l] += factor * each[n * width + t * s.channels + l];
                sums[(2 * t + 1) * s.channels + l] += factor * each[n * width + s.terms * s.channels + l];
            }
}

}  // namespace

#define EXPORT_STAGES(T, NAME)                                                                                                 \
    extern "C" void oche_stage_forward_##NAME(const Stage* s, const T* x, const T* a, const T* b, const T* taps, const T* matrix, \
                                              T* y, double* mean, double* variance) {                                          \
        forward<T>(*s, x, a, b, taps, matrix, y, mean, variance);                                                              \
    }                                                                                                                          \
    extern "C" void oche_stage_backward_##NAME(const Stage* s, const T* x, const T* a, const T* b, const T* taps,              \
                                               const T* matrix, const T* g, const T* y, const T* map, const T* factor,         \
                                               const T* pivot, int64_t add, T* dx, double* sums, T* dtaps, T* dmatrix) {       \
        backward<T>(*s, a, b, taps, matrix, {x, g, y, map, factor, pivot, dx, add != 0, dtaps || dmatrix}, sums, dtaps, dmatrix); \
    }                                                                                                                          \
    extern "C" void oche_join_##NAME(const Node* s, const T* const* x, const T* a, const T* b, const T* f, T* out) {           \
        join<T>(*s, x, a, b, f, out);                                                                                          \
    }                                                                                                                          \
    extern "C" void oche_join_dots_##NAME(const Node* s, const T* const* x, const T* pivot, const T* f, const T* g, double* sums) { \
        dots<T>(*s, x, pivot, f, g, sums);                                                                                     \
    }
EXPORT_STAGES(float, f32)
EXPORT_STAGES(double, f64)
