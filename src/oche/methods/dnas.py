"""DNAS-style search: a controller with a disentangled latent vector, sampled densely where it pays. A stand-in, not the paper's method.

After Disentangled Neural Architecture Search. X. Zheng, P. Wang, Q. Wang, Z. Shi. 2020, arXiv 2009.13266.

    q(cell | z) writes a cell number by number from z in R^8; an encoder gives N(mu, s^2) of a cell
    L = -log q(cell | z) + beta KL(N(mu, s^2) || N(0, I)) + sum over k = 1, 2, 3 of (mu_k - factor_k)^2
    the factors: operations with weights, skip connections, depth, each with mean 0 and deviation 1 over random cells
    40 cells of z ~ N(0, I); then rounds of 20: mu of the cells asked for are parted into 4 bins in each direction; in the three directions
    whose bins' mean scores vary most, z is drawn from the best bin, in the others from N(0, 1)

Published (abstract): the hidden representation is disentangled, into operations, skip connections and number of layers; sampling is
concentrated on its promising regions. There is no public code, and no number here is comparable with theirs. All constants are
ours: LSTMs of one layer with 64 units, 600 batches of 64 of 1,000 random cells by Adam at 3e-3, beta = 0.1 (from beta = 1 on a nat of
divergence costs more than it can save of a cell's likelihood, so that z would say nothing), bins, rounds and 100 queries.

Deviations from the paper: how it disentangles is not known to us; here the first three directions are told what to mean. A limit on
multiply-adds is the search's own (`--max-macs`), not a rule of sampling.
Deviations from the authors' code: there is none to deviate from.
Cost against DARTS: that of its queries, and ten seconds for the controller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from oche.base import counted
from oche.errors import UserError
from oche.genotype import Genotype
from oche.genotype.cells import FREE
from oche.methods.ask_tell import AskTell, Told
from oche.methods.predictors import Matrix, in_rounds
from oche.methods.sequences import Coder, seeded
from oche.methods.tokens import Tokens
from oche.spaces import Space
from oche.spaces.sampling import sample

FACTORS = 3
"""Operations with weights, skip connections, depth."""


def factors(genotype: Genotype) -> tuple[float, float, float]:
    """How many operations have weights, how many are skip connections, and the cells' depths together.

    A cell's depth is the largest number of operations but skip connections one after the other, `none` ending the way.
    """
    weights = skips = depth = 0
    for choices in genotype.groups.values():
        weights += sum(c.op not in FREE for c in choices)
        skips += sum(c.op == "skip_connect" for c in choices)
        deep = {c.source: 0 for c in choices if c.source not in {d.target for d in choices}}
        for c in sorted(choices, key=lambda c: c.target):
            if c.op != "none" and c.source in deep:
                deep[c.target] = max(deep.get(c.target, 0), deep[c.source] + (c.op != "skip_connect"))
        depth += max(deep.values())
    return float(weights), float(skips), float(depth)


@dataclass(frozen=True)
class Controlled:
    """How the controller is learned."""

    cells: int = 1000
    steps: int = 600
    batch: int = 64
    rate: float = 3e-3
    size: int = 8
    units: int = 64
    beta: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.cells - 1, self.batch, self.size - FACTORS + 1, self.units) < 1 or self.steps < 0 or self.rate <= 0:
            raise UserError(
                f"A controller needs two cells, a batch, {FACTORS} numbers, a unit and a rate above 0; given {self}."
            )


def objective(coder: Coder, numbers: Tensor, wanted: Tensor, beta: float, noise: Tensor) -> Tensor:
    """L of sequences (B, L) with their standardised factors (B, 3), under noise (B, size) of N(0, I)."""
    mean, log_variance = coder.encode(numbers)
    z = mean + noise * (0.5 * log_variance).exp()
    divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1)
    told = ((mean[:, :FACTORS] - wanted) ** 2).sum(1)
    return (coder.loss(numbers, z) + beta * divergence + told).mean()


@lru_cache(maxsize=4)
def controller(space: Space, controlled: Controlled) -> Coder:
    """The space's controller, learned when it is first asked for."""
    tokens, rng = Tokens(space), counted(controlled.seed, "dnas", "cells")
    cells = [sample(space, rng) for _ in range(controlled.cells)]
    numbers = torch.tensor([tokens.encode(cell) for cell in cells])
    found = np.array([factors(cell) for cell in cells])
    wanted = torch.tensor((found - found.mean(0)) / np.where(found.std(0) > 0, found.std(0), 1.0))
    wanted = wanted.to(torch.get_default_dtype())
    with seeded(controlled.seed, "dnas", "weights"):
        coder = Coder(tokens.widths, controlled.size, controlled.units)
        optimizer = torch.optim.Adam(coder.parameters(), controlled.rate)
        for _ in range(controlled.steps):
            chosen = torch.randint(len(cells), (controlled.batch,))
            noise = torch.randn(controlled.batch, controlled.size)
            loss = objective(coder, numbers[chosen], wanted[chosen], controlled.beta, noise)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    return coder


