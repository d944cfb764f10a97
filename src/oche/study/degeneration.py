"""Whether a search degenerates, in numbers after each of its epochs.

Which numbers, and from where on it is called degenerated, is our choice: most of the strongest operations without weights, or a derived
network with less than a third of the weights of a random one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from statistics import median

from oche.base import counted
from oche.cost import cost
from oche.genotype import FREE, Genotype
from oche.probes import active_depth, active_strides
from oche.relaxations import gated
from oche.run import Run
from oche.selection import TopK
from oche.spaces import GridSpace, Space
from oche.state import SearchState
from oche.strategies import sample
from oche.study.decode import openings

FREE_SHARE, GATES, DEPTH, STRIDES = "free share", "closed gates", "depth", "strides"
PARAMETERS, MACS, GAP = "parameters", "multiply-adds", "loss gap"
CLOSED, RANDOM = 0.1, 20
"""Below which b a gate counts as closed; how many random genotypes tell the usual number of weights."""

Series = dict[str, tuple[tuple[int, float], ...]]
"""Number's name -> (epoch, value), 0 being before the first."""


def cells_of(state: SearchState) -> tuple[Genotype, ...]:
    """What a search in two stages would derive after each epoch, 0 being before the first: strongest operations, `keep` inputs a node."""
    epochs = range(min(map(len, state.trajectory.values()), default=0))
    return tuple(TopK()(past(state, epoch), state.problem) for epoch in epochs)


def past(state: SearchState, epoch: int) -> SearchState:
    """The state with alpha as it was then, and all candidates."""
    return replace(state.at(epoch), mask={})


def series_of(state: SearchState, cells: tuple[Genotype, ...], run: Run) -> Series:
    """The numbers after each epoch, from the trajectory of alpha, the cells derived from it, and the run's log.

    - free share: of the edges (nodes of a grid), those whose strongest operation has no weights; `none` counts where it may be chosen.
    - closed gates: the share of gates with b < 0.1, where there are gates.
    - depth: of the derived network, the most operations with weights on one path;
      strides: how many of a grid's strides it uses; parameters, multiply-adds: its cost.
    - loss gap: the mean loss on alpha's images less that on the weights' images.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    priced = cache(lambda text: cost(state.space, Genotype.from_json(text)))
    for epoch, genotype in enumerate(cells):
        price = priced(genotype.to_json())
        numbers = {**dict(shares(past(state, epoch))), **dict(shape_of(state.space, genotype))}
        numbers |= {PARAMETERS: float(price.parameters), MACS: float(price.multiply_adds)}
        for name, value in numbers.items():
            found.setdefault(name, []).append((epoch, value))
    for record in run.records():
        weight, arch, done = record.get("weight_loss"), record.get("arch_loss"), record.get("epoch")
        if isinstance(weight, float) and isinstance(arch, float) and isinstance(done, int):
            found.setdefault(GAP, []).append((done + 1, arch - weight))
    return {name: tuple(pairs) for name, pairs in found.items()}


def shares(state: SearchState) -> Iterator[tuple[str, float]]:
    """The share of strongest operations without weights, and that of closed gates."""
    free, closed = list[bool](), list[bool]()
    for group, w in state.strengths():
        for ops, row, gate, b in zip(group.ops, w, gated(group), openings(w, group), strict=True):
            if gate:
                closed.append(bool(b < CLOSED))
            else:
                allowed = [o for o, op in enumerate(ops) if op != "none" or group.keep is None]
                free.append(ops[max(allowed, key=lambda o: float(row[o]))] in FREE)
    yield FREE_SHARE, sum(free) / len(free)
    if closed:
        yield GATES, sum(closed) / len(closed)


def shape_of(space: Space, genotype: Genotype) -> Iterator[tuple[str, float]]:
    """Depth, and the number of a grid's strides in use."""
    yield DEPTH, float(active_depth(space, genotype))
    if isinstance(space, GridSpace):
        yield STRIDES, float(active_strides(space, genotype))


def usual_parameters(space: Space) -> float:
    """The median number of weights of random genotypes."""
    return median(cost(space, sample(space, counted("usual", i))).parameters for i in range(RANDOM))


def degenerated(free_share: float, parameters: float, usual: float) -> bool:
    """Most of the strongest operations without weights, or less than a third of the usual number of weights."""
    return free_share > 1 / 2 or parameters < usual / 3
