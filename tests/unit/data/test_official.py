"""Sets of masks as their archives are unpacked: labels that stand for no class count nowhere, and classes have their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from oche.data import load
from oche.data.reading.official import CAMVID
from oche.data.reading.standards import CITYSCAPES, CITYSCAPES_IDS
from oche.errors import UserError

SHAPE = (16, 24)
Array = NDArray[np.generic]


def save(path: Path, values: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def photo(n: int) -> Array:
    return np.random.default_rng(n).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)


def labels(n: int, values: tuple[int, ...]) -> Array:
    return np.random.default_rng(100 + n).choice(np.array(values, np.uint8), SHAPE)


def segnet(root: Path, values: tuple[int, ...] = tuple(range(12))) -> Path:
    for part, first, count in (("train", 0, 6), ("val", 6, 2), ("test", 8, 2)):
        for n in range(first, first + count):
            save(root / part / f"0001TP_{n:06}.png", photo(n))
            save(root / f"{part}annot" / f"0001TP_{n:06}.png", labels(n, values))
    return root


def test_camvid_of_segnet(tmp_path: Path) -> None:
    data = load(segnet(tmp_path / "CamVid"))
    assert (data.classes, data.ignore, len(data.train), len(data.test)) == (CAMVID, 255, 6, 2)
    wanted = torch.from_numpy(labels(0, tuple(range(12))))
    wanted[wanted == 11] = 255
    assert torch.equal(data.train.take(torch.tensor([0]))[1][0].to(torch.uint8), wanted)
    assert any("11 is none of them" in note for note in data.notes)


def test_what_is_not_camvid_stays_as_it_is(tmp_path: Path) -> None:
    assert load(segnet(tmp_path / "streets")).classes == tuple(map(str, range(12)))
    assert load(segnet(tmp_path / "camvid32", (0, 3, 11, 20))).classes == ("0", "3", "11", "20")
    own = segnet(tmp_path / "CamVid")
    (own / "classes.toml").write_text("[classes]\na = [0, 1, 2, 3, 4, 5]\nb = [6, 7, 8, 9, 10, 11]\n")
    assert load(own).classes == ("a", "b")
    assert load(own, labels=tuple(f"{n}=x{n % 3}" for n in range(12))).classes == ("x0", "x1", "x2")


def test_ade20k(tmp_path: Path) -> None:
    root = tmp_path / "ADEChallengeData2016"
    for part, first, count in (("training", 0, 6), ("validation", 6, 3)):
        for n in range(first, first + count):
            save(root / "images" / part / f"ADE_{n:08}.jpg", photo(n))
            save(root / "annotations" / part / f"ADE_{n:08}.png", labels(n, (0, 1, 3, 4)))
    rows = ("Idx\tRatio\tTrain\tVal\tStuff\tName", "1\t0.2\t9\t9\t1\twall", "2\t0.1\t9\t9\t1\tbuilding, edifice",
            "3\t0.1\t9\t9\t0\tscreen, silver screen", "4\t0.1\t9\t9\t0\tscreen, CRT screen")  # fmt: skip
    (root / "objectInfo150.txt").write_text("\n".join(rows) + "\n")
    data = load(root)
    assert data.classes == ("wall", "building", "screen, silver screen", "screen, CRT screen")
    seen = {
        int(v) for part in (data.train, data.val, data.test) for v in part.take(torch.arange(len(part)))[1].unique()
    }
    assert seen == {0, 2, 3, 255}
    assert any(fate.what == "names of classes" and "objectInfo150" in fate.examples[0] for fate in data.ledger.fates)
    (root / "objectInfo150.txt").write_text("another table\n")
    assert load(root).classes == ("0", "1", "3", "4")


@pytest.mark.parametrize("apart", [False, True], ids=["together", "two archives"])
def test_cityscapes_without_train_ids(tmp_path: Path, apart: bool) -> None:
    left, fine = (tmp_path / f"{name}_trainvaltest" if apart else tmp_path for name in ("leftImg8bit", "gtFine"))
    ids = (0, 7, 8, 11, 26, 33, 34 - 32)
    for part, city, count in (("train", "ulm", 6), ("val", "lindau", 2), ("test", "berlin", 1)):
        for n in range(count):
            stem = f"{city}_{n:06}_000019"
            save(left / "leftImg8bit" / part / city / f"{stem}_leftImg8bit.png", photo(n))
            for kind, values in (("labelIds", labels(n, ids)), ("color", photo(n))):
                save(fine / "gtFine" / part / city / f"{stem}_gtFine_{kind}.png", values)
            (fine / "gtFine" / part / city / f"{stem}_gtFine_polygons.json").write_text("{}")
    data = load(tmp_path)
    assert (data.classes, len(data.train) + len(data.val), len(data.test)) == (CITYSCAPES, 6, 2)
    wanted = [[CITYSCAPES_IDS.index(v) if v in CITYSCAPES_IDS else 255 for v in row] for row in labels(1, ids).tolist()]
    assert data.test.take(torch.tensor([1]))[1][0].tolist() == wanted
    assert any("ids of labelIds were mapped" in note for note in data.notes)
    next((fine / "gtFine" / "train").rglob("*labelIds.png")).unlink()
    with pytest.raises(UserError, match=r"has no mask .*labelIds\.png; unpack gtFine again"):
        load(tmp_path)


def test_masks_called_p_with_their_codes(tmp_path: Path) -> None:
    for n in range(8):
        save(tmp_path / "images" / f"0016E5_{n}.png", photo(n))
        save(tmp_path / "labels" / f"0016E5_{n}_P.png", labels(n, (0, 1, 2)))
    (tmp_path / "codes.txt").write_text("Animal\nBuilding\nCar\n")
    data = load(tmp_path)
    assert (data.classes, data.task) == (("Animal", "Building", "Car"), "segment")
