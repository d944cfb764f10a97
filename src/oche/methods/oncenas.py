"""OnceNAS: accuracy, latency and parameters sought together in a learned continuous space. Y. Zhang et al. Information Sciences 2024.

    an encoder maps a cell to a vector z, a decoder writes the cell from z, a predictor tells (accuracy, log latency, log parameters) of z
    L = cross-entropy of the decoded cell + 3 times the mean squared error of what is known: costs of all cells, accuracy of those asked for
    from z of the best tenth, three cells at least: z + k d grad / |grad| of accuracy - t (log latency + log parameters) / 2, k = 1 .. 30;
    each is decoded, and the new cells with the greatest predicted value are asked for, in turns for each trade-off t

Published (abstract and public summaries of doi 10.1016/j.ins.2024.120567; the body is not at hand): an extractor, a generator, a
predictor of several metrics at once, and the search in the space between them. All else is ours, so this is a reading and no
reproduction: LSTMs of one layer with 64 units, z of 64 numbers, a predictor of one hidden layer of 64, the error's 3; 1,000 random
cells, whose costs are known without a query, 400 batches of 64 by Adam at 3e-3 before the first query and 50 more before each round; 10
first cells, rounds of 10; t in (0, 0.1, 0.3), log costs with mean 0 and deviation 1, accuracies as normal quantiles of their ranks; d a
thirtieth of the cells' spread. Parameters and, in the place of latency, multiply-adds are those of the network that this search builds;
`--set method.device=raspi4` takes the milliseconds of NAS-Bench-201's table, and with them the parameters of the networks that were
measured there (16 channels, five cells per stage, CIFAR-10), whatever the size of this search's own.

The cell handed out is the best by score. The front of the cells asked for lies in the run's folder as `front.json`, and in its report:
those through which a signal can pass and that no other beats in score, latency (or multiply-adds) and parameters at once, the best
score first.

Deviations from the paper: unknown, as its constants are.
Deviations from the authors' code: there is only data of theirs (OnceNAS-Bench), no code.
Cost against DARTS: that of its queries, ten seconds to learn the space, and about two per round.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from scipy.stats import norm, rankdata
from torch import Tensor, nn
from torch.nn import functional as F

from oche.base import counted
from oche.errors import UserError
from oche.genotype import Genotype
from oche.methods.ask_tell import AskTell, Told
from oche.methods.predictors import Matrix, in_rounds
from oche.methods.sequences import Coder, seeded
from oche.methods.tokens import Tokens
from oche.run import Run
from oche.search.limits import fixed_costs, summed
from oche.search.state import Problem
from oche.spaces import Space
from oche.spaces.sampling import sample
from oche.tables import TableLike, table_named

STEPS = 30
"""Steps of an ascent, each decoded."""

PARAMETERS = "cifar10/parameters"
"""The metric of the table for the networks whose latency it has: 16 channels, five cells per stage, ten classes."""


def costs(space: Space, genotype: Genotype, device: str | None) -> tuple[float, float]:
    """Latency and parameters of one network: by a device of the table its milliseconds and the parameters of what was measured there.

    Without a device the space's multiply-adds and parameters. Raises UserError for a device that the table does not know.
    """
    if device is not None:
        measured = _table()
        return float(measured.value(genotype, f"latency/{device}")), float(measured.value(genotype, PARAMETERS))
    rest, table = fixed_costs(space), summed(space)
    rows = [
        table[group.name][group.entry(c.source, c.target, c.op)]
        for group in space.groups
        for c in genotype.groups[group.name]
    ]
    parameters, work = (float(torch.stack(rows)[:, n].sum()) for n in (0, 1))
    return rest["multiply_adds"] + work, rest["parameters"] + parameters


@lru_cache(maxsize=1)
def _table() -> TableLike:
    """The table of latencies, read once."""
    return table_named("nb201")


def front(points: Sequence[tuple[float, ...]]) -> list[int]:
    """The numbers of the points that no other point beats: (score, cost, ...), more of the first is better, less of the others.

    >>> front([(90.0, 5.0), (91.0, 7.0), (89.0, 6.0), (91.0, 7.0)])
    [0, 1, 3]
    """
    better = [(-score, *rest) for score, *rest in points]
    return [
        n
        for n, own in enumerate(better)
        if not any(other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in better)
    ]


def normal_ranks(scores: Sequence[float]) -> Matrix:
    """The scores' ranks as quantiles of N(0, 1), equal scores with their mean rank: a few cells that learn nothing outweigh no others."""
    found: Matrix = norm.ppf((rankdata(scores) - 0.5) / len(scores))
    return found


# ------------------------------------------------------------------ the space


