"""The same images through every reader give the same tensors; what is missing is split off, what is odd is noted."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from torch.testing import assert_close
from torch.utils.data import Dataset, TensorDataset

from oche.data import ArraySource, Data, ImageSet, LazySource, load
from oche.errors import UserError

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Arrays = dict[str, NDArray[np.generic]]


def pictures(
    per_class: int = 10, classes: int = 3, depth: int = 3, side: int = 8, seed: int = 0
) -> tuple[Images, Labels]:
    """Random images in the order of their classes, as a folder gives them: (N, side, side, depth), (N,)."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (per_class * classes, side, side, depth), dtype=np.uint8)
    return images, np.repeat(np.arange(classes), per_class)


def write_folder(root: Path, images: Images, labels: Labels) -> Path:
    """root/c0/000.png ..., written last first: the order of the file system must not matter."""
    for i in reversed(range(len(images))):
        folder = root / f"c{labels[i]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i].squeeze()).save(folder / f"{i:03}.png")
    return root


def write_npz(path: Path, **arrays: NDArray[np.generic]) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def write_idx(root: Path, prefix: str, images: Images, labels: Labels, compress: bool = False) -> Path:
    root.mkdir(exist_ok=True)
    for kind, array in (("images-idx3", images.squeeze(-1)), ("labels-idx1", labels.astype(np.uint8))):
        raw = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
        name = f"{prefix}-{kind}-ubyte" + (".gz" if compress else "")
        (root / name).write_bytes(gzip.compress(raw) if compress else raw)
    return root


class Pictures(Dataset[tuple[Image.Image, int]]):
    """A map-style dataset of PIL images, as torchvision's are."""

    def __init__(self, images: Images, labels: Labels) -> None:
        self.images, self.labels = images, labels
        self.classes = [f"c{c}" for c in range(3)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[i].squeeze()), int(self.labels[i])


def everything(part: ImageSet) -> tuple[torch.Tensor, torch.Tensor]:
    return part.take(torch.arange(len(part)))


def assert_same(first: Data, second: Data) -> None:
    for part in ("train", "val", "test"):
        for a, b in zip(everything(getattr(first, part)), everything(getattr(second, part)), strict=True):
            assert_close(a, b, rtol=0, atol=0)
    assert (first.size, first.channels) == (second.size, second.channels)
    assert first.mean == pytest.approx(second.mean)
    assert first.std == pytest.approx(second.std)


Make = Callable[[Path, Images, Labels], Data]

