"""How one edge of a supernet mixes its candidates. An edge sees its input and its row of op weights, nothing else.

An edge type is a frozen dataclass; called with the candidates it builds the module: `PartialChannels(K=4)(ops, C, stride, build)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oche.base import Draw
from oche.errors import UserError
from oche.ops import run

Candidate = Callable[[str, int], nn.Module]
"""(op name, channels) -> module; the space closes over stride, affine, and what it puts behind a pool."""


class Edge(nn.Module):
    """One edge: `edge(x, w, draw)` with x (B, C, H, W), w (O,) -> (B, C, H', W'). `ops` holds the candidates by name."""

    ops: nn.ModuleDict


class EdgeFactory(Protocol):
    """Builds one edge over its candidates."""

    def __call__(self, ops: Sequence[str], channels: int, stride: int, build: Candidate) -> Edge: ...


class _Sum(Edge):
    def __init__(self, ops: nn.ModuleDict) -> None:
        super().__init__()
        self.ops = ops

    def forward(self, x: Tensor, w: Tensor, draw: Draw | None) -> Tensor:
        return _mix(self.ops, x, w, draw)


@dataclass(frozen=True)
class WeightedSum:
    """sum_o w_o op_o(x), over all channels (DARTS, eq. 2)."""

    def __call__(self, ops: Sequence[str], channels: int, stride: int, build: Candidate) -> Edge:
        return _Sum(nn.ModuleDict({op: build(op, channels) for op in ops}))


class _Partial(Edge):
    def __init__(self, ops: nn.ModuleDict, share: int, stride: int) -> None:
        super().__init__()
        self.ops, self.share, self.stride = ops, share, stride

    def forward(self, x: Tensor, w: Tensor, draw: Draw | None) -> Tensor:
        active, bypass = x.tensor_split([x.shape[1] // self.share], dim=1)
        if self.stride > 1:
            bypass = F.max_pool2d(bypass, 2, 2, ceil_mode=True)
        mixed = torch.cat([_mix(self.ops, active, w, draw), bypass * w.sum()], dim=1)
        batch, channels, height, width = mixed.shape
        groups = mixed.view(batch, self.share, channels // self.share, height, width)
        return groups.transpose(1, 2).reshape(batch, channels, height, width)


@dataclass(frozen=True)
class PartialChannels:
    """1/K of the channels go through the candidates, the rest pass by; then the channels are shuffled in K groups (PC-DARTS).

    At stride 2 the bypass is a 2x2 max pool. It is multiplied by the sum of the row, which is 1 for a softmax and the edge's
    own weight under edge normalisation, as in the authors' code where beta multiplies the whole mixed output.
    """

    K: int = 4

    def __call__(self, ops: Sequence[str], channels: int, stride: int, build: Candidate) -> Edge:
        if self.K < 1 or channels % self.K:
            raise UserError(f"{channels=} is not divisible by K={self.K}: choose channels or K so that it is.")
        if self.K == 1:
            return WeightedSum()(ops, channels, stride, build)
        return _Partial(nn.ModuleDict({op: build(op, channels // self.K) for op in ops}), self.K, stride)


def _mix(ops: nn.ModuleDict, x: Tensor, w: Tensor, draw: Draw | None) -> Tensor:
    """The weighted sum; `none` adds nothing and is not computed unless it stands alone."""
    terms = [w[o] * run(op, x, draw) for o, (name, op) in enumerate(ops.items()) if name != "none" or len(ops) == 1]
    return sum(terms[1:], terms[0])


EDGES: dict[str, Callable[..., EdgeFactory]] = {"weighted_sum": WeightedSum, "partial_channels": PartialChannels}
"""Edge types by the name that a genotype with soft coefficients keeps."""
