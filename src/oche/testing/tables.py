"""Checks of a table."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from oche.errors import UserError
from oche.spaces import Space
from oche.tables import TableLike
from oche.testing.noise import assert_true


def check_table(table: TableLike, space: Space | None = None) -> None:
    """Checks a table: columns of one length, a validation metric, cells that can be looked up, and refusals in a sentence."""
    name, metrics = table.name, list(table.metrics)
    assert_true(bool(metrics), f"{name} has no metrics.")
    costs = [metric for metric in table.smaller if metric not in metrics]
    assert_true(not costs, f"{name}: {', '.join(costs)} in `smaller` are no metrics of it.")
    selecting = [m for m in metrics if "test" not in m.lower() and m not in table.smaller]
    assert_true(
        bool(selecting),
        f"{name} has only costs and test metrics, so nothing may select a cell: add a validation metric.",
    )
    lengths = {metric: len(table.column(metric)) for metric in metrics}
    assert_true(len(set(lengths.values())) == 1, f"{name}: columns have different lengths: {lengths}.")
    count = next(iter(lengths.values()))
    rows = sorted({0, count - 1, *(count * k // 7 for k in range(1, 7))})
    cells = [table.genotype(i) for i in rows]
    assert_true(len({cell.hash for cell in cells}) == len(rows), f"{name} has a cell twice.")
    for i, cell in zip(rows, cells, strict=True):
        assert_true(cell.space == table.space, f"{name}: cell {i} is of the space {cell.space!r}, not {table.space!r}.")
        if space is not None:
            space.check(cell)
        for metric in metrics:
            value, listed = float(table.value(cell, metric)), float(table.column(metric)[i])
            same = value == listed or (math.isnan(value) and math.isnan(listed))
            assert_true(same, f"{name}: cell {i} has {metric} {value} when looked up, and {listed} in the column.")
    _assert_refused(
        lambda: table.value(cells[0], "no such metric"), f"{name} answers for a metric that it does not have."
    )
    stranger = replace(cells[0], space="no such space")
    _assert_refused(lambda: table.value(stranger, metrics[0]), f"{name} answers for a cell of another space.")


def _assert_refused(ask: Callable[[], object], sentence: str) -> None:
    try:
        ask()
    except UserError:
        return
    except Exception as error:  # whatever a stranger's table raises
        raise AssertionError(f"{sentence[:-1]} with {type(error).__name__}, where a UserError is expected.") from error
    raise AssertionError(f"{sentence[:-1]}, where a UserError is expected.")
