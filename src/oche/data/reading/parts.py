"""From what a reader found to a `Data`: labels checked, missing parts split off, values read, facts measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from oche.data.entries import Ledger
from oche.data.facts import imbalance, mean_and_std, rare
from oche.data.images import Data
from oche.data.ledger import measured
from oche.data.reading.counts import notes_on_counts, standardised_counts
from oche.data.reading.found import ALIASES, Parts, Wish
from oche.data.reading.labels import notes_on_names
from oche.data.reading.texts import spelled
from oche.data.reading.vectors import notes_on, standardised
from oche.data.splits import stratified
from oche.errors import UserError

LARGE = 640 * 640
"""Pixels above which images are said to be large."""


def finish(parts: Parts, *, seed: int, val: float, test: float, flip: bool | None, wish: Wish) -> Data:
    """Checks the labels, splits off the parts that are missing, reads the values, measures what `Data` tells.

    `val` and `test` are shares of the train images as they were found; a part that was found is left as it is.

    Raises:
        UserError: fewer than two classes, a class too small to split, shares that leave nothing, what `fill` refuses.
    """
    classes, notes = parts.classes, parts.notes
    vector = parts.targets["train"].ndim == 2
    if twice := [name for name, count in Counter(classes).items() if count > 1]:
        raise UserError(f"{parts.name}: {twice[0]!r} names two classes; give each a name of its own.")
    if wish.labels is None and wish.contract is None:
        notes += notes_on_names(classes)
    if parts.ignore is None and not vector:
        notes += _check_classes(parts, wish)
    positions, splitting = _split(parts, seed, val, test, classes)
    filled = parts.fill(positions["train"])
    sets = {
        part: filled.sets["train"].subset(positions[part]) if part in positions else filled.sets[part]
        for part in ALIASES
    }
    unbalanced: tuple[str, ...] = ()
    if not vector:
        unbalanced = imbalance(sets["train"], classes) if parts.ignore is None else rare(sets["train"], classes)
    if wish.contract is None:
        mean, std, sampling = mean_and_std(sets["train"])
    else:
        mean, std, sampling = wish.contract.mean, wish.contract.std, ()
    ledger = measured(Ledger(parts.layout, parts.fates, filled.shapes), sets, classes, parts.ignore)
    height, width, channels = sets["train"].take(torch.zeros(1, dtype=torch.int64))[0].shape[1:]
    if height > 1 and height * width > LARGE:
        notes += (f"Images of {height}x{width} take much memory and time: `--set data.size=224` makes them smaller.",)
    told = (splitting, *notes, *filled.notes, *sampling, *unbalanced, *ledger.skipped, *ledger.notes)
    data = Data(
        name=spelled(parts.name),
        train=sets["train"],
        val=sets["val"],
        test=sets["test"],
        classes=classes,
        channels=channels,
        size=(height, width),
        mean=mean,
        std=std,
        flip=parts.flip if flip is None else flip,
        notes=tuple(map(spelled, told)),
        ignore=parts.ignore,
        pixels=filled.rule,
        labels=parts.labels,
        palette=parts.palette,
        ledger=ledger,
        identities={
            part: filled.identities["train"].subset(positions[part]) if part in positions else filled.identities[part]
            for part in (ALIASES if filled.identities else ())
        },
        grid=filled.grid,
    )
    if data.grid is not None:
        return standardised_counts(replace(data, notes=(*data.notes, *notes_on_counts(data))), wish)
    if vector:
        data = replace(data, notes=(*data.notes, *notes_on(data)))
    return standardised(data, wish) if data.task == "regress" else data


def _check_classes(parts: Parts, wish: Wish) -> tuple[str, ...]:
    """Notes about classes that val or test lack. Raises UserError for fewer than two classes, or one that train lacks."""
    classes = parts.classes
    if len(classes) < 2:
        raise UserError(f"{parts.name} has one class only, {classes[0]!r}; classification needs at least two.")
    notes = []
    for part, targets in parts.targets.items():
        absent = (torch.bincount(targets, minlength=len(classes)) == 0).nonzero().flatten().tolist()
        if absent and part == "train" and wish.contract is None:
            first = absent[0]
            raise UserError(
                f"{parts.name}: class {first} ({classes[first]!r}) has no train image; count classes from 0."
            )
        if absent:
            named = ", ".join(repr(classes[n]) for n in absent[:8]) + (", ..." if len(absent) > 8 else "")
            notes.append(f"The {part} images have none of the class {named}.")
    return tuple(notes)


def _split(parts: Parts, seed: int, val: float, test: float, classes: Sequence[str]) -> tuple[dict[str, Tensor], str]:
    """Positions in the parts as found, of train and of what is split off it, and a sentence about where they come from."""
    targets, how_split = parts.targets, "by class" if parts.ignore is None else "at random"
    if targets["train"].ndim == 2:
        how_split, classes = "at random, for there are no classes to split by", ()
    missing = {part: share for part, share in (("val", val), ("test", test)) if part not in targets}
    for part, share in missing.items():
        if not 0 < share < 1:
            raise UserError(f"{part}={share} is not a share of the images; give a number between 0 and 1.")
    rest = 1 - sum(missing.values())
    if rest < 1e-9:
        raise UserError(f"{val=} and {test=} leave no train images; their sum must be below 1.")
    positions = {"train": torch.arange(len(targets["train"]))}
    if missing:
        strata = classes if parts.ignore is None else ()
        found = stratified(targets["train"], (rest, *missing.values()), seed, "parts", strata)
        positions = dict(zip(("train", *missing), found, strict=True))
    counts = ", ".join(
        f"{len(positions[part]) if part in positions else len(targets[part])} {part}" for part in ALIASES
    )
    how = " and ".join(f"{part} ({share:.3g})" for part, share in missing.items())
    return positions, (
        f"{counts}; {how} split off train {how_split}, seed {seed}." if missing else f"{counts}; as given."
    )
