"""What a ledger holds: files by what became of them, counts, shapes, ranges, and all that is suspicious."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

EXAMPLES = 5
"""Names that stand for all files of one fate."""


@dataclass(frozen=True)
class Fate:
    """What became of some files or images: "used" (as what), "skipped" (why) or "suspicious" (why), how many, and some names."""

    became: str
    what: str
    count: int
    examples: tuple[str, ...] = ()

    @property
    def said(self) -> str:
        """How many, and what.

        >>> Fate("used", "train images", 1).said, Fate("used", "train masks", 2).said
        ('1 train image', '2 train masks')
        """
        what = (
            re.sub(r"\b(image|signal|mask|label|key|table|column)s\b", r"\1", self.what, count=1)
            if self.count == 1
            else self.what
        )
        return f"{self.count} {what}"


@dataclass(frozen=True)
class Ledger:
    """What was found in a data set.

    Attributes:
        layout: how it was read.
        fates: what became of all files and images.
        shapes: (HxWxC and number type, images), the commonest first.
        counts: part -> class -> images, or of masks pixels.
        shares: of masks, class -> share of the train pixels.
        ranges: (least, greatest) value of each channel of the train images, in [0, 1].
        notes: sentences about what is suspicious, for the table before a run.
    """

    layout: str = ""
    fates: tuple[Fate, ...] = ()
    shapes: tuple[tuple[str, int], ...] = ()
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    ranges: tuple[tuple[float, float], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def skipped(self) -> tuple[str, ...]:
        """A note about all that was found and not used; none where there is nothing."""
        left = [fate for fate in self.fates if fate.became == "skipped"]
        said = ", ".join(fate.said for fate in left[:4]) + (", ..." if len(left) > 4 else "")
        return (f"Not used: {said}.",) if left else ()

    def plain(self) -> dict[str, object]:
        """As a table for JSON."""
        return asdict(self)


def fates(became: str, named: Iterable[tuple[str, str]]) -> tuple[Fate, ...]:
    """One `Fate` per reason from (file, reason), the commonest first."""
    grouped: dict[str, list[str]] = {}
    for path, what in named:
        grouped.setdefault(what, []).append(path)
    ranked = sorted(grouped.items(), key=lambda item: -len(item[1]))
    return tuple(Fate(became, what, len(paths), tuple(paths[:EXAMPLES])) for what, paths in ranked)
