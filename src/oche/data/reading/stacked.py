"""Images that lie in arrays, all of one part in one: parts from them, values by one rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oche.data.contract import decided
from oche.data.entries import Fate
from oche.data.facts import CHUNK
from oche.data.images import Identity, ImageSet
from oche.data.marks import Mark, label_text, short
from oche.data.problems import refuse
from oche.data.reading.classes import classes_of, label_keys, numbered
from oche.data.reading.counts import NAMES, array_places, grid_of, placed
from oche.data.reading.extremes import alone, ends
from oche.data.reading.found import Filled, Pair, Parts, Wish
from oche.data.reading.pixels import channels_last, common_size, resized, with_channels
from oche.data.reading.signals import are_signals, as_signals, settled_signals, values_as_they_are
from oche.data.reading.vectors import VECTORS, taught, vectors
from oche.errors import UserError


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

    Signals (`are_signals`) become images of height 1.
    Labels that are not classes become targets (N, K); see `vectors.taught`.

    Raises:
        UserError: images of another shape, no numbers, or not finite; labels that do not fit.
    """
    flat = are_signals(arrays, wish)
    things, shaped = ("signals", as_signals) if flat else ("images", channels_last)
    images = {part: shaped(values, f"{name} ({part} {things})") for part, (values, _) in arrays.items()}
    refuse(_not_finite(name, images, things))
    flip = flip and not flat
    task = taught(arrays["train"][1], wish)
    if task == "count":
        if flat:
            raise UserError(f"{name} holds signals; to count takes images: `--set data.signals=false` if it does.")
        return _count_parts(name, arrays, images, wish, flip, layout)
    if task in VECTORS:
        return _vector_parts(name, arrays, images, wish, classes, flip, layout, task, flat)
    keys = {part: label_keys(y, len(images[part]), f"{name} ({part} labels)") for part, (_, y) in arrays.items()}
    known = wish.contract.classes if wish.contract else classes
    names, labels, notes = classes_of(keys, wish, known, name)
    numbers = {part: numbered(found, names, labels, f"{name} ({part} labels)") for part, found in keys.items()}
    kept = {part: (found >= 0).nonzero().flatten() for part, found in numbers.items()}
    fates = []
    for part, found in numbers.items():
        gone = len(found) - len(kept[part])
        fates += [Fate("used", f"{part} {things}", len(kept[part]), ())]
        fates += [Fate("skipped", f"{part} {things} of ignored labels", gone, ())] if gone else []
        if gone:
            images[part] = images[part][kept[part].numpy()]
    targets = {part: found[kept[part]] for part, found in numbers.items()}

    def fill(train: Tensor) -> Filled:
        return _arrays_filled(name, images, targets, wish, names, train, flat)

    return Parts(name, targets, fill, names, flip, notes, labels=labels, fates=tuple(fates), layout=layout)


def _vector_parts(
    name: str,
    arrays: Mapping[str, Pair],
    images: Mapping[str, NDArray[np.generic]],
    wish: Wish,
    classes: tuple[str, ...],
    flip: bool,
    layout: str,
    task: str,
    flat: bool,
) -> Parts:
    """Parts whose targets are labels or numbers (N, K)."""
    targets, names = vectors({part: y for part, (_, y) in arrays.items()}, task, classes, name, wish)
    for part, y in targets.items():
        if len(y) != len(images[part]):
            raise UserError(
                f"{name} ({part} labels): there are {len(y)} labels for {len(images[part])} images; each image needs one."
            )

    def fill(train: Tensor) -> Filled:
        return _arrays_filled(name, images, targets, wish, names, train, flat)

    fates = tuple(Fate("used", f"{part} {'signals' if flat else 'images'}", len(y)) for part, y in targets.items())
    return Parts(name, targets, fill, names, flip, fates=fates, layout=layout)


def _count_parts(
    name: str,
    arrays: Mapping[str, Pair],
    images: Mapping[str, NDArray[np.generic]],
    wish: Wish,
    flip: bool,
    layout: str,
) -> Parts:
    """Parts whose targets are counts, by place where there are density maps."""
    places, counts, mapped = array_places(name, arrays, images, wish)

    def fill(train: Tensor) -> Filled:
        found = _arrays_filled(name, images, counts, wish, NAMES, train, False)
        height, width = found.sets["train"].take(torch.zeros(1, dtype=torch.int64))[0].shape[1:3]
        return placed(found, places, (height, width), grid_of((height, width), wish) if mapped else (1, 1))

    fates = tuple(Fate("used", f"{part} images", len(y)) for part, y in counts.items())
    return Parts(name, counts, fill, NAMES, flip, fates=fates, layout=layout)


