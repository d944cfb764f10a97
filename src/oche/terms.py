"""Scalars that a method adds to a loss. Every term reaches every architecture gradient, for both losses are plain functions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from oche.base import Alpha, Batch, Params
from oche.relaxations import gated
from oche.schedule import Constant, Schedule
from oche.state import SearchState


class Term(Protocol):
    """A scalar, differentiable in theta and alpha, added to the inner or outer loss."""

    def __call__(self, state: SearchState, theta: Params, alpha: Alpha, batch: Batch) -> Tensor: ...


@dataclass(frozen=True)
class Entropy:
    """ops(t) H_ops + gates(t) H_gates, each entropy normalised to [0, 1] and a mean over its edges.

    H_ops: mean over the edges without a gate of -sum_o p ln p / ln |O|, p the edge's op weights over their sum. H_gates: mean over gates of
    -[b ln b + (1 - b) ln (1 - b)] / ln 2. `ops` and `gates` are weights by progress: constant, or linear from 0.
    """

    ops: Schedule = Constant(0.0)
    gates: Schedule = Constant(0.0)

    def __call__(self, state: SearchState, theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        draw = state.draw("alpha")
        found: dict[bool, list[Tensor]] = {True: [], False: []}
        for group in state.space.groups:
            w = state.relaxation(alpha, group, draw)
            for row, gate, names in zip(w, gated(group), group.ops, strict=True):
                if len(names) > 1:
                    found[gate].append(normalised_entropy(row[: len(names)]))
        total = next(iter(alpha.values())).new_zeros(())
        for gate, schedule in ((False, self.ops), (True, self.gates)):
            if found[gate]:
                total = total + schedule(draw.progress) * torch.stack(found[gate]).mean()
        return total


def normalised_entropy(weights: Tensor) -> Tensor:
    """Of (O,) weights of at least 0, over their sum: -sum p ln p / ln O, in [0, 1]."""
    p = weights / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
    h: Tensor = torch.special.xlogy(p, p.clamp_min(torch.finfo(p.dtype).tiny)).sum()
    return -h / math.log(len(weights))
