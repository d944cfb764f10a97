"""Relaxations: architecture parameters -> op weights. Alpha is a plain dict beside the supernet, never inside it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from oche.base import Alpha, Draw, Group
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
    """w_eo = exp(a_eo) / sum_o' exp(a_eo') (DARTS, eq. 2); a starts at `scale` N(0, 1)."""

    scale: float = 1e-3

    def init(self, group: Group, rng: torch.Generator) -> Alpha:
        return {f"{group.name}/alpha": self.scale * torch.randn(len(group.edges), group.width, generator=rng)}

    def __call__(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        return masked_softmax(alpha[f"{group.name}/alpha"], group, draw)

    def strength(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        return self(alpha, group, draw)


@dataclass(frozen=True)
class Sigmoid(Relaxation):
    """w_eo = 1 / (1 + exp(-a_eo)): each candidate by itself, none competes with another (FairDARTS, eq. 3); a starts at `scale` N(0, 1)."""

    scale: float = 0.0

    def init(self, group: Group, rng: torch.Generator) -> Alpha:
        return {f"{group.name}/alpha": self.scale * torch.randn(len(group.edges), group.width, generator=rng)}

    def __call__(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        logits = alpha[f"{group.name}/alpha"]
        return logits.sigmoid() * draw.alive(group).to(logits)

    def strength(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        return self(alpha, group, draw)


@dataclass(frozen=True)
class GumbelSoftmax(Relaxation):
    """p_e = softmax((a_e + G) / tau), G from Gumbel(0, 1), tau = temperature(progress): one draw a group and forward.

    The log softmax(a_e) that papers write for a_e differs from it by one number for all ops of an edge, so p_e is the same; taken over
    ops that a mask has removed it would give those a derivative. `hard` makes it the one-hot vector of p's largest entry, with p's
    gradient (straight through). In evaluation there is no noise: the softmax of a, or its largest entry. a starts at `scale` N(0, 1).
    Jang et al., ICLR 2017; Maddison et al., ICLR 2017.
    """

    temperature: Schedule
    hard: bool = False
    scale: float = 1e-3

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
    scale: float = 1e-3

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
        targets = torch.tensor([target for _, target in group.edges], device=beta.device)
        same = targets[:, None] == targets[None, :]
        return beta.masked_fill(~same, float("-inf")).softmax(-1).diagonal()[:, None]


def one_hot_of(p: Tensor) -> Tensor:
    """(E, O): 1 at each row's largest entry, cut from the graph; a row of zeros stays."""
    return torch.zeros_like(p).scatter_(-1, p.argmax(-1, keepdim=True), 1.0) * (p.detach() > 0)


def masked_softmax(logits: Tensor, group: Group, draw: Draw) -> Tensor:
    """Softmax over the candidates that are there; an edge that has lost all of them gets zeros."""
    alive = draw.alive(group)
    if bool(alive.all()):
        return logits.softmax(-1)
    alive = alive.to(logits.device)
    dead = ~alive.any(-1, keepdim=True)
    return logits.masked_fill(~(alive | dead), float("-inf")).softmax(-1) * alive
