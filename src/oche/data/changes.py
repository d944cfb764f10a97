"""What has changed between two fingerprints of a data set, in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from oche.data.fingerprint import Fingerprint
from oche.data.marks import short_of

SHOWN = 4
"""Names in a sentence at most."""


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
