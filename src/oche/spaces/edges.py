"""Edges of a supernet: how one mixes its candidates. An edge sees its input and its row of op weights, nothing else.

An edge type is a frozen dataclass; called with the candidates it builds the module: `PartialChannels(K=4)(ops, C, stride, build)`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oche.base import Count, Draw
from oche.errors import UserError
from oche.schedule import Constant, Linear, Schedule
from oche.spaces.ops import Drawn, PoolBN, Zero, run

Candidate = Callable[[str, int], nn.Module]
"""(op name, channels) -> module; the space closes over stride, affine, and what it puts behind a pool."""


class Edge(nn.Module):
    """One edge: `edge(x, w, draw)` with x (B, C, H, W), w (O,) -> (B, C, H', W'). `ops` holds the candidates by name."""

    ops: nn.ModuleDict


class Among(Edge):
    """An edge that looks at the op weights of all edges of its cell: `among(x, weights, e, draw)` with weights (E, O), its own row e."""

    def forward(self, x: Tensor, w: Tensor, draw: Draw | None) -> Tensor:
        raise UserError(
            "This edge needs the op weights of its whole cell, which it has not got inside of another edge: take it alone."
        )

    @abstractmethod
    def among(self, x: Tensor, weights: Tensor, e: int, draw: Draw | None) -> Tensor:
        """The edge's output (B, C, H', W')."""


class EdgeFactory(Protocol):
    """Builds one edge over its candidates."""

    def __call__(self, ops: Sequence[str], channels: int, stride: int, build: Candidate) -> Edge: ...


class SomeChannels:
    """Marks edge types that send a share of the channels through their candidates and pass the rest by."""


