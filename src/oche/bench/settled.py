"""Fills in what was left open, from the table of a bench: the space, the metric that selects, and the metrics to report."""

from __future__ import annotations

from dataclasses import replace

from oche import own
from oche.bench.matrix import Matrix
from oche.errors import UserError
from oche.tables import TableLike


def settled(matrix: Matrix, table: TableLike | None) -> Matrix:
    """The matrix with nothing left open: `evaluate`, `spaces`, and, where cells are only looked up, `select` and `metrics`.

    Raises UserError for a table that has no metric to select by.
    """
    evaluate = matrix.evaluate
    if evaluate == "auto":
        evaluate = "table" if table is not None or matrix.table is not None else "train"
    matrix = replace(matrix, evaluate=evaluate, table=str(own.absolute(matrix.table)) if matrix.table else None)
    if table is None or evaluate == "train":
        return replace(matrix, spaces=matrix.spaces or ("nb201",))
    matrix = replace(matrix, spaces=matrix.spaces or (table.space,), table=matrix.table or table.name)
    select = matrix.select or (_selecting(table) if evaluate == "table" else None)
    metrics = matrix.metrics or tuple(_reported(table, select or _selecting(table)))
    return replace(matrix, select=select, metrics=metrics)


def _selecting(table: TableLike) -> str:
    """The first metric that may select."""
    for metric in table.metrics:
        if "test" not in metric.lower() and metric not in table.smaller:
            return metric
    raise UserError(
        f"The table {table.name} has no metric that may select, only costs and test metrics: name one with `--select`."
    )


def _reported(table: TableLike, select: str) -> list[str]:
    """The test metric of the same data, if there is one, and the metric that selects."""
    data = select.partition("/")[0]
    tests = (
        m for m in table.metrics if m.partition("/")[0] == data and "test" in m.split("/") and m not in table.smaller
    )
    return [*([test] if (test := next(tests, None)) else []), select]
