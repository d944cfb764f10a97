"""From a list of images that lie anywhere to image sets: one rule for values, one size, kept in memory or decoded on demand."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oche.data.contract import IN_BYTES, LabelMap, PixelRule, decided
from oche.data.images import ArraySource, Identity, ImageSet, LazySource
from oche.data.marks import Mark, short
from oche.data.memory import room
from oche.data.problems import SHOWN, each, refuse, tried
from oche.data.reading.extremes import Ends, alone, ends, joined
from oche.data.reading.files import Head, head, read_image
from oche.data.reading.found import Filled, Wish
from oche.data.reading.masks import translated
from oche.data.reading.pixels import CHANNELS, SMALLEST, common_size, extent, resized, resized_masks, with_channels
from oche.errors import UserError

MEMORY_LIMIT, FREE_SHARE = 4 * 2**30, 3
"""Images are decoded anew each time they are needed where their pixels take more bytes, or more than a third of the memory that is free."""

WORKERS = 8
BYTE = "uint8"

MANY, SAMPLED, DIGEST = 20_000, 512, 6
"""Files from which on only `SAMPLED` of them are read for their digest, and its bytes."""


@dataclass(frozen=True)
class Listing:
    """Images of one part, by number, with their classes or masks; the names are for messages.

    `head(i)` tells the shape and number type of `read(i)`, (H, W, C). `mask(i)` gives labels (H, W) or colours (H, W, 3) as they lie
    in the file, of the size of the image, and `groups` what each image is of.
    """

    names: tuple[str, ...]
    head: Callable[[int], Head]
    read: Callable[[int], NDArray[np.generic]]
    labels: tuple[int, ...] = ()
    mask: Callable[[int], NDArray[np.generic]] | None = None
    mask_names: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    workers: int = WORKERS

    def __len__(self) -> int:
        return len(self.names)

    def targets(self) -> Tensor:
        """(N,) int64: the classes, or zeros beside masks."""
        return torch.tensor(self.labels or (0,) * len(self), dtype=torch.int64)


@dataclass(frozen=True)
class Range:
    """The ends of an image's values, and if all are finite, and whole numbers."""

    ends: Ends
    finite: bool
    whole: bool


def of_files(paths: Sequence[Path], labels: Sequence[int] = (), *, alpha: bool = False) -> Listing:
    """A `Listing` of image files."""
    return Listing(
        tuple(map(str, paths)),
        lambda i: head(paths[i], alpha),
        lambda i: read_image(paths[i], alpha),
        tuple(labels),
    )


def filled(
    listings: Mapping[str, Listing],
    name: str,
    wish: Wish,
    labels: LabelMap = LabelMap(),
    classes: Sequence[str] = (),
    *,
    uniform: bool = False,
    train: Tensor,
) -> Filled:
    """The image sets of all parts; the rule for values is decided on the images at the positions `train` of the train part.

    Images are decoded once and kept, or decoded on demand where they would take more than `MEMORY_LIMIT`, or than a third of what
    is free. `uniform`: all are known to be 8-bit files that Pillow reads, whose heads need not be looked at where `wish` gives size
    and channels.

    Raises:
        UserError: all that is wrong with the files, at once.
    """
    notes: tuple[str, ...] = ()
    if uniform and wish.size is not None and wish.channels is not None:
        heads: dict[str, list[Head]] = {part: [] for part in listings}
        size, channels = common_size([extent(wish.size)], wish.size)[0], wish.channels
    else:
        heads, found = _heads(listings)
        refuse([*found, *faults(listings.values())] if found else ())
        refuse(_too_small(listings, heads))
        flat = [one for part in heads.values() for one in part]
        size, notes = common_size([one.shape[:2] for one in flat], wish.size)
        channels, more = _channels(heads, listings, wish.channels, name)
        notes += more
    rule, as_bytes, more = _rule(listings, heads, wish, train, name)
    notes += more
    count = sum(map(len, listings.values()))
    each_takes = size[0] * size[1] * (channels * (1 if as_bytes else 4) + any(one.mask for one in listings.values()))
    takes, most = count * each_takes, min(MEMORY_LIMIT, room().bytes / FREE_SHARE)
    lazy = takes > most
    if lazy:
        notes += (
            f"The decoded images take {takes / 2**30:.1f} GiB, over {most / 2**30:.1f}, so they are decoded on demand and not searched for "
            "duplicates.",
        )
    build = _Build(size, channels, name, as_bytes, labels, len(classes), partial(wish.met, rule))
    known = sorted({group for one in listings.values() for group in one.groups})
    sets, wrong = {}, []
    for part, one in listings.items():
        made, found = _image_set(one, build, known, lazy)
        wrong += found
        if made is not None:
            sets[part] = made
    refuse(wrong)
    return Filled(sets, rule, notes, _facts(heads), identities(listings, classes))


