"""What the rows of docs/results/performance.md are to reach: goals, stretches, and where in a row the number stands."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Result = dict[str, Any]


@dataclass(frozen=True)
class Goal:
    """The goal of a row: a ratio, a stretch, and a memory ratio (0: none asked)."""

    work: str
    ratio: float
    stretch: float = 0.0
    memory: float = 0.0


GOALS = {
    "goal/darts": Goal("DARTS space, C=16, L=8, batch 64", 13, 17, 5),
    "also/darts-nhwc": Goal("DARTS space, batch 64, the published step in channels_last", 7.2),
    "goal/exact": Goal("DARTS space, second order, batch 16: exact product", 11, 13, 6),
    "goal/finite": Goal("DARTS space, second order, batch 16: finite difference", 9, 12, 5),
    "goal/pcdarts": Goal("PC-DARTS, batch 64", 5, 10, 2),
    "goal/nb201": Goal("NAS-Bench-201, C=16, N=5, batch 64", 6, 7, 4),
    "also/nb201-nhwc": Goal("NAS-Bench-201, batch 64, the published step in channels_last", 3.8),
    "goal/rf": Goal("random features against training all weights, DARTS space, batch 64", 1.15, 1.25),
    "goal/augment": Goal("augmentation of a batch of 64 against PIL, image by image", 8),
}


@dataclass(frozen=True)
class Other:
    """The goal of a number within a row, where `of` finds it: at least `goal`, or at most where it is a time or what is dearer."""

    work: str
    row: str
    of: Callable[[Result], float]
    goal: float
    stretch: float
    unit: str = "x"
    most: bool = False

    def verdict(self, value: float) -> str:
        """What is reached."""
        for word, at in (("stretch reached", self.stretch), ("reached", self.goal)):
            if value <= at if self.most else value >= at:
                return word
        return "missed"


_LARGE, _SMALL, _CELL = "DARTS_V2, C=36 L=20, batch 32", "DARTS_V2, C=8 L=8", "NAS-Bench-201's best cell, C=16 N=1"
_MOBILE = "MobileNetV2, 0.4 as wide"
OTHERS = (
    Other(
        "NAS-Bench-201 iteration beside a busy process, to its quiet time with PyTorch's waiting",
        "goal/busy", lambda row: row["waiting"]["oche"]["goal"], 1.6, 1.4, most=True,
    ),
    Other(f"training step, {_LARGE}, against NCHW", "goal/train36", lambda row: row["ratios"]["kernels"], 3, 4),
    Other(
        f"training step, {_LARGE}, against channels_last",
        "goal/train36", lambda row: row["ratios"]["kernels"] / row["ratios"]["channels_last"], 2, 2.7,
    ),
    *(
        Other(f"training step, {name}, batch 128, against channels_last",
              "also/epoch", lambda row, name=name: row["ratios"][name], 1.7, 2.5)
        for name in ("ResNet-8", _CELL)
    ),
    *(
        Other(f"training step per multiply-add, {name}, to plain ResNet-8's",
              "also/epoch", lambda row, name=name: row["dearer"][name]["kernels"], 2, 1.3, most=True)
        for name in (_MOBILE, _SMALL)
    ),
    Other(
        "search time to a mean of 92.75 % in the table, eight seeds, against the reduced study's",
        "goal/search", lambda row: row["times"], 2, 4,
    ),
    Other("CIFAR-10, minutes to 90 % on test images", "goal/ninety", lambda row: row["minutes"] or math.inf, 15, 10, " min", True),
)  # fmt: skip
"""Goals of training, of busy machines, of what a user waits for."""
