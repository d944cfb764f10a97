"""What "auto" stands for: masks take a default that fits them, said in one line, and whatever is given goes before it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from oche import config
from oche.data import Data, ImageSet
from oche.plan.chosen import levels_for
from oche.plan.parts import form_of
from oche.plan.request import Request
from oche.plan.resolve import resolve
from oche.spaces.grid import GridSpace
from oche.tasks import Segment
from reference.tiny import tiny_data, tiny_masks


def scenes(size: tuple[int, int] = (24, 24), spot: int = 2) -> Data:
    """Masks of ground with a square of `spot` x `spot` pixels of the second class."""
    data = tiny_masks(8, size, classes=2)
    masks = torch.zeros(8, *size, dtype=torch.uint8)
    masks[:, 3 : 3 + spot, 5 : 5 + spot] = 1
    images = data.train.take(torch.arange(8))[0]
    part = ImageSet.of(images, masks)
    return replace(data, train=part, val=part, test=part)


def grid(request: Request) -> tuple[GridSpace, Segment]:
    plan = resolve(request)
    assert isinstance(plan.space, GridSpace)
    assert isinstance(plan.task, Segment)
    return plan.space, plan.task


def test_masks_take_a_method_a_size_and_a_loss_that_fit_them() -> None:
    plan = resolve(Request(data=scenes(), budget="quick"))
    assert (plan.request.method, plan.request.space, plan.compare) == ("single_stage", "grid", 0)
    assert plan.space.levels == 2  # type: ignore[attr-defined]
    assert plan.task == Segment(dice=1.0)
    share = 4 / (24 * 24)
    assert plan.chosen == (
        "single_stage, for the data have masks; strides up to 8 at 24x24 (space.levels=2); cross-entropy + Dice, for few pixels are "
        f"'1' {share:.1%} (task.dice=1; task.dice=0 leaves it out)"
    )
    assert config.loads(config.dumps(plan.table()), "")["resolved"]["chosen"] == plan.chosen  # type: ignore[index]


def test_classes_take_the_default_of_before() -> None:
    plan = resolve(Request(data=tiny_data(), budget="smoke"))
    assert (plan.request.method, plan.request.space, plan.chosen) == ("rf_darts", "nb201", "")
    assert "chosen" not in plan.table()["resolved"]  # type: ignore[operator]


def test_whatever_is_given_goes_before_it() -> None:
    named = resolve(Request("darts", data=scenes(), budget="smoke"))
    assert (named.searcher.name, named.task, named.chosen) == ("darts", Segment(), "")
    typed = resolve(Request("single_stage", data=scenes(), budget="quick"))
    assert (typed.space.levels, typed.task) == (4, Segment())  # type: ignore[attr-defined]
    space, task = grid(Request(data=scenes(), settings={"space.levels": 4, "task.dice": 0.0}))
    assert (space.levels, task) == (4, Segment())
    space, task = grid(Request(data=scenes(), settings={"task.ohem": 0.7, "space.layers": 3}))
    assert (space.levels, space.layers, task) == (2, 3, Segment(ohem=0.7))


def test_a_budget_with_less_stays_and_no_rare_class_leaves_the_loss() -> None:
    space, _ = grid(Request(data=scenes((64, 64)), budget="smoke"))
    assert space.levels == 3
    _, task = grid(Request(data=scenes(spot=12), budget="smoke"))
    assert task == Segment()


def test_what_was_chosen_is_repeated_from_run_toml_and_given_on_to_a_training() -> None:
    data = scenes()
    plan = resolve(Request(data=data, budget="smoke"))
    again = resolve(replace(plan.request, data=data), plan.table())
    assert (again.searcher, again.space, again.task) == (plan.searcher, plan.space, plan.task)
    assert plan.request.settings == {"task.dice": 1.0}  # `oche train RUN` takes over what begins with "task."


@pytest.mark.parametrize("form", ["classify", "segment"])
def test_auto_goes_by_what_the_data_hold(form: str) -> None:
    assert form_of(tiny_masks() if form == "segment" else tiny_data()) == form


def test_the_coarsest_map_has_two_rows_and_little_padding() -> None:
    """Against the maps that the grid of so many levels has."""
    for height in range(8, 200, 9):
        for width in (height, height + 31):
            fits = []
            for levels in range(1, 5):
                space = GridSpace(outputs=2, size=(height, width), layers=6, levels=levels)
                stride = 4 << space.coarsest
                rows, columns = -(-height // stride), -(-width // stride)
                added = rows * columns * stride**2 - height * width
                if min(height, width) // stride >= 2 and 4 * added <= height * width:
                    fits.append(levels)
            assert levels_for((height, width)) == max(fits, default=1)


def test_few_images_get_more_epochs_unless_they_are_given() -> None:
    """1,200 batches of 8 images, by hand: 24 images are 3 batches, 480 are 60."""
    few = tiny_masks(24)
    assert [resolve(Request(data=data)).epochs for data in (few, tiny_masks(480))] == [400, 60]
    assert resolve(Request(data=few, epochs=7)).epochs == 7
    plan = resolve(Request(data=few, batch=16))
    assert plan.epochs == 600
    recorded = {**plan.table(), "resolved": {"epochs": 500, "batch": 16}}
    assert resolve(Request(data=few, batch=16), recorded).epochs == 500
