"""The four functions that `rows` asks of the compiled kernels, in Triton, over the same rows.

A program reads one tile of rows and channels once, from all n tensors, and keeps it in registers. Sums over rows are written a tile at
a time and added up afterwards in a fixed order, without atomics, so that a result does not depend on who came first. Sums are in fp32,
or in fp64 for tensors in fp64; moments are merged from those of the tiles (Chan, Golub and LeVeque, 1979), which never subtracts two
large squares. Only imported where Triton is there (`device.accelerator`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096
"""Elements of a tile."""


@triton.jit
def _tile_moments(x, step, means, squares, rows, channels, R: tl.constexpr, C: tl.constexpr):
    acc = means.dtype.element_ty
    r = (tl.program_id(0) * R + tl.arange(0, R)).to(tl.int64)[:, None]
    c = (tl.program_id(1) * C + tl.arange(0, C))[None, :]
    inside = (r < rows) & (c < channels)
    count = tl.minimum(rows - tl.program_id(0) * R, R).to(acc)
    value = tl.load(x + r * step + c, inside, 0.0).to(acc)
    mean = tl.sum(value, 0, keep_dims=True) / count
    off = tl.where(inside, value - mean, 0.0)
    place = tl.program_id(0) * channels + c
    tl.store(means + place, mean, c < channels)
    tl.store(squares + place, tl.sum(off * off, 0, keep_dims=True), c < channels)


@triton.jit
def _merge_moments(
    means, squares, mean, variance, tiles, rows, channels, R: tl.constexpr, P: tl.constexpr, C: tl.constexpr
):
    acc = mean.dtype.element_ty
    c = (tl.program_id(0) * C + tl.arange(0, C))[None, :]
    total = tl.zeros((1, C), acc)
    for first in range(0, tiles, P):
        p = first + tl.arange(0, P)[:, None]
        inside = (p < tiles) & (c < channels)
        count = tl.minimum(rows - p * R, R).to(acc)
        total += tl.sum(count * tl.load(means + p * channels + c, inside, 0.0), 0, keep_dims=True)
    centre = total / rows
    spread = tl.zeros((1, C), acc)
    for first in range(0, tiles, P):
        p = first + tl.arange(0, P)[:, None]
        inside = (p < tiles) & (c < channels)
        count = tl.minimum(rows - p * R, R).to(acc)
        off = tl.where(inside, tl.load(means + p * channels + c, inside, 0.0) - centre, 0.0)
        spread += tl.sum(tl.load(squares + p * channels + c, inside, 0.0) + count * off * off, 0, keep_dims=True)
    tl.store(mean + c, centre, c < channels)
    tl.store(variance + c, spread / rows, c < channels)


@triton.jit
def _weighted(values, steps, a, b, out, rows, channels, N: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    acc = a.dtype.element_ty
    r = (tl.program_id(0) * R + tl.arange(0, R)).to(tl.int64)[:, None]
    c = (tl.program_id(1) * C + tl.arange(0, C))[None, :]
    inside = (r < rows) & (c < channels)
    total = tl.zeros((R, C), acc) + tl.load(b + c, c < channels, 0.0)
    for t in tl.static_range(N):
        value = tl.load(values[t] + r * steps[t] + c, inside, 0.0).to(acc)
        total += value * tl.load(a + t * channels + c, c < channels, 0.0)
    tl.store(out + r * channels + c, total.to(out.dtype.element_ty), inside)


@triton.jit
def _tile_dots(values, steps, pivot, grad, sums, rows, channels, N: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    acc = sums.dtype.element_ty
    r = (tl.program_id(0) * R + tl.arange(0, R)).to(tl.int64)[:, None]
    c = (tl.program_id(1) * C + tl.arange(0, C))[None, :]
    inside = (r < rows) & (c < channels)
    g = tl.load(grad + r * channels + c, inside, 0.0).to(acc)
    place = tl.program_id(0) * (N + 1) * channels + c
    for t in tl.static_range(N):
        off = tl.load(values[t] + r * steps[t] + c, inside, 0.0).to(acc)
        off -= tl.load(pivot + t * channels + c, c < channels, 0.0)
        tl.store(sums + place + t * channels, tl.sum(g * off, 0, keep_dims=True), c < channels)
    tl.store(sums + place + N * channels, tl.sum(g, 0, keep_dims=True), c < channels)


@triton.jit
def _maps(
    values, steps, a, b, e, grad, out, rows, channels,
    NEED: tl.constexpr, N: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    acc = a.dtype.element_ty
    r = (tl.program_id(0) * R + tl.arange(0, R)).to(tl.int64)[:, None]
    c = (tl.program_id(1) * C + tl.arange(0, C))[None, :]
    inside = (r < rows) & (c < channels)
    g = tl.load(grad + r * channels + c, inside, 0.0).to(acc)
    for t in tl.static_range(N):
        if (NEED >> t) & 1:
            at = t * channels + c
            value = tl.load(values[t] + r * steps[t] + c, inside, 0.0).to(acc)
            slope, level = tl.load(a + at, c < channels, 0.0), tl.load(b + at, c < channels, 0.0)
            found = slope * g + level + tl.load(e + at, c < channels, 0.0) * value
            tl.store(out[t] + r * channels + c, found.to(out[t].dtype.element_ty), inside)


# ------------------------------------------------------------------ as operators, which torch.compile does not look into


@torch.library.custom_op("oche::row_moments", mutates_args=())
def moments(value: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) of value (B, C, H, W) from `rows.as_rows`, whose pixels lie `step` apart."""
    rows, channels, r, c = _tiles(value)
    tiles, wide = triton.cdiv(rows, r), _wide(value.dtype)
    means, squares = (value.new_empty(tiles, channels, dtype=wide) for _ in range(2))
    mean, variance = (value.new_empty(channels, dtype=wide) for _ in range(2))
    blocks = triton.cdiv(channels, c)
    _tile_moments[(tiles, blocks)](value, step, means, squares, rows, channels, R=r, C=c)
    p = min(64, triton.next_power_of_2(tiles))
    _merge_moments[(blocks,)](means, squares, mean, variance, tiles, rows, channels, R=r, P=p, C=c)
    return mean, variance


