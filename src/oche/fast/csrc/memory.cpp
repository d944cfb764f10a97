// What happens when memory runs out inside a kernel? An exception must not leave a call that came through ctypes, nor a parallel region.
//
// `new` that fails is given what lies in reserve and tried again, so the call ends in an orderly way; `oche_short` tells the caller, who
// raises MemoryError. Kernels allocate little by `new` beside their tensors, which torch allocates before.

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

constexpr std::size_t RESERVE = std::size_t(64) << 20;
std::atomic<void*> reserve{nullptr};

}  // namespace

extern "C" int oche_short = 0;

namespace {

void let_go() {
    void* const held = reserve.exchange(nullptr);
    if (!held) throw std::bad_alloc();
    oche_short = 1;
    std::free(held);
}

}  // namespace

// To be called once after loading, and again after a shortage. The memory in reserve is never touched, so it is none but in name.
extern "C" void oche_prepare() {
    oche_short = 0;
    if (!reserve.load()) reserve = std::malloc(RESERVE);
    std::set_new_handler(let_go);
}
