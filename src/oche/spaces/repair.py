"""Changes a genotype until its network keeps its limits, by what alpha minds least.

Each change takes one choice for a cheaper one; the last of them lead to the smallest network of the space, which is known to keep them.
Then what was given up in vain is put back: peak memory hangs on one place of the network, and changes elsewhere do not lower it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

from torch import Tensor

from oche.base import Group
from oche.genotype import Choice, Genotype
from oche.spaces.base import Space
from oche.spaces.cost import priced
from oche.spaces.edges import TRAINED
from oche.spaces.limits import Limits, Pricer
from oche.spaces.neighbours import derivable
from oche.spaces.smallest import ByChoice, candidate_costs, smallest, valid

ROUNDS = 400
"""Changes of a genotype after which the smallest one is taken."""

LEAST_LOSS = 1e-3
"""What a change that alpha does not mind counts as losing, so that those that save more come first."""

Strengths = Mapping[str, Tensor]
"""Group -> (E, O), how much alpha likes each candidate."""


def repaired(
    space: Space, genotype: Genotype, limits: Limits, strengths: Strengths, price: Pricer | None = None
) -> Genotype:
    """The genotype, changed choice by choice until it keeps the limits: the change with the least loss of alpha per cost comes first.

    The loss is the sum of the logarithms of the strengths given up; without strengths each change loses alike.
    """
    price = price or priced(limits)
    changed = _lowered(space, genotype, limits, strengths, price)
    return changed if changed == genotype else _put_back(space, changed, genotype, limits, strengths, price)


def _put_back(
    space: Space, changed: Genotype, genotype: Genotype, limits: Limits, strengths: Strengths, price: Pricer
) -> Genotype:
    """The changed genotype with the inputs that nodes had before, dearest to alpha first, wherever the limits are kept with them."""
    refused = set[Node]()
    while ways := [way for way in _towards(space, changed, genotype, strengths) if way[1] not in refused]:
        _, node, restored = min(ways, key=lambda way: way[0])
        if limits.kept(price(space, restored)):
            changed = restored
        refused.add(node)
    return changed if changed.edge in TRAINED else _dearest(space, changed, genotype, limits, strengths, price)


def _dearest(
    space: Space, changed: Genotype, genotype: Genotype, limits: Limits, strengths: Strengths, price: Pricer
) -> Genotype:
    """The changed genotype with the operation that alpha likes best, of those that keep the limits, where another was put in its place."""
    for group in space.groups:
        loss, before = partial(_loss, group, strengths), genotype.groups[group.name]
        for n, choice in enumerate(changed.groups[group.name]):
            if choice in before:
                continue
            ops = derivable(group, group.edges.index((choice.source, choice.target)))
            dearer = [other for op in ops if loss(other := replace(choice, op=op)) > loss(choice)]
            for other in sorted(dearer, key=loss, reverse=True):
                better = _put(changed, group, n, other)
                if valid(space, better) and limits.kept(price(space, better)):
                    changed = better
                    break
    return changed


def _lowered(space: Space, genotype: Genotype, limits: Limits, strengths: Strengths, price: Pricer) -> Genotype:
    """The genotype, changed until it keeps the limits."""
    floor = smallest(space, limits, price)
    if genotype.edge in TRAINED:
        floor = replace(_with_coefficients(space, floor, strengths), edge=genotype.edge, edge_args=genotype.edge_args)
    for _ in range(ROUNDS):
        prices = price(space, genotype)
        if limits.kept(prices):
            return genotype
        over = {name: 1 / most for name, most in limits.items() if prices[name] > most}
        weights = (
            over.get("parameters", 0.0) + 4 * over.get("size", 0.0) + over.get("int8_size", 0.0),
            over.get("multiply_adds", 0.0),
        )
        latencies = limits.latencies if "latency" in over else None
        by_choice = candidate_costs(space, weights, latencies, over.get("latency", 0.0))
        changed = _saving(space, genotype, strengths, by_choice, limits.excess(prices))
        if changed == genotype:
            nearer = min(_towards(space, genotype, floor, strengths), key=lambda way: way[0], default=None)
            if nearer is None:
                break
            changed = nearer[2]
        genotype = changed
    return floor


def _saving(space: Space, genotype: Genotype, strengths: Strengths, by_choice: ByChoice, excess: float) -> Genotype:
    """The genotype after the changes that save most for their loss, until by the candidates' own costs the excess is gone."""
    changes = _drops if genotype.edge in TRAINED else _cheaper
    while excess > 0:
        ways = changes(space, genotype, strengths, by_choice)
        best = max(ways, key=lambda change: change[2] / (change[1] + LEAST_LOSS), default=None)
        if best is None:
            break
        genotype, excess = best[0], excess - best[2]
    return genotype


