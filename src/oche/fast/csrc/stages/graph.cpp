// A cell of a network that learns in one call, forward and backward: nodes that sum chains of stages, pools and other nodes.
//
// Plain C interface, called by `graph.py`; the structures must match the rows made there. The formulas are those of `stages.py`. Backward, states
// come from the last to the first: what leads out of a state sends its gradient into one sum, which is complete when the state's turn comes.

#include "graph.h"

namespace {

template <class T> struct Flow {  // part of a state's gradient: `ld` numbers per pixel, times a number per image, or null
    const T* at;
    int64_t ld;
    const T* factor;
};

// the sum of an image's flows
template <class T> void collect(const std::vector<Flow<T>>& flows, int64_t n, int64_t pixels, int64_t c, T* to) {
    Buffer<T> row(PIXELS * c);
    for (int64_t p = 0; p < pixels; p += PIXELS) {
        const int64_t some = std::min(PIXELS, pixels - p);
        T* const sum = to + (n * pixels + p) * c;
        if (flows.empty()) std::fill_n(sum, some * c, T(0));
        for (size_t k = 0; k < flows.size(); ++k) {
            const Flow<T>& f = flows[k];
            const T* from = f.at + (n * pixels + p) * f.ld;
            if (f.ld != c) apart(from, some, c, f.ld, row.data(), c), from = row.data();
            const T times = f.factor ? f.factor[n] : T(1);
            along<T>(some * c, WIDTH<T>, [=](int64_t i, int64_t, int lanes) {
                const V<T> v = load_some(from + i, lanes) * times;
                store_some(sum + i, k ? load_some(sum + i, lanes) + v : v, lanes);
            });
        }
    }
}

template <class T> struct GraphBack : GraphPass<T> {
    using Base = GraphPass<T>;
    using Base::g; using Base::states; using Base::steps; using Base::pools; using Base::links; using Base::mean; using Base::slope;
    using Base::shift; using Base::rstd; using Base::node;
    const T *dout, *also_dout;          // gradients of what the cell gives, to be summed; null where there is none
    T* scratch;                         // two of a chain's largest plane between stages
    int64_t room;                       // numbers of one of them
    std::vector<const T*> gradient;     // by state, once it is complete
    std::vector<Buffer<T>> maps;        // by link: (3, co) of its last batch norm

    GraphBack(const Base& base, const T* dout_, const T* also_dout_, T* scratch_, int64_t room_)
        : Base(base), dout(dout_), also_dout(also_dout_), scratch(scratch_), room(room_), gradient(g.states), maps(g.links) {
        for (int64_t i = 0; i < g.steps; ++i) this->scale(i);
    }

    // from the sums of G (y - pivot) and of G: the map that takes a gradient through a step's batch norm, and the gradients of scale and shift
    Buffer<T> through(int64_t i, const double* r2, const double* r1) const {
        const Step<T>& s = steps[i];
        const int64_t co = s.shape.co;
        const double all = double(this->count(i));
        Buffer<T> map(3 * co);
        for (int64_t l = 0; l < co; ++l) {
            const double m = mean[i][l], r = rstd(i, l), a = double(s.gamma[l]) * r, q = (r2[l] - (m - double(T(m))) * r1[l]) * r, tilt = -a * q * r / all;
            map[l] = T(a), map[co + l] = T(-a * r1[l] / all - tilt * m), map[2 * co + l] = T(tilt);
            if (g.learn) s.dgamma[l] = T(q), s.dbeta[l] = T(r1[l]);
        }
        return map;
    }

    void chain(int64_t t, T* dx, const T* also) {
        const Link<T>& q = links[t];
        const T* flow = gradient[q.target];
        Buffer<T> map = maps[t];
        for (int64_t i = q.first + q.count - 1; i >= q.first; --i) {
            const bool first = i == q.first, last = i == q.first + q.count - 1;
            if (first && !dx && !g.learn) return;
            const Step<T>& s = steps[i];
            const int64_t ci = s.shape.ci, co = s.shape.co, kk = s.shape.k * s.shape.k;
            T* const to = first ? dx : scratch + (i - q.first) % 2 * room;
            Buffer<T> pivot(first ? 0 : ci), dtaps(g.learn ? kk * ci : 0, T(0)), dmatrix(g.learn && s.matrix ? ci * co : 0, T(0));
            for (int64_t l = 0; !first && l < ci; ++l) pivot[l] = T(mean[i - 1][l]);
            std::vector<double> sums(2 * ci, 0.0);
            const Back<T> back{first ? this->values(q.source) : steps[i - 1].y, flow, s.y, map.data(), last ? q.factor : nullptr, first ? nullptr : pivot.data(),
                               to, first ? also : nullptr, bool(g.learn)};
            backward<T>(s.shape, first ? this->map_slope(q.source) : slope[i - 1].data(), first ? this->map_shift(q.source) : shift[i - 1].data(), this->taps(i).data(), this->matrix(i).data(), back,
                        sums.data(), dtaps.data(), dmatrix.data());
            if (s.taps && g.learn) std::copy_n(transposed<T>(dtaps.data(), kk, ci).data(), kk * ci, s.dtaps);
            if (s.matrix && g.learn) std::copy_n(transposed<T>(dmatrix.data(), ci, co).data(), ci * co, s.dmatrix);
            if (!first) map = through(i - 1, sums.data() + ci, sums.data()), flow = to;
        }
    }

    // dx = what a pool sends back, plus `also`
    void pool(int64_t k, T* dx, const T* also) const {
        const Pool<T>& p = pools[k];
        const Window<T> w = this->window(p);
        std::vector<Flow<T>> flows;
        for (int64_t t = 0; t < g.links; ++t)
            if (links[t].pool == k) flows.push_back({gradient[links[t].target], w.c, links[t].factor});
        const int64_t size = w.height * w.width * w.c, small = w.ho * w.wo * w.c;
        const bool whole = flows.size() == 1 && !flows[0].factor;
#pragma omp parallel num_threads(int(g.threads))
        {
            Buffer<T> tile, line;
#pragma omp for schedule(static)
            for (int64_t n = 0; n < g.n; ++n) {
                if (!whole) collect(flows, n, w.ho * w.wo, w.c, p.gradient);
                if (!also) std::fill_n(dx + n * size, size, T(0));
                else if (also != dx) std::copy_n(also + n * size, size, dx + n * size);
                w.backward(states[p.source].at + n * size, p.at + n * small, (whole ? flows[0].at : p.gradient) + n * small, dx + n * size, tile, line);
            }
        }
    }

    void backward_pass() {
        for (int64_t j = g.states - 1; j >= 0; --j) {
            const State<T>& s = states[j];
            std::vector<Flow<T>> flows;
            for (const T* d : {dout, also_dout})
                if (d && s.column >= 0) flows.push_back({d + s.column, g.width, nullptr});
            for (int64_t t = 0; t < g.links; ++t)
                if (links[t].source == j && !links[t].count && links[t].pool < 0) flows.push_back({gradient[links[t].target], s.channels, links[t].factor});
            const T* also = nullptr;
            if (!flows.empty() && flows.back().ld == s.channels && !flows.back().factor) also = flows.back().at;
            const T* const plain = also;
            for (int64_t t = 0; t < g.links; ++t)
                if (links[t].source == j && links[t].count) {
                    chain(t, s.gradient, also);
                    if (s.gradient) also = s.gradient;
                }
            for (int64_t k = 0; k < g.pools; ++k)
                if (pools[k].source == j && s.gradient) pool(k, s.gradient, also), also = s.gradient;
            if (j < g.inputs && !s.gradient) continue;
            if (also && also != plain) {  // the last flow is part of it; it comes first, since the sum is stored in its place
                if (plain) flows.pop_back();
                flows.insert(flows.begin(), {also, s.channels, nullptr});
            }
            finish(j, flows);
        }
    }

    // the sum of a state's flows, and what its batch norms need of it
    void finish(int64_t j, const std::vector<Flow<T>>& flows) {
        const State<T>& s = states[j];
        std::vector<int64_t> into;
        for (int64_t t = 0; t < g.links; ++t)
            if (links[t].target == j && links[t].count) into.push_back(t);
        const bool whole = flows.size() == 1 && flows[0].ld == s.channels && !flows[0].factor && (j >= g.inputs || flows[0].at == s.gradient);
        gradient[j] = whole ? flows[0].at : s.gradient;
        std::vector<const T*> x, factor;
        Buffer<T> pivot;
        for (int64_t t : into) {
            const int64_t i = links[t].first + links[t].count - 1;
            x.push_back(steps[i].y), factor.push_back(links[t].factor);
            for (int64_t l = 0; l < s.channels; ++l) pivot.push_back(T(mean[i][l]));
        }
        std::vector<double> sums(into.size() * 2 * s.channels, 0.0);
        dots<T>(node(s, int64_t(into.size())), x.data(), pivot.data(), factor.data(), gradient[j], [&](int64_t n) {
            if (!whole) collect(flows, n, s.height * s.width, s.channels, s.gradient);
        }, sums.data());
        for (size_t k = 0; k < into.size(); ++k) {
            const Link<T>& q = links[into[k]];
            const double* r = sums.data() + 2 * int64_t(k) * s.channels;
            maps[into[k]] = through(q.first + q.count - 1, r, r + s.channels);
        }
    }
};

}  // namespace

#define EXPORT_GRAPH(T, NAME)                                                                                                       \
    extern "C" void oche_graph_forward_##NAME(const Graph* g, const State<T>* states, const Step<T>* steps, const Pool<T>* pools,  \
                                              const Link<T>* links, double* moments, T* out) {                                      \
        GraphPass<T>(*g, states, steps, pools, links, moments).forward(out);                                                        \
    }                                                                                                                               \
    extern "C" void oche_graph_backward_##NAME(const Graph* g, const State<T>* states, const Step<T>* steps, const Pool<T>* pools, \
                                               const Link<T>* links, double* moments, const T* dout, const T* also_dout, T* scratch,  \
                                               int64_t room) {    \
        GraphBack<T>(GraphPass<T>(*g, states, steps, pools, links, moments), dout, also_dout, scratch, room).backward_pass();                  \
    }
EXPORT_GRAPH(float, f32)
EXPORT_GRAPH(double, f64)
