"""What is asked of a reader, and what it found: labels first, values when it is known which images are trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from oche.data.contract import TRAINED, Contract, LabelMap, PixelRule
from oche.data.entries import Fate
from oche.data.images import Identity, ImageSet
from oche.data.reading.labels import Wanted
from oche.data.reading.pixels import Size

ALIASES = {
    "train": ("train", "training", "trainset", "train_set", "trn"),
    "val": ("val", "valid", "validation", "validate", "valset", "val_set", "eval", "evaluation", "dev"),
    "test": ("test", "testing", "testset", "test_set", "tst"),
}
"""Part -> what files and folders call it, in any case."""


@dataclass(frozen=True)
class Wish:
    """What is asked of a reader: size, channels, the values that become 0 and 1, labels, and what a network's contract settles.

    `missing`: classes may be missing from val and test. `signals`: arrays hold signals or images, None for what they look like.
    """

    size: Size | None = None
    channels: int | None = None
    span: tuple[float, float] | None = None
    labels: Wanted | None = None
    missing: bool = False
    signals: bool | None = None
    task: str | None = None
    contract: Contract | None = None

    @property
    def rule(self) -> PixelRule | None:
        """The rule that a network was trained by."""
        return self.contract.pixels if self.contract else None

    def settled(self, rule: PixelRule) -> PixelRule:
        """The contract's rule, else the span that was asked for, else the rule given."""
        if self.rule is not None:
            return self.rule
        if self.span is None:
            return rule
        return replace(rule, offset=self.span[0], scale=self.span[1] - self.span[0])

    def met(self, rule: PixelRule, depth: str) -> PixelRule:
        """The rule for files or arrays of this number type: that of the set, or what a network's contract makes of bytes."""
        return rule.met(depth) if self.contract and not self.contract.signal else rule

    def odd(self, rule: PixelRule, low: float, high: float, depth: str) -> str:
        """What the train images, of this set or of a network, do not have of values of this range and type, "" for nothing."""
        if self.contract and not self.contract.signal:
            return rule.odd(low, high, depth, TRAINED)
        return rule.strange(low, high, depth, *((TRAINED,) if self.contract else ())) or ""

    def whose(self, name: str) -> str:
        """The name of the set where its images stand beside those of a network's training."""
        return f" of {name}" if self.contract else ""


@dataclass(frozen=True, eq=False)
class Filled:
    """Image sets by part, of one size, the rule that their values follow, notes, and how often each shape and type occurs.

    `grid` is what counts are placed in.
    """

    sets: Mapping[str, ImageSet]
    rule: PixelRule
    notes: tuple[str, ...] = ()
    shapes: tuple[tuple[str, int], ...] = ()
    identities: Mapping[str, Identity] = field(default_factory=dict)
    grid: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Parts:
    """What a reader found: "train" and perhaps "val" and "test", before any splitting and before values are read.

    `targets` are class numbers (N,), zeros beside masks. `fill` reads the values, by a rule decided on the positions it is given of the
    train part. `classes` name the numbers. `ignore` is the label of mask pixels that count nowhere, None where images have classes.
    """

    name: str
    targets: Mapping[str, Tensor]
    fill: Callable[[Tensor], Filled]
    classes: tuple[str, ...]
    flip: bool = True
    notes: tuple[str, ...] = ()
    ignore: int | None = None
    labels: LabelMap = LabelMap()
    palette: tuple[tuple[int, int, int], ...] = ()
    fates: tuple[Fate, ...] = ()
    layout: str = ""


Pair = tuple[NDArray[np.generic], NDArray[np.generic]]
