"""Reads data sets that lie in arrays: `.npz` files, idx files (MNIST, Fashion-MNIST), scikit-learn's digits."""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from oche.data.reading.parts import ALIASES, Parts, from_arrays
from oche.data.reading.pixels import Size
from oche.errors import UserError

Pair = tuple[NDArray[np.generic], NDArray[np.generic]]

WHOLE_KEYS = (("x", "y"), ("images", "labels"))
PART_KEYS = (("x_{}", "y_{}"), ("{}_images", "{}_labels"))


def read_digits(size: Size | None, channels: int | None) -> Parts:
    """The 1,797 grey digits of 8x8 pixels inside scikit-learn, their values 0..16 mapped to 0..255."""
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    classes = tuple(map(str, range(10)))
    arrays = {"train": (images, digits.target)}
    return from_arrays("digits", arrays, size=size, channels=channels, classes=classes, flip=False)


def read_npz(path: Path, size: Size | None, channels: int | None) -> Parts:
    """An archive of x and y (or images and labels), or x_train and y_train and perhaps x_val, y_val, x_test, y_test.

    The key `classes` may hold the names. The layout of MedMNIST (train_images, train_labels, ...) is read as well.

    Raises:
        UserError: the file is broken or holds pickled objects, keys are missing, images or labels do not fit.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read as an .npz file: {error}; write it with numpy.savez.") from error
    names = arrays.get("classes")
    classes = () if names is None else tuple(names.astype(str).ravel().tolist())
    return from_arrays(path.stem, _pairs(arrays, path), size=size, channels=channels, classes=classes)


def has_idx(root: Path) -> bool:
    """Whether the folder holds the train images of the MNIST layout."""
    return bool(list(root.glob("train-images-idx3-ubyte*")))


def read_idx(root: Path, size: Size | None, channels: int | None) -> Parts:
    """train-images-idx3-ubyte, train-labels-idx1-ubyte and, if there, t10k-..., each perhaps with .gz behind.

    Raises:
        UserError: a file is missing or broken.
    """
    arrays = {"train": _idx_pair(root, "train")}
    if list(root.glob("t10k-images-idx3-ubyte*")):
        arrays["test"] = _idx_pair(root, "t10k")
    return from_arrays(root.resolve().name, arrays, size=size, channels=channels, flip=False)


def read_idx_file(path: Path) -> NDArray[np.uint8]:
    """An array of bytes: magic 0 0 8 n, then n big-endian sizes, then the values (LeCun's format).

    Raises:
        UserError: the file has another format, or is cut short.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}; fetch it again.") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise UserError(f"{path} is not an idx file of bytes; it should begin with 0 0 8.")
    axes = raw[3]
    shape = tuple(int.from_bytes(raw[4 + 4 * a : 8 + 4 * a], "big") for a in range(axes))
    if len(raw) != 4 + 4 * axes + math.prod(shape):
        raise UserError(f"{path} has {len(raw)} bytes, not what its shape {shape} asks for; fetch it again.")
    return np.frombuffer(bytearray(raw), np.uint8, offset=4 + 4 * axes).reshape(shape)


def _pairs(arrays: dict[str, NDArray[np.generic]], path: Path) -> dict[str, Pair]:
    """Part -> (images, labels), whatever the archive calls them."""
    for images, labels in WHOLE_KEYS:
        if images in arrays and labels in arrays:
            return {"train": (arrays[images], arrays[labels])}
    pairs: dict[str, Pair] = {}
    for part, aliases in ALIASES.items():
        for images, labels in ((x.format(alias), y.format(alias)) for alias in aliases for x, y in PART_KEYS):
            if images in arrays and labels in arrays:
                pairs[part] = arrays[images], arrays[labels]
            elif images in arrays or labels in arrays:
                have, lack = (images, labels) if images in arrays else (labels, images)
                raise UserError(f"{path} has {have} but no {lack}; each part needs both.")
    if "train" not in pairs:
        keys = ", ".join(arrays) or "(none)"
        raise UserError(f"{path} has the keys {keys}; expected x and y, or x_train and y_train.")
    return pairs


def _idx_pair(root: Path, prefix: str) -> Pair:
    found = []
    for name in (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"):
        paths = [path for path in (root / name, root / f"{name}.gz") if path.is_file()]
        if not paths:
            raise UserError(f"{root} has no file {name} or {name}.gz; the idx layout needs images and labels.")
        found.append(read_idx_file(paths[0]))
    return found[0], found[1]
