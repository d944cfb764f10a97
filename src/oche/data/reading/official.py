"""What labels mean in sets whose makers say so: SegNet's CamVid and ADE20K, told by the names of their folders and files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from oche.data.reading.labels import IGNORE_NAME, Wanted
from oche.data.reading.masks import IGNORE, read_mask
from oche.data.reading.texts import text_of
from oche.errors import UserError

CAMVID = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
CAMVID_VOID = 11
"""Class names of the 11-class split of SegNet, and the label of pixels without one."""

ADE_NAMES = "objectInfo150.txt"
"""ADE20K's table of classes: the number first, the name last, divided by tabs."""

LOOKED_AT = 8
"""Masks whose labels are compared with the classes that a set should have."""


def said_by_makers(root: Path, masks: Sequence[Path]) -> tuple[Wanted | None, str]:
    """What labels mean in a set that is known, and a note about it; None and "" for other sets, and where masks have other labels."""
    if (root / ADE_NAMES).is_file():
        wanted, note = _ade(root / ADE_NAMES), f"{ADE_NAMES} names the classes; 0 is none of them and counts nowhere."
    elif "camvid" in root.name.lower() and (root / "trainannot").is_dir():
        entries = [(str(n), name) for n, name in enumerate(CAMVID)]
        wanted = Wanted((*entries, (str(CAMVID_VOID), IGNORE_NAME)))
        note = f"The classes are CamVid's eleven; {CAMVID_VOID} is none of them and counts nowhere."
    else:
        return None, ""
    known = {str(IGNORE), *(key for key, _ in wanted.entries)} if wanted else set()
    return (wanted, note) if known and all(_labels(mask) <= known for mask in masks[:LOOKED_AT]) else (None, "")


def _ade(path: Path) -> Wanted | None:
    """Labels by the table, each named by its first word where no other begins with the same; None where it is another table."""
    rows = [line.split("\t") for line in text_of(path).splitlines() if line.strip()]
    named = {row[0].strip(): row[-1].strip() for row in rows if row[0].strip().isdecimal() and len(row) > 1}
    short = Counter(name.partition(",")[0] for name in named.values())
    entries = [
        (key, first if short[first := name.partition(",")[0]] == 1 else name) for key, name in named.items() if name
    ]
    return Wanted((("0", IGNORE_NAME), *entries)) if entries else None


def _labels(mask: Path) -> set[str]:
    """The labels in a mask; none where it cannot be read, which is told later."""
    try:
        values = read_mask(mask, False)
    except UserError:
        return set()
    return set(map(str, set(values.flatten().tolist()))) if values.ndim == 2 else {"a colour"}
