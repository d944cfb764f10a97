"""docs/methods/published.toml against what `--budget paper` resolves to, for every method and space in the table."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

from oche import config
from oche.methods import METHODS
from oche.plan.request import Request
from oche.plan.resolve import Plan, resolve
from oche.search.method import Method
from oche.search.searcher import as_searcher
from oche.search.stages import Staged
from reference.tiny import tiny_data

FILE = Path(__file__).parents[2] / "docs" / "methods" / "published.toml"
TABLE: dict[str, dict[str, dict[str, dict[str, object]]]] = tomllib.loads(FILE.read_text(encoding="utf-8"))
ROWS = [(method, space) for method, spaces in TABLE.items() for space in spaces]


@cache
def plan(method: str, space: str) -> Plan:
    """What `--budget paper` makes of the method; "imagenet" is the DARTS space on large images."""
    large = space == "imagenet"
    data = tiny_data(count=4, size=(128, 128) if large else (8, 8))
    return resolve(Request(method, space="darts" if large else space, data=data, budget="paper"))


def resolved(plan: Plan) -> dict[str, object]:
    """All that was resolved, by setting path: the method's slots, and epochs, batch, space, stages, choose and ops beside them."""
    searcher = plan.searcher
    table = dict(config.describe(as_searcher(searcher).method))
    if isinstance(searcher, Staged):
        own = config.describe(searcher)
        table |= {"stages": own["stages"], "choose": own["choose"]}
    first = plan.space.groups[0].ops[0]
    return table | {
        "epochs": plan.epochs,
        "batch": plan.batch,
        "space": config.describe(plan.space),
        "ops": sorted(first),
    }


def name(described: object) -> object:
    """A part by the name of its type, all else as it is."""
    if isinstance(described, Mapping):
        return re.split(r"[:.]", str(described["type"]))[-1]
    return list(described) if isinstance(described, tuple) else described


def at(table: object, path: str) -> object:
    """The value at `callbacks.Game.momentum`: by field, and in a list by the name of a part's type."""
    for step in path.split("."):
        if isinstance(table, Mapping):
            table = table[step]
        else:
            assert isinstance(table, list)
            (table,) = (part for part in table if name(part) == step)
    return name(table)


@pytest.mark.parametrize(("method", "space"), ROWS)
def test_the_paper_budget_is_what_was_published(method: str, space: str) -> None:
    table = resolved(plan(method, space))
    wrong = {}
    for path, row in TABLE[method][space].items():
        found, wanted = at(table, path), row["value"]
        if path == "ops":
            assert isinstance(wanted, list)
            wanted = sorted(wanted)
        if (found, type(found)) != (wanted, type(wanted)):
            wrong[path] = (found, wanted, row["source"])
    assert not wrong


@pytest.mark.parametrize(("method", "space"), ROWS)
def test_every_constant_has_a_source(method: str, space: str) -> None:
    """A file and line, a paper, or "ours" and why."""
    for path, row in TABLE[method][space].items():
        assert row.keys() == {"value", "source"}, path
        assert re.search(r"^[\w.-]+/[\w.-]+ .+:\d+$|^arXiv \d{4}\.\d+, .+|^ours: .+", str(row["source"])), (path, row)


@pytest.mark.parametrize(("method", "space"), ROWS)
def test_a_budget_s_settings_are_all_in_the_table(method: str, space: str) -> None:
    """What a budget sets is what was published, so it has its source; its options show in the parts that they make."""
    from oche.methods import budgets

    own = budgets(method)["paper"]
    settings = own[space].settings if space in own else {}
    missing = [path for path in settings if not path.startswith("method.") and path not in TABLE[method][space]]
    assert not missing


@pytest.mark.parametrize("budget", ["paper", "quick"])
def test_the_pick_of_four_searches_four_times_as_long(budget: str) -> None:
    """R-DARTS is four searches of full length, one at each strength."""
    for space in ("darts", "nb201"):
        one, four = (
            resolve(Request(method, space=space, data=tiny_data(), budget=budget))
            for method in ("rdarts", "rdarts_pick")
        )
        assert four.epochs == 4 * one.epochs


def test_the_table_knows_no_other_methods() -> None:
    assert set(TABLE) <= set(METHODS)
    assert isinstance(as_searcher(METHODS["darts"]()).method, Method)