def _not_finite(name: str, images: Mapping[str, NDArray[np.generic]], things: str) -> list[str]:
    """Sentences about arrays that are no numbers, and images, or other `things`, with NaN or infinity."""
    wrong = []
    for part, array in images.items():
        if array.dtype.kind not in "buif":
            wrong.append(f"{name} has type {array.dtype}; {things} need integers or floats.")
        elif array.dtype.kind == "f":
            bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
            if len(bad):
                which = ", ".join(map(str, bad[:5].tolist())) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
                one = things.removesuffix("s")
                wrong.append(f"{name} has NaN or infinity in {one} {which} ({part}); remove or repair that {one}.")
    return wrong


def _arrays_filled(
    name: str,
    images: Mapping[str, NDArray[np.generic]],
    targets: Mapping[str, Tensor],
    wish: Wish,
    classes: Sequence[str],
    train: Tensor,
    flat: bool,
) -> Filled:
    """Values by one rule, decided on the images at the positions `train` of the train part."""
    depths = sorted({array.dtype.name for array in images.values()})
    ranges = {part: _range(array) for part, array in images.items()}
    mine = images["train"][train.numpy()] if len(train) < len(images["train"]) else images["train"]
    low, high = ranges["train"] if mine is images["train"] or mine.dtype == np.uint8 else _range(mine)
    whole = all(array.dtype.kind in "bui" for array in images.values()) or bool(np.array_equal(mine, np.round(mine)))
    if depths == ["uint8"] and not flat:
        low, high = 0.0, 255.0
    rule = wish.settled(values_as_they_are(low, high, depths) if flat else decided(low, high, depths, whole))
    lowest, highest = min(low for low, _ in ranges.values()), max(high for _, high in ranges.values())
    fits = lowest >= 0 and highest <= 255 and all(array.dtype.kind in "bui" for array in images.values())
    notes: tuple[str, ...] = () if rule.whole_bytes or rule.scale in (1, 255) else (f"Pixels: {rule.says()}.",)
    if not flat and mine.dtype != np.uint8:
        notes += alone(ends(mine))
    if mine is not images["train"] and wish.rule is None:
        rest = np.delete(images["train"], train.numpy(), axis=0)
        if len(rest) and (odd := rule.strange(*_range(rest), rest.dtype.name)):
            notes += (f"The split-off {'signals' if flat else 'images'} have {odd}.",)
    for part, (bottom, top) in ranges.items():
        if (part != "train" or wish.rule) and (odd := wish.odd(rule, bottom, top, images[part].dtype.name)):
            notes += (f"The {part} {'signals' if flat else 'images'}{wish.whose(name)} have {odd}.",)
    pixels = {}
    for part, array in images.items():
        mine_rule = wish.met(rule, array.dtype.name)
        pixels[part] = mine_rule.apply(array, as_bytes=mine_rule.whole_bytes and fits)
    shapes: Counter[str] = Counter()
    for array in images.values():
        sides = array.shape[:1:-1] if flat else array.shape[1:]  # signals as they were given
        shapes["x".join(map(str, sides)) + f" {array.dtype.name}"] += len(array)
    found = tuple(shapes.most_common())
    identities = {part: _identity(part, images[part], targets[part], classes) for part in images}
    if flat:
        notes += settled_signals(images, wish, name)
        return Filled({p: ImageSet.of(t, targets[p]) for p, t in pixels.items()}, rule, notes, found, identities)
    pixels = {part: with_channels(tensor, wish.channels, name) for part, tensor in pixels.items()}
    if len(widths := {tensor.shape[-1] for tensor in pixels.values()}) > 1:
        raise UserError(f"{name} has parts of {sorted(widths)} channels; pass channels=1 or channels=3.")
    shape, resizing = common_size([(t.shape[1], t.shape[2]) for t in pixels.values()], wish.size)
    sets = {part: ImageSet.of(_same_size(tensor, shape), targets[part]) for part, tensor in pixels.items()}
    return Filled(sets, rule, notes + resizing, found, identities)


def _identity(part: str, images: NDArray[np.generic], targets: Tensor, classes: Sequence[str]) -> Identity:
    """Rows of an array, named by their number."""

    def mark(i: int) -> Mark:
        own = blake2b(np.ascontiguousarray(images[i]).tobytes(), digest_size=6)
        image = short(own.digest())
        own.update(targets[i].numpy().tobytes() if targets.ndim == 2 else classes[int(targets[i])].encode())
        return Mark(own.hexdigest(), image, label_text(targets[i], classes))

    return Identity(tuple(f"{part} {i}" for i in range(len(images))), mark)


def _range(array: NDArray[np.generic]) -> tuple[float, float]:
    return float(array.min()), float(array.max())


def _same_size(images: Tensor, size: tuple[int, int]) -> Tensor:
    """All of them resized, some at a time to keep the peak of memory low."""
    if images.shape[1:3] == size:
        return images
    return torch.cat([resized(images[start : start + CHUNK], size) for start in range(0, len(images), CHUNK)])
