"""Counts: points, density maps and counts against loops over pixels, the task by hand, a search end to end, and what is refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import oche
from oche.base import counted
from oche.cli.check import counts_table, ledger_rows
from oche.data import for_search, for_training, load, none
from oche.data.augmentation.augment_counts import AugmentCounts
from oche.data.contract import Contract
from oche.data.reading.counts import of_map, of_points
from oche.errors import UserError
from oche.plan.parts import space_for, task_for, usual_space
from oche.spaces import SPACES, SignalSpace
from oche.spaces.heads import Density
from oche.spaces.sampling import sample
from oche.tasks import Count, Regress
from oche.training.export import export_network


def scene(root: Path, count: int = 24, size: tuple[int, int] = (16, 20)) -> Path:
    """Images of bright pixels with a table of where they are; every fifth shows none."""
    rng, lines = np.random.default_rng(1), ["file,x,y"]
    root.mkdir()
    for n in range(count):
        image = np.full(size, 40, np.uint8)
        for _ in range(n % 5):
            row, column = int(rng.integers(size[0])), int(rng.integers(size[1]))
            image[row, column] = 250
            lines.append(f"{n:02d}.png,{column + 0.5},{row + 0.5}")
        Image.fromarray(image).save(root / f"{n:02d}.png")
    (root / "points.csv").write_text("\n".join(lines) + "\n")
    return root


# ---------------------------------------------------------------------- what is read


def test_points_become_numbers_of_places(tmp_path: Path) -> None:
    data = load(scene(tmp_path / "scene"))
    assert (data.task, data.grid, data.outputs, data.size, data.classes) == ("count", (4, 5), 20, (16, 20), ("count",))
    assert data.target_mean is not None
    assert data.target_std is not None
    lines = [line.split(",") for line in (tmp_path / "scene/points.csv").read_text().split()[1:]]
    for part, name in ((data.train, "train"), (data.val, "val"), (data.test, "test")):
        for row, file in zip(part.targets, data.identities[name].names, strict=True):
            counts = row.double() * data.target_std[0] + data.target_mean[0]
            expected = torch.zeros(4, 5, dtype=torch.float64)
            for own, x, y in lines:
                if own == file:
                    expected[int(float(y)) // 4, int(float(x)) // 4] += 1
            torch.testing.assert_close(counts.view(4, 5), expected, atol=1e-6, rtol=1e-6)
    assert any("0 to 4 objects per train image" in note and "in 4x5 places" in note for note in data.notes)
    assert ("used", "24 train images") in ledger_rows(data)
    assert counts_table(data).row_count == 1
    assert Contract.of(json.loads(json.dumps(data.contract.plain()))) == data.contract


def test_points_are_where_a_cropped_and_resized_image_has_them() -> None:
    """An image of 16 x 40 at 8 x 8: the middle 16 columns, halved; one place for each 4 pixels of these."""
    points = np.array([[12.0, 0.0], [27.9, 15.9], [28.0, 16.0], [11.9, 8.0], [20.0, 8.0], [39.0, 1.0]])
    assert of_points(points, (16, 40), (8, 8), (2, 2)).tolist() == [[1, 0], [0, 3]]
    assert of_points(np.array([[40.0, 16.0]]), (16, 40), (16, 40), (4, 10))[3, 9] == 1


@pytest.mark.parametrize("size", [(9, 13), (12, 8), (6, 9)])
def test_maps_are_summed_over_places(size: tuple[int, int]) -> None:
    density = np.random.default_rng(0).random((12, 17))
    found = of_map(density, size, (3, 4))
    scale = max(size[0] / 12, size[1] / 17)
    tall, wide = round(size[0] / scale), round(size[1] / scale)
    window = density[(12 - tall) // 2 :, (17 - wide) // 2 :][:tall, :wide]
    expected = np.zeros((3, 4))
    for i in range(tall):
        for j in range(wide):
            expected[int((i + 0.5) * 3 / tall), int((j + 0.5) * 4 / wide)] += window[i, j]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found.sum() == pytest.approx(window.sum())


def test_maps_and_counts_of_archives(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, maps = rng.integers(0, 255, (20, 8, 12, 3), np.uint8), rng.random((20, 8, 12)).astype(np.float32)
    np.savez(tmp_path / "maps.npz", x=x, y=maps)
    np.savez(tmp_path / "counts.npz", x=x, y=maps.sum((1, 2)))
    data, whole = (load(tmp_path / f"{name}.npz", task="count") for name in ("maps", "counts"))
    assert (data.grid, whole.grid) == ((2, 3), (1, 1))
    for one in (data, whole):
        assert one.target_mean is not None
        assert one.target_std is not None
        counts = (one.train.targets.double() * one.target_std[0] + one.target_mean[0]).sum(1)
        torch.testing.assert_close(counts, torch.from_numpy(maps.astype(np.float64)).sum((1, 2))[one.train.index])


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (np.zeros((20, 3)), "density maps"),
        (np.full(20, -1.0), "0 or more"),
        (np.full((20, 8, 12), np.nan), "0 or more"),
        (np.array(["a"] * 20), "takes counts"),
    ],
)
def test_archives_that_do_not_fit(y: np.ndarray, said: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((20, 8, 12, 3), np.uint8), y=y)
    with pytest.raises(UserError, match=said):
        load(tmp_path / "data.npz", task="count")


def test_tables_that_do_not_fit(tmp_path: Path) -> None:
    root = scene(tmp_path / "scene")
    table = root / "points.csv"
    good = table.read_text()
    for line, said in (
        ("lost.png,1,1", "no image lost.png"),
        ("01.png,here,1", "two numbers"),
        ("01.png,1", "two numbers"),
        ("01.png,nan,1", "not finite"),
        ("01.png,21,1", "outside of its 20 x 16"),
        ("01.png,1,-1", "outside"),
    ):
        table.write_text(good + line + "\n")
        with pytest.raises(UserError, match=said):
            load(root)
    table.write_text("name,x\n")
    with pytest.raises(UserError, match="expected file, x and y"):
        load(root)
    table.unlink()
    with pytest.raises(UserError, match=r"no points\.csv"):
        load(root, task="count")


def test_a_contract_keeps_the_places(tmp_path: Path) -> None:
    root = scene(tmp_path / "scene")
    data = load(root)
    again = load(root, contract=data.contract)
    assert (again.grid, again.target_mean, again.target_std) == (data.grid, data.target_mean, data.target_std)
    assert torch.equal(again.train.targets, data.train.targets)


# ---------------------------------------------------------------------- augmentation and task


def test_mirrored_images_keep_their_places(tmp_path: Path) -> None:
    """Bright pixels are counted anew in each varied image."""
    data = load(scene(tmp_path / "scene", 40))
    assert data.target_std is not None
    assert data.target_mean is not None
    for augment in (for_search(data), for_training(data)):
        assert isinstance(augment, AugmentCounts)
        images, targets = data.train.take(torch.arange(len(data.train)))
        batch = augment.batch(images, targets, torch.Generator().manual_seed(3))
        plain = none(data).batch(images, targets, torch.Generator())
        bright = (batch.images[:, 0] > batch.images.mean() + 3 * batch.images.std()).double()
        seen = bright.view(len(images), 4, 4, 5, 4).sum((2, 4)).flatten(1)
        told = batch.targets.double() * data.target_std[0] + data.target_mean[0]
        assert ((told > 0.5) == (seen > 0.5)).all()
        moved = (batch.images != plain.images).flatten(1).any(1)
        assert 0 < int(moved.sum()) < len(images)
    with pytest.raises(UserError, match="AutoAugment"):
        for_training(data, policy=True)


def test_the_task_by_hand() -> None:
    task = Count(scale=2.0, total=0.5)
    outputs = torch.tensor([[1.0, 0.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    targets = torch.tensor([[0.0, 0.0, 2.0, 0.0], [1.0, 0.0, 0.0, -1.0]], dtype=torch.float64)
    assert float(task.loss(outputs, targets)) == pytest.approx((1 + 1 + 1 + 1) / 8 + 0.5 * (2 + 0) / 2 / 2)
    found = task.metrics(task.confusion(outputs, targets))
    errors, true = [4.0, 0.0], [4.0, 0.0]
    assert found["mae"] == pytest.approx(sum(map(abs, errors)) / 2)
    assert found["rmse"] == pytest.approx(math.sqrt(sum(e * e for e in errors) / 2))
    mean = sum(true) / 2
    assert found["r2"] == pytest.approx(1 - 16 / sum((t - mean) ** 2 for t in true))
    assert task.floor(task.confusion(outputs, targets)) == 0.0
    one = torch.tensor([[3.0], [5.0]])
    assert torch.equal(Count().confusion(one, one + 1), Regress().confusion(one, one + 1))
    with pytest.raises(UserError, match="no labels to smooth"):
        task.smoothed(0.1)


def test_the_density_is_a_convolution_of_averaged_features() -> None:
    head = Density(3, (2, 3)).double()
    x = torch.randn(4, 3, 4, 6, dtype=torch.float64)
    pooled = x.view(4, 3, 2, 2, 3, 2).mean((3, 5))
    expected = torch.einsum("bchw,c->bhw", pooled, head.weight[0, :, 0, 0]) + head.bias
    torch.testing.assert_close(head(x), expected.flatten(1))
    torch.testing.assert_close(head(pooled), expected.flatten(1))
    torch.testing.assert_close(head(x[:, :, :1, :1]), head(x[:, :, :1, :1].expand(-1, -1, 2, 3)))


@pytest.mark.parametrize("name", ["toy", "darts", "stages", "chain", "sase"])
def test_every_space_of_whole_images_counts(name: str, tmp_path: Path) -> None:
    data = load(scene(tmp_path / "scene"))
    assert usual_space(data) == "stages"
    space = space_for(SPACES[name], data, {})[0]
    assert (space.outputs, space.density) == (20, (4, 5))
    assert task_for(data) == Count(data.target_std[0] if data.target_std else 1.0)
    network = space.network(sample(space, counted(0))).eval()
    assert network(torch.zeros(2, 1, 16, 20)).shape == (2, 20)
    for other in ("grid", "signal"):
        with pytest.raises(UserError, match=f"the space {other} is not for"):
            space_for(SPACES[other], data, {})
    assert SignalSpace().density is None


@pytest.mark.slow
def test_a_search_counts_end_to_end(tmp_path: Path) -> None:
    """Searched, killed, resumed, trained, scored, exported: the same count from the network, network.py and the shipped script."""
    root = scene(tmp_path / "scene", 30)
    asked = {"data": root, "space": "toy", "budget": "smoke", "batch": 8, "compare": 0}
    whole = oche.search("darts", **asked, out=tmp_path / "whole")

    def dying(event: str, record: object) -> None:
        if event == "epoch":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        oche.search("darts", **asked, out=tmp_path / "killed", listener=dying)
    again = oche.resume(tmp_path / "killed")
    assert again.genotype == whole.genotype
    with np.load(whole.run.file("alphas.npz")) as one, np.load(again.run.file("alphas.npz")) as other:
        assert all(np.array_equal(one[name], other[name]) for name in one.files)
    trained = oche.train(whole.run.path, epochs=1, settings={"train.steps": 1}, out=tmp_path / "trained")
    assert {"r2", "mae", "rmse"} <= set(oche.evaluate_run(trained.run.path).metrics)
    (said,) = oche.predict(trained.run.path, [root / "04.png"])
    assert said.label == f"{said.values['count']:.1f}"
    assert said.values["count"] > -50
    export_network(trained.run, ("onnx",))
    shipped = [sys.executable, str(trained.run.file("network/predict.py")), str(root / "04.png")]
    answer = subprocess.run(shipped, capture_output=True, text=True, check=True).stdout.split()
    assert float(answer[1]) == pytest.approx(said.values["count"], abs=1e-3)
    report = (trained.run.path / "report.html").read_text()
    assert "test MAE" in report
    assert "Largest errors" in report