@dataclass(frozen=True)
class Dense:
    """`first` cells of the controller, then rounds of `batch` from where it pays."""

    controlled: Controlled = Controlled()
    first: int = 40
    batch: int = 20
    bins: int = 4
    tries: int = 50
    _rounds: dict[object, Sequence[Genotype]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.first < self.bins or self.bins < 2 or min(self.batch, self.tries) < 1:
            raise UserError(
                "Dense sampling needs two bins, as many first cells, a batch and tries; given "
                f"bins={self.bins}, first={self.first}, batch={self.batch}, tries={self.tries}."
            )

    def ask(self, space: Space, told: Sequence[Told], seed: int) -> Genotype | None:
        """The round's next cell; a random one where the controller wrote too few new ones. None if all are known."""
        if not told:
            return self.round(space, told, seed)[0]
        if len(told) < self.first:
            return in_rounds(
                space, told, seed, 0, self.first, self._rounds, lambda before: self.round(space, before, seed)
            )
        return in_rounds(
            space, told, seed, self.first, self.batch, self._rounds, lambda before: self.round(space, before, seed)
        )

    def round(self, space: Space, told: Sequence[Told], seed: int) -> list[Genotype]:
        """New cells of the controller, z drawn where the cells so far pay."""
        coder, tokens = controller(space, self.controlled), Tokens(space)
        low, high = np.full(self.controlled.size, -np.inf), np.full(self.controlled.size, np.inf)
        if told:
            with torch.no_grad():
                means = coder.encode(torch.tensor([tokens.encode(t.genotype) for t in told]))[0].double().numpy()
            low, high = promising(means, np.array([t.score for t in told]), self.bins)
        rng = counted(seed, "dnas", len(told))
        count = (self.batch if told else self.first) * self.tries
        shape = (count, self.controlled.size)
        even = torch.rand(shape, generator=rng, dtype=torch.float64).numpy()
        normal = torch.randn(shape, generator=rng, dtype=torch.float64).numpy()
        inside = np.isfinite(low)
        z = normal.copy()
        z[:, inside] = low[inside] + even[:, inside] * (high - low)[inside]
        asked, found = {t.genotype.hash for t in told}, dict[str, Genotype]()
        for numbers in coder.write(torch.tensor(z).to(torch.get_default_dtype()), rng).tolist():
            cell = tokens.decode(numbers)
            if cell.hash not in asked and len(found) < (self.batch if told else self.first):
                found.setdefault(cell.hash, cell)
        return list(found.values())


def promising(means: Matrix, scores: Matrix, bins: int) -> tuple[Matrix, Matrix]:
    """The box (size,) to draw from: the best bin of the three directions of means (n, size) whose bins differ most, else all."""
    low, high = np.full(means.shape[1], -np.inf), np.full(means.shape[1], np.inf)
    averages, borders = [], []
    for x in means.T:
        edges = np.quantile(x, np.linspace(0, 1, bins + 1))
        place = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, bins - 1)
        averages.append([scores[place == b].mean() if (place == b).any() else -np.inf for b in range(bins)])
        borders.append(edges)
    spread = [np.var([a for a in row if np.isfinite(a)]) for row in averages]
    for k in np.argsort(-np.array(spread), kind="stable")[:FACTORS]:
        b = int(np.argmax(averages[k]))
        low[k], high[k] = borders[k][b], borders[k][b + 1]
    return low, high


def dnas(queries: int = 100, first: int = 40, batch: int = 20) -> AskTell:
    """DNAS-style: dense sampling of a disentangled controller."""
    return AskTell("dnas", Dense(Controlled(), first, batch), queries=queries, papers=("zheng2020dnas",))
