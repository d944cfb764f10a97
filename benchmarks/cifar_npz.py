"""Turns the lossless WebP sheets of CIFAR into an `.npz` that `oche.data.load` reads.

    python benchmarks/cifar_npz.py FOLDER --out cifar10.npz
    python benchmarks/cifar_npz.py FOLDER --set cifar100 --out cifar100.npz
    python benchmarks/cifar_npz.py FOLDER --per-class 560 --size 16 --out cifar10_16.npz
    python benchmarks/cifar_npz.py FOLDER --val-per-class 500 --out cifar10.npz
    oche search pcdarts --data cifar10.npz

FOLDER (or the environment variable OCHE_DATA) holds cifar10/ and cifar100/, each with sheets of 32x32 tiles, row by
row, and an index.npz of labels. CIFAR-10 has its train images in two balanced halves, a and b; what is written has the
order of the official files. Of CIFAR-100 there are only the 10,000 official test images: they become one set (x, y) of
the 100 fine classes, which `load` splits three ways.

For studies at a reduced budget, --per-class keeps that many images of each class, drawn by --seed, in their order; CIFAR-10's test
images are all kept. --size makes them smaller: each pixel is the mean of a square of pixels, rounded to the nearest integer.

`load` keeps a fifth of the train images for validation where there are none. For a search on all 50,000, as the papers have it,
--val-per-class makes validation images of that many test images of each class, drawn by --seed; the other test images stay test images.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TILE = 32


def main() -> None:
    """Reads the command line, writes the file, says what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default=os.environ.get("OCHE_DATA"), help="default: $OCHE_DATA")
    parser.add_argument("--out", type=Path, required=True, help="the .npz to write")
    parser.add_argument("--set", choices=("cifar10", "cifar100"), default="cifar10")
    parser.add_argument("--part", choices=("a", "b", "both"), default="both", help="half of CIFAR-10's train images")
    parser.add_argument("--per-class", type=int, help="keep this many images of each class; default: all")
    parser.add_argument("--val-per-class", type=int, help="test images of each class that become validation images")
    parser.add_argument("--size", type=int, choices=(32, 16, 8), default=TILE, help="pixels a side")
    parser.add_argument("--seed", type=int, default=0, help="draws the images of --per-class and --val-per-class")
    given = parser.parse_args()
    if not given.folder:
        parser.error("give FOLDER or set OCHE_DATA")
    if given.set == "cifar100" and given.part != "both":
        parser.error("--part is for cifar10")
    if given.set == "cifar100" and given.val_per_class is not None:
        parser.error("--val-per-class is for cifar10: of CIFAR-100 there is one set, which `load` splits three ways")
    root = Path(given.folder) / given.set
    if not (root / "index.npz").is_file():
        parser.error(f"there is no {root / 'index.npz'}")
    arrays = cifar10(root, given.part) if given.set == "cifar10" else cifar100(root)
    try:
        arrays = reduced(arrays, given.per_class, given.size, given.seed)
        if given.val_per_class is not None:
            arrays = held_out(arrays, given.val_per_class, given.seed)
    except ValueError as error:
        parser.error(str(error))
    np.savez(given.out, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for options
    print(f"{given.out}: " + ", ".join(f"{name} {array.shape}" for name, array in arrays.items()))


def cifar10(root: Path, part: str = "both") -> dict[str, NDArray[np.generic]]:
    """x_train (N, 32, 32, 3), y_train (N,), x_test, y_test, classes (10,); N is 25,000 for a half, 50,000 for both."""
    index = np.load(root / "index.npz")
    halves = ("a", "b") if part == "both" else (part,)
    order = np.argsort(np.concatenate([index[f"train_{half}_index"] for half in halves]))
    return {
        "x_train": np.concatenate([tiles(root / f"train_{half}.webp") for half in halves])[order],
        "y_train": np.concatenate([index[f"train_{half}_label"] for half in halves])[order],
        "x_test": tiles(root / "test.webp"),
        "y_test": index["test_label"],
        "classes": index["classes"].astype(str),
    }


def cifar100(root: Path) -> dict[str, NDArray[np.generic]]:
    """x (10000, 32, 32, 3), y (10000,) fine labels, classes (100,)."""
    index = np.load(root / "index.npz")
    return {"x": tiles(root / "test.webp"), "y": index["test_fine"], "classes": index["fine_names"].astype(str)}


def reduced(
    arrays: dict[str, NDArray[np.generic]], per_class: int | None, size: int, seed: int
) -> dict[str, NDArray[np.generic]]:
    """`per_class` of the train images of each class (of all, where there is no test set), at `size` x `size` pixels.

    Raises ValueError where a class has fewer.
    """
    arrays = dict(arrays)
    part = "_train" if "x_train" in arrays else ""
    if per_class is not None:
        kept = balanced(arrays[f"y{part}"], per_class, np.random.default_rng(seed))
        arrays |= {f"{name}{part}": arrays[f"{name}{part}"][kept] for name in "xy"}
    return {name: smaller(array, TILE // size) if array.ndim == 4 else array for name, array in arrays.items()}


def held_out(arrays: dict[str, NDArray[np.generic]], per_class: int, seed: int) -> dict[str, NDArray[np.generic]]:
    """Moves `per_class` test images of each class to x_val, y_val. Raises ValueError where a class has fewer, or none would be left."""
    labels = arrays["y_test"]
    kept = balanced(labels, per_class, np.random.default_rng(seed))
    rest = np.setdiff1d(np.arange(len(labels)), kept)
    if not len(rest):
        raise ValueError(f"{per_class} of each class are all test images; leave some")
    return arrays | {
        f"{name}_{part}": arrays[f"{name}_test"][of] for part, of in (("val", kept), ("test", rest)) for name in "xy"
    }


def balanced(labels: NDArray[np.generic], count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Positions of `count` of each class, sorted. Raises ValueError where a class has fewer."""
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if not 1 <= count <= len(members):
            raise ValueError(f"class {label} has {len(members)} images; {count} of them cannot be kept")
        chosen.append(rng.choice(members, count, replace=False))
    return np.sort(np.concatenate(chosen))


def smaller(images: NDArray[np.generic], factor: int) -> NDArray[np.generic]:
    """(N, H, W, 3) uint8 -> (N, H/factor, W/factor, 3): the mean of each square, halves rounded up."""
    n, height, width, colours = images.shape
    squares = images.astype(np.uint32).reshape(n, height // factor, factor, width // factor, factor, colours)
    area = factor * factor
    return ((squares.sum(axis=(2, 4)) + area // 2) // area).astype(np.uint8)


def tiles(path: Path) -> NDArray[np.uint8]:
    """A sheet of tiles, row by row -> (N, 32, 32, 3) uint8."""
    sheet = np.asarray(Image.open(path).convert("RGB"))
    rows, columns = sheet.shape[0] // TILE, sheet.shape[1] // TILE
    return sheet.reshape(rows, TILE, columns, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)


if __name__ == "__main__":
    main()
