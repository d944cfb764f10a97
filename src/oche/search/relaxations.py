"""Relaxations: architecture parameters -> op weights. Alpha is a plain dict beside the supernet, never inside it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from oche.base import Alpha, Draw, Group, NonNegative, Share
from oche.schedule import Schedule


class Relaxation(ABC):
    """`relaxation(alpha, group, draw)` -> (E, O) multipliers of the candidates' outputs, differentiable in alpha.

    Entries where the group has no candidate, or the draw's mask has removed it, are zero.
    """

    @abstractmethod
    def init(self, group: Group, rng: torch.Generator) -> Alpha:
        """Fresh architecture parameters of one group, named `group/...`."""

    @abstractmethod
    def __call__(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        """(E, O) op weights, noise included where the relaxation has any."""

    @abstractmethod
    def strength(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        """(E, O) without noise: what selection and probes look at."""


@dataclass(frozen=True)
class Softmax(Relaxation):
    """w_eo = exp(a_eo) / sum_o' exp(a_eo') (DARTS, eq. 2); a starts at `scale` N(0, 1).

    With `entropy`, from 0 to 1, the scale is instead the one at which the drawn op weights have this mean entropy over edges, as a share of
    its greatest value: a control of searches that decided as much (our choice).
    """

    scale: NonNegative = 1e-3
    entropy: Share | None = None

    def init(self, group: Group, rng: torch.Generator) -> Alpha:
        drawn = torch.randn(len(group.edges), group.width, generator=rng)
        scale = self.scale if self.entropy is None else scale_of(drawn, group, self.entropy)
        return {f"{group.name}/alpha": scale * drawn}

    def __call__(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        return masked_softmax(alpha[f"{group.name}/alpha"], group, draw)

    def strength(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        return self(alpha, group, draw)


def scale_of(alpha: Tensor, group: Group, entropy: float) -> float:
    """The factor, at most 10,000, by which alpha's softmax has this mean entropy over edges, as `SearchState.entropy` counts it."""
    most = torch.tensor([max(len(ops), 2) for ops in group.ops]).double().log()
    low, high = 0.0, 1e4
    for _ in range(80):  # the entropy falls as the factor grows
        middle = (low + high) / 2
        p = (middle * alpha.double()).masked_fill(~group.valid(), -torch.inf).softmax(-1)
        above = float((torch.special.entr(p).sum(-1) / most).mean()) > entropy
        low, high = (middle, high) if above else (low, middle)
    return high


