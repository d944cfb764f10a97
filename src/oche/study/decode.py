"""Ways to make a discrete architecture of a continuous one, as functions of its coefficients: argmax, thresholds, paths, and the way there.

A decoding takes a group's op weights (E, O), in which the row of a gate is (1 - b, b) for `none` and `connect`, and returns those of
the decoded network. Nothing is trained and no weight is touched. What each is comes from the measurements that are usual in this field;
their choice and their names are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from oche.base import Group
from oche.errors import unknown
from oche.search.relaxations import Gated, Relaxation, SoftmaxGate, gated, one_hot_of, openings


class Decoding(Protocol):
    """`decoding(w, group)`: op weights (E, O) on the CPU -> those of the decoded network."""

    def __call__(self, w: Tensor, group: Group) -> Tensor: ...

    def unfit(self, group: Group, relaxation: Relaxation) -> str:
        """Why it makes no sense there, in a sentence; empty where it does."""
        ...


@dataclass(frozen=True)
class Continuous:
    """The supernet as it is."""

    def __call__(self, w: Tensor, group: Group) -> Tensor:
        return w

    def unfit(self, group: Group, relaxation: Relaxation) -> str:
        return ""


@dataclass(frozen=True)
class StrongestOp:
    """Each edge its strongest operation, with coefficient 1, or with its own (`kept`). Gates stay as they are.

    `none` is chosen only in spaces whose cells may hold it (NAS-Bench-201).
    """

    kept: bool = False

    def __call__(self, w: Tensor, group: Group) -> Tensor:
        strongest = rounded(w, group)
        return torch.where(_gates(group), w, strongest * w if self.kept else strongest)

    def unfit(self, group: Group, relaxation: Relaxation) -> str:
        return ""


@dataclass(frozen=True)
class Threshold:
    """Gates with b < tau are closed, the others keep their b."""

    tau: float

    def __call__(self, w: Tensor, group: Group) -> Tensor:
        return _closed(w, group, torch.tensor(gated(group)) & (openings(w, group) < self.tau))

    def unfit(self, group: Group, relaxation: Relaxation) -> str:
        return "" if any(gated(group)) else f"edge@{self.tau:g} closes gates, and the cells of this space have none."


@dataclass(frozen=True)
class Best:
    """Each node keeps its `count` strongest inputs: those with the most open gates, or in a cell the strongest op but `none`."""

    count: int

    def __call__(self, w: Tensor, group: Group) -> Tensor:
        strength = openings(w, group) if any(gated(group)) else _usable(w, group)
        lost = torch.zeros(len(group.edges), dtype=torch.bool)
        for numbers in _inputs(group):
            ranked = sorted(numbers, key=lambda e: -float(strength[e]))
            lost[ranked[self.count :]] = True
        return _closed(w, group, lost)

    def unfit(self, group: Group, relaxation: Relaxation) -> str:
        return ""


@dataclass(frozen=True)
class SinglePath:
    """The gates on one path from the stem to the last layer: that with the largest product of b (Viterbi; Auto-DeepLab's decoding)."""

    def __call__(self, w: Tensor, group: Group) -> Tensor:
        lost = torch.tensor(gated(group))
        lost[list(best_path(openings(w, group), group))] = False
        return _closed(w, group, lost)

    def unfit(self, group: Group, relaxation: Relaxation) -> str:
        if not any(gated(group)):
            return "path looks for a path through gates, and the cells of this space have none."
        if not (isinstance(relaxation, Gated) and isinstance(relaxation.gate, SoftmaxGate)):
            return "path multiplies the gates on a path as probabilities, which only softmax gates are."
        return ""


@dataclass(frozen=True)
class Ramp:
    """(1 - kappa) c + kappa onehot(c), for the operations and for (1 - b, b): nothing at 0, discrete at 1."""

    kappa: float

    def __call__(self, w: Tensor, group: Group) -> Tensor:
        return (1 - self.kappa) * w + self.kappa * rounded(w, group)

    def unfit(self, group: Group, relaxation: Relaxation) -> str:
        return ""


@dataclass(frozen=True)
class Both:
    """One decoding, then another of what it left."""

    first: Decoding
    second: Decoding

    def __call__(self, w: Tensor, group: Group) -> Tensor:
        return self.second(self.first(w, group), group)

    def unfit(self, group: Group, relaxation: Relaxation) -> str:
        return self.first.unfit(group, relaxation) or self.second.unfit(group, relaxation)


PLAIN: dict[str, Callable[[], Decoding]] = {
    "continuous": Continuous,
    "op": StrongestOp,
    "op_kept": lambda: StrongestOp(kept=True),
    "best1": lambda: Best(1),
    "best2": lambda: Best(2),
    "path": SinglePath,
}
GRADED: dict[str, Callable[[float], Decoding]] = {"edge": Threshold, "ramp": Ramp}


def decoding(name: str) -> Decoding:
    """A decoding by its name: `op`, `edge@0.35`, `ramp@0.5`, or several in turn, `best2+op`. Raises UserError.

    >>> decoding("edge@0.5+op")
    Both(first=Threshold(tau=0.5), second=StrongestOp(kept=False))
    """
    head, plus, rest = name.partition("+")
    if plus:
        return Both(decoding(head), decoding(rest))
    kind, at, value = head.partition("@")
    if at:
        try:
            share = float(value)
        except ValueError:
            share = -1.0
        if kind in GRADED and 0 <= share <= 1:
            return GRADED[kind](share)
    elif kind in PLAIN:
        return PLAIN[kind]()
    raise unknown("decoding", head, [*PLAIN, *(f"{graded}@0.5" for graded in GRADED)])


def graded(name: str) -> tuple[str, float] | None:
    """The family of a decoding whose last word is a threshold or a share, and that number; None of any other.

    >>> graded("op+edge@0.35"), graded("edge@0.35+op")
    (('op+edge', 0.35), None)
    """
    family, _, value = name.rpartition("@")
    return (family, float(value)) if family and "+" not in value else None


# ------------------------------------------------------------------ coefficients


def rounded(w: Tensor, group: Group) -> Tensor:
    """(E, O) one-hot: each row's largest entry, `none` left out where a derived cell never holds it, but not at gates."""
    chosen = w.masked_fill(group.named("none") & ~_gates(group), 0.0) if group.keep is not None else w
    return one_hot_of(chosen)


def best_path(b: Tensor, group: Group) -> tuple[int, ...]:
    """Numbers of the gates (edges of the group) on the path from state 0 to the last layer with the largest product of b (E,).

    Nodes come in an order in which each is behind its sources, and those that nothing reads are the last layer's. The first of equals.
    """
    into = {target: [e for e in numbers if gated(group)[e]] for target, numbers in group.into().items()}
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (1.0, ())}
    read = {group.edges[e][0] for numbers in into.values() for e in numbers}
    for target in sorted(into):
        if into[target]:  # the state before the node's operations; what they write is the next
            ways = [(best[group.edges[e][0]][0] * float(b[e]), (*best[group.edges[e][0]][1], e)) for e in into[target]]
            best[target + 1] = max(ways, key=lambda way: way[0])
    return max((way for state, way in best.items() if state not in read), key=lambda way: way[0])[1]


# ------------------------------------------------------------------ helpers


def _gates(group: Group) -> Tensor:
    """(E, 1) bool."""
    return torch.tensor(gated(group))[:, None]


def _inputs(group: Group) -> list[list[int]]:
    """The edges of each node that compete: its gates, or in cells all that come in."""
    gates = gated(group)
    found = [[e for e in numbers if gates[e] or not any(gates)] for numbers in group.into().values()]
    return [numbers for numbers in found if numbers]


def _usable(w: Tensor, group: Group) -> Tensor:
    """(E,) each edge's strongest weight but that of `none`."""
    return w.masked_fill(group.named("none") | ~group.valid(), -1.0).amax(-1)


def _closed(w: Tensor, group: Group, lost: Tensor) -> Tensor:
    """w with nothing through the edges `lost` (E,): a gate is (1, 0), an edge of a cell `none` where it has that, else gone."""
    return torch.where(lost[:, None], group.named("none").to(w), w)
