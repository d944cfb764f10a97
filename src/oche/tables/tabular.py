"""Tables: for every cell of a space its scores, by metrics that may select and metrics that may only report."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from oche.base import counted
from oche.errors import UserError, unknown
from oche.genotype import Genotype

Column = Callable[[], NDArray[np.float64]]
"""Gives the (N,) values of a metric; called when the metric is asked for, so that a file that is not needed is never read."""


@runtime_checkable
class TableLike(Protocol):
    """The interface of a table, for a bench and for a query-based search. `Table` has it; any object with these attributes will do."""

    @property
    def name(self) -> str: ...

    @property
    def space(self) -> str:
        """The name of the space that its cells are of."""
        ...

    @property
    def metrics(self) -> Collection[str]:
        """Named `data/what`, as in `cifar10/valid`; `test` is a part of the name of those that may only be reported."""
        ...

    @property
    def smaller(self) -> Collection[str]:
        """The metrics of which less is better."""
        ...

    def value(self, genotype: Genotype, metric: str, /) -> float:
        """The cell's value. Raises UserError for a cell that the table does not hold."""
        ...

    def column(self, metric: str, /) -> NDArray[np.floating]:
        """(N,) values of all cells."""
        ...

    def genotype(self, i: int, /) -> Genotype:
        """The cell of row i of the columns."""
        ...


@dataclass(frozen=True, eq=False)
class Table:
    """N cells of one space, each with a value for each metric. Metrics are named `data/what`, as in `cifar10/test/12`.

    Attributes:
        space: name of the space that the cells are of.
        cells: the genotypes in their published string form, in the benchmark's own order.
        columns: metric -> its values in that order.
        summary: the metrics that `answer` tells of a cell.
        smaller: metrics that are better when smaller.
        first: (N,) for each cell the smallest index of a cell that computes the same function.

    >>> cell = "|nor_conv_1x1~0|"
    >>> table = Table("demo", "nb201", (cell,), {"x/valid": lambda: np.array([91.5])}, ("x/valid",))
    >>> table.answer(Genotype.parse(cell))
    {'x': {'valid': 91.5}}
    """

    name: str
    space: str
    cells: tuple[str, ...]
    columns: Mapping[str, Column]
    summary: tuple[str, ...]
    smaller: frozenset[str] = frozenset()
    first: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.cells)

    # ------------------------------------------------------------------ metrics

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric's name."""
        return tuple(self.columns)

    def column(self, metric: str) -> NDArray[np.float64]:
        """(N,) values of a metric, read only. Raises UserError for a metric that does not exist."""
        if metric not in self.columns:
            raise unknown(f"metric of {self.name}", metric, self.columns)
        return self.columns[metric]()

    def selectable(self, metric: str) -> bool:
        """False for a metric of test images (`test` is a part of its name): it may be reported, and never selects."""
        if metric not in self.columns:
            raise unknown(f"metric of {self.name}", metric, self.columns)
        return "test" not in metric.split("/")

    def best_index(self, metric: str) -> int:
        """The cell that is best by a metric; the first of several."""
        values = self.column(metric)
        return int(values.argmin() if metric in self.smaller else values.argmax())

    def best(self, metric: str) -> float:
        """The best value of a metric, which the oracle reaches."""
        return float(self.column(metric)[self.best_index(metric)])

    # ------------------------------------------------------------------ cells

    def index(self, genotype: Genotype) -> int:
        """The cell's number. Raises UserError for a cell of another space, or one that the table does not hold."""
        if genotype.space != self.space:
            raise UserError(
                f"The cell is of the space {genotype.space!r}; the table {self.name!r} holds cells of {self.space!r}."
            )
        if str(genotype) not in self._numbers:
            raise UserError(
                f"The cell {str(genotype)[:100]} is not among the {len(self)} of the table {self.name!r}, "
                f"which are written like {self.cells[0]}."
            )
        return self._numbers[str(genotype)]

    def genotype(self, index: int) -> Genotype:
        """The cell of a number. Raises UserError where there is none."""
        if not 0 <= index < len(self):
            raise UserError(f"There is no cell {index} in {self.name}; cells are numbered 0 to {len(self) - 1}.")
        return Genotype.parse(self.cells[index], self.space)

    def value(self, genotype: Genotype, metric: str) -> float:
        """A cell's value of a metric."""
        return float(self.column(metric)[self.index(genotype)])

    def regret(self, genotype: Genotype, metric: str) -> float:
        """The distance to the best cell: 0 at the optimum, never negative."""
        return abs(self.best(metric) - self.value(genotype, metric))

    def answer(self, genotype: Genotype, metrics: Iterable[str] | None = None) -> dict[str, dict[str, float | None]]:
        """The summary, or the given metrics, of a cell as JSON takes them: one table per data set, None for values that are not finite."""
        told: dict[str, dict[str, float | None]] = {}
        for metric in self.summary if metrics is None else metrics:
            data, _, what = metric.partition("/")
            value = self.value(genotype, metric)
            told.setdefault(data, {})[what] = value if math.isfinite(value) else None
        return told

    # ------------------------------------------------------------------ cells that compute the same

    def isomorphs(self, genotype: Genotype) -> tuple[int, ...]:
        """Numbers of the cells that compute the same function as this one, itself included."""
        index = self.index(genotype)
        return tuple(np.flatnonzero(self.first == self.first[index]).tolist()) if len(self.first) else (index,)

    def sample(self, count: int, seed: int = 0) -> tuple[Genotype, ...]:
        """A fixed sample of cells without two that compute the same. Raises UserError where there are fewer."""
        distinct = np.unique(self.first) if len(self.first) else np.arange(len(self))
        if not 0 < count <= len(distinct):
            raise UserError(f"{count} cells cannot be sampled from the {len(distinct)} different ones of {self.name}.")
        chosen = torch.randperm(len(distinct), generator=counted(seed, "sample", self.name))[:count]
        return tuple(self.genotype(int(distinct[i])) for i in chosen.tolist())

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {cell: i for i, cell in enumerate(self.cells)}
