"""The candidate operations, under their published names: `OPS[name](channels, stride, affine)` builds a module.

Every operation keeps the number of channels, and at stride 2 turns H x W into ceil(H/2) x ceil(W/2), for odd sizes too; those of
signals (`blocks.SIGNAL_BLOCKS`) have strides along the width alone.
Sources: quark0/darts (DARTS space), D-X-Y/AutoDL-Projects (`nor_conv_*`), automl/RobustDARTS (`noise`); `blocks` names its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oche.base import Draw
from oche.spaces.blocks import BLOCKS, SIGNAL_BLOCKS, Block, Place
from oche.spaces.deployed import deployed

OpFactory = Callable[[int, int, bool], nn.Module]
"""(channels, stride, affine batch norm?) -> module mapping (B, C, H, W) to (B, C, ceil(H/stride), ceil(W/stride))."""


class Zero(nn.Module):
    """`none`: zeros of the (strided) input's shape."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


class Drawn(nn.Module):
    """An operation that needs randomness: it is called as `op(x, draw)`; `path` tells its noise from its siblings'."""

    path: str = ""


class Noise(Drawn):
    """`noise`: fresh N(0, 1) of the (strided) input's shape, no gradient to x (S4 of RobustDARTS).

    Without a draw (a finished network at work) it is its mean, zero, so that a prediction is a function of the image
    alone: our choice, the authors' code keeps drawing.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor, draw: Draw | None = None) -> Tensor:
        like = x[:, :, :: self.stride, :: self.stride]
        if draw is None or x.is_meta:  # where shapes alone are followed, there is nothing to draw
            return torch.zeros_like(like)
        noise = draw.part.drawn(torch.randn, like.shape, draw.generator(self.path, x.device), dtype=torch.float32)
        return noise.to(x.dtype)


def batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """weight (x - m) / sqrt(v + eps) + bias, m and v (C,) the mean and biased variance of x (B, C, H, W), at least in fp32.

    On the CPU torch keeps the statistics of bf16 values in bf16, unless it meets a vector in fp32: a weight of ones is one.
    """
    if weight is None and bias is None and x.dtype in (torch.bfloat16, torch.float16):
        weight = torch.ones(x.shape[1], dtype=torch.float32, device=x.device)
    return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)


class BatchNorm(nn.BatchNorm2d):
    """A supernet's batch norm, of the batch's statistics; those of bf16 values are in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype in (torch.bfloat16, torch.float16):
            return batch_norm(x, self.weight, self.bias, self.eps)
        return super().forward(x)


class PoolBN(nn.Sequential):
    """A pool with the batch norm that a DARTS supernet puts behind it, so that its scale is comparable; absent in retraining."""

    def __init__(self, pool: nn.Module, channels: int, affine: bool) -> None:
        super().__init__()
        self.pool = pool
        self.norm = nn.BatchNorm2d(channels, affine=affine)


class Halving(nn.Conv2d):
    """A 1x1 convolution of every second pixel, taken before it is convolved: `nn.Conv2d(inputs, outputs, 1, stride=2)` without a bias.

    That one's weight gradient writes past its memory in torch 2.13 (oneDNN on the CPU, channels last, up to 8 channels, 92x120 pixels).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if deployed():
            return F.conv2d(x, self.weight, stride=2)
        return F.conv2d(x[:, :, ::2, ::2], self.weight)


class ReLUConvBN(nn.Sequential):
    """ReLU, convolution, batch norm: `nor_conv_kxk`, and the 1x1 that fits a DARTS cell's inputs."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, affine: bool) -> None:
        super().__init__(
            nn.ReLU(),
            Halving(inputs, outputs)
            if (kernel, stride) == (1, 2)
            else nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs, affine=affine),
        )


