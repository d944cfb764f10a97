"""Local search. C. White, S. Nolen, Y. Savani. UAI 2021, arXiv 2005.02960.

    start at a random cell; ask for all its neighbours; move to the best of them if it is better; else start again at another random cell
    neighbours: one other operation on an edge, or one other input of a node

Published: the algorithm (its Algorithm 1), and as a variant the move to the first neighbour that is better (`first_better=True`), the
neighbours in random order. Ours: 100 queries (`--set queries=100`), and the evaluator, which is a supernet unless a bench has a table or
another is named (`--set evaluator=table`, `supernet` or `training`).

Deviations from the paper: none known in the rule; at a local optimum it starts again until the queries are spent.
Deviations from the authors' code: none known; a cell whose score is known is not asked for again.
Cost against DARTS: that of its queries; see `random_search`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from oche.base import counted
from oche.genotype import Choice, Genotype
from oche.methods.ask_tell import AskTell, Told
from oche.spaces import Space
from oche.spaces.neighbours import neighbours
from oche.spaces.sampling import sample

Key = tuple[tuple[str, tuple[Choice, ...]], ...]


@dataclass(frozen=True)
class Climb:
    """Hill climbing with restarts, to the best neighbour, or to the first that is better."""

    first_better: bool = False

    def ask(self, space: Space, told: Sequence[Told], seed: int) -> Genotype | None:
        """The first cell on the way, repeated from its beginning, whose score is not known; None if all cells are known."""
        known = {key(t.genotype): t.score for t in told}
        if len(known) >= space.cardinality():
            return None
        for number in itertools.count():
            start = sample(space, counted(seed, "local search", "start", number))
            if (unknown := self.climb(space, start, known, seed)) is not None:
                return unknown
        return None

    def climb(self, space: Space, cell: Genotype, known: Mapping[Key, float], seed: int) -> Genotype | None:
        """The first cell without a score on the way up from a cell; None if the whole way is known."""
        if key(cell) not in known:
            return cell
        here = known[key(cell)]
        while True:
            best, best_score = cell, here
            for other in self.ordered(space, cell, seed):
                score = known.get(key(other))
                if score is None:
                    return other
                if score > best_score:
                    best, best_score = other, score
                    if self.first_better:
                        break
            if best_score == here:
                return None
            cell, here = best, best_score

    def ordered(self, space: Space, cell: Genotype, seed: int) -> list[Genotype]:
        """The cell's neighbours, in random order if the first better one is taken."""
        found = list(neighbours(space, cell))
        if not self.first_better:
            return found
        order = torch.randperm(len(found), generator=counted(seed, "local search", "order", cell.hash))
        return [found[i] for i in order.tolist()]


def key(genotype: Genotype) -> Key:
    """The choices of a sampled cell or a neighbour, which tell it apart from others of its space; quicker than its hash."""
    return tuple(genotype.groups.items())


def local_search(queries: int = 100, first_better: bool = False) -> AskTell:
    """Local search: hill climbing from random cells."""
    return AskTell("local_search", Climb(first_better), queries=queries, papers=("white2021local",))
