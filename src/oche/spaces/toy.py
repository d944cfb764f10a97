"""A space small enough to enumerate: two stages of one cell, three nodes, three operations; 27 genotypes."""

from __future__ import annotations

from dataclasses import dataclass

from oche.spaces.nb201 import NB201Space


@dataclass(frozen=True)
class ToySpace(NB201Space):
    """NAS-Bench-201 in small, for tests and first experiments (our own)."""

    name: str = "toy"
    channels: int = 4
    cells: int = 1
    stages: int = 2
    nodes: int = 3
    ops: tuple[str, ...] = ("none", "skip_connect", "nor_conv_3x3")
