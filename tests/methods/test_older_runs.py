"""Rules that were corrected keep their former meaning in a run.toml that was written before."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from oche import config
from oche.methods.cdarts import Evaluation, PoolsAndSkips
from oche.methods.d_darts import Ablation
from oche.methods.dartopti import dartopti
from oche.methods.idarts import idarts
from oche.methods.oles import BestEpoch, FreezeOverfitted, RememberAccuracy, oles
from oche.methods.rdarts import rdarts
from oche.methods.rlnas import KeepInitial, WidestAngle, rlnas
from oche.methods.snas import snas
from oche.methods.zarts import Trials, zarts
from oche.optim import SGD
from oche.search.method import Method
from oche.spaces.edges import DropPath

ADDED = {"Followed", "StandstillStop", "Temperature", "Terms"}
"""Parts, of several in one slot, that there were not before version 2 of the rules."""

MADE: tuple[Callable[[], Method], ...] = (oles, zarts, rlnas, idarts, snas, dartopti, lambda: rdarts("dp"))


def older(described: object) -> object:
    """The table as version 1 wrote it: without the fields and the parts that it did not have."""
    if isinstance(described, Mapping):
        kind = str(described["type"]) if "type" in described else ""
        return {k: older(v) for k, v in described.items() if (kind, k) not in config.BEFORE}
    if isinstance(described, list):
        return [older(part) for part in described if not (isinstance(part, Mapping) and part["type"] in ADDED)]
    return described


def fields_of(described: object) -> dict[tuple[str, str], object]:
    """(type, field) -> value of every part in a described tree."""
    found: dict[tuple[str, str], object] = {}
    if isinstance(described, Mapping):
        found |= {(str(described.get("type")), k): v for k, v in described.items()}
        for part in described.values():
            found |= fields_of(part)
    if isinstance(described, list):
        for part in described:
            found |= fields_of(part)
    return found


@pytest.mark.parametrize("make", MADE)
def test_a_run_of_before_keeps_the_rules_of_before(make: Callable[[], Method]) -> None:
    method = make()
    table = older(config.describe(method))
    assert isinstance(table, dict)
    then = config.restore(method, table, "run.toml", 1)
    assert config.restore(method, config.describe(method), "run.toml") == method
    for key, value in fields_of(config.describe(then)).items():
        if key in config.BEFORE:
            assert value == config.BEFORE[key][1], key
    kinds = {type(part).__name__ for part in then.callbacks}
    assert not kinds & ADDED


PARTS = (
    Ablation(),
    BestEpoch(),
    DropPath(),
    Evaluation(),
    FreezeOverfitted(),
    KeepInitial(),
    Method(),
    PoolsAndSkips(),
    RememberAccuracy(),
    SGD(),
    Trials(),
    WidestAngle(),
)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part).__name__)
def test_what_a_part_meant_before_is_another_thing_than_its_default(part: object) -> None:
    kind = type(part).__name__
    rows = {field: before for (name, field), (_, before) in config.BEFORE.items() if name == kind}
    assert rows
    for field, before in rows.items():
        assert getattr(part, field) != before, field