@torch.library.custom_op("oche::row_weighted", mutates_args=())
def weighted(values: Sequence[Tensor], steps: Sequence[int], a: Tensor, b: Tensor) -> Tensor:
    """sum_t a_t x_t + b in channels_last, in the dtype that the values promote to; a (n, C), b (C,)."""
    out = _like(values[0], _promoted(values))
    rows, channels, r, c = _tiles(out)
    grid = (triton.cdiv(rows, r), triton.cdiv(channels, c))
    _weighted[grid](tuple(values), tuple(steps), a, b, out, rows, channels, N=len(values), R=r, C=c)
    return out


@torch.library.custom_op("oche::row_dots", mutates_args=())
def dots(values: Sequence[Tensor], steps: Sequence[int], pivot: Tensor, grad: Tensor) -> Tensor:
    """(n + 1, C) in fp64: sum over rows of grad (x_t - pivot_t), and at last of grad; pivot (n, C), grad without gaps."""
    rows, channels, r, c = _tiles(grad)
    tiles, n = triton.cdiv(rows, r), len(values)
    sums = grad.new_empty(tiles, n + 1, channels, dtype=pivot.dtype)
    grid = (tiles, triton.cdiv(channels, c))
    _tile_dots[grid](tuple(values), tuple(steps), pivot, grad, sums, rows, channels, N=n, R=r, C=c)
    return sums.sum(0, dtype=torch.float64)


@torch.library.custom_op("oche::row_maps", mutates_args=())
def maps(
    values: Sequence[Tensor],
    steps: Sequence[int],
    a: Tensor,
    b: Tensor,
    e: Tensor,
    grad: Tensor,
    need: Sequence[bool],
) -> list[Tensor]:
    """a_t grad + b_t + e_t x_t, in its value's dtype, for each value that needs it, and for no other; a, b, e (n, C)."""
    made = [_like(grad, value.dtype) for value, wanted in zip(values, need, strict=True) if wanted]
    if not made:
        return made
    later = iter(made)
    out = tuple(next(later) if wanted else grad for wanted in need)
    bits = sum(1 << t for t, wanted in enumerate(need) if wanted)
    rows, channels, r, c = _tiles(grad)
    grid = (triton.cdiv(rows, r), triton.cdiv(channels, c))
    n = len(values)
    _maps[grid](tuple(values), tuple(steps), a, b, e, grad, out, rows, channels, NEED=bits, N=n, R=r, C=c)
    return made


@moments.register_fake
def _(value: Tensor, step: int) -> tuple[Tensor, Tensor]:
    mean, variance = (value.new_empty(value.shape[1], dtype=_wide(value.dtype)) for _ in range(2))
    return mean, variance


@weighted.register_fake
def _(values: Sequence[Tensor], steps: Sequence[int], a: Tensor, b: Tensor) -> Tensor:
    return _like(values[0], _promoted(values))


@dots.register_fake
def _(values: Sequence[Tensor], steps: Sequence[int], pivot: Tensor, grad: Tensor) -> Tensor:
    return grad.new_empty(len(values) + 1, grad.shape[1], dtype=torch.float64)


@maps.register_fake
def _(
    values: Sequence[Tensor], steps: Sequence[int], a: Tensor, b: Tensor, e: Tensor, grad: Tensor, need: Sequence[bool]
) -> list[Tensor]:
    return [_like(grad, value.dtype) for value, wanted in zip(values, need, strict=True) if wanted]


# ------------------------------------------------------------------ helpers


def _tiles(t: Tensor) -> tuple[int, int, int, int]:
    """Rows, channels, and how many of each a tile holds."""
    channels = t.shape[1]
    c = min(64, triton.next_power_of_2(channels))
    return t.numel() // channels, channels, TILE // c, c


def _like(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Room for (B, C, H, W) whose memory is (B, H, W, C)."""
    batch, channels, height, width = t.shape
    return t.new_empty(batch, height, width, channels, dtype=dtype).permute(0, 3, 1, 2)


def _promoted(values: Sequence[Tensor]) -> torch.dtype:
    dtype = values[0].dtype
    for value in values[1:]:
        dtype = torch.promote_types(dtype, value.dtype)
    return dtype


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
