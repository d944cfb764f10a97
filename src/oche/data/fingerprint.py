"""Pins a data set to a run: what every image is, in which part, and what has changed since.

The digest of an image is that of its file, or of its values in an array, with its class or its mask's file: size, channels and the like do
not enter. Of more than 20,000 files, all have their name and size in it and 512 of them their content.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any
from weakref import WeakKeyDictionary

from oche.data.facts import both
from oche.data.images import ArraySource, Data, ImageSet, in_parallel
from oche.errors import UserError

LENGTH = 12
"""Hexadecimal digits of a digest."""

NAMED = 20_000
"""Images of a part up to which their names are kept beside their digests."""

SHOWN = 4
WORKERS = 8


@dataclass(frozen=True)
class Fingerprint:
    """Classes, and for each part the digests of its images in order, with their names where there are not too many."""

    classes: tuple[str, ...] = ()
    digests: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """One for all; the order of images within a part counts too, for the split depends on it."""
        return blake2b(json.dumps([self.classes, dict(self.digests)]).encode(), digest_size=16).hexdigest()

    def summary(self) -> dict[str, object]:
        """For run.toml: the digest of all, and the number of images and a digest for each part."""
        parts = {part: blake2b("".join(d).encode(), digest_size=8).hexdigest() for part, d in self.digests.items()}
        return {"fingerprint": self.digest, "parts": parts}

    def dumps(self) -> bytes:
        """As JSON."""
        digests = {part: "".join(found) for part, found in self.digests.items()}
        names = {part: list(found) for part, found in self.names.items()}
        return json.dumps({"classes": list(self.classes), "digests": digests, "names": names}).encode()

    @classmethod
    def loads(cls, text: bytes, where: str) -> Fingerprint:
        """The fingerprint that `dumps` wrote. Raises UserError for anything else; `where` is what errors call it."""
        try:
            table: Any = json.loads(text)
            digests = {
                str(part): tuple(found[at : at + LENGTH] for at in range(0, len(found), LENGTH))
                for part, found in table["digests"].items()
            }
            names = {str(part): tuple(map(str, found)) for part, found in table["names"].items()}
            return cls(tuple(map(str, table["classes"])), digests, names)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{where} is damaged, so it cannot be told if the data are the same; remove it to go on."
            ) from None


def fingerprint(data: Data) -> Fingerprint:
    """What the images of a data set are, computed once for each.

    The images of a `Data` made by hand are told by their pixels, or only by their number where they are decoded on demand.
    """
    if data in _KNOWN:
        return _KNOWN[data]
    digests: dict[str, tuple[str, ...]] = {}
    names: dict[str, tuple[str, ...]] = {}
    for part in ("train", "val", "test"):
        identity = data.identities.get(part)
        if identity is None:
            digests[part] = tuple(_of_pixels(getattr(data, part)))
            continue
        digests[part] = tuple(in_parallel(identity.digest, range(len(identity.names)), WORKERS))
        if len(identity.names) <= NAMED:
            names[part] = identity.names
    _KNOWN[data] = Fingerprint(data.classes, digests, names)
    return _KNOWN[data]


_KNOWN: WeakKeyDictionary[Data, Fingerprint] = WeakKeyDictionary()


def _of_pixels(images: ImageSet) -> Iterator[str]:
    if not isinstance(images.source, ArraySource):
        yield from (f"{i:0{LENGTH}x}" for i in range(len(images)))
        return
    for pixels, targets in both(images):
        for one, target in zip(pixels.cpu(), targets.cpu(), strict=True):
            raw = one.contiguous().numpy().tobytes() + target.contiguous().numpy().tobytes()
            yield blake2b(raw, digest_size=LENGTH // 2).hexdigest()


def differences(before: Fingerprint, now: Fingerprint) -> tuple[str, ...]:
    """Sentences about what has changed, () for nothing: classes, images that moved between parts, that are gone, new or changed."""
    if before.digest == now.digest:
        return ()
    found = _classes(before.classes, now.classes)
    old, new = _places(before), _places(now)
    moved = Counter(
        (a, b) for digest in old.keys() & new.keys() for a, b in zip(*_unshared(old[digest], new[digest]), strict=False)
    )
    found += [f"{n} images moved from {a} to {b}" for (a, b), n in sorted(moved.items())]
    gone = {d: sum(p.values()) - sum(new.get(d, Counter()).values()) for d, p in old.items()}
    come = {d: sum(p.values()) - sum(old.get(d, Counter()).values()) for d, p in new.items()}
    was, now_there = _named(before, gone), _named(now, come)
    changed = sorted(was & now_there)
    count = sum(max(n, 0) for n in gone.values()), sum(max(n, 0) for n in come.values())
    for said, number, names in (
        ("changed", len(changed), changed),
        ("are gone", count[0] - len(changed), sorted(was - now_there)),
        ("are new", count[1] - len(changed), sorted(now_there - was)),
    ):
        if number:
            shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
            found.append(f"{number} images {said}" + (f" ({shown})" if names else ""))
    return tuple(found) or ("the images have another order",)


def _classes(before: Sequence[str], now: Sequence[str]) -> list[str]:
    if tuple(before) == tuple(now):
        return []
    gone, come = [n for n in before if n not in now], [n for n in now if n not in before]
    said = [f"the class {', '.join(map(repr, gone[:SHOWN]))} is gone"] if gone else []
    said += [f"the class {', '.join(map(repr, come[:SHOWN]))} is new"] if come else []
    return said or ["the classes have another order"]


def _places(print_: Fingerprint) -> dict[str, Counter[str]]:
    """Digest -> how often it is in each part."""
    places: dict[str, Counter[str]] = {}
    for part, digests in print_.digests.items():
        for digest in digests:
            places.setdefault(digest, Counter())[part] += 1
    return places


def _unshared(a: Counter[str], b: Counter[str]) -> tuple[list[str], list[str]]:
    """Parts that have an image only before, and only now."""
    return sorted((a - b).elements()), sorted((b - a).elements())


def _named(print_: Fingerprint, counts: Mapping[str, int]) -> set[str]:
    """Names of the images whose digests have a positive count."""
    return {
        name
        for part, names in print_.names.items()
        for name, digest in zip(names, print_.digests[part], strict=True)
        if counts.get(digest, 0) > 0
    }
