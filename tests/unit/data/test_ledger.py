"""The ledger of `oche check` against inputs whose every file was counted when they were built; a run has the same one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import oche
from oche.api.terminal import data_rows
from oche.cli.check import check_data
from oche.data import load
from oche.errors import UserError
from reference.inputs import Array, pairs, rgb, save


def textured(shade: int, seed: int, side: tuple[int, int] = (16, 12)) -> Array:
    return (np.random.default_rng(seed).integers(10, 60, (*side, 3)) + shade).astype(np.uint8)


def photos(root: Path) -> Path:
    """Three parts, two classes, and one or more of all that is odd."""
    for part, count in (("train", 10), ("Validation", 4), ("TEST", 3)):
        for c, name in enumerate(("cat", "dog")):
            for i in range(count - c):
                save(root / part / name / f"{i}.png", textured(90 * c, hash_of(part, name, i)))
    train, test = root / "train", root / "TEST"
    save(train / "cat" / "again.png", np.asarray(Image.open(train / "cat" / "0.png")))  # twice
    save(train / "dog" / "flat.png", np.full((16, 12, 3), 77, np.uint8))  # a single colour
    white = np.full((16, 12, 3), 255, np.uint8)
    white[8, 6] = 3  # not in a corner, which the crop to a square would cut off
    save(train / "dog" / "burnt.png", white)  # saturated
    save(train / "dog" / "large.png", textured(90, 999, (32, 24)))  # another size
    save(test / "dog" / "leak.png", np.asarray(Image.open(train / "cat" / "1.png")))  # in train, and of another class
    (train / "cat" / "film.mp4").write_bytes(b"film")
    (train / "cat" / "notes.txt").write_text("hello")
    (train / "dog" / ".DS_Store").write_bytes(b"x")
    (root / "away.png").symlink_to(root / "nowhere.png")
    save(root / "stray.png", rgb())  # beside the parts
    return root


def hash_of(*words: object) -> int:
    return sum(ord(letter) * 31**n for n, letter in enumerate("".join(map(str, words)))) % 2**32


def checked(source: Path, capsys: pytest.CaptureFixture[str], **settings: object) -> dict[str, Any]:
    check_data(str(source), settings, True)
    table: dict[str, Any] = json.loads(capsys.readouterr().out)
    return table


def test_every_file_is_told_by_what_became_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = checked(photos(tmp_path / "photos"), capsys)
    told = {(fate["became"], fate["what"]): fate["count"] for fate in found["fates"]}
    assert told == {
        ("used", "train images"): 10 + 9 + 4,
        ("used", "val images"): 4 + 3,
        ("used", "test images"): 3 + 2 + 1,
        ("skipped", "no image (.mp4)"): 1,
        ("skipped", "no image (.txt)"): 1,
        ("skipped", "hidden"): 1,
        ("skipped", "broken link"): 1,
        ("skipped", "an image that no class or part holds"): 1,
        ("suspicious", "train images of a single colour"): 1,
        ("suspicious", "train images with nearly all values at the ends of the range"): 1,
        ("suspicious", "train images that are there twice or more"): 1,
    }
    files = [path for path in (tmp_path / "photos").rglob("*") if not path.is_dir()]
    assert sum(count for (became, _), count in told.items() if became != "suspicious") == len(files)
    assert found["counts"] == {
        "train": {"cat": 11, "dog": 12},
        "val": {"cat": 4, "dog": 3},
        "test": {"cat": 3, "dog": 3},
    }
    assert found["parts"] == {"train": 23, "val": 7, "test": 6}
    assert found["shapes"] == [["16x12x3 uint8", 35], ["32x24x3 uint8", 1]]
    assert [high for _, high in found["ranges"]] == [1.0, 1.0, 1.0]
    assert found["layout"] == "folders of classes"
    assert found["problems"] == []
    notes = " ".join(found["notes"])
    assert "1 of the 6 test images are in train too, pixel for pixel." in notes
    assert "1 image has several classes, pixel for pixel." in notes
    assert "1 train image of a single colour." in notes
    examples = {fate["what"]: fate["examples"] for fate in found["fates"]}
    assert examples["no image (.mp4)"] == [str(tmp_path / "photos" / "train" / "cat" / "film.mp4")]


def test_masks_have_shares_in_the_place_of_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = np.zeros((16, 16), np.uint8)
    mask[0, :3], mask[8:] = 2, 1
    pairs(tmp_path / "scenes", "images", "masks", lambda: mask)
    (tmp_path / "scenes" / "readme.md").write_text("x")
    found = checked(tmp_path / "scenes", capsys)
    assert found["shares"] == pytest.approx({"0": 125 / 256, "1": 0.5, "2": 3 / 256})
    assert {f["what"]: f["count"] for f in found["fates"]} == {
        "train images": 10, "train masks": 10, "no image (.md)": 1
    }  # fmt: skip
    check_data(str(tmp_path / "scenes"), {}, False)
    said = " ".join(capsys.readouterr().out.split())
    assert "2 1.17% rare" in said
    assert "skipped 1 no image (.md)" in said


def test_all_problems_come_at_once_as_json_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = photos(tmp_path / "photos")
    bad = [root / "train" / "cat" / "2.png", root / "Validation" / "dog" / "1.png", root / "TEST" / "cat" / "0.png"]
    for path in bad:
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="3 problems"):
        check_data(str(root), {}, True)
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert len(problems) == 3
    assert all(any(str(path) in sentence for sentence in problems) for path in bad)


def test_a_run_begins_with_it_and_keeps_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = photos(tmp_path / "photos")
    found = checked(root, capsys)
    rows = [line for _, line in data_rows(load(root))]
    assert any(line.startswith("Not used: 1 ") for line in rows)
    assert all(note in rows for note in found["notes"])

    class Begun(Exception):
        pass

    def stop(event: str, record: object) -> None:
        raise Begun

    with pytest.raises(Begun):
        oche.train(
            "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_3x3~1|", space="toy", data=str(root), protocol="smoke", epochs=1, batch=8,
            out=tmp_path / "run", listener=stop, progress=False,
        )  # fmt: skip
    kept = json.loads((tmp_path / "run" / "ledger.json").read_text())
    assert kept == {name: found[name] for name in kept if name != "notes"} | {"notes": kept["notes"]}
    assert set(kept["notes"]) <= set(found["notes"])


@pytest.mark.parametrize(
    ("size", "channels", "advised"), [((128, 160), 3, True), ((127, 160), 3, False), ((128, 160), 1, False)]
)
def test_large_photographs_get_advice_about_pre_trained_networks(
    size: tuple[int, int], channels: int, advised: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = (12, *size, channels)[: 4 if channels > 1 else 3]
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).integers(0, 255, shape, np.uint8), y=np.arange(12) % 2)
    check_data(str(tmp_path / "a.npz"), {}, True)
    advice = json.loads(capsys.readouterr().out)["advice"]
    check_data(str(tmp_path / "a.npz"), {}, False)
    shown = "fine-tuning a pre-trained network wins" in " ".join(capsys.readouterr().out.split())
    assert (bool(advice), shown) == (advised, advised)
