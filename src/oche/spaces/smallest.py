"""The smallest network of a space: what every limit must leave room for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from oche.errors import UserError
from oche.genotype import Choice, Genotype
from oche.spaces.base import Space
from oche.spaces.cost import candidates, prices_of
from oche.spaces.limits import Limits, Pricer


def smallest(space: Space, limits: Limits, price: Pricer = prices_of) -> Genotype:
    """The network of the space that is nearest to the limits from above, or keeps them, among those of the cheapest candidates."""
    found = [_cheapest(space, order) for order in ((1.0, 1e-9), (1e-9, 1.0))]
    return min(found, key=lambda genotype: limits.excess(price(space, genotype)))


def _cheapest(space: Space, weights: tuple[float, float]) -> Genotype:
    """Each edge's cheapest operation other than `none`, each node's cheapest edges; weights of parameters and multiply-adds."""
    by_choice = candidate_costs(space, weights)
    groups = {}
    for group in space.groups:
        best = {}
        for e, ops in enumerate(group.ops):
            usable = [op for op in ops if op != "none"]
            if usable:
                best[e] = min(usable, key=lambda op, e=e, n=group.name: by_choice(n, e, op))  # type: ignore[misc]
        kept: list[int] = []
        for numbers in group.into().values():
            ranked = sorted((e for e in numbers if e in best), key=lambda e: by_choice(group.name, e, best[e]))
            kept += ranked[: group.keep]
        groups[group.name] = tuple(Choice(*group.edges[e], best[e]) for e in sorted(kept))
    genotype = Genotype(space.name, groups, space.sharing)
    return _pruned(space, genotype, by_choice) if _may_lose_nodes(space) else genotype


def _may_lose_nodes(space: Space) -> bool:
    """True for spaces with gates, whose nodes may be left out."""
    return any("connect" in ops for group in space.groups for ops in group.ops)


def _pruned(space: Space, genotype: Genotype, by_choice: Callable[[str, int, str], float]) -> Genotype:
    """The genotype without every choice that it can do without, the dearest first."""
    for group in space.groups:
        number = {edge: e for e, edge in enumerate(group.edges)}
        order = sorted(
            genotype.groups[group.name],
            key=lambda c: (by_choice(group.name, number[c.source, c.target], c.op), c.target),
            reverse=True,
        )
        for choice in order:
            fewer = tuple(c for c in genotype.groups[group.name] if c != choice)
            smaller = replace(genotype, groups={**genotype.groups, group.name: fewer})
            if valid(space, smaller):
                genotype = smaller
    return genotype


def valid(space: Space, genotype: Genotype) -> bool:
    """True if the genotype is one of the space."""
    try:
        space.check(genotype)
    except UserError:
        return False
    return True


def candidate_costs(space: Space, weights: Sequence[float]) -> Callable[[str, int, str], float]:
    """(group, edge, op) -> its parameters and multiply-adds times the weights, summed over the cells that share it."""
    table = {
        name: (t.sum(0) @ torch.tensor(weights, dtype=t.dtype)).tolist() for name, t in candidates(space, True).items()
    }
    groups = {group.name: group for group in space.groups}
    return lambda name, e, op: float(table[name][e][groups[name].ops[e].index(op)])
