"""Pins a data set to a run: what every image is, and in which part. `changes` says what is another since.

The digest of an image is that of its file, or of its values in an array, with its class or its mask's file: size, channels and the like do
not enter. A short one of the image alone, and what its label says, tell what of the two has changed. Of more than 20,000 files, all have
their name and size in their digests and 512 of them their content.
"""

from __future__ import annotations

import json
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
