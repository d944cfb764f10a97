"""What is suspicious in a data set that has been read: duplicates, leaks, constant and saturated images, constant channels."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from oche.data.entries import Fate, Ledger
from oche.data.facts import both, shares_of
from oche.data.images import ArraySource, ImageSet

SATURATED = 0.95
"""Share of an image's values that lie at one end of the range from which on it is saturated."""

SIDE = 256
"""About how many rows and columns of an image are looked at for that."""

DARK = 0.1
"""Greatest pixel of all train images below which a set looks as if its values had lost their range."""


def measured(ledger: Ledger, parts: Mapping[str, ImageSet], classes: Sequence[str], ignore: int | None) -> Ledger:
    """The ledger with counts, ranges and suspicions; pixels are looked at where they are in memory only."""
    held = {name: part for name, part in parts.items() if isinstance(part.source, ArraySource)}
    seen = {name: _Seen.of(part) for name, part in held.items()}
    suspicious = [fate for name, one in seen.items() for fate in one.fates(name)]
    things = next((one.things for one in seen.values()), "images")
    notes = [f"{fate.said}." for fate in suspicious if not fate.what.endswith("twice or more")]
    ranges: tuple[tuple[float, float], ...] = ()
    if "train" in seen:
        low, high = seen["train"].low.amin(0), seen["train"].high.amax(0)
        ranges = tuple(zip(low.tolist(), high.tolist(), strict=True))
        still = [n for n, (a, b) in enumerate(ranges) if a == b]
        if len(still) == len(ranges):
            same = "constant" if things == "signals" else "single colour"
            notes.append(f"All train {things} are the same {same}: there is nothing to learn.")
        elif still:
            notes.append(f"The channels {', '.join(map(str, still))} are the same in all train {things}.")
        elif things == "images" and max(b for _, b in ranges) < DARK and min(a for a, _ in ranges) >= 0:
            top = max(b for _, b in ranges)
            notes.append(f"No train pixel is above {top:.1%} of the range: were the values cut to another type?")
    notes += _leaks(seen, things)
    notes += _contradictions({name: (seen[name].digests, part.targets) for name, part in held.items()}, ignore, things)
    return replace(
        ledger,
        fates=(*ledger.fates, *suspicious),
        counts={name: _counts(part, classes, ignore) for name, part in parts.items()},
        shares=shares_of(parts["train"], classes) if ignore is not None else {},
        ranges=ranges,
        notes=tuple(notes),
    )


@dataclass(frozen=True, eq=False)
class _Seen:
    """What was seen of one part: of every image a digest, the least and greatest value per channel (N, C), and if it is saturated (N,).

    `flat` ones are signals, whose values have no ends.
    """

    digests: list[bytes]
    low: Tensor
    high: Tensor
    saturated: Tensor
    flat: bool

    @property
    def things(self) -> str:
        """What they are."""
        return "signals" if self.flat else "images"

    @classmethod
    def of(cls, part: ImageSet) -> _Seen:
        digests: list[bytes] = []
        lows, highs, full = [], [], []
        flat = part.take(torch.zeros(1, dtype=torch.int64))[0].shape[1] == 1
        for images, _ in both(part):
            unit = 255 if images.dtype == torch.uint8 else 1
            pixels = images.flatten(1, 2)
            low, high = pixels.amin(1), pixels.amax(1)
            step = max(1, max(images.shape[1:3]) // SIDE)
            few = images[:, ::step, ::step]
            edge = ((few == 0) | (few == unit)).flatten(1)
            ends = edge.sum(1) / edge.shape[1]
            lows.append(low.double() / unit)
            highs.append(high.double() / unit)
            full.append((ends >= SATURATED) & (not flat))
            digests += [_digest(image) for image in images]
        return cls(digests, torch.cat(lows), torch.cat(highs), torch.cat(full), flat)

    def fates(self, part: str) -> list[Fate]:
        """Constant and saturated images, and images that are there twice."""
        constant = (self.low == self.high).all(1)
        saturated = self.saturated & ~constant
        twice = sum(count - 1 for count in Counter(self.digests).values())
        binary = bool(self.saturated.all())  # black and white pictures are what they are
        kinds = {
            f"{part} {self.things} {'of one value' if self.flat else 'of a single colour'}": constant.nonzero()
            .flatten()
            .tolist(),
            f"{part} images with nearly all values at the ends of the range": []
            if binary
            else saturated.nonzero().flatten().tolist(),
        }
        found = [
            Fate(
                "suspicious",
                what,
                len(at),
                tuple(f"{'signal' if self.flat else 'image'} {n} of {part}" for n in at[:5]),
            )
            for what, at in kinds.items()
            if at
        ]
        return found + (
            [Fate("suspicious", f"{part} {self.things} that are there twice or more", twice)] if twice else []
        )


def _leaks(seen: Mapping[str, _Seen], things: str) -> list[str]:
    """A note for each two parts that share identical pixels, or values."""
    notes = []
    for first, second in combinations(seen, 2):
        known, digests = set(seen[first].digests), seen[second].digests
        if shared := sum(digest in known for digest in digests):
            notes.append(f"{shared} of the {len(digests)} {second} {things} are in {first} too, {_alike(things)}.")
    return notes


def _alike(things: str) -> str:
    return "value for value" if things == "signals" else "pixel for pixel"


def _contradictions(parts: Mapping[str, tuple[list[bytes], Tensor]], ignore: int | None, things: str) -> list[str]:
    """A note where the same pixels, or values, are of two classes."""
    classes: dict[bytes, set[int]] = {}
    if ignore is None:
        for digests, targets in parts.values():
            if targets.ndim == 1:
                for digest, target in zip(digests, targets.tolist(), strict=True):
                    classes.setdefault(digest, set()).add(target)
    count = sum(len(found) > 1 for found in classes.values())
    each = f"{things[:-1]} has" if count == 1 else f"{things} have"
    return [f"{count} {each} several classes, {_alike(things)}."] if count else []


def _counts(part: ImageSet, classes: Sequence[str], ignore: int | None) -> dict[str, int]:
    """Images per class or label; beside masks and numbers, all images."""
    if ignore is None and part.targets.ndim == 2 and not part.targets.is_floating_point():
        return dict(zip(classes, part.targets.sum(0).tolist(), strict=True))
    if ignore is not None or part.targets.ndim != 1:
        return {"images": len(part)}
    counts = torch.bincount(part.targets.cpu(), minlength=len(classes)).tolist()
    return dict(zip(classes, counts, strict=True))


def _digest(image: Tensor) -> bytes:
    return hashlib.blake2b(image.cpu().contiguous().numpy().data, digest_size=16).digest()
