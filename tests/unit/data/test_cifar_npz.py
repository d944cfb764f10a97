"""benchmarks/cifar_npz.py: sheets of tiles come out as the images that went in; the real ones have the known sum."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from oche.data import halves, load

Array = NDArray[np.uint8]
SCRIPT = Path(__file__).parents[3] / "benchmarks" / "cifar_npz.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cifar_npz", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_sheet(path: Path, images: Array, columns: int) -> None:
    """Tile by tile, row by row: the literal inverse of reading."""
    rows = len(images) // columns
    sheet = np.zeros((rows * 32, columns * 32, 3), np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * 32, i % columns * 32
        sheet[top : top + 32, left : left + 32] = image
    Image.fromarray(sheet).save(path, lossless=True)


@pytest.fixture
def sheets(tmp_path: Path) -> tuple[Path, Array, Array]:
    """A small CIFAR-10 of the same layout: 8 train images in two halves, 4 test images."""
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    labels = np.array([0, 1] * 6, np.uint8)
    halves = {"a": np.array([0, 1, 4, 7]), "b": np.array([2, 3, 5, 6])}
    root = tmp_path / "cifar10"
    root.mkdir()
    index = {"test_label": labels[8:], "classes": np.array(["cat", "dog"])}
    for half, positions in halves.items():
        write_sheet(root / f"train_{half}.webp", images[positions], 2)
        index |= {f"train_{half}_index": positions, f"train_{half}_label": labels[positions]}
    write_sheet(root / "test.webp", images[8:], 4)
    np.savez(root / "index.npz", **index)  # type: ignore[arg-type]
    return tmp_path, images, labels


def test_the_script_writes_what_load_reads(
    script: ModuleType, sheets: tuple[Path, Array, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, images, labels = sheets
    out = folder / "out.npz"
    monkeypatch.setattr(sys, "argv", ["cifar_npz.py", str(folder), "--out", str(out)])
    script.main()
    with np.load(out) as archive:
        np.testing.assert_array_equal(archive["x_train"], images[:8])
        np.testing.assert_array_equal(archive["y_train"], labels[:8])
        np.testing.assert_array_equal(archive["x_test"], images[8:])
    data = load(out, val=0.25)
    assert (data.classes, len(data.test), data.size) == (("cat", "dog"), 4, (32, 32))


def test_a_half_alone(script: ModuleType, sheets: tuple[Path, Array, Array]) -> None:
    folder, images, _ = sheets
    np.testing.assert_array_equal(script.cifar10(folder / "cifar10", "a")["x_train"], images[[0, 1, 4, 7]])


def test_fewer_and_smaller_images(
    script: ModuleType, sheets: tuple[Path, Array, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, images, labels = sheets
    files = [folder / "first.npz", folder / "again.npz"]
    for out in files:
        options = ["--per-class", "3", "--size", "16", "--seed", "1", "--out", str(out)]
        monkeypatch.setattr(sys, "argv", ["cifar_npz.py", str(folder), *options])
        script.main()
    assert files[0].read_bytes() == files[1].read_bytes()
    with np.load(files[0]) as archive:
        assert archive["y_train"].tolist().count(0) == archive["y_train"].tolist().count(1) == 3
        np.testing.assert_array_equal(archive["x_test"], halved(images[8:]))
        small = halved(images[:8])
        for image, label in zip(archive["x_train"], archive["y_train"], strict=True):
            (found,) = np.flatnonzero((small == image).all((1, 2, 3)))
            assert labels[found] == label


def test_validation_images_out_of_the_test_images_leave_all_train_images(
    script: ModuleType, sheets: tuple[Path, Array, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, images, labels = sheets
    out = folder / "out.npz"
    monkeypatch.setattr(sys, "argv", ["cifar_npz.py", str(folder), "--val-per-class", "1", "--out", str(out)])
    script.main()
    with np.load(out) as archive:
        assert sorted(archive["y_val"]) == sorted(archive["y_test"]) == [0, 1]
        shown = np.concatenate([archive["x_val"], archive["x_test"]])
        numbers = [int(np.flatnonzero((images == image).all((1, 2, 3)))[0]) for image in shown]
        np.testing.assert_array_equal(labels[numbers], np.concatenate([archive["y_val"], archive["y_test"]]))
    assert sorted(numbers) == [8, 9, 10, 11]
    data = load(out)
    assert (len(data.train), len(data.val), len(data.test)) == (8, 2, 2)


def test_a_search_on_all_train_images_halves_them(
    script: ModuleType, sheets: tuple[Path, Array, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, *_ = sheets
    out = folder / "out.npz"
    monkeypatch.setattr(sys, "argv", ["cifar_npz.py", str(folder), "--val-per-class", "1", "--out", str(out)])
    script.main()
    parts = halves()(load(out).train, seed=0)
    assert parts.arch is not None
    assert (len(parts.weights), len(parts.arch)) == (4, 4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--val-per-class", "2"], "2 of each class are all test images; leave some"),
        (["--val-per-class", "3"], "class 0 has 2 images; 3 of them cannot be kept"),
        (["--val-per-class", "1", "--set", "cifar100"], "--val-per-class is for cifar10"),
    ],
)
def test_validation_images_that_cannot_be_had(
    script: ModuleType,
    sheets: tuple[Path, Array, Array],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["x", str(sheets[0]), *options, "--out", str(sheets[0] / "out.npz")])
    with pytest.raises(SystemExit) as stop:
        script.main()
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_more_images_than_there_are(
    script: ModuleType,
    sheets: tuple[Path, Array, Array],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, _, _ = sheets
    for count in ("5", "0"):
        monkeypatch.setattr(sys, "argv", ["x", str(folder), "--per-class", count, "--out", str(folder / "out.npz")])
        with pytest.raises(SystemExit) as stop:
            script.main()
        assert stop.value.code == 2
        assert f"class 0 has 4 images; {count} of them cannot be kept" in capsys.readouterr().err


def halved(images: Array) -> Array:
    """Each pixel the mean of four, in floating point, halves rounded up: the literal reading."""
    mean = (images[:, ::2, ::2] * 1.0 + images[:, 1::2, ::2] + images[:, ::2, 1::2] + images[:, 1::2, 1::2]) / 4
    return np.floor(mean + 0.5).astype(np.uint8)


def test_real_cifar_100(script: ModuleType, data_folder: Path) -> None:
    """The sum that the folder's README gives for the decoded test images."""
    if not (data_folder / "cifar100" / "test.webp").is_file():
        pytest.skip(f"no cifar100/test.webp in {data_folder}")
    arrays = script.cifar100(data_folder / "cifar100")
    digest = hashlib.sha256(arrays["x"].tobytes()).hexdigest()
    assert digest == "4cb8e5d9309da489bf6b19cc10cd96c3ae6f8daf225380b605aaee4c0d6aee19"
    assert np.bincount(arrays["y"]).tolist() == [100] * 100
