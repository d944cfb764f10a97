"""Benchmark tables by name: `TABLES["nb201"](folder)` gives the scores of cells that need not be trained.

One file per benchmark: it builds a `Table` (`tabular`) from its data (`nb201`, whose official downloads `official` reads).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

from oche.errors import UserError
from oche.own import Kind, called
from oche.tables import nb201
from oche.tables.tabular import Table, TableLike

TABLES: dict[str, Callable[[Path | None], Table]] = {"nb201": nb201.read}

TABLE: Kind[Callable[..., object] | TableLike] = Kind(
    "table",
    TABLES,
    lambda thing: callable(thing) or isinstance(thing, TableLike),
    "an oche.tables.Table, or a function that gives one; of a folder, if it has a parameter",
)

CONVERTERS: dict[str, Callable[[Path, Path], Path]] = {"nb201": nb201.convert}
"""(official download, folder) -> the compact file that the table's reader finds in that folder."""


def table_named(name: str, folder: str | Path | None = None) -> TableLike:
    """The table of that name or FILE.py:NAME, its files in `folder` or where OCHE_DATA says. Raises UserError."""
    given = TABLE.find(name)
    found: object = given
    if not isinstance(given, TableLike):
        found = given(Path(folder) if folder else None) if inspect.signature(given).parameters else called(given, name)
    if not isinstance(found, TableLike):
        raise UserError(f"{name} gives {type(found).__name__}, which is no table: expected {TABLE.expected}.")
    return found


__all__ = ["CONVERTERS", "TABLE", "TABLES", "Table", "TableLike", "table_named"]
