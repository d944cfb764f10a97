"""`load`: a name, a path or a dataset -> a `Data`. Here is decided which reader serves what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch.utils.data import Dataset

from oche.data.contract import Contract
from oche.data.images import Data
from oche.data.reading.arrays import has_idx, read_digits, read_idx, read_npz
from oche.data.reading.counts import POINTS, read_points
from oche.data.reading.digit_masks import read_digits_masks
from oche.data.reading.digit_scenes import read_digits_hard
from oche.data.reading.files import folders_in, holds_images
from oche.data.reading.folders import read_folder
from oche.data.reading.found import ALIASES, Parts, Wish
from oche.data.reading.labels import parsed
from oche.data.reading.masksets import pair_places, read_pairs
from oche.data.reading.naming import part_of
from oche.data.reading.parts import finish
from oche.data.reading.pixels import Size
from oche.data.reading.standards import (
    has_camvid,
    has_cityscapes,
    read_camvid,
    read_camvid_archives,
    read_cityscapes,
    read_voc,
    voc_root,
)
from oche.data.reading.tables import read_table, read_tables, tables_in
from oche.data.reading.torchsets import read_cifar10, read_cifar100, read_datasets, read_imagenet, read_svhn
from oche.errors import UserError, unknown

Reader = Callable[[Wish], Parts]
"""What is asked for -> what was found."""

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
    "digits_hard": read_digits_hard,
}
"""Data sets that have a name. Where a folder here has it too, `./digits` is the folder and `builtin:digits` the set."""

BUILTIN = "builtin:"


def load(
    source: Source,
    *,
    seed: int = 0,
    size: Size | None = None,
    val: float = 0.2,
    test: float = 0.2,
    channels: int | None = None,
    flip: bool | None = None,
    task: Literal["classify", "segment", "multilabel", "regress", "count"] | None = None,
    labels: str | tuple[str, ...] | None = None,
    missing: bool = False,
    signals: bool | None = None,
    range: tuple[float, float] | None = None,
    contract: Contract | None = None,
) -> Data:
    """Reads images, or signals, with their classes or masks; splits off what is missing of train, val and test, by class if there is one.

    Args:
        source: a name in `SETS`; a folder of images (`read_folder`), of images and masks (`read_pairs`), in a layout of its own
            (`standards`) or of idx files (`read_idx`); an `.npz` file (`read_npz`); a CSV of file,label (`read_table`);
            a torch Dataset, or a tuple of up to three (train, val, test), None for one that is missing (`read_datasets`); or a
            `Data`, which is returned as it is but for `flip`.
        seed: of the split. The same images, seed, val and test give the same parts on every machine.
        size: brings all images to (H, W), or size x size; without it they keep theirs, or get the median of them.
        val, test: shares of the train images as found; unused where the part exists.
        channels: 1 or 3 converts, 4 keeps transparency; without it, images stay as they are, without transparency.
        flip: whether a mirrored image keeps its class; without it, true but for digits, SVHN and idx files.
        labels: what labels mean, `VALUE=NAME` each: values, colours "#rrggbb" or names -> classes or "ignore", "*" for all others; without
            it, classes are the labels that occur in train (`reading/labels.py`).
        missing: allows classes that val or test lack.
        signals: the arrays of an .npz file are signals (N, channels, length), or (N, length) of one channel, or they are images; without
            it, (N, C, L) of fewer than 8 rows are signals.
        range: the values that become 0 and 1; without it they are decided on the train images, for all files alike (`contract.decided`).
        contract: of a trained network, whose classes, channels, size and rule for values hold for these data too.
        task: what is to be learned; without it, what the images come with. "classify" takes folders called images and masks for classes;
            "multilabel" and "regress" are for arrays and Datasets, "count" for arrays and for folders of images with points
            (`read_points`).

    Raises:
        UserError: nothing there, or something that cannot be read, split or converted; one sentence says which.

    >>> data = load("digits")
    >>> len(data.train), len(data.val), len(data.test), data.size
    (1078, 360, 359, (8, 8))
    """
    if channels is not None and channels < 1:
        raise UserError(f"{channels=} is not possible; choose 1 (grey), 3 (colour) or 4 (with transparency).")
    if range is not None and not range[0] < range[1]:
        raise UserError(
            f"data.range={range[0]:g},{range[1]:g} has no values in between; give the least and the greatest."
        )
    if isinstance(source, Data):
        if signals is not None and signals != (source.things == "signals"):
            raise UserError(f"{source.name} has {source.things}, as it was read: leave data.signals out.")
        if any(given is not None for given in (size, channels, labels, range)):
            raise UserError(
                f"{source.name} has been read already; pass size, channels, labels and range when it is read first."
            )
        data = source if flip is None else replace(source, flip=flip)
    else:
        if contract is not None:
            size, channels = contract.size, contract.channels
        wish = Wish(size, channels, range, parsed(labels) if labels else None, missing, signals, task, contract)
        data = finish(_read(source, wish), seed=seed, val=val, test=test, flip=flip, wish=wish)
    if task is not None and data.task != task:
        has = {
            "classify": "a class for each image, no masks" if task == "segment" else "a class for each image",
            "segment": "masks, not one class for each image",
            "count": "counts",
        }.get(data.task, "several labels or numbers for each image")
        raise UserError(
            f"{data.name} has {has}, so it cannot be used to {task}: leave the task out, or give other data."
        )
    return data


def _read(source: Source, wish: Wish) -> Parts:
    asked = wish.contract.signal if wish.contract else wish.signals
    if asked and not (isinstance(source, str | Path) and Path(source).suffix.lower() == ".npz"):
        raise UserError(f"Signals are read from .npz files of x (N, channels, length) and y; given {source}.")
    if isinstance(source, tuple):
        if not 1 <= len(source) <= len(ALIASES) or source[0] is None:
            raise UserError("A tuple of datasets must be (train, val, test), where val and test may be None.")
        parts = zip(ALIASES, source, strict=False)
        return read_datasets({part: dataset for part, dataset in parts if dataset is not None}, wish)
    if isinstance(source, Dataset):
        return read_datasets({"train": source}, wish)
    if isinstance(source, str) and source.removeprefix(BUILTIN) in SETS:
        name = source.removeprefix(BUILTIN)
        if name == source and Path(name).is_dir():
            raise UserError(
                f"{name!r} is both the folder {Path(name).resolve()} and a built-in data set: write ./{name} for the folder, "
                f"{BUILTIN}{name} for the set."
            )
        return SETS[name](wish)
    if isinstance(source, str | Path):
        return _read_path(Path(source).expanduser(), str(source), wish)
    raise UserError(f"Data cannot be read from a {type(source).__name__}; give a name, a path or a torch Dataset.")


def _read_path(path: Path, given: str, wish: Wish) -> Parts:
    if path.is_dir():
        return _read_root(path, given, wish)
    if path.suffix.lower() == ".npz" and path.is_file():
        return read_npz(path, wish)
    if path.suffix.lower() in (".csv", ".tsv") and path.is_file():
        return read_table(path, wish)
    if path.is_file():
        raise UserError(
            f"{given} is a {path.suffix or 'bare'} file; expected a folder of images, an .npz file or a .csv of file,label."
        )
    if path.suffix or path.name != given:
        raise UserError(f"There is no file or folder {given}; check the path.")
    raise unknown("data set or folder", given, SETS)


def _read_root(root: Path, given: str, wish: Wish) -> Parts:
    """A folder, by the first layout that fits: those with masks, idx files, class folders, a table."""
    counting = wish.task == "count" or (wish.contract is not None and wish.contract.task == "count")
    if (root / POINTS).is_file() and (counting or wish.task is None):
        return read_points(root, wish)
    if counting:
        raise UserError(f"{given} holds no {POINTS} of file, x and y beside its images; to count takes one.")
    if wish.task != "classify":
        if has_cityscapes(root):
            return read_cityscapes(root, wish)
        if has_camvid(root):
            return read_camvid_archives(root, wish)
        if voc := voc_root(root):
            return read_voc(voc, wish)
        if places := pair_places(root):
            return read_pairs(root, places, wish)
    if wish.task == "segment":
        raise UserError(
            f"{given} holds no folders images and masks, nor the layout of Cityscapes, Pascal VOC or CamVid; to segment takes both."
        )
    if has_idx(root):
        return read_idx(root, wish)
    folders = folders_in(root)
    holding = [folder for folder in folders if not part_of(folder.name) and holds_images(folder)]
    divided = any(folders_in(folder) for folder in folders if part_of(folder.name))
    if len(holding) < 2 and not divided and (tables := tables_in(root)):
        return read_tables(tables, wish)
    return read_folder(root, wish)
