// How does a cell whose edges pass most channels by run on the kernels of `packed.cpp`, which includes this file?
//
// Whole states and gradients stay as torch has them, (B, h, w, C). Only the first C / share channels of a state, its head, are
// copied into lanes (`fold` images side by side), where `Cell` and `Back` treat them as the state of a plain cell. A node is
//
//     S = shuffle [ sum of the candidates | sum_e b_e h_src(e) ],  b_e = sum_o w_eo,  shuffled channel q K + g = channel g C/K + q
//
// with h_src through a 2x2 max pool where the edge halves. The whole state is summed and its head then overwritten: no odd widths.

#pragma once

#include "back.h"

namespace {

struct Edge {
    int64_t number, src, dst;
};

struct Share {
    int64_t share, edges, columns;  // K, how many edges follow in memory, candidates an edge
    int64_t learns;                 // whether w wants gradients
    int64_t kept, separable;        // elements that a plain cell saves; most separable units of one source
    const Edge* edge() const { return reinterpret_cast<const Edge*>(this + 1); }
};

template <class T> struct Whole {  // the states with all their channels
    const Plan& p;
    const Share& s;
    const T* const* input;  // (B, height, width, C)
    T *out, *pooled;        // nodes (B, ho, wo, nodes * C); inputs through the 2x2 max pool, (inputs, B, ho, wo, C), at stride 2
    int h, w, ho, wo;
    int64_t batch, channels, head, pixels;
    std::vector<double> b;    // per edge

    Whole(const Plan& plan, const Share& share, const double* weights, const T* const* in, T* nodes, T* pools)
        : p(plan), s(share), input(in), out(nodes), pooled(pools), h(int(plan.height)), w(int(plan.width)) {
        ho = int((h + p.stride - 1) / p.stride), wo = int((w + p.stride - 1) / p.stride), pixels = int64_t(ho) * wo;
        batch = p.n * p.fold, head = p.channels, channels = head * s.share;
        for (int64_t e = 0; e < s.edges; ++e) {
            double sum = 0;
            for (int64_t o = 0; o < s.columns; ++o) sum += weights[s.edge()[e].number * s.columns + o];
            b.push_back(sum);
        }
    }

    bool halves(const Edge& e) const { return p.stride > 1 && e.src < p.inputs; }
    T* node(int64_t j, int64_t image) const { return out + image * pixels * p.nodes * channels + (j - p.inputs) * channels; }
    T* pool(int64_t j, int64_t image) const { return pooled + (j * batch + image) * pixels * channels; }
    // what an edge passes on, and the distance between its pixels
    const T* passed(const Edge& e, int64_t image) const {
        if (halves(e)) return pool(e.src, image);
        return e.src < p.inputs ? input[e.src] + image * pixels * channels : node(e.src, image);
    }
    int64_t passed_ld(const Edge& e) const { return e.src < p.inputs ? channels : p.nodes * channels; }

    // f(offset of the window's pixel in the input) for a pixel of the 2x2 pool
    template <class F> INLINE void window(int oy, int ox, F f) const {
        for (int y = 2 * oy; y < std::min(2 * oy + 2, h); ++y)
            for (int x = 2 * ox; x < std::min(2 * ox + 2, w); ++x) f((int64_t(y) * w + x) * channels);
    }

    void pool_image(int64_t j, int64_t image) const {
        const T* from = input[j] + image * h * w * channels;
        T* to = pool(j, image);
        for (int oy = 0; oy < ho; ++oy)
            for (int ox = 0; ox < wo; ++ox, to += channels)
                by_lanes<T>(channels, [&](auto zero, int64_t l) {
                    typedef decltype(zero) U;
                    U top = zero - std::numeric_limits<T>::infinity();
                    window(oy, ox, [&](int64_t i) {
                        const U v = get<U>(from + i + l);
                        top = v > top ? v : top;
                    });
                    set<U>(to + l) = top;
                });
    }

    // dx (h, w, C) += the gradient d (ho, wo, C) of the pool; the first pixel that is the maximum takes it
    void pool_back(int64_t j, int64_t image, const T* d, T* dx) const {
        const T *from = input[j] + image * h * w * channels, *found = pool(j, image);
        for (int oy = 0; oy < ho; ++oy)
            for (int ox = 0; ox < wo; ++ox, d += channels, found += channels)
                by_lanes<T>(channels, [&](auto zero, int64_t l) {
                    typedef decltype(zero) U;
                    U left = get<U>(d + l);
                    const U top = get<U>(found + l);
                    window(oy, ox, [&](int64_t i) {
                        const auto hit = get<U>(from + i + l) == top;
                        set<U>(dx + i + l) += hit ? left : zero;
                        left = hit ? zero : left;
                    });
                });
    }

    // to (n, C) += factor from (n, C), both with their own distance between pixels
    void add(T factor, const T* from, int64_t from_ld, T* to, int64_t n) const {
        if (from_ld == channels)
            by_lanes<T>(n * channels, [&](auto zero, int64_t l) { set<decltype(zero)>(to + l) += factor * get<decltype(zero)>(from + l); });
        else
            for (int64_t x = 0; x < n; ++x)
                by_lanes<T>(channels, [&](auto zero, int64_t l) {
                    set<decltype(zero)>(to + x * channels + l) += factor * get<decltype(zero)>(from + x * from_ld + l);
                });
    }

    // sum over n pixels and all channels of g (n, C) times what the edge passes on
    double dot(const Edge& e, int64_t image, int64_t first, int64_t n, const T* g) const {
        const int64_t ld = passed_ld(e);
        const T* x = passed(e, image) + first * ld;
        double sum = 0;
        by_lanes<T>(channels, [&](auto zero, int64_t l) {
            typedef decltype(zero) U;
            U s[4] = {};
            int64_t i = 0;
            for (; i + 4 <= n; i += 4)
                for (int k = 0; k < 4; ++k) s[k] += get<U>(g + (i + k) * channels + l) * get<U>(x + (i + k) * ld + l);
            for (; i < n; ++i) s[0] += get<U>(g + i * channels + l) * get<U>(x + i * ld + l);
            s[0] = (s[0] + s[1]) + (s[2] + s[3]);
            T parts[sizeof(U) / sizeof(T)];
            std::memcpy(parts, &s[0], sizeof(U));
            for (T part : parts) sum += double(part);
        });
        return sum;
    }

    // pixels of a whole state that fill half of the nearest cache
    int64_t chunk() const { return std::max<int64_t>(1, int64_t(16384 / sizeof(T)) / channels); }

    // Of n pixels: the head joins the sum, channels are shuffled, the head of the result goes back to its lanes.
    // FORWARD: the sum's head is replaced, `to` gets all of the result. Backward: the head is added, the shuffle undone, `to` gets
    // the result without its head.
    template <bool FORWARD> void shuffle(T* sum, int64_t sum_ld, T* lanes, T* to, int64_t to_ld, int64_t n) const {
        if (s.share == 4 && head == 4) shuffle_by<FORWARD, 4, 4>(sum, sum_ld, lanes, to, to_ld, n);
        else if (s.share == 4 && head == 8) shuffle_by<FORWARD, 4, 8>(sum, sum_ld, lanes, to, to_ld, n);
        else if (s.share == 4 && head == 16) shuffle_by<FORWARD, 4, 16>(sum, sum_ld, lanes, to, to_ld, n);
        else if (s.share == 2 && head == 8) shuffle_by<FORWARD, 2, 8>(sum, sum_ld, lanes, to, to_ld, n);
        else if (s.share == 2 && head == 16) shuffle_by<FORWARD, 2, 16>(sum, sum_ld, lanes, to, to_ld, n);
        else if (s.share == 2 && head == 32) shuffle_by<FORWARD, 2, 32>(sum, sum_ld, lanes, to, to_ld, n);
        else shuffle_by<FORWARD, 0, 0>(sum, sum_ld, lanes, to, to_ld, n);
    }

    template <bool FORWARD, int K, int H>
    void shuffle_by(T* __restrict__ sum, int64_t sum_ld, T* __restrict__ lanes, T* __restrict__ to, int64_t to_ld, int64_t n) const {
        const int k = K ? K : int(s.share), h = H ? H : int(head);
        for (int64_t x = 0; x < n; ++x, sum += sum_ld, to += to_ld, lanes += p.lanes) {
            for (int q = 0; q < h; ++q) sum[q] = FORWARD ? lanes[q] : sum[q] + lanes[q];
#pragma GCC unroll 4
            for (int g = 0; g < k; ++g)
#pragma GCC unroll 32
                for (int q = 0; q < h; ++q) {
                    if (FORWARD) to[q * k + g] = sum[g * h + q];
                    else to[g * h + q] = sum[q * k + g];
                }
            for (int q = 0; q < h; ++q) {
                lanes[q] = to[q];
                if (!FORWARD) to[q] = T(0);
            }
        }
    }

    // heads of the images of one packed image into its lanes (pixels_, lanes), or out of them
    void pack(const T* whole, int64_t ld, int64_t image_step, int64_t pixels_, T* lanes) const {
        for (int64_t x = 0; x < pixels_; ++x)
            for (int64_t f = 0; f < p.fold; ++f)
                for (int64_t q = 0; q < head; ++q) lanes[x * p.lanes + f * head + q] = whole[f * image_step + x * ld + q];
    }
};

template <class T, class S> struct PartialCell : Cell<T, S> {
    Whole<T> whole;
    std::vector<T*> heads;  // of the inputs, (n, height, width, lanes)

    PartialCell(const Plan& plan, const int64_t* units, const Whole<T>& all) : Cell<T, S>(plan, reinterpret_cast<const Unit*>(units)), whole(all) {
        this->node_step = plan.n * this->pixels() * this->c, this->image_step = this->pixels() * this->c, this->node_ld = this->c;
    }

    void run() {
        const Plan& p = this->p;
        const int64_t own = p.height * p.width, C = whole.channels;
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(this->nt)
        for (int64_t j = 0; j < p.inputs; ++j)
            for (int64_t n = 0; n < p.n; ++n) {
                if (p.lanes > p.fold * p.channels) std::fill_n(heads[j] + n * own * p.lanes, own * p.lanes, T(0));
                whole.pack(whole.input[j] + n * p.fold * own * C, C, own * C, own, heads[j] + n * own * p.lanes);
                if (p.stride > 1)
                    for (int64_t f = 0; f < p.fold; ++f) whole.pool_image(j, n * p.fold + f);
            }
        this->run_forward();
    }

    // Both sums of a node and its shuffle, for as many pixels at once as stay in the nearest cache
    void combine(int j) override {
        const Plan& p = this->p;
        std::vector<const Unit*> terms;
        Buffer<T> a, b;
        this->weights_of(j, terms, a, b);
        const int64_t C = whole.channels, c = this->c, ld = p.nodes * C, chunk = whole.chunk(), pixels = this->pixels();
#pragma omp parallel num_threads(this->nt)
        {
            Buffer<T> sum(chunk * C);
#pragma omp for collapse(2) schedule(dynamic)
            for (int64_t n = 0; n < p.n; ++n)
                for (int64_t from = 0; from < pixels; from += chunk) {
                    const int64_t size = std::min(chunk, pixels - from);
                    T* lanes = const_cast<T*>(this->state(j, n)) + from * c;
                    for (int64_t x = 0; x < size; ++x) std::memcpy(lanes + x * c, b.data(), c * sizeof(T));
                    for (size_t t = 0; t < terms.size(); ++t)
                        this->term(*terms[t], n, [&](const auto* term, int64_t step) {
                            this->add(a.data() + t * c, term + from * step, step, 0, size, c, lanes);
                        });
                    for (int64_t f = 0; f < p.fold; ++f) {
                        const int64_t image = n * p.fold + f;
                        std::fill(sum.begin(), sum.end(), T(0));
                        for (int64_t e = 0; e < whole.s.edges; ++e) {
                            const Edge& edge = whole.s.edge()[e];
                            const int64_t step = whole.passed_ld(edge);
                            if (edge.dst == j) whole.add(T(whole.b[e]), whole.passed(edge, image) + from * step, step, sum.data(), size);
                        }
                        whole.template shuffle<true>(sum.data(), C, lanes + f * whole.head, whole.node(j, image) + from * ld, ld, size);
                    }
                }
        }
    }
};

template <class T, class S> struct PartialBack : Back<T, S> {
    Whole<T> whole;
    const T* shown;                           // gradient of the cell's output
    T *side;                                  // (nodes, B, ho, wo, C): gradients of the nodes before the shuffle, heads zero
    T* const* dwhole;                         // gradients of the whole inputs
    std::vector<T*> heads, dheads;
    std::vector<double> found;                // (images, edges): gradients of b

    PartialBack(const Plan& plan, const int64_t* units, const Whole<T>& all) : Back<T, S>(plan, reinterpret_cast<const Unit*>(units)), whole(all) {
        this->node_step = plan.n * this->pixels() * this->c, this->image_step = this->pixels() * this->c, this->node_ld = this->c;
        found.assign(whole.batch * whole.s.edges, 0.0);
    }

    T* side_of(int64_t j, int64_t image) const { return side + ((j - this->p.inputs) * whole.batch + image) * whole.pixels * whole.channels; }

    void run() {
        this->run_backward();
        if (!whole.s.learns) return;
        for (int64_t e = 0; e < whole.s.edges; ++e) {
            double sum = 0;
            for (int64_t image = 0; image < whole.batch; ++image) sum += found[image * whole.s.edges + e];
            for (int64_t o = 0; o < whole.s.columns; ++o) this->dw[whole.s.edge()[e].number * whole.s.columns + o] += sum;
        }
    }

    void finish(int j, int64_t n, const T* x, T* g, int64_t own, bool convolving, typename Back<T, S>::Scratch& s) override {
        Back<T, S>::finish(j, n, x, g, own, convolving, s);  // the head's gradient
        const Plan& p = this->p;
        for (int64_t f = 0; f < p.fold; ++f) {
            if (j < p.inputs) input_back(j, n * p.fold + f, g + f * whole.head, own);
            else node_back(j, n * p.fold + f, g + f * whole.head);
        }
    }

    void input_back(int j, int64_t image, const T* lanes, int64_t own) const {
        const Plan& p = this->p;
        const int64_t C = whole.channels;
        T* to = dwhole[j] + image * own * C;
        std::fill_n(to, own * C, T(0));
        Buffer<T> halved(p.stride > 1 ? whole.pixels * C : 0, T(0));
        for (int64_t e = 0; e < whole.s.edges; ++e) {
            const Edge& edge = whole.s.edge()[e];
            if (edge.src == j) whole.add(T(whole.b[e]), side_of(edge.dst, image), C, p.stride > 1 ? halved.data() : to, whole.pixels);
        }
        if (p.stride > 1) whole.pool_back(j, image, halved.data(), to);
        for (int64_t i = 0; i < own; ++i)
            for (int64_t q = 0; q < whole.head; ++q) to[i * C + q] = lanes[i * p.lanes + q];
    }

    void node_back(int j, int64_t image, T* lanes) {
        const Plan& p = this->p;
        const int64_t C = whole.channels, ld = p.concat ? p.nodes * C : C, chunk = whole.chunk(), pixels = whole.pixels;
        const bool seen = p.concat || j == p.inputs + p.nodes - 1;
        const T* above = shown + image * pixels * ld + (p.concat ? j - p.inputs : 0) * C;
        double* dots = found.data() + image * whole.s.edges;
        Buffer<T> sum(chunk * C);
        for (int64_t from = 0; from < pixels; from += chunk) {
            const int64_t size = std::min(chunk, pixels - from);
            std::fill(sum.begin(), sum.end(), T(0));
            if (seen) whole.add(T(1), above + from * ld, ld, sum.data(), size);
            for (int64_t e = 0; e < whole.s.edges; ++e) {
                const Edge& edge = whole.s.edge()[e];
                if (edge.src == j) whole.add(T(whole.b[e]), side_of(edge.dst, image) + from * C, C, sum.data(), size);
            }
            T* to = side_of(j, image) + from * C;
            whole.template shuffle<false>(sum.data(), C, lanes + from * p.lanes, to, C, size);
            if (!whole.s.learns) continue;
            for (int64_t e = 0; e < whole.s.edges; ++e)
                if (whole.s.edge()[e].dst == j) dots[e] += whole.dot(whole.s.edge()[e], image, from, size, to);
        }
    }
};

// The saved buffer: what a plain cell keeps, then the heads of the inputs and of the nodes, then the pools
template <class T, class C> void place_heads(C& cell, const Plan& p, const Whole<T>& whole) {
    cell.pools = reinterpret_cast<T*>(cell.saved + p.kept);
    T* next = cell.pool(whole.s.kept, 0);
    for (int64_t j = 0; j < p.inputs; ++j, next += p.n * p.height * p.width * p.lanes) cell.heads.push_back(next);
    cell.input = cell.heads.data(), cell.out = next;
    cell.whole.pooled = next + p.nodes * p.n * whole.pixels * p.lanes;
}

template <class T, class S>
void partial_forward(const Plan* p, const int64_t* units, const T* const* input, const double* w, const T* depth, const T* point,
                     const T* gamma, const T* beta, const T* const* extra, S* saved, T* out, double* mean, double* rstd,
                     const int64_t* share) {
    PartialCell<T, S> cell(*p, units, Whole<T>(*p, *reinterpret_cast<const Share*>(share), w, input, out, nullptr));
    cell.extra = extra, cell.saved = saved;
    place_heads<T>(cell, *p, cell.whole);
    cell.w = w, cell.depth = depth, cell.point = point, cell.gamma = gamma, cell.beta = beta, cell.mean = mean, cell.rstd = rstd;
    cell.run();
}

template <class T, class S>
void partial_backward(const Plan* p, const int64_t* units, const T* const* input, const double* w, const T* depth, const T* point,
                      const T* gamma, const T* beta, const T* const* extra, S* saved, T* out, double* mean, double* rstd,
                      const int64_t* share, const T* dout, T* const* dinput, double* dw, T* ddepth, T* dpoint,
                      double* dgamma, double* dbeta, T* work) {
    PartialBack<T, S> cell(*p, units, Whole<T>(*p, *reinterpret_cast<const Share*>(share), w, input, out, nullptr));
    cell.extra = extra, cell.saved = saved;
    place_heads<T>(cell, *p, cell.whole);
    cell.w = w, cell.depth = depth, cell.point = point, cell.gamma = gamma, cell.beta = beta, cell.mean = mean, cell.rstd = rstd;
    cell.shown = dout, cell.dout = nullptr, cell.dwhole = dinput, cell.dw = dw, cell.ddepth = ddepth, cell.dpoint = dpoint;
    cell.dgamma = dgamma, cell.dbeta = dbeta, cell.learn = ddepth != nullptr;
    const int64_t plane = p->n * cell.pixels() * p->lanes;
    T* next = work;
    cell.grads = next, next += p->nodes * plane;
    cell.dv = next, next += cell.whole.s.separable * plane;
    for (int64_t j = 0; j < p->inputs; ++j, next += p->n * p->height * p->width * p->lanes) cell.dheads.push_back(next);
    cell.dinput = cell.dheads.data(), cell.side = next;
    cell.run();
}

}  // namespace

