"""What a training decided about values holds for other data that its network is scored on, as for files that it predicts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import oche
from oche.api.inference import evaluate_run
from oche.cli.show import show_score
from oche.data import load
from oche.data.contract import IN_BYTES, UNIT, Contract, PixelRule
from oche.data.reading.applied import applied
from oche.training.export import load_network

FLOATS = Contract("classify", ("a", "b"), 3, (12, 12), UNIT, (0.5,) * 3, (0.2,) * 3)


def bytes_in(root: Path, size: tuple[int, int] = (12, 18), most: int = 256) -> Path:
    for i in range(20):
        path = root / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, most, (*size, 3), dtype=np.uint8)).save(path)
    return root


def test_bytes_for_a_network_of_floats_are_scored_as_they_are_predicted(tmp_path: Path) -> None:
    data = load(bytes_in(tmp_path / "set"), contract=FLOATS)
    names, (pixels, _) = data.identities["test"].names, data.test.take(torch.arange(len(data.test)))
    assert len(names) > 3
    for name, one in zip(names, pixels, strict=True):
        assert_close(one[None], applied(tmp_path / "set" / name, FLOATS).cropped(FLOATS.size), rtol=0, atol=0)
    assert f"The images of set have {IN_BYTES}." in data.notes


def test_arrays_and_mixed_files_meet_the_same_rule(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (20, 12, 12, 3), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(20) % 2, classes=["a", "b"])
    data = load(tmp_path / "x.npz", contract=FLOATS)
    assert data.train.take(torch.tensor([0]))[0].dtype == torch.uint8
    assert any(IN_BYTES in note for note in data.notes)
    parts = tmp_path / "parts"
    bytes_in(parts / "train", (12, 12))
    for i in range(6):
        (parts / "test" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        np.save(parts / "test" / "ab"[i % 2] / f"{i}.npy", x[i].astype(np.float32) / 255)
    data = load(parts, contract=FLOATS)
    for part in ("train", "val", "test"):
        for i, name in enumerate(data.identities[part].names):
            wanted = applied(parts / name, FLOATS).pixels
            wanted = wanted.float() / 255 if wanted.dtype == torch.uint8 else wanted
            assert_close(getattr(data, part).take(torch.tensor([i]))[0][0], wanted)


def test_an_evaluation_says_what_training_never_saw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = oche.train(
        "resnet8", data=bytes_in(tmp_path / "own", (8, 8)), protocol="smoke", epochs=1, device="cpu",
        out=tmp_path / "run", progress=False,
    )  # fmt: skip
    deep = tmp_path / "deep"
    for i in range(20):
        (deep / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(i).integers(0, 60000, (8, 8, 3), dtype=np.uint16)
        np.save(deep / "ab"[i % 2] / f"{i}.npy", values)
    assert evaluate_run(trained.run.path, device="cpu").notes == ()
    score = evaluate_run(trained.run.path, data=str(deep), device="cpu")
    said = [note for note in score.notes if "values up to 59" in note]
    assert said
    assert said[0].endswith("where those that the network was trained on end at 255.")
    assert any("split off train" in note for note in score.notes)
    show_score(score, load_network(trained.run), False, None)
    assert f"oche: {said[0]}" in capsys.readouterr().err
    show_score(score, load_network(trained.run), True, None)
    assert said[0] in capsys.readouterr().out


def test_rules_that_bytes_do_not_change() -> None:
    for rule in (
        PixelRule(),
        PixelRule(scale=4095.0, high=4000.0, depth="uint16"),
        PixelRule(-1.0, 2.0, -1.0, 1.0, "float32"),
    ):
        assert rule.met("uint8") is rule
    assert UNIT.met("float32") is UNIT
    assert UNIT.met("uint8") == PixelRule()
