"""A small autoencoder of cells as sequences of numbers: one LSTM reads them into a vector z, another writes them from z.

Place i of a sequence has `widths[i]` values; each value of each place has an embedding of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oche.base import counted


@contextmanager
def seeded(*key: int | str) -> Iterator[None]:
    """Draws of torch inside are decided by the key; those outside are not disturbed."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(counted(*key).initial_seed())
        yield


class Coder(nn.Module):
    """Reads sequences (B, L) into means and log-variances of z, (B, size) each, and scores sequences under z."""

    def __init__(self, widths: Sequence[int], size: int, units: int) -> None:
        super().__init__()
        self.widths = tuple(widths)
        offsets = [sum(widths[:i]) for i in range(len(widths))]
        self.offsets = nn.Buffer(torch.tensor(offsets), persistent=False)
        self.embed = nn.Embedding(sum(widths) + 1, units)
        self.reader = nn.LSTM(units, units, batch_first=True)
        self.mean, self.log_variance = nn.Linear(units, size), nn.Linear(units, size)
        self.writer = nn.LSTM(units + size, units, batch_first=True)
        self.heads = nn.ModuleList([nn.Linear(units, width) for width in widths])

    def encode(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Sequences (B, L) -> mean and log-variance of z, (B, size) each."""
        h = self.reader(self.embed(numbers + self.offsets))[0][:, -1]
        return self.mean(h), self.log_variance(h)

    def loss(self, numbers: Tensor, z: Tensor) -> Tensor:
        """(B,) -log q(sequence | z), each number given those before it."""
        shifted = F.pad(numbers + self.offsets, (1, -1), value=sum(self.widths))
        h, _ = self.writer(torch.cat([self.embed(shifted), z[:, None].expand(-1, len(self.widths), -1)], 2))
        by_place = [
            F.cross_entropy(head(h[:, i]), numbers[:, i], reduction="none") for i, head in enumerate(self.heads)
        ]
        return torch.stack(by_place).sum(0)

    @torch.no_grad()
    def write(self, z: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Sequences (B, L) of z (B, size): the likeliest number place by place, or drawn ones."""
        last = torch.full((len(z),), sum(self.widths))
        state, found = None, []
        for head, offset in zip(self.heads, self.offsets.tolist(), strict=True):
            h, state = self.writer(torch.cat([self.embed(last), z], 1)[:, None], state)
            scores = head(h[:, 0])
            n = scores.argmax(1) if rng is None else torch.multinomial(scores.softmax(1), 1, generator=rng)[:, 0]
            found.append(n)
            last = n + offset
        return torch.stack(found, 1)
