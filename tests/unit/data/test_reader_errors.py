"""Every mistake in a data set is told in one sentence that names what is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from oche.data import load
from oche.errors import UserError

X = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
Y = np.arange(12) % 2
LABELLED: dict[str, NDArray[np.generic]] = {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y}


def nan() -> NDArray[np.float32]:
    images = (X / 255).astype(np.float32)
    images[3, 0, 0, 0] = np.nan
    return images


ARCHIVES: dict[str, tuple[dict[str, NDArray[np.generic]], str]] = {
    "keys": ({"data": X, "y": Y}, r"has the keys data, y; expected x and y, or x_train and y_train"),
    "half": ({"x_train": X}, r"has x_train but no y_train"),
    "test_half": ({"x_train": X, "y_train": Y, "x_test": X}, r"has x_test but no y_test"),
    "empty": ({"x": X[:0], "y": Y[:0]}, r"has shape \(0, 8, 8, 3\), so it holds no images"),
    "axes": ({"x": X[0, 0], "y": Y[:8]}, r"has shape \(8, 3\); images need"),
    "no_channels": ({"x": np.zeros((12, 8, 8, 8)), "y": Y}, r"in which no axis is shorter than the image's two"),
    "strings": ({"x": np.full((12, 8, 8), "a"), "y": Y}, r"images need integers or floats"),
    "nan": ({"x": nan(), "y": Y}, r"has NaN or infinity in image 3"),
    "small": ({"x": X[:, :7], "y": Y}, r"Images of 7 x 8 pixels are too small; 8 x 8 is the least"),
    "fewer_labels": ({"x": X, "y": Y[:-1]}, r"there are 11 labels for 12 images"),
    "two_columns": ({"x": X, "y": np.stack([Y, Y + 1], 1)}, r"have shape \(12, 2\); expected one class number or name"),
    "not_finite": ({"x": X, "y": np.where(np.arange(12) == 3, np.nan, 0.5)}, r"hold NaN or infinity"),
    "names_twice": (
        {"x": X, "y": Y.astype(str), "classes": np.array(["a", "b"])},
        r"names as labels and a list of classes",
    ),
    "ids": ({"x": np.tile(X, (100, 1, 1, 1)), "y": np.arange(1200)}, r"1,200 different labels for 1,200 images"),
    "negative": ({"x": X, "y": Y - 1}, r"the train labels run from -1 to 0"),
    "beyond": ({"x": X, "y": Y * 5, "classes": np.array(["a", "b"])}, r"run from 0 to 5, but the 2 classes are 0 to 1"),
    "beyond_in_test": (LABELLED | {"y_test": Y + 1}, r"\(test labels\) run from 1 to 2, but the 2 classes are 0 to 1"),
    "hole": ({"x": X, "y": Y * 2, "classes": np.array(["a", "b", "c"])}, r"class 1 \('b'\) has no train image"),
    "one_class": ({"x": X, "y": Y * 0}, r"has one class only, '0'"),
    "too_few": ({"x": X, "y": np.array([0] * 11 + [1])}, r"Class '1' has 1 images, too few to split into shares"),
    "sizes": (LABELLED | {"x_test": X[:, :, :, :1]}, r"has parts of \[1, 3\] channels; pass channels="),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives(tmp_path: Path, case: str) -> None:
    arrays, message = ARCHIVES[case]
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        load(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04broken"])
def test_a_broken_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npz cannot be read as an \.npz file"):
        load(tmp_path / "a.npz")


def test_an_archive_that_is_locked_with_a_password_is_one_sentence(tmp_path: Path) -> None:
    """The bit that says so, in both of the file's directories: one that fuzzing flipped."""
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 8, 8, 3), np.uint8), y=np.arange(4))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    for sign, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.rindex(sign) + offset] |= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npz cannot be read as an \.npz file: .* is encrypted"):
        load(tmp_path / "a.npz")


def test_pickled_objects_are_not_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object), y=Y)
    with pytest.raises(UserError, match=r"cannot be read as an \.npz file"):
        load(tmp_path / "a.npz")


@pytest.mark.parametrize("channels", [0, 2, 5])
def test_impossible_channels(channels: int) -> None:
    with pytest.raises(UserError, match=f"channels={channels}( is not possible; choose 1|: leave channels out)"):
        load("digits", channels=channels)


def test_channels_that_cannot_be_made() -> None:
    with pytest.raises(UserError, match=r"digits has images of 1 channels, which cannot become channels=4"):
        load("digits", channels=4)