@dataclass(frozen=True)
class _Build:
    size: tuple[int, int]
    channels: int
    name: str
    as_bytes: bool
    labels: LabelMap
    classes: int
    rule_for: Callable[[str], PixelRule]

    def image(self, listing: Listing, i: int) -> Tensor:
        values = listing.read(i)
        pixels = self.rule_for(values.dtype.name).apply(values, as_bytes=self.as_bytes)
        return resized(with_channels(pixels, self.channels, listing.names[i])[None], self.size)[0]

    def mask(self, listing: Listing, i: int) -> Tensor:
        assert listing.mask is not None
        name, values = listing.mask_names[i], listing.mask(i)
        _refuse_unequal(listing, i, values)
        return resized_masks(torch.from_numpy(translated(values, name, self.labels, self.classes))[None], self.size)[0]


def _heads(listings: Mapping[str, Listing]) -> tuple[dict[str, list[Head]], list[str]]:
    heads, wrong = {}, []
    for part, one in listings.items():
        found, sentences = tried(one.head, len(one), one.workers)
        heads[part] = [head for head in found if head is not None]
        wrong += sentences
    return heads, wrong


def _too_small(listings: Mapping[str, Listing], heads: Mapping[str, Sequence[Head]]) -> list[str]:
    return [
        f"The image {name} has {one.shape[0]} x {one.shape[1]} pixels, too small; {SMALLEST} x {SMALLEST} is the least: remove it."
        for part, listing in listings.items()
        for name, one in zip(listing.names, heads[part], strict=True)
        if min(one.shape[:2]) < SMALLEST
    ]


def _refuse_unequal(listing: Listing, i: int, mask: NDArray[np.generic]) -> None:
    shown = listing.head(i)
    height, width, _ = shown.shape
    if mask.shape[:2] != (height, width):
        was = "x".join(map(str, mask.shape[:2]))
        turned = shown.turned and mask.shape[:2] == (width, height)
        why = " Its image is turned by its EXIF tag: turn the mask likewise, or remove the tag." if turned else ""
        raise UserError(
            f"The mask {listing.mask_names[i]} has {was} pixels, its image {height}x{width}; they must be equal.{why}"
        )


def faults(listings: Iterable[Listing]) -> list[str]:
    """Sentences about all images and masks that cannot be read, or are not of one size, where something is wrong already."""

    def image(one: Listing, i: int) -> bool:
        return one.read(i).size > 0

    def mask(one: Listing, i: int) -> bool:
        assert one.mask is not None
        _refuse_unequal(one, i, one.mask(i))
        return True

    wrong: list[str] = []
    for one in listings:
        wrong += tried(partial(image, one), len(one), one.workers)[1]
        wrong += tried(partial(mask, one), len(one), one.workers)[1] if one.mask else []
    return wrong


