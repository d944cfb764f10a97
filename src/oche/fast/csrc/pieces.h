// Work shared among threads of which some may stand still, because another process has their core.
//
// A thread begins with pieces of its own, side by side, which it may still have in its cache from the loop before; then it takes from the
// others what they have not begun. Which thread has a piece is chance, so sums over pieces lie with the piece and are added in its order.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>
#include "lanes.h"

namespace {

class Pieces {
public:
    Pieces(int64_t threads, int64_t pieces) : lots(std::max<int64_t>(1, std::min(threads, pieces))), pieces_(pieces) {
        for (size_t i = 0; i < lots.size(); ++i) lots[i].next = first(i);
    }

    // the next piece of the thread that asks, or false
    bool take(int64_t& piece) {
        for (size_t i = 0; i < lots.size(); ++i) {
            const size_t of = (omp_get_thread_num() + i) % lots.size();
            if (lots[of].next.load(std::memory_order_relaxed) >= first(of + 1)) continue;
            piece = lots[of].next.fetch_add(1, std::memory_order_relaxed);
            if (piece < first(of + 1)) return true;
        }
        return false;
    }

private:
    struct alignas(64) Lot {
        std::atomic<int64_t> next;
    };
    int64_t first(size_t lot) const { return int64_t(lot) * pieces_ / int64_t(lots.size()); }

    std::vector<Lot> lots;
    const int64_t pieces_;
};

// Parts of n images with sums of their own: with two threads of which one has half a core, three for each thread end together
struct Parts {
    int64_t n, count;
    Parts(int64_t n_, int64_t threads, bool sums) : n(n_), count(!sums ? n_ : threads == 1 ? 1 : std::min(n_, 3 * threads)) {}
    int64_t begin(int64_t part) const { return part * n / count; }
    int64_t end(int64_t part) const { return begin(part + 1); }
};

}  // namespace
