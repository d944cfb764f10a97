"""How do the compiled kernels of a node see tensors? As rows: one a pixel, its channels side by side, a fixed step apart.

The four functions are those of `kernels.cpp` for `combine`; M is the number of rows, images times pixels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from oche.fast.device import Backend, Triton
from oche.fast.native import Kernels

_NAMES = {torch.float32: "f32", torch.float64: "f64"}


def suit(kernels: Backend | None, values: Sequence[Tensor]) -> bool:
    """Whether there are kernels that can read them: those on the CPU all of one precision that they have, Triton any."""
    first = values[0]
    if isinstance(kernels, Kernels):
        return first.dtype in _NAMES and all(t.device.type == "cpu" and t.dtype == first.dtype for t in values)
    return kernels is not None


def as_rows(t: Tensor) -> Tensor:
    """t (B, C, H, W) where its channels lie side by side and its pixels a fixed step apart, else a copy in channels_last."""
    _, channels, height, width = t.shape
    apart = step(t)
    wanted = (height * width * apart, 1, width * apart, apart)
    fits = all(size == 1 or have == want for size, have, want in zip(t.shape, t.stride(), wanted, strict=True))
    return t if fits and apart >= channels else _dense(t)


def moments(kernels: Backend, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) over images and pixels, in fp64; from Triton at least in fp32."""
    t = as_rows(t)
    if isinstance(kernels, Triton):
        from oche.fast import triton_rows

        found: tuple[Tensor, Tensor] = triton_rows.moments(t, step(t))
        return found
    mean, variance = (torch.empty(t.shape[1], dtype=torch.float64) for _ in range(2))
    _call(kernels, "moments", t.dtype, t, step(t), *_extent(t), mean, variance)
    return mean, variance


def weighted(kernels: Backend, values: Sequence[Tensor], a: Tensor, b: Tensor) -> Tensor:
    """sum_t a_t x_t + b for n values from `as_rows`; a (n, C), b (C,)."""
    if isinstance(kernels, Triton):
        from oche.fast import triton_rows

        total: Tensor = triton_rows.weighted(values, [step(t) for t in values], a, b)
        return total
    out = _dense(torch.empty_like(values[0], memory_format=torch.channels_last))
    _call(kernels, "weighted", out.dtype, len(values), list(values), a, b, *_extent(out), out)
    return out


def dots(kernels: Backend, values: Sequence[Tensor], pivot: Tensor, grad: Tensor) -> Tensor:
    """(n + 1, C) in fp64: sum over rows of grad (x_t - pivot_t), and at last of grad; pivot (n, C), grad in channels_last."""
    if isinstance(kernels, Triton):
        from oche.fast import triton_rows

        sums: Tensor = triton_rows.dots(values, [step(t) for t in values], pivot, grad)
        return sums
    found = torch.empty(len(values) + 1, grad.shape[1], dtype=torch.float64)
    _call(kernels, "dots", grad.dtype, len(values), list(values), pivot, grad, *_extent(grad), found)
    return found


def maps(
    kernels: Backend, values: Sequence[Tensor], a: Tensor, b: Tensor, e: Tensor, grad: Tensor, need: Sequence[bool]
) -> list[Tensor | None]:
    """a_t grad + b_t + e_t x_t for every value that needs it; a, b, e (n, C)."""
    if isinstance(kernels, Triton):
        from oche.fast import triton_rows

        made = iter(triton_rows.maps(values, [step(t) for t in values], a, b, e, grad, need))
        return [next(made) if wanted else None for wanted in need]
    out = [torch.empty_like(grad) if wanted else None for wanted in need]
    addresses = (ctypes.c_void_p * len(out))(*[None if t is None else t.data_ptr() for t in out])
    _call(kernels, "maps", grad.dtype, len(values), list(values), a, b, e, grad, *_extent(grad), addresses)
    return out


def enter(kernels: Kernels, x: Tensor, p: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """y (M, C') = max(x, 0) p for x (..., C) contiguous, p (C, C'); its mean and biased variance (C',) in fp64."""
    mean, variance = (torch.empty(p.shape[1], dtype=torch.float64) for _ in range(2))
    _call(kernels, "enter", x.dtype, x, p, len(y), *p.shape, torch.get_num_threads(), y, mean, variance)
    return mean, variance


def leave(
    kernels: Kernels,
    x: Tensor,
    y: Tensor,
    grad: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    e: Tensor,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and of weight (C', C), from dy = a grad + b + e y; a, b, e (C',)."""
    outputs, inputs = weight.shape
    weight = weight.contiguous()
    dx = torch.empty_like(x) if need_x else ctypes.c_void_p(None)
    dp = torch.zeros(inputs, outputs, dtype=x.dtype) if need_weight else ctypes.c_void_p(None)
    extent = (len(y), inputs, outputs, torch.get_num_threads())
    _call(kernels, "leave", x.dtype, x, y, grad, weight, a, b, e, *extent, dx, dp)
    return (dx if isinstance(dx, Tensor) else None), (dp.t() if isinstance(dp, Tensor) else None)


def _dense(t: Tensor) -> Tensor:
    """A copy whose memory is (B, H, W, C) even where torch cannot tell the formats apart."""
    if step(t) == t.shape[1] and t.is_contiguous(memory_format=torch.channels_last):
        return t
    return t.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)


def dense(t: Tensor) -> Tensor:
    """t (B, C, H, W) with rows that follow each other without gaps."""
    t = as_rows(t)
    return t if step(t) == t.shape[1] else _dense(t)


def step(t: Tensor) -> int:
    """Distance between two pixels."""
    batch, channels, height, width = t.shape
    if width > 1:
        return t.stride(3)
    return t.stride(2) if height > 1 else t.stride(0) if batch > 1 else channels


def _extent(t: Tensor) -> tuple[int, int, int]:
    """Rows, channels, threads."""
    return t.numel() // t.shape[1], t.shape[1], torch.get_num_threads()


def _call(kernels: Kernels, name: str, dtype: torch.dtype, *arguments: object) -> None:
    """Integers as int64, tensors by address, a list of tensors as an array of (address, step)."""
    held: list[object] = []
    passed: list[object] = []
    for argument in arguments:
        if isinstance(argument, int):
            passed.append(ctypes.c_int64(argument))
        elif isinstance(argument, Tensor):
            passed.append(ctypes.c_void_p(argument.data_ptr()))
        elif isinstance(argument, list):
            table = [number for t in argument for number in (t.data_ptr(), step(t))]
            held.append((ctypes.c_int64 * len(table))(*table))
            passed.append(held[-1])
        else:
            passed.append(argument)
    function = getattr(kernels.library, f"oche_{name}_{_NAMES[dtype]}")
    function.restype = None
    function(*passed)
