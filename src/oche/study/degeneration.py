"""Numbers after each epoch that show whether a search degenerates; most of them are those of `oche.watch.probes`.

Which numbers, and from where on it is called degenerated, is our choice: most of the derived operations without weights, or a derived
network with less than a third of the weights of a random one.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from statistics import median

from oche.base import counted
from oche.genotype import Genotype
from oche.run import Run
from oche.search.relaxations import gated
from oche.search.selection import TopK
from oche.search.state import SearchState
from oche.spaces import Space
from oche.spaces.cost import cost
from oche.spaces.sampling import sample
from oche.watch.probes import active_depth, active_strides, closed_gates, parameter_free

FREE_SHARE, GATES, DEPTH, STRIDES = "free share", "closed gates", "depth", "strides"
PARAMETERS, MACS, GAP = "parameters", "multiply-adds", "loss gap"
RANDOM = 20
"""Random genotypes whose median gives the usual number of weights."""

Series = dict[str, tuple[tuple[int, float], ...]]
"""Number's name -> (epoch, value), 0 being before the first."""


def cells_of(state: SearchState) -> tuple[Genotype, ...]:
    """The cells that two-stage search would derive after each epoch (0: before the first): strongest ops, `keep` inputs per node."""
    epochs = range(min(map(len, state.trajectory.values()), default=0))
    return tuple(TopK()(past(state, epoch), state.problem) for epoch in epochs)


def past(state: SearchState, epoch: int) -> SearchState:
    """The state with alpha as it was after so many epochs, and all candidates."""
    return replace(state.at(epoch), mask={})


def series_of(state: SearchState, cells: tuple[Genotype, ...], run: Run) -> Series:
    """The numbers after each epoch, from the trajectory of alpha, the cells derived from it, and the run's log.

    - free share: of the derived operations (in a grid, one per node), those without weights; `none` counts where it may be chosen.
    - closed gates: the share of gates with b < 0.1; strides: how many strides the derived network uses; both in a grid alone.
    - depth: of the derived network, the most operations with weights on one path; parameters, multiply-adds: its cost.
    - loss gap: the mean loss on alpha's images less that on the weights' images.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    priced = cache(lambda text: cost(state.space, Genotype.from_json(text)))
    for epoch, genotype in enumerate(cells):
        price = priced(genotype.to_json())
        numbers = {FREE_SHARE: parameter_free(genotype), DEPTH: float(active_depth(state.space, genotype))}
        numbers |= {PARAMETERS: float(price.parameters), MACS: float(price.multiply_adds)}
        if any(any(gated(group)) for group in state.space.groups):
            numbers |= {GATES: closed_gates(past(state, epoch)), STRIDES: float(active_strides(state.space, genotype))}
        for name, value in numbers.items():
            found.setdefault(name, []).append((epoch, value))
    for record in run.records():
        weight, arch, done = record.get("weight_loss"), record.get("arch_loss"), record.get("epoch")
        if isinstance(weight, float) and isinstance(arch, float) and isinstance(done, int):
            found.setdefault(GAP, []).append((done + 1, arch - weight))
    return {name: tuple(pairs) for name, pairs in found.items()}


def usual_parameters(space: Space) -> float:
    """The median number of weights of random genotypes."""
    return median(cost(space, sample(space, counted("usual", i))).parameters for i in range(RANDOM))


def degenerated(free_share: float, parameters: float, usual: float) -> bool:
    """Most of the derived operations without weights, or less than a third of the usual number of weights."""
    return free_share > 1 / 2 or parameters < usual / 3
