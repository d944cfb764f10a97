"""What searches that predict share: cells as vectors, and rounds of candidates ranked by what a predictor says of them.

Few-shot evaluation (Xie et al., arXiv 2301.05919): some cells are evaluated, the others predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from oche.base import Group, counted
from oche.errors import UserError
from oche.genotype import Choice, Genotype
from oche.methods.ask_tell import Told
from oche.methods.random_search import Uniform
from oche.methods.regularized_evolution import mutated
from oche.spaces import Space

Matrix = NDArray[np.float64]


# ------------------------------------------------------------------ cells as vectors


def one_hot(space: Space, genotype: Genotype) -> Matrix:
    """A vector with a place for each candidate of each edge of each group: 1 where it was chosen."""
    places = []
    for group in space.groups:
        matrix = np.zeros((len(group.edges), group.width))
        free = list(range(len(group.edges)))  # edges between the same nodes are filled in their order
        for choice in genotype.groups[group.name]:
            e = next(e for e in free if group.edges[e] == (choice.source, choice.target))
            free.remove(e)
            matrix[e, group.ops[e].index(choice.op)] = 1
        places.append(matrix.ravel())
    return np.concatenate(places)


def paths(space: Space, genotype: Genotype) -> set[str]:
    """The ways from an input to an end of each cell, as the operations on them: `cell:0>nor_conv_3x3>skip_connect`. `none` ends a way."""
    return {f"{group.name}:{way}" for group in space.groups for way in _ways(space, group, genotype.groups[group.name])}


def _ways(space: Space, group: Group, choices: Sequence[Choice]) -> Iterator[str]:
    targets = {target for _, target in group.edges}
    ways = {source: [str(source)] for source, _ in group.edges if source not in targets}
    for choice in sorted(choices, key=lambda c: c.target):
        if choice.op != "none":
            further = [f"{way}>{choice.op}" for way in ways.get(choice.source, ())]
            ways.setdefault(choice.target, []).extend(further)
    for end in sorted(
        targets if group.keep is not None else space.ends(group)
    ):  # a cell that keeps edges shows all its nodes
        yield from ways.get(end, ())


def features(space: Space, genotypes: Sequence[Genotype]) -> Matrix:
    """(n, F) the operations of every edge, then a column for each way that any of the cells has (the path encoding of BANANAS).

    The edges are there because a chain has one way only, another in every network.
    """
    found = [paths(space, genotype) for genotype in genotypes]
    known = sorted(set().union(*found))
    ways = np.array([[way in own for way in known] for own in found], dtype=np.float64)
    return np.hstack([np.stack([one_hot(space, genotype) for genotype in genotypes]), ways])


# ------------------------------------------------------------------ rounds


def in_rounds(
    space: Space,
    told: Sequence[Told],
    seed: int,
    first: int,
    batch: int,
    kept: dict[object, Sequence[Genotype]],
    found: Callable[[Sequence[Told]], Sequence[Genotype]],
) -> Genotype | None:
    """The next cell of a search that asks for `first` random cells, then for `batch` cells per round.

    A round's cells are `found(what was told before it)`, remembered in `kept`; where it finds fewer, random ones take their places. None if
    all cells of the space are known.
    """
    number, place = divmod(len(told) - first, batch)
    if number < 0:
        return Uniform().ask(space, told, seed)
    before = told[: first + number * batch]
    key = (space, seed, tuple((t.genotype.hash, t.score) for t in before))
    if key not in kept:
        kept.clear()
        kept[key] = found(before)
    return kept[key][place] if place < len(kept[key]) else Uniform().ask(space, told, seed)


class Ranking(Protocol):
    """How a predictor ranks cells that were not asked for."""

    def order(
        self, space: Space, told: Sequence[Told], candidates: Sequence[Genotype], seed: int
    ) -> Sequence[Genotype]:
        """The candidates, the most promising first. It must depend on the arguments alone."""
        ...


@dataclass(frozen=True)
class Rounds:
    """`first` random cells, then rounds of `batch` cells: the first of `candidates` ranked ones near the best, none asked for twice.

    Candidates are mutations of the best cell, of the second best where that one has too few unknown ones, and so on to the fifth, one
    or two changes away.
    """

    ranking: Ranking
    first: int = 10
    batch: int = 10
    candidates: int = 100
    _ranked: dict[object, Sequence[Genotype]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.first < 2 or min(self.batch, self.candidates) < 1:
            raise UserError(
                "A predictor needs two first cells, a batch and candidates; given "
                f"first={self.first}, batch={self.batch}, candidates={self.candidates}."
            )

    def ask(self, space: Space, told: Sequence[Told], seed: int) -> Genotype | None:
        """The next cell of the round; a random one at first, and where nothing near the best is unknown. None if all are known."""

        def ranked(before: Sequence[Told]) -> Sequence[Genotype]:
            near = self.near(space, before, seed)
            return self.ranking.order(space, before, near, seed) if near else []

        return in_rounds(space, told, seed, self.first, self.batch, self._ranked, ranked)

    def near(self, space: Space, told: Sequence[Told], seed: int) -> list[Genotype]:
        """Unknown cells near the best ones, each once."""
        known, found = {t.genotype.hash for t in told}, list[Genotype]()
        rng = counted(seed, "near the best", len(told))
        for parent in sorted(told, key=lambda t: -t.score)[:5]:
            for _ in range(self.candidates):
                if len(found) == self.candidates:
                    return found
                cell: Genotype | None = parent.genotype
                for _ in range(1 + int(torch.randint(2, (), generator=rng))):
                    cell = cell and mutated(space, cell, rng)
                if cell is not None and cell.hash not in known:
                    known.add(cell.hash)
                    found.append(cell)
        return found


def standardised(told: Sequence[Told]) -> Matrix:
    """The scores with mean 0 and deviation 1, or all 0 where they are equal."""
    scores = np.array([t.score for t in told])
    found: Matrix = (scores - scores.mean()) / (scores.std() or 1.0)
    return found
