"""Regularized evolution. E. Real, A. Aggarwal, Y. Huang, Q. V. Le. AAAI 2019, arXiv 1802.01548.

    the first P cells are drawn uniformly; then each query:
    S of the youngest P cells, drawn with replacement; the best of them is the parent; its mutated copy is asked for, and the oldest dies
    mutation: with equal chance another operation on an edge, or another input of a node, each uniform among what is possible

Published: the algorithm (its Algorithm 1), P = 100 and S = 25 for 20,000 queries on CIFAR-10. Taken from code (D-X-Y/AutoDL-Projects for
NATS-Bench, whose budgets are nearer to ours): P = 10 and S = 3, the defaults here. Ours: 100 queries (`--set queries=100`), and the
evaluator, which is a supernet unless a bench has a table or another is named (`--set evaluator=table`, `supernet` or `training`).

Deviations from the paper: its third mutation, which changes nothing, with probability 0.05, is left out; a mutation changes one choice
of one cell, where the paper mutates a pair of combinations in a space of its own.
Deviations from the authors' code: a cell that is asked for again keeps its score, where the code trains it again.
Cost against DARTS: that of its queries; see `random_search`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from oche.base import counted
from oche.errors import UserError
from oche.genotype import Genotype
from oche.methods.ask_tell import AskTell, Told
from oche.spaces import Space
from oche.spaces.neighbours import other_inputs, other_ops
from oche.spaces.sampling import sample


@dataclass(frozen=True)
class Aging:
    """Evolution in which the oldest of `population` cells dies, and the best of `rivals` drawn ones has a child."""

    population: int = 10
    rivals: int = 3

    def __post_init__(self) -> None:
        if min(self.population, self.rivals) < 1:
            raise UserError(
                f"Evolution needs a population and rivals of at least 1; given {self.population} and {self.rivals}."
            )

    def ask(self, space: Space, told: Sequence[Told], seed: int) -> Genotype | None:
        """A random cell until the population is complete, then a child; None where no mutation is possible."""
        rng = counted(seed, "regularized evolution", len(told))
        if len(told) < self.population:
            return sample(space, rng)
        youngest = told[-self.population :]
        drawn = torch.randint(self.population, (self.rivals,), generator=rng).tolist()
        parent = max((youngest[i] for i in drawn), key=lambda t: t.score)
        return mutated(space, parent.genotype, rng)


def mutated(space: Space, genotype: Genotype, rng: torch.Generator) -> Genotype | None:
    """The genotype with one operation or one input changed; None where nothing can be changed."""
    kinds = [found for found in (list(other_ops(space, genotype)), list(other_inputs(space, genotype))) if found]
    if not kinds:
        return None
    kind = kinds[int(torch.randint(len(kinds), (), generator=rng))]
    return kind[int(torch.randint(len(kind), (), generator=rng))]


def regularized_evolution(queries: int = 100, population: int = 10, rivals: int = 3) -> AskTell:
    """Regularized evolution, in which the oldest cell dies."""
    return AskTell("regularized_evolution", Aging(population, rivals), queries=queries, papers=("real2019regularized",))
