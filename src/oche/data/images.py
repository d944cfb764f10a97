"""Data sets as they are once read: three parts, each a view of a source of pixels.

Pixels are stored as they lie in files, (B, H, W, C); they become (B, C, H, W) floats in `augment.py` alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

from oche.base import sent
from oche.data.contract import UNIT, Contract, LabelMap, PixelRule
from oche.data.entries import Ledger
from oche.data.marks import Mark

Item = TypeVar("Item")


class Source(Protocol):
    """Images, or masks, by number, all of one size."""

    def take(self, indices: Tensor) -> Tensor:
        """(B,) int64 -> (B, H, W, C): uint8, or float32 in [0, 1]; of masks (B, H, W) uint8."""
        ...


@dataclass(frozen=True, eq=False)
class ArraySource:
    """All images in one tensor (N, H, W, C), uint8 or float32 in [0, 1], in memory or on the accelerator; masks are (N, H, W)."""

    images: Tensor

    def take(self, indices: Tensor) -> Tensor:
        """(B, ...) on the device of the tensor."""
        return self.images.index_select(0, indices.to(self.images.device))


@dataclass(frozen=True, eq=False)
class LazySource:
    """Images decoded when asked for, by `workers` threads: for what does not fit in memory.

    `decode` maps a number to (H, W, C), or of a mask (H, W), of the common size; it must be safe to call from several threads, or
    `workers` must be 1.
    """

    decode: Callable[[int], Tensor]
    workers: int = 8

    def take(self, indices: Tensor) -> Tensor:
        """(B, H, W, C) on the CPU."""
        return torch.stack(in_parallel(self.decode, indices.tolist(), self.workers))


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One part of a data set: a view of some of the images of a source, with their class numbers or their masks.

    `targets` (N,) int64 are the classes of the N images of this part, `index` (N,) int64 their numbers in the source.
    Of several labels an image they are (N, K) int64, 0 or 1, of numbers (N, K) float32.
    Where there are `masks` (class numbers by pixel, by the same numbers), they are what is learned and the N targets are 0.
    `groups` (N,) int64 tells which images belong together, such as frames of one film.

    >>> part = ImageSet.of(torch.zeros(4, 8, 8, 1, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    >>> len(part), part.subset(torch.tensor([1, 3])).targets
    (4, tensor([1, 1]))
    """

    source: Source
    targets: Tensor
    index: Tensor
    masks: Source | None = None
    groups: Tensor | None = None

    @classmethod
    def of(cls, images: Tensor, targets: Tensor, groups: Tensor | None = None) -> ImageSet:
        """All of `images` (N, H, W, C), uint8 or float32 in [0, 1], with `targets` (N,), (N, K), or (N, H, W) uint8 for masks."""
        numbers = torch.arange(len(targets), device=targets.device)
        if targets.ndim == 3:
            return cls(ArraySource(images), torch.zeros_like(numbers), numbers, ArraySource(targets), groups)
        return cls(ArraySource(images), as_targets(targets), numbers, None, groups)

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (B,) in this part -> images (B, H, W, C), targets (B,), (B, K), or (B, H, W) uint8 where there are masks."""
        numbers = self.index[positions.to(self.index.device)]
        images = self.source.take(numbers)
        return images, self.masks.take(numbers) if self.masks else self.targets[sent(positions, self.targets.device)]

    def subset(self, positions: Tensor) -> ImageSet:
        """The images at these positions (M,), still a view of the same source."""
        positions = positions.to(self.targets.device)
        groups = None if self.groups is None else self.groups[positions.to(self.groups.device)]
        index = self.index[positions.to(self.index.device)]
        return replace(self, targets=self.targets[positions], index=index, groups=groups)

    def to(self, device: torch.device | str) -> ImageSet:
        """This part with its pixels on `device`; only its own images are copied, and nothing if they are there already.

        Images that are decoded on demand stay where they are.
        """
        targets = self.targets.to(device)
        if not isinstance(self.source, ArraySource) or self.source.images.device == targets.device:
            return replace(self, targets=targets)
        masks = self.masks.take(self.index).to(device) if self.masks else targets
        return ImageSet.of(self.source.take(self.index).to(device), masks, self.groups)


@dataclass(frozen=True, eq=False)
class Identity:
    """What the images of a part are: their names, relative to what they were read from, and the mark of each, with its class or mask."""

    names: tuple[str, ...]
    mark: Callable[[int], Mark]

    def subset(self, positions: Tensor) -> Identity:
        """Of the images at these positions."""
        at = positions.tolist()
        return Identity(tuple(self.names[i] for i in at), lambda i: self.mark(at[i]))


@dataclass(frozen=True, eq=False)
class Data:
    """A data set split three ways. A search sees `train` and `val`, never `test`.

    Attributes:
        size: (H, W) of every image, (1, length) of every signal.
        mean, std: of the channels of `train`, pixels in [0, 1].
        flip: True if an image keeps its class when mirrored left to right (digits do not), a signal when played backwards.
        ignore: the label of mask pixels that count nowhere; None where images have classes instead of masks.
        pixels: how values in files became pixels in [0, 1]; None where a `Data` was made by hand.
        labels: how labels in files became class numbers; `palette` are the colours that masks had.
        ledger: what was found, and what became of it.
        identities: part -> what its images are (`fingerprint`).
        notes: sentences about how it was read, and what to beware of, for the table printed before a run.
        target_mean, target_std: what was subtracted from the numbers that are targets, and what they were divided by; None where targets
            are as they were given.
        grid: rows and columns of the places that objects are counted in, row by row in the targets; None for all other tasks.
    """

    name: str
    train: ImageSet
    val: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    channels: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = True
    notes: tuple[str, ...] = ()
    ignore: int | None = None
    pixels: PixelRule | None = None
    labels: LabelMap = LabelMap()
    palette: tuple[tuple[int, int, int], ...] = ()
    ledger: Ledger = Ledger()
    identities: Mapping[str, Identity] = field(default_factory=dict)
    target_mean: tuple[float, ...] | None = None
    target_std: tuple[float, ...] | None = None
    grid: tuple[int, int] | None = None

    @property
    def outputs(self) -> int:
        """How many numbers a network says of an image, or of a pixel: one per class, label or number, or per place of the grid."""
        return len(self.classes) if self.grid is None else self.grid[0] * self.grid[1]

    @property
    def contract(self) -> Contract:
        """What a network that is trained on these data must be told with every image, and how its answers are to be read."""
        whole = isinstance(self.train.source, ArraySource) and self.train.source.images.dtype == torch.uint8
        rule = self.pixels or (PixelRule() if whole else UNIT)
        return Contract(
            self.task,
            self.classes,
            self.channels,
            self.size,
            rule,
            self.mean,
            self.std,
            self.labels,
            self.palette,
            self.ignore,
            self.target_mean,
            self.target_std,
            self.grid,
        )

    @property
    def things(self) -> str:
        """What is learned from: "images", or "signals", which are images of height 1."""
        return "signals" if self.size[0] == 1 else "images"

    @property
    def task(self) -> Literal["classify", "segment", "multilabel", "regress", "count"]:
        """The task that the data are for.

        "classify" (one class per image), "segment" (one per pixel), "multilabel" (any number of labels), "regress"
        (numbers) or "count" (how many objects there are).
        """
        if self.grid is not None:
            return "count"
        if self.ignore is not None:
            return "segment"
        if self.train.targets.ndim == 1:
            return "classify"
        return "regress" if self.train.targets.is_floating_point() else "multilabel"

    def standardised(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Data:
        """The same data with the targets (y - mean) / std of the numbers y that were given."""

        def again(part: ImageSet) -> ImageSet:
            y = part.targets.double()
            if self.target_mean is not None and self.target_std is not None:
                y = y * y.new_tensor(self.target_std) + y.new_tensor(self.target_mean)
            return replace(part, targets=((y - y.new_tensor(mean)) / y.new_tensor(std)).float())

        train, val, test = again(self.train), again(self.val), again(self.test)
        return replace(self, train=train, val=val, test=test, target_mean=mean, target_std=std)

    def to(self, device: torch.device | str) -> Data:
        """The same data with the pixels of all three parts on `device`; see `ImageSet.to`.

        Where they would take more than half of the memory that is free there they stay, and batches are copied one by one.
        """
        if torch.device(device).type == "cuda" and self._bytes() > torch.cuda.mem_get_info(device)[0] / 2:
            return self
        return replace(self, train=self.train.to(device), val=self.val.to(device), test=self.test.to(device))

    def _bytes(self) -> int:
        """Bytes of the pixels of all parts, as they would lie on a device."""
        parts = [
            (len(part), part.source.images)
            for part in (self.train, self.val, self.test)
            if isinstance(part.source, ArraySource)
        ]
        return sum(count * images[:1].nbytes for count, images in parts)


def as_targets(targets: Tensor) -> Tensor:
    """Class numbers and labels as int64, numbers (N, K) as float32."""
    return targets.float() if targets.is_floating_point() and targets.ndim == 2 else targets.long()


def in_parallel(work: Callable[[int], Item], numbers: Iterable[int], workers: int) -> list[Item]:
    """[work(n) for n in numbers], by a pool of threads that is made once per process: a forked one has none of its parent's."""
    return [work(n) for n in numbers] if workers == 1 else list(_pool(workers, os.getpid()).map(work, numbers))


@cache
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="oche-decode")
