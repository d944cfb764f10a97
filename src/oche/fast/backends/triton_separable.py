"""ReLU, depthwise and pointwise convolution and the statistics of their result in one Triton kernel.

A program makes one tile of output pixels: each tap's inputs are read, cut at zero and added up in registers, the tile is multiplied by
the pointwise weights, stored, and measured. The depthwise result never reaches memory. Backward, with dz = dy P from torch's product of
matrices: one kernel gathers dx over the flipped taps, and, only where weights learn, one computes the depthwise result anew with the
sums for the depthwise weights' gradient. Products are in fp32 without TF32; those of 16-bit tensors in TF32, which holds
their numbers exactly. Sums are in fp32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from oche.fast.backends.triton_rows import _like, _merge_moments, _wide

ROWS = 64
"""Pixels of a tile."""


@triton.jit
def _source(r, pixels, height, width, out_height, out_width, stride, dilation, pad, tap, K: tl.constexpr):
    """Number of the input pixel that output pixel r reads at a tap, and whether it is inside."""
    i = (r // out_width) % out_height * stride - pad + (tap // K) * dilation
    j = r % out_width * stride - pad + (tap % K) * dilation
    image = r // (out_height * out_width)
    return (image * height + i) * width + j, (r < pixels) & (i >= 0) & (i < height) & (j >= 0) & (j < width)


@triton.jit
def _forward(
    x, step, depth, point, y, means, squares, pixels, height, width, out_height, out_width, channels, outputs,
    stride, dilation, pad, PRECISION: tl.constexpr, K: tl.constexpr, R: tl.constexpr, C: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    acc = means.dtype.element_ty
    narrow = y.dtype.element_ty
    r = (tl.program_id(0) * R + tl.arange(0, R)).to(tl.int64)
    o = tl.program_id(1) * OUT + tl.arange(0, OUT)
    total = tl.zeros((R, OUT), acc)
    for first in range(0, channels, C):
        c = first + tl.arange(0, C)
        z = tl.zeros((R, C), acc)
        for tap in tl.static_range(K * K):
            at, there = _source(r, pixels, height, width, out_height, out_width, stride, dilation, pad, tap, K)
            value = tl.load(x + at[:, None] * step + c[None, :], there[:, None] & (c < channels)[None, :], 0.0).to(acc)
            weight = tl.load(depth + tap * channels + c, c < channels, 0.0).to(acc)
            z += tl.where(value < 0, 0.0, value) * weight[None, :]
        inside = (o < outputs)[None, :] & (c < channels)[:, None]
        p = tl.load(point + o[None, :] * channels + c[:, None], inside, 0.0)
        total += tl.dot(z.to(narrow).to(acc), p.to(acc), input_precision=PRECISION, out_dtype=acc)
    inside = (r < pixels)[:, None] & (o < outputs)[None, :]
    stored = total.to(narrow)
    tl.store(y + r[:, None] * outputs + o[None, :], stored, inside)
    value = tl.where(inside, stored.to(acc), 0.0)
    mean = tl.sum(value, 0) / tl.minimum(pixels - tl.program_id(0) * R, R).to(acc)
    off = tl.where(inside, value - mean[None, :], 0.0)
    tl.store(means + tl.program_id(0) * outputs + o, mean, o < outputs)
    tl.store(squares + tl.program_id(0) * outputs + o, tl.sum(off * off, 0), o < outputs)


@triton.jit
def _to_input(
    x, step, depth, dz, dx, places, height, width, out_height, out_width, channels,
    stride, dilation, pad, ACC: tl.constexpr, K: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    s = (tl.program_id(0) * R + tl.arange(0, R)).to(tl.int64)
    c = tl.program_id(1) * C + tl.arange(0, C)
    inside = (s < places)[:, None] & (c < channels)[None, :]
    image, row, column = s // (height * width), (s // width) % height, s % width
    total = tl.zeros((R, C), ACC)
    for tap in tl.static_range(K * K):
        i = row + pad - (tap // K) * dilation
        j = column + pad - (tap % K) * dilation
        there = (i >= 0) & (j >= 0) & (i % stride == 0) & (j % stride == 0)
        i, j = i // stride, j // stride
        there = there & (i < out_height) & (j < out_width)
        at = (image * out_height + i) * out_width + j
        value = tl.load(dz + at[:, None] * channels + c[None, :], inside & there[:, None], 0.0).to(ACC)
        total += value * tl.load(depth + tap * channels + c, c < channels, 0.0).to(ACC)[None, :]
    positive = tl.load(x + s[:, None] * step + c[None, :], inside, 0.0).to(ACC) > 0
    tl.store(dx + s[:, None] * channels + c[None, :], tl.where(positive, total, 0.0).to(dx.dtype.element_ty), inside)


@triton.jit
def _to_weights(
    x, step, depth, dz, z, sums, pixels, height, width, out_height, out_width, channels,
    stride, dilation, pad, K: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    acc = sums.dtype.element_ty
    r = (tl.program_id(0) * R + tl.arange(0, R)).to(tl.int64)
    c = tl.program_id(1) * C + tl.arange(0, C)
    own = r[:, None] * channels + c[None, :]
    inside = (r < pixels)[:, None] & (c < channels)[None, :]
    g = tl.load(dz + own, inside, 0.0).to(acc)
    total = tl.zeros((R, C), acc)
    for tap in tl.static_range(K * K):
        at, there = _source(r, pixels, height, width, out_height, out_width, stride, dilation, pad, tap, K)
        value = tl.load(x + at[:, None] * step + c[None, :], inside & there[:, None], 0.0).to(acc)
        value = tl.where(value < 0, 0.0, value)
        total += value * tl.load(depth + tap * channels + c, c < channels, 0.0).to(acc)[None, :]
        place = (tl.program_id(0) * K * K + tap) * channels
        tl.store(sums + place + c, tl.sum(value * g, 0), c < channels)
    tl.store(z + own, total.to(z.dtype.element_ty), inside)


# ------------------------------------------------------------------ as operators


@torch.library.custom_op("oche::separable", mutates_args=())
def forward(
    x: Tensor, step: int, depth: Tensor, point: Tensor, stride: int, dilation: int
) -> tuple[Tensor, Tensor, Tensor]:
    """y (B, O, H', W') of x (B, C, H, W), whose pixels lie `step` apart, with its mean and biased variance (O,).

    depth (C, 1, k, k) and point (O, C, 1, 1) are the weights; the padding keeps H and W at stride 1.
    """
    y, mean, variance = _results(x, point, depth, stride, dilation)
    (_, channels, height, width), outputs = x.shape, y.shape[1]
    pixels, k = y.numel() // outputs, depth.shape[-1]
    tiles = triton.cdiv(pixels, ROWS)
    means, squares = (x.new_empty(tiles, outputs, dtype=mean.dtype) for _ in range(2))
    c, o = _block(channels), _block(outputs)
    _forward[(tiles, triton.cdiv(outputs, o))](
        x, step, _by_tap(depth), point.reshape(outputs, channels).contiguous(), y, means, squares, pixels, height, width,
        y.shape[2], y.shape[3], channels, outputs, stride, dilation, _pad(k, dilation),
        PRECISION="tf32" if x.element_size() == 2 else "ieee", K=k, R=ROWS, C=c, OUT=o,
    )  # fmt: skip
    p = min(64, triton.next_power_of_2(tiles))
    grid = (triton.cdiv(outputs, o),)
    _merge_moments[grid](means, squares, mean, variance, tiles, pixels, outputs, R=ROWS, P=p, C=o)
    return y, mean, variance


@torch.library.custom_op("oche::separable_to_input", mutates_args=())
def to_input(x: Tensor, step: int, depth: Tensor, dz: Tensor, stride: int, dilation: int) -> Tensor:
    """dx from dz (B, C, H', W') without gaps, the gradient between the two convolutions."""
    dx = _like(x, x.dtype)
    _, channels, height, width = x.shape
    k, c, acc = depth.shape[-1], _block(channels), tl.float64 if x.dtype == torch.float64 else tl.float32
    places = x.numel() // channels
    _to_input[(triton.cdiv(places, ROWS), triton.cdiv(channels, c))](
        x, step, _by_tap(depth), dz, dx, places, height, width, dz.shape[2], dz.shape[3], channels,
        stride, dilation, _pad(k, dilation), ACC=acc, K=k, R=ROWS, C=c,
    )  # fmt: skip
    return dx


@torch.library.custom_op("oche::separable_to_weights", mutates_args=())
def to_weights(x: Tensor, step: int, depth: Tensor, dz: Tensor, stride: int, dilation: int) -> tuple[Tensor, Tensor]:
    """z (B, C, H', W'), the result between the two convolutions, and the gradient of `depth`."""
    z, k, channels = _like(dz, dz.dtype), depth.shape[-1], x.shape[1]
    pixels, c = dz.numel() // channels, _block(channels)
    tiles = triton.cdiv(pixels, ROWS)
    sums = x.new_empty(tiles, k * k, channels, dtype=_wide(x.dtype))
    _to_weights[(tiles, triton.cdiv(channels, c))](
        x, step, _by_tap(depth), dz, z, sums, pixels, x.shape[2], x.shape[3], dz.shape[2], dz.shape[3], channels,
        stride, dilation, _pad(k, dilation), K=k, R=ROWS, C=c,
    )  # fmt: skip
    return z, sums.sum(0).T.reshape(depth.shape).to(depth.dtype).contiguous()


@forward.register_fake
def _(x: Tensor, step: int, depth: Tensor, point: Tensor, stride: int, dilation: int) -> tuple[Tensor, Tensor, Tensor]:
    return _results(x, point, depth, stride, dilation)


@to_input.register_fake
def _(x: Tensor, step: int, depth: Tensor, dz: Tensor, stride: int, dilation: int) -> Tensor:
    return _like(x, x.dtype)


@to_weights.register_fake
def _(x: Tensor, step: int, depth: Tensor, dz: Tensor, stride: int, dilation: int) -> tuple[Tensor, Tensor]:
    return _like(dz, dz.dtype), torch.empty_like(depth, memory_format=torch.contiguous_format)


# ------------------------------------------------------------------ helpers


def _results(x: Tensor, point: Tensor, depth: Tensor, stride: int, dilation: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, height, width = x.shape
    size = [(extent - 1) // stride + 1 for extent in (height, width)]  # the padding is half the kernel's reach
    y = x.new_empty(batch, *size, point.shape[0]).permute(0, 3, 1, 2)
    mean, variance = (x.new_empty(point.shape[0], dtype=_wide(x.dtype)) for _ in range(2))
    return y, mean, variance


def _block(channels: int) -> int:
    """Channels of a tile: a product of matrices needs 16."""
    return min(64, max(16, triton.next_power_of_2(channels)))


def _by_tap(depth: Tensor) -> Tensor:
    """(C, 1, k, k) -> (k k, C)."""
    return depth.reshape(depth.shape[0], -1).T.contiguous()


def _pad(k: int, dilation: int) -> int:
    return dilation * (k - 1) // 2
