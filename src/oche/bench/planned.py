"""The trials that a matrix makes: one search of each method or arm, space, data, budget and seed."""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from oche.bench.matrix import Matrix, flat, space_name
from oche.methods.ask_tell import AskTell
from oche.plan.compared import SEEDS
from oche.plan.named import searcher_named
from oche.plan.parts import table_path
from oche.plan.request import AUTO, Request, options
from oche.search.searcher import SearcherLike, as_searcher
from oche.spaces import named as spaces
from oche.tables import TableLike
from oche.training.protocols import BRIEF


@dataclass(frozen=True)
class Planned:
    """A trial's place in the matrix: `method` (an arm's name where it is one) and the rest are as the matrix names them."""

    method: str
    space: str
    data: str
    budget: str
    seed: int

    @property
    def name(self) -> str:
        """The name of the trial and of its folder."""
        return "-".join(slug(part) for part in (self.method, self.space, self.data, self.budget, str(self.seed)))


@dataclass(frozen=True)
class Objects:
    """The parts that a bench got as objects: methods, spaces and data by the names that the matrix has for them, and the table."""

    parts: Mapping[str, object] = field(default_factory=dict)
    table: TableLike | None = None

    def of(self, name: str) -> object:
        """The part of that name; the name itself where it stands for no object."""
        return self.parts.get(name, name)

    def space(self, name: str) -> str:
        """The name that genotypes of a space have. Raises UserError."""
        return space_name(self.of(name))


@dataclass(frozen=True)
class Trial(Planned):
    """One search and the evaluation of its cell, in plain values, so that it can be sent to another machine.

    The request has paths from the root; what the bench was handed over as `objects` goes with it.
    """

    request: Request
    train: bool
    objects: Objects = field(default=Objects(), compare=False, repr=False)

    @property
    def handed(self) -> dict[str, object]:
        """Option -> object, for the options of the search that are objects."""
        named = {"method": self.request.method, "space": self.request.space, "data": self.request.data}
        return {option: self.objects.of(str(name)) for option, name in named.items() if name in self.objects.parts}

    @property
    def whole(self) -> Request:
        """The request with the objects in their places."""
        handed: dict[str, Any] = self.handed
        return replace(self.request, **handed)

    def same(self, request: Request) -> bool:
        """True if an earlier trial's request, whose objects have names, asked for the same."""
        named: dict[str, Any] = {option: getattr(self.request, option) for option in self.handed}
        return asked(replace(request, **named)) == self.asked()

    def asked(self) -> dict[str, object]:
        """The request as plain values, to be compared with an earlier trial's."""
        return asked(self.request)


FIRST = frozenset(
    (
        "method",
        "space",
        "data",
        "budget",
        "epochs",
        "batch",
        "seed",
        "device",
        "devices",
        "precision",
        "threads",
        "compare",
    )
) | {"compare_seeds", "protocol", "recompute"}
"""The options that the lines of the first benches have. A later option stands in a line only where it has another value than by default."""


def asked(request: Request) -> dict[str, object]:
    """The options that decide a trial, as plain values.

    Left out are probes, which only look, `compile`, which changes no result, and rivals, which a trial has none of.
    """
    free = ("probes", "seeds", "pick", "compile", "settings", "rivals")
    table = {
        f.name: getattr(request, f.name)
        for f in options(Request)
        if f.name not in free and (f.name in FIRST or getattr(request, f.name) != f.default)
    }
    table["devices"] = request.devices or 1  # no torchrun here, so none is one
    return {**table, "settings": {k: v for k, v in request.settings.items() if not k.startswith("probe.")}}


def planned(matrix: Matrix) -> Iterator[Planned]:
    """Every place, seeds outermost: whenever a bench is stopped, all methods have about as many trials."""
    counts = {name: matrix.seeds_for(name) for name in matrix.searched}
    for index, budget, data, space, method in itertools.product(
        range(max(counts.values())), matrix.budgets, matrix.data, matrix.spaces, matrix.searched
    ):
        if index < counts[method]:
            yield Planned(method, space, data, budget, matrix.first_seed + index)


def trials(matrix: Matrix, objects: Objects = Objects()) -> tuple[Trial, ...]:
    """Every trial, in the order of `planned`. Raises UserError."""
    searchers = {name: searcher_named(objects.of(matrix.arm(name).method)) for name in matrix.searched}
    settings = {name: _settings(matrix, name, s) for name, s in searchers.items()}
    limited = matrix.limited
    if matrix.latency_table is not None:
        limited["latency_table"] = table_path(matrix.latency_table)
    found = []
    for place in planned(matrix):
        arm = matrix.arm(place.method)
        request = Request(
            method=_absolute(arm.method, objects),
            space=_absolute(place.space, objects),
            data=_absolute(place.data, objects),
            budget=place.budget,
            epochs=arm.epochs or matrix.epochs,
            batch=matrix.batch,
            seed=place.seed,
            device=matrix.device,
            precision=matrix.precision,
            threads=matrix.threads,
            compare=0,
            compare_seeds=SEEDS,
            protocol=_protocol(matrix, objects.of(place.space)),
            settings=settings[place.method],
            probes=matrix.probes if as_searcher(searchers[place.method]).method else (),
            **limited,
        )
        found.append(Trial(**vars(place), request=request, train=matrix.evaluate != "table", objects=objects))
    return tuple(found)


def slug(text: str) -> str:
    """A file name for a text: itself where it can be one, else with a checksum, so that two texts never share one.

    >>> slug("rf_darts"), slug("my data/set")
    ('rf_darts', 'my_data_set.effdbe')
    """
    safe = re.sub(r"[^\w.]+", "_", text)
    return safe if safe == text else f"{safe}.{zlib.crc32(text.encode()) & 0xFF_FFFF:06x}"


# ------------------------------------------------------------------ helpers


def _settings(matrix: Matrix, name: str, searcher: SearcherLike) -> dict[str, object]:
    """A method's or arm's settings: those for all that it has parts for, then its own.

    A search that asks for cells one by one asks the bench's table, by the metric that selects, unless it has an evaluator of its own.
    """
    asks, supernet = isinstance(searcher, AskTell), as_searcher(searcher).method is not None
    arm, found = matrix.arm(name), dict[str, object]()
    for path, value in matrix.settings.items():
        part = path.partition(".")[0]
        if part in ("space", "data", "train") or (asks if part in ("queries", "evaluator") else supernet):
            found[path] = value
    found |= {**flat(arm.settings), **flat(matrix.settings_of.get(name, {}))}
    told = any(path.removeprefix("method.").partition(".")[0] == "evaluator" for path in found)
    if isinstance(searcher, AskTell) and searcher.evaluator is None and not told and matrix.selects_by_table:
        folder = "none" if matrix.table_folder is None else matrix.table_folder
        found |= {"evaluator": "table", "evaluator.table": matrix.table, "evaluator.metric": matrix.selector}
        found |= {"evaluator.folder": folder}
    return found


def _protocol(matrix: Matrix, space: object) -> str:
    """The name of the protocol: trials record it, so that they stay comparable where the default changes."""
    return BRIEF[spaces.space(space).task] if matrix.protocol == AUTO else matrix.protocol


def _absolute(text: str, objects: Objects) -> str:
    """A path, or FILE.py:FUNCTION, from the root, because a trial may run elsewhere; any other name as it is."""
    if text in objects.parts:
        return text
    path, colon, function = text.rpartition(":") if ".py:" in text else (text, "", "")
    return f"{Path(path).resolve()}{colon}{function}" if Path(path).exists() else text
