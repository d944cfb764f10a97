"""random_features() changes what learns and nothing else, on any method with a supernet."""

from __future__ import annotations

from dataclasses import replace

import pytest

from oche.errors import UserError
from oche.methods import METHODS, budgets, method_named, random_features
from oche.methods.budgets import QUICK as OF_BASES
from oche.methods.random_features import QUICK
from oche.methods.random_sampling import RandomSampling
from oche.optim import Adam
from oche.plan.request import Request
from oche.plan.resolve import resolve
from oche.search.method import Method
from oche.search.trainable import BatchNormOnly
from reference.tiny import tiny_data

GRADIENT = [name for name, build in METHODS.items() if isinstance(build(), Method) and not name.startswith("rf_")]


@pytest.mark.parametrize("name", GRADIENT)
def test_only_the_trainable_differs_from_the_base(name: str) -> None:
    base, frozen = method_named(name), method_named(f"rf_{name}")
    assert isinstance(base, Method)
    assert isinstance(frozen, Method)
    assert frozen.trainable == BatchNormOnly()
    assert replace(frozen, name=base.name, trainable=base.trainable, papers=base.papers) == base
    assert frozen.papers == (*base.papers, "zhang2023rfdarts")


def test_the_named_instances_are_the_base_with_random_features() -> None:
    for name in ("darts", "pcdarts"):
        assert METHODS[f"rf_{name}"]() == random_features(METHODS[name]())


@pytest.mark.parametrize("name", GRADIENT)
def test_its_budgets_are_the_base_s_but_for_the_quick_one(name: str) -> None:
    """Batch norm alone learns slowly; what was published is the base's."""
    assert budgets(f"rf_{name}") == {**budgets(name), "quick": QUICK}
    assert budgets(name)["paper"] != QUICK


def test_every_space_that_has_a_quick_budget_has_one_for_random_features() -> None:
    """By the base's rate a supernet of chain stayed at chance, 10 % of ten classes, and one of grid at 12 % mIoU (27 and 26 by these)."""
    assert QUICK.keys() == OF_BASES.keys()
    for space, row in QUICK.items():
        assert (row.settings["trainable.classifier"], row.settings["weight_lr.start"], row.settings["arch_start"]) == (
            True,
            0.5,
            0.4,
        )
        sizes = [
            {path: value for path, value in of.settings.items() if path.startswith("space.")}
            for of in (row, OF_BASES[space])
        ]
        assert sizes[0] == sizes[1]


def test_the_quick_budget_is_the_one_that_was_measured() -> None:
    """docs/choose.md: the classifier trained, a rate of 0.5, alpha held for the first 40 %."""
    method = resolve(Request("rf_darts", space="nb201", data=tiny_data(), budget="quick")).searcher
    assert isinstance(method, Method)
    assert method.trainable == BatchNormOnly(classifier=True)
    assert (method.weight_lr(0.0), method.arch_start) == (0.5, 0.4)
    assert method.arch_optimizer == Adam(3e-2)


def test_switches_reach_the_trainable() -> None:
    method = random_features(METHODS["darts"](), classifier=True, stem=True, pool_bn=False, initialiser="orthogonal")
    assert method.trainable == BatchNormOnly(classifier=True, stem=True, pool_bn=False, initialiser="orthogonal")


def test_a_searcher_without_a_supernet_is_refused() -> None:
    with pytest.raises(UserError, match="Random features need a supernet"):
        random_features(RandomSampling())
