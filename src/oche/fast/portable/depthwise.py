"""A depthwise convolution whose derivatives avoid torch's slow operators: `depthwise`.

On the CPU torch takes up to a hundred times as long for a backward pass as for the forward pass, but for kernels of at most three
columns that are not dilated. So, with z = D x for taps D (C, 1, k, k'):

    dx   is a forward convolution of dz by the flipped taps, where the stride is 1;
    dD   is taken three columns of taps at a time, and with dilation d from the d^2 images made of every d-th pixel;
    D    whose stride is its dilation d sees every d-th pixel alone: `thinned` takes it there, where it has neither.

Twice differentiable: the backward passes are convolutions themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import grad as of_convolution

_COLUMNS = 3
"""The widest kernel whose derivative torch has fast."""

Pair = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """Stride, padding and dilation of a convolution, down and right."""

    stride: Pair
    padding: Pair
    dilation: Pair

    @staticmethod
    def of(conv: nn.Conv2d) -> Geometry:
        (p, q) = (int(n) for n in conv.padding)
        return Geometry(_pair(conv.stride), (p, q), _pair(conv.dilation))

    @property
    def every(self) -> int:
        """d where only every d-th pixel down and right is seen: stride and dilation are d, and d divides the padding. Else 1."""
        d = self.stride[0]
        alike = self.stride == self.dilation == (d, d)
        return d if alike and not any(p % d for p in self.padding) else 1

    def thinned(self) -> Geometry:
        """The same convolution on every d-th pixel."""
        d = self.every
        return Geometry(
            (self.stride[0] // d, self.stride[1] // d),
            (self.padding[0] // d, self.padding[1] // d),
            (self.dilation[0] // d, self.dilation[1] // d),
        )


def is_depthwise(module: nn.Module, x: Tensor) -> TypeGuard[nn.Conv2d]:
    """True if it is a depthwise convolution whose derivatives are worth taking here: on the CPU."""
    return (
        isinstance(module, nn.Conv2d)
        and module.groups == module.in_channels == module.out_channels > 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and module.bias is None
        and x.device.type == "cpu"
    )


def depthwise(x: Tensor, taps: Tensor, geometry: Geometry) -> Tensor:
    """z (B, C, H', W') of x (B, C, H, W) and taps (C, 1, k, k'), under autocast in its type."""
    if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64:
        x, taps = (t.to(torch.get_autocast_dtype("cpu")) for t in (x, taps))
    z: Tensor = _Depthwise.apply(x, taps, geometry)  # type: ignore[no-untyped-call]
    return z


def thinned(h: Tensor, every: int) -> Tensor:
    """Every so many-th pixel of h (B, C, H, W) down and right, dense in memory."""
    return h[:, :, ::every, ::every].contiguous(memory_format=torch.channels_last)


class _Context(Protocol):
    saved_tensors: tuple[Tensor, Tensor]
    needs_input_grad: tuple[bool, bool, bool]
    geometry: Geometry

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, x: Tensor, taps: Tensor, geometry: Geometry) -> Tensor:
        ctx.geometry = geometry
        ctx.save_for_backward(x, taps)
        return _convolve(x, taps, geometry)

    @staticmethod
    def backward(ctx: _Context, dz: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, taps = ctx.saved_tensors
        dx = _to_input(x, taps, dz, ctx.geometry) if ctx.needs_input_grad[0] else None
        dtaps = _to_taps(x, taps, dz, ctx.geometry) if ctx.needs_input_grad[1] else None
        return dx, dtaps, None


def _convolve(x: Tensor, taps: Tensor, g: Geometry) -> Tensor:
    return F.conv2d(x, taps, None, g.stride, g.padding, g.dilation, groups=len(taps))


def _to_input(x: Tensor, taps: Tensor, dz: Tensor, g: Geometry) -> Tensor:
    """dx: dz padded so that each of x's pixels meets every tap that it went through."""
    if g.stride != (1, 1):
        wide = torch.promote_types(dz.dtype, torch.float32)  # bfloat16 takes thirty times as long here
        dx: Tensor = of_convolution.conv2d_input(  # type: ignore[no-untyped-call]
            x.shape, taps.to(wide), dz.to(wide), g.stride, g.padding, g.dilation, groups=len(taps)
        )
        return dx.to(x.dtype)
    padding = (g.dilation[0] * (taps.shape[2] - 1) - g.padding[0], g.dilation[1] * (taps.shape[3] - 1) - g.padding[1])
    return _convolve(dz, taps.flip(2, 3), Geometry((1, 1), padding, g.dilation))


def _to_taps(x: Tensor, taps: Tensor, dz: Tensor, g: Geometry) -> Tensor:
    """dD (C, 1, k, k'): on the images of every d-th pixel where the taps lie d apart, and three columns at a time."""
    channels, _, rows, columns = taps.shape
    if g.dilation == (1, 1) and columns <= _COLUMNS:
        return _weight(x, (channels, 1, rows, columns), dz, g)
    x = F.pad(x, (g.padding[1], g.padding[1], g.padding[0], g.padding[0]))
    stride, dilation = g.stride, g.dilation
    if stride == (1, 1) and dilation != (1, 1):
        x, dz = _apart(x, dilation), _apart(dz, dilation)
        dilation = (1, 1)
    parts = []
    for first in range(0, columns, _COLUMNS):
        width = min(_COLUMNS, columns - first)
        seen = (dz.shape[3] - 1) * stride[1] + (width - 1) * dilation[1] + 1
        part = x.narrow(3, first * dilation[1], seen)
        parts.append(_weight(part, (channels, 1, rows, width), dz, Geometry(stride, (0, 0), dilation)))
    return torch.cat(parts, dim=3)


def _weight(x: Tensor, shape: tuple[int, int, int, int], dz: Tensor, g: Geometry) -> Tensor:
    dtaps: Tensor = of_convolution.conv2d_weight(  # type: ignore[no-untyped-call]
        x, shape, dz, g.stride, g.padding, g.dilation, groups=shape[0]
    )
    return dtaps


def _apart(t: Tensor, every: Pair) -> Tensor:
    """(d d' B, C, H / d, W / d'): the images of every d-th row and d'-th column, with zeros where the last of them ends early."""
    (down, right), (height, width) = every, t.shape[2:]
    t = F.pad(t, (0, -width % right, 0, -height % down))
    batch, channels, height, width = t.shape
    split = t.reshape(batch, channels, height // down, down, width // right, right)
    pixels = split.permute(3, 5, 0, 2, 4, 1).reshape(-1, height // down, width // right, channels)
    return pixels.permute(0, 3, 1, 2)


def _pair(value: tuple[int, ...]) -> Pair:
    first, second = value
    return first, second
