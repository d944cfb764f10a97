"""The smallest network of a space: what every limit must leave room for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from oche.errors import UserError
from oche.genotype import Choice, Genotype
from oche.spaces.base import Space
from oche.spaces.cost import candidate_latencies, candidates, priced
from oche.spaces.latency import Latencies
from oche.spaces.limits import Limits, Pricer

ByChoice = Callable[[str, int, str], float]
"""(group, edge, op) -> a cost."""


def smallest(space: Space, limits: Limits, price: Pricer | None = None) -> Genotype:
    """The network of the space that is nearest to the limits from above, or keeps them, among those of the cheapest candidates."""
    price = price or priced(limits)
    orders = [candidate_costs(space, order) for order in ((1.0, 1e-9), (1e-9, 1.0))]
    if limits.latencies is not None:
        orders.append(candidate_costs(space, (1e-12, 1e-12), limits.latencies))
    return min(
        (_cheapest(space, order) for order in orders), key=lambda genotype: limits.excess(price(space, genotype))
    )


def _cheapest(space: Space, by_choice: ByChoice) -> Genotype:
    """Each edge's cheapest operation other than `none`, each node's cheapest edges."""
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


def _pruned(space: Space, genotype: Genotype, by_choice: ByChoice) -> Genotype:
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


def candidate_costs(
    space: Space, weights: Sequence[float], latencies: Latencies | None = None, of_latency: float = 1.0
) -> ByChoice:
    """(group, edge, op) -> its parameters and multiply-adds times the weights, summed over the cells that share it.

    With `latencies` its milliseconds count too, times `of_latency`.
    """
    summed = {name: t.sum(0) @ torch.tensor(weights, dtype=t.dtype) for name, t in candidates(space, True).items()}
    if latencies is not None:
        summed = {name: summed[name] + of_latency * t for name, t in candidate_latencies(space, latencies).items()}
    table = {name: t.tolist() for name, t in summed.items()}
    groups = {group.name: group for group in space.groups}
    return lambda name, e, op: float(table[name][e][groups[name].ops[e].index(op)])
