"""Search spaces by name. A space is a frozen dataclass: `SPACES["nb201"](inputs=1, outputs=10, size=(8, 8), cells=1)`."""

from __future__ import annotations

from oche.spaces.base import Space
from oche.spaces.chain import ChainSpace
from oche.spaces.darts import DartsSpace
from oche.spaces.grid import GridSpace
from oche.spaces.nb201 import NB201Space
from oche.spaces.networks import Cell, Network, Supernet, estimate_statistics
from oche.spaces.robust import S1, S2, S3, S4
from oche.spaces.sase import SaseSpace
from oche.spaces.signals import SignalSpace
from oche.spaces.stages import StagesSpace
from oche.spaces.toy import ToySpace

SPACES: dict[str, type[Space]] = {
    "toy": ToySpace,
    "nb201": NB201Space,
    "darts": DartsSpace,
    "s1": S1,
    "s2": S2,
    "s3": S3,
    "s4": S4,
    "stages": StagesSpace,
    "chain": ChainSpace,
    "signal": SignalSpace,
    "sase": SaseSpace,
    "grid": GridSpace,
}

__all__ = [
    "SPACES",
    "Cell",
    "ChainSpace",
    "DartsSpace",
    "GridSpace",
    "NB201Space",
    "Network",
    "SaseSpace",
    "SignalSpace",
    "Space",
    "StagesSpace",
    "Supernet",
    "ToySpace",
    "estimate_statistics",
]
