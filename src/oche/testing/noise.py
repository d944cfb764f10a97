"""What the checks search: problems on images of noise; and how they fail."""

from __future__ import annotations

from dataclasses import replace

import torch

from oche.data import Augment, Data, ImageSet
from oche.search.state import Problem
from oche.spaces import Space
from oche.spaces.toy import ToySpace
from oche.tasks import Classify, Segment


def noise_problem(
    space: Space | None = None, *, epochs: int = 2, count: int = 24, batch: int = 6, seed: int = 3
) -> Problem:
    """A problem on `count` images of noise with two channels and three classes, or masks where the space is one for masks."""
    chosen = replace(space or ToySpace(), inputs=2, outputs=3, size=(8, 8))
    dense, rng = chosen.task == "segment", torch.Generator().manual_seed(7)

    def part() -> ImageSet:
        targets = torch.randint(3, (count, 8, 8), generator=rng) if dense else torch.arange(count) % 3
        return ImageSet.of(torch.rand(count, 8, 8, 2, generator=rng), targets.to(torch.uint8) if dense else targets)

    half, third = (0.5, 0.5), (0.3, 0.3)
    data = Data(
        "noise",
        part(),
        part(),
        part(),
        ("a", "b", "c"),
        2,
        (8, 8),
        half,
        third,
        flip=False,
        ignore=255 if dense else None,
    )
    task = Segment() if dense else Classify()
    return Problem(chosen, data, task, Augment(data.mean, data.std), epochs, batch, seed)


def assert_true(condition: bool, sentence: str) -> None:
    """Raises AssertionError with the sentence, also under `python -O`."""
    if not condition:
        raise AssertionError(sentence)
