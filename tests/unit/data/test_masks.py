"""Images with masks: every layout is read, pairs stay pairs, and what does not fit is one sentence that names the file."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from oche.data import Data, halves, load
from oche.data.facts import pixel_counts
from oche.data.problems import problems_of
from oche.data.reading.official import CAMVID
from oche.data.reading.standards import CITYSCAPES
from oche.errors import UserError

SIZE = (16, 24)


def write(path: Path, array: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def pair(number: int, classes: int = 3, size: tuple[int, int] = SIZE) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image whose red channel tells the mask: 10 times the label, 255 where it is ignored."""
    rng = np.random.default_rng(number)
    mask = rng.integers(0, classes, size).astype(np.uint8)
    mask[0, 0], mask[0, 1], mask[0, 2] = classes - 1, 255, 0
    red = np.where(mask == 255, 255, 10 * mask).astype(np.uint8)
    return np.stack([red, np.full(size, number, np.uint8), rng.integers(0, 255, size).astype(np.uint8)], -1), mask


def folder(root: Path, count: int = 10, layout: str = "{kind}/{name}.png", first: int = 0, classes: int = 3) -> Path:
    for n in range(first, first + count):
        image, mask = pair(n, classes)
        write(root / layout.format(kind="images", name=n), image)
        write(root / layout.format(kind="masks", name=n), mask)
    return root


def assert_aligned(data: Data) -> None:
    for part in (data.train, data.val, data.test):
        images, masks = part.take(torch.arange(len(part)))
        assert masks.dtype == torch.uint8
        assert torch.equal(images[..., 0], torch.where(masks == 255, 255, 10 * masks.int()).to(torch.uint8))


def test_images_and_masks_are_split_like_any_data(tmp_path: Path) -> None:
    data = load(folder(tmp_path))
    assert (len(data.train), len(data.val), len(data.test)) == (6, 2, 2)
    assert (data.classes, data.size, data.channels, data.ignore, data.task) == (
        ("0", "1", "2"),
        SIZE,
        3,
        255,
        "segment",
    )
    assert_aligned(data)
    numbers = [set(p.take(torch.arange(len(p)))[0][:, 0, 0, 1].tolist()) for p in (data.train, data.val, data.test)]
    assert set.union(*numbers) == set(range(10))
    parts = halves()(data.train, 0)
    assert parts.arch is not None
    images = [set(p.take(torch.arange(3))[0][:, 0, 0, 1].tolist()) for p in (parts.weights, parts.arch)]
    assert images[0] | images[1] == numbers[0]
    assert_aligned(data.to("cpu"))


@pytest.mark.parametrize("layout", ["{part}/{{kind}}/{{name}}.png", "{{kind}}/{part}/{{name}}.png"])
def test_parts_as_folders(tmp_path: Path, layout: str) -> None:
    for part, first, count in (("train", 0, 4), ("valid", 10, 3), ("test", 20, 2)):
        folder(tmp_path, count, layout.format(part=part), first)
    data = load(tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (4, 3, 2)
    assert data.val.take(torch.tensor([0]))[0][0, 0, 0, 1] == 10
    assert_aligned(data)


def test_names_below_folders_and_class_names(tmp_path: Path) -> None:
    folder(tmp_path, 8, "{kind}/city/{name}.png")
    (tmp_path / "classes.txt").write_text("road\nsky\n\nher\nunseen\n")
    data = load(tmp_path)
    assert data.classes == ("road", "sky", "her", "unseen")
    assert any("No train pixel has the class 'unseen'" in note for note in data.notes)
    counts = pixel_counts(data.train, 4)
    labels = data.train.take(torch.arange(len(data.train)))[1]
    assert counts.tolist() == [int((labels == c).sum()) for c in range(4)]


def test_masks_are_resized_by_the_nearest_pixel_in_the_images_window(tmp_path: Path) -> None:
    for n in range(6):
        _, mask = pair(n, size=(40, 40))
        blocks = np.repeat(np.repeat(mask[:10, :10], 4, 0), 4, 1)
        write(tmp_path / f"images/{n}.png", np.stack([10 * blocks] * 3, -1))
        write(tmp_path / f"masks/{n}.png", blocks)
    data = load(tmp_path, size=(8, 10))  # 32 of 40 rows are kept, then every fourth pixel
    images, masks = data.train.take(torch.arange(len(data.train)))
    assert (images.shape[1:3], masks.shape[1:]) == ((8, 10), (8, 10))
    assert set(masks.unique().tolist()) <= {0, 1, 2, 255}
    originals = {np.asarray(Image.open(p))[4:36:4, ::4].tobytes() for p in (tmp_path / "masks").iterdir()}
    assert {mask.numpy().tobytes() for mask in masks} <= originals


def test_lazy_masks_equal_those_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path)
    eager = load(tmp_path)
    monkeypatch.setattr("oche.data.reading.listing.MEMORY_LIMIT", 100)
    lazy = load(tmp_path)
    for a, b in zip((eager.train, eager.test), (lazy.train, lazy.test), strict=True):
        for x, y in zip(a.take(torch.arange(len(a))), b.take(torch.arange(len(b))), strict=True):
            assert torch.equal(x, y)
    assert lazy.to("cpu").train.masks is lazy.train.masks


