"""Counts an iteration's work: operators launched, multiply-adds, bytes through convolutions, compiled calls.

`Operators` counts every operator that torch executes and that computes something: views, allocations and questions are left out,
composite operators are counted by their parts. Compiled kernels are called past torch, so `calls` counts and times them by name.
"""

from __future__ import annotations

import ctypes
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from oche.fast.backends.native import kernels

NO_WORK = {
    *("detach", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_local_scalar_dense"),
    *("lift_fresh", "is_same_size", "sym_size", "sym_stride", "resize_", "set_", "_unsafe_view", "_reshape_alias"),
}


class Operators(TorchDispatchMode):
    """Counts while it is entered.

    `flop` are those of convolutions and matrix products, two a multiply-add; `byte` what goes into and comes out of convolutions and
    pools, each tensor once an operator, forward and backward.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.flop = 0
        self.byte = 0

    @property
    def total(self) -> int:
        return self.counts.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name not in NO_WORK and not func.is_view:
            self.counts[name] += 1
            self._measure(name, args, out)
        return out

    def _measure(self, name: str, args: Any, out: Any) -> None:
        if name == "convolution":
            self.flop += 2 * out.numel() * args[1][0].numel()
        elif name == "convolution_backward":
            self.flop += 2 * args[0].numel() * args[2][0].numel() * (bool(args[-1][0]) + bool(args[-1][1]))
        elif name in ("mm", "addmm"):
            self.flop += 2 * out.numel() * args[-1].shape[0]
        if "convolution" in name or "pool2d" in name:
            tensors = [t for t in (*args, *(out if isinstance(out, tuple) else (out,))) if isinstance(t, Tensor)]
            self.byte += sum(t.numel() * t.element_size() for t in tensors if t.is_floating_point())


@contextmanager
def calls() -> Iterator[dict[str, tuple[int, float]]]:
    """Name of a compiled kernel -> (calls, seconds), filled while inside. Empty where there are no compiled kernels."""
    found: dict[str, tuple[int, float]] = {}
    compiled = kernels()
    if compiled is None:
        yield found
        return
    library = compiled.library
    compiled.check_memory()  # finds the library's flag, which it does not find in a watched one
    object.__setattr__(compiled, "library", _Watched(library, found))
    try:
        yield found
    finally:
        object.__setattr__(compiled, "library", library)


class _Watched:
    """A library whose functions are counted and timed."""

    def __init__(self, library: ctypes.CDLL, found: dict[str, tuple[int, float]]) -> None:
        self._library, self._found = library, found

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function, found = getattr(self._library, name), self._found

        class Watched:
            """Looks like the function: what is set on it is set there."""

            def __setattr__(self, key: str, value: object) -> None:
                setattr(function, key, value)

            def __getattr__(self, key: str) -> object:
                return getattr(function, key)

            def __call__(self, *arguments: Any) -> Any:
                started = time.perf_counter()
                out = function(*arguments)
                count, seconds = found.get(name, (0, 0.0))
                found[name] = (count + 1, seconds + time.perf_counter() - started)
                return out

        return Watched()


def peaks(seconds: float = 0.3) -> dict[str, float]:
    """The peaks that this machine reaches with the given threads.

    `gflops` a second of a matrix product or of a dense 3x3 convolution, whichever is more; `gbytes` a second, read and written, of a
    copy far larger than the caches.
    """
    a, b = torch.randn(1536, 1536), torch.randn(1536, 1536)
    x = torch.randn(32, 128, 32, 32).contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(128, 128, 3, 3).contiguous(memory_format=torch.channels_last)
    source, target = torch.randn(1 << 26), torch.empty(1 << 26)
    product = 2 * 1536**3 / _fastest(lambda: torch.mm(a, b), seconds)
    dense = 2 * x.numel() * 128 * 9 / _fastest(lambda: torch.conv2d(x, kernel, padding=1), seconds)
    copied = 2 * source.numel() * 4 / _fastest(lambda: target.copy_(source), seconds)
    return {"gflops": max(product, dense) / 1e9, "gbytes": copied / 1e9}


def _fastest(work: Callable[[], object], seconds: float) -> float:
    """The fastest of as many runs as fit into `seconds`, three at least, after one that is not timed."""
    with torch.no_grad():
        work()
        times: list[float] = []
        while len(times) < 3 or sum(times) < seconds:
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
    return min(times)
