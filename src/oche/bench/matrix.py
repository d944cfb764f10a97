"""The matrix of a bench: methods x spaces x data x budgets x seeds, from a TOML file or from flags."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from oche import config, own
from oche.bench.tables import known
from oche.errors import UserError, unknown
from oche.plan.options import Limited
from oche.plan.request import AUTO
from oche.run.bounded import read_bounded
from oche.spaces import named as spaces_named
from oche.tables import TableLike
from oche.training.protocols import PROTOCOLS

SUPERNET, SUPERNET_TRAIN, TRAINED_VAL, TRAINED_TEST = "supernet/val", "supernet/train", "trained/val", "trained/test"
"""Metrics that a bench measures itself, in percent, beside the table's: of the supernet, and of the retrained network."""

OWN = (SUPERNET, SUPERNET_TRAIN, TRAINED_VAL, TRAINED_TEST)

AXES = ("methods", "spaces", "data", "budgets")
FREE = {*AXES, "arms", "seeds", "first_seed", "settings", "settings_of", "probes", "table_folder", "cpus", "gpus"}
"""Fields that may differ when a bench is carried on; what a trial was asked for is compared trial by trial."""


@dataclass(frozen=True)
class Arm:
    """A method's name, settings on top of those for all, `{"trainable.affine": True}`, and epochs and a number of seeds of its own."""

    method: str
    settings: Mapping[str, object] = field(default_factory=dict)
    epochs: int | None = None
    seeds: int | None = None


@dataclass(frozen=True)
class Matrix(Limited):
    """The comparison, as plain values.

    - `arms` are further entries beside `methods`, under names of their own: a method with settings, so that one method can be compared
      with itself: `{"affine": {"method": "darts", "settings": {"trainable.affine": True}}}`. A baseline's name may be one.
    - `seeds` is how many, from `first_seed` on, where an arm has no number of its own; `epochs` and `batch` replace the budgets' own.
    - `methods`, `spaces`, `data` and `table` take FILE.py:NAME too. No space stands for that of the table, or nb201.
    - `evaluate`: "table" looks the cells up in `table` (whose files lie in `table_folder`, or where OCHE_DATA says), "train" trains
      them from scratch under `protocol` on the data, "both" does both; "auto" is "table" where there is one, else "train".
    - `protocol` is by default that of every comparison, `fast_brief`, for masks `segment_brief`; trials record its name.
    - `metrics` are those of the table to report, the most important first; `select` is the one that selects: among a method's seeds,
      and as the oracle. It must not be a test metric. By default the table's first metric that may select, and the test metric of
      the same data.
    - `baselines` are added to `methods`, and `baseline` is the one that RI and significance refer to; `zero_cost` names the table's
      scores whose best cell is reported (by default all that belong to the first metric's data set).
    - `settings` are `--set`'s, for all methods (those without a supernet get what concerns space, data and training); `settings_of`
      holds more for one method or arm: `{"rf_darts": {"trainable.classifier": True}}`.
    - `probes` are measured after each epoch of a search with a supernet (`oche.watch.named`); set as `probe.every` and so on.
    - `max_params` and the other limits of `oche.search`, `latency_table` with them, limit the network of every trial; a table's cells
      have the size that they have, so `evaluate` must then train.
    - `threads` are torch's in each trial, the same wherever it runs; `cpus` and `gpus` what a trial takes of a Ray cluster.
    """

    name: str = "bench"
    methods: tuple[str, ...] = ("darts", "pcdarts", "rf_darts")
    spaces: tuple[str, ...] = ()
    data: tuple[str, ...] = ("digits",)
    budgets: tuple[str, ...] = ("quick",)
    seeds: int = 4
    first_seed: int = 0
    epochs: int | None = None
    batch: int | None = None
    device: str = "auto"
    precision: str = "32"
    threads: int = 1
    evaluate: Literal["auto", "table", "train", "both"] = "auto"
    table: str | None = None
    table_folder: str | None = None
    metrics: tuple[str, ...] = ()
    select: str | None = None
    protocol: str = AUTO
    baseline: str = "random_sampling"
    baselines: tuple[str, ...] = ("random_sampling", "random_search_ws")
    zero_cost: tuple[str, ...] = ()
    probes: tuple[str, ...] = ()
    cpus: float = 1.0
    gpus: float = 0.0
    arms: Mapping[str, object] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    settings_of: Mapping[str, object] = field(default_factory=dict)

    @property
    def searched(self) -> tuple[str, ...]:
        """The methods, the arms and the baselines, each once."""
        return tuple(dict.fromkeys((*self.methods, *self.arms, *self.baselines, self.baseline)))

    def arm(self, name: str) -> Arm:
        """The arm of that name; a method's name is an arm without settings. Raises UserError for an arm that is no table of settings."""
        if name not in self.arms:
            return Arm(name)
        return config.build(Arm, _table(self.arms[name], f"arms.{name}"), f"arm {name}")

    def seeds_for(self, name: str) -> int:
        """The number of seeds of a method or arm."""
        count = self.arm(name).seeds
        return self.seeds if count is None else count

    @property
    def looked_up(self) -> tuple[str, ...]:
        """The table's metrics that a trial's cell is looked up by: those reported, and the one that selects."""
        return tuple(dict.fromkeys((*self.metrics, *([] if self.selector in OWN else [self.selector]))))

    @property
    def reported(self) -> tuple[str, ...]:
        """All metrics of the result, the most important first."""
        return (*self.metrics, *((TRAINED_TEST, TRAINED_VAL) if self.evaluate != "table" else ()))

    @property
    def selector(self) -> str:
        """`select`, or the retrained network's validation accuracy."""
        return self.select or TRAINED_VAL

    @property
    def selects_by_table(self) -> bool:
        """True if the metric that selects is one of the table's."""
        return self.evaluate in ("table", "both") and self.selector not in OWN

    def written(self) -> dict[str, object]:
        """The `[bench]` table of run.toml."""
        return {key: "none" if value is None else value for key, value in asdict(self).items()}


