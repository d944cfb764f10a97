"""Tensors as the compiled kernels of a node read them: one row per pixel, its channels side by side, a fixed step apart.

The four functions are those of `rows.cpp` for `combine`; M is the number of rows, images times pixels. On the CPU they are operators
of `torch.library` over tensors from `as_rows`, without derivatives: `combine` has those.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from oche.fast.backends.device import Backend, Triton
from oche.fast.backends.library import define, invoke
from oche.fast.backends.native import Kernels


def suit(kernels: Backend | None, values: Sequence[Tensor]) -> bool:
    """True if there are kernels that can read them: on the CPU they must share a precision that the kernels have; Triton reads any."""
    first = values[0]
    if isinstance(kernels, Kernels):
        exact = first.dtype in (torch.float32, torch.float64)
        return exact and all(t.device.type == "cpu" and t.dtype == first.dtype for t in values)
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
        from oche.fast.backends import triton_rows

        found: tuple[Tensor, Tensor] = triton_rows.moments(t, step(t))
        return found
    return MOMENTS(t)


def weighted(kernels: Backend, values: Sequence[Tensor], a: Tensor, b: Tensor) -> Tensor:
    """sum_t a_t x_t + b for n values from `as_rows`; a (n, C), b (C,)."""
    if isinstance(kernels, Triton):
        from oche.fast.backends import triton_rows

        total: Tensor = triton_rows.weighted(values, [step(t) for t in values], a, b)
        return total
    return WEIGHTED(values, a, b)


def dots(kernels: Backend, values: Sequence[Tensor], pivot: Tensor, grad: Tensor) -> Tensor:
    """(n + 1, C) in fp64: sum over rows of grad (x_t - pivot_t), and at last of grad; pivot (n, C), grad in channels_last."""
    if isinstance(kernels, Triton):
        from oche.fast.backends import triton_rows

        sums: Tensor = triton_rows.dots(values, [step(t) for t in values], pivot, grad)
        return sums
    return DOTS(values, pivot, grad)


def maps(
    kernels: Backend, values: Sequence[Tensor], a: Tensor, b: Tensor, e: Tensor, grad: Tensor, need: Sequence[bool]
) -> list[Tensor | None]:
    """a_t grad + b_t + e_t x_t for every value that needs it; a, b, e (n, C)."""
    if isinstance(kernels, Triton):
        from oche.fast.backends import triton_rows

        made = iter(triton_rows.maps(values, [step(t) for t in values], a, b, e, grad, need))
    else:
        made = iter(MAPS(values, a, b, e, grad, need))
    return [next(made) if wanted else None for wanted in need]


def enter(x: Tensor, p: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """y (M, C') = max(x, 0) p for x (..., C) contiguous, p (C, C'); its mean and biased variance (C',) in fp64."""
    mean, variance = (torch.empty(p.shape[1], dtype=torch.float64) for _ in range(2))
    invoke("enter", x.dtype, x, p, len(y), *p.shape, torch.get_num_threads(), y, mean, variance)
    return mean, variance


def leave(
    x: Tensor,
    y: Tensor,
    grad: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    e: Tensor,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of weight (C', C), from dy = a grad + b + e y; a, b, e (C',). Empty where they are not needed."""
    outputs, inputs = weight.shape
    weight = weight.contiguous()
    dx = torch.empty_like(x) if need_x else None
    dp = torch.zeros(inputs, outputs, dtype=x.dtype) if need_weight else None
    extent = (len(y), inputs, outputs, torch.get_num_threads())
    invoke("leave", x.dtype, x, y, grad, weight, a, b, e, *extent, dx, dp)
    return x.new_empty(0) if dx is None else dx, x.new_empty(0) if dp is None else dp.t()


def enter_tangent(
    x: Tensor, x_t: Tensor | None, weight: Tensor, weight_t: Tensor | None, y: Tensor, pivot: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """The tangent y_t (M, C') of what `enter` makes of x and weight (C', C); with d = y - pivot, sums (5, C') in fp64 over rows.

    Those are of y_t, d y_t, grad, d grad and y_t grad. A direction that is None is zero.
    """
    y_t, sums = torch.empty_like(y), torch.empty(5, y.shape[1], dtype=torch.float64)
    p, p_t = (None if t is None else t.t().contiguous() for t in (weight, weight_t))
    extent = (len(y), x.shape[-1], y.shape[1], torch.get_num_threads())
    invoke("enter_tangent", x.dtype, x, x_t, p, p_t, y, pivot, grad, *extent, y_t, sums)
    return y_t, sums


def leave_tangent(
    x: Tensor,
    x_t: Tensor | None,
    y: Tensor,
    y_t: Tensor,
    grad: Tensor,
    weight: Tensor,
    weight_t: Tensor | None,
    maps: Tensor,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """The tangents of what `leave` makes of dy = a grad + b + e y and its tangent a_t grad + b_t + e_t y + e y_t.

    y_t becomes the tangent of the output, a y_t + a_t y + c_t; maps (7, C'): a, b, e, a_t, b_t, e_t, c_t.
    """
    outputs, inputs = weight.shape
    weight, weight_t = weight.contiguous(), None if weight_t is None else weight_t.contiguous()
    dx = torch.empty_like(x) if need_x else None
    dp = torch.zeros(inputs, outputs, dtype=x.dtype) if need_weight else None
    extent = (len(y), inputs, outputs, torch.get_num_threads())
    invoke("leave_tangent", x.dtype, x, x_t, y, grad, weight, weight_t, maps, *extent, y_t, dx, dp)
    return x.new_empty(0) if dx is None else dx, x.new_empty(0) if dp is None else dp.t()


# ------------------------------------------------------------------ how tensors lie


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


def _table(values: Sequence[Tensor]) -> ctypes.Array[ctypes.c_int64]:
    """Address and step of each."""
    numbers = [number for t in values for number in (t.data_ptr(), step(t))]
    return (ctypes.c_int64 * len(numbers))(*numbers)


# ------------------------------------------------------------------ the operators on the CPU


def _moments(t: Tensor) -> tuple[Tensor, Tensor]:
    mean, variance = _moments_fake(t)
    invoke("moments", t.dtype, t, step(t), *_extent(t), mean, variance)
    return mean, variance


def _moments_fake(t: Tensor) -> tuple[Tensor, Tensor]:
    mean, variance = (t.new_empty(t.shape[1], dtype=torch.float64) for _ in range(2))
    return mean, variance


def _weighted(values: Sequence[Tensor], a: Tensor, b: Tensor) -> Tensor:
    out = _weighted_fake(values, a, b)
    invoke("weighted", out.dtype, len(values), _table(values), a, b, *_extent(out), out)
    return out


def _weighted_fake(values: Sequence[Tensor], a: Tensor, b: Tensor) -> Tensor:
    batch, channels, height, width = values[0].shape
    return values[0].new_empty(batch, height, width, channels).permute(0, 3, 1, 2)


def _dots(values: Sequence[Tensor], pivot: Tensor, grad: Tensor) -> Tensor:
    found = _dots_fake(values, pivot, grad)
    invoke("dots", grad.dtype, len(values), _table(values), pivot, grad, *_extent(grad), found)
    return found


def _dots_fake(values: Sequence[Tensor], pivot: Tensor, grad: Tensor) -> Tensor:
    return grad.new_empty(len(values) + 1, grad.shape[1], dtype=torch.float64)


def _maps(
    values: Sequence[Tensor], a: Tensor, b: Tensor, e: Tensor, grad: Tensor, need: Sequence[bool]
) -> list[Tensor]:
    made = _maps_fake(values, a, b, e, grad, need)
    later = iter(made)
    out = [next(later) if wanted else None for wanted in need]
    invoke("maps", grad.dtype, len(values), _table(values), a, b, e, grad, *_extent(grad), out)
    return made


def _maps_fake(
    values: Sequence[Tensor], a: Tensor, b: Tensor, e: Tensor, grad: Tensor, need: Sequence[bool]
) -> list[Tensor]:
    return [torch.empty_like(grad) for wanted in need if wanted]


MOMENTS = define("moments(Tensor x) -> (Tensor, Tensor)", _moments, _moments_fake)
WEIGHTED = define("weighted(Tensor[] values, Tensor a, Tensor b) -> Tensor", _weighted, _weighted_fake)
DOTS = define("dots(Tensor[] values, Tensor pivot, Tensor grad) -> Tensor", _dots, _dots_fake)
MAPS = define(
    "maps(Tensor[] values, Tensor a, Tensor b, Tensor e, Tensor grad, bool[] need) -> Tensor[]", _maps, _maps_fake
)
