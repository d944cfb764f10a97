"""From what a reader found to a `Data`: labels checked, missing parts split off, values read, facts measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oche.data.contract import Contract, LabelMap, PixelRule, decided
from oche.data.entries import Fate, Ledger
from oche.data.facts import CHUNK, imbalance, mean_and_std, rare
from oche.data.images import Data, Identity, ImageSet
from oche.data.ledger import measured
from oche.data.problems import refuse
from oche.data.reading.labels import Wanted, bounded, mapped
from oche.data.reading.pixels import Size, channels_last, common_size, resized, with_channels
from oche.data.splits import stratified
from oche.errors import UserError

ALIASES = {
    "train": ("train", "training", "trainset", "train_set", "trn"),
    "val": ("val", "valid", "validation", "validate", "valset", "val_set", "eval", "evaluation", "dev"),
    "test": ("test", "testing", "testset", "test_set", "tst"),
}
"""Part -> what files and folders call it, in any case."""


LARGE = 640 * 640
"""Pixels above which images are said to be large."""


@dataclass(frozen=True)
class Wish:
    """What is asked of a reader: size, channels, the values that become 0 and 1, labels, and what a network's contract settles.

    `missing`: classes may be missing from val and test. `masked`: masks or classes, None for what is there.
    """

    size: Size | None = None
    channels: int | None = None
    span: tuple[float, float] | None = None
    labels: Wanted | None = None
    missing: bool = False
    task: str | None = None
    contract: Contract | None = None

    @property
    def rule(self) -> PixelRule | None:
        """The rule that a network was trained by."""
        return self.contract.pixels if self.contract else None

    def settled(self, rule: PixelRule) -> PixelRule:
        """The contract's rule, else the span that was asked for, else the rule given."""
        if self.rule is not None:
            return self.rule
        if self.span is None:
            return rule
        return replace(rule, offset=self.span[0], scale=self.span[1] - self.span[0])


@dataclass(frozen=True, eq=False)
class Filled:
    """Image sets by part, of one size, the rule that their values follow, notes, and how often each shape and type occurs."""

    sets: Mapping[str, ImageSet]
    rule: PixelRule
    notes: tuple[str, ...] = ()
    shapes: tuple[tuple[str, int], ...] = ()
    identities: Mapping[str, Identity] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Parts:
    """What a reader found: "train" and perhaps "val" and "test", before any splitting and before values are read.

    `targets` are class numbers (N,), zeros beside masks. `fill` reads the values, by a rule decided on the positions it is given of the
    train part. `classes` name the numbers. `ignore` is the label of mask pixels that count nowhere, None where images have classes.
    """

    name: str
    targets: Mapping[str, Tensor]
    fill: Callable[[Tensor], Filled]
    classes: tuple[str, ...]
    flip: bool = True
    notes: tuple[str, ...] = ()
    ignore: int | None = None
    labels: LabelMap = LabelMap()
    palette: tuple[tuple[int, int, int], ...] = ()
    fates: tuple[Fate, ...] = ()
    layout: str = ""


Pair = tuple[NDArray[np.generic], NDArray[np.generic]]


def from_arrays(
    name: str,
    arrays: Mapping[str, Pair],
    wish: Wish,
    *,
    classes: tuple[str, ...] = (),
    flip: bool = True,
    layout: str = "arrays",
) -> Parts:
    """Parts from part -> (images, labels), images in any layout and on any scale, labels (N,), (N, 1) or one-hot, numbers or names.

    Raises:
        UserError: images of another shape, no numbers, or not finite; labels that do not fit.
    """
    images = {part: channels_last(pixels, f"{name} ({part} images)") for part, (pixels, _) in arrays.items()}
    refuse(_not_finite(name, images))
    keys = {part: label_keys(y, len(images[part]), f"{name} ({part} labels)") for part, (_, y) in arrays.items()}
    known = wish.contract.classes if wish.contract else classes
    names, labels, notes = classes_of(keys, wish, known, name)
    numbers = {part: numbered(found, names, labels, f"{name} ({part} labels)") for part, found in keys.items()}
    kept = {part: (found >= 0).nonzero().flatten() for part, found in numbers.items()}
    fates = []
    for part, found in numbers.items():
        gone = len(found) - len(kept[part])
        fates += [Fate("used", f"{part} images", len(kept[part]), ())]
        fates += [Fate("skipped", f"{part} images of ignored labels", gone, ())] if gone else []
        if gone:
            images[part] = images[part][kept[part].numpy()]
    targets = {part: found[kept[part]] for part, found in numbers.items()}

    def fill(train: Tensor) -> Filled:
        return _arrays_filled(name, images, targets, wish, names, train)

    return Parts(name, targets, fill, names, flip, notes, labels=labels, fates=tuple(fates), layout=layout)


