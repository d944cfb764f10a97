"""The order of precedence: what is given explicitly, by an option or in a part of one's own, no budget changes."""

from __future__ import annotations

import inspect
import itertools
import typing
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import pytest

from oche import config
from oche.data import Data
from oche.errors import UserError
from oche.methods import METHODS
from oche.methods.budgets import NAMES, Budget
from oche.methods.darts import darts
from oche.methods.rdarts import rdarts
from oche.optim import SGD, Adam
from oche.plan import named
from oche.plan import resolve as module
from oche.plan.request import Request
from oche.plan.resolve import Plan, resolve
from oche.plan.settings import by_part, differing, layered, within
from oche.schedule import Constant, Cosine
from oche.search.method import Method
from oche.search.searcher import as_searcher
from oche.spaces import SPACES
from reference.tiny import tiny_data, tiny_masks

SMALL, MASKS = tiny_data(), tiny_masks()


def plan(method: object, space: str = "toy", budget: str = "quick", **settings: object) -> Plan:
    given = {path.replace("__", "."): value for path, value in settings.items()}
    data: Data = MASKS if space == "grid" else SMALL
    return resolve(Request(method, space=space, data=data, budget=budget, settings=given))  # type: ignore[arg-type]


# ---------------------------------------------------------------------- every option of every method


def other(hint: object, default: object) -> object:
    """A value that an option of this type may have instead of its default; None where none is known."""
    if typing.get_origin(hint) is Literal:
        return next(choice for choice in typing.get_args(hint) if choice != default)
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return default + 1
    if isinstance(default, float):
        return default / 2 or 0.25
    if default is None and "float" in str(hint):
        return 0.25
    return None


def options() -> Iterator[tuple[str, str, object]]:
    """(method, option, a value other than its default) of every parameter of every factory."""
    for name, factory in METHODS.items():
        if inspect.isclass(factory):
            continue
        hints = config.annotations_of(factory)
        for parameter in inspect.signature(factory).parameters.values():
            yield name, parameter.name, other(hints[parameter.name], parameter.default)


WITHOUT = {("cdarts", "cells"), ("distilled_darts", "teacher"), ("oncenas", "device")}
"""Options of other types, which tests of their methods set."""


def test_every_option_has_a_value_to_try() -> None:
    assert {(method, option) for method, option, value in options() if value is None} == WITHOUT


@pytest.mark.parametrize(("method", "option", "value"), [row for row in options() if row[2] is not None])
def test_an_option_is_seen_in_every_space_and_budget(method: str, option: str, value: object) -> None:
    """What the option changes in the method as its factory builds it stands in the resolved run, whatever the budget sets."""
    factory = METHODS[method]
    for space, budget in itertools.product(SPACES, NAMES):
        row = by_part(module._budget(budget, named.method(method), space, SMALL).settings).get("method", {})
        beside = {n: v for n, v in row.items() if n in inspect.signature(factory).parameters and n != option}
        try:
            expected = factory(**beside, **{option: value})
            reached = list(differing(factory(**beside), expected))
        except UserError:  # the option needs another beside it
            continue
        if (part := as_searcher(expected).method) and space in part.unfit:
            continue
        found = found_in(method, space, budget, {option: value})
        assert {path: at(found, path) for path in reached} == {path: at(expected, path) for path in reached}, (
            space,
            budget,
        )


def found_in(method: str, space: str, budget: str, options: dict[str, object]) -> object:
    """The searcher of the resolved run; a whole run is resolved once for each option, since that takes time."""
    if (space, budget) == ("nb201", "paper"):
        return plan(method, space, budget, **{f"method.{name}": value for name, value in options.items()}).searcher
    found = named.method(method)
    return module._searcher(
        found, module._budget(budget, found, space, SMALL), {"method": options}, None, config.RULES
    )[0]


def at(part: object, path: str) -> object:
    for name in path.split("."):
        part = getattr(part, name)
    return part


def test_an_option_given_as_its_default_is_explicit_too() -> None:
    assert METHODS["rf_darts"]().trainable.classifier is False  # type: ignore[union-attr]
    assert method_of(plan("rf_darts", budget="quick")).trainable.classifier  # type: ignore[attr-defined]
    assert not method_of(plan("rf_darts", budget="quick", method__classifier=False)).trainable.classifier  # type: ignore[attr-defined]


def method_of(p: Plan) -> Method:
    method = as_searcher(p.searcher).method
    assert method is not None
    return method


# ---------------------------------------------------------------------- parts of one's own


MINE = replace(darts(), name="mine", arch_optimizer=Adam(0.1), weight_lr=Constant(0.3), clip=None, space={"cells": 2})


