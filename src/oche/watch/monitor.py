"""Watches a search for collapse: probe numbers in each epoch's record, and one clear warning with a remedy.

    Method(..., callbacks=(Probes((ParameterFree(), Eigenvalue())), Monitor()))

The early-stop rule on eigenvalues is that of R-DARTS (arXiv 1909.09656; automl/RobustDARTS): window 5, lag 4, factor 1.3 and start 10 are
published or in its code. All other thresholds are our choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from oche.base import Count, Natural, Positive, Share
from oche.data import batches, none
from oche.genotype import Genotype
from oche.run import Run
from oche.search.callbacks import Callback
from oche.search.state import Problem, SearchState
from oche.tables import Table
from oche.watch.probes import (
    IMAGES,
    active_depth,
    active_strides,
    closed_gates,
    decoded_parameters,
    discretisation_gap,
    hessian_eigenvalue,
    kendall_tau,
    operations,
    parameter_free,
    sample,
    skip_share,
    validation_loss,
)

# ------------------------------------------------------------------ probes as parts


class Probe(Protocol):
    """A number about the state and the genotype it would give now; `name` is its key in the record."""

    name: ClassVar[str]

    def __call__(self, state: SearchState, problem: Problem, genotype: Genotype) -> float: ...


@dataclass(frozen=True)
class ParameterFree:
    """Share of the chosen operations without weights."""

    name: ClassVar[str] = "parameter_free"

    def __call__(self, state: SearchState, problem: Problem, genotype: Genotype) -> float:
        return parameter_free(genotype)


@dataclass(frozen=True)
class Eigenvalue:
    """Largest signed eigenvalue of the validation loss's Hessian in alpha, on the same `images` at every epoch."""

    images: Count = 64
    name: ClassVar[str] = "eigenvalue"

    def __call__(self, state: SearchState, problem: Problem, genotype: Genotype) -> float:
        shown = sample(problem.data.val, self.images, problem.seed)
        batch = next(batches(shown, len(shown), none(problem.data), problem.fabric.device))
        return hessian_eigenvalue(state, validation_loss(state, problem), batch)


@dataclass(frozen=True)
class Gap:
    """Supernet accuracy minus that of the derived, un-retrained network."""

    images: int = IMAGES
    name: ClassVar[str] = "discretisation_gap"

    def __call__(self, state: SearchState, problem: Problem, genotype: Genotype) -> float:
        return discretisation_gap(state, problem, genotype, self.images)


@dataclass(frozen=True)
class RankCorrelation:
    """Kendall's tau between supernet and table over a fixed sample of cells. For reports: it may look at a test metric."""

    table: Table
    metric: str = "cifar10/test"
    cells: int = 20
    images: int = IMAGES
    name: ClassVar[str] = "kendall_tau"

    def __call__(self, state: SearchState, problem: Problem, genotype: Genotype) -> float:
        return kendall_tau(state, problem, self.table, self.table.sample(self.cells), self.metric, self.images)


@dataclass(frozen=True)
class TableAccuracy:
    """What the table says of the present genotype (the anytime curve). For reports: it may look at a test metric."""

    table: Table
    metric: str = "cifar10/test"
    name: ClassVar[str] = "table_accuracy"

    def __call__(self, state: SearchState, problem: Problem, genotype: Genotype) -> float:
        return self.table.value(genotype, self.metric)


@dataclass(frozen=True)
class Probes(Callback):
    """Adds each probe's number to the record of every `every`-th epoch and of the last; changes nothing else."""

    probes: tuple[Probe, ...] = (ParameterFree(), Eigenvalue(), Gap())
    every: int = 1

    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        if state.epoch % self.every == 0 or state.epoch == state.problem.epochs - 1:
            genotype = Genotype.parse(str(record["genotype"]), state.space.name)
            record |= {probe.name: probe(state, state.problem, genotype) for probe in self.probes}


