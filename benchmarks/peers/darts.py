"""A peer: DARTS (Liu, Simonyan and Yang, ICLR 2019) on its CIFAR-10 search space, as the paper describes it; oche is not used.

8 cells of 16 channels, a stem of 48, reductions at a third and at two thirds, four nodes, eight candidates an edge: 1,930,618 parameters.
`none` is x times 0, each edge pools for itself, batch norms keep running statistics, and every gradient is computed in both steps.
"""

from __future__ import annotations

import torch
from iteration import Built, begin, step
from torch import Tensor, nn

__all__ = ["build", "step"]

OPS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)


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
    network = Network(channels, 10, cells, nodes, ops)
    return begin(network, network.alphas, batch, size, order, layout)


class Zero(nn.Module):
    """`none`."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x.mul(0.0) if self.stride == 1 else x[:, :, :: self.stride, :: self.stride].mul(0.0)


class FactorizedReduce(nn.Module):
    """Two 1x1 convolutions of stride 2, one of them a pixel further on."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs // 2, 1, 2, bias=False)
        self.second = nn.Conv2d(inputs, outputs // 2, 1, 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        return self.norm(torch.cat([self.first(x), self.second(x[:, :, 1:, 1:])], dim=1))


def separable(channels: int, kernel: int, stride: int, dilation: int = 1) -> list[nn.Module]:
    """ReLU, depthwise, pointwise, batch norm."""
    padding = dilation * (kernel // 2)
    return [
        nn.ReLU(),
        nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine=False),
    ]


def candidate(name: str, channels: int, stride: int) -> nn.Module:
    """An operation of the paper's section 3.1.1."""
    if name == "none":
        return Zero(stride)
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels)
    if name.endswith("pool_3x3"):
        average = nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        pool = nn.MaxPool2d(3, stride, 1) if name.startswith("max") else average
        return nn.Sequential(pool, nn.BatchNorm2d(channels, affine=False))
    kernel = int(name[-1])
    if name.startswith("dil"):
        return nn.Sequential(*separable(channels, kernel, stride, 2))
    return nn.Sequential(*separable(channels, kernel, stride), *separable(channels, kernel, 1))


class MixedOp(nn.Module):
    """The weighted sum over an edge's candidates."""

    def __init__(self, channels: int, stride: int, ops: tuple[str, ...]) -> None:
        super().__init__()
        self.ops = nn.ModuleList(candidate(name, channels, stride) for name in ops)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self.ops, strict=True))


def fit(inputs: int, channels: int) -> nn.Module:
    """ReLU, 1x1 convolution, batch norm."""
    return nn.Sequential(nn.ReLU(), nn.Conv2d(inputs, channels, 1, bias=False), nn.BatchNorm2d(channels, affine=False))


class Cell(nn.Module):
    """Nodes that each read all before them."""

    def __init__(
        self,
        before: int,
        last: int,
        channels: int,
        reduction: bool,
        was_reduction: bool,
        nodes: int,
        edge: type[nn.Module],
        ops: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.reduction, self.nodes = reduction, nodes
        self.first = FactorizedReduce(before, channels) if was_reduction else fit(before, channels)
        self.second = fit(last, channels)
        self.edges = nn.ModuleList(
            edge(channels, 2 if reduction and j < 2 else 1, ops) for i in range(nodes) for j in range(2 + i)
        )

    def forward(self, before: Tensor, last: Tensor, weights: Tensor) -> Tensor:
        states, offset = [self.first(before), self.second(last)], 0
        for _ in range(self.nodes):
            states.append(self.node(states, offset, weights))
            offset += len(states) - 1
        return torch.cat(states[-self.nodes :], dim=1)

    def node(self, states: list[Tensor], offset: int, weights: Tensor) -> Tensor:
        """The sum over edges."""
        return sum(self.edges[offset + j](h, weights[offset + j]) for j, h in enumerate(states))


class Network(nn.Module):
    """Stem, cells, global average, linear."""

    cell: type[Cell] = Cell
    edge: type[nn.Module] = MixedOp

    def __init__(self, channels: int, classes: int, cells: int, nodes: int, ops: tuple[str, ...]) -> None:
        super().__init__()
        width = 3 * channels
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        before, last, was_reduction = width, width, False
        self.cells = nn.ModuleList()
        for i in range(cells):
            reduction = i in (cells // 3, 2 * cells // 3)
            channels *= 2 if reduction else 1
            self.cells.append(self.cell(before, last, channels, reduction, was_reduction, nodes, self.edge, ops))
            before, last, was_reduction = last, nodes * channels, reduction
        self.classifier = nn.Linear(last, classes)
        edges = sum(range(2, 2 + nodes))
        self.alphas = [(1e-3 * torch.randn(edges, len(ops))).requires_grad_() for _ in range(2)]

    def forward(self, x: Tensor) -> Tensor:
        before = last = self.stem(x)
        for cell in self.cells:
            before, last = last, cell(before, last, self.weights(cell.reduction))
        return self.classifier(last.mean((2, 3)))

    def weights(self, reduction: bool) -> Tensor:
        """Op weights of the cells of a kind."""
        return self.alphas[int(reduction)].softmax(-1)
