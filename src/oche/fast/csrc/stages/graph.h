// A cell of a network that learns, as a table of states and of what leads from one to another; its forward pass.

#pragma once

#include "join.h"
#include "pass.h"
#include "pools.h"

namespace {

struct Graph {
    int64_t n, inputs, states, steps, pools, links;
    int64_t width;  // numbers of a pixel in what the cell gives
    int64_t learn, threads;
};

// the first `inputs` of them are given, others are sums; `column`: where its channels lie in what the cell gives, or -1. One that is neither kept nor
// given away is what the batch norm of the one chain that leads to it makes of the chain's y, as it is loaded.
template <class T> struct State {
    int64_t height, width, channels, column;
    T *at, *gradient;  // null: not kept, nobody asks
};

// a stage and its weights as PyTorch has them: taps (ci, k k), matrix (co, ci)
template <class T> struct Step {
    Stage shape;
    double momentum, eps;
    const T *taps, *matrix, *bias, *gamma, *beta;
    T *running_mean, *running_variance;
    int64_t* batches;
    T *y, *dtaps, *dmatrix, *dgamma, *dbeta;
};

template <class T> struct Pool {
    int64_t source, average, k, stride;
    T *at, *gradient;
};

// what is added to a state: some steps of its source, or one of its pools, or the source itself (neither); times a number per image, or null
template <class T> struct Link {
    int64_t source, target, first, count, pool;
    const T* factor;
};

template <class T> Buffer<T> transposed(const T* from, int64_t rows, int64_t columns) {
    Buffer<T> to(from ? rows * columns : 0);
    for (int64_t r = 0; from && r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c) to[c * rows + r] = from[r * columns + c];
    return to;
}

template <class T> struct GraphPass {
    const Graph& g;
    const State<T>* states;
    const Step<T>* steps;
    const Pool<T>* pools;
    const Link<T>* links;
    double* moments;                      // by step: mean (co) and 1/deviation (co)
    std::vector<double*> mean;            // where they lie, and one past the last
    std::vector<Buffer<T>> slope, shift;  // by step: y's map before the next activation
    std::vector<int64_t> behind;          // by state: the step that it is a map of, or -1

    GraphPass(const Graph& g_, const State<T>* states_, const Step<T>* steps_, const Pool<T>* pools_, const Link<T>* links_, double* moments_)
        : g(g_), states(states_), steps(steps_), pools(pools_), links(links_), moments(moments_), slope(g_.steps), shift(g_.steps), behind(g_.states, -1) {
        for (int64_t i = 0; i < g.steps; ++i) mean.push_back(moments), moments += 2 * steps[i].shape.co;
        for (int64_t t = 0; t < g.links; ++t)
            if (!states[links[t].target].at && states[links[t].target].column < 0) behind[links[t].target] = links[t].first + links[t].count - 1;
    }

    const T* values(int64_t j) const { return behind[j] < 0 ? states[j].at : steps[behind[j]].y; }
    const T* map_slope(int64_t j) const { return behind[j] < 0 ? nullptr : slope[behind[j]].data(); }
    const T* map_shift(int64_t j) const { return behind[j] < 0 ? nullptr : shift[behind[j]].data(); }

    double rstd(int64_t i, int64_t l) const { return mean[i][steps[i].shape.co + l]; }
    int64_t count(int64_t i) const {  // values per channel of what a step leaves
        const Stage& s = steps[i].shape;
        return s.n * ((s.height + s.stride - 1) / s.stride) * ((s.width + s.stride - 1) / s.stride);
    }
    Buffer<T> taps(int64_t i) const { return transposed(steps[i].taps, steps[i].shape.ci, steps[i].shape.k * steps[i].shape.k); }
    Buffer<T> matrix(int64_t i) const { return transposed(steps[i].matrix, steps[i].shape.co, steps[i].shape.ci); }
    Node node(const State<T>& s, int64_t terms) const { return {g.n, s.height * s.width, s.channels, terms, NONE, g.threads}; }
    Window<T> window(const Pool<T>& p) const {
        const State<T>& s = states[p.source];
        return {bool(p.average), s.height, s.width, s.channels, p.k, p.stride};
    }

    void scale(int64_t i) {
        const Step<T>& s = steps[i];
        slope[i].resize(s.shape.co), shift[i].resize(s.shape.co);
        for (int64_t l = 0; l < s.shape.co; ++l) {
            const double a = double(s.gamma[l]) * rstd(i, l);
            slope[i][l] = T(a), shift[i][l] = T(double(s.beta[l]) - a * mean[i][l]);
        }
    }

    // y of a step, its moments, and the running statistics moved on
    void step(int64_t i, const T* x, const T* a, const T* b) {
        const Step<T>& s = steps[i];
        const int64_t co = s.shape.co;
        const double all = double(count(i));
        double *m = mean[i], *v = m + co;
        ::forward<T>(s.shape, x, a, b, taps(i).data(), matrix(i).data(), s.y, m, v);
        for (int64_t l = 0; l < co; ++l) {
            const T about = T(m[l] + (s.bias ? double(s.bias[l]) : 0.0)), variance = T(v[l] * (all / (all - 1)));
            s.running_mean[l] += T(s.momentum) * (about - s.running_mean[l]);
            s.running_variance[l] += T(s.momentum) * (variance - s.running_variance[l]);
            v[l] = 1 / std::sqrt(v[l] + s.eps);
        }
        ++*s.batches;
        scale(i);
    }

    void pool(const Pool<T>& p) const {
        const Window<T> w = window(p);
        const T* x = states[p.source].at;
#pragma omp parallel num_threads(int(g.threads))
        {
            Buffer<T> line;
#pragma omp for schedule(static)
            for (int64_t n = 0; n < g.n; ++n) w.forward(x + n * w.height * w.width * w.c, p.at + n * w.ho * w.wo * w.c, line);
        }
    }

    void forward(T* out) {
        for (int64_t i = 0; i < g.pools; ++i)
            if (pools[i].source < g.inputs) pool(pools[i]);
        for (int64_t j = g.inputs; j < g.states; ++j) {
            const State<T>& s = states[j];
            std::vector<const T*> x, factor;
            Buffer<T> a, b;
            for (int64_t t = 0; t < g.links; ++t) {
                const Link<T>& q = links[t];
                if (q.target != j) continue;
                for (int64_t i = q.first; i < q.first + q.count; ++i) {
                    const bool first = i == q.first;
                    step(i, first ? values(q.source) : steps[i - 1].y, first ? map_slope(q.source) : slope[i - 1].data(), first ? map_shift(q.source) : shift[i - 1].data());
                }
                const int64_t last = q.count ? q.first + q.count - 1 : q.pool >= 0 ? -1 : behind[q.source];  // the step before the sum
                x.push_back(last >= 0 ? steps[last].y : q.pool >= 0 ? pools[q.pool].at : states[q.source].at), factor.push_back(q.factor);
                for (int64_t l = 0; l < s.channels; ++l) a.push_back(last >= 0 ? slope[last][l] : T(1)), b.push_back(last >= 0 ? shift[last][l] : T(0));
            }
            if (behind[j] < 0)
                join(node(s, int64_t(x.size())), x.data(), a.data(), b.data(), factor.data(), s.at, s.column < 0 || s.at == out ? nullptr : out + s.column, g.width);
            for (int64_t i = 0; i < g.pools; ++i)
                if (pools[i].source == j) pool(pools[i]);
        }
    }
};

}  // namespace