@dataclass(frozen=True)
class Sigmoid(Relaxation):
    """w_eo = 1 / (1 + exp(-a_eo)): each candidate by itself, none competes with another (FairDARTS, eq. 3); a starts at `scale` N(0, 1).

    `normalised` divides by their sum on the edge (SSR).
    """

    scale: NonNegative = 0.0
    normalised: bool = False

    def init(self, group: Group, rng: torch.Generator) -> Alpha:
        return {f"{group.name}/alpha": self.scale * torch.randn(len(group.edges), group.width, generator=rng)}

    def __call__(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        logits = alpha[f"{group.name}/alpha"]
        w = logits.sigmoid() * draw.alive(group).to(logits)
        return w / w.sum(-1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny) if self.normalised else w

    def strength(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        return self(alpha, group, draw)


@dataclass(frozen=True)
class GumbelSoftmax(Relaxation):
    """p_e = softmax((a_e + G) / tau), G from Gumbel(0, 1), tau = temperature(progress): one draw per group and forward pass.

    The log softmax(a_e) that papers write for a_e differs from it by one number for all ops of an edge, so p_e is the same; taken over
    ops that a mask has removed it would give those a derivative. `hard` makes it the one-hot vector of p's largest entry, with p's
    gradient (straight through). In evaluation there is no noise: the softmax of a, or its largest entry. a starts at `scale` N(0, 1).
    Jang et al., ICLR 2017; Maddison et al., ICLR 2017.
    """

    temperature: Schedule
    hard: bool = False
    scale: NonNegative = 1e-3

    def init(self, group: Group, rng: torch.Generator) -> Alpha:
        return {f"{group.name}/alpha": self.scale * torch.randn(len(group.edges), group.width, generator=rng)}

    def __call__(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        logits = alpha[f"{group.name}/alpha"]
        if draw.phase != "eval":
            uniform = torch.rand(logits.shape, generator=draw.generator(f"gumbel/{group.name}"), dtype=torch.float64)
            noise = -(-uniform.clamp(1e-20, 1 - 1e-16).log()).log()
            logits = (logits + noise.to(logits)) / self.temperature(draw.progress)
        p = masked_softmax(logits, group, draw)
        return one_hot_of(p) + (p - p.detach()) if self.hard else p

    def strength(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        return masked_softmax(alpha[f"{group.name}/alpha"], group, draw)


@dataclass(frozen=True)
class EdgeNormalised(Relaxation):
    """w_eo = softmax over the edges into e's node of beta, times the inner relaxation (PC-DARTS, eqs. 5 and 6)."""

    inner: Relaxation = field(default_factory=Softmax)
    scale: NonNegative = 1e-3

    def init(self, group: Group, rng: torch.Generator) -> Alpha:
        return {
            **self.inner.init(group, rng),
            f"{group.name}/beta": self.scale * torch.randn(len(group.edges), generator=rng),
        }

    def __call__(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        return self.inner(alpha, group, draw) * self._share(alpha, group)

    def strength(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        return self.inner.strength(alpha, group, draw) * self._share(alpha, group)

    def _share(self, alpha: Alpha, group: Group) -> Tensor:
        """(E, 1): each edge's share among those into the same node."""
        beta = alpha[f"{group.name}/beta"]
        return beta.masked_fill(_strangers(group, beta.device), float("-inf")).softmax(-1).diagonal()[:, None]


@lru_cache(maxsize=64)
def _strangers(group: Group, device: torch.device) -> Tensor:
    """(E, E) bool: pairs of edges into different nodes. Sent to the device once, since a step must not wait for copies."""
    targets = torch.tensor([target for _, target in group.edges])
    return (targets[:, None] != targets[None, :]).to(device)


class Gate(Protocol):
    """`gate(beta, group)` -> (E,) how open each edge is, from its one number; only the rows of edges with `connect` are looked at."""

    def __call__(self, beta: Tensor, group: Group) -> Tensor: ...


@dataclass(frozen=True)
class SigmoidGate:
    """b_e = 1 / (1 + exp(-beta_e)), each edge by itself; 0.5 at the start."""

    def __call__(self, beta: Tensor, group: Group) -> Tensor:
        return beta.sigmoid()


@dataclass(frozen=True)
class ReluTanhGate:
    """b_e = max(0, tanh(beta_e + bias)), which can close altogether (Dynamic Routing, with its bias of 1.5: 0.9 at the start)."""

    bias: float = 1.5

    def __call__(self, beta: Tensor, group: Group) -> Tensor:
        return (beta + self.bias).tanh().relu()


@dataclass(frozen=True)
class SoftmaxGate:
    """b_e = softmax of beta over the gates that leave e's source, times their number over the greatest number (Auto-DeepLab).

    That factor, 2/3 at the border of a grid, keeps the mean of the gates the same everywhere.
    """

    def __call__(self, beta: Tensor, group: Group) -> Tensor:
        gates = torch.tensor(gated(group), device=beta.device)
        sources = torch.tensor([source for source, _ in group.edges], device=beta.device)
        together = (sources[:, None] == sources) & gates & gates[:, None]
        many = together.sum(-1)
        share = beta.masked_fill(~together, float("-inf")).masked_fill(~gates[:, None], 0.0).softmax(-1).diagonal()
        return share * many / many.max().clamp_min(1)


@dataclass(frozen=True)
class Gated(Relaxation):
    """`inner` for the operations, and on each edge whose candidates are `none` and `connect` a gate b: (1 - b, b).

    A gate that has lost one of the two is decided: what is left has 1. The gate's one parameter per edge, beta, starts at `scale`
    N(0, 1). Groups without such edges are the inner relaxation's.
    """

    inner: Relaxation = field(default_factory=Softmax)
    gate: Gate = field(default_factory=SigmoidGate)
    scale: NonNegative = 1e-3

    def init(self, group: Group, rng: torch.Generator) -> Alpha:
        fresh = self.inner.init(group, rng)
        if any(gated(group)):
            fresh[f"{group.name}/beta"] = self.scale * torch.randn(len(group.edges), generator=rng)
        return fresh

    def __call__(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        return self._with_gates(self.inner(alpha, group, draw), alpha, group, draw)

    def strength(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        return self._with_gates(self.inner.strength(alpha, group, draw), alpha, group, draw)

    def _with_gates(self, w: Tensor, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        gates = torch.tensor(gated(group), device=w.device)
        if not gates.any():
            return w
        b = self.gate(alpha[f"{group.name}/beta"], group)
        alive = draw.alive(group, w.device)
        rows = torch.where(group.named("connect").to(w.device), b[:, None], 1 - b[:, None]).where(
            alive.sum(-1, keepdim=True) > 1, 1.0
        )
        rows = rows * alive
        return torch.where(gates[:, None], rows, w)


def gated(group: Group) -> list[bool]:
    """Returns for each edge of the group True if it is a gate."""
    return ["connect" in ops for ops in group.ops]


def openings(w: Tensor, group: Group) -> Tensor:
    """(E,) b of each gate in op weights (E, O); 0 for the other edges."""
    return torch.where(group.named("connect").to(w.device), w, 0.0).sum(-1)


def one_hot_of(p: Tensor) -> Tensor:
    """(E, O): 1 at each row's largest entry, cut from the graph; a row of zeros stays."""
    return torch.zeros_like(p).scatter_(-1, p.argmax(-1, keepdim=True), 1.0) * (p.detach() > 0)


def masked_softmax(logits: Tensor, group: Group, draw: Draw) -> Tensor:
    """Softmax over the candidates that are there; zeros for an edge that has lost all of them."""
    if group.name not in draw.mask and all(len(ops) == group.width for ops in group.ops):
        return logits.softmax(-1)
    alive = draw.alive(group, logits.device)
    dead = ~alive.any(-1, keepdim=True)
    return logits.masked_fill(~(alive | dead), float("-inf")).softmax(-1) * alive
