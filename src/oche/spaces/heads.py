"""What stands behind the features of a network that is not to segment: scores for the whole image, or a number for each place in it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Pooled(nn.Linear):
    """The mean over pixels, then a linear layer: (B, C, H, W) -> (B, outputs)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mean((2, 3)))


class Density(nn.Conv2d):
    """A number for each place of a grid, row by row: (B, C, H, W) -> (B, rows columns).

    Features are averaged over the places, or repeated where there are fewer of them, then a 1x1 convolution to one channel.
    """

    def __init__(self, channels: int, grid: tuple[int, int]) -> None:
        super().__init__(channels, 1, 1)
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[2:]) != self.grid:
            x = F.adaptive_avg_pool2d(x, self.grid)
        return super().forward(x).flatten(1)


def head(channels: int, outputs: int, density: tuple[int, int] | None) -> nn.Module:
    """The density of `outputs` places where a grid is given, else scores of the whole image."""
    return Pooled(channels, outputs) if density is None else Density(channels, density)
