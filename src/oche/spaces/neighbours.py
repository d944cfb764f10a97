"""The genotypes one change away from a genotype: another operation on an edge, or another input of a node."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from oche.base import Group
from oche.genotype import Choice, Genotype
from oche.spaces.base import Space


def neighbours(space: Space, genotype: Genotype) -> Iterator[Genotype]:
    """Every genotype of the space that differs in one operation or in one edge; none twice, and never the genotype itself.

    It is symmetric: a genotype is a neighbour of each of its neighbours.
    """
    yield from other_ops(space, genotype)
    yield from other_inputs(space, genotype)


def other_ops(space: Space, genotype: Genotype) -> Iterator[Genotype]:
    """The genotypes with another operation on one of the edges."""
    for group in space.groups:
        for n, choice in enumerate(genotype.groups[group.name]):
            for op in derivable(group, group.edges.index((choice.source, choice.target))):
                if op != choice.op:
                    yield _changed(genotype, group, n, replace(choice, op=op))


def other_inputs(space: Space, genotype: Genotype) -> Iterator[Genotype]:
    """The genotypes in which a node reads another input instead of one that it keeps; none where a node keeps all of them.

    The operation moves with the edge if both edges have the same candidates; else every candidate of the new edge is tried.
    """
    for group in space.groups:
        if group.keep is None:
            continue
        choices, into = genotype.groups[group.name], group.into()
        for n, choice in enumerate(choices):
            used = {c.source for c in choices if c.target == choice.target}
            old = derivable(group, group.edges.index((choice.source, choice.target)))
            for e in into[choice.target]:
                if (source := group.edges[e][0]) in used:
                    continue
                ops = derivable(group, e)
                for op in (choice.op,) if ops == old else ops:
                    yield _changed(genotype, group, n, Choice(source, choice.target, op))


def derivable(group: Group, e: int) -> tuple[str, ...]:
    """The operations that a genotype may have on the edge e: where a node keeps some of its edges, `none` is no choice."""
    return group.ops[e] if group.keep is None else tuple(op for op in group.ops[e] if op != "none")


def _changed(genotype: Genotype, group: Group, n: int, choice: Choice) -> Genotype:
    """The genotype with another n-th choice in a group, its choices in the order of the group's edges."""
    choices = [*genotype.groups[group.name]]
    choices[n] = choice
    order = {edge: e for e, edge in enumerate(group.edges)}
    choices.sort(key=lambda c: order[c.source, c.target])
    return replace(genotype, groups={**genotype.groups, group.name: tuple(choices)})
