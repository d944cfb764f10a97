"""`load`: a name, a path or a dataset -> a `Data`. Here is decided which reader serves what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch.utils.data import Dataset

from oche.data.images import Data
from oche.data.reading.arrays import has_idx, read_digits, read_idx, read_npz
from oche.data.reading.digit_masks import read_digits_masks
from oche.data.reading.folders import read_folder
from oche.data.reading.masksets import has_masks, read_camvid, read_masks
from oche.data.reading.parts import ALIASES, Parts, finish
from oche.data.reading.pixels import CHANNELS, Size
from oche.data.reading.torchsets import read_cifar10, read_cifar100, read_datasets, read_imagenet, read_svhn
from oche.errors import UserError, unknown

Reader = Callable[[Size | None, int | None], Parts]
"""(size, channels) -> what was found."""

Source = str | Path | Data | Dataset[object] | tuple[Dataset[object] | None, ...]
"""What `load` reads."""

SETS: dict[str, Reader] = {
    "digits": read_digits,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "svhn": read_svhn,
    "imagenet": read_imagenet,
    "camvid": read_camvid,
    "digits_masks": read_digits_masks,
}
"""Data sets that have a name. A folder of the same name is read as ./digits."""


def load(
    source: Source,
    *,
    seed: int = 0,
    size: Size | None = None,
    val: float = 0.2,
    test: float = 0.2,
    channels: int | None = None,
    flip: bool | None = None,
    task: Literal["classify", "segment"] | None = None,
) -> Data:
    """Reads images with their classes or masks, and splits off whatever of train, val and test is missing, by class if they have one.

    Args:
        source: a name in `SETS`; a folder of images (`read_folder`), of images and masks (`read_masks`) or of idx files
            (`read_idx`); an `.npz` file
            (`read_npz`); a torch Dataset, or a tuple of up to three (train, val, test), None for one that is missing
            (`read_datasets`); or a `Data`, which is returned as it is but for `flip`.
        seed: of the split. The same images, seed, val and test give the same parts on every machine.
        size: brings all images to (H, W), or size x size; without it they keep theirs, or get the median of them.
        val, test: shares of the train images as found; unused where the part exists.
        channels: 1 or 3 converts; without it, images stay as they are.
        flip: whether a mirrored image keeps its class; without it, true but for digits, SVHN and idx files.
        task: what is to be learned; without it, what the images come with. "classify" takes folders called images and masks for classes.

    Raises:
        UserError: nothing there, or something that cannot be read, split or converted; one sentence says which.

    >>> data = load("digits")
    >>> len(data.train), len(data.val), len(data.test), data.size
    (1078, 360, 359, (8, 8))
    """
    if channels is not None and channels not in CHANNELS:
        raise UserError(f"{channels=} is not possible; choose 1 (grey) or 3 (colour).")
    if isinstance(source, Data):
        if size is not None or channels is not None:
            raise UserError(f"{source.name} has been read already; pass size and channels when it is read first.")
        data = source if flip is None else replace(source, flip=flip)
    else:
        data = finish(_read(source, size, channels, task), seed=seed, val=val, test=test, flip=flip)
    if task is not None and data.task != task:
        has = "a class for each image, no masks" if task == "segment" else "masks, not one class for each image"
        raise UserError(
            f"{data.name} has {has}, so it cannot be used to {task}: leave the task out, or give other data."
        )
    return data


def _read(source: Source, size: Size | None, channels: int | None, task: str | None) -> Parts:
    if isinstance(source, tuple):
        if not 1 <= len(source) <= len(ALIASES) or source[0] is None:
            raise UserError("A tuple of datasets must be (train, val, test), where val and test may be None.")
        parts = zip(ALIASES, source, strict=False)
        return read_datasets({part: dataset for part, dataset in parts if dataset is not None}, size, channels)
    if isinstance(source, Dataset):
        return read_datasets({"train": source}, size, channels)
    if isinstance(source, str) and source in SETS:
        return SETS[source](size, channels)
    if isinstance(source, str | Path):
        return _read_path(Path(source).expanduser(), str(source), size, channels, task)
    raise UserError(f"Data cannot be read from a {type(source).__name__}; give a name, a path or a torch Dataset.")


def _read_path(path: Path, given: str, size: Size | None, channels: int | None, task: str | None) -> Parts:
    if path.is_dir() and task != "classify" and has_masks(path):
        return read_masks(path, size, channels)
    if path.is_dir() and task == "segment":
        raise UserError(
            f"{given} holds no folders images and masks, nor the layout of Cityscapes; to segment takes both."
        )
    if path.is_dir():
        return (read_idx if has_idx(path) else read_folder)(path, size, channels)
    if path.suffix == ".npz" and path.is_file():
        return read_npz(path, size, channels)
    if path.is_file():
        raise UserError(f"{given} is a {path.suffix or 'bare'} file; expected a folder of images or an .npz file.")
    if path.suffix or path.name != given:
        raise UserError(f"There is no file or folder {given}; check the path.")
    raise unknown("data set or folder", given, SETS)