#define EXPORT_PARTIAL(T, S, NAME)                                                                                             \
    extern "C" void oche_partial_forward_##NAME(const Plan* plan, const int64_t* units, const T* const* input,                 \
                                                const double* w, const T* depth, const T* point, const T* gamma,               \
                                                const T* beta, const T* const* extra, S* saved, T* out, double* mean,          \
                                                double* rstd, const int64_t* share) {                                          \
        partial_forward<T, S>(plan, units, input, w, depth, point, gamma, beta, extra, saved, out, mean, rstd, share);            \
    }                                                                                                                          \
    extern "C" void oche_partial_backward_##NAME(const Plan* plan, const int64_t* units, const T* const* input,                \
                                                 const double* w, const T* depth, const T* point, const T* gamma,              \
                                                 const T* beta, const T* const* extra, S* saved, T* out, double* mean,         \
                                                 double* rstd, const int64_t* share, const T* dout, T* const* dinput,          \
                                                 double* dw, T* ddepth, T* dpoint, double* dgamma, double* dbeta, T* work) {   \
        partial_backward<T, S>(plan, units, input, w, depth, point, gamma, beta, extra, saved, out, mean, rstd, share, dout,      \
                            dinput, dw, ddepth, dpoint, dgamma, dbeta, work);                                                  \
    }