def test_palette_masks_are_class_numbers(tmp_path: Path) -> None:
    folder(tmp_path, 6)
    for path in (tmp_path / "masks").iterdir():
        labels = np.asarray(Image.open(path))
        coloured = Image.frombytes("P", (labels.shape[1], labels.shape[0]), labels.tobytes())
        coloured.putpalette([7 * i % 256 for i in range(768)])
        coloured.save(path)
    assert_aligned(load(tmp_path))


# ------------------------------------------------------------------ mistakes


def broken(root: Path, wrong: str) -> str:
    """Makes a mistake in a folder of ten pairs; returns what the sentence must say."""
    image, mask = pair(3)
    if wrong == "label":
        mask[5, 5] = 7
        write(root / "masks/3.png", mask)
        (root / "classes.txt").write_text("a\nb\nc\n")
        return r"masks/3\.png has the label 7; the 3 classes are 0 to 2"
    if wrong == "size":
        write(root / "masks/3.png", mask[:, :-1])
        return r"masks/3\.png has 16x23 pixels, its image 16x24"
    if wrong == "no mask":
        (root / "masks/3.png").unlink()
        return r"The image .*images/3\.png has no mask"
    if wrong == "no image":
        (root / "images/3.png").unlink()
        return r"The mask .*masks/3\.png has no image"
    if wrong == "colour":
        write(root / "masks/3.png", image)
        return r"The mask .*masks/3\.png is a colour image"
    if wrong == "unreadable":
        (root / "masks/3.png").write_bytes(b"no picture")
        return r"The mask .*masks/3\.png cannot be read"
    if wrong == "two":
        write(root / "images/3.bmp", image)
        return r"3\.bmp and .*3\.png have one name"
    assert wrong == "one class"
    for path in (root / "masks").iterdir():
        write(path, 0 * np.asarray(Image.open(path)).astype(np.uint8))
    return "one class only"


@pytest.mark.parametrize("wrong", ["label", "size", "no mask", "no image", "colour", "unreadable", "two", "one class"])
def test_a_mistake_is_one_sentence_with_the_file(tmp_path: Path, wrong: str) -> None:
    said = broken(folder(tmp_path), wrong)
    with pytest.raises(UserError, match=said) as raised:
        load(tmp_path)
    assert "\n" not in str(raised.value)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    """Whatever is found first: a mask that lacks, files that cannot be read, sizes that differ."""
    root = folder(tmp_path, 8)
    (root / "masks/0.png").unlink()
    write(root / "images/lone.png", pair(9, 3)[0])
    (root / "images/1.png").write_bytes(b"no picture")
    (root / "masks/2.png").write_bytes(b"no picture")
    write(root / "masks/3.png", np.zeros((30, 30), np.uint8))
    said = [r"images/0\.png has no mask", r"lone\.png has no mask", r"images/1\.png cannot be read", r"masks/2\.png cannot be read",
            r"masks/3\.png has 30x30 pixels"]  # fmt: skip
    for _ in range(2):
        with pytest.raises(UserError) as raised:
            load(tmp_path)
        found = problems_of(raised.value)
        assert [sum(bool(re.search(one, sentence)) for sentence in found) for one in said] == [1] * len(said)
        assert len(found) == len(said)
        for name in ("0", "lone"):
            (root / f"images/{name}.png").unlink(missing_ok=True)
        said = said[2:]


def test_a_label_that_train_does_not_have_is_found_in_the_other_parts(tmp_path: Path) -> None:
    folder(tmp_path, 4, "train/{kind}/{name}.png")
    folder(tmp_path, 2, "test/{kind}/{name}.png", classes=4)
    with pytest.raises(UserError, match=r"test/masks/.*has the label 3; the 3 classes"):
        load(tmp_path)


def test_the_task_must_fit_the_data(tmp_path: Path) -> None:
    folder(tmp_path, 6)
    with pytest.raises(UserError, match="digits has a class for each image, no masks"):
        load("digits", task="segment")
    with pytest.raises(UserError, match="no folders images and masks"):
        load(tmp_path / "images", task="segment")
    assert load(tmp_path, task="segment").task == "segment"
    assert load(tmp_path, task="classify").classes == ("images", "masks")


