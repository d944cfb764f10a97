"""Derives the genotype from a searched state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from oche.base import Count, Group
from oche.genotype import Choice, Genotype
from oche.search.state import Problem, SearchState
from oche.spaces import Space
from oche.spaces.edges import KEPT


class Selection(Protocol):
    """Derives the genotype; may use the state's strengths, or go on training on the problem's data."""

    def __call__(self, state: SearchState, problem: Problem) -> Genotype: ...


@dataclass(frozen=True)
class TopK:
    """Each node keeps the edges with the strongest op other than `none`, and on each of them that op (DARTS, 2.4).

    It keeps `keep` of them, or if that is None as many as the space's group says (2 in DARTS cells). A group that keeps all its edges
    (NAS-Bench-201) takes the strongest op of each, `none` included.
    """

    keep: Count | None = None

    def __call__(self, state: SearchState, problem: Problem) -> Genotype:
        choices = {}
        for group, strength in state.strengths():
            choices[group.name] = derived(replace(group, keep=self.keep or group.keep), strength, state.alive(group))
        return Genotype(problem.space.name, choices, problem.space.sharing)


@dataclass(frozen=True)
class PerEdgeArgmax:
    """Every edge keeps its strongest op, `none` included (NAS-Bench-201's rule, in any space)."""

    def __call__(self, state: SearchState, problem: Problem) -> Genotype:
        choices = {group.name: argmax(group, strength, state.alive(group)) for group, strength in state.strengths()}
        return Genotype(problem.space.name, choices, problem.space.sharing)


def derived(group: Group, strength: Tensor, alive: Tensor | None = None) -> tuple[Choice, ...]:
    """DARTS's rule: the `keep` strongest edges of each node, or where the group keeps all its edges the strongest op of each."""
    return argmax(group, strength, alive) if group.keep is None else strongest(group, strength, group.keep, alive)


@dataclass(frozen=True)
class Keep:
    """The supernet as it is: every candidate that is left, with its op weight as coefficient (single-stage methods).

    `none`, which adds nothing to a sum, is kept where an edge has nothing else. The genotype's edge type is "kept": its network has the
    supernet's own candidates, whose weights it can inherit.
    """

    def __call__(self, state: SearchState, problem: Problem) -> Genotype:
        return kept(problem.space, state.strengths())


def kept(space: Space, weights: Iterable[tuple[Group, Tensor]]) -> Genotype:
    """The supernet under these op weights (E, O) of each group, as `Keep` says."""
    choices = {}
    for group, w in weights:
        chosen = [
            Choice(*edge, op, coefficient)
            for edge, ops, row in zip(group.edges, group.ops, w.tolist(), strict=True)
            for op, coefficient in _carrying(ops, row)
        ]
        choices[group.name] = tuple(chosen)
    return Genotype(space.name, choices, space.sharing, KEPT)


def _carrying(ops: Sequence[str], row: Sequence[float]) -> list[tuple[str, float]]:
    """An edge's candidates with their weights: those that add something, or `none`, or where it has no such op the first."""
    pairs = list(zip(ops, row, strict=False))
    idle = next((pair for pair in pairs if pair[0] == "none"), pairs[0])
    return [(op, w) for op, w in pairs if op != "none" and w > 0] or [idle]


def argmax(group: Group, strength: Tensor, alive: Tensor | None = None) -> tuple[Choice, ...]:
    """One op per edge: the strongest of those `alive` (E, O), or of all. `strength` is (E, O); the first wins a tie."""
    there = group.valid() if alive is None else alive
    best = strength.masked_fill(~there, float("-inf")).argmax(-1).tolist()
    return tuple(Choice(s, t, group.ops[e][o]) for e, ((s, t), o) in enumerate(zip(group.edges, best, strict=True)))


def strongest(group: Group, strength: Tensor, keep: int, alive: Tensor | None = None) -> tuple[Choice, ...]:
    """`keep` edges per node, by their strongest op `alive` that is not `none`; an edge that has no such op is never kept."""
    usable = group.valid() & ~group.named("none")
    usable = usable if alive is None else usable & alive
    scores, best = strength.masked_fill(~usable, float("-inf")).max(-1)
    choices = []
    for target, numbers in sorted(group.into().items()):
        ranked = sorted((e for e in numbers if usable[e].any()), key=lambda e: -float(scores[e]))
        for e in sorted(ranked[:keep]):
            choices.append(Choice(group.edges[e][0], target, group.ops[e][int(best[e])]))
    return tuple(choices)


def leading(strength: Tensor, alive: Tensor, count: int) -> Tensor:
    """(E, O) bool: each edge's `count` strongest of those `alive` (E, O), or all where it has no more; the first of equals."""
    order: Tensor = strength.masked_fill(~alive, float("-inf")).argsort(dim=-1, descending=True, stable=True)
    return alive & torch.zeros_like(alive).scatter_(-1, order[:, :count], True)
