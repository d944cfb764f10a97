"""From what a reader found to a `Data`: labels checked, missing parts split off, facts measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oche.data.facts import CHUNK, imbalance, leaks, mean_and_std, rare
from oche.data.images import Data, ImageSet
from oche.data.reading.pixels import Size, channels_last, common_size, resized, scaled, with_channels
from oche.data.splits import stratified
from oche.errors import UserError

ALIASES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""Part -> what files and folders call it."""


@dataclass(frozen=True, eq=False)
class Parts:
    """What a reader found: "train" and perhaps "val" and "test", all of one size, before any splitting.

    `classes` is empty when the classes have no names; they are then numbered. `ignore` is the label of mask pixels that count
    nowhere, None where images have classes; masks have been checked, and their classes named, by whoever read them.
    """

    name: str
    sets: Mapping[str, ImageSet]
    classes: tuple[str, ...] = ()
    flip: bool = True
    notes: tuple[str, ...] = ()
    ignore: int | None = None


def from_arrays(
    name: str,
    arrays: Mapping[str, tuple[NDArray[np.generic], NDArray[np.generic]]],
    *,
    size: Size | None,
    channels: int | None,
    classes: tuple[str, ...] = (),
    flip: bool = True,
) -> Parts:
    """Parts from part -> (images, labels), images in any layout and on any scale (see `pixels`), labels (N,) or (N, 1).

    Raises:
        UserError: images that `pixels` refuses, parts that differ in size or channels, labels that do not fit.
    """
    images = {part: channels_last(pixels, f"{name} ({part} images)") for part, (pixels, _) in arrays.items()}
    tensors, notes = scaled(list(images.values()), name)
    tensors = [with_channels(tensor, channels, name) for tensor in tensors]
    if len(widths := {tensor.shape[-1] for tensor in tensors}) > 1:
        raise UserError(f"{name} has parts of {sorted(widths)} channels; pass channels=1 or channels=3.")
    shape, resizing = common_size([(t.shape[1], t.shape[2]) for t in tensors], size)
    sets = {
        part: ImageSet.of(_same_size(tensor, shape), class_numbers(labels, len(tensor), f"{name} ({part} labels)"))
        for tensor, (part, (_, labels)) in zip(tensors, arrays.items(), strict=True)
    }
    return Parts(name, sets, classes, flip, notes + resizing)


def class_numbers(labels: NDArray[np.generic], count: int, name: str) -> Tensor:
    """Labels (N,) or (N, 1), of any integer type, or floats that are whole -> (N,) int64.

    Raises:
        UserError: another shape, another number than `count`, not whole numbers.
    """
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.ndim != 1:
        raise UserError(f"{name} have shape {labels.shape}; expected one class number an image, (N,).")
    if len(flat) != count:
        raise UserError(f"{name}: there are {len(flat)} labels for {count} images; each image needs one.")
    if flat.dtype.kind not in "bui" and not (flat.dtype.kind == "f" and np.array_equal(flat, np.round(flat))):
        raise UserError(f"{name} have type {flat.dtype} and are not whole; expected class numbers 0, 1, 2, ...")
    return torch.from_numpy(flat.astype(np.int64))


def finish(parts: Parts, *, seed: int, val: float, test: float, flip: bool | None) -> Data:
    """Checks the labels, splits off the parts that are missing, measures what `Data` tells.

    `val` and `test` are shares of the train images as they were found; a part that was found is left as it is.

    Raises:
        UserError: labels out of range, fewer than two classes, a class too small to split, shares that leave nothing.
    """
    classes = parts.classes or tuple(map(str, range(int(parts.sets["train"].targets.max()) + 1)))
    for part, images in parts.sets.items():
        if parts.ignore is None:
            _check_labels(parts.name, part, images.targets, classes)
    sets, splitting = _split(parts, seed, val, test, classes)
    unbalanced = imbalance(sets["train"], classes) if parts.ignore is None else rare(sets["train"], classes)
    mean, std, sampling = mean_and_std(sets["train"])
    height, width, channels = sets["train"].take(torch.zeros(1, dtype=torch.int64))[0].shape[1:]
    return Data(
        name=parts.name,
        train=sets["train"],
        val=sets["val"],
        test=sets["test"],
        classes=classes,
        channels=channels,
        size=(height, width),
        mean=mean,
        std=std,
        flip=parts.flip if flip is None else flip,
        notes=(splitting, *parts.notes, *sampling, *unbalanced, *leaks(sets)),
        ignore=parts.ignore,
    )


def _same_size(images: Tensor, size: tuple[int, int]) -> Tensor:
    """All of them resized, some at a time to keep the peak of memory low."""
    if images.shape[1:3] == size:
        return images
    return torch.cat([resized(images[start : start + CHUNK], size) for start in range(0, len(images), CHUNK)])


def _check_labels(name: str, part: str, targets: Tensor, classes: Sequence[str]) -> None:
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= len(classes):
        known = f"the {len(classes)} classes are 0 to {len(classes) - 1}"
        raise UserError(f"{name}: the {part} labels run from {low} to {high}, but {known}.")
    if len(classes) < 2:
        raise UserError(f"{name} has one class only, {classes[0]!r}; classification needs at least two.")
    counts = torch.bincount(targets, minlength=len(classes))
    if part == "train" and not counts.all():
        missing = int(counts.argmin())
        raise UserError(f"{name}: class {missing} ({classes[missing]!r}) has no train image; count classes from 0.")


def _split(parts: Parts, seed: int, val: float, test: float, classes: Sequence[str]) -> tuple[dict[str, ImageSet], str]:
    """The three parts, and a sentence about where they come from."""
    sets, how_split = parts.sets, "by class" if parts.ignore is None else "at random"
    missing = {part: share for part, share in (("val", val), ("test", test)) if part not in sets}
    for part, share in missing.items():
        if not 0 < share < 1:
            raise UserError(f"{part}={share} is not a share of the images; give a number between 0 and 1.")
    rest = 1 - sum(missing.values())
    if rest < 1e-9:
        raise UserError(f"{val=} and {test=} leave no train images; their sum must be below 1.")
    split = dict(sets)
    if missing:
        strata = classes if parts.ignore is None else ()
        positions = stratified(sets["train"].targets, (rest, *missing.values()), seed, "parts", strata)
        split |= {part: sets["train"].subset(p) for part, p in zip(("train", *missing), positions, strict=True)}
    counts = ", ".join(f"{len(split[part])} {part}" for part in ALIASES)
    how = " and ".join(f"{part} ({share:.3g})" for part, share in missing.items())
    return split, f"{counts}; {how} split off train {how_split}, seed {seed}." if missing else f"{counts}; as given."
