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
from oche.errors import UserError
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


def mixed(root: Path) -> Path:
    """20 images of uint16, of which two are of 8 bits."""
    for i in range(20):
        (root / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(i).integers(0, 256 if i in (4, 7) else 60000, (8, 8, 3))
        np.save(root / "ab"[i % 2] / f"{i:02}.npy", values.astype("u1" if i in (4, 7) else "u2"))
    return root


def test_mixed_depths_can_be_scored_where_they_were_trained_on_and_else_are_named(tmp_path: Path) -> None:
    root = mixed(tmp_path / "mixed")
    asked = {"data.range": (0, 65535)}
    trained = oche.train(
        "resnet8", data=root, protocol="smoke", epochs=1, device="cpu", out=tmp_path / "run", progress=False, settings=asked
    )  # fmt: skip
    assert evaluate_run(trained.run.path, device="cpu") == trained.test
    with pytest.raises(
        UserError, match=r"mixes files of the types uint16, uint8: convert all to uint16, as"
    ) as refused:
        evaluate_run(trained.run.path, data=str(root), device="cpu")
    said = str(refused.value)
    assert said.endswith(f"; 2 of 20 are not: {root / 'a' / '04.npy'}, {root / 'b' / '07.npy'}.")
    assert "--set" not in said
    with pytest.raises(UserError, match=r"or say which values become 0 and 1, such as `--set data\.range=0,255`"):
        load(root)


def test_mixed_depths_of_which_none_is_the_networks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"convert all to uint16; 2 of 20 are not: .*04\.npy"):
        load(mixed(tmp_path / "mixed"), contract=FLOATS)


def test_rules_that_bytes_do_not_change() -> None:
    for rule in (
        PixelRule(),
        PixelRule(scale=4095.0, high=4000.0, depth="uint16"),
        PixelRule(-1.0, 2.0, -1.0, 1.0, "float32"),
    ):
        assert rule.met("uint8") is rule
    assert UNIT.met("float32") is UNIT
    assert UNIT.met("uint8") == PixelRule()