class FactorizedReduce(nn.Module):
    """Halves the resolution with two 1x1 stride-2 convolutions, one on even and one on odd pixels, then batch norm.

    An odd last row or column meets a padded zero, so that both halves have ceil(H/2) rows.
    """

    def __init__(self, inputs: int, outputs: int, affine: bool) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.even = Halving(inputs, outputs // 2)
        self.odd = Halving(inputs, outputs - outputs // 2)
        self.norm = nn.BatchNorm2d(outputs, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.halves(x))
        return out

    def halves(self, x: Tensor) -> Tensor:
        """The input of the batch norm. Pixels are selected before the ReLU, since half of them are never read."""
        spare = (0, x.shape[3] % 2, 0, x.shape[2] % 2)
        if deployed():
            x = F.pad(x, spare) if any(spare) else x
            even, odd = self.relu(x[:, :, ::2, ::2]), self.relu(x[:, :, 1::2, 1::2])
            return torch.cat([F.conv2d(even, self.even.weight), F.conv2d(odd, self.odd.weight)], dim=1)
        pixels = (F.pad(x, spare) if any(spare) else x).permute(0, 2, 3, 1)  # a border of no width would be a copy
        batch, height, width, channels = pixels.shape
        squares = pixels.reshape(batch, height // 2, 2, width // 2, 2, channels)
        even, odd = (self.relu(half).permute(0, 3, 1, 2) for half in squares.diagonal(dim1=2, dim2=4).unbind(-1))
        return torch.cat([F.conv2d(even, self.even.weight), F.conv2d(odd, self.odd.weight)], dim=1)


def _separable(channels: int, kernel: int, stride: int, dilation: int, affine: bool) -> list[nn.Module]:
    """ReLU, depthwise, pointwise, batch norm."""
    padding = dilation * (kernel - 1) // 2
    return [
        nn.ReLU(),
        nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine=affine),
    ]


def sep_conv(kernel: int) -> OpFactory:
    """`sep_conv_kxk`: depthwise-separable convolution applied twice, the stride in the first."""

    def build(channels: int, stride: int, affine: bool) -> nn.Module:
        return nn.Sequential(
            *_separable(channels, kernel, stride, 1, affine), *_separable(channels, kernel, 1, 1, affine)
        )

    return build


def dil_conv(kernel: int) -> OpFactory:
    """`dil_conv_kxk`: depthwise-separable convolution with dilation 2, applied once."""
    return lambda channels, stride, affine: nn.Sequential(*_separable(channels, kernel, stride, 2, affine))


def nor_conv(kernel: int) -> OpFactory:
    """`nor_conv_kxk` of NAS-Bench-201: ReLU, dense convolution, batch norm."""
    return lambda channels, stride, affine: ReLUConvBN(channels, channels, kernel, stride, affine)


def crossed_conv(kernel: int) -> OpFactory:
    """`conv_kx1_1xk`: ReLU, 1xk, kx1, batch norm."""

    def build(channels: int, stride: int, affine: bool) -> nn.Module:
        half = kernel // 2
        return nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, (1, kernel), (1, stride), (0, half), bias=False),
            nn.Conv2d(channels, channels, (kernel, 1), (stride, 1), (half, 0), bias=False),
            nn.BatchNorm2d(channels, affine=affine),
        )

    return build


def bottleneck(channels: int, stride: int, affine: bool) -> nn.Module:
    """`bottleneck_1x3x1`: ReLU, 1x1, 3x3 and 1x1 to 4 C, ReLU, 1x1 back to C, each with batch norm (D-DARTS's code)."""

    def normed(inputs: int, outputs: int, kernel: int, step: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, kernel, step, kernel // 2, bias=False)
        return [conv, nn.BatchNorm2d(outputs, affine=affine)]

    wide = 4 * channels
    return nn.Sequential(
        nn.ReLU(),
        *normed(channels, channels, 1, 1),
        *normed(channels, channels, 3, stride),
        *normed(channels, wide, 1, 1),
        nn.ReLU(),
        *normed(wide, channels, 1, 1),
    )


def at_one_width(block: Block, flat: bool = False) -> OpFactory:
    """A block with as many channels out as in; `flat` for signals, whose height it leaves as it is."""
    return lambda channels, stride, affine: block(Place(channels, channels, stride, affine, flat=flat))


def skip_connect(channels: int, stride: int, affine: bool) -> nn.Module:
    """Identity; at stride 2 a FactorizedReduce."""
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine)


OPS: dict[str, OpFactory] = {
    "none": lambda channels, stride, affine: Zero(stride),
    "noise": lambda channels, stride, affine: Noise(stride),
    "skip_connect": skip_connect,
    "max_pool_3x3": lambda channels, stride, affine: nn.MaxPool2d(3, stride, 1),
    "avg_pool_3x3": lambda channels, stride, affine: nn.AvgPool2d(3, stride, 1, count_include_pad=False),
    "max_pool_5x5": lambda channels, stride, affine: nn.MaxPool2d(5, stride, 2),
    "avg_pool_5x5": lambda channels, stride, affine: nn.AvgPool2d(5, stride, 2, count_include_pad=False),
    "sep_conv_3x3": sep_conv(3),
    "sep_conv_5x5": sep_conv(5),
    "sep_conv_7x7": sep_conv(7),
    "dil_conv_3x3": dil_conv(3),
    "dil_conv_5x5": dil_conv(5),
    "conv_3x1_1x3": crossed_conv(3),
    "conv_7x1_1x7": crossed_conv(7),
    "bottleneck_1x3x1": bottleneck,
    "nor_conv_1x1": nor_conv(1),
    "nor_conv_3x3": nor_conv(3),
    "connect": lambda channels, stride, affine: nn.Identity() if stride == 1 else nn.MaxPool2d(1, stride),
    **{name: at_one_width(block, name in SIGNAL_BLOCKS) for name, block in BLOCKS.items()},
}

TWO_DIMENSIONAL = frozenset(name for name in OPS if re.search(r"\dx\d", name))
"""Operations of oche's own whose kernels lie along both axes of an image."""


def run(op: nn.Module, x: Tensor, draw: Draw | None) -> Tensor:
    """Calls an operation, with the draw where it asks for one."""
    out: Tensor = op(x, draw) if isinstance(op, Drawn) else op(x)
    return out
