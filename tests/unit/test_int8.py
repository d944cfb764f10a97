"""int8: what quantising changes is told, what loses too much is refused, and the file works by itself."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import oche
from contracts.registry import SMALL
from oche.api import int8
from oche.api.inference import evaluate_run, predict
from oche.base import counted
from oche.cli.main import app
from oche.data import load
from oche.errors import UserError
from oche.report import claims
from oche.report.facts import card_of, costs
from oche.run import Run
from oche.spaces.cost import cost
from oche.spaces.sampling import sample
from oche.training.export import CARD, OnnxModule, export_network, load_network, save_network, says_of, within
from oche.training.quantize import IMAGES, calibration, quantised
from reference.tiny import tiny_data, tiny_masks, tiny_space

pytestmark = pytest.mark.skipif(
    not all(map(find_spec, ("onnx", "onnxruntime", "onnxscript"))), reason="needs the extra onnx"
)


def test_calibration_images_are_those_of_the_train_part() -> None:
    """As floats in [0, 1], each once, always the same, none of another part."""
    data = load("digits")
    first, again = (torch.cat(list(calibration(data))) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (IMAGES, 1, 8, 8)
    everything, _ = data.train.take(torch.arange(len(data.train)))
    known = {bytes(image.numpy().tobytes()) for image in everything}
    drawn = [(255 * image).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy().tobytes() for image in first]
    assert set(drawn) <= known


@pytest.mark.parametrize(("count", "sizes"), [(5, [5]), (32, [32]), (45, [32, 32]), (64, [32, 32])])
def test_calibration_batches_are_of_one_size_and_show_every_image(count: int, sizes: list[int]) -> None:
    """onnxruntime's percentiles cannot be read off batches of several sizes: 45 images were a traceback."""
    data = tiny_data(count)
    shown = list(calibration(data))
    assert [len(batch) for batch in shown] == sizes
    seen = {image.numpy().tobytes() for batch in shown for image in batch}
    assert len(seen) == len({image.numpy().tobytes() for image in data.train.take(torch.arange(len(data.train)))[0]})