@dataclass(frozen=True)
class Degeneration(Callback):
    """Adds what a degenerating search shows, of the genotype it would decode now: cheap enough for every epoch.

    `parameter_free`: share of the operations without weights. `closed_gates`: share of the gates below `below`.
    `depth`: the most operations with weights on one way. `strides`: how many of a grid's are in use. `decoded_parameters`.
    """

    below: Share = 0.1

    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        genotype = Genotype.parse(str(record["genotype"]), state.space.name)
        record |= {
            "parameter_free": parameter_free(genotype),
            "closed_gates": closed_gates(state, self.below),
            "depth": active_depth(state.space, genotype),
            "strides": active_strides(state.space, genotype),
            "decoded_parameters": decoded_parameters(state.space, genotype),
        }


# ------------------------------------------------------------------ the monitor


@dataclass(frozen=True)
class EigenvalueRule:
    """m(i) / m(i - lag) > ratio, with m(i) the mean of v(i - window/2) .. v(i + window/2), cut off at the series' start.

    Known only once v(i + window/2) is; looked at where the earlier mean's epoch is `start` or later. Epochs and values are those of
    the probes, every second epoch in R-DARTS. A mean that is not positive has no ratio and never triggers.
    """

    window: Count = 5
    lag: Count = 4
    ratio: Positive = 1.3
    start: Natural = 10

    def growth(self, epochs: Sequence[int], values: Sequence[float]) -> tuple[int, float] | None:
        """(epoch of the earlier mean, ratio) at the end of the series, or None where the rule does not look yet."""
        half = self.window // 2
        now = len(values) - 1 - half
        if now < self.lag or epochs[now - self.lag] < self.start:
            return None
        before = self._mean(values, now - self.lag)
        return (epochs[now - self.lag], self._mean(values, now) / before) if before > 0 else None

    def trigger(self, epochs: Sequence[int], values: Sequence[float]) -> tuple[int, int] | None:
        """(epoch of the first trigger, epoch whose genotype to return), or None."""
        for n in range(1, len(values) + 1):
            found = self.growth(epochs[:n], values[:n])
            if found and found[1] > self.ratio:
                return epochs[n - 1], found[0]
        return None

    def _mean(self, values: Sequence[float], i: int) -> float:
        half = self.window // 2
        window = values[max(i - half, 0) : i + half + 1]
        return sum(window) / len(window)


@dataclass(frozen=True)
class Monitor(Callback):
    """Puts one sentence under `warning` into the record of the epoch in which the search is first seen to collapse.

    Signs, the first counts: the derived cell lets nothing through (`connected`); more than `skips` of a cell's operations are skip
    connections; `parameter_free` or more of all operations have no weights; the eigenvalue rule triggers; alpha's entropy is below
    `entropy` before half of the search. The second, third and last must hold for `patience` epochs in a row. Stands behind `Probes` in a
    method's callbacks; without them it looks at skips, share and entropy.
    """

    skips: float = 0.5
    parameter_free: float = 0.75
    eigenvalue: EigenvalueRule = EigenvalueRule()
    entropy: float = 0.1
    patience: int = 2

    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        genotype = Genotype.parse(str(record["genotype"]), state.space.name)
        epochs, values = _remembered(state, record)
        early = state.step < state.steps / 2
        searching = record["phase"] == "search"
        lasting = self._lasting(
            state,
            searching and skip_share(genotype) > self.skips,
            searching and parameter_free(genotype) >= self.parameter_free,
            searching and early and state.entropy() < self.entropy,
        )
        grown = self.eigenvalue.growth(epochs, values) if searching and "eigenvalue" in record else None
        said = None
        if record.get("cut"):
            said = _cut()
        elif lasting[0]:
            said = _too_many_skips(genotype, state, self.patience)
        elif lasting[1]:
            said = _too_few_weights(genotype, state, self.patience)
        elif grown and grown[1] > self.eigenvalue.ratio:
            said = _too_sharp(*grown)
        elif lasting[2]:
            said = _too_decided(state)
        if said and warning(state) is None:
            record["warning"] = f"Epoch {state.epoch}: {said}"
            state.memory["monitor/warning"] = torch.tensor(list(str(record["warning"]).encode()), dtype=torch.uint8)

    def _lasting(self, state: SearchState, *signs: bool) -> list[bool]:
        """Which signs have now held `patience` epochs in a row."""
        held = state.memory.get("monitor/held", torch.zeros(len(signs), dtype=torch.int64)).cpu()
        state.memory["monitor/held"] = held = (held + 1) * torch.tensor(signs)
        return [n >= self.patience for n in held.tolist()]


