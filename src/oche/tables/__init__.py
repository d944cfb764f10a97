"""Benchmark tables by name: `TABLES["nb201"](folder)` looks up what a cell scores instead of training it.

One file per benchmark: it builds a `Table` (`tabular`) from its data (`nb201`, whose official downloads `official` reads).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from oche.errors import unknown
from oche.tables import nb201
from oche.tables.tabular import Table, TableLike

TABLES: dict[str, Callable[[Path | None], Table]] = {"nb201": nb201.read}

CONVERTERS: dict[str, Callable[[Path, Path], Path]] = {"nb201": nb201.convert}
"""(official download, folder) -> the compact file that the table's reader finds in that folder."""


def table_named(name: str, folder: str | Path | None = None) -> TableLike:
    """The table of that name, its files in `folder` or where OCHE_DATA says. Raises UserError."""
    if name not in TABLES:
        raise unknown("table", name, TABLES)
    return TABLES[name](Path(folder) if folder else None)


__all__ = ["CONVERTERS", "TABLES", "Table", "TableLike", "table_named"]
