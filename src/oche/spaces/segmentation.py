"""Parts of a segmentation grid besides its nodes: the stem, the alignment between levels, the heads."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oche.spaces.ops import Halving

IMAGE = -2
"""The level of stride 1, 4 2^-2: heads are handed the padded image there, beside the features of levels 0, 1, ..."""


def conv_bn_relu(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU; keeps H x W at stride 1."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def stem(inputs: int, channels: int, *, separable: bool) -> nn.Sequential:
    """(B, inputs, H, W) -> (B, channels, H/4, W/4): three 3x3 convolutions of strides 2, 1, 2 (Auto-DeepLab, Dynamic Routing).

    `separable` makes the last two depthwise, a 1x1 behind each.
    """
    if not separable:
        later = [conv_bn_relu(channels, channels, 3, stride) for stride in (1, 2)]
    else:
        later = [
            nn.Sequential(
                conv_bn_relu(channels, channels, 3, stride, groups=channels), conv_bn_relu(channels, channels)
            )
            for stride in (1, 2)
        ]
    return nn.Sequential(conv_bn_relu(inputs, channels, 3, 2), *later)


def align(inputs: int, outputs: int, coarser: int, affine: bool) -> nn.Sequential:
    """1x1 convolution and batch norm; with stride 2 to the next coarser level (`coarser` 1), then twice as large to the finer (-1)."""
    layers: list[nn.Module] = [
        Halving(inputs, outputs) if coarser == 1 else nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs, affine=affine),
    ]
    if coarser == -1:
        layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
    return nn.Sequential(*layers)


class TopDown(nn.Module):
    """From the coarsest level down: 1x1 convolution, batch norm, ReLU; twice as large; plus the next. Then 3x3 to the classes.

    `widths` are the channels by level (stride 4 2^level); levels may be missing. (B, width, H/s, W/s) each -> (B, classes, H, W), the last
    step, from stride 4, by interpolation.
    """

    def __init__(self, widths: Mapping[int, int], channels: int, classes: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleDict({str(level): conv_bn_relu(width, channels) for level, width in widths.items()})
        self.classifier = nn.Conv2d(channels, classes, 3, padding=1)

    def forward(self, features: Mapping[int, Tensor]) -> Tensor:
        total: Tensor | None = None
        for level in range(max(features), -1, -1):  # the image, of a level below 0, is left out
            if total is not None:
                total = F.interpolate(total, scale_factor=2, mode="bilinear", align_corners=False)
            if level in features:
                own = self.laterals[str(level)](features[level])
                total = own if total is None else total + own
        return F.interpolate(self.classifier(total), scale_factor=4, mode="bilinear", align_corners=False)


class Fine(nn.Module):
    """A `TopDown` whose answer, made as large as the image, is joined with a 3x3 convolution of the image itself: edges to the pixel.

    The two, of `channels` channels each, are concatenated; a 3x3 convolution, batch norm, ReLU, and a 1x1 to the classes follow.
    """

    def __init__(self, widths: Mapping[int, int], inputs: int, channels: int, classes: int) -> None:
        super().__init__()
        self.coarse = TopDown(widths, 2 * channels, channels)
        self.detail = conv_bn_relu(inputs, channels, 3)
        self.join = conv_bn_relu(2 * channels, channels, 3)
        self.classifier = nn.Conv2d(channels, classes, 1)

    def forward(self, features: Mapping[int, Tensor]) -> Tensor:
        both = torch.cat([self.coarse(features), self.detail(features[IMAGE])], dim=1)
        out: Tensor = self.classifier(self.join(both))
        return out


class Aspp(nn.Module):
    """Atrous spatial pyramid pooling of dilation 96 / stride at every level, the logits summed (Auto-DeepLab).

    The sum is made as large as the image by interpolation.
    """

    def __init__(self, widths: Mapping[int, int], classes: int) -> None:
        super().__init__()
        self.levels = nn.ModuleDict(
            {str(level): _Pyramid(width, 96 // (4 * 2**level), classes) for level, width in widths.items()}
        )

    def forward(self, features: Mapping[int, Tensor]) -> Tensor:
        terms = [
            F.interpolate(self.levels[str(level)](x), scale_factor=2**level, mode="bilinear", align_corners=False)
            if level
            else self.levels[str(level)](x)
            for level, x in features.items()
            if level != IMAGE
        ]
        return F.interpolate(sum(terms[1:], terms[0]), scale_factor=4, mode="bilinear", align_corners=False)


class _Pyramid(nn.Module):
    """A 1x1, a dilated 3x3, and the mean over all pixels, side by side, then 1x1 to the classes. The mean has no batch norm."""

    def __init__(self, channels: int, dilation: int, classes: int) -> None:
        super().__init__()
        self.point = conv_bn_relu(channels, channels)
        self.atrous = conv_bn_relu(channels, channels, 3, dilation=max(1, dilation))
        self.pooled = nn.Conv2d(channels, channels, 1)
        self.join = conv_bn_relu(3 * channels, channels)
        self.classifier = nn.Conv2d(channels, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pooled(x.mean((2, 3), keepdim=True)).relu().expand(-1, -1, *x.shape[2:])
        out: Tensor = self.classifier(self.join(torch.cat([self.point(x), self.atrous(x), pooled], dim=1)))
        return out
