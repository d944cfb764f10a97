"""Runs projections: 1x1 convolutions without batch norm of one pixel of each window, or of the window's mean.

They are what lies beside a chain where a network halves its images: the shortcuts of ResNets with biases, and those of
NAS-Bench-201's reductions. What is read is not stored: the backward pass reads it again.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor, nn

from oche.fast.backends.buffers import shared
from oche.fast.backends.library import invoke
from oche.spaces.blocks import Thinning
from oche.spaces.ops import Halving


class Projection(NamedTuple):
    """A 1x1 convolution, its windows' rows and columns, and whether it takes their means or their first pixels."""

    conv: nn.Conv2d
    window: tuple[int, int]
    mean: bool = False


class CProjection(ctypes.Structure):
    """`struct Projection` of stages/project.cpp."""

    _fields_ = [
        (name, ctypes.c_int64) for name in ("n", "height", "width", "ci", "co", "down", "right", "mean", "threads")
    ]

    @staticmethod
    def of(projection: Projection, x: Tensor) -> CProjection:
        """That of a projection of x (B, H, W, C)."""
        width = projection.conv.out_channels
        return CProjection(*x.shape, width, *projection.window, int(projection.mean), torch.get_num_threads())


def projection_of(module: nn.Module, height: int, width: int) -> Projection | None:
    """The projection that the module is for images of so many rows and columns, or None."""
    if type(module) in (nn.Conv2d, Halving, Thinning):
        assert isinstance(module, nn.Conv2d)
        plain = (module.kernel_size, module.padding, module.groups) == ((1, 1), (0, 0), 1)
        return Projection(module, (int(module.stride[0]), int(module.stride[1]))) if plain else None
    if type(module) is not nn.Sequential or len(module) != 2 or type(module[0]) is not nn.AvgPool2d:
        return None
    pool, behind = module[0], projection_of(module[1], height, width)
    sides = nn.modules.utils._pair(pool.kernel_size)
    apart = (nn.modules.utils._pair(pool.stride), nn.modules.utils._pair(pool.padding)) == (sides, (0, 0))
    if not apart or pool.divisor_override or behind is None or behind.window != (1, 1):
        return None
    whole = height % sides[0] == 0 and width % sides[1] == 0
    return Projection(behind.conv, sides, mean=True) if whole or pool.ceil_mode else None


def project(projection: Projection, x: Tensor, weight: Tensor) -> Tensor:
    """The projection (B, H', W', C') of x (B, H, W, C), without its bias."""
    down, right = projection.window
    size = (-(-x.shape[1] // down), -(-x.shape[2] // right))
    y = shared().lasting((len(x), *size, projection.conv.out_channels), x.dtype)
    invoke("project_forward", x.dtype, CProjection.of(projection, x), x, weight.flatten(1).t().contiguous(), y)
    return y


def project_back(
    projection: Projection, x: Tensor, weight: Tensor, g: Tensor, dx: Tensor | None, learn: bool
) -> Tensor | None:
    """The weight's gradient, if it learns, from the gradient g (B, H', W', C') of the projection of x; that of x is added to dx."""
    matrix = weight.flatten(1).t().contiguous()
    found = torch.empty_like(matrix) if learn else None
    invoke("project_backward", g.dtype, CProjection.of(projection, x), x, matrix, g, dx, found)
    return None if found is None else found.t().reshape(weight.shape)