# ------------------------------------------------------------------ Cityscapes and CamVid


def cityscapes(root: Path, cities: dict[str, int], part: str) -> None:
    for city, count in cities.items():
        for n in range(count):
            image, mask = pair(n, 19)
            stem = f"{city}_{n:06d}_000019"
            write(root / f"leftImg8bit/{part}/{city}/{stem}_leftImg8bit.png", image)
            write(root / f"gtFine/{part}/{city}/{stem}_gtFine_labelTrainIds.png", mask)
            write(root / f"gtFine/{part}/{city}/{stem}_gtFine_labelIds.png", 0 * mask + 33)  # must not be read


def test_cityscapes_as_it_is_unpacked(tmp_path: Path) -> None:
    cityscapes(tmp_path, {"aachen": 4, "bochum": 3, "ulm": 3}, "train")
    cityscapes(tmp_path, {"lindau": 2}, "val")
    cityscapes(tmp_path, {"berlin": 5}, "test")
    data = load(tmp_path, val=0.3)
    assert (data.classes, len(data.classes), data.ignore) == (CITYSCAPES, 19, 255)
    assert (len(data.train), len(data.val), len(data.test)) == (7, 3, 2)
    assert_aligned(data)
    assert data.train.groups is not None
    assert data.val.groups is not None
    assert data.test.groups is not None
    assert sorted([*data.train.groups.tolist(), *data.val.groups.tolist()]) == [0] * 4 + [1] * 3 + [3] * 3
    assert data.test.groups.tolist() == [2, 2]
    (tmp_path / "gtFine/train/ulm/ulm_000001_000019_gtFine_labelTrainIds.png").unlink()
    with pytest.raises(UserError, match=r"ulm_000001_000019_leftImg8bit\.png has no mask .*createTrainIdLabelImgs"):
        load(tmp_path)


def test_cityscapes_a_folder_above_and_without_its_test_part(tmp_path: Path) -> None:
    root = tmp_path / "datasets" / "cityscapes"
    cityscapes(root, {"zurich": 4, "ulm": 4}, "train")
    cityscapes(root, {"lindau": 3, "munster": 3}, "val")
    data = load(root)
    assert (data.classes, data.ignore) == (CITYSCAPES, 255)
    assert len(data.train) + len(data.val) + len(data.test) == 14
    assert_aligned(data)
    for mask in (root / "gtFine/train").rglob("*labelTrainIds.png"):
        mask.unlink()
    with pytest.raises(UserError, match="createTrainIdLabelImgs"):
        load(root)


def test_camvid_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sequences, void becomes 255, and the three archives are the three parts."""
    for part, names in (("train", ("a_1", "a_2", "b_1")), ("val", ("c_1",)), ("test", ("c_2", "d_1"))):
        with zipfile.ZipFile(tmp_path / f"camvid_{part}.zip", "w") as archive:
            for n, name in enumerate(names):
                image, mask = pair(n, 11)
                for kind, suffix, array in (
                    ("image", "webp", image),
                    ("label", "png", np.where(mask == 255, 11, mask)),
                ):
                    path = tmp_path / f"x.{suffix}"
                    Image.fromarray(array.astype(np.uint8)).save(path, lossless=True)
                    archive.write(path, f"{kind}/{name}.{suffix}")
    data = load(tmp_path)
    assert (data.classes, data.size) == (CAMVID, SIZE)
    assert (len(data.train), len(data.val), len(data.test)) == (3, 1, 2)
    assert_aligned(data)
    assert data.train.groups is not None
    assert data.train.groups.tolist() == [0, 0, 1]
    monkeypatch.setenv("OCHE_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"no .*camvid_train\.zip; set OCHE_DATA"):
        load("camvid")


@pytest.mark.slow
def test_the_real_camvid(data_folder: Path) -> None:
    """Counts, classes and pixel shares of the notes that come with the archives."""
    data = load(data_folder / "camvid")
    assert (len(data.train), len(data.val), len(data.test), data.size) == (367, 101, 233, (360, 480))
    counts = pixel_counts(data.train, 11).double()
    void = 1 - counts.sum() / (367 * 360 * 480)
    shares = [0.169, 0.233, 0.010, 0.317, 0.045, 0.097, 0.012, 0.011, 0.059, 0.006, 0.003]
    torch.testing.assert_close(counts / (367 * 360 * 480), torch.tensor(shares).double(), atol=6e-4, rtol=0)
    assert float(void) == pytest.approx(0.040, abs=6e-4)
    assert data.train.groups is not None
    assert (
        sorted(torch.bincount(data.train.groups).tolist())
        == [0, 62, 101, 204][-len(torch.bincount(data.train.groups)) :]
    )
