"""Edges that weigh their own candidates by attention, for methods without alpha: what they have in common.

Such an edge has a `Weigher`, which says for every image how much each candidate is worth. The weights of the network learn alone, weighers
among them. A candidate's score is what its weigher gives it, summed over images, on a pass over alpha's half without training. In the place
of alpha, where probes, logs and the fit to limits look for strengths, stand numbers whose softmax is the scores, normalised on each edge.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from oche.base import Alpha, Draw, Group
from oche.genotype import Genotype
from oche.search.record import scored
from oche.search.relaxations import Relaxation, masked_softmax
from oche.search.selection import Selection, TopK
from oche.search.state import Problem, SearchState
from oche.spaces.networks import Cell

Normalise = Literal["share", "softmax"]
"""How an edge's scores become comparable with another edge's: divided by their sum, or their softmax."""


LEAST = 1e-30
"""Stands for the share of a candidate without a score, such as one that was removed."""


class Weigher(nn.Module):
    """Its output (B, O, ...) is how much each candidate is worth to each image, perhaps in several places."""


@dataclass(frozen=True)
class OwnWeights(Relaxation):
    """w_eo = 1: the edge weighs its candidates itself. Strengths are the softmax of what `Measured` keeps: the normalised scores."""

    def init(self, group: Group, rng: torch.Generator) -> Alpha:
        return {f"{group.name}/alpha": torch.zeros(len(group.edges), group.width)}

    def __call__(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        scores = alpha[f"{group.name}/alpha"]
        return draw.alive(group, scores.device).to(scores) + 0 * scores  # they depend on alpha, by a gradient of zero

    def strength(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        return masked_softmax(alpha[f"{group.name}/alpha"], group, draw)


@dataclass(frozen=True)
class Measured:
    """Measures the scores on alpha's images, keeps them or the logarithms of their shares in alpha's place, and derives the genotype."""

    inner: Selection = TopK()
    normalise: Normalise = "share"

    def __call__(self, state: SearchState, problem: Problem) -> Genotype:
        for name, t in scores(state).items():
            with torch.no_grad():
                state.alpha[f"{name}/alpha"].copy_(t if self.normalise == "softmax" else log_shares(t))
        return self.inner(state, problem)


def log_shares(scores: Tensor) -> Tensor:
    """(E, O) -> log s_eo / sum_o' s_eo', at least the logarithm of 1e-30; an edge that no image has passed has equal ones."""
    shares = scores / scores.sum(-1, keepdim=True).clamp_min(LEAST)
    return shares.clamp_min(LEAST).log()


def scores(state: SearchState) -> dict[str, Tensor]:
    """Group -> (E, O): what the weighers of its cells give each candidate, summed over alpha's images, without augmentation."""
    totals = {g.name: torch.zeros(len(g.edges), g.width, dtype=torch.float64) for g in state.space.groups}
    with watched(state, totals):
        scored(state, state.problem, state.arch_images)
    return totals


@contextmanager
def watched(state: SearchState, totals: dict[str, Tensor]) -> Iterator[None]:
    """Adds up what every weigher says while this is open."""
    hooks = []
    for cell, group in state.space.cell_groups().items():
        for e, weigher in weighers(state, cell, group):

            def add(module: nn.Module, given: object, out: Tensor, row: Tensor = totals[group.name][e]) -> None:
                row[: out.shape[1]] += out.detach().double().flatten(2).sum((0, 2)).cpu()

            hooks.append(weigher.register_forward_hook(add))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def weighers(state: SearchState, name: str, group: Group) -> Iterator[tuple[int, Weigher]]:
    """(edge number, its weigher) of a cell."""
    cell = state.supernet.body.cells[name]
    assert isinstance(cell, Cell)
    for e, edge in enumerate(cell.edges.values()):
        yield from ((e, module) for module in edge.modules() if isinstance(module, Weigher))