READERS: dict[str, Make] = {
    "npz_nhwc": lambda tmp, x, y: load(write_npz(tmp / "a.npz", x=x, y=y)),
    "npz_nchw": lambda tmp, x, y: load(write_npz(tmp / "b.npz", images=x.transpose(0, 3, 1, 2), labels=y)),
    "npz_int64": lambda tmp, x, y: load(write_npz(tmp / "c.npz", x=x.astype(np.int64), y=y[:, None].astype(np.uint8))),
    "pil_dataset": lambda tmp, x, y: load(Pictures(x, y)),
    "tensor_dataset": lambda tmp, x, y: load(
        TensorDataset(torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(y))
    ),
    "tuple_of_one": lambda tmp, x, y: load((Pictures(x, y), None, None)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("depth", [1, 3])
def test_the_same_images_through_every_reader(tmp_path: Path, reader: str, depth: int) -> None:
    images, labels = pictures(depth=depth)
    assert_same(load(write_folder(tmp_path / "folder", images, labels)), READERS[reader](tmp_path, images, labels))


@pytest.mark.parametrize("compress", [True, False])
def test_idx_files_are_the_same_images_too(tmp_path: Path, compress: bool) -> None:
    images, labels = pictures(depth=1)
    more, others = pictures(depth=1, per_class=4, seed=1)
    root = write_idx(tmp_path / "idx", "train", images, labels, compress)
    assert_same(load(root), load(write_npz(tmp_path / "a.npz", x=images, y=labels)))
    write_idx(root, "t10k", more, others, compress)
    arrays: Arrays = {"x_train": images, "y_train": labels, "x_test": more, "y_test": others}
    assert_same(load(root), load(write_npz(tmp_path / "b.npz", **arrays)))
    assert not load(root).flip


@pytest.mark.parametrize("size", [8, 12])
@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_and_converting_is_the_same_from_file_and_array(tmp_path: Path, size: int, channels: int) -> None:
    images, labels = pictures(side=10)
    folder = load(write_folder(tmp_path / "folder", images, labels), size=size, channels=channels)
    assert_same(folder, load(write_npz(tmp_path / "a.npz", x=images, y=labels), size=size, channels=channels))
    assert (folder.size, folder.channels) == ((size, size), channels)


def test_a_folder_with_parts_keeps_them(tmp_path: Path) -> None:
    parts = {"train": pictures(), "valid": pictures(4, seed=1), "test": pictures(5, seed=2)}
    for name, (images, labels) in parts.items():
        write_folder(tmp_path / name, images, labels)
    data = load(tmp_path)
    for part, name in (("train", "train"), ("val", "valid"), ("test", "test")):
        for got, expected in zip(everything(getattr(data, part)), parts[name], strict=True):
            assert_close(got, torch.from_numpy(expected))
    assert data.classes == ("c0", "c1", "c2")
    assert data.notes[0] == "30 train, 12 val, 15 test; as given."


def test_what_is_missing_is_split_off_train_by_class(tmp_path: Path) -> None:
    images, labels = pictures(per_class=20)
    arrays: Arrays = {"x_train": images, "y_train": labels, "x_test": images[::4], "y_test": labels[::4]}
    with_test = load(write_npz(tmp_path / "a.npz", **arrays), val=0.25)
    assert [torch.bincount(part.targets).tolist() for part in (with_test.train, with_test.val)] == [[15] * 3, [5] * 3]
    alone = load(write_npz(tmp_path / "b.npz", x=images, y=labels), val=0.1, test=0.3)
    counts = [torch.bincount(part.targets).tolist() for part in (alone.train, alone.val, alone.test)]
    assert counts == [[12] * 3, [2] * 3, [6] * 3]
    taken = torch.cat([alone.train.index, alone.val.index, alone.test.index])
    assert sorted(taken.tolist()) == list(range(60))


def test_the_seed_decides_the_split(tmp_path: Path) -> None:
    images, labels = pictures()
    path = write_npz(tmp_path / "a.npz", x=images, y=labels)
    assert_same(load(path, seed=1), load(path, seed=1))
    assert load(path, seed=1).train.index.tolist() != load(path, seed=2).train.index.tolist()


def test_digits_are_scikit_learns() -> None:
    data = load("digits")
    order = torch.cat([data.train.index, data.val.index, data.test.index]).argsort()
    images = torch.cat([everything(part)[0] for part in (data.train, data.val, data.test)])[order, ..., 0]
    assert_close(images.double() * 16 / 255, torch.from_numpy(load_digits().images), atol=0.04, rtol=0)
    assert (data.channels, data.size, data.flip, data.classes[9]) == (1, (8, 8), False, "9")
    assert not any("pixel for pixel" in note for note in data.notes)


def test_mean_and_std_are_those_of_train(tmp_path: Path) -> None:
    images, labels = pictures()
    data = load(write_npz(tmp_path / "a.npz", x=images, y=labels))
    pixels = images[data.train.index.numpy()].reshape(-1, 3) / 255
    assert data.mean == pytest.approx(pixels.mean(0))
    assert data.std == pytest.approx(pixels.std(0))


def test_floats_stay_floats(tmp_path: Path) -> None:
    images, labels = pictures()
    floats = load(write_npz(tmp_path / "a.npz", x=(images / 255).astype(np.float32), y=labels))
    tensors = TensorDataset(torch.from_numpy(images).permute(0, 3, 1, 2) / 255, torch.from_numpy(labels))
    assert_same(floats, load(tensors))
    data = load(write_npz(tmp_path / "b.npz", x=images, y=labels))
    assert_close(everything(floats.val)[0], everything(data.val)[0] / 255)
    assert floats.mean == pytest.approx(data.mean)


def test_medmnist_archives_are_read(tmp_path: Path) -> None:
    images, labels = pictures()
    keys: Arrays = {"images": images, "labels": labels[:, None]}
    arrays: Arrays = {f"{part}_{kind}": array for part in ("train", "val", "test") for kind, array in keys.items()}
    data = load(write_npz(tmp_path / "a.npz", **arrays))
    assert len(data.train) == len(data.val) == len(data.test) == 30


def test_names_of_classes_come_along(tmp_path: Path) -> None:
    images, labels = pictures()
    assert (
        load(write_npz(tmp_path / "a.npz", x=images, y=labels, classes=np.array(["cat", "dog", "owl"]))).classes[1]
        == "dog"
    )
    assert load(write_npz(tmp_path / "b.npz", x=images, y=labels)).classes == ("0", "1", "2")
    assert load(Pictures(images, labels)).classes == ("c0", "c1", "c2")


def test_what_does_not_fit_in_memory_is_decoded_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = pictures()
    root = write_folder(tmp_path / "folder", images, labels)
    eager = load(root)
    assert isinstance(eager.train.source, ArraySource)
    monkeypatch.setattr("oche.data.reading.listing.MEMORY_LIMIT", 30 * 8 * 8 * 3 - 1)
    for lazy in (load(root), load(Pictures(images, labels))):
        assert isinstance(lazy.train.source, LazySource)
        assert_same(eager, lazy)
        assert any("decoded on demand" in note for note in lazy.notes)


def test_images_of_different_sizes_are_brought_to_their_median(tmp_path: Path) -> None:
    for c in "ab":
        (tmp_path / c).mkdir()
        for i, width in enumerate((20, 30, 42, 30, 30)):
            Image.new("RGB", (width, 16 + i), "red").save(tmp_path / c / f"{i}.png")
    data = load(tmp_path)
    assert data.size == (16, 32)  # medians 18 and 30, to multiples of 8
    assert any("resized to 16x32 (the median" in note for note in data.notes)
    assert_close(everything(data.train)[0][0, 0, 0], torch.tensor([255, 0, 0], dtype=torch.uint8))


def test_grey_and_colour_files_together_become_colour(tmp_path: Path) -> None:
    images, labels = pictures(depth=1)
    write_folder(tmp_path, images, labels)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "c0" / "000.png")
    data = load(tmp_path)
    assert data.channels == 3
    assert any("mixed" in note for note in data.notes)
    assert load(tmp_path, channels=1).channels == 1


@pytest.mark.parametrize("size", [None, 16])
def test_files_of_many_kinds(tmp_path: Path, size: int | None) -> None:
    """Palette, transparency, a turned photograph; other files and hidden ones are passed over."""
    grey = Image.new("L", (16, 16), 128)
    turned = Image.Exif()
    turned[0x0112] = 6
    for c in "ab":
        folder = tmp_path / c / "below"
        folder.mkdir(parents=True)
        grey.convert("P").save(folder / "0.png")
        grey.convert("RGBA").save(folder / "1.PNG")
        grey.convert("LA").save(folder / "2.png")
        Image.new("RGB", (20, 16), (128,) * 3).save(folder / "3.jpg", exif=turned)
        grey.save(folder / "4.bmp")
        (folder / "notes.txt").write_text("no image")
        (folder / ".5.png").write_text("hidden")
    data = load(tmp_path, size=size)
    assert len(data.train) + len(data.val) + len(data.test) == 10
    assert (everything(data.train)[0].int() - 128).abs().max() <= 1


def test_a_turned_photograph_is_upright(tmp_path: Path) -> None:
    pixels = np.zeros((24, 16, 3), np.uint8)
    pixels[:, :8] = 255  # white on the left, as stored
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: white on top
    for c in "ab":
        (tmp_path / c).mkdir()
        for i in range(5):
            Image.fromarray(pixels).save(tmp_path / c / f"{i}.png", exif=exif)
    data = load(tmp_path)
    assert data.size == (16, 24)
    image = everything(data.train)[0][0, ..., 0]
    assert int(image[0].min()) == 255
    assert int(image[-1].max()) == 0


def test_leaks_and_imbalance_are_noted(tmp_path: Path) -> None:
    images, labels = pictures()
    labels[:4] = 1
    test, others = pictures(2, seed=1)
    test[:2] = images[:2]
    arrays: Arrays = {"x_train": images, "y_train": labels, "x_val": pictures(2, seed=2)[0], "y_val": others}
    notes = load(write_npz(tmp_path / "a.npz", **arrays, x_test=test, y_test=others)).notes
    assert "2 of the 6 test images are in train too, pixel for pixel." in notes
    assert "Classes are unbalanced in train: 14 images of '1', 6 of '0'." in notes
    assert not any("val images are" in note for note in notes)


def test_data_passes_through_but_for_flip() -> None:
    data = load("digits")
    assert load(data) is data
    assert load(data, flip=True).flip
    assert load("digits", flip=True).flip


@pytest.mark.parametrize("name", ["digits", "camvid", "cifar10"])
def test_a_local_folder_may_have_the_name_of_a_set(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / name, *pictures())
    monkeypatch.chdir(tmp_path)
    message = rf"'{name}' is both the folder .*{name} and a built-in data set: write \./{name}"
    with pytest.raises(UserError, match=message):
        load(name)
    assert load("builtin:digits").channels == 1
    assert load(f"./{name}").channels == 3


def fake_torchvision(monkeypatch: pytest.MonkeyPatch, **sets: Callable[..., object]) -> None:
    datasets = ModuleType("torchvision.datasets")
    for name, make in sets.items():
        setattr(datasets, name, make)
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)


