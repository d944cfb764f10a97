"""Pins a data set to a run: what every image is, in which part, and what has changed since.

The digest of an image is that of its file, or of its values in an array, with its class or its mask's file: size, channels and the like do
not enter. A short one of the image alone, and what its label says, tell what of the two has changed. Of more than 20,000 files, all have
their name and size in their digests and 512 of them their content.
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
from oche.data.marks import SHORT, Mark, label_text, short, short_of
from oche.errors import UserError

LENGTH = 12
"""Hexadecimal digits of a digest."""

NAMED = 20_000
"""Images of a part up to which their names are kept beside their digests."""

DIGITS, LONGEST = 3, 40
"""Labels are kept as texts, and numbered, where at most 16**DIGITS differ and none has more letters than `LONGEST`; else as digests."""

SHOWN = 4
WORKERS = 8


@dataclass(frozen=True)
class Fingerprint:
    """Classes, and for each part the digests of its images in order, with their names where there are not too many.

    `labels` is what labels in files stand for (`contract.LabelMap`), None where that was not recorded. It does not enter the digest.
    `images` are short digests of the images alone and `targets` what their labels say, or short digests of that where `plain` is false;
    both are empty where they were not recorded. `thing` is what the targets are called.
    """

    classes: tuple[str, ...] = ()
    digests: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    labels: Mapping[str, int] | None = None
    images: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    targets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    plain: bool = False
    thing: str = "label"

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
        table: dict[str, object] = {"classes": list(self.classes), "digests": digests, "names": names}
        table |= {} if self.labels is None else {"labels": dict(self.labels)}
        if self.images:
            texts = sorted({text for part in self.targets.values() for text in part}) if self.plain else None
            numbers = {text: f"{n:0{DIGITS}x}" for n, text in enumerate(texts or ())}
            targets = {part: "".join(numbers.get(t, t) for t in found) for part, found in self.targets.items()}
            images = {part: "".join(found) for part, found in self.images.items()}
            table |= {"images": images, "targets": targets, "texts": texts, "thing": self.thing}
        return json.dumps(table).encode()

    @classmethod
    def loads(cls, text: bytes, where: str) -> Fingerprint:
        """The fingerprint that `dumps` wrote. Raises UserError for anything else; `where` is what errors call it."""
        try:
            table: Any = json.loads(text)
            digests = _cut(table["digests"], LENGTH)
            names = {str(part): tuple(map(str, found)) for part, found in table["names"].items()}
            labels = {str(key): int(n) for key, n in table["labels"].items()} if "labels" in table else None
            images, targets, texts = _cut(table.get("images", {}), SHORT), table.get("targets", {}), table.get("texts")
            if texts is None:
                targets = _cut(targets, SHORT)
            else:
                numbers = _cut(targets, DIGITS)
                targets = {part: tuple(str(texts[int(n, 16)]) for n in found) for part, found in numbers.items()}
            if any(
                part not in targets or not len(images[part]) == len(targets[part]) == len(digests[part])
                for part in images
            ):
                raise ValueError("not one for each image")
            thing = str(table.get("thing", cls.thing))
            return cls(
                tuple(map(str, table["classes"])), digests, names, labels, images, targets, texts is not None, thing
            )
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise UserError(
                f"{where} is damaged, so it cannot be told if the data are the same; remove it to go on."
            ) from None


def fingerprint(data: Data) -> Fingerprint:
    """What the images of a data set are, computed once for each.

    The images of a `Data` made by hand are told by their pixels, or only by their number where they are decoded on demand.
    """
    if data in _KNOWN:
        return _KNOWN[data]
    marks: dict[str, tuple[Mark, ...]] = {}
    names: dict[str, tuple[str, ...]] = {}
    for part in ("train", "val", "test"):
        identity = data.identities.get(part)
        if identity is None:
            marks[part] = tuple(_of_pixels(getattr(data, part), data.classes))
            continue
        marks[part] = tuple(in_parallel(identity.mark, range(len(identity.names)), WORKERS))
        if len(identity.names) <= NAMED:
            names[part] = identity.names
    told = {part: found for part, found in marks.items() if all(one.image for one in found)}
    texts = {one.label for found in told.values() for one in found}
    plain = data.ignore is None and len(texts) <= 16**DIGITS and max(map(len, texts), default=0) <= LONGEST
    _KNOWN[data] = Fingerprint(
        data.classes,
        {part: tuple(one.whole for one in found) for part, found in marks.items()},
        names,
        data.labels.table,
        {part: tuple(one.image for one in found) for part, found in told.items()},
        {part: tuple(one.label if plain else short_of(one.label) for one in found) for part, found in told.items()},
        plain,
        Fingerprint.thing if data.ignore is None else "mask",
    )
    return _KNOWN[data]


_KNOWN: WeakKeyDictionary[Data, Fingerprint] = WeakKeyDictionary()


def _cut(table: Mapping[str, str], length: int) -> dict[str, tuple[str, ...]]:
    """Part -> pieces of this length that a text is joined of."""
    return {
        str(part): tuple(text[at : at + length] for at in range(0, len(text), length)) for part, text in table.items()
    }


def _of_pixels(images: ImageSet, classes: Sequence[str]) -> Iterator[Mark]:
    if not isinstance(images.source, ArraySource):
        yield from (Mark(f"{i:0{LENGTH}x}") for i in range(len(images)))
        return
    for pixels, targets in both(images):
        for one, target in zip(pixels.cpu(), targets.cpu(), strict=True):
            own = blake2b(one.contiguous().numpy().tobytes(), digest_size=LENGTH // 2)
            image = short(own.digest())
            own.update(target.contiguous().numpy().tobytes())
            yield Mark(own.hexdigest(), image, label_text(target, classes))


def differences(before: Fingerprint, now: Fingerprint) -> tuple[str, ...]:
    """Sentences about what has changed, () for nothing.

    First come classes and what labels mean, then images that changed, are gone, are new or have other names, and last what
    moved between parts, which may follow from these.
    """
    labels = _labels(before, now)
    if before.digest == now.digest:
        return tuple(labels)
    images, same = _images(before, now)
    found = [*_classes(before.classes, now.classes), *labels, *images]
    old, new = _places(before), _places(now)
    moved: Counter[tuple[str, str]] = Counter()
    copied = 0
    for first, second in [*((digest, digest) for digest in old.keys() & new.keys()), *same]:
        was, there = _unshared(old[first], new[second])
        moved.update(zip(was, there, strict=False))
        copied += "train" in there[len(was) :] and old[first]["test"] > 0
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


Kept = tuple[str, str]
"""The name of an image, "" where it was not kept, and its digest."""


def _images(before: Fingerprint, now: Fingerprint) -> tuple[list[str], set[Kept]]:
    """Sentences about images that changed, are gone, are new, or have other names; digests before and now of those with another label."""
    old, new = _names(before), _names(now)
    gone: list[Kept] = []
    come: list[Kept] = []
    renamed = []
    for digest in old.keys() | new.keys():
        was, there = old.get(digest, Counter()), new.get(digest, Counter())
        lost, found = sorted((was - there).elements()), sorted((there - was).elements())
        pairs = [(a, b) for a, b in zip(lost, found, strict=False) if a and b]
        renamed += [(a, b) for a, b in pairs if not f"/{a}".endswith(f"/{b}") and not f"/{b}".endswith(f"/{a}")]
        shared = min(len(lost), len(found))
        gone += [(name, digest) for name in lost[shared:]]
        come += [(name, digest) for name in found[shared:]]
    first, second = _parts(before), _parts(now)
    pairs_ = _paired(gone, come, first, second)
    changed, same = _changed(pairs_, first, second, now.thing)
    gone_, come_ = Counter(name for name, _ in gone), Counter(name for name, _ in come)
    known = Counter(name for name, _, _ in pairs_)
    said = [
        *changed,
        _said(gone_ - known, "image is gone", "images are gone"),
        _said(come_ - known, "image is new", "images are new"),
        _said(Counter(f"{a} -> {b}" for a, b in renamed), "image has another name", "images have other names"),
    ]
    return [sentence for sentence in said if sentence], same


@dataclass(frozen=True)
class _Part:
    """The short digest of an image, and its label: as text where that is known, and as a short digest."""

    image: str
    label: str | None
    digest: str


def _parts(print_: Fingerprint) -> dict[str, _Part]:
    """Digest -> image and label apart, where they were recorded."""
    return {
        whole: _Part(image, target if print_.plain else None, short_of(target) if print_.plain else target)
        for part, images in print_.images.items()
        for whole, image, target in zip(print_.digests[part], images, print_.targets[part], strict=True)
    }


def _paired(
    gone: Sequence[Kept], come: Sequence[Kept], first: Mapping[str, _Part], second: Mapping[str, _Part]
) -> list[tuple[str, str, str]]:
    """(name, digest before, digest now) of images that are there with another digest: by name, without names by the image alone."""

    def key(kept: Kept, known: Mapping[str, _Part]) -> tuple[str, str] | None:
        name, digest = kept
        return (name, "") if name else ("", known[digest].image) if digest in known else None

    there: dict[tuple[str, str] | None, list[str]] = {}
    for kept in sorted(come):
        there.setdefault(key(kept, second), []).append(kept[1])
    keys = ((kept, key(kept, first)) for kept in sorted(gone))
    return [(name, digest, there[k].pop(0)) for (name, digest), k in keys if k is not None and there.get(k)]


def _changed(
    pairs: Sequence[tuple[str, str, str]], first: Mapping[str, _Part], second: Mapping[str, _Part], thing: str
) -> tuple[list[str], set[Kept]]:
    """Sentences about what of each pair changed, and the digests of those whose image is the same."""
    either, labels, images, same = Counter[str](), Counter[str](), Counter[str](), set[Kept]()
    for name, old, new in pairs:
        was, there = first.get(old), second.get(new)
        if was is None or there is None or (was.image, was.digest) == (there.image, there.digest):
            either[name] += 1
            continue
        if was.image == there.image:
            same.add((old, new))
        else:
            images[name] += 1
        if was.digest != there.digest:
            told = was.label is not None and there.label is not None
            meant = f"{_quoted(was.label)} was, {_quoted(there.label)} is now" if told else ""
            labels[": ".join(text for text in (name, meant) if text)] += 1
    said = [
        _said(labels, f"{thing} changed", f"{thing}s changed"),
        _said(images, "image changed", "images changed"),
        _said(either, f"image or its {thing} changed", f"images or their {thing}s changed"),
    ]
    return said, same


def _quoted(label: str | None) -> str:
    return repr(label) if label else "no label"


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
