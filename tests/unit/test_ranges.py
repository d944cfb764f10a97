"""Numbers out of range: every setting that has a range refuses what lies outside, with its path, by every way in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace

import pytest
from annotated_types import Ge, Gt, Le, Lt

from oche import config
from oche.errors import UserError
from oche.methods import METHODS
from oche.optim import SGD
from oche.plan.request import Request, TrainRequest
from oche.plan.resolve import resolve
from oche.plan.training import resolve_training
from oche.schedule import Constant, Linear
from oche.search.method import Method
from oche.tasks import Segment
from oche.training.protocols import PROTOCOLS, Protocol


def numbers(part: object) -> Iterator[tuple[object, str, object, object]]:
    """(holder, field, value, annotation) of each field of a tree of parts that is one number."""
    hints = config.annotations_of(type(part))
    for f in fields(part):  # type: ignore[arg-type]
        value = getattr(part, f.name)
        for inner in value if isinstance(value, tuple) else (value,):
            if is_dataclass(inner) and not isinstance(inner, type):
                yield from numbers(inner)
        if f.init and f.repr and isinstance(value, int | float) and not isinstance(value, bool):
            yield part, f.name, value, hints[f.name]


def limits(hint: object) -> list[object]:
    """The bounds in an annotation, also in one that may be none."""
    own = list(getattr(hint, "__metadata__", ()))
    return own or [limit for inner in getattr(hint, "__args__", ()) for limit in getattr(inner, "__metadata__", ())]


TREES = {
    **{f"method {name}": make() for name, make in METHODS.items()},
    **{f"train {n}": p for n, p in PROTOCOLS.items()},
}


@pytest.mark.parametrize("tree", TREES)
def test_what_is_shipped_lies_within_its_ranges(tree: str) -> None:
    assert config.checked(TREES[tree], tree) is TREES[tree]


@pytest.mark.parametrize("tree", TREES)
def test_just_outside_of_each_range_is_refused(tree: str) -> None:
    for holder, name, _, hint in numbers(TREES[tree]):
        for limit in limits(hint):
            match limit:
                case Ge(ge=low):
                    outside = low - 1  # type: ignore[operator]
                case Gt(gt=low):
                    outside = low
                case Le(le=high):
                    outside = high + 1  # type: ignore[operator]
                case Lt(lt=high):
                    outside = high
                case _:
                    raise AssertionError(limit)
            broken = object.__new__(type(holder))  # a part's own checks are not what is tried here
            for f in fields(holder):  # type: ignore[arg-type]
                object.__setattr__(broken, f.name, outside if f.name == name else getattr(holder, f.name))
            with pytest.raises(UserError, match=rf"{name} must be .* not {outside}"):
                config.checked(broken, tree)


def test_each_number_with_a_limit_of_its_kind_is_counted() -> None:
    held = {(type(p).__name__, f) for tree in TREES.values() for p, f, _, hint in numbers(tree) if limits(hint)}
    assert {
        ("SGD", "momentum"),
        ("Protocol", "clip"),
        ("Method", "clip"),
        ("PartialChannels", "K"),
        ("Adam", "lr"),
    } <= held
    assert len(held) > 60


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_is_infinite(value: float) -> None:
    with pytest.raises(UserError, match=r"momentum must be"):
        config.checked(SGD(momentum=value), "train")
    with pytest.raises(UserError, match="class_weights must be"):
        config.checked(replace(Segment(), class_weights=(1.0, value if value > 0 else math.nan)), "task")


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"clip": 0}, "clip must be float above 0 or none, not 0"),
        ({"clip": "nan"}, "clip must be float above 0 or none"),
        ({"weight_optimizer.momentum": 1}, "momentum must be float from 0 to below 1, not 1"),
        ({"weight_lr.start": -0.1}, "weight_lr: a learning rate is finite and at least 0"),
        ({"arch_start": 2}, "arch_start"),
        ({"train.drop_path": 1.5}, "train: drop_path must be float from 0 to below 1, not 1.5"),
        ({"train.label_smoothing": 2}, "train: label_smoothing must be float from 0 to 1, not 2"),
        ({"train.lr.start": "nan"}, "lr.start must be float"),
        ({"train.lr.start": -1}, "train: lr: a learning rate is finite and at least 0"),
        ({"train.optimizer.weight_decay": -1}, "train: optimizer.weight_decay must be float of at least 0, not -1"),
        ({"train.cutout": -4}, "train: cutout must be int of at least 0, not -4"),
        ({"train.auxiliary": -1}, "train: auxiliary must be float of at least 0, not -1"),
        ({"train.epochs": -1}, "A training needs at least one epoch and batches of two images; given epochs=-1"),
        ({"train.batch": 1}, "A training needs at least one epoch and batches of two images; given epochs="),
        ({"arch_optimizer.betas": [0.5, 2]}, "arch_optimizer.betas must be tuple of float from 0 to below 1"),
        ({"task.label_smoothing": 1.5}, "task: label_smoothing must be float from 0 to 1, not 1.5"),
    ],
)
def test_settings_of_a_search_are_refused(setting: dict[str, object], says: str) -> None:
    with pytest.raises(UserError) as told:
        resolve(Request(method="darts", space="toy", data="digits", settings=setting))
    assert says in str(told.value)


def test_an_option_of_a_method_is_held_to_the_range_of_the_part_that_it_sets() -> None:
    with pytest.raises(UserError, match=r"pcdarts: edge\.K must be int of at least 1, not 0"):
        resolve(Request(method="pcdarts", space="nb201", data="digits", settings={"method.K": 0}))


def test_a_training_refuses_them_too() -> None:
    with pytest.raises(UserError, match="clip must be float above 0 or none, not 0"):
        resolve_training(TrainRequest("NB201_9930", space="nb201", data="digits", settings={"train.clip": 0}))


def test_parts_of_your_own_in_python_are_held_to_them() -> None:
    with pytest.raises(UserError, match=r"weight_optimizer\.momentum must be"):
        resolve(Request(method=Method(weight_optimizer=SGD(momentum=1.5)), space="toy", data="digits"))


def test_a_rate_that_becomes_negative_late_is_found() -> None:
    with pytest.raises(UserError, match=r"after 51 % of it this one is -0\.001"):
        Protocol(1, 2, Linear(0.05, -0.05))
    assert Protocol(1, 2, Constant(0.0)).lr(0.5) == 0
