"""Benchmark tables by name: `TABLES["nb201"](folder)` looks up what a cell scores instead of training it.

One file per benchmark: it builds a `Table` (`tabular`) from its data (`nb201`, whose official downloads `official` reads).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from oche.own import Kind
from oche.tables import nb201
from oche.tables.tabular import Table, TableLike

TABLES: dict[str, Callable[[Path | None], Table]] = {"nb201": nb201.read}

TABLE: Kind[Callable[[Path | None], TableLike]] = Kind(
    "table", TABLES, callable, "a function of a folder (None: where OCHE_DATA says) that gives an oche.tables.Table"
)

CONVERTERS: dict[str, Callable[[Path, Path], Path]] = {"nb201": nb201.convert}
"""(official download, folder) -> the compact file that the table's reader finds in that folder."""


def table_named(name: str, folder: str | Path | None = None) -> TableLike:
    """The table of that name or FILE.py:NAME, its files in `folder` or where OCHE_DATA says. Raises UserError."""
    return TABLE.find(name)(Path(folder) if folder else None)


__all__ = ["CONVERTERS", "TABLE", "TABLES", "Table", "TableLike", "table_named"]
