"""A peer: first-order DARTS on NAS-Bench-201's space (Dong and Yang, ICLR 2020), as the paper describes it; oche is not used.

Three stages of five cells with 16, 32 and 64 channels, residual blocks of stride 2 between them; a cell has three nodes behind its input,
and each of its six edges five candidates: none, skip, 1x1 and 3x3 convolution, 3x3 average pool. 1,686,106 parameters and 30 alphas.
"""

from __future__ import annotations

import torch
from iteration import Built, begin, step
from torch import Tensor, nn

__all__ = ["build", "step"]

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


def build(
    batch: int,
    size: int,
    *,
    order: str = "first",
    layout: str = "nchw",
    channels: int = 16,
    cells: int = 5,
    nodes: int = 4,
    ops: tuple[str, ...] = OPS,
) -> Built:
    """The published search on random images; `cells` per stage; see `iteration.begin` for `order` and `layout`."""
    torch.manual_seed(0)
    network = Network(channels, 10, cells, nodes, ops)
    return begin(network, network.alphas, batch, size, order, layout, nesterov=True)


class Zero(nn.Module):
    """`none`."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul(0.0)


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, affine: bool = True) -> nn.Module:
    """ReLU, convolution, batch norm."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs, affine=affine),
    )


def candidate(name: str, channels: int) -> nn.Module:
    """An operation of the paper's section 2.1."""
    if name.startswith("nor_conv"):
        return convolution(channels, channels, int(name[-1]), affine=False)
    return {
        "none": Zero(),
        "skip_connect": nn.Identity(),
        "avg_pool_3x3": nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    }[name]


class Cell(nn.Module):
    """Nodes that each read all before them."""

    def __init__(self, channels: int, nodes: int, ops: tuple[str, ...]) -> None:
        super().__init__()
        self.nodes = nodes
        self.edges = nn.ModuleList(
            nn.ModuleList(candidate(name, channels) for name in ops) for i in range(1, nodes) for _ in range(i)
        )

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        states, edge = [x], 0
        for i in range(1, self.nodes):
            into = []
            for h in states[:i]:
                pairs = zip(weights[edge], self.edges[edge], strict=True)
                into.append(sum(w * op(h) for w, op in pairs))
                edge += 1
            states.append(sum(into))
        return states[-1]


class Residual(nn.Module):
    """Two 3x3 convolutions, the first of stride 2, beside an average pool and a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = convolution(inputs, outputs, 3, 2), convolution(outputs, outputs, 3)
        self.beside = nn.Sequential(nn.AvgPool2d(2, 2), nn.Conv2d(inputs, outputs, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.beside(x) + self.second(self.first(x))


class Network(nn.Module):
    """Stem, three stages, batch norm and ReLU, global average, linear."""

    def __init__(self, channels: int, classes: int, cells: int, nodes: int, ops: tuple[str, ...]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.body = nn.ModuleList()
        for stage in range(3):
            if stage:
                self.body.append(Residual(channels, 2 * channels))
                channels *= 2
            self.body.extend(Cell(channels, nodes, ops) for _ in range(cells))
        self.tail = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.classifier = nn.Linear(channels, classes)
        self.alphas = [(1e-3 * torch.randn(nodes * (nodes - 1) // 2, len(ops))).requires_grad_()]

    def forward(self, x: Tensor) -> Tensor:
        weights = self.alphas[0].softmax(-1)
        h = self.stem(x)
        for part in self.body:
            h = part(h, weights) if isinstance(part, Cell) else part(h)
        return self.classifier(self.tail(h).mean((2, 3)))
