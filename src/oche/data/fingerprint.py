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
    """Classes, and for each part the digests of its images in order, with their names where there are not too many.

    `labels` is what labels in files stand for (`contract.LabelMap`), None where that was not recorded. It does not enter the digest.
    """

    classes: tuple[str, ...] = ()
    digests: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    labels: Mapping[str, int] | None = None

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
        table = {"classes": list(self.classes), "digests": digests, "names": names}
        return json.dumps(table if self.labels is None else {**table, "labels": dict(self.labels)}).encode()

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
            labels = {str(key): int(n) for key, n in table["labels"].items()} if "labels" in table else None
            return cls(tuple(map(str, table["classes"])), digests, names, labels)
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
    _KNOWN[data] = Fingerprint(data.classes, digests, names, data.labels.table)
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
    """Sentences about what has changed, () for nothing.

    First come classes and what labels mean, then images that changed, are gone, are new or have other names, and last what
    moved between parts, which may follow from these.
    """
    labels = _labels(before, now)
    if before.digest == now.digest:
        return tuple(labels)
    found = [*_classes(before.classes, now.classes), *labels, *_images(before, now)]
    old, new = _places(before), _places(now)
    moved: Counter[tuple[str, str]] = Counter()
    copied = 0
    for digest in old.keys() & new.keys():
        was, there = _unshared(old[digest], new[digest])
        moved.update(zip(was, there, strict=False))
        copied += "train" in there[len(was) :] and old[digest]["test"] > 0
    if copied:
        found.append(f"{_counted(copied, 'test image')} {COPIED}")
    found += [f"{_counted(n, 'image')} {MOVED.format(a)} {b}" for (a, b), n in sorted(moved.items())]
    return tuple(found) or ("the images have another order",)


MOVED, COPIED = "moved from {} to", "among the train images, too"
LEAKS = (MOVED.format("test"), COPIED)
"""Words of the sentences about test images that would be trained on."""


def _labels(before: Fingerprint, now: Fingerprint) -> list[str]:
    """A sentence about labels in files that stand for other classes than they did; none where that was not recorded."""
    if before.labels is None or now.labels is None or before.classes != now.classes:
        return []

    def said(labels: Mapping[str, int], key: str) -> str:
        number = labels.get(key)
        if number is None:
            return "no class"
        return now.classes[number] if 0 <= number < len(now.classes) else "ignored"

    keys = sorted(before.labels.keys() | now.labels.keys())
    other = [key for key in keys if before.labels.get(key) != now.labels.get(key)]
    shown = [f"{key!r} was {said(before.labels, key)!r} and is {said(now.labels, key)!r}" for key in other[:SHOWN]]
    return [f"labels mean something else ({', '.join(shown)}{', ...' if other[SHOWN:] else ''})"] if other else []


def _images(before: Fingerprint, now: Fingerprint) -> list[str]:
    """Sentences about images that changed, are gone, are new, or have other names."""
    old, new = _names(before), _names(now)
    gone, come = Counter[str](), Counter[str]()
    renamed = []
    for digest in old.keys() | new.keys():
        was, there = old.get(digest, Counter()), new.get(digest, Counter())
        lost, found = sorted((was - there).elements()), sorted((there - was).elements())
        pairs = [(a, b) for a, b in zip(lost, found, strict=False) if a and b]
        renamed += [(a, b) for a, b in pairs if not f"/{a}".endswith(f"/{b}") and not f"/{b}".endswith(f"/{a}")]
        shared = min(len(lost), len(found))
        gone.update(lost[shared:])
        come.update(found[shared:])
    changed = Counter({name: n for name, n in (gone & come).items() if name})
    said = [
        _said(changed, "image or its label changed", "images or their labels changed"),
        _said(gone - changed, "image is gone", "images are gone"),
        _said(come - changed, "image is new", "images are new"),
        _said(Counter(f"{a} -> {b}" for a, b in renamed), "image has another name", "images have other names"),
    ]
    return [sentence for sentence in said if sentence]


def _said(names: Counter[str], one: str, several: str) -> str:
    """How many, what, and the first names, where they were kept; "" for none."""
    count = names.total()
    known = sorted(name for name in names if name)
    shown = ", ".join(known[:SHOWN]) + (", ..." if len(known) > SHOWN else "")
    return f"{count} {one if count == 1 else several}" + (f" ({shown})" if known else "") if count else ""


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _classes(before: Sequence[str], now: Sequence[str]) -> list[str]:
    if tuple(before) == tuple(now):
        return []
    said = []
    for names, other, became in ((before, now, "gone"), (now, before, "new")):
        some = [name for name in names if name not in other]
        if some:
            shown = ", ".join(map(repr, some[:SHOWN])) + (", ..." if some[SHOWN:] else "")
            said.append(f"the class {shown} is {became}" if len(some) == 1 else f"the classes {shown} are {became}")
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


def _names(print_: Fingerprint) -> dict[str, Counter[str]]:
    """Digest -> the names of its images, "" for each where they were not kept."""
    names: dict[str, Counter[str]] = {}
    for part, digests in print_.digests.items():
        kept = print_.names.get(part, ("",) * len(digests))
        for digest, name in zip(digests, kept, strict=True):
            names.setdefault(digest, Counter())[name] += 1
    return names
