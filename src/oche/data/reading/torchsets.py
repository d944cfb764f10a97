"""Reads torch Datasets, your own or torchvision's."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sized
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from oche.data.entries import Fate
from oche.data.reading.classes import classes_of, numbered
from oche.data.reading.files import Head, values_of
from oche.data.reading.found import Filled, Parts, Wish
from oche.data.reading.listing import Listing, filled, of_files
from oche.data.reading.pixels import channels_last
from oche.data.reading.stacked import from_arrays
from oche.data.reading.vectors import VECTORS
from oche.errors import UserError

Names = tuple[str, ...]

IMAGENET_SIZE = 224


class _Items(Protocol):
    """What is used of a map-style Dataset."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int, /) -> object: ...


def read_datasets(datasets: Mapping[str, Dataset[object]], wish: Wish) -> Parts:
    """Map-style datasets of (image, class number), one a part; or of (image, labels or numbers), a float or K values each.

    An image is a PIL image, or a tensor or array of shape (C, H, W), (H, W, C) or (H, W).
    Every item is read once for its shape and class and once to keep it, so leave augmentation out of the dataset.
    Images that are not uint8 are kept as float32: four times the memory, and never decoded on demand.

    Raises:
        UserError: no length, no items, items of another form.
    """
    items = {part: _map_style(dataset, part) for part, dataset in datasets.items()}
    name, classes = type(datasets["train"]).__name__, _class_names(datasets["train"])
    if _is_vector(items["train"][0], wish):
        return _vector_parts(name, items, wish, classes)
    if _item(items["train"], 0)[0].dtype != np.uint8:
        return _number_parts(name, items, wish, classes)
    return _of_listings(name, {part: _listing(one) for part, one in items.items()}, classes, wish)


def read_cifar10(wish: Wish) -> Parts:
    """torchvision's CIFAR10 below `data_root()`."""
    return _cifar("CIFAR10", wish)


def read_cifar100(wish: Wish) -> Parts:
    """torchvision's CIFAR100 below `data_root()`."""
    return _cifar("CIFAR100", wish)


def read_svhn(wish: Wish) -> Parts:
    """torchvision's SVHN (cropped digits, without the "extra" part) below `data_root()`."""
    module = _torchvision()
    parts = {part: _made(module, "SVHN", split=part) for part in ("train", "test")}
    arrays = {part: (np.asarray(found.data), np.asarray(found.labels)) for part, found in parts.items()}
    return from_arrays("svhn", arrays, wish, flip=False, layout="torchvision")


def read_imagenet(wish: Wish) -> Parts:
    """torchvision's ImageNet below `data_root()`, at 224x224 unless asked otherwise; its official val part is test."""
    module = _torchvision()
    found = {part: _made(module, "ImageNet", split=split) for part, split in (("train", "train"), ("test", "val"))}
    listings = {
        part: of_files([Path(path) for path, _ in one.samples], [label for _, label in one.samples])
        for part, one in found.items()
    }
    classes = tuple(names[0] for names in found["train"].classes)
    wish = replace(wish, size=wish.size or IMAGENET_SIZE, channels=wish.channels or 3)
    return _of_listings("imagenet", listings, classes, wish, uniform=True)


def data_root() -> Path:
    """Where torchvision's sets lie: the folder in the environment variable OCHE_DATA, or ./data."""
    return Path(os.environ.get("OCHE_DATA") or "data")


def _cifar(name: str, wish: Wish) -> Parts:
    module = _torchvision()
    parts = {part: _made(module, name, train=part == "train") for part in ("train", "test")}
    arrays = {part: (np.asarray(found.data), np.asarray(found.targets)) for part, found in parts.items()}
    return from_arrays(name.lower(), arrays, wish, classes=tuple(parts["train"].classes), layout="torchvision")


def _torchvision() -> ModuleType:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise UserError("This data set needs torchvision, which is missing; run `pip install oche[vision]`.") from error
    module: ModuleType = datasets
    return module


def _made(module: ModuleType, name: str, **options: str | bool) -> Any:
    root = data_root()
    try:
        return getattr(module, name)(root=str(root), **options)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"torchvision finds no {name} in {root}: {error}; put it there, or set OCHE_DATA to the folder that has it."
        ) from error


def _map_style(dataset: Dataset[object], part: str) -> _Items:
    if not isinstance(dataset, Sized) or isinstance(dataset, IterableDataset):
        raise UserError(f"The {part} dataset ({type(dataset).__name__}) has no length; give one with len and [i].")
    if not len(dataset):
        raise UserError(f"The {part} dataset ({type(dataset).__name__}) holds no images.")
    return dataset