def label_keys(labels: NDArray[np.generic], count: int, name: str) -> NDArray[np.generic]:
    """(N,) labels, int64 or text, from (N,), (N, 1) or one-hot (N, K) ones.

    Raises:
        UserError: another shape, another number than `count`, numbers that are not whole.
    """
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if (
        flat.ndim == 2
        and flat.dtype.kind in "buif"
        and len(flat)
        and np.isin(flat, (0, 1)).all()
        and (flat.sum(1) == 1).all()
    ):
        flat = flat.argmax(1)
    if flat.ndim != 1:
        raise UserError(f"{name} have shape {labels.shape}; expected one class number or name per image, (N,).")
    if len(flat) != count:
        raise UserError(f"{name}: there are {len(flat)} labels for {count} images; each image needs one.")
    if flat.dtype.kind in "US":
        return np.char.strip(flat.astype(str))
    if flat.dtype.kind not in "bui" and not (flat.dtype.kind == "f" and np.array_equal(flat, np.round(flat))):
        raise UserError(
            f"{name} have type {flat.dtype} and are not whole; expected class numbers 0, 1, 2, ... or names."
        )
    return flat.astype(np.int64)


def classes_of(
    keys: Mapping[str, NDArray[np.generic]], wish: Wish, names: tuple[str, ...], where: str
) -> tuple[tuple[str, ...], LabelMap, tuple[str, ...]]:
    """Class names, the map of labels and notes, from the train labels that occur; a contract has settled both already."""
    if wish.contract is not None:
        return wish.contract.classes, _by_contract(wish.contract, keys), ()
    if keys["train"].dtype.kind == "U" and names:
        raise UserError(f"{where} has names as labels and a list of classes too; leave one of them out.")
    different = np.unique(keys["train"])
    occurring = [str(key) for key in different.tolist()]
    bounded(occurring, len(keys["train"]), f"{where} (train labels)")
    if wish.labels is None and keys["train"].dtype.kind != "U" and different[0] < 0:
        raise UserError(
            f"{where}: the train labels run from {occurring[0]} to {occurring[-1]}; classes are counted from 0: map the others, such as "
            f"`--set data.labels={occurring[0]}=ignore`."
        )
    found, labels = mapped(occurring, wish.labels, names, f"{where} (train labels)")
    if names and wish.labels is None and not labels.entries and int(different[-1]) >= len(names):
        raise UserError(
            f"{where}: the train labels run from {occurring[0]} to {occurring[-1]}, but the {len(names)} classes are 0 to {len(names) - 1}."
        )
    named = keys["train"].dtype.kind == "U" or wish.labels is not None
    shown = ", ".join(occurring[:8]) + (", ..." if len(occurring) > 8 else "")
    notes = (f"The labels {shown} became classes 0 to {len(found) - 1}.",) if labels.entries and not named else ()
    return found, labels, notes


def numbered(keys: NDArray[np.generic], classes: Sequence[str], labels: LabelMap, where: str) -> Tensor:
    """(N,) class numbers, `IGNORED` for labels that do not count. Raises UserError for labels that train does not have."""
    known = "the classes are those of the train labels: map others with data.labels"
    if not labels.entries and keys.dtype.kind != "U":
        low, high = int(keys.min()), int(keys.max())
        if low < 0 or high >= len(classes):
            raise UserError(
                f"{where} run from {low} to {high}, but the {len(classes)} classes are 0 to {len(classes) - 1}."
            )
        return torch.from_numpy(keys.astype(np.int64))
    table = labels.table or {name: n for n, name in enumerate(classes)}
    different, inverse = np.unique(keys, return_inverse=True)
    if strange := [str(key) for key in different.tolist() if str(key) not in table]:
        raise UserError(f"{where} have {', '.join(map(repr, strange[:8]))}, which no class is; {known}.")
    return torch.tensor([table[str(key)] for key in different.tolist()], dtype=torch.int64)[torch.from_numpy(inverse)]


def finish(parts: Parts, *, seed: int, val: float, test: float, flip: bool | None, wish: Wish) -> Data:
    """Checks the labels, splits off the parts that are missing, reads the values, measures what `Data` tells.

    `val` and `test` are shares of the train images as they were found; a part that was found is left as it is.

    Raises:
        UserError: fewer than two classes, a class too small to split, shares that leave nothing, what `fill` refuses.
    """
    classes, notes = parts.classes, parts.notes
    if parts.ignore is None:
        notes += _check_classes(parts, wish)
    positions, splitting = _split(parts, seed, val, test, classes)
    filled = parts.fill(positions["train"])
    sets = {
        part: filled.sets["train"].subset(positions[part]) if part in positions else filled.sets[part]
        for part in ALIASES
    }
    unbalanced = imbalance(sets["train"], classes) if parts.ignore is None else rare(sets["train"], classes)
    if wish.contract is None:
        mean, std, sampling = mean_and_std(sets["train"])
    else:
        mean, std, sampling = wish.contract.mean, wish.contract.std, ()
    ledger = measured(Ledger(parts.layout, parts.fates, filled.shapes), sets, classes, parts.ignore)
    height, width, channels = sets["train"].take(torch.zeros(1, dtype=torch.int64))[0].shape[1:]
    if height * width > LARGE:
        notes += (f"Images of {height}x{width} take much memory and time: `--set data.size=224` makes them smaller.",)
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
        notes=(splitting, *notes, *filled.notes, *sampling, *unbalanced, *ledger.notes),
        ignore=parts.ignore,
        pixels=filled.rule,
        labels=parts.labels,
        palette=parts.palette,
        ledger=ledger,
        identities={
            part: filled.identities["train"].subset(positions[part]) if part in positions else filled.identities[part]
            for part in (ALIASES if filled.identities else ())
        },
    )


