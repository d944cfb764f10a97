"""Benchmark tables by name: `TABLES["nb201"](folder)` looks up what a cell scores instead of training it.

One file a benchmark: it builds a `Table` (`table`) from its data (`nb201`, whose official downloads `official` reads).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from oche.tables import nb201
from oche.tables.tabular import Table

TABLES: dict[str, Callable[[Path | None], Table]] = {"nb201": nb201.read}

CONVERTERS: dict[str, Callable[[Path, Path], Path]] = {"nb201": nb201.convert}
"""(official download, folder) -> the compact file that the table's reader finds in that folder."""

__all__ = ["CONVERTERS", "TABLES", "Table"]