class _Sum(Edge):
    def __init__(self, ops: nn.ModuleDict) -> None:
        super().__init__()
        self.ops = ops

    def forward(self, x: Tensor, w: Tensor, draw: Draw | None) -> Tensor:
        return mix(self.ops, x, w, draw)


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
        mixed = torch.cat([mix(self.ops, active, w, draw), bypass * w.sum()], dim=1)
        batch, channels, height, width = mixed.shape
        groups = mixed.view(batch, self.share, channels // self.share, height, width)
        return groups.transpose(1, 2).reshape(batch, channels, height, width)


@dataclass(frozen=True)
class PartialChannels(SomeChannels):
    """1/K of the channels go through the candidates, the rest pass by; then the channels are shuffled in K groups (PC-DARTS).

    At stride 2 the bypass is a 2x2 max pool. It is multiplied by the sum of the row, which is 1 for a softmax and the edge's
    own weight under edge normalisation, as in the authors' code where beta multiplies the whole mixed output.
    """

    K: Count = 4

    def __call__(self, ops: Sequence[str], channels: int, stride: int, build: Candidate) -> Edge:
        if self.K < 1 or channels % self.K:
            raise UserError(f"{channels=} is not divisible by K={self.K}: choose channels or K so that it is.")
        if self.K == 1:
            return WeightedSum()(ops, channels, stride, build)
        return _Partial(nn.ModuleDict({op: build(op, channels // self.K) for op in ops}), self.K, stride)


class _Sampled(Edge):
    def __init__(self, ops: nn.ModuleDict, scalars: bool, stride: int) -> None:
        super().__init__()
        self.ops, self.scalars, self.stride = ops, scalars, stride

    def forward(self, x: Tensor, w: Tensor, draw: Draw | None) -> Tensor:
        modules = list(self.ops.values())
        terms = [w[o] * run(modules[o], x, draw) for o in w.nonzero().flatten().tolist()]
        mixed = sum(terms[1:], terms[0]) if terms else run(Zero(self.stride), x, draw)
        return mixed + w[w == 0].sum() if self.scalars else mixed


@dataclass(frozen=True)
class SampledOps:
    """sum_o w_o op_o(x) over the ops whose weight is not zero: the others are not computed, and their weights do not step.

    An edge whose weights are all zero computes nothing and gives zeros. An op that was not computed has no derivative in its weight
    either: in a straight-through sample only the drawn op's p gets one.
    `scalars` adds the weights of the others, that is zero, to every value, so that each has some derivative (GDAS's code).
    """

    scalars: bool = False

    def __call__(self, ops: Sequence[str], channels: int, stride: int, build: Candidate) -> Edge:
        return _Sampled(nn.ModuleDict({op: build(op, channels) for op in ops}), self.scalars, stride)


# ------------------------------------------------------------------ wrappers: another edge, changed a little


class _Auxiliary(Edge):
    def __init__(self, inner: Edge, skip: nn.Module, beta: Schedule) -> None:
        super().__init__()
        self.ops, self.skip, self.beta = inner.ops, skip, beta
        self._inner = (inner,)  # in a tuple: its operations keep the names they have without the wrapper

    def forward(self, x: Tensor, w: Tensor, draw: Draw | None) -> Tensor:
        mixed: Tensor = self._inner[0](x, w, draw)
        beta = self.beta(draw.progress) if draw else 0.0
        return mixed + beta * run(self.skip, x, draw) if beta else mixed


@dataclass(frozen=True)
class AuxiliarySkip:
    """inner(x) + beta(progress) skip(x): a skip connection beside the candidates that alpha has no say in (DARTS-, eq. 5)."""

    inner: EdgeFactory = WeightedSum()
    beta: Schedule = Linear(1.0, 0.0)

    def __call__(self, ops: Sequence[str], channels: int, stride: int, build: Candidate) -> Edge:
        return _Auxiliary(self.inner(ops, channels, stride, build), build("skip_connect", channels), self.beta)


class Dropped(Drawn):
    """An operation with dropout: in training a share `rate(progress)` of its output is zero, whole images or values."""

    def __init__(self, op: nn.Module, rate: Schedule, images: bool) -> None:
        super().__init__()
        self.dropped, self.rate, self.images = op, rate, images

    def forward(self, x: Tensor, draw: Draw | None = None) -> Tensor:
        return thinned(run(self.dropped, x, draw), self.rate, draw, self.path, self.images)


def thinned(out: Tensor, rate: Schedule, draw: Draw | None, path: str, images: bool) -> Tensor:
    """`out` (B, C, H, W) with a share of its images, or of its values, at zero and the rest scaled up; as it is in evaluation."""
    share = rate(draw.progress) if draw and draw.phase != "eval" else 0.0
    if share <= 0 or draw is None:
        return out
    shape = (len(out), 1, 1, 1) if images else out.shape
    kept = draw.part.drawn(torch.rand, shape, draw.generator(path, out.device)) >= share
    return out * (kept / (1 - share)).to(out.dtype)


class Pathed(Drawn, Edge):
    """A mixed edge that is lost to a share `rate(progress)` of the images in training; the rest is scaled up."""

    def __init__(self, inner: Edge, rate: Schedule) -> None:
        super().__init__()
        self.ops, self.rate = inner.ops, rate
        self._inner = (inner,)  # in a tuple: its operations keep the names they have without the wrapper

    def forward(self, x: Tensor, w: Tensor, draw: Draw | None) -> Tensor:
        return thinned(self._inner[0](x, w, draw), self.rate, draw, self.path, images=True)


@dataclass(frozen=True)
class DropPath:
    """`inner` lost to an image with probability rate(progress), the whole mixed edge, identity and all (R-DARTS's code).

    With `whole=False` every candidate but the identity is lost by itself, as drop path does it in a network of one candidate per edge.
    """

    inner: EdgeFactory = WeightedSum()
    rate: Schedule = Linear(0.0, 0.2)
    whole: bool = True

    def __call__(self, ops: Sequence[str], channels: int, stride: int, build: Candidate) -> Edge:
        if self.whole:
            return Pathed(self.inner(ops, channels, stride, build), self.rate)

        def candidate(op: str, width: int) -> nn.Module:
            module = build(op, width)
            return module if isinstance(module, nn.Identity | Zero) else Dropped(module, self.rate, images=True)

        return self.inner(ops, channels, stride, candidate)


@dataclass(frozen=True)
class SkipDropout:
    """`inner` with dropout behind the identity (P-DARTS); a skip connection of stride 2 has weights and none."""

    inner: EdgeFactory = WeightedSum()
    rate: Schedule = Constant(0.0)

    def __call__(self, ops: Sequence[str], channels: int, stride: int, build: Candidate) -> Edge:
        def candidate(op: str, width: int) -> nn.Module:
            module = build(op, width)
            return Dropped(module, self.rate, images=False) if isinstance(module, nn.Identity) else module

        return self.inner(ops, channels, stride, candidate)


@dataclass(frozen=True)
class Normed:
    """`inner` with a batch norm behind each pool and each identity (ISTA-NAS, one stage)."""

    inner: EdgeFactory = SampledOps()

    def __call__(self, ops: Sequence[str], channels: int, stride: int, build: Candidate) -> Edge:
        def candidate(op: str, width: int) -> nn.Module:
            module = build(op, width)
            bare = isinstance(module, nn.Identity | nn.AvgPool2d | nn.MaxPool2d)
            return PoolBN(module, width, affine=True) if bare else module

        return self.inner(ops, channels, stride, candidate)


def whole(edge: EdgeFactory) -> EdgeFactory:
    """The edge type over all channels, for edges whose operations change their number: without partial channels, wrapped or not."""
    if isinstance(edge, SomeChannels):
        return WeightedSum()
    if isinstance(edge, AuxiliarySkip | DropPath | SkipDropout | Normed):
        return replace(edge, inner=whole(edge.inner))
    return edge


def plain_name(name: str) -> str:
    """A weight's name without the wrappers around its edge or operation: the name it has in any other supernet or network."""
    return name.replace(".dropped.", ".").replace(".mixed.", ".")


def mix(ops: nn.ModuleDict, x: Tensor, w: Tensor, draw: Draw | None) -> Tensor:
    """The weighted sum; zeros add nothing and are not computed unless they stand alone."""
    modules = list(ops.values())
    terms = [w[o] * run(op, x, draw) for o, op in enumerate(modules) if not isinstance(op, Zero)]
    return sum(terms[1:], terms[0]) if terms else w[0] * run(modules[0], x, draw)


def kept_normed() -> EdgeFactory:
    """The edges of a network that keeps the batch norms behind its pools and identities."""
    return Normed(WeightedSum())


KEPT = "kept"
"""The edge type of a genotype whose network is what a supernet was: with its candidates, though one alone is left on every edge."""

KEPT_NORMED = "kept_normed"
"""As `KEPT`, with a batch norm behind each pool and identity as that supernet had."""

TRAINED = (KEPT, KEPT_NORMED)
"""Edge types of networks that keep what a search has trained."""

EDGES: dict[str, Callable[..., EdgeFactory]] = {
    "weighted_sum": WeightedSum,
    "partial_channels": PartialChannels,
    KEPT: WeightedSum,
    KEPT_NORMED: kept_normed,
}
"""Edge types by the name that a genotype with soft coefficients keeps."""
