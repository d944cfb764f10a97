"""Operations that may change the number of channels, as the layers of a chain do: `BLOCKS[name](place)` builds a module.

Each maps (B, inputs, H, W) to (B, outputs, ceil(H/stride), ceil(W/stride)). `oche.spaces.ops` has them all with as many channels out as in.
Sources: He et al., CVPR 2016 (`residual_*`); Howard et al., arXiv 1704.04861 (`ds_conv_*`); Sandler et al., CVPR 2018 (`mbconv_*`);
Ma et al., ECCV 2018 (`shuffle_*`); Liu et al., ICLR 2019 (`sep_conv_*`, `dil_conv_*` and pools of signals).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oche.spaces.deployed import deployed


@dataclass(frozen=True)
class Place:
    """Where a layer stands: its channels, its stride, and how it is built.

    `affine`: batch norms have weights. `bias`: convolutions have biases, and shortcuts that change widths no batch norm (MLPerf Tiny).
    `flat`: signals, as images of height 1; kernels and strides lie along the width.
    """

    inputs: int
    outputs: int
    stride: int = 1
    affine: bool = True
    bias: bool = False
    flat: bool = False

    @property
    def same(self) -> bool:
        """True if the layer's output has the shape of its input, so that the two can be added."""
        return self.stride == 1 and self.inputs == self.outputs

    def conv(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, dilation: int = 1
    ) -> nn.Conv2d:
        """A convolution with padding for its kernel."""
        if kernel == 1 and stride > 1:
            return Thinning(inputs, outputs, (1, stride) if self.flat else (stride, stride), self.bias)
        sides = ((1, kernel), (1, stride)) if self.flat else ((kernel, kernel), (stride, stride))
        padding = (dilation * (sides[0][0] // 2), dilation * (sides[0][1] // 2))
        return nn.Conv2d(inputs, outputs, *sides, padding, dilation, groups, self.bias)

    def normed(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        """A convolution and its batch norm."""
        return [
            self.conv(inputs, outputs, kernel, stride, groups),
            nn.BatchNorm2d(outputs, affine=self.affine),
        ]

    def shortcut(self) -> nn.Module:
        """What a layer that changes nothing computes: the identity, or a 1x1 convolution to the layer's width and stride."""
        if self.same:
            return nn.Identity()
        if self.bias:
            return self.conv(self.inputs, self.outputs, 1, self.stride)
        return nn.Sequential(*self.normed(self.inputs, self.outputs, 1, self.stride))


Block = Callable[[Place], nn.Module]
"""Place -> module."""


class Thinning(nn.Conv2d):
    """A 1x1 convolution of every few pixels, taken before it is convolved: as `ops.Halving`, with a bias and a stride per side."""

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int], bias: bool) -> None:
        super().__init__(inputs, outputs, 1, stride=stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if deployed():
            return F.conv2d(x, self.weight, self.bias, self.stride)
        down, right = self.stride
        return F.conv2d(x[:, :, ::down, ::right], self.weight, self.bias)


class Residual(nn.Module):
    """relu(f(x) + shortcut(x)) with two convolutions of 3 (5, ...) pixels in f, `inner` channels between them: ResNet's basic block."""

    def __init__(self, place: Place, kernel: int, inner: int) -> None:
        super().__init__()
        self.deep = nn.Sequential(
            *place.normed(place.inputs, inner, kernel, place.stride),
            nn.ReLU(),
            *place.normed(inner, place.outputs, kernel),
        )
        self.short = place.shortcut()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.deep(x) + self.short(x)
        return out.relu()


class SqueezeExcite(nn.Module):
    """x times sigmoid(W2 relu(W1 mean over pixels)), `inner` channels between the two 1x1 convolutions (Hu et al., CVPR 2018)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu())
        return x * weight.sigmoid()


class MBConv(nn.Module):
    """Inverted bottleneck: 1x1 to e C, depthwise kxk, perhaps squeeze-excite, linear 1x1; plus x where the shapes allow it.

    Batch norm after each convolution, ReLU6 after the first two (Sandler et al., CVPR 2018); without the first 1x1 at e = 1. Squeeze-excite
    narrows to C / 4, as in EfficientNet.
    """

    def __init__(self, place: Place, kernel: int, expansion: int, *, se: bool) -> None:
        super().__init__()
        channels, wide = place.inputs, expansion * place.inputs
        self.residual = place.same
        self.layers = nn.Sequential(
            *([*place.normed(channels, wide, 1), nn.ReLU6()] if expansion > 1 else []),
            *place.normed(wide, wide, kernel, place.stride, groups=wide),
            nn.ReLU6(),
            SqueezeExcite(wide, max(1, channels // 4)) if se else nn.Identity(),
            *place.normed(wide, place.outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return x + out if self.residual else out


class Shuffle(nn.Module):
    """Half of the channels pass by, the others go through 1x1, depthwise and 1x1; then the two halves are interleaved (ShuffleNetV2).

    Where the shape changes, all channels go both ways, a depthwise convolution and a 1x1 on the way that passed by.
    """

    def __init__(self, place: Place, kernel: int) -> None:
        super().__init__()
        self.left = place.outputs // 2
        left, right = self.left, place.outputs - self.left
        inputs = right if place.same else place.inputs
        self.passing: nn.Module = nn.Identity()
        if not place.same:
            self.passing = nn.Sequential(
                *place.normed(inputs, inputs, kernel, place.stride, groups=inputs),
                *place.normed(inputs, left, 1),
                nn.ReLU(),
            )
        self.branch = nn.Sequential(
            *place.normed(inputs, right, 1),
            nn.ReLU(),
            *place.normed(right, right, kernel, place.stride, groups=right),
            *place.normed(right, right, 1),
            nn.ReLU(),
        )
        self.whole = not place.same

    def forward(self, x: Tensor) -> Tensor:
        left, right = (x, x) if self.whole else (x[:, : self.left], x[:, self.left :])
        out = torch.cat([self.passing(left), self.branch(right)], dim=1)
        halves = out[:, : self.left], out[:, self.left : 2 * self.left]
        paired = torch.stack(halves, dim=2).flatten(1, 2)
        return torch.cat([paired, out[:, 2 * self.left :]], dim=1)  # an odd channel keeps its place


def residual(kernel: int, share: float = 1.0) -> Block:
    """`residual_kxk`, and `..._w50` with half as many channels between its two convolutions as behind them."""
    return lambda place: Residual(place, kernel, max(1, round(share * place.outputs)))


def plain_conv(kernel: int) -> Block:
    """`plain_kxk`: convolution, batch norm, ReLU."""
    return lambda place: nn.Sequential(*place.normed(place.inputs, place.outputs, kernel, place.stride), nn.ReLU())


def ds_conv(kernel: int) -> Block:
    """`ds_conv_kxk`: depthwise and 1x1 convolution, batch norm and ReLU behind each (MobileNet)."""

    def build(place: Place) -> nn.Module:
        return nn.Sequential(
            *place.normed(place.inputs, place.inputs, kernel, place.stride, groups=place.inputs),
            nn.ReLU(),
            *place.normed(place.inputs, place.outputs, 1),
            nn.ReLU(),
        )

    return build


def mbconv(kernel: int, expansion: int, *, se: bool = False) -> Block:
    """`mbconv_k{kernel}_e{expansion}`, and `..._se` with squeeze-excite."""
    return lambda place: MBConv(place, kernel, expansion, se=se)


def shuffle(kernel: int) -> Block:
    """`shuffle_kxk`."""
    return lambda place: Shuffle(place, kernel)


def separable(kernel: int, times: int, dilation: int = 1) -> Block:
    """ReLU, depthwise and 1x1 convolution, batch norm, `times` over; the first has the stride, the last changes the width (DARTS).

    `sep_conv_k` has two, `dil_conv_k` one with dilation 2.
    """

    def build(place: Place) -> nn.Module:
        layers: list[nn.Module] = []
        for number in range(times):
            stride, width = place.stride if number == 0 else 1, place.outputs if number == times - 1 else place.inputs
            layers += [
                nn.ReLU(),
                place.conv(place.inputs, place.inputs, kernel, stride, place.inputs, dilation),
                *place.normed(place.inputs, width, 1),
            ]
        return nn.Sequential(*layers)

    return build


def pooled(pool: nn.Module, place: Place) -> nn.Module:
    """The pool, a 1x1 convolution where the width changes, and a batch norm: that of a DARTS supernet, which the network keeps here."""
    if place.inputs == place.outputs:
        return nn.Sequential(pool, nn.BatchNorm2d(place.outputs, affine=place.affine))
    return nn.Sequential(pool, *place.normed(place.inputs, place.outputs, 1))


def max_pool(kernel: int) -> Block:
    """`max_pool_k`: along a signal, or over both axes of an image."""
    return lambda place: pooled(nn.MaxPool2d(*_window(place, kernel)), place)


def avg_pool(kernel: int) -> Block:
    """`avg_pool_k`, likewise; what lies beyond the ends does not count."""
    return lambda place: pooled(nn.AvgPool2d(*_window(place, kernel), count_include_pad=False), place)


def _window(place: Place, kernel: int) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Kernel, stride and padding of a pool."""
    half = kernel // 2
    if place.flat:
        return (1, kernel), (1, place.stride), (0, half)
    return (kernel, kernel), (place.stride, place.stride), (half, half)


SHARES = (25, 50, 75)
"""Per cent of a residual block's channels that it may have between its convolutions, besides all of them."""


def _blocks(kernels: Sequence[int], sides: Callable[[int], str]) -> dict[str, Block]:
    """The blocks of these kernels, those without a `k` in their name under the name that `sides` gives the kernel."""
    named: dict[str, Block] = {}
    for k in kernels:
        named |= {f"residual_{sides(k)}": residual(k), f"ds_conv_{sides(k)}": ds_conv(k)}
        named |= {f"residual_{sides(k)}_w{share}": residual(k, share / 100) for share in SHARES}
        named |= {f"plain_{sides(k)}": plain_conv(k), f"shuffle_{sides(k)}": shuffle(k)}
    return named


def _mbconvs(kernels: Sequence[int]) -> dict[str, Block]:
    """The inverted bottlenecks of these kernels, first those without squeeze-excite."""
    sizes = [(k, e) for k in kernels for e in (1, 2, 3, 4, 6)]
    plain = {f"mbconv_k{k}_e{e}": mbconv(k, e) for k, e in sizes}
    return plain | {f"mbconv_k{k}_e{e}_se": mbconv(k, e, se=True) for k, e in sizes}


def _flat_cells(kernels: Sequence[int]) -> dict[str, Block]:
    """The operations of DARTS cells of these kernels, along one axis."""
    named: dict[str, Block] = {}
    for k in kernels:
        named |= {f"sep_conv_{k}": separable(k, 2), f"dil_conv_{k}": separable(k, 1, 2)}
        named |= {f"max_pool_{k}": max_pool(k), f"avg_pool_{k}": avg_pool(k)}
    return named


KERNELS = (3, 5, 7, 9, 15, 31)

SIGNAL_BLOCKS: dict[str, Block] = {**_blocks(KERNELS, str), **_mbconvs((9, 15, 31)), **_flat_cells(KERNELS)}
"""The blocks that signals alone have, by name: kernels along one axis, and longer ones than images have use for."""

BLOCKS: dict[str, Block] = {**_blocks((3, 5), lambda k: f"{k}x{k}"), **_mbconvs((3, 5, 7)), **SIGNAL_BLOCKS}
"""The blocks by name. The inverted bottlenecks of kernels 3, 5 and 7 are for images and signals alike: the place decides."""
