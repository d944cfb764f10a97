"""The operations of the six slots of an attention block: squeezes and excitations, over channels and over pixels.

Each is a factory (channels) -> module. Of an image (B, C, H, W) a channel squeeze makes a descriptor (B, C, 1, 1), and a channel excitation
another one of that; a spatial squeeze makes a map (B, 1, H, W), and a spatial excitation another one of that.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

SlotOp = Callable[[int], nn.Module]


class Pixels(nn.Module):
    """A channel squeeze: `how` of the pixels (B, C, HW) of every channel, (B, C, 1, 1)."""

    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(x.flatten(2))[:, :, None, None]


class Channels(nn.Module):
    """A spatial squeeze: `how` of the channels (B, C, H, W) of every pixel, (B, 1, H, W)."""

    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(x)[:, None]


def deviation(x: Tensor, dim: int) -> Tensor:
    """The standard deviation along a dimension, of population form, with a derivative where it is 0."""
    return (x.var(dim, correction=0) + 1e-5).sqrt()


def generalised(x: Tensor) -> Tensor:
    """(mean of max(x, 1e-6)^3)^(1/3) of the pixels."""
    return x.clamp_min(1e-6).pow(3).mean(-1).pow(1 / 3)


def weighted(x: Tensor) -> Tensor:
    """The pixels' mean, weighted by their softmax."""
    return (x * x.softmax(-1)).sum(-1)


class Bottleneck(nn.Sequential):
    """C -> max(1, C / ratio) -> C with a ReLU (squeeze and excitation)."""

    def __init__(self, channels: int, ratio: int) -> None:
        inside = max(1, channels // ratio)
        super().__init__(nn.Conv2d(channels, inside, 1), nn.ReLU(), nn.Conv2d(inside, channels, 1))


class AlongChannels(nn.Module):
    """A convolution over neighbouring channels, without a bias (ECA)."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, (kernel, 1), padding=(kernel // 2, 0), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x.transpose(1, 2))
        return out.transpose(1, 2)


class ByChannel(nn.Module):
    """gamma_c x_c + beta_c; 1 and 0 at the start."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x + self.beta


class RowsAndColumns(nn.Module):
    """The mean of a pixel's row plus the mean of its column, each behind a convolution along it (as in strip pooling)."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Conv2d(1, 1, (3, 1), padding=(1, 0), bias=False)
        self.columns = nn.Conv2d(1, 1, (1, 3), padding=(0, 1), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rows(x.mean(3, keepdim=True)) + self.columns(x.mean(2, keepdim=True))
        return out


def one_map(kernel: int, dilation: int = 1) -> SlotOp:
    """A convolution of one map into one."""
    return lambda channels: nn.Conv2d(1, 1, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=False)


CHANNEL_SQUEEZE: dict[str, SlotOp] = {
    "pixels_mean": lambda channels: Pixels(lambda x: x.mean(-1)),
    "pixels_max": lambda channels: Pixels(lambda x: x.max(-1).values),
    "pixels_std": lambda channels: Pixels(lambda x: deviation(x, -1)),
    "pixels_gem": lambda channels: Pixels(generalised),
    "pixels_softmax": lambda channels: Pixels(weighted),
}
CHANNEL_EXCITE: dict[str, SlotOp] = {
    "channels_mlp": lambda channels: Bottleneck(channels, 16),
    "channels_conv_3": lambda channels: AlongChannels(3),
    "channels_conv_5": lambda channels: AlongChannels(5),
    "channels_affine": ByChannel,
    "channels_identity": lambda channels: nn.Identity(),
}
SPATIAL_SQUEEZE: dict[str, SlotOp] = {
    "channels_mean": lambda channels: Channels(lambda x: x.mean(1)),
    "channels_max": lambda channels: Channels(lambda x: x.max(1).values),
    "channels_std": lambda channels: Channels(lambda x: deviation(x, 1)),
    "channels_conv_1x1": lambda channels: nn.Conv2d(channels, 1, 1, bias=False),
}
SPATIAL_EXCITE: dict[str, SlotOp] = {
    "map_conv_7x7": one_map(7),
    "map_dil_conv_3x3": one_map(3, dilation=2),
    "map_rows_columns": lambda channels: RowsAndColumns(),
    "map_identity": lambda channels: nn.Identity(),
}
SLOT_OPS: dict[str, SlotOp] = {**CHANNEL_SQUEEZE, **CHANNEL_EXCITE, **SPATIAL_SQUEEZE, **SPATIAL_EXCITE}