def _channels(
    heads: Mapping[str, Sequence[Head]], listings: Mapping[str, Listing], asked: int | None, name: str
) -> tuple[int, tuple[str, ...]]:
    """How many channels all images get, and notes."""
    kinds = Counter(one.shape[2] for part in heads.values() for one in part)
    notes: tuple[str, ...] = ()
    clear = sum(one.alpha for part in heads.values() for one in part)
    if clear and asked != 4:
        notes += (f"{clear} images have transparency, which was dropped; data.channels=4 keeps it.",)
    masked = any(one.mask for one in listings.values())
    if masked and (turned := sum(one.turned for part in heads.values() for one in part)):
        notes += (
            f"{turned} images are turned by their EXIF tag; their masks are taken to show the turned image, as a viewer shows it.",
        )
    first = sum(one.first for part in heads.values() for one in part)
    notes += (f"{first} files hold several pictures, of which the first was read.",) if first else ()
    converted = Counter(one.converted for part in heads.values() for one in part if one.converted)
    notes += tuple(f"{count} images are in {kind} and were read as RGB." for kind, count in sorted(converted.items()))
    deeper = Counter(one.cut for part in heads.values() for one in part if one.cut)
    notes += tuple(
        f"{count} {kind} image{'s have' if count > 1 else ' has'} more than 8 bits, of which 8 were read; as TIFF all would be."
        for kind, count in sorted(deeper.items())
    )
    if asked is not None:
        return asked, notes
    if len(kinds) == 1:
        return next(iter(kinds)), notes
    if any(kind not in CHANNELS for kind in kinds):
        rarest = min(kinds, key=lambda kind: kinds[kind])
        at = next(
            one.names[i] for part, one in listings.items() for i, h in enumerate(heads[part]) if h.shape[2] == rarest
        )
        raise UserError(
            f"{name} has images of {sorted(kinds)} channels, such as {at} with {rarest}; all need the same: remove those that differ."
        )
    return 3, (*notes, "Grey and colour images are mixed; grey ones were repeated into 3 channels.")


def _rule(
    listings: Mapping[str, Listing], heads: Mapping[str, Sequence[Head]], wish: Wish, train: Tensor, name: str
) -> tuple[PixelRule, bool, tuple[str, ...]]:
    """The rule, True if all values fit into bytes under it, and notes; only where a file is deeper than 8 bits are values looked at."""
    depths = Counter(one.depth for part in heads.values() for one in part)
    if not depths.keys() - {BYTE} and wish.span is None and wish.rule is None:
        return PixelRule(), True, ()
    if not depths.keys() - {BYTE} and wish.rule is not None and wish.rule.met(BYTE).whole_bytes:
        return wish.rule, True, (f"The images of {name} have {IN_BYTES}.",) if wish.rule.unit else ()
    ranges = {part: each(partial(_range, one), len(one), one.workers) for part, one in listings.items()}
    refuse(
        f"The image {one.names[i]} has NaN or infinity; remove or repair it."
        for part, one in listings.items()
        for i, found in enumerate(ranges[part])
        if not found.finite
    )
    mine = [ranges["train"][i] for i in train.tolist()]
    found = joined([one.ends for one in mine])
    low, high = found.low, found.high
    own = [one.depth for one in heads["train"]]
    rule = wish.settled(decided(low, high, sorted(set(own)), all(one.whole for one in mine)))
    if len(set(own)) > 1 and not rule.whole_bytes and wish.span is None:
        raise UserError(_mixed(own, listings["train"].names, wish, name))
    notes: tuple[str, ...] = () if rule.whole_bytes or rule.scale == 1 else (f"Pixels: {rule.says()}.",)
    notes += alone(found)
    looked = {part: ranges[part] for part in ranges if part != "train" or wish.rule}
    chosen = set(train.tolist())
    if not wish.rule and (rest := [one for i, one in enumerate(ranges["train"]) if i not in chosen]):
        looked["split-off"] = rest
    for part, some in looked.items():
        whole = joined([one.ends for one in some])
        depth = Counter(one.depth for one in heads["train" if part == "split-off" else part]).most_common(1)[0][0]
        if odd := wish.odd(rule, whole.low, whole.high, depth):
            notes += (f"The {part} images{wish.whose(name)} have {odd}.",)
    every = [one for some in ranges.values() for one in some]
    fits = all(one.whole and one.ends.low >= 0 and one.ends.high <= 255 for one in every)
    return rule, rule.whole_bytes and fits and all(np.dtype(d).kind in "ui" for d in depths), notes


