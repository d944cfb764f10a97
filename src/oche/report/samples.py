"""The run's own images in its report: what augmentation makes of them, and the worst mistakes, as `oche.training.samples` kept them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from oche.report.figures import number
from oche.run import Run

PICTURE = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+={0,2}")

COLOUR = re.compile(r"#[0-9a-f]{6}")

HEADINGS = {
    "classify": (
        "Worst mistakes",
        "{wrong} of {of} test images are taken for another class. Shown are those of which the network was surest.",
    ),
    "segment": (
        "Worst mistakes",
        "The test images with most wrong pixels: the image, the classes that are there, and what the network paints.",
    ),
    "multilabel": ("Worst mistakes", "{wrong} of {of} test images have a wrong label. Shown are those with most."),
    "count": ("Largest errors", "The test images whose counts are furthest from those that the network says."),
    "regress": ("Largest errors", "The test images whose numbers are furthest from those that the network says."),
}
"""Task -> heading and note."""


@dataclass(frozen=True)
class Augmented:
    """A train image, what it is called, and variations of it; pictures are data URIs."""

    caption: str
    original: str
    varied: tuple[str, ...]


@dataclass(frozen=True)
class Mistake:
    """A test image, with (words, text) lines about it; of masks with the true and the painted one."""

    name: str
    lines: tuple[tuple[str, str], ...]
    pictures: tuple[tuple[str, str], ...]


def read(run: Run, name: str) -> Mapping[str, object]:
    """The kept samples, empty where there are none or they are damaged."""
    try:
        table = json.loads(run.read(name)) if run.has(name) else {}
    except ValueError:
        return {}
    return table if isinstance(table, dict) else {}


def augmented(run: Run) -> tuple[str, list[Augmented]]:
    """What the augmentation does, in words, and on images."""
    table = read(run, Run.AUGMENTED)
    found = []
    for entry in _entries(table):
        varied = entry.get("varied")
        pictures = tuple(p for p in map(_picture, varied if isinstance(varied, list) else ()) if p)
        if original := _picture(entry.get("original")):
            found.append(Augmented(_caption(entry), original, pictures))
    return str(table.get("how", "")), found


def mistakes(run: Run) -> tuple[str, str, list[Mistake]]:
    """A heading, a note and the images."""
    table = read(run, Run.MISTAKES)
    heading, note = HEADINGS.get(str(table.get("task")), ("Worst mistakes", ""))
    shown = {"picture": "image", "truth": "true", "painted": "painted"}
    found = []
    for entry in _entries(table):
        pictures = tuple((what, p) for key, what in shown.items() if (p := _picture(entry.get(key))))
        said = (("is", entry.get("true")), ("named", entry.get("said")), ("", entry.get("note")))
        lines = tuple((word, str(text)) for word, text in said if text)
        if pictures:
            found.append(Mistake(str(entry.get("name", "")), lines, pictures))
    counts = {key: f"{number(table.get(key)) or 0:,.0f}" for key in ("wrong", "of")}
    return heading, note.format(**counts), found


def legend(run: Run) -> list[tuple[str, str]]:
    """(class, colour as #rrggbb) of masks."""
    pairs = read(run, Run.MISTAKES).get("colours")
    found = [pair for pair in pairs if isinstance(pair, list) and len(pair) == 2] if isinstance(pairs, list) else []
    return [(str(name), colour) for name, colour in found if isinstance(colour, str) and COLOUR.fullmatch(colour)]


def interval(run: Run) -> tuple[float, float] | None:
    """The 95 % interval of the score over test images, None where there is none."""
    ends = read(run, Run.MISTAKES).get("interval")
    low, high = map(number, ends) if isinstance(ends, list) and len(ends) == 2 else (None, None)
    return (low, high) if low is not None and high is not None else None


def _entries(table: Mapping[str, object]) -> list[Mapping[str, object]]:
    entries = table.get("entries")
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _picture(value: object) -> str:
    """A data URI of a picture, "" for anything else."""
    return value if isinstance(value, str) and PICTURE.fullmatch(value) else ""


def _caption(entry: Mapping[str, object]) -> str:
    return ": ".join(str(text) for text in (entry.get("class"), entry.get("name")) if text)