def test_torchvisions_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision is not installed where this is tested: stand-ins with the attributes that it documents."""
    images, labels = pictures()
    roots: list[str] = []

    def cifar(root: str, train: bool) -> SimpleNamespace:
        roots.append(root)
        part = slice(None) if train else slice(None, None, 3)
        return SimpleNamespace(data=images[part], targets=labels[part].tolist(), classes=["a", "b", "c"])

    def svhn(root: str, split: str) -> SimpleNamespace:
        part = slice(None) if split == "train" else slice(None, None, 3)
        return SimpleNamespace(data=images[part].transpose(0, 3, 1, 2), labels=labels[part])

    files = sorted(write_folder(tmp_path / "n", images, labels).rglob("*.png"))

    def imagenet(root: str, split: str) -> SimpleNamespace:
        part = slice(None) if split == "train" else slice(None, None, 3)
        samples = [(str(path), int(path.parent.name[1])) for path in files[part]]
        return SimpleNamespace(samples=samples, classes=[("tench", "Tinca tinca"), ("goldfish",), ("shark",)])

    fake_torchvision(monkeypatch, CIFAR10=cifar, CIFAR100=cifar, SVHN=svhn, ImageNet=imagenet)
    monkeypatch.setenv("OCHE_DATA", "somewhere")
    arrays: Arrays = {"x_train": images, "y_train": labels, "x_test": images[::3], "y_test": labels[::3]}
    expected = load(write_npz(tmp_path / "a.npz", **arrays))
    for name in ("cifar10", "cifar100", "svhn"):
        assert_same(load(name), expected)
    assert_same(load("imagenet", size=8), expected)
    assert set(roots) == {"somewhere"}
    assert (load("cifar10").flip, load("svhn").flip) == (True, False)
    assert (load("imagenet").size, load("imagenet").classes[0]) == ((224, 224), "tench")
    assert load("cifar10").classes == ("a", "b", "c")