def _mixed(own: Sequence[str], names: Sequence[str], wish: Wish, name: str) -> str:
    """The sentence about train files of several types, and what can be done: beside a trained network only to convert them."""
    said = f"{name} mixes files of the types {', '.join(sorted(set(own)))}"
    if wish.rule is not None:
        wanted = wish.rule.depth if wish.rule.depth in own else Counter(own).most_common(1)[0][0]
        other = [at for at, depth in zip(names, own, strict=True) if depth != wanted]
        why = ", as the network's training had them" if wanted == wish.rule.depth else ""
        shown = ", ".join(other[:SHOWN]) + (", ..." if other[SHOWN:] else "")
        return f"{said}: convert all to {wanted}{why}; {len(other)} of {len(own)} are not: {shown}."
    rarest, count = Counter(own).most_common()[-1]
    return (
        f"{said}, {count} of them {rarest} such as {names[own.index(rarest)]}: one rule for values cannot fit both; convert them to one "
        "depth, or say which values become 0 and 1, such as `--set data.range=0,255`."
    )


def _range(listing: Listing, i: int) -> Range:
    values = listing.read(i)
    whole = values.dtype.kind in "bui"
    if not whole and not np.isfinite(values).all():
        return Range(Ends(0.0, 0.0, 0.0, 0.0), False, False)
    return Range(ends(values), True, whole or bool(np.array_equal(values, np.round(values))))


def _image_set(listing: Listing, build: _Build, known: Sequence[str], lazy: bool) -> tuple[ImageSet | None, list[str]]:
    """The images of one part, or the sentences about what is wrong with them."""
    count, masked = len(listing), listing.mask is not None
    numbers = {group: n for n, group in enumerate(known)}
    groups = torch.tensor([numbers[group] for group in listing.groups]) if listing.groups else None
    if lazy:
        masks = LazySource(partial(build.mask, listing), listing.workers) if masked else None
        source = LazySource(partial(build.image, listing), listing.workers)
        return ImageSet(source, listing.targets(), torch.arange(count), masks, groups), []
    images = torch.empty(count, *build.size, build.channels, dtype=torch.uint8 if build.as_bytes else torch.float32)
    labels = torch.empty(count, *build.size, dtype=torch.uint8) if masked else torch.empty(0)

    def fill(i: int) -> bool:
        images[i] = build.image(listing, i)
        if masked:
            labels[i] = build.mask(listing, i)
        return True

    wrong = tried(fill, count, listing.workers)[1]
    if wrong:
        return None, wrong
    if masked:
        return ImageSet.of(images, labels, groups), []
    return replace(ImageSet(ArraySource(images), listing.targets(), torch.arange(count)), groups=groups), []


def _facts(heads: Mapping[str, Sequence[Head]]) -> tuple[tuple[str, int], ...]:
    """How often each shape and number type occurs, as text, the commonest first."""
    kinds = Counter((one.shape, one.depth) for part in heads.values() for one in part)
    return tuple((f"{h}x{w}x{c} {depth}", n) for ((h, w, c), depth), n in kinds.most_common())


def identities(listings: Mapping[str, Listing], classes: Sequence[str]) -> dict[str, Identity]:
    """Part -> what its images are, named by their paths below the folder that holds them all."""
    names = [name for one in listings.values() for name in one.names]
    root = os.path.commonprefix(names)  # noqa: RUF071  names need not be paths; cut at the last separator below
    start = root.rfind(os.sep) + 1
    return {
        part: Identity(tuple(name[start:] for name in one.names), partial(_mark, one, tuple(classes)))
        for part, one in listings.items()
    }


def _mark(listing: Listing, classes: tuple[str, ...], i: int) -> Mark:
    """By an image's file, or values where it is none, and its class or mask; of `SAMPLED` files in very many, else name and size."""
    whole = len(listing) <= MANY or i % (len(listing) // SAMPLED) == 0

    def content(name: str, values: Callable[[int], NDArray[np.generic]]) -> bytes:
        if os.path.isfile(name):
            return Path(name).read_bytes() if whole else f"{Path(name).name} {os.path.getsize(name)}".encode()
        return np.ascontiguousarray(values(i)).tobytes()

    own = blake2b(content(listing.names[i], listing.read), digest_size=DIGEST)
    image, label = short(own.digest()), ""
    if listing.mask is not None:
        mask = content(listing.mask_names[i], listing.mask)
        own.update(mask)
        label = blake2b(mask, digest_size=DIGEST).hexdigest()
    if listing.labels and classes:
        label = classes[listing.labels[i]]
        own.update(label.encode())
    return Mark(own.hexdigest(), image, label)
