"""Choosing without a gradient: searchers that propose genotypes of a space."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from oche.base import Group, counted
from oche.genotype import Choice, Genotype
from oche.run import Run
from oche.search.loop import search
from oche.search.method import Method
from oche.search.stages import Staged
from oche.search.state import Problem, SearchState
from oche.spaces import Space
from oche.watch.named import Watch, watched


@dataclass(frozen=True)
class RandomSampling:
    """One cell, drawn uniformly: the baseline to beat.

    See arXiv 1902.07638 and 1912.12522.
    """

    name: str = "random_sampling"
    papers: tuple[str, ...] = ("li2019random", "yang2020frustratingly")

    def run(self, problem: Problem) -> Genotype:
        genotype = sample(problem.space, counted(problem.seed, "random sampling"))
        if problem.run:
            problem.run.write(Run.GENOTYPE, genotype.to_json().encode())
        return genotype


Searcher = Method | Staged | RandomSampling
"""What `METHODS` builds."""


def find(searcher: Searcher, problem: Problem, watch: Watch = Watch()) -> tuple[Genotype, SearchState | None]:
    """Searches with whatever searches, from wherever the run stands, and watches what has epochs to be watched after.

    Returns what was found, and the state in which the search ended where it trained a supernet.
    """
    if isinstance(searcher, RandomSampling):
        return searcher.run(problem), None
    if isinstance(searcher, Staged):
        result = replace(searcher, method=watched(searcher.method, watch)).search(problem)
    else:
        result = search(problem, watched(searcher, watch))
    return result.genotype, result.state


def method_of(searcher: Searcher) -> Method | None:
    """The method that a searcher runs, or varies from stage to stage; None where it trains no supernet."""
    if isinstance(searcher, Staged):
        return searcher.method
    return searcher if isinstance(searcher, Method) else None


def keeps_weights(searcher: Searcher) -> bool:
    """Whether what is found has its weights already."""
    return isinstance(searcher, Staged) and searcher.keeps_weights


class SearcherFactory(Protocol):
    """Builds a searcher; its keyword arguments are the searcher's own options."""

    def __call__(self) -> Searcher: ...


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
