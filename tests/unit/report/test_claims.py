"""Figures and verdicts come from one place, and a score that is no better than naming the commonest class is said to be so."""

from __future__ import annotations

import pytest
import torch

from oche.report.claims import against_rivals, beside, better, by_class, improvement, verdicts, warnings
from oche.tasks import Classify, Segment, mean_iou
from oche.training.evaluate import Score, records_of


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
    assert improvement({**record, "seeds": 2}) == "+4.96 % with two seeds, which say nothing about chance"
    assert improvement({"relative_improvement": 4.96}) == "+4.96 %"


RIVAL = {"title": "DS-CNN", "channels": 9, "parameters": 1000, "multiply_adds": 20_000, "difference": 0.02}
TAKE = "; take DS-CNN, which needs no search: oche train ds_cnn --set space.channels=9"


@pytest.mark.parametrize(
    ("interval", "costs", "said"),
    [
        ([0.01, 0.03], (1000, 20_000), "[+1.00, +3.00]: better than it with these seeds"),
        ([-0.01, 0.05], (1000, 20_000), f"[-1.00, +5.00]: not told apart from it with these seeds{TAKE}"),
        ([-0.03, -0.01], (100, 2_000), f"[-3.00, -1.00]: worse than it with these seeds{TAKE}"),
        (
            [-0.01, 0.05],
            (1000, 16_000),
            "[-1.00, +5.00]: not told apart from it with these seeds; the found network costs less: 100 % of its parameters, 80 % of its "
            "multiply-adds",
        ),
        ([-0.01, 0.05], (1001, 2_000), f"[-1.00, +5.00]: not told apart from it with these seeds{TAKE}"),
    ],
)
def test_a_rival_is_to_be_taken_unless_the_found_network_is_better_or_cheaper(
    interval: list[float], costs: tuple[int, int], said: str
) -> None:
    record = {
        "metric": "accuracy",
        "seeds": 3,
        "found_costs": {"parameters": costs[0], "multiply_adds": costs[1]},
        "rivals": {"ds_cnn": {**RIVAL, "difference_interval": interval}},
    }
    (line,) = against_rivals(record)
    assert line == f"against DS-CNN (1,000 parameters, 20,000 multiply-adds) +2.00 points {said}"
    assert verdicts({**record, "relative_improvement": 1.0}) == ["relative improvement over random cells +1.00 %", line]
    (one,) = against_rivals({**record, "seeds": 1})
    assert one.endswith("+2.00 points with one seed, which says nothing about chance")
    (same,) = against_rivals({**record, "again": "--data photos"})
    assert same == line.replace("oche train ds_cnn", "oche train ds_cnn --data photos")
    (raw,) = against_rivals({**record, "metric": "r2"})
    assert "multiply-adds) +0.02 [" in raw


def test_why_a_rival_is_left_out_is_told() -> None:
    assert verdicts({"left_out": ["MobileNetV2 is too large."]}) == ["MobileNetV2 is too large."]
    assert verdicts({}) == []


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


# ------------------------------------------------------------------ masks, and alpha that stands still


def masks(matrix: list[list[int]]) -> list[dict[str, object]]:
    """What a log has of a network's masks, from their confusion matrix."""
    table = torch.tensor(matrix)
    found = Score("miou", Segment(255).metrics(table), 0.0, tuple(map(tuple, matrix)))
    return records_of(found, Segment(255), [f"c{n}" for n in range(len(matrix))], "segment")


def test_a_network_that_paints_one_class_is_told_though_its_mean_iou_looks_like_something() -> None:
    """1 % of the pixels are of the other class; "49.5 %" is what painting all of them alike gives, and a little more changes nothing."""
    alike = [[9900, 0], [100, 0]]
    assert mean_iou(torch.tensor(alike)) == pytest.approx(0.495)
    said = "The network paints 100.00 % of the pixels as 'c0' and finds 0.00 % of all others: its score says no more than that."
    assert said in warnings(masks(alike))
    assert any("no better than always naming the commonest class" in line for line in warnings(masks(alike)))
    little_more = masks([[9898, 2], [96, 4]])
    assert [line for line in warnings(little_more) if "no better" in line] == []
    assert any("finds 4.00 % of all others" in line for line in warnings(little_more))
    assert warnings(masks([[9880, 20], [30, 70]])) == []
    three = masks([[20, 980, 0], [0, 9000, 0], [0, 500, 0]])
    assert any("'c1' and finds 1.33 % of all others" in line for line in warnings(three))


def test_a_matrix_of_classes_is_not_called_masks() -> None:
    records = records_of(
        Score("accuracy", {"accuracy": 0.99}, 0.0, ((99, 0), (1, 0))), Classify(), ["a", "b"], "classify"
    )
    assert not any("paints" in line for line in warnings(records))


def test_each_class_is_named_with_its_iou_and_of_many_the_worst() -> None:
    assert by_class(masks([[50, 10, 0], [0, 40, 0], [0, 0, 0]])) == "IoU by class: c0 83.33 %, c1 80.00 %, c2 not there"
    matrix = (torch.eye(30, dtype=torch.int64) * 10).tolist()
    matrix[29][0] = 90
    line = by_class(masks(matrix))
    assert line.startswith("IoU by class, the worst 24 of 30: c0 10.00 %, c29 10.00 %, c1 100.00 %")
    assert by_class([{"kind": "test", "accuracy": 1.0}]) == ""


def search_log(entropy: float, arch_loss: float | None = 0.7) -> list[dict[str, object]]:
    return [
        {"kind": "epoch", "entropy": 1.0, "arch_loss": None},
        {"kind": "epoch", "entropy": entropy, "arch_loss": arch_loss},
        {"kind": "supernet", "val_accuracy": 0.5, "alpha_moved": 0.0161},
    ]


def test_alpha_that_stood_still_is_told_unless_the_method_never_steps_it() -> None:
    (said,) = warnings(search_log(0.9994))
    assert said.startswith("Alpha hardly moved (0.016 rms) and is undecided (entropy 0.999 of 1)")
    assert said.endswith(
        "a cell read from it is little better than one drawn at random; search longer, or set a larger arch_optimizer.lr."
    )
    (kept,) = warnings([*search_log(0.9994), {"kind": "network", "val_miou": 0.5}])
    assert "the network that is kept mixes all its candidates nearly alike; search longer" in kept
    assert warnings(search_log(0.95)) == []
    assert warnings(search_log(1.0, arch_loss=None)) == []
    assert warnings(search_log(1.0)[:-1]) == []  # the search has not ended
