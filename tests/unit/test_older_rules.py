"""Runs of older rules resume as they would have: what a field meant before it was there, and parts that a method no longer has."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace

import pytest

from oche import config
from oche.errors import UserError
from oche.methods import METHODS
from oche.methods.darts_aer import Entropy, darts_aer
from oche.methods.gdas import gdas
from oche.methods.shapley_nas import Game, shapley_nas
from oche.schedule import Cosine
from oche.search.bilevel import FirstOrder
from oche.search.selection import TopK
from oche.spaces.edges import WeightedSum


def without(described: object, names: set[str]) -> object:
    """A described part as an older oche wrote it: without these fields, at any depth."""
    if isinstance(described, Mapping):
        return {name: without(part, names) for name, part in described.items() if name not in names}
    return [without(part, names) for part in described] if isinstance(described, list) else described


def test_gdas_of_older_rules_has_the_parts_it_had() -> None:
    old = replace(gdas(scalars=False), selection=TopK(), callbacks=())
    table = config.describe(old)
    assert config.restore(gdas(), table, "run.toml", rules=1) == old
    with pytest.raises(UserError, match=r"TopK.* there but StrongestPairs here|has 1 parts here"):
        config.restore(gdas(), table, "run.toml", rules=config.RULES)


def test_shapley_nas_of_older_rules_plays_after_the_epoch_on_one_batch() -> None:
    game = Game(10, 1024, before=False, fresh=False, initial=0.0, correction=0)
    old = replace(shapley_nas(), edge=WeightedSum(), callbacks=(game,), space={})
    table = without(config.describe(old), {"before", "fresh", "initial", "correction"})
    assert isinstance(table, dict)
    found = config.restore(shapley_nas(), table, "run.toml", rules=1)
    assert (found.edge, found.callbacks) == (WeightedSum(), (game,))


def test_darts_aer_of_older_rules_is_of_first_order_and_counts_none() -> None:
    term = Entropy(Cosine(-0.2, 0.2, ramp="cosine"), derivable=False)
    old = replace(darts_aer(), arch_gradient=FirstOrder(), callbacks=(), selection=TopK(), outer_terms=(term,))
    table = without(config.describe(old), {"derivable", "ramp"})
    assert isinstance(table, dict)
    found = config.restore(darts_aer(), table, "run.toml", rules=1)
    assert replace(found, weight_lr=old.weight_lr) == old
    assert found.weight_lr == replace(old.weight_lr, ramp="cosine")  # type: ignore[type-var]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_today_is_restored_under_both_rules(name: str) -> None:
    searcher = METHODS[name]()
    table = config.describe(searcher)
    for rules in range(1, config.RULES + 1):
        assert config.restore(searcher, table, "run.toml", rules=rules) == searcher


@pytest.mark.parametrize(("part", "field"), config.BEFORE)
def test_what_a_field_meant_is_of_a_field_that_there_is(part: str, field: str) -> None:
    types = {
        t
        for name, module in list(sys.modules.items())
        if name.startswith("oche")
        for t in vars(module).values()
        if isinstance(t, type) and is_dataclass(t) and t.__name__ == part
    }
    having = [t for t in types if field in {f.name for f in fields(t)}]
    assert having
    since, before = config.BEFORE[part, field]
    assert 1 < since <= config.RULES
    for t in having:
        (own,) = (f for f in fields(t) if f.name == field)
        assert own.default != before, "the default is the new rule"
