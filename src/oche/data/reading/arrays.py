"""Reads data sets that lie in arrays: `.npz` files, idx files (MNIST, Fashion-MNIST), scikit-learn's digits."""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from oche.data.entries import fates
from oche.data.reading.classes import texts_of
from oche.data.reading.found import ALIASES, Pair, Parts, Wish
from oche.data.reading.stacked import from_arrays
from oche.errors import UserError

WHOLE_KEYS = (("x", "y"), ("images", "labels"))
BOMB_BYTES, BOMB_RATIO = 2 * 2**30, 200
"""An archive of more bytes than this, and more than this many times its own size, is refused."""

MOST = 2**33
"""Values that an idx file may claim to hold."""

NAME_KEYS = ("classes", "class_names", "label_names")

PART_KEYS = (("x_{}", "y_{}"), ("{}_images", "{}_labels"))


def read_digits(wish: Wish) -> Parts:
    """The 1,797 grey digits of 8x8 pixels inside scikit-learn, their values 0..16 mapped to 0..255."""
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    classes = tuple(map(str, range(10)))
    arrays = {"train": (images, digits.target)}
    return from_arrays("digits", arrays, wish, classes=classes, flip=False, layout="built-in")


def read_npz(path: Path, wish: Wish) -> Parts:
    """An archive of x and y (or images and labels), or x_train and y_train and perhaps x_val, y_val, x_test, y_test.

    Labels are numbers or names, and the key `classes` may hold the names of numbers. The layout of MedMNIST (train_images, train_labels,
    ...) is read as well.

    Raises:
        UserError: the file is broken or holds pickled objects, keys are missing, images or labels do not fit.
    """
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise UserError(
                    f"{path} holds one array, as an .npy file does; expected an archive with x and y, as numpy.savez writes it."
                )
            refuse_bomb(path)
            arrays = {key: archive[key] for key in archive.files}
    except UserError:
        raise
    except (
        OSError,
        ValueError,
        EOFError,
        RuntimeError,
        LookupError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        objects = "write texts as `y.astype(str)`, and images of one size as one array of numbers"
        said, do = str(error).strip("."), objects if "Object arrays" in str(error) else "write it with numpy.savez"
        said = "it is none" if "pickled (object) data" in said else said  # numpy's words for any other file
        raise UserError(f"{path} cannot be read as an .npz file: {said}; {do}.") from error
    plain = {key.lower(): array for key, array in arrays.items()}
    arrays = plain if len(plain) == len(arrays) else arrays  # X and Y are x and y
    named = next((key for key in NAME_KEYS if key in arrays), None)
    classes = () if named is None else tuple(texts_of(arrays[named], f"{path} ({named})").ravel().tolist())
    pairs, used = _pairs(arrays, path)
    parts = from_arrays(path.stem, pairs, wish, classes=classes, layout=".npz archive")
    left = [(key, "a key that is no image or label of a part") for key in arrays if key not in used | {named}]
    return replace(parts, fates=(*parts.fates, *fates("skipped", left)))


def has_idx(root: Path) -> bool:
    """True if the folder holds the train images of the MNIST layout."""
    return bool(list(root.glob("train-images-idx3-ubyte*")))


def read_idx(root: Path, wish: Wish) -> Parts:
    """train-images-idx3-ubyte, train-labels-idx1-ubyte and, if there, t10k-..., each perhaps with .gz behind.

    Raises:
        UserError: a file is missing or broken.
    """
    arrays = {"train": _idx_pair(root, "train")}
    if list(root.glob("t10k-images-idx3-ubyte*")):
        arrays["test"] = _idx_pair(root, "t10k")
    return from_arrays(root.resolve().name, arrays, wish, flip=False, layout="idx files")


def read_idx_file(path: Path) -> NDArray[np.uint8]:
    """An array of bytes: magic 0 0 8 n, then n big-endian sizes, then the values (LeCun's format).

    Raises:
        UserError: the file has another format, or is cut short.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:3] != b"\0\0\x08":
                raise UserError(f"{path} is not an idx file of bytes; it should begin with 0 0 8.")
            sizes = file.read(4 * head[3])
            shape = tuple(int.from_bytes(sizes[at : at + 4], "big") for at in range(0, len(sizes), 4))
            wanted = math.prod(shape)
            if wanted > MOST:
                raise UserError(f"{path} claims {wanted:,} values, more than {MOST:,}; it is damaged: fetch it again.")
            raw = file.read(wanted + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}; fetch it again.") from error
    if len(shape) != head[3] or len(raw) != wanted or not wanted:
        raise UserError(f"{path} has {len(raw)} bytes of values, not what its shape {shape} asks for; fetch it again.")
    return np.frombuffer(bytearray(raw), np.uint8).reshape(shape)


def refuse_bomb(path: Path) -> None:
    """Raises UserError for an archive that claims to be far larger than itself and than the memory of most machines."""
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > BOMB_BYTES and size > BOMB_RATIO * path.stat().st_size:
        raise UserError(
            f"{path} holds {size / 2**30:.1f} GiB packed into {path.stat().st_size / 2**20:.1f} MiB, as a decompression bomb does; "
            "pack it without compression if it is what you want."
        )


def _pairs(arrays: dict[str, NDArray[np.generic]], path: Path) -> tuple[dict[str, Pair], set[str]]:
    """Part -> (images, labels), whatever the archive calls them, and the keys that are used."""
    for images, labels in WHOLE_KEYS:
        if images in arrays and labels in arrays:
            return {"train": (arrays[images], arrays[labels])}, {images, labels}
    pairs: dict[str, Pair] = {}
    used: set[str] = set()
    for part, aliases in ALIASES.items():
        for images, labels in ((x.format(alias), y.format(alias)) for alias in aliases for x, y in PART_KEYS):
            if images in arrays and labels in arrays:
                pairs[part] = arrays[images], arrays[labels]
                used |= {images, labels}
            elif images in arrays or labels in arrays:
                have, lack = (images, labels) if images in arrays else (labels, images)
                raise UserError(f"{path} has {have} but no {lack}; each part needs both.")
    if "train" not in pairs:
        keys = ", ".join(list(arrays)[:8]) + (", ..." if len(arrays) > 8 else "") or "(none)"
        raise UserError(f"{path} has the keys {keys}; expected x and y, or x_train and y_train.")
    return pairs, used


def _idx_pair(root: Path, prefix: str) -> Pair:
    found = []
    for name in (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"):
        paths = [path for path in (root / name, root / f"{name}.gz") if path.is_file()]
        if not paths:
            raise UserError(f"{root} has no file {name} or {name}.gz; the idx layout needs images and labels.")
        found.append(read_idx_file(paths[0]))
    return found[0], found[1]
