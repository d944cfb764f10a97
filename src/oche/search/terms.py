"""Scalars that a method adds to a loss. Every term reaches every architecture gradient, since both losses are pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from oche.base import Alpha, Batch, Params
from oche.schedule import Constant, Schedule
from oche.search.relaxations import gated
from oche.search.state import SearchState


class Term(Protocol):
    """A scalar, differentiable in theta and alpha, added to the inner or outer loss."""

    def __call__(self, state: SearchState, theta: Params, alpha: Alpha, batch: Batch) -> Tensor: ...


class OfAlpha:
    """A term that looks at alpha alone: weights may stay in packs beside it."""


def entropy(weights: Tensor) -> Tensor:
    """-sum p ln p, with p the (O,) weights, at least 0, over their sum."""
    p = weights / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
    h: Tensor = torch.special.xlogy(p, p.clamp_min(torch.finfo(p.dtype).tiny)).sum()
    return -h


def normalised_entropy(weights: Tensor) -> Tensor:
    """-sum p ln p / ln O, in [0, 1], with p the (O,) weights, at least 0, over their sum."""
    return entropy(weights) / math.log(len(weights))


def log_distance(weights: Tensor) -> Tensor:
    """mean ln p + ln O = -KL(uniform || p), at most 0 and unbounded below, p the (O,) weights over their sum (SSR, IJCV 2022).

    Minimising it drives one p to 1 and the others to 0; below the dtype's smallest normal number they are cut off.
    """
    p = weights / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
    return p.clamp_min(torch.finfo(p.dtype).tiny).log().mean() + math.log(len(weights))


def discretisation(weights: Tensor) -> Tensor:
    """1 - max p, with p the (O,) weights, at least 0, over their sum: the share that is lost where one operation is kept.

    Searches for fault diagnosis pay it beside the cost of a network (MSSP and its neighbours); the form is our reading.
    """
    p = weights / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
    return 1 - p.amax()


Measure = Callable[[Tensor], Tensor]
"""(O,) weights of one decision, at least 0 -> how undecided it is."""


@dataclass(frozen=True)
class Entropy:
    """ops(t) H_ops + gates(t) H_gates, each the mean over its decisions of how undecided they are, `measure`.

    H_ops: over the edges without a gate, of their op weights; H_gates: over the gates, of (1 - b, b). `ops` and `gates` are weights by
    progress: constant, or growing (`Ramp`). `measure` is the normalised entropy, in [0, 1], `log_distance` (SSR) or `discretisation`.
    """

    ops: Schedule = Constant(0.0)
    gates: Schedule = Constant(0.0)
    measure: Measure = normalised_entropy

    def __call__(self, state: SearchState, theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        draw = state.draw("alpha")
        found: dict[bool, list[Tensor]] = {True: [], False: []}
        for group in state.space.groups:
            w = state.relaxation(alpha, group, draw)
            for row, gate, names in zip(w, gated(group), group.ops, strict=True):
                if len(names) > 1:
                    found[gate].append(self.measure(row[: len(names)]))
        total = next(iter(alpha.values())).new_zeros(())
        for gate, schedule in ((False, self.ops), (True, self.gates)):
            if found[gate]:
                total = total + schedule(draw.progress) * torch.stack(found[gate]).mean()
        return total


@dataclass(frozen=True)
class InputEntropy:
    """ops(t) H_ops + gates(t) mean_n [H(softmax of n's betas) + count (sum of min(beta, 1) over its beta > 0 - inputs)^2] (DA2S).

    H_ops: mean over the edges without a gate of -sum_o p ln p, p the op weights over their sum. n runs over the nodes that have beta, one
    number per incoming edge; H is in nats, -sum ln softmax times softmax. The second summand asks for `inputs` open inputs per node.
    The form and its constants, inputs=2, count=0.2 and gates at four times ops, are those of sunsmarterjie/DAAS (arXiv 2007.03154), as
    our notes of that code have them; it takes another, "strengthened" alpha in H_ops, which they do not define, and sums the count over
    the nodes.
    """

    ops: Schedule = Constant(0.0)
    gates: Schedule = Constant(0.0)
    count: float = 0.2
    inputs: int = 2

    def __call__(self, state: SearchState, theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        draw = state.draw("alpha")
        edges: list[Tensor] = []
        nodes: list[Tensor] = []
        for group in state.space.groups:
            w, beta = state.relaxation(alpha, group, draw), alpha.get(f"{group.name}/beta")
            gates = gated(group)
            edges += [
                entropy(row[: len(names)])
                for row, gate, names in zip(w, gates, group.ops, strict=True)
                if not gate and len(names) > 1
            ]
            if beta is not None:
                nodes += [
                    self._node(beta[numbers])
                    for numbers in group.into().values()
                    if gates[numbers[0]] or not any(gates)
                ]
        total = next(iter(alpha.values())).new_zeros(())
        for parts, schedule in ((edges, self.ops), (nodes, self.gates)):
            if parts:
                total = total + schedule(draw.progress) * torch.stack(parts).mean()
        return total

    def _node(self, beta: Tensor) -> Tensor:
        """The gates' summand for one node, from the (n,) betas of its inputs."""
        opened = torch.where(beta > 0, beta.clamp(max=1.0), 0.0).sum()
        return entropy(beta.softmax(0)) + self.count * (opened - self.inputs).square()
