// What Python tells the kernels of separable cells: sizes and candidates. The layout is written by `packed.py` and must match.

#pragma once

#include <cstdint>

namespace {

constexpr int PAD = 4;  // the widest border: 5x5 with dilation 2
constexpr int64_t CHUNK_BYTES = 32768;  // of a sum of terms

enum Kind : int64_t { SEP, DIL, MAXPOOL, AVGPOOL, SKIP, HALVE, EXTRA };

struct Unit {  // one candidate of one edge, or the entry of a pool; offsets in elements
    int64_t kind, k, src, dst, weight;      // weight: position in the flattened op weights
    int64_t d1, p1, d2, p2;                 // depthwise offsets in D, pointwise numbers in P (HALVE: even, odd)
    int64_t norm1, norm2;                   // batch norm numbers, -1 without
    int64_t slot1, slot2;                   // where the sums of y1 and of the term T are kept
    int64_t y1, term;                       // offsets of y1 and T in the saved buffer (SKIP: the state itself); of a pool, in the
                                            // buffer of pools, counted on from the end of the saved one
    int64_t first;                          // pools: 1 for the unit that computes the shared pool
};

struct Plan {
    int64_t n, height, width, lanes, channels, fold, inputs, nodes, stride, units, slots, norms, ops, depth, points, concat, threads;
    int64_t kept;  // elements of y and T in the saved buffer
    double eps;
};

}  // namespace
