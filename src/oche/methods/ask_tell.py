"""Query-based search: a strategy asks for cells, an evaluator scores each of them, and the best of them is the result.

    AskTell("mine", MyStrategy(), queries=100).run(problem)

A strategy is a function of what it was told, and an answer is kept in the run's log as soon as it is known, so that a killed search
goes on where it stood and ends as an unbroken one does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from oche.data import Augmentation, Data
from oche.errors import UserError
from oche.genotype import Genotype
from oche.methods.evaluators import (
    Evaluator,
    SupernetScore,
    augmentation,
    images_in_words,
    in_words,
    length_in_words,
    takes_epochs,
)
from oche.run import Run
from oche.search.callbacks import Callback
from oche.search.limits import hand_out, keeps
from oche.search.state import Problem
from oche.spaces import Space


@dataclass(frozen=True)
class Told:
    """A cell that was asked for, and its validation score; more is better."""

    genotype: Genotype
    score: float


class Strategy(Protocol):
    """Which cell to ask for next."""

    def ask(self, space: Space, told: Sequence[Told], seed: int) -> Genotype | None:
        """The next cell, or None if there is nothing left to ask. It must depend on the arguments alone.

        `told` has every cell so far in the order in which they were asked for. Take random numbers from
        `counted(seed, "my strategy", len(told))`.
        """
        ...


@runtime_checkable
class Concluding(Protocol):
    """A strategy that leaves more behind than a cell."""

    def conclude(self, problem: Problem, run: Run, told: Sequence[Told]) -> None:
        """Writes it into the run's folder, before the cell is handed out."""
        ...


@runtime_checkable
class Learning(Protocol):
    """A strategy that learns for a minute or more before it can ask for a cell."""

    def learns(self, space: Space, told: Sequence[Told]) -> str:
        """What the next `ask` learns first, in a sentence; "" where it learns nothing."""
        ...


@dataclass(frozen=True)
class AskTell:
    """A searcher that asks for at most `queries` cells; of the cells with the best score it finds the first.

    With limits and a fixed width, a cell that keeps them goes before one that does not, which is changed if it is the best all the same.
    A cell that no signal can pass is not found where another was asked for, unless the problem wants the `literal` rule (benches do).
    `evaluator` None stands for the table of a bench that has one, else for a supernet.
    A cell that is asked for again is not evaluated again, but counts as a query.
    """

    name: str
    strategy: Strategy
    evaluator: Evaluator | None = None
    queries: int = 100
    papers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise UserError(f"{self.name} needs at least one query; given queries={self.queries}.")

    @property
    def asks(self) -> str:
        """The evaluator in words, for the table before a search."""
        return in_words(self.evaluator or SupernetScore())

    def length(self, epochs: int, batch: int) -> str:
        """How long a search is, in words; epochs and batch are told of where the evaluator trains for them."""
        return length_in_words(self.evaluator or SupernetScore(), self.queries, epochs, batch)

    def images(self, data: Data, task: str) -> str:
        """What becomes of the images that cells are scored with, in words."""
        return images_in_words(self.evaluator or SupernetScore(), data, task)

    def augmentation(self, data: Data, task: str) -> Augmentation | None:
        """What the images go through on which cells are scored; None where no network is trained on them."""
        return augmentation(self.evaluator or SupernetScore(), data, task)

    @property
    def takes_epochs(self) -> bool:
        """True where the evaluator may train something for the search's epochs and batch."""
        return takes_epochs(self.evaluator or SupernetScore())

    @property
    def method(self) -> None:
        """None: there are no architecture parameters to learn."""
        return None

    @property
    def keeps_weights(self) -> bool:
        """False: the found cell is trained from scratch."""
        return False

    def run(self, problem: Problem, watch: Sequence[Callback] = ()) -> tuple[Genotype, None]:
        """Asks until the queries are spent, or carries on from the log.

        Raises UserError where the evaluator cannot be used, or the strategy or the evaluator returns something impossible.
        """
        score = (self.evaluator or SupernetScore()).ready(problem, watch)
        told = list(asked_before(problem))
        known = {t.genotype.hash: t.score for t in told}

        def worth(t: Told) -> tuple[bool, bool, float]:
            return keeps(problem, t.genotype), problem.literal or t.genotype.connected, t.score

        best = max(told, key=worth, default=None)  # the first of equals
        said = ""
        while len(told) < self.queries:
            began = time.perf_counter()
            words = self.strategy.learns(problem.space, told) if isinstance(self.strategy, Learning) else ""
            if words not in ("", said):
                problem.listener("learning", {"words": words})
                said = words
            cell = self.strategy.ask(problem.space, told, problem.seed)
            if cell is None:
                break
            problem.space.check(cell)
            value = known[cell.hash] if cell.hash in known else score(cell)
            if not math.isfinite(value):
                raise UserError(f"{self.name}: {cell} scores {value}, which is no number to compare cells by.")
            told.append(Told(cell, value))
            known[cell.hash] = value
            best = max(best or told[-1], told[-1], key=worth)
            note(problem, told, best, time.perf_counter() - began)
        if best is None:
            raise UserError(f"{self.name} asked for no cell at all, so there is none to choose.")
        if isinstance(self.strategy, Concluding) and problem.run and problem.fabric.is_global_zero:
            self.strategy.conclude(problem, problem.run, told)
        return hand_out(problem, best.genotype), None


def note(problem: Problem, told: Sequence[Told], best: Told, seconds: float) -> None:
    """One line of the log for the last query: the cell that was asked for, and the best one so far as `genotype`."""
    record = {
        "kind": "query",
        "query": len(told),
        "queried": str(told[-1].genotype),
        "score": told[-1].score,
        "genotype": str(best.genotype),
        "best": best.score,
        "skips": best.genotype.skips(),
        "seconds": seconds,
    }
    if problem.run and problem.fabric.is_global_zero:
        problem.run.log(record)
    problem.listener("query", record)


def asked_before(problem: Problem) -> Iterator[Told]:
    """The queries in the run's log."""
    for record in problem.run.records() if problem.run else ():
        if record.get("kind") == "query":
            cell = Genotype.parse(str(record["queried"]), problem.space.name)
            yield Told(cell, float(str(record["score"])))
