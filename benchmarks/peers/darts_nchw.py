"""A peer for `benchmarks/supernet.py --against benchmarks/peers/darts_nchw.py`: first-order DARTS, literally, as the field writes it.

A peer is a Python file with two functions; nothing in it needs oche:

    build(batch, size) -> anything      the model, its optimisers and random data; size is the images' side in pixels
    step(built) -> None                 one search iteration: an architecture step and a weight step

Put the official code beside oche by copying this file, importing that code's model in `build`, and calling its own steps in `step`.
This one is NCHW throughout, alpha lies beside the weights in one graph, each `backward()` computes every gradient, `none` is x times 0,
each edge pools for itself. Sizes are those of the paper's CIFAR-10 search: 8 cells of 16 channels, 1,930,618 parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Built:
    """The model, optimisers and data of one iteration."""

    network: Network
    weight_optimizer: torch.optim.Optimizer
    alpha_optimizer: torch.optim.Optimizer
    batches: list[tuple[Tensor, Tensor]]


def build(batch: int, size: int) -> Built:
    """The published search on random images."""
    torch.manual_seed(0)
    network = Network(channels=16, classes=10, cells=8)
    sgd = torch.optim.SGD(network.parameters(), 0.025, momentum=0.9, weight_decay=3e-4)
    adam = torch.optim.Adam(network.alphas, 3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
    batches = [(torch.randn(batch, 3, size, size), torch.randint(10, (batch,))) for _ in range(2)]
    return Built(network, sgd, adam, batches)


def step(built: Built) -> None:
    """Alpha on one batch, then the weights on the other."""
    (train_images, train_targets), (val_images, val_targets) = built.batches
    built.alpha_optimizer.zero_grad()
    F.cross_entropy(built.network(val_images), val_targets).backward()
    built.alpha_optimizer.step()
    built.weight_optimizer.zero_grad()
    F.cross_entropy(built.network(train_images), train_targets).backward()
    nn.utils.clip_grad_norm_(built.network.parameters(), 5.0)
    built.weight_optimizer.step()


# ------------------------------------------------------------------ the supernet


def separable(channels: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> list[nn.Module]:
    """ReLU, depthwise, pointwise, batch norm."""
    return [
        nn.ReLU(),
        nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine=False),
    ]


class Zero(nn.Module):
    """`none`."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x.mul(0.0) if self.stride == 1 else x[:, :, :: self.stride, :: self.stride].mul(0.0)


class FactorizedReduce(nn.Module):
    """Two 1x1 convolutions of stride 2, one shifted by a pixel."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs // 2, 1, 2, bias=False)
        self.second = nn.Conv2d(inputs, outputs // 2, 1, 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        return self.norm(torch.cat([self.first(x), self.second(x[:, :, 1:, 1:])], dim=1))


class MixedOp(nn.Module):
    """The eight candidates of an edge."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        pools = [nn.MaxPool2d(3, stride, 1), nn.AvgPool2d(3, stride, 1, count_include_pad=False)]
        self.ops = nn.ModuleList(
            [
                Zero(stride),
                *[nn.Sequential(pool, nn.BatchNorm2d(channels, affine=False)) for pool in pools],
                nn.Identity() if stride == 1 else FactorizedReduce(channels, channels),
                *[
                    nn.Sequential(
                        *separable(channels, k, stride, k // 2),
                        *separable(channels, k, 1, k // 2),
                    )
                    for k in (3, 5)
                ],
                *[nn.Sequential(*separable(channels, k, stride, k - 1, 2)) for k in (3, 5)],
            ]
        )

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self.ops, strict=True))


def fit(inputs: int, channels: int) -> nn.Module:
    """ReLU, 1x1 convolution, batch norm."""
    return nn.Sequential(nn.ReLU(), nn.Conv2d(inputs, channels, 1, bias=False), nn.BatchNorm2d(channels, affine=False))


class Cell(nn.Module):
    """Four nodes, each reading all before it."""

    def __init__(self, before: int, last: int, channels: int, reduction: bool, was_reduction: bool) -> None:
        super().__init__()
        self.reduction = reduction
        self.first = FactorizedReduce(before, channels) if was_reduction else fit(before, channels)
        self.second = fit(last, channels)
        self.edges = nn.ModuleList(
            MixedOp(channels, 2 if reduction and j < 2 else 1) for i in range(4) for j in range(2 + i)
        )

    def forward(self, before: Tensor, last: Tensor, weights: Tensor) -> Tensor:
        states, offset = [self.first(before), self.second(last)], 0
        for _ in range(4):
            states.append(sum(self.edges[offset + j](h, weights[offset + j]) for j, h in enumerate(states)))
            offset += len(states) - 1
        return torch.cat(states[-4:], dim=1)


class Network(nn.Module):
    """Stem, cells, global average, linear; reductions at a third and at two thirds."""

    def __init__(self, channels: int, classes: int, cells: int) -> None:
        super().__init__()
        width = 3 * channels
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        before, last, was_reduction = width, width, False
        self.cells = nn.ModuleList()
        for i in range(cells):
            reduction = i in (cells // 3, 2 * cells // 3)
            channels *= 2 if reduction else 1
            self.cells.append(Cell(before, last, channels, reduction, was_reduction))
            before, last, was_reduction = last, 4 * channels, reduction
        self.classifier = nn.Linear(last, classes)
        self.alphas = [(1e-3 * torch.randn(14, 8)).requires_grad_() for _ in range(2)]

    def forward(self, x: Tensor) -> Tensor:
        before = last = self.stem(x)
        for cell in self.cells:
            weights = self.alphas[int(cell.reduction)].softmax(-1)
            before, last = last, cell(before, last, weights)
        return self.classifier(last.mean((2, 3)))
