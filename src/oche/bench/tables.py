"""Facts that a bench takes from a table of all cells once: each metric's optimum and mean, and the choices that need no search."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from oche.bench.baselines import best_of, by_size, size_metric
from oche.config import build
from oche.errors import UserError, unknown
from oche.genotype import Genotype
from oche.tables import TableLike

LARGEST = "largest cell (by parameters)"
"""The name of a table's cell with the most parameters: most searches do not beat it."""


@dataclass(frozen=True)
class Fixed:
    """A choice without a search and without a seed: its name, the cell, and the cell's values by metric."""

    name: str
    genotype: str
    values: Mapping[str, float | None]


@dataclass(frozen=True)
class Facts:
    """Facts that a table tells without a search: each metric's optimum and mean over all cells, single cells, and the best of random ones.

    `best_of` holds for each metric the mean and deviation for the best by validation of 1, 2, 3, ... random cells. `sizes` holds, for each
    number of parameters (the metric `size`), the metrics of the best of random cells that have as many.
    """

    name: str = ""
    optimum: Mapping[str, float] = field(default_factory=dict)
    mean: Mapping[str, float] = field(default_factory=dict)
    fixed: tuple[Fixed, ...] = ()
    best_of: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    size: str = ""
    sizes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def as_large(self, parameters: float | None, metric: str) -> float | None:
        """The best of random cells with that many parameters, None where the table does not know."""
        return None if parameters is None else self.sizes.get(f"{parameters:.0f}", {}).get(metric)

    def table(self) -> dict[str, object]:
        """As JSON holds it; `read` takes it back."""
        return {**asdict(self), "fixed": [asdict(choice) for choice in self.fixed]}

    @staticmethod
    def read(table: Mapping[str, object]) -> Facts:
        """From what `table` returned. Raises UserError where it is something else."""
        rows = table.get("fixed", [])
        if not isinstance(rows, list):
            raise UserError("table.json is damaged: `fixed` is no list; remove the file and start the bench again.")
        given = {name: value for name, value in table.items() if name != "fixed"}
        return build(Facts, {**given, "fixed": tuple(build(Fixed, row, "table.json") for row in rows)}, "table.json")


def facts(table: TableLike, metrics: Sequence[str], select: str, zero_cost: Sequence[str]) -> Facts:
    """The optimum and the mean of `metrics`; the best cell by `select` (the oracle), by each score and by size; the best of random cells.

    What selects may be measured by the bench itself (`trained/val`): then no cell is known to be the best, and nothing is chosen by it.
    """
    columns = {metric: finite(table.column(metric)) for metric in metrics}
    size, selects = size_metric(table, metrics[0]) if metrics else None, select in table.metrics
    by = {f"oracle (by {select})": select} if selects else {}
    by |= {f"best {score}": score for score in zero_cost} | ({LARGEST: size} if size else {})
    chosen = {name: table.genotype(int(np.nanargmax(finite(table.column(metric))))) for name, metric in by.items()}
    scores = finite(table.column(select)) if selects else np.empty(0)
    sizes: dict[str, dict[str, float]] = {}
    if selects and size:
        for metric, column in columns.items():
            for parameters, value in by_size(finite(table.column(size)), scores, column).items():
                sizes.setdefault(parameters, {})[metric] = value
    return Facts(
        table.name,
        {metric: float(np.nanmax(column)) for metric, column in columns.items()},
        {metric: float(np.nanmean(column)) for metric, column in columns.items()},
        tuple(Fixed(name, str(cell), dict(values(table, cell, metrics))) for name, cell in chosen.items()),
        {metric: [list(pair) for pair in best_of(scores, column)] for metric, column in columns.items()}
        if selects
        else {},
        size or "",
        sizes,
    )


def values(table: TableLike, genotype: Genotype, metrics: Sequence[str]) -> Iterator[tuple[str, float | None]]:
    """(metric, the cell's value, or None where the table holds none)."""
    for metric in metrics:
        value = float(table.value(genotype, metric))
        yield metric, value if math.isfinite(value) else None


def finite(column: NDArray[np.floating]) -> NDArray[np.float64]:
    """The column with NaN for every value that is not finite: some zero-cost scores are minus infinity."""
    numbers = np.asarray(column, dtype=np.float64)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def known(table: TableLike, metrics: Sequence[str]) -> None:
    """Raises UserError for a metric that the table does not have, or of which less is better."""
    for metric in metrics:
        if metric not in table.metrics:
            raise unknown(f"metric of the table {table.name}", metric, table.metrics)
        if metric in table.smaller:
            raise UserError(f"{metric} is a cost; a bench reports and selects by metrics of which more is better.")


def zero_cost_scores(table: TableLike, metric: str) -> tuple[str, ...]:
    """The table's scores without training that belong to a metric's data set: `zerocost/cifar10/...` for `cifar10/test`."""
    return tuple(name for name in table.metrics if name.startswith(f"zerocost/{metric.partition('/')[0]}/"))
