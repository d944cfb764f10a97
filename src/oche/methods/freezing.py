"""What a freeze leaves of a searched supernet, as masks {group: (E, O) bool} of its candidates.

In a group with gates two kinds of candidates compete: an edge's operations among each other, and the gates into a node. Whatever is
removed, each edge keeps its strongest operation and each node its strongest gate, so that no network is cut in two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from oche.base import Group
from oche.search.relaxations import gated
from oche.search.state import SearchState

GONE = -1.0
"""Stands for the strength of a candidate that does not compete, below all others."""


def frozen_mask(state: SearchState, threshold: float, *, relative: bool = False) -> dict[str, Tensor]:
    """{group: (E, O) bool}: candidates of at least `threshold`, and the strongest.

    `relative`: of more than `threshold` times the strongest candidate's value instead, an operation's being that of its edge, a gate's that
    of its node.
    """
    masks = {}
    for group, strength in state.strengths():
        alive, opens, gates = state.alive(group), group.named("connect"), torch.tensor(gated(group))
        strength = strength.masked_fill(~alive, GONE)
        first = torch.where(gates[:, None], _first_gate(group, strength), _first(strength))
        best = strength.amax(-1, keepdim=True)
        for numbers in group.into().values():
            best[numbers] = best[numbers].where(~gates[numbers, None], (strength * opens)[numbers].amax())
        large = strength > threshold * best if relative else strength >= threshold
        masks[group.name] = (large | first | (gates[:, None] & ~opens)) & alive
    return masks


def decided(state: SearchState, margin: float) -> dict[str, Tensor]:
    """{group: (E, O) bool}: the best candidate alone where it leads the second by `margin`, else all that were left; 0 decides all.

    A gate that is its node's strongest is not closed.
    """
    masks = {}
    for group, strength in state.strengths():
        alive = state.alive(group)
        strength = strength.masked_fill(~alive, GONE)
        best, gates = _first(strength), torch.tensor(gated(group))
        strongest = _first_gate(group, strength) & alive
        best[gates] = torch.where(strongest.any(-1, keepdim=True), strongest, best)[gates]
        second = strength.masked_fill(best, GONE).amax(-1).clamp_min(0.0)
        sure = (strength.masked_fill(~best, GONE).amax(-1) - second >= margin) | (margin == 0)
        masks[group.name] = torch.where(sure[:, None], best & alive, alive)
    return masks


def _first(strength: Tensor) -> Tensor:
    """(E, O) bool: each row's largest entry, the first of equals."""
    return torch.zeros_like(strength, dtype=torch.bool).scatter_(-1, strength.argmax(-1, keepdim=True), True)


def _first_gate(group: Group, strength: Tensor) -> Tensor:
    """(E, O) bool: `connect` of each node's strongest gate, the first of equals."""
    opens, found = group.named("connect"), torch.zeros_like(strength, dtype=torch.bool)
    for numbers in group.into().values():
        by = {e: float(strength[e][opens[e]]) for e in numbers if opens[e].any()}
        if by:
            e = max(by, key=lambda e: by[e])
            found[e] = opens[e]
    return found