Change = tuple[Genotype, float, float]
"""(genotype, the loss of alpha, the cost saved as a share of the limits)."""


def _cheaper(space: Space, genotype: Genotype, strengths: Strengths, by_choice: ByChoice) -> Iterator[Change]:
    """Another, cheaper operation on one edge; a cell that lets something through goes on to do so."""
    for group in space.groups:
        loss = partial(_loss, group, strengths)
        for n, choice in enumerate(genotype.groups[group.name]):
            e = group.edges.index((choice.source, choice.target))
            if choice.op not in group.ops[e]:
                continue
            for op in derivable(group, e):
                saved = by_choice(group.name, e, choice.op) - by_choice(group.name, e, op)
                if saved > 0:
                    other = replace(choice, op=op)
                    changed = _put(genotype, group, n, other)
                    if changed.connected or not genotype.connected:
                        yield changed, max(0.0, loss(choice) - loss(other)), saved


def _drops(space: Space, genotype: Genotype, strengths: Strengths, by_choice: ByChoice) -> Iterator[Change]:
    """One of the candidates that an edge keeps left out, or an edge that the network can do without."""
    for group in space.groups:
        for n, choice in enumerate(genotype.groups[group.name]):
            saved = by_choice(group.name, group.edges.index((choice.source, choice.target)), choice.op)
            if saved <= 0:
                continue
            fewer = _put(genotype, group, n, None)
            others = [c for c in fewer.groups[group.name] if (c.source, c.target) == (choice.source, choice.target)]
            if others or valid(space, fewer):
                yield fewer, abs(choice.coefficient), saved


Node = tuple[str, int]
"""(group, target)."""


def _towards(
    space: Space, genotype: Genotype, other: Genotype, strengths: Strengths
) -> Iterator[tuple[float, Node, Genotype]]:
    """(loss, node, genotype) with the inputs of one node replaced by those of the other genotype."""
    for group in space.groups:
        loss = partial(_loss, group, strengths)
        mine, theirs = genotype.groups[group.name], other.groups[group.name]
        for target in {c.target for c in (*mine, *theirs)}:
            old, new = ([c for c in choices if c.target == target] for choices in (mine, theirs))
            if {(c.source, c.op) for c in old} == {(c.source, c.op) for c in new}:
                continue
            choices = tuple(
                sorted((*(c for c in mine if c.target != target), *new), key=lambda c: (c.target, c.source))
            )
            changed = replace(genotype, groups={**genotype.groups, group.name: choices})
            if valid(space, changed):
                yield sum(map(loss, old)) - sum(map(loss, new)), (group.name, target), changed


def _loss(group: Group, strengths: Strengths, choice: Choice) -> float:
    """The logarithm of a choice's strength; 0 where there are none."""
    table = strengths.get(group.name)
    if table is None or choice.op not in group.ops[group.edges.index((choice.source, choice.target))]:
        return 0.0
    return math.log(max(float(table[group.entry(choice.source, choice.target, choice.op)]), 1e-12))


def _put(genotype: Genotype, group: Group, n: int, choice: Choice | None) -> Genotype:
    """The genotype with another n-th choice in a group, or without it."""
    choices = [*genotype.groups[group.name]]
    choices[n : n + 1] = [] if choice is None else [choice]
    return replace(genotype, groups={**genotype.groups, group.name: tuple(choices)})


def _with_coefficients(space: Space, genotype: Genotype, strengths: Strengths) -> Genotype:
    """A discrete genotype with the strengths as coefficients, 1 where there is none."""
    groups = {}
    for group in space.groups:
        table = strengths.get(group.name)
        groups[group.name] = tuple(
            replace(
                c,
                coefficient=(float(table[group.entry(c.source, c.target, c.op)]) if table is not None else 0.0) or 1.0,
            )
            for c in genotype.groups[group.name]
        )
    return replace(genotype, groups=groups)
