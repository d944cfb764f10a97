"""A run's own images: what is wrong and how much, against counts by hand; small pictures; and what a report reads of them."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor, nn

from oche.data import Augment, Data, ImageSet, for_training
from oche.data.overlay import overlaid
from oche.report import samples as shown
from oche.report.facts import headline, wilson
from oche.run import Run
from oche.tasks import Classify, MultiLabel, Regress, Segment, Task
from oche.training import samples
from oche.training.samples import augmented, badness, mistakes, resampled
from reference.tiny import tiny_data, tiny_masks

FABRIC = Fabric(accelerator="cpu", devices=1)


class Says(nn.Module):
    """Answers the first image with the first row of a table, the next with the next, whatever they show."""

    def __init__(self, answers: Tensor) -> None:
        super().__init__()
        self.answers = answers
        self.pixels: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        if not self.pixels:
            self.pixels = list(images.clone())
            return self.answers
        found = [next(i for i, known in enumerate(self.pixels) if torch.equal(known, image)) for image in images]
        return self.answers[found]


def with_targets(targets: Tensor, classes: tuple[str, ...]) -> Data:
    data = tiny_data(len(targets))
    parts = {name: ImageSet.of(getattr(data, name).source.images, targets) for name in ("train", "val", "test")}
    return replace(data, classes=classes, **parts)


def told(network: nn.Module, data: Data, task: Task) -> dict[str, object]:
    found = mistakes(network, data, FABRIC, task)
    assert found is not None
    table = json.loads(found)
    assert isinstance(table, dict)
    return table


def entries(table: dict[str, object]) -> list[dict[str, str]]:
    found = table["entries"]
    assert isinstance(found, list)
    return found


# ---------------------------------------------------------------------- mistakes


def test_the_surest_mistakes_come_first() -> None:
    """Images 1 and 3 are wrong, and 3 with the greater probability."""
    data = with_targets(torch.tensor([0, 1, 2, 0]), ("ant", "bee", "cat"))
    logits = torch.tensor([[5.0, 0, 0], [1, 0, 0], [0, 0, 3], [0, 4, 0]])
    table = told(Says(logits), data, Classify())
    assert (table["wrong"], table["of"]) == (2, 4)
    assert [(e["name"], e["true"], e["said"]) for e in entries(table)] == [
        ("image 3", "ant", "bee"),
        ("image 1", "bee", "ant"),
    ]
    sure = np.exp(4) / (np.exp(4) + 2)
    assert entries(table)[0]["note"] == f"{sure:.0%} sure"


def test_masks_are_wrong_by_their_share_of_valid_pixels() -> None:
    data = tiny_masks(3)
    truth = data.test.take(torch.arange(3))[1].long()
    said = truth.where(truth != 255, 0)
    said[1, 1, :4] = (said[1, 1, :4] + 1) % 3  # 4 of 56 valid pixels
    said[0, 0] = 2  # ignored
    logits = torch.nn.functional.one_hot(said, 3).permute(0, 3, 1, 2).float()
    assert badness(logits, truth, data).tolist() == pytest.approx([0, 4 / 56, 0])
    table = told(Says(logits), data, Segment())
    assert [e["note"] for e in entries(table)] == ["7% of the pixels wrong"]
    assert {"picture", "truth", "painted"} <= set(entries(table)[0])
    assert table["colours"] == [["0", "#800000"], ["1", "#008000"], ["2", "#808000"]]


def test_labels_and_numbers() -> None:
    labels = with_targets(torch.tensor([[1, 0], [1, 1], [0, 0]]), ("red", "round"))
    table = told(Says(torch.tensor([[3.0, -1], [-1, -1], [-1, 2]])), labels, MultiLabel())
    assert [(e["true"], e["said"]) for e in entries(table)] == [("red, round", "(none)"), ("(none)", "round")]
    numbers = replace(with_targets(torch.tensor([[0.0], [1.0]]), ("age",)), target_mean=(40.0,), target_std=(10.0,))
    table = told(Says(torch.tensor([[0.1], [3.0]])), numbers, Regress())
    assert [(e["true"], e["said"]) for e in entries(table)] == [("age 50", "age 70"), ("age 40", "age 41")]


def test_a_task_of_another_kind_says_nothing() -> None:
    assert mistakes(Says(torch.zeros(4, 3)), tiny_data(4), FABRIC, Segment()) is None


def test_resampled_pixels_agree_with_wilson() -> None:
    """For one answer per image the interval is that of a share."""
    right = torch.rand(400, generator=torch.Generator().manual_seed(1)) < 0.8
    tables = torch.stack([torch.tensor([[int(r), int(not r)], [0, 0]]) for r in right])

    class Share(Segment):
        def score(self, confusion: Tensor) -> float:
            return float(confusion[0, 0] / confusion.sum())

    low, high = resampled(tables, Share())
    expected = wilson(float(right.float().mean()), 400)
    assert low == pytest.approx(expected[0], abs=0.01)
    assert high == pytest.approx(expected[1], abs=0.01)


# ---------------------------------------------------------------------- pictures


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_what_augmentation_makes_of_images() -> None:
    """Without augmentation every variation is the image; of different classes one each."""
    data = tiny_data(12, channels=3)
    table = json.loads(augmented(data, Augment(data.mean, data.std), seed=0))
    assert [entry["class"] for entry in table["entries"]][:3] == ["0", "1", "2"]
    for entry in table["entries"]:
        original = np.asarray(opened(entry["original"]))
        assert original.shape == (8, 8, 3)
        assert all(np.abs(np.asarray(opened(v)).astype(int) - original).max() <= 1 for v in entry["varied"])
    assert augmented(data, for_training(data), 1) == augmented(data, for_training(data), 1)
    varied = json.loads(augmented(data, for_training(data), 1))["entries"][0]
    assert any(v != varied["original"] for v in varied["varied"])


def test_masks_lie_over_their_images() -> None:
    data = tiny_masks(4)
    entry = json.loads(augmented(data, for_training(data), 1))["entries"][0]
    assert opened(entry["original"]).mode == "RGB"
    image, mask = torch.full((2, 2, 1), 100, dtype=torch.uint8), torch.tensor([[0, 255], [1, 0]])
    palette = torch.tensor([[200, 0, 0], [0, 200, 0]], dtype=torch.uint8)
    drawn = np.asarray(overlaid(image, mask, palette, ignore=255)).tolist()
    assert drawn == [[[150, 50, 50], [100, 100, 100]], [[50, 150, 50], [150, 50, 50]]]


def test_large_images_become_small_and_the_file_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_data(4, size=(300, 150), channels=3)
    whole = augmented(data, for_training(data), 0)
    entry = json.loads(whole)["entries"][0]
    assert opened(entry["original"]).size == (56, 112)
    assert entry["original"].startswith("data:image/jpeg")
    monkeypatch.setattr(samples, "BOUND", len(whole) // 2)
    less = augmented(data, for_training(data), 0)
    assert len(less) <= len(whole) // 2
    assert len(json.loads(less)["entries"]) < 4


# ---------------------------------------------------------------------- what the report reads


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run.create(tmp_path / "run")
    made.write(Run.CONFIG, b"")
    return made


def test_reports_take_nothing_but_pictures(run: Run) -> None:
    assert shown.augmented(run) == ("", [])
    assert shown.mistakes(run)[2] == []
    bad = {"original": "https://example.org/x.png", "varied": ["data:image/png;base64,AAAA"]}
    good = {"original": "data:image/png;base64,AAAA", "varied": ["javascript:1", 3], "class": "ant", "name": "a.png"}
    run.write(Run.AUGMENTED, json.dumps({"how": "flip", "entries": [bad, good, 7]}).encode())
    how, found = shown.augmented(run)
    assert how == "flip"
    assert [(row.caption, row.varied) for row in found] == [("ant: a.png", ())]
    run.write(Run.MISTAKES, b'{"colours": [["sky", "#0000ff"], ["x", "red;}"], 3]}')
    assert shown.legend(run) == [("sky", "#0000ff")]
    run.write(Run.AUGMENTED, b"[1]")
    assert shown.augmented(run) == ("", [])


@pytest.mark.parametrize(
    ("record", "ends", "said"),
    [
        ({"miou": 0.612, "floor": 0.3}, [0.55, 0.66], "by 61.2 % [55.0, 66.0] (mIoU"),
        (
            {"miou": 0.612, "floor": 0.6},
            [0.55, 0.66],
            "not clearly better than always naming the commonest class (60.0 %).",
        ),
        ({"mean_f1": 0.7, "floor": 0.5}, None, "F1 of 70.0 %"),
        ({"r2": 0.83, "floor": 0.0}, [0.8, 0.86], "R2 of 0.830 [0.800, 0.860]"),
        ({"r2": -0.1, "floor": 0.0}, [-0.2, 0.1], "not clearly better than always answering the mean (0.000)."),
    ],
)
def test_headlines_of_other_scores(run: Run, record: dict[str, float], ends: list[float] | None, said: str) -> None:
    run.write(Run.MISTAKES, json.dumps({"interval": ends} if ends else {}).encode())
    assert said in headline(run, [{"kind": "test", "loss": 1.0, **record}])
