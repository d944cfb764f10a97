"""Reads torch Datasets, your own or torchvision's."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sized
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from oche.data.reading.folders import Listing, file_listing, gather, pixels_of
from oche.data.reading.parts import Parts, from_arrays
from oche.data.reading.pixels import Size, channels_last
from oche.errors import UserError

Names = tuple[str, ...]

IMAGENET_SIZE = 224


class _Items(Protocol):
    """What is used of a map-style Dataset."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int, /) -> object: ...


def read_datasets(datasets: Mapping[str, Dataset[object]], size: Size | None, channels: int | None) -> Parts:
    """Map-style datasets of (image, class number), one a part.

    An image is a PIL image, or a tensor or array of shape (C, H, W), (H, W, C) or (H, W).
    Every item is read once for its shape and class and once to keep it, so leave augmentation out of the dataset.
    Images that are not uint8 are kept as float32: four times the memory, and never decoded on demand.

    Raises:
        UserError: no length, no items, items of another form.
    """
    items = {part: _map_style(dataset, part) for part, dataset in datasets.items()}
    name, classes = type(datasets["train"]).__name__, _class_names(datasets["train"])
    if _item(items["train"], 0)[0].dtype != torch.uint8:
        return _number_parts(name, items, size, channels, classes)
    listings = {part: _listing(one) for part, one in items.items()}
    sets, notes = gather(listings, name, size, channels)
    return Parts(name, sets, classes, notes=notes)


def read_cifar10(size: Size | None, channels: int | None) -> Parts:
    """torchvision's CIFAR10 below `data_root()`."""
    return _cifar("CIFAR10", size, channels)


def read_cifar100(size: Size | None, channels: int | None) -> Parts:
    """torchvision's CIFAR100 below `data_root()`."""
    return _cifar("CIFAR100", size, channels)


def read_svhn(size: Size | None, channels: int | None) -> Parts:
    """torchvision's SVHN (cropped digits, without the "extra" part) below `data_root()`."""
    module = _torchvision()
    parts = {part: _made(module, "SVHN", split=part) for part in ("train", "test")}
    arrays = {part: (np.asarray(found.data), np.asarray(found.labels)) for part, found in parts.items()}
    return from_arrays("svhn", arrays, size=size, channels=channels, flip=False)


def read_imagenet(size: Size | None, channels: int | None) -> Parts:
    """torchvision's ImageNet below `data_root()`, at 224x224 unless asked otherwise; its official val part is test."""
    module = _torchvision()
    found = {part: _made(module, "ImageNet", split=split) for part, split in (("train", "train"), ("test", "val"))}
    listings = {part: file_listing([(Path(path), label) for path, label in one.samples]) for part, one in found.items()}
    sets, notes = gather(listings, "imagenet", size or IMAGENET_SIZE, channels or 3)
    return Parts("imagenet", sets, tuple(names[0] for names in found["train"].classes), notes=notes)


def data_root() -> Path:
    """Where torchvision's sets lie: the folder in the environment variable OCHE_DATA, or ./data."""
    return Path(os.environ.get("OCHE_DATA") or "data")


def _cifar(name: str, size: Size | None, channels: int | None) -> Parts:
    module = _torchvision()
    parts = {part: _made(module, name, train=part == "train") for part in ("train", "test")}
    arrays = {part: (np.asarray(found.data), np.asarray(found.targets)) for part, found in parts.items()}
    return from_arrays(name.lower(), arrays, size=size, channels=channels, classes=tuple(parts["train"].classes))


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


def _listing(items: _Items) -> Listing:
    """Shapes and classes from one pass; pixels when asked for, by one thread: datasets need not be thread-safe."""
    heads = [(image.shape, label) for image, label in (_item(items, i) for i in range(len(items)))]
    shapes = [(height, width, depth) for (height, width, depth), _ in heads]
    return Listing(lambda i: _item(items, i)[0], lambda i: shapes[i], tuple(label for _, label in heads), workers=1)


def _item(items: _Items, i: int) -> tuple[Tensor, int]:
    """Item i as (H, W, C) and its class number.

    Raises:
        UserError: it is not an (image, class number) pair.
    """
    where = f"Item {i} of {type(items).__name__}"
    item = items[i]
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise UserError(f"{where} is not a pair; a dataset must give (image, class number).")
    image, label = item
    try:
        number = operator.index(label)
    except TypeError as error:
        raise UserError(f"{where} has the label {label!r}; expected a class number 0, 1, 2, ...") from error
    if isinstance(image, Image.Image):
        return pixels_of(image), number
    if isinstance(image, Tensor | np.ndarray):
        array = np.asarray(image)
        return torch.from_numpy(np.require(channels_last(array[None], where)[0], requirements=("C", "W"))), number
    raise UserError(f"{where} has an image of type {type(image).__name__}; expected a PIL image, a tensor or an array.")


def _number_parts(
    name: str, items: Mapping[str, _Items], size: Size | None, channels: int | None, classes: Names
) -> Parts:
    """Images that are not bytes: stacked, then brought to one scale as arrays are."""
    arrays = {}
    for part, one in items.items():
        pairs = [_item(one, i) for i in range(len(one))]
        if len(shapes := {tuple(image.shape) for image, _ in pairs}) > 1:
            raise UserError(f"{name} ({part}) gives images of {len(shapes)} shapes; only uint8 ones may differ.")
        arrays[part] = np.stack([image.numpy() for image, _ in pairs]), np.array([label for _, label in pairs])
    return from_arrays(name, arrays, size=size, channels=channels, classes=classes)


def _class_names(dataset: Dataset[object]) -> Names:
    """The attribute `classes` that torchvision's datasets have, where it is a list of names."""
    names = getattr(dataset, "classes", ())
    return tuple(names) if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names) else ()