def test_allow_loss_without_int8(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--allow-loss is for --format int8"):
        int8.export(Run(tmp_path), ["onnx"], allow_loss=True)
    with pytest.raises(UserError, match="no export format 'in8'; did you mean 'int8'"):
        int8.export(Run(tmp_path), ["in8"])


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A trained network of 4,000 weights, in int8 by the command line."""
    folder = tmp_path_factory.mktemp("digits")
    trained = oche.train("resnet8", data="digits", epochs=8, settings={"space.channels": 16}, out=folder / "run")
    done = CliRunner().invoke(app, ["export", str(trained.run.path), "--format", "int8"])
    assert done.exit_code == 0, done.output
    assert "int8: accuracy" in done.output
    return trained.run


@pytest.mark.slow
def test_digits_keep_their_accuracy(digits: Run) -> None:
    """By the card, and by a count of the file's own answers; a file is smaller than the one that it came from."""
    told = json.loads(digits.read(CARD))["int8"]
    assert told["score"]["before"] == pytest.approx(evaluate_run(digits.path, device="cpu").value)
    assert told["score"]["before"] > 0.9
    assert told["lost_points"] == pytest.approx(100 * (told["score"]["before"] - told["score"]["after"]))
    assert told["lost_points"] <= 1
    path = digits.file(int8.MODEL)
    assert told["size"] == {"before": digits.file("network/model.onnx").stat().st_size, "after": path.stat().st_size}
    assert told["size"]["after"] < 0.7 * told["size"]["before"]
    test = load("digits").test
    images, targets = test.take(torch.arange(len(test)))
    answers = OnnxModule(path)(images.permute(0, 3, 1, 2).float() / 255).argmax(1)
    assert float((answers == targets).double().mean()) == pytest.approx(told["score"]["after"])
    assert {part: told["latency"][part]["median_ms"] > 0 for part in ("before", "after")} == {
        "before": True,
        "after": True,
    }
    assert told["calibration"]["images"] == IMAGES
    card = card_of(digits)
    assert (claims.int8(card).removeprefix("int8: "), "in int8") in costs(card)


@pytest.mark.slow
def test_the_shipped_script_runs_it(digits: Run, tmp_path: Path) -> None:
    """In a process that has neither oche nor torch, with probabilities near those of the network."""
    images, _ = load("digits").test.take(torch.arange(6))
    paths = []
    for n, image in enumerate(images):
        Image.fromarray(image[..., 0].numpy()).save(tmp_path / f"{n}.png")
        paths.append(tmp_path / f"{n}.png")
    (tmp_path / "torch.py").write_text("raise ImportError")
    done = subprocess.run(
        [sys.executable, str(digits.file("network/predict.py")), "model_int8.onnx", *map(str, paths)],
        capture_output=True, text=True, check=True, env={"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    said = [line.split() for line in done.stdout.splitlines()]
    wanted = predict(digits.path, paths, device="cpu")
    assert [label for _, label, _ in said] == [p.label for p in wanted]
    assert [float(p) for *_, p in said] == pytest.approx([p.probability for p in wanted], abs=0.15)


@pytest.mark.slow
def test_what_loses_too_much_is_refused(digits: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    digits.file(int8.MODEL).unlink()
    monkeypatch.setattr(int8, "MOST", -101.0)
    with pytest.raises(UserError, match="--allow-loss"):
        int8.export(digits, ["int8"])
    assert not digits.has(int8.MODEL)
    assert int8.export(digits, ["int8"], allow_loss=True)[-1] == digits.file(int8.MODEL)
    card = json.loads(digits.read(CARD))
    digits.write(CARD, json.dumps({**card, "limits": {"size": 30_000}}).encode())
    assert int8.export_int8(digits, allow_loss=True).is_file()
    digits.write(CARD, json.dumps({**card, "limits": {"size": 5_000}}).encode())
    with pytest.raises(UserError, match="more than --max-size 5,000"):
        int8.export_int8(digits, allow_loss=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nb201", "darts", "chain", "signal", "grid"])
def test_an_int8_file_is_no_larger_than_foretold(name: str, tmp_path: Path) -> None:
    """The size that `--max-int8-size` limits is an upper bound, and not three times too large."""
    size = {"signal": (1, 32), "grid": (32, 32)}.get(name, (16, 16))
    data = tiny_masks(12, size) if name == "grid" else tiny_data(12, size)
    space = tiny_space(name, data, **{**SMALL[name], "channels": 8})
    run, genotype = Run.create(tmp_path / "run"), sample(space, counted(5, "file"))
    run.write(Run.CONFIG, b"")
    save_network(run, space.network(genotype), space, genotype, data, {})
    (path,) = export_network(run, ["onnx"])
    quantised(path, data, "minmax", tmp_path / "int8.onnx", says_of(load_network(run)))
    taken = (tmp_path / "int8.onnx").stat().st_size
    assert taken <= cost(space, genotype).int8_size <= 3 * taken


def test_the_limit_of_the_int8_file_is_its_own() -> None:
    within({"limits": {"int8_size": 10}}, 11)
    with pytest.raises(UserError, match="takes 11 bytes, more than --max-int8-size 10"):
        within({"limits": {"int8_size": 10}}, 11, "int8_size")


@pytest.mark.slow
def test_several_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (200, 8, 8, 1), dtype=np.uint8)
    x[:100, :4] //= 3
    x[50:150, 4:] //= 3
    y = np.stack([x[:, :4].mean((1, 2, 3)), x[:, 4:].mean((1, 2, 3))], 1) > 90
    np.savez(tmp_path / "labels.npz", x=x, y=y.astype(np.int64), classes=["top", "bottom"])
    trained = oche.train(
        "plain_cnn", data=tmp_path / "labels.npz", epochs=6, settings={"space.channels": 16}, out=tmp_path / "run"
    )
    trained.export(["int8"], allow_loss=True)
    told = json.loads(trained.run.read(CARD))["int8"]
    assert told["metric"] == "mean_f1"
    assert abs(told["lost_points"]) < 10


@pytest.mark.slow
def test_masks(tmp_path: Path) -> None:
    """Of any size: the int8 file takes images of another size than those that it was calibrated on."""
    found = oche.search(
        "single_stage",
        data="digits_masks",
        budget="smoke",
        rivals="none",
        settings={"space.layers": 2},
        out=tmp_path / "run",
    )
    found.export(["int8"], allow_loss=True)
    told = json.loads(found.run.read(CARD))["int8"]
    assert told["metric"] == "miou"
    assert told["size"]["after"] < told["size"]["before"]
    space = json.loads(found.run.read(CARD))["space"]
    height, width = space["size"]
    scores = OnnxModule(found.run.file(int8.MODEL))(torch.rand(1, space["inputs"], height + 8, width + 3))
    assert scores.shape[2:] == (height + 8, width + 3)
