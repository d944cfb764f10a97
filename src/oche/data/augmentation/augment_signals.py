"""Augmentation of whole batches of signals, driven by one generator: (B, 1, L, C) -> (B, C, 1, L), normalised."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from oche.base import WHOLE, Batch, Part, sent
from oche.data.augmentation.augment import normalised
from oche.data.images import as_targets


@dataclass(frozen=True)
class AugmentSignals:
    """Shift, reversal, normalise, scale, noise, cutout, in this order.

    Attributes:
        mean, std: of each channel.
        shift: the signal moves by up to that many values to either side; its first or last value fills what is left.
        flip: it is played backwards with probability 1/2.
        scale: each channel of each signal is multiplied by a number drawn from N(1, scale^2).
        noise: to each value a number from N(0, noise^2) is added, in units of the channel's spread. Both as in the code of Um et al.,
            ICMI 2017 (arXiv 1706.00527), whose sigmas are 0.1 and 0.05; there, scaling is of the signal as measured, here about its mean.
        cutout: so many values in a row are set to the mean, centred at a random one and clipped at the ends; 0 is off.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    shift: int = 0
    flip: bool = False
    scale: float = 0.1
    noise: float = 0.05
    cutout: int = 0

    def batch(self, images: Tensor, targets: Tensor, generator: torch.Generator, part: Part = WHOLE) -> Batch:
        """The signals varied, their targets as they are; noise is drawn on the generator's device for the whole batch."""
        count, _, length, channels = images.shape
        place = sent(part.drawn(torch.rand, (3, count), generator, images=1), images.device)
        factor = part.drawn(torch.randn, (count, channels, 1, 1), generator)
        added = part.drawn(torch.randn, (count, channels, 1, length), generator)
        offset = (place[0] * (2 * self.shift + 1)).long() - self.shift
        at = torch.arange(length, device=images.device)
        source = (at + offset[:, None]).clamp(0, length - 1)
        if self.flip:
            source = torch.where((place[1] < 0.5)[:, None], length - 1 - source, source)
        moved = images.gather(2, source[:, None, :, None].expand_as(images))
        x = normalised(moved, self.mean, self.std)
        x = x * (1 + self.scale * sent(factor, x.device)) + self.noise * sent(added, x.device)
        if self.cutout:
            from_centre = at - (place[2] * length).long()[:, None]
            gone = (from_centre >= -(self.cutout // 2)) & (from_centre < self.cutout - self.cutout // 2)
            x = x.masked_fill(gone[:, None, None], 0.0)
        return Batch(x.contiguous(memory_format=torch.channels_last), as_targets(targets))

    def normalise(self, images: Tensor) -> Tensor:
        """(value - mean) / std: (B, 1, L, C) -> (B, C, 1, L)."""
        return normalised(images, self.mean, self.std)

    def describe(self) -> str:
        """A description in a few words.

        >>> AugmentSignals((0.5,), (0.2,), shift=8).describe()
        'shift by up to 8 values, normalise, scale 0.1, noise 0.05'
        """
        steps = {
            f"shift by up to {self.shift} values": self.shift,
            "reversal": self.flip,
            "normalise": True,
            f"scale {self.scale:g}": self.scale,
            f"noise {self.noise:g}": self.noise,
            f"cutout {self.cutout}": self.cutout,
        }
        return ", ".join(step for step, done in steps.items() if done)