def warning(state: SearchState) -> str | None:
    """The sentence that the monitor has said in this search, resumed ones included."""
    said = state.memory.get("monitor/warning")
    return None if said is None else bytes(said.tolist()).decode()


# ------------------------------------------------------------------ the sentences


def _cut() -> str:
    return (
        "the strongest operations leave no path through the cell, so its network would answer the same to every image; "
        "the strongest connected cell is kept instead, unless the literal rule was asked for (`--budget paper`, `oche bench`). "
        "`none` wins where features mean little: search longer, hold alpha back (`--set arch_start=0.4`), or leave it out "
        "(`--set space.without=none`)"
    )


def _too_many_skips(genotype: Genotype, state: SearchState, patience: int) -> str:
    ops = {name: operations(choices) for name, choices in genotype.groups.items()}
    name, count = max(genotype.skips().items(), key=lambda item: item[1] / max(len(ops[item[0]]), 1))
    return (
        f"the search collapses: {count} of {len(ops[name])} operations of cell {name!r} are skip connections; "
        f"{_remedy(state, patience)}."
    )


def _too_few_weights(genotype: Genotype, state: SearchState, patience: int) -> str:
    free = parameter_free(genotype)
    return f"the search collapses: {free:.0%} of the operations have no weights; {_remedy(state, patience)}."


def _too_sharp(epoch: int, ratio: float) -> str:
    return (
        f"a collapse is near: the validation loss's largest eigenvalue in alpha has grown {ratio:.2f}-fold since epoch {epoch}; "
        f"take {Run.genotype(epoch)}, or search again with more weight decay (`--set weight_optimizer.weight_decay=27e-4`)."
    )


def _too_decided(state: SearchState) -> str:
    return (
        f"alpha is decided (entropy {state.entropy():.2f} of 1) at {state.step / state.steps:.0%} of the search; "
        "search again with smaller steps of alpha (`--set arch_optimizer.lr=1e-4`) or a warm-up (`--set arch_start=0.3`)."
    )


def _remedy(state: SearchState, patience: int) -> str:
    """Random features where they are off, and the last genotype from before."""
    before = state.epoch - patience
    earlier = f", or take {Run.genotype(before)} from before" if before >= 0 else ""
    if len(state.learns) == sum(1 for _ in state.supernet.named_parameters()):
        return f"search again with random features (`oche search rf_darts`){earlier}"
    return f"search again with more epochs or smaller steps of alpha (`--set arch_optimizer.lr=1e-4`){earlier}"


def _remembered(state: SearchState, record: dict[str, object]) -> tuple[list[int], list[float]]:
    """Epochs and eigenvalues so far, this record's added."""
    rows = state.memory.get("monitor/eigenvalue", torch.zeros(0, 2, dtype=torch.float64)).cpu()
    if isinstance(record.get("eigenvalue"), float):
        rows = torch.cat([rows, torch.tensor([[state.epoch, record["eigenvalue"]]], dtype=torch.float64)])
        state.memory["monitor/eigenvalue"] = rows
    return [int(epoch) for epoch in rows[:, 0].tolist()], rows[:, 1].tolist()