def _of_listings(
    name: str, listings: Mapping[str, Listing], classes: Names, wish: Wish, *, uniform: bool = False
) -> Parts:
    """Parts from listings whose labels are class numbers."""
    keys = {part: np.array(one.labels, dtype=np.int64) for part, one in listings.items()}
    classes, labels, notes = classes_of(keys, wish, classes, name)
    targets = {part: numbered(found, classes, labels, f"{name} ({part} labels)") for part, found in keys.items()}
    listings = {part: replace(one, labels=tuple(targets[part].tolist())) for part, one in listings.items()}

    def fill(train: Tensor) -> Filled:
        return filled(listings, name, wish, classes=classes, uniform=uniform, train=train)

    told = tuple(Fate("used", f"{part} images", len(one)) for part, one in listings.items())
    return Parts(name, targets, fill, classes, notes=notes, labels=labels, fates=told, layout="dataset")


def _listing(items: _Items) -> Listing:
    """Shapes and classes from one pass; pixels when asked for, by one thread: datasets need not be thread-safe."""
    kinds = [
        (Head(image.shape, image.dtype.name), label) for image, label in (_item(items, i) for i in range(len(items)))
    ]
    names = tuple(f"item {i} of {type(items).__name__}" for i in range(len(kinds)))
    return Listing(
        names, lambda i: kinds[i][0], lambda i: _item(items, i)[0], tuple(label for _, label in kinds), workers=1
    )


def _is_vector(item: object, wish: Wish) -> bool:
    """True if the label of a pair is a float, or K values, or if numbers are asked for."""
    if not isinstance(item, tuple | list) or len(item) != 2:
        return False
    task = wish.contract.task if wish.contract else wish.task
    values = (
        np.asarray(item[1]) if isinstance(item[1], float | list | tuple | Tensor | np.ndarray) else np.zeros((), int)
    )
    return task in VECTORS or (values.dtype.kind in "buif" and (values.ndim == 1 or values.dtype.kind == "f"))


def _values(label: object, where: str) -> list[float]:
    """(K,) labels or numbers of an item. Raises UserError for anything else."""
    try:
        values = np.atleast_1d(np.asarray(label)).astype(np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} has the label {label!r}; expected numbers.") from error
    if values.ndim != 1:
        raise UserError(f"{where} has labels of shape {values.shape}; expected K values.")
    return list(values.tolist())


def _item(items: _Items, i: int) -> tuple[NDArray[np.generic], int]:
    """Item i as (H, W, C) and its class number.

    Raises:
        UserError: it is not an (image, class number) pair.
    """
    image, label, where = _pair(items, i)
    try:
        number = operator.index(label)  # type: ignore[arg-type]
    except TypeError as error:
        raise UserError(f"{where} has the label {label!r}; expected a class number 0, 1, 2, ...") from error
    return image, number


def _pair(items: _Items, i: int) -> tuple[NDArray[np.generic], object, str]:
    """Item i as (H, W, C), its label as it is, and what errors call it. Raises UserError for anything but a pair."""
    where = f"Item {i} of {type(items).__name__}"
    item = items[i]
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise UserError(f"{where} is not a pair; a dataset must give (image, class number).")
    image, label = item
    if isinstance(image, Image.Image):
        return values_of(image), label, where
    if isinstance(image, Tensor | np.ndarray):
        array = np.asarray(image)
        return channels_last(array[None], where)[0], label, where
    raise UserError(f"{where} has an image of type {type(image).__name__}; expected a PIL image, a tensor or an array.")


def _vector_parts(name: str, items: Mapping[str, _Items], wish: Wish, classes: Names) -> Parts:
    """Images of one shape with K labels or numbers each, stacked as arrays are."""
    arrays = {}
    for part, one in items.items():
        pairs = [_pair(one, i) for i in range(len(one))]
        if len(shapes := {image.shape for image, _, _ in pairs}) > 1:
            raise UserError(
                f"{name} ({part}) gives images of {len(shapes)} shapes; with labels or numbers they need one."
            )
        rows = [_values(label, where) for _, label, where in pairs]
        if len(lengths := {len(row) for row in rows}) > 1:
            raise UserError(
                f"{name} ({part}) gives {sorted(lengths)} values per image; expected the same number of each."
            )
        arrays[part] = np.stack([image for image, _, _ in pairs]), np.array(rows)
    return from_arrays(name, arrays, wish, classes=classes, layout="dataset")


def _number_parts(name: str, items: Mapping[str, _Items], wish: Wish, classes: Names) -> Parts:
    """Images that are not bytes: stacked, then brought to one scale as arrays are."""
    arrays = {}
    for part, one in items.items():
        pairs = [_item(one, i) for i in range(len(one))]
        if len(shapes := {tuple(image.shape) for image, _ in pairs}) > 1:
            raise UserError(f"{name} ({part}) gives images of {len(shapes)} shapes; only uint8 ones may differ.")
        arrays[part] = np.stack([image for image, _ in pairs]), np.array([label for _, label in pairs])
    return from_arrays(name, arrays, wish, classes=classes, layout="dataset")


def _class_names(dataset: Dataset[object]) -> Names:
    """The attribute `classes` that torchvision's datasets have, where it is a list of names."""
    names = getattr(dataset, "classes", ())
    return tuple(names) if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names) else ()
