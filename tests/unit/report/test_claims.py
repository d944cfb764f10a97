"""Figures and verdicts come from one place, and a score that is no better than naming the commonest class is said to be so."""

from __future__ import annotations

import pytest
import torch

from oche.report.claims import beside, better, improvement, warnings
from oche.tasks import Classify, Segment, mean_iou
from oche.training.evaluate import Score


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((0.01, 3.0), "better than"),
        ((-3.0, -0.01), "worse than"),
        ((0.0, 3.0), "not told apart from"),
        ((-1.0, 0.0), "not told apart from"),
    ],
)
def test_a_difference_counts_where_its_interval_excludes_zero(interval: tuple[float, float], said: str) -> None:
    assert better(interval) == said


def test_one_seed_says_nothing_and_old_logs_have_no_interval() -> None:
    record = {"relative_improvement": 4.96, "relative_improvement_interval": [4.96, 4.96]}
    assert improvement({**record, "seeds": 1}) == "+4.96 % with one seed, which says nothing about chance"
    assert improvement({"relative_improvement": 4.96}) == "+4.96 %"


def score(confusion: list[list[int]], metric: str = "accuracy") -> Score:
    return Score(metric, {}, 0.0, tuple(map(tuple, confusion)))


def test_the_floor_is_the_score_of_a_network_that_names_the_commonest_class() -> None:
    found = score([[1, 9, 0], [2, 18, 0], [5, 0, 5]])
    assert found.floor(Classify()) == pytest.approx(20 / 40)
    constant = torch.tensor([[0, 10, 0], [0, 20, 0], [0, 10, 0]])
    assert score([[1, 9, 0], [2, 18, 0], [5, 0, 5]], "miou").floor(Segment(255)) == pytest.approx(mean_iou(constant))
    assert found.honest(Classify()) == {"metric": "accuracy", "floor": 0.5, "predicted": 3, "classes": 3}
    assert score([[0, 9], [0, 18]]).honest(Classify())["predicted"] == 1


def test_a_network_that_names_one_class_is_told() -> None:
    record = {"kind": "test", "accuracy": 0.2083, "metric": "accuracy", "floor": 0.2083, "predicted": 1, "classes": 5}
    said = "no better than always naming the commonest class (20.83 %); it names 1 of 5 classes"
    assert beside(record) == said
    assert warnings([record]) == [f"The network is {said}: it has not learned."]


def test_a_supernet_at_the_floor_is_told_and_one_above_it_is_not() -> None:
    record = {"kind": "supernet", "val_accuracy": 0.1, "floor": 0.1}
    assert warnings([record]) == [
        "The supernet is no better than always naming the commonest class (10.00 %): it has not learned."
    ]
    assert warnings([record | {"val_accuracy": 0.11}]) == []
    assert warnings([{"kind": "supernet", "val_accuracy": 0.1}]) == []  # an old log has no floor


def test_the_monitors_last_warning_comes_first() -> None:
    records = [{"kind": "epoch", "warning": "early"}, {"kind": "epoch", "warning": "late"}, {"kind": "epoch"}]
    assert warnings(records) == ["late"]
