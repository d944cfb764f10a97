"""The strongest genotype through which a signal can pass.

The literal rules of the field may choose `none` on so many edges that nothing reaches a cell's end (NAS-Bench-201's rule keeps each
edge's strongest candidate, `none` included): a network that outputs a constant. Of all genotypes that are connected, this is the one with
the largest product of strengths: edges off the path stay as the rule chose them, and the path is the one on which the change costs least.
Our choice; no method's paper has it, so `--budget paper` and `oche bench` keep the literal rule.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from oche.base import Group
from oche.genotype import Choice, Genotype
from oche.search.state import SearchState

LEAST = 1e-30
"""Strengths below this count as this."""


def connected(state: SearchState, genotype: Genotype) -> Genotype:
    """The genotype, or where a cell of it lets nothing through, the strongest one that does; see the module.

    A genotype that does not choose exactly one candidate for each edge is left as it is, as is one that no choice can connect.
    """
    groups = {
        group.name: joined(group, state.space.ends(group), genotype.groups[group.name], strength, state.alive(group))
        for group, strength in state.strengths()
    }
    return replace(genotype, groups=groups)


def joined(
    group: Group, ends: Collection[int], choices: tuple[Choice, ...], strength: Tensor, alive: Tensor
) -> tuple[Choice, ...]:
    """One choice per edge, changed where needed so that one of the states `ends` is reached from an input; strength, alive (E, O)."""
    if [(c.source, c.target) for c in choices] != list(group.edges):
        return choices
    usable = alive & group.valid() & ~group.named("none")
    logs = strength.double().clamp_min(LEAST).log()
    best = logs.masked_fill(~usable, -torch.inf).max(-1)
    loss = [
        0.0 if c.op != "none" else float(logs[e][group.ops[e].index("none")] - best.values[e])
        for e, c in enumerate(choices)
    ]
    path = cheapest(group, ends, loss)
    return tuple(
        replace(c, op=group.ops[e][int(best.indices[e])]) if e in path and c.op == "none" else c
        for e, c in enumerate(choices)
    )


def cheapest(group: Group, ends: Collection[int], loss: list[float]) -> set[int]:
    """The edges of the path from an input to one of `ends` whose losses (E,) have the smallest sum; empty where there is none."""
    into = group.into()
    total = {source: 0.0 for source, _ in group.edges if source not in into}
    last: dict[int, int] = {}
    for target, numbers in sorted(into.items()):
        ways = [(total[source] + loss[e], e) for e in numbers if (source := group.edges[e][0]) in total]
        if ways and min(ways)[0] < float("inf"):
            total[target], last[target] = min(ways)
    reached = [end for end in ends if end in total]
    path: set[int] = set()
    at = min(reached, key=lambda end: total[end]) if reached else None
    while at in last:
        path.add(last[at])
        at = group.edges[last[at]][0]
    return path