class Joint(nn.Module):
    """A coder of cells, and the predictor of accuracy, latency and parameters from z."""

    def __init__(self, widths: Sequence[int], size: int, units: int) -> None:
        super().__init__()
        self.coder = Coder(widths, size, units)
        self.predictor = nn.Sequential(nn.Linear(size, units), nn.ReLU(), nn.Linear(units, 3))

    def loss(self, numbers: Tensor, known: Tensor) -> Tensor:
        """Sequences (B, L) with what is known of them (B, 3), NaN where it is not."""
        z = self.coder.encode(numbers)[0]
        there = known.isfinite()
        errors = (self.predictor(z)[there] - known[there]) ** 2
        error: Tensor = errors.sum() / max(1, int(there.sum()))
        return self.coder.loss(numbers, z).mean() + 3 * error


@dataclass(frozen=True)
class Learned:
    """How the space is learned."""

    cells: int = 1000
    steps: int = 400
    tuning: int = 50
    batch: int = 64
    rate: float = 3e-3
    size: int = 64
    units: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if (
            min(self.cells - 1, self.batch, self.size, self.units) < 1
            or min(self.steps, self.tuning) < 0
            or self.rate <= 0
        ):
            raise UserError(
                f"A latent space needs two cells, a batch, a number, a unit and a rate above 0; given {self}."
            )

    def train(self, model: Joint, numbers: Tensor, known: Tensor, steps: int) -> None:
        """Adam on random batches; half of each is from the last rows whose accuracy is known, if there are any."""
        optimizer = torch.optim.Adam(model.parameters(), self.rate)
        labelled = known[:, 0].isfinite().nonzero()[:, 0]
        for _ in range(steps):
            chosen = torch.randint(len(numbers), (self.batch,))
            if len(labelled):
                half = labelled[torch.randint(len(labelled), (self.batch // 2,))]
                chosen = torch.cat([half, chosen[len(half) :]])
            loss = model.loss(numbers[chosen], known[chosen])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()


@dataclass(frozen=True, eq=False)
class Begun:
    """The space before the first query: the model, its cells (n, L), their costs (n, 2), and the mean and deviation of log costs."""

    model: Joint
    numbers: Tensor
    costs: Tensor
    scale: tuple[Matrix, Matrix]

    def standard(self, found: Sequence[tuple[float, float]]) -> Tensor:
        """Costs (n, 2) as standardised logarithms."""
        mean, deviation = self.scale
        return torch.tensor((np.log(np.maximum(found, 1e-9)) - mean) / deviation).to(torch.get_default_dtype())


@lru_cache(maxsize=4)
def begun(space: Space, learned: Learned, device: str | None) -> Begun:
    """The space learned from random cells and their costs."""
    tokens, rng = Tokens(space), counted(learned.seed, "oncenas", "cells")
    cells = [sample(space, rng) for _ in range(learned.cells)]
    logs = np.log(np.maximum([costs(space, cell, device) for cell in cells], 1e-9))
    scale = logs.mean(0), np.where(np.ptp(logs, 0) > 0, logs.std(0), 1.0)  # equal numbers may deviate by rounding
    numbers = torch.tensor([tokens.encode(cell) for cell in cells])
    found = torch.tensor((logs - scale[0]) / scale[1]).to(torch.get_default_dtype())
    with seeded(learned.seed, "oncenas", "weights"):
        model = Joint(tokens.widths, learned.size, learned.units)
        learned.train(model, numbers, F.pad(found, (1, 0), value=float("nan")), learned.steps)
    return Begun(model, numbers, found, scale)


# ------------------------------------------------------------------ the search


@dataclass(frozen=True)
class Ascent:
    """`first` random cells, then rounds of `batch` cells uphill from the best tenth, in turns for each of `trades`."""

    learned: Learned = Learned()
    first: int = 10
    batch: int = 10
    trades: tuple[float, ...] = (0.0, 0.1, 0.3)
    device: str | None = None
    _rounds: dict[object, Sequence[Genotype]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.first < 2 or self.batch < 1 or not self.trades or min(self.trades) < 0:
            raise UserError(
                "OnceNAS needs two first cells, a batch and trade-offs from 0 on; given "
                f"first={self.first}, batch={self.batch}, trades={self.trades}."
            )

    def ask(self, space: Space, told: Sequence[Told], seed: int) -> Genotype | None:
        """A random cell at first, then the round's next; a random one where the ascents found too few. None if all are known."""
        return in_rounds(
            space, told, seed, self.first, self.batch, self._rounds, lambda before: self.round(space, before, seed)
        )

    def conclude(self, problem: Problem, run: Run, told: Sequence[Told]) -> None:
        """Writes the front of what was asked for."""
        cells = front_of(problem.built or problem.space, told, self.device)
        run.write(Run.FRONT, json.dumps({"device": self.device, "cells": cells}, indent=1).encode())

    def round(self, space: Space, told: Sequence[Told], seed: int) -> list[Genotype]:
        """The round's cells, from the space tuned on what was told."""
        base, tokens = begun(space, self.learned, self.device), Tokens(space)
        numbers = torch.tensor([tokens.encode(t.genotype) for t in told])
        prices = base.standard([costs(space, t.genotype, self.device) for t in told])
        known = torch.cat([torch.tensor(normal_ranks([t.score for t in told])).to(prices)[:, None], prices], 1)
        with seeded(seed, "oncenas", len(told)):
            model = deepcopy(base.model)
            everything = (
                torch.cat([base.numbers, numbers]),
                torch.cat([F.pad(base.costs, (1, 0), value=float("nan")), known]),
            )
            self.learned.train(model, *everything, self.learned.tuning)
        best = sorted(range(len(told)), key=lambda n: -told[n].score)[: max(3, len(told) // 10)]
        asked, queues = {t.genotype.hash for t in told}, []
        for trade in self.trades:
            points = uphill(model, numbers[best], base.numbers, trade)
            cells = {cell.hash: cell for cell in map(tokens.decode, model.coder.write(points).tolist())}
            new = [cell for name, cell in cells.items() if name not in asked]
            queues.append(ranked(model, tokens, new, trade))
        found: dict[str, Genotype] = {}
        for turn in range(max(map(len, queues))):
            for queue in queues:
                if turn < len(queue) and len(found) < self.batch:
                    found.setdefault(queue[turn].hash, queue[turn])
        return list(found.values())


def value(model: Joint, z: Tensor, trade: float) -> Tensor:
    """(B,) predicted accuracy less `trade` times the mean of log latency and log parameters."""
    accuracy, latency, parameters = model.predictor(z).unbind(1)
    worth: Tensor = accuracy - trade * (latency + parameters) / 2
    return worth


def uphill(model: Joint, numbers: Tensor, others: Tensor, trade: float) -> Tensor:
    """(30 B, size) the points on the way up from the encodings of sequences (B, L); a step is a thirtieth of the spread of others'."""
    with torch.enable_grad():
        z = model.coder.encode(numbers)[0].detach()
        spread = float(model.coder.encode(others)[0].detach().std(0).norm())
        found = []
        for _ in range(STEPS):
            z = z.requires_grad_()
            (slope,) = torch.autograd.grad(value(model, z, trade).sum(), z)
            length = slope.norm(dim=1, keepdim=True).clamp_min(torch.finfo(slope.dtype).tiny)
            z = (z + spread / STEPS * slope / length).detach()
            found.append(z)
    return torch.cat(found)


@torch.no_grad()
def ranked(model: Joint, tokens: Tokens, cells: Sequence[Genotype], trade: float) -> list[Genotype]:
    """The cells by what is predicted of their own encodings, the most valuable first."""
    if not cells:
        return []
    worth = value(model, model.coder.encode(torch.tensor([tokens.encode(cell) for cell in cells]))[0], trade)
    return [cells[n] for n in worth.argsort(descending=True, stable=True).tolist()]


def front_of(space: Space, told: Sequence[Told], device: str | None) -> list[Mapping[str, object]]:
    """The front's cells, the best score first: the first query that asked for each, score, latency or multiply-adds, parameters.

    Cells that no signal can pass cost next to nothing: they are left out where there are others.
    """
    first = {t.genotype.hash: n for n, t in reversed(list(enumerate(told)))}
    through = [n for n in first.values() if told[n].genotype.connected]
    asked = sorted(through or first.values(), key=lambda n: (-told[n].score, n))
    prices = [costs(space, told[n].genotype, device) for n in asked]
    kept = front([(told[n].score, *price) for n, price in zip(asked, prices, strict=True)])
    name = "multiply_adds" if device is None else "latency_ms"
    return [
        {
            "query": asked[i] + 1,
            "score": told[asked[i]].score,
            name: prices[i][0],
            "parameters": prices[i][1],
            "genotype": str(told[asked[i]].genotype),
        }
        for i in kept
    ]


def oncenas(queries: int = 100, first: int = 10, batch: int = 10, device: str | None = None) -> AskTell:
    """OnceNAS: accuracy, latency and size in one latent space.

    `device` is one of the table's, for its latencies. A labelled reading.
    """
    return AskTell(
        "oncenas", Ascent(Learned(), first, batch, device=device), queries=queries, papers=("zhang2024oncenas",)
    )
