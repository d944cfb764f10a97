// Stores that bypass the caches, where what is written is too large for them.

#pragma once

#include "flat.h"

namespace {

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

}  // namespace