@pytest.mark.parametrize(
    ("val", "test", "message"),
    [
        (0.0, 0.2, r"val=0.0 is not a share"),
        (0.2, 1.0, r"test=1.0 is not a share"),
        (0.5, 0.5, r"val=0.5 and test=0.5 leave no train images"),
    ],
)
def test_impossible_shares(val: float, test: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load("digits", val=val, test=test)


def test_too_small_a_size() -> None:
    with pytest.raises(UserError, match="Images of 4 x 4 pixels are too small"):
        load("digits", size=4)


def test_data_that_has_been_read() -> None:
    with pytest.raises(UserError, match="digits has been read already"):
        load(load("digits"), size=16)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no data set or folder 'digit'; did you mean 'digits'\?"):
        load("digit")
    with pytest.raises(UserError, match=r"There is no file or folder .*missing; check the path"):
        load(tmp_path / "missing")
    with pytest.raises(UserError, match=r"There is no file or folder cifar\.npz"):
        load("cifar.npz")
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(UserError, match=r"a\.csv, line 1: there is no file 1 below"):
        load(tmp_path / "a.csv")
    (tmp_path / "a.txt").write_text("1,2")
    with pytest.raises(UserError, match=r"is a \.txt file; expected a folder of images, an \.npz file or a \.csv"):
        load(tmp_path / "a.txt")


def make_folder(root: Path, *names: str, count: int = 6) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(X[i]).save(root / name / f"{i}.png")
    return root


def empty(root: Path) -> None:
    root.mkdir(exist_ok=True)


def loose_files(root: Path) -> None:
    Image.fromarray(X[0]).save(root / "0.png")


def one_class(root: Path) -> None:
    make_folder(root, "a")


def hollow_class(root: Path) -> None:
    make_folder(root, "a", "b")
    (root / "c").mkdir()


def different_classes(root: Path) -> None:
    make_folder(root, "train/a", "train/b", "test/a", "test/c")


def no_train(root: Path) -> None:
    make_folder(root, "val/a", "val/b")


def no_image(root: Path) -> None:
    (make_folder(root, "a", "b") / "b" / "3.png").write_text("no image")


def cut_short(root: Path) -> None:
    path = make_folder(root, "a", "b") / "b" / "3.png"
    path.write_bytes(path.read_bytes()[:-60])


def tiny(root: Path) -> None:
    Image.new("RGB", (7, 30)).save(make_folder(root, "a", "b") / "a" / "9.png")


def few(root: Path) -> None:
    make_folder(root, "a", "b", count=2)


FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (empty, r"holds no folders; expected one folder of images for each class"),
    "loose_files": (loose_files, r"holds no folders; expected one folder of images for each class"),
    "one_class": (one_class, r"has one class only, 'a'"),
    "hollow_class": (hollow_class, r"The class folder .*c holds no images"),
    "different_classes": (different_classes, r"test and .*train differ in the class 'b'"),
    "no_train": (no_train, r"has a folder for val but none called train"),
    "no_image": (no_image, r"The image .*b.3\.png cannot be read: it is not an image"),
    "cut_short": (cut_short, r"The image .*b.3\.png cannot be read: .*; remove or replace it"),
    "tiny": (tiny, r"9\.png has 30 x 7 pixels, too small; 8 x 8 is the least"),
    "few": (few, r"Class 'a' has 2 images, too few to split into shares of 0.6, 0.2, 0.2"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders(tmp_path: Path, case: str) -> None:
    make, message = FOLDERS[case]
    make(tmp_path)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte", b"\0\0\x08\x03" + bytes(3), r"not what its shape"),
        ("train-images-idx3-ubyte", b"\0\0\x0d\x03", r"is not an idx file of bytes"),
        ("train-images-idx3-ubyte.gz", b"no gzip", r"cannot be read: .*; fetch it again"),
        ("train-images-idx3-ubyte", b"\0\0\x08\x00a", r"has no file train-labels-idx1-ubyte or"),
    ],
)
def test_idx_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


class Items(Dataset[object]):
    """Any items."""

    def __init__(self, *items: object) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> object:
        return self.items[i]


class Endless(IterableDataset[object]):
    def __iter__(self) -> Iterator[object]:
        yield from ()


IMAGE = torch.zeros(3, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Endless(), r"The train dataset \(Endless\) has no length"),
        (Items(), r"The train dataset \(Items\) holds no images"),
        (Items(IMAGE), r"Item 0 of Items is not a pair"),
        (Items((IMAGE, 0), (IMAGE, "cat")), r"Item 1 of Items has the label 'cat'"),
        (Items(("image", 0)), r"Item 0 of Items has an image of type str"),
        (Items((torch.zeros(9, 8, 8), 0)), r"Item 0 of Items has shape .* no axis is shorter"),
        (Items((IMAGE / 255, 0), (torch.zeros(3, 9, 8), 1)), r"gives images of 2 shapes; only uint8 ones may differ"),
    ],
)
def test_datasets(dataset: Dataset[object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(dataset)


def test_tuples_of_datasets() -> None:
    part = TensorDataset(torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))
    for given in ((), (None, part), (part,) * 4):
        with pytest.raises(UserError, match=r"must be \(train, val, test\), where val and test may be None"):
            load(given)


def test_other_objects() -> None:
    with pytest.raises(UserError, match="Data cannot be read from a int"):
        load(3)  # type: ignore[arg-type]


def test_torchvision_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(UserError, match=r"pip install oche\[vision\]"):
        load("cifar10")


def test_torchvision_finds_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def cifar(root: str, train: bool) -> object:
        raise RuntimeError("Dataset not found or corrupted.")

    datasets = type(sys)("torchvision.datasets")
    monkeypatch.setattr(datasets, "CIFAR10", cifar, raising=False)
    monkeypatch.setitem(sys.modules, "torchvision", type(sys)("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    monkeypatch.setenv("OCHE_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"torchvision finds no CIFAR10 in .*set OCHE_DATA"):
        load("cifar10")


def test_images_that_are_not_finite_are_all_named_and_nothing_else_is_said(tmp_path: Path) -> None:
    """Two folders are compared file by file before they are classes; numpy's warning of it would be an error here."""
    rng = np.random.default_rng(0)
    for name, spoilt in (("cat", np.nan), ("dog", np.inf)):
        (tmp_path / name).mkdir()
        for i in range(8):
            values = rng.random((8, 8)).astype("f4")
            values[0, 0] = spoilt if i == 3 else 0.5
            Image.fromarray(values).save(tmp_path / name / f"{i}.tiff")
    with pytest.raises(
        UserError, match=r"2 problems.*cat/3\.tiff has NaN or infinity.*dog/3\.tiff has NaN or infinity"
    ):
        load(tmp_path)
