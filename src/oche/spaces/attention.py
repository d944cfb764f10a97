"""Edges that send the channels a channel attention chooses through their candidates, and pass the rest by (ADARTS and its kin)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from oche.base import Count, Draw
from oche.errors import UserError
from oche.optim import average
from oche.spaces.edges import Candidate, Edge, SomeChannels, mix


def pooled(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the largest value over the pixels of x (B, C, H, W), each (B, C, 1, 1)."""
    largest = x.flatten(2).max(-1).values  # one pixel gets the gradient, as in an adaptive max pool
    return x.mean((2, 3), keepdim=True), largest[:, :, None, None]


class ChannelAttention(nn.Module):
    """a = sigmoid(f(mean over pixels of x) + f(maximum over pixels of x)), (B, C, 1, 1); f is C -> C/2 -> C with a ReLU, no biases."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inside = max(1, channels // 2)
        self.squeeze = nn.Conv2d(channels, inside, 1, bias=False)
        self.excite = nn.Conv2d(inside, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mean, largest = (self.excite(self.squeeze(p).relu()) for p in pooled(x))
        out: Tensor = (mean + largest).sigmoid()
        return out


class Chooser(nn.Module):
    """(count,): the channels whose attention (B, C, 1, 1), summed over the batch, is largest, the most attended first.

    The batch is that of all processes of `fabric` where the draw says that they share it (`choose_together`).
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.fabric: Fabric | None = None

    @torch.no_grad()
    def forward(self, attention: Tensor, draw: Draw | None) -> Tensor:
        summed = attention.sum(0).flatten()
        if self.fabric is not None and draw is not None and draw.part.world > 1:
            (summed,) = average(self.fabric, [summed])
        return summed.topk(self.count).indices


def choose_together(network: nn.Module, fabric: Fabric) -> None:
    """Has every `Chooser` of the network sum over all processes, in place: one message per edge and forward pass."""
    for module in network.modules():
        if isinstance(module, Chooser):
            module.fabric = fabric


def written_back(x: Tensor, channels: Tensor, mixed: Tensor, stride: int, scale: Tensor | float = 1.0) -> Tensor:
    """x (B, C, H, W), pooled 2x2 at stride 2, times `scale`, with `mixed` in the place of those `channels`."""
    if stride > 1:
        x = F.max_pool2d(x, 2, 2, ceil_mode=True)
    return (x * scale).index_copy(1, channels, mixed.to(x.dtype))


def share_of(channels: int, K: int, stride: int) -> int:
    """How many channels go through the candidates: 1/K of them, rounded down; one at least, two where they are reduced in halves."""
    if K < 1:
        raise UserError(f"K={K} is no share of the channels: give 1 or more, 4 for a quarter of them.")
    return max(channels // K, min(stride, channels))


class _Attended(Edge):
    def __init__(self, ops: nn.ModuleDict, channels: int, count: int, stride: int) -> None:
        super().__init__()
        self.ops, self.stride = ops, stride
        self.attention, self.choose = ChannelAttention(channels), Chooser(count)

    def forward(self, x: Tensor, w: Tensor, draw: Draw | None) -> Tensor:
        a = self.attention(x)
        x = x * a
        channels = self.choose(a, draw)
        mixed = mix(self.ops, x.index_select(1, channels), w, draw)
        return written_back(x, channels, mixed, self.stride, w.sum())


@dataclass(frozen=True)
class AttendedChannels(SomeChannels):
    """The 1/K most attended channels of a * x go through the candidates and are written back in place, the rest passes by (ADARTS).

    a is the edge's own `ChannelAttention`. At stride 2 the rest goes through a 2x2 max pool. It is multiplied by the sum of the row, which
    is 1 for a softmax and the edge's own weight under edge normalisation. Any number of channels will do (`share_of`).
    """

    K: Count = 4

    def __call__(self, ops: Sequence[str], channels: int, stride: int, build: Candidate) -> Edge:
        count = share_of(channels, self.K, stride)
        return _Attended(nn.ModuleDict({op: build(op, count) for op in ops}), channels, count, stride)
