"""What was decided about a data set when a network was trained on it, kept with the network and applied by all that uses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oche.errors import UserError

BITS = (8, 10, 12, 14, 16, 20, 24, 28, 32)
"""Depths that whole numbers are taken to have: the least that holds all of the train images."""

DARK = 200
"""Values that reach less than one in so many of what the train images do, as bytes do in files of 16 bits, are told."""

IN_BYTES = "8-bit values, divided by 255 for a network that was trained on floats in [0, 1]"
"""What is said of bytes that such a network is given."""

TRAINED = "those that the network was trained on"
"""What the images of its training are called beside others."""

IGNORED = -1
"""The class number of labels that count nowhere, in a `LabelMap`."""

CROP = "crop at the centre to the shape, then antialiased bilinear"
"""How every image is brought to the size."""

KEPT = "none: signals have the network's length"
"""The same of signals."""


@dataclass(frozen=True)
class PixelRule:
    """value -> (value - offset) / scale, one rule for all files of a set, decided on its train images.

    Attributes:
        offset, scale: what becomes 0, and the span that becomes 1.
        low, high: the least and the greatest value of the train images.
        depth: the number type of the train files: "uint8", "uint16", "float32", ...
    """

    offset: float = 0.0
    scale: float = 255.0
    low: float = 0.0
    high: float = 255.0
    depth: str = "uint8"

    @property
    def whole_bytes(self) -> bool:
        """True if values are kept as bytes, which become floats in [0, 1] where a batch is made."""
        return self.offset == 0 and self.scale == 255 and not self.depth.startswith("float")

    def apply(self, values: NDArray[np.generic], *, as_bytes: bool) -> Tensor:
        """Values as they lie in a file -> float32, mostly in [0, 1]; or as they are, uint8."""
        if as_bytes:
            return torch.from_numpy(np.require(values, np.uint8, ("C", "W")))
        pixels = values.astype(np.result_type(values.dtype, np.float32))
        if (self.offset, self.scale) != (0.0, 1.0):
            pixels = (pixels - pixels.dtype.type(self.offset)) / pixels.dtype.type(self.scale)
        return torch.from_numpy(np.require(pixels, np.float32, ("C", "W")))

    @property
    def unit(self) -> bool:
        """True if training saw floats in [0, 1], as a torch Dataset has them: bytes of a file are then divided by 255."""
        return self.offset == 0 and self.scale == 1 and self.low >= 0 and self.high <= 1

    def met(self, depth: str) -> PixelRule:
        """The rule for values of this number type in images that a trained network is given: another one for bytes where `unit`."""
        return PixelRule() if self.unit and depth == PixelRule.depth else self

    def odd(self, low: float, high: float, depth: str, seen: str = "the train images") -> str:
        """What training never saw of values that a trained network is given, "" for nothing; `seen` names what it saw."""
        return IN_BYTES if self.met(depth) is not self else self.strange(low, high, depth, seen) or ""

    def strange(self, low: float, high: float, depth: str, seen: str = "the train images") -> str | None:
        """What is odd about values of this range and type; None for such as training saw.

        >>> PixelRule().strange(0, 4095, "uint16")
        'values up to 4095, where the train images end at 255'
        """
        if high - self.high > max(abs(self.high), self.high - self.low) * 0.5 and high > self.offset + self.scale:
            return f"values up to {high:g}, where {seen} end at {self.high:g}"
        if self.low - low > (self.high - self.low) * 0.5:
            return f"values down to {low:g}, where {seen} begin at {self.low:g}"
        least = (self.high - self.low) / DARK
        if abs(low - self.low) <= least and high - self.low <= least:
            return f"values up to {high:g} only, where {seen} reach {self.high:g}"
        if _coarser(depth, self.depth) and high <= (self.high - self.offset) / 8:
            return f"{depth} values up to {high:g}, where {seen} are {self.depth} up to {self.high:g}"
        return None

    def says(self) -> str:
        """The rule in words.

        >>> PixelRule(scale=4095.0, high=4000.0, depth="uint16").says()
        'uint16 values from 0 to 4000 in train, divided by 4095 (12 bits)'
        """
        if (self.offset, self.scale) == (0, 1):
            return f"{self.depth} values from {self.low:g} to {self.high:g} in train, as they are"
        bits = {float(2**b - 1): f" ({b} bits)" for b in BITS}.get(self.scale, "")
        minus = f" less {self.offset:g}," if self.offset else ","
        return f"{self.depth} values from {self.low:g} to {self.high:g} in train{minus} divided by {self.scale:g}{bits}"


@dataclass(frozen=True)
class LabelMap:
    """What a label in the files means: a value, a colour "#rrggbb" or a name -> class number, `IGNORED` for those that do not count.

    Empty, labels are class numbers, and of masks 255 is ignored.
    """

    entries: tuple[tuple[str, int], ...] = ()

    @property
    def table(self) -> dict[str, int]:
        """As a dict."""
        return dict(self.entries)

    @property
    def colours(self) -> bool:
        """True if masks are told apart by colour."""
        return any(key.startswith("#") for key, _ in self.entries)


@dataclass(frozen=True)
class Contract:
    """All that a user of a trained network must know of its input and output.

    Attributes:
        task: what is learned: "classify", "segment", ...
        classes: names, by number.
        channels, size: of every image, (H, W) after `CROP`; of signals (1, length).
        pixels: how values become floats in [0, 1].
        mean, std: of each channel thereafter, subtracted and divided by inside the exported network.
        labels: how labels in files became class numbers.
        palette: colours of the masks' classes, where they had some.
        ignore: the label of mask pixels that count nowhere.
        target_mean, target_std: numbers are outputs times target_std plus target_mean.
        grid: rows and columns of the places that objects are counted in; the sum of their numbers is the count.
    """

    task: str
    classes: tuple[str, ...]
    channels: int
    size: tuple[int, int]
    pixels: PixelRule
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: LabelMap = LabelMap()
    palette: tuple[tuple[int, int, int], ...] = ()
    ignore: int | None = None
    target_mean: tuple[float, ...] | None = None
    target_std: tuple[float, ...] | None = None
    grid: tuple[int, int] | None = None

    @property
    def signal(self) -> bool:
        """True for signals, which are images of height 1."""
        return self.size[0] == 1

    @property
    def things(self) -> str:
        """What the network is given: "images" or "signals"."""
        return "signals" if self.signal else "images"

    def plain(self) -> dict[str, object]:
        """As a table for JSON and TOML, without what is None."""
        table = {name: value for name, value in asdict(self).items() if value is not None}
        table["labels"] = self.labels.table
        return {**table, "resize": KEPT if self.signal else CROP}

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Contract:
        """The contract that `plain` wrote. Raises UserError for a table that is none."""
        try:
            return cls(
                task=str(table["task"]),
                classes=tuple(map(str, table["classes"])),
                channels=int(table["channels"]),
                size=(int(table["size"][0]), int(table["size"][1])),
                pixels=PixelRule(**table["pixels"]),
                mean=tuple(map(float, table["mean"])),
                std=tuple(map(float, table["std"])),
                labels=LabelMap(tuple((str(k), int(v)) for k, v in table.get("labels", {}).items())),
                palette=tuple((int(r), int(g), int(b)) for r, g, b in table.get("palette", ())),
                ignore=None if table.get("ignore") is None else int(table["ignore"]),
                target_mean=_numbers(table.get("target_mean")),
                target_std=_numbers(table.get("target_std")),
                grid=None if table.get("grid") is None else (int(table["grid"][0]), int(table["grid"][1])),
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UserError(f"The contract of a data set is damaged ({error!r}): train the network again.") from None


def _numbers(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(map(float, values))


UNIT = PixelRule(scale=1.0, high=1.0, depth="float32")
"""Floats in [0, 1]."""


def decided(low: float, high: float, depths: Sequence[str], whole: bool) -> PixelRule:
    """The rule for train images of these values and number types; `whole` if all are whole numbers.

    Whole numbers from 0 on are divided by the greatest of their depth, the least of `BITS` that holds them all: 255, 4095, 65535, ...
    Floats in [0, 1] stay, floats in [0, 255] are divided by 255. All else is mapped linearly from its own range to [0, 1], which the
    later normalisation makes harmless.
    """
    depth = max(depths, key=lambda name: (np.dtype(name).kind == "f", np.dtype(name).itemsize), default="uint8")
    kinds = {np.dtype(name).kind for name in depths}
    integers = kinds <= {"b", "u", "i"} and kinds != {"b"}
    offset, scale = (0.0, high) if low >= 0 else (low, high - low)
    if low >= 0 and not integers and high <= 1:
        scale = 1.0
    elif low >= 0 and high <= 255:
        scale = 255.0
    elif low >= 0 and whole and high < 2.0 ** BITS[-1]:
        scale = next(2.0**b - 1 for b in BITS if high <= 2**b - 1)
    return PixelRule(offset, scale or 1.0, low, high, depth)


def _coarser(depth: str, than: str) -> bool:
    """True if a number type has fewer bits than another of integers."""
    a, b = np.dtype(depth), np.dtype(than)
    return a.kind in "ui" and b.kind in "ui" and a.itemsize < b.itemsize
