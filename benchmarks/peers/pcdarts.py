"""A peer: PC-DARTS (Xu et al., ICLR 2020) on the DARTS space, as the paper describes it; oche is not used.

A quarter of the channels goes through an edge's candidates, the others pass by, and a channel shuffle mixes them (section 3.2); a node
weighs whole edges by a softmax over beta (section 3.3, edge normalisation). All else is DARTS (`darts.py`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from darts import OPS, Cell, MixedOp, Network
from iteration import Built, begin, step
from torch import Tensor, nn

__all__ = ["build", "step"]

SHARE = 4


def build(
    batch: int,
    size: int,
    *,
    order: str = "first",
    layout: str = "nchw",
    channels: int = 16,
    cells: int = 8,
    nodes: int = 4,
    ops: tuple[str, ...] = OPS,
) -> Built:
    """The published search on random images; see `iteration.begin` for `order` and `layout`."""
    torch.manual_seed(0)
    network = PartialNetwork(channels, 10, cells, nodes, ops)
    return begin(network, network.alphas, batch, size, order, layout)


class PartialOp(nn.Module):
    """Candidates on the first quarter of the channels, all channels shuffled."""

    def __init__(self, channels: int, stride: int, ops: tuple[str, ...]) -> None:
        super().__init__()
        self.stride = stride
        self.mixed = MixedOp(channels // SHARE, stride, ops)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        part = x.shape[1] // SHARE
        mixed, passed = self.mixed(x[:, :part], weights), x[:, part:]
        if self.stride > 1:
            passed = F.max_pool2d(passed, 2, 2)
        out = torch.cat([mixed, passed], dim=1)
        batch, channels, height, width = out.shape
        groups = out.view(batch, SHARE, channels // SHARE, height, width)
        return groups.transpose(1, 2).contiguous().view(batch, channels, height, width)


class PartialCell(Cell):
    """A cell whose nodes weigh their edges; the last column of its weights has these."""

    def node(self, states: list[Tensor], offset: int, weights: Tensor) -> Tensor:
        """sum_j beta_j edge_j(h_j)."""
        ops, beta = weights[:, :-1], weights[:, -1]
        return sum(beta[offset + j] * self.edges[offset + j](h, ops[offset + j]) for j, h in enumerate(states))


class PartialNetwork(Network):
    """DARTS's network with a beta for each edge."""

    cell, edge = PartialCell, PartialOp

    def __init__(self, channels: int, classes: int, cells: int, nodes: int, ops: tuple[str, ...]) -> None:
        super().__init__(channels, classes, cells, nodes, ops)
        self.nodes = nodes
        self.alphas += [(1e-3 * torch.randn(len(self.alphas[0]))).requires_grad_() for _ in range(2)]

    def weights(self, reduction: bool) -> Tensor:
        """Op weights, and behind them beta's softmax over the edges into each node."""
        beta = self.alphas[2 + int(reduction)]
        into = beta.split([2 + i for i in range(self.nodes)])
        edges = torch.cat([b.softmax(0) for b in into])
        return torch.cat([super().weights(reduction), edges[:, None]], dim=1)
