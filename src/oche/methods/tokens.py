"""Cells as sequences of numbers, for searches whose models read and write sequences.

Each group of cells is written edge by edge: the number of the operation on it. Where a node keeps some of its edges, the number of the
kept set comes first, then the operation on each edge of the set. In NAS-Bench-201 that makes six numbers from 0 to 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from oche.base import Group
from oche.genotype import Choice, Genotype
from oche.methods.predictors import Matrix
from oche.spaces import Space
from oche.spaces.neighbours import derivable


@dataclass(frozen=True)
class Node:
    """A node of a group, or an edge where all edges are kept: the sets of edges that it may keep."""

    group: Group
    sets: tuple[tuple[int, ...], ...]

    @property
    def widths(self) -> list[int]:
        """How many values each of its numbers may take at most; a set without an alternative is no number."""
        kept = range(len(self.sets[0]))
        ops = [max(len(derivable(self.group, edges[k])) for edges in self.sets) for k in kept]
        return [len(self.sets), *ops] if len(self.sets) > 1 else ops


@dataclass(frozen=True)
class Tokens:
    """The sequences of a space: number i is below `widths[i]`, or below less where an edge has fewer operations than another."""

    space: Space

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """In the order in which they are written."""
        return tuple(node for group in self.space.groups for node in _nodes(group))

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """(L,) the number of values at each place."""
        return tuple(width for node in self.nodes for width in node.widths)

    def __len__(self) -> int:
        return len(self.widths)

    def encode(self, genotype: Genotype) -> tuple[int, ...]:
        """(L,) numbers of a genotype of the space."""
        numbers: list[int] = []
        for group in self.space.groups:
            at = ops_by_edge(group, genotype.groups[group.name])
            for node in self.nodes:
                if node.group == group:
                    edges = next(s for s in node.sets if all(e in at for e in s))
                    numbers += [node.sets.index(edges)] * (len(node.sets) > 1)
                    numbers += [derivable(group, e).index(at[e]) for e in edges]
        return tuple(numbers)

    def write(self, choose: Callable[[int, int], int]) -> Genotype:
        """The genotype whose numbers are `choose(place, how many values are possible there)`, asked in order."""
        chosen: dict[str, list[Choice]] = {group.name: [] for group in self.space.groups}
        place = 0
        for node in self.nodes:
            edges = node.sets[0]
            if len(node.sets) > 1:
                edges = node.sets[choose(place, len(node.sets))]
                place += 1
            for e in edges:
                ops = derivable(node.group, e)
                chosen[node.group.name].append(Choice(*node.group.edges[e], ops[choose(place, len(ops))]))
                place += 1
        return Genotype(self.space.name, {name: tuple(c) for name, c in chosen.items()}, self.space.sharing)

    def decode(self, numbers: Sequence[int]) -> Genotype:
        """The genotype of a sequence; a number that is not possible where it stands counts as the last that is."""
        return self.write(lambda place, count: min(numbers[place], count - 1))

    def strongest(self, scores: Sequence[Matrix]) -> Genotype:
        """The genotype that has, place by place, the possible value with the highest score (width,)."""
        return self.write(lambda place, count: int(np.argmax(scores[place][:count])))


def _nodes(group: Group) -> Iterator[Node]:
    if group.keep is None:
        yield from (Node(group, ((e,),)) for e in range(len(group.edges)))
        return
    for _, numbers in sorted(group.into().items()):
        possible = [e for e in numbers if derivable(group, e)]
        yield Node(group, tuple(combinations(possible, min(group.keep, len(possible)))))


def ops_by_edge(group: Group, choices: Sequence[Choice]) -> dict[int, str]:
    """Edge number -> operation; edges between the same nodes are filled in their order."""
    found: dict[int, str] = {}
    for choice in choices:
        edge = (choice.source, choice.target)
        e = next(e for e, known in enumerate(group.edges) if known == edge and e not in found)
        found[e] = choice.op
    return found
