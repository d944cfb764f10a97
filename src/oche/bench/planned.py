"""The trials that a matrix makes: one search of each method or arm, space, data, budget and seed."""

from __future__ import annotations

import itertools
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from oche.bench.matrix import Matrix, flat
from oche.methods.ask_tell import AskTell
from oche.plan.named import searcher_named
from oche.plan.request import Request, options
from oche.search.searcher import SearcherLike, as_searcher
from oche.tables import TableLike


@dataclass(frozen=True)
class Trial:
    """One search and the evaluation of its cell, in plain values, so that it can be sent to another machine.

    `method` (an arm's name where it is one) and the rest are as the matrix names them; the request has paths from the root. `given` is
    the bench's table, where that is an object without a name.
    """

    method: str
    space: str
    data: str
    budget: str
    seed: int
    request: Request
    train: bool
    given: TableLike | None = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """What the trial, and its folder, is called."""
        return "-".join(slug(part) for part in (self.method, self.space, self.data, self.budget, str(self.seed)))

    def asked(self) -> dict[str, object]:
        """What the search was asked for."""
        return asked(self.request)


def asked(request: Request) -> dict[str, object]:
    """What decides a trial, as plain values: probes only look, compiled cells give the same, and a trial is of one seed."""
    free = ("probes", "seeds", "pick", "compile")
    table = {f.name: getattr(request, f.name) for f in options(Request) if f.name not in free}
    if request.task is None:  # lines of earlier benches do not have it
        del table["task"]
    return {**table, "settings": {k: v for k, v in request.settings.items() if not k.startswith("probe.")}}


def trials(matrix: Matrix) -> tuple[Trial, ...]:
    """Every trial, seeds outermost: whenever a bench is stopped, all methods have about as many of them. Raises UserError."""
    searchers = {name: searcher_named(matrix.arm(name).method) for name in matrix.searched}
    settings = {name: _settings(matrix, name, s) for name, s in searchers.items()}
    counts = {name: matrix.seeds_for(name) for name in matrix.searched}
    found = []
    for index, budget, data, space, method in itertools.product(
        range(max(counts.values())), matrix.budgets, matrix.data, matrix.spaces, matrix.searched
    ):
        if index >= counts[method]:
            continue
        seed = matrix.first_seed + index
        request = Request(
            method=_absolute(matrix.arm(method).method),
            space=_absolute(space),
            data=_absolute(data),
            budget=budget,
            epochs=matrix.arm(method).epochs or matrix.epochs,
            batch=matrix.batch,
            seed=seed,
            device=matrix.device,
            precision=matrix.precision,
            threads=matrix.threads,
            compare=0,
            protocol=matrix.protocol,
            settings=settings[method],
            probes=matrix.probes if as_searcher(searchers[method]).method else (),
        )
        found.append(Trial(method, space, data, budget, seed, request, matrix.evaluate != "table"))
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


def _absolute(text: str) -> str:
    """A path, or FILE.py:FUNCTION, from the root, because a trial may run elsewhere; any other name as it is."""
    path, colon, function = text.rpartition(":") if ".py:" in text else (text, "", "")
    return f"{Path(path).resolve()}{colon}{function}" if Path(path).exists() else text
