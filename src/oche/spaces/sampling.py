"""Draws genotypes of a space uniformly."""

from __future__ import annotations

import math

import torch

from oche.base import Group
from oche.genotype import Choice, Genotype
from oche.spaces.base import Space


def sample(space: Space, rng: torch.Generator) -> Genotype:
    """A genotype of the space, each as likely as any other."""
    return Genotype(space.name, {group.name: _cell(group, rng) for group in space.groups}, space.sharing)


def _cell(group: Group, rng: torch.Generator) -> tuple[Choice, ...]:
    if group.keep is None:
        return tuple(_choice(group, e, group.ops[e], rng) for e in range(len(group.edges)))
    choices: list[Choice] = []
    for _, numbers in sorted(group.into().items()):
        ops = {e: tuple(op for op in group.ops[e] if op != "none") for e in numbers}
        subsets = list(torch.combinations(torch.tensor(numbers), min(group.keep, len(numbers))).tolist())
        ways = torch.tensor([math.prod(len(ops[e]) for e in subset) for subset in subsets], dtype=torch.float64)
        kept = subsets[int(torch.multinomial(ways, 1, generator=rng))]
        choices += [_choice(group, e, ops[e], rng) for e in kept]
    return tuple(choices)


def _choice(group: Group, e: int, ops: tuple[str, ...], rng: torch.Generator) -> Choice:
    source, target = group.edges[e]
    return Choice(source, target, ops[int(torch.randint(len(ops), (), generator=rng))])