def _by_contract(contract: Contract, keys: Mapping[str, NDArray[np.generic]]) -> LabelMap:
    """The contract's map; labels that are names, or class numbers, are known by the classes as well."""
    if contract.labels.entries or keys["train"].dtype.kind != "U":
        return contract.labels
    return LabelMap(tuple((name, n) for n, name in enumerate(contract.classes)))


def _not_finite(name: str, images: Mapping[str, NDArray[np.generic]]) -> list[str]:
    """Sentences about arrays that are no numbers, and images with NaN or infinity."""
    wrong = []
    for part, array in images.items():
        if array.dtype.kind not in "buif":
            wrong.append(f"{name} has type {array.dtype}; images need integers or floats.")
        elif array.dtype.kind == "f":
            bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
            if len(bad):
                which = ", ".join(map(str, bad[:5].tolist())) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
                wrong.append(f"{name} has NaN or infinity in image {which} ({part}); remove or repair that image.")
    return wrong


def _arrays_filled(
    name: str,
    images: Mapping[str, NDArray[np.generic]],
    targets: Mapping[str, Tensor],
    wish: Wish,
    classes: Sequence[str],
    train: Tensor,
) -> Filled:
    """Values by one rule, decided on the images at the positions `train` of the train part."""
    depths = sorted({array.dtype.name for array in images.values()})
    ranges = {part: _range(array) for part, array in images.items()}
    mine = images["train"][train.numpy()] if len(train) < len(images["train"]) else images["train"]
    low, high = ranges["train"] if mine is images["train"] or mine.dtype == np.uint8 else _range(mine)
    whole = all(array.dtype.kind in "bui" for array in images.values()) or bool(np.array_equal(mine, np.round(mine)))
    if depths == ["uint8"]:
        low, high = 0.0, 255.0
    rule = wish.settled(decided(low, high, depths, whole))
    lowest, highest = min(low for low, _ in ranges.values()), max(high for _, high in ranges.values())
    fits = lowest >= 0 and highest <= 255 and all(array.dtype.kind in "bui" for array in images.values())
    notes: tuple[str, ...] = () if rule.whole_bytes or rule.scale in (1, 255) else (f"Pixels: {rule.says()}.",)
    for part, (bottom, top) in ranges.items():
        if (part != "train" or wish.rule) and (odd := rule.strange(bottom, top, images[part].dtype.name)):
            notes += (f"The {part} images have {odd}.",)
    pixels = {part: rule.apply(array, as_bytes=rule.whole_bytes and fits) for part, array in images.items()}
    pixels = {part: with_channels(tensor, wish.channels, name) for part, tensor in pixels.items()}
    if len(widths := {tensor.shape[-1] for tensor in pixels.values()}) > 1:
        raise UserError(f"{name} has parts of {sorted(widths)} channels; pass channels=1 or channels=3.")
    shape, resizing = common_size([(t.shape[1], t.shape[2]) for t in pixels.values()], wish.size)
    sets = {part: ImageSet.of(_same_size(tensor, shape), targets[part]) for part, tensor in pixels.items()}
    shapes = tuple(("x".join(map(str, a.shape[1:])) + f" {a.dtype.name}", len(a)) for a in images.values())
    identities = {part: _identity(part, images[part], targets[part], classes) for part in images}
    return Filled(sets, rule, notes + resizing, shapes, identities)


def _identity(part: str, images: NDArray[np.generic], targets: Tensor, classes: Sequence[str]) -> Identity:
    """Rows of an array, named by their number."""

    def digest(i: int) -> str:
        own = blake2b(np.ascontiguousarray(images[i]).tobytes(), digest_size=6)
        own.update(classes[int(targets[i])].encode())
        return own.hexdigest()

    return Identity(tuple(f"{part} {i}" for i in range(len(images))), digest)


def _range(array: NDArray[np.generic]) -> tuple[float, float]:
    return float(array.min()), float(array.max())


def _same_size(images: Tensor, size: tuple[int, int]) -> Tensor:
    """All of them resized, some at a time to keep the peak of memory low."""
    if images.shape[1:3] == size:
        return images
    return torch.cat([resized(images[start : start + CHUNK], size) for start in range(0, len(images), CHUNK)])


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