def matrix_from(path: Path | None, overrides: Mapping[str, object] | None = None) -> Matrix:
    """The matrix in a TOML file, or in a bench's run.toml; `overrides` (None: not given) replace its fields, `settings` one by one.

    Raises UserError for a file that is not there, an unknown key, or a value that does not fit.
    """
    table: dict[str, object] = {}
    if path is not None:
        if not path.is_file():
            raise UserError(f"There is no file {str(path)!r}; expected a TOML file that describes a bench.")
        table = config.loads(read_bounded(path).decode(errors="replace"), str(path))
        bench = table.get("bench")
        table = bench if isinstance(bench, dict) else {"name": path.stem, **table}
    return matrix_in(table, str(path or "bench"), overrides)


def matrix_in(table: Mapping[str, object], where: str, overrides: Mapping[str, object] | None = None) -> Matrix:
    """The matrix with these fields, replaced as in `matrix_from`; `where` is the table's name in errors. Raises UserError."""
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    if "arms" in table:
        table = {"methods": (), **table}
    settings = {**flat(table.get("settings", {})), **flat(given.pop("settings", {}))}
    of = {**_table(table.get("settings_of", {})), **_table(given.pop("settings_of", {}))}
    of = {method: flat(values) for method, values in of.items()}
    matrix = config.build(Matrix, {**table, **given, "settings": settings, "settings_of": of}, where)
    check(matrix)
    return matrix


def check(matrix: Matrix, table: TableLike | None = None, parts: Mapping[str, object] | None = None) -> None:
    """Raises UserError where the matrix contradicts itself or the table, or would select on test data.

    `parts` are the objects that names in the matrix stand for.
    """
    for axis in AXES:
        names = (*matrix.methods, *matrix.arms) if axis == "methods" else getattr(matrix, axis)
        if not names and axis == "spaces" and table is None:
            continue  # the table's, which is not read yet
        if not names or len(set(names)) < len(names):
            raise UserError(f"{axis} must name at least one, and none twice; given {', '.join(names) or 'nothing'}.")
    fewest = min(map(matrix.seeds_for, matrix.searched))
    if fewest < 1 or matrix.threads < 1:
        raise UserError(
            f"A bench needs at least one seed and one thread; given seeds={fewest}, threads={matrix.threads}."
        )
    if min(matrix.cpus, matrix.gpus) < 0:
        raise UserError(
            f"A trial cannot need a negative number of CPUs or GPUs; given cpus={matrix.cpus:g}, gpus={matrix.gpus:g}."
        )
    if "test" in matrix.selector.lower():
        raise UserError(
            f"select={matrix.selector!r} would select on test data, and what is reported would be too good: name a validation metric."
        )
    if matrix.evaluate == "train" and (matrix.table or matrix.metrics):
        raise UserError('A table is given, but evaluate="train" does not look at it; say evaluate="table" or "both".')
    if matrix.evaluate != "table" and matrix.protocol not in (AUTO, *PROTOCOLS):
        raise unknown("protocol", matrix.protocol, (AUTO, *PROTOCOLS))
    if matrix.evaluate == "table" and (matrix.select or table) and matrix.selector in (TRAINED_VAL, TRAINED_TEST):
        raise UserError(
            'Nothing is trained with evaluate="table", so `select` must name one of the table\'s validation metrics.'
        )
    if limited := [name for name, value in matrix.limited.items() if value is not None and matrix.evaluate == "table"]:
        raise UserError(
            f'{limited[0]} limits networks that are trained, and a table\'s have the size that they have: say evaluate="train".'
        )
    for method in matrix.settings_of:
        if method not in matrix.searched:
            raise unknown("method in settings_of", method, matrix.searched)
    if matrix.evaluate in ("table", "both"):
        _check_table(matrix, table, parts or {})


def flat(table: object, prefix: str = "") -> dict[str, object]:
    """Flattens a table of tables to dotted paths.

    >>> flat({"space": {"cells": 1}, "clip": 5.0})
    {'space.cells': 1, 'clip': 5.0}
    """
    paths: dict[str, object] = {}
    for key, value in _table(table).items():
        paths |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return paths


def space_name(given: object) -> str:
    """The name of a space that is given by its name, as FILE.py:NAME or as an object. Raises UserError."""
    return str(spaces_named.space(given)().name) if own.is_foreign(given) else str(given)


# ------------------------------------------------------------------ helpers


def _check_table(matrix: Matrix, table: TableLike | None, parts: Mapping[str, object]) -> None:
    if matrix.table is None or (table is not None and not matrix.metrics):
        names: Collection[str] = table.metrics if table else ()
        there = f"; {table.name} has {', '.join(names)}" if table else ""
        raise UserError(f"evaluate={matrix.evaluate!r} needs a `table` and the `metrics` to report{there}.")
    if table is not None:
        known(table, (*matrix.looked_up, *matrix.zero_cost))
        for space in (space_name(parts.get(name, name)) for name in matrix.spaces):
            if space != table.space:
                raise UserError(f"The table {table.name} holds cells of {table.space}, not of {space}.")


def _table(value: object, where: str = "settings") -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise UserError(f"{where} must be a table such as {{'space.cells': 1}}, not {value!r}.")
    return value