@pytest.mark.parametrize("budget", NAMES)
@pytest.mark.parametrize("space", ["toy", "nb201", "darts", "grid"])
def test_what_a_method_of_ones_own_sets_no_budget_changes(space: str, budget: str) -> None:
    mine = replace(MINE, space={}) if space == "grid" else MINE
    found = plan(mine, space, budget)
    method = method_of(found)
    assert (method.arch_optimizer.lr, method.weight_lr, method.clip) == (0.1, Constant(0.3), None)  # type: ignore[attr-defined]
    assert getattr(found.space, "cells", 2) == 2
    assert found.request.method == "mine"
    assert found.objects == ("method", "data")


def test_what_it_leaves_open_a_budget_sets_and_settings_go_before() -> None:
    found = method_of(plan(MINE, "nb201", "paper"))
    assert found.weight_optimizer == SGD(0.9, 5e-4, True)
    assert method_of(plan(MINE, "nb201", "paper", arch_optimizer__lr=0.5)).arch_optimizer == Adam(0.5)


def test_a_space_of_ones_own_keeps_its_size() -> None:
    space = replace(SPACES["nb201"](), channels=7, cells=2)  # type: ignore[call-arg]
    found = resolve(Request("darts", space=space, data=SMALL, budget="quick"))
    assert (getattr(found.space, "channels", 0), getattr(found.space, "cells", 0)) == (7, 2)
    assert found.space.inputs == SMALL.channels
    assert as_searcher(found.searcher).method.arch_optimizer.lr == 3e-3  # type: ignore[union-attr]


# ---------------------------------------------------------------------- a budget's row


def row(monkeypatch: pytest.MonkeyPatch, **settings: object) -> None:
    chosen = Budget(3, 8, {path.replace("__", "."): value for path, value in settings.items()})
    monkeypatch.setattr(module, "_budget", lambda *_: chosen)


def test_a_row_may_set_options_order_operations_and_whole_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    row(monkeypatch, method__K=2, arch_first=False, space__without=("none",), weight_lr=Cosine(0.2), weight_lr__end=0.1)
    found = plan("pcdarts", "nb201")
    method = method_of(found)
    assert (method.edge.K, method.arch_first, method.weight_lr) == (2, False, Cosine(0.2, 0.1))  # type: ignore[attr-defined]
    assert "none" not in found.space.groups[0].ops[0]
    assert [str(change) for change in found.changed][:2] == ["space.without () -> ('none',)", "method.K 4 -> 2"]
    assert method_of(plan("pcdarts", "nb201", method__K=3)).edge.K == 3  # type: ignore[attr-defined]


def test_a_row_s_setting_within_a_part_that_was_given_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    row(monkeypatch, weight_lr__start=0.2, arch_optimizer__nothing=1)
    method = method_of(resolve(Request("darts", data=SMALL, settings={"weight_lr": Constant(0.5)})))
    assert method.weight_lr == Constant(0.5)


def test_what_a_budget_changed_is_told() -> None:
    said = [str(change) for change in plan("darts", "nb201", "paper").changed]
    assert "weight_optimizer.weight_decay 0.0003 -> 0.0005" in said
    assert "space.cells 5 -> 5" not in said
    assert plan("darts", "nb201", "paper", weight_optimizer__weight_decay=0.1).changed != ()
    assert not any(
        "weight_decay" in str(c) for c in plan("darts", "nb201", "paper", weight_optimizer__weight_decay=0.1).changed
    )


def test_strength_is_seen_where_the_budget_sets_weight_decay() -> None:
    given = rdarts(strength=0.0081).weight_optimizer
    assert (
        method_of(plan("rdarts", "nb201", "paper", method__strength=0.0081)).weight_optimizer.weight_decay
        == given.weight_decay
    )  # type: ignore[attr-defined]


# ---------------------------------------------------------------------- the function


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    steps: int = 1


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    size: int = 3


def test_layers() -> None:
    got, changes = layered(Outer(), "outer", budget={"inner.rate": 0.2, "inner.gone": 1, "size": 4}, given={"size": 5})
    assert got == Outer(Inner(0.2), 5)
    assert [str(c) for c in changes] == ["inner.rate 0.1 -> 0.2"]
    assert layered(Outer(), "outer", budget={"inner.rate": 0.2}, kept=["inner"])[0] == Outer()
    assert layered(Outer(), "outer", budget={"inner": Inner(0.5, 9)}, kept=["inner.rate"])[0] == Outer()
    assert layered(Outer(), "outer", budget={"inner": Inner(0.5, 9)}, given={"inner.steps": 2})[0] == Outer(
        Inner(0.5, 2)
    )
    assert layered(Outer(), "outer", given={"size": 4}, recorded=config.describe(Outer(size=8)))[0] == Outer(size=8)
    with pytest.raises(UserError, match="did you mean 'size'"):
        layered(Outer(), "outer", given={"sise": 4})


def test_paths() -> None:
    assert within("a.b", "a")
    assert not within("ab", "a")
    assert list(differing(Outer(), Outer(Inner(0.2), 3))) == ["inner.rate"]
    assert list(differing(Outer(), Outer(Inner(), 4))) == ["size"]
