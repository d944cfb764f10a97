"""Limits of a network's costs, and how they are written: `80k`, `12.7M`, `64KB`, `3ms`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from oche.errors import UserError
from oche.genotype import Genotype
from oche.spaces.base import Space
from oche.spaces.latency import Latencies

LIMITED: dict[str, tuple[str, str, str]] = {
    "parameters": ("max_params", "parameters", "count"),
    "multiply_adds": ("max_macs", "multiply-adds", "count"),
    "memory": ("max_memory", "bytes of activations", "bytes"),
    "size": ("max_size", "bytes of its file", "bytes"),
    "int8_size": ("max_int8_size", "bytes of its int8 file", "bytes"),
    "latency": ("max_latency", "ms", "ms"),
}
"""A cost -> the option that limits it, its unit in words, and the kind of unit that the option takes."""

UNITS: dict[str, dict[str, float]] = {
    "count": {"": 1, "k": 1e3, "M": 1e6, "G": 1e9},
    "bytes": {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    "ms": {"": 1, "us": 1e-3, "ms": 1, "s": 1e3},
}
EXAMPLES = {"count": "80k or 12.7M", "bytes": "64KB (64,000) or 64KiB (65,536)", "ms": "3ms or 0.5s"}

Prices = Mapping[str, float]
"""A network's costs by name."""

Pricer = Callable[[Space, Genotype], Prices]
"""What a genotype's network costs, by name."""


@dataclass(frozen=True)
class Limits:
    """The most that a network may cost; None is no limit. `latency` is in milliseconds, `memory`, `size` and `int8_size` in bytes.

    `fixed` keeps the space's width as it is, because it was given explicitly or belongs to weights that are kept. `latencies` is the
    table that latency is foretold by; a limit of latency has one.
    """

    parameters: int | None = None
    multiply_adds: int | None = None
    memory: int | None = None
    size: int | None = None
    int8_size: int | None = None
    latency: float | None = None
    fixed: bool = False
    latencies: Latencies | None = field(default=None, repr=False)

    def items(self) -> Iterator[tuple[str, float]]:
        """(cost, limit) of those that are limited."""
        for name in LIMITED:
            value = getattr(self, name)
            if value is not None:
                yield name, float(value)

    def __bool__(self) -> bool:
        return any(True for _ in self.items())

    def shares(self, prices: Prices) -> dict[str, float]:
        """How full each limit is: 1 is full."""
        return {name: prices[name] / limit for name, limit in self.items()}

    def excess(self, prices: Prices) -> float:
        """By how much the limits are exceeded, as shares of them summed; 0 where all are kept."""
        return sum(max(0.0, share - 1) for share in self.shares(prices).values())

    def kept(self, prices: Prices) -> bool:
        """True if no limit is exceeded."""
        return all(prices[name] <= limit for name, limit in self.items())

    def words(self, prices: Prices) -> str:
        """How full each limit is.

        >>> Limits(parameters=80_000).words({"parameters": 60_000})
        '60,000 of 80,000 parameters (75 %)'
        """
        said = []
        for name, limit in self.items():
            digits = ",.3f" if name == "latency" else ",.0f"
            share = 100 * prices[name] / limit
            said.append(f"{prices[name]:{digits}} of {limit:{digits}} {LIMITED[name][1]} ({share:.0f} %)")
        return ", ".join(said)

    def table(self) -> dict[str, float]:
        """Cost -> limit, for run.toml and genotype.json."""
        return {name: value if name == "latency" else int(value) for name, value in self.items()}


def limit(cost: str, given: str | float | None) -> float | None:
    """The limit of a cost as it was written, in ones, bytes or milliseconds; None or "none" is none. Raises UserError.

    >>> limit("parameters", "80k"), limit("memory", "64KiB"), limit("latency", "0.5s"), limit("size", None)
    (80000.0, 65536.0, 500.0, None)
    """
    if given is None or given == "none":
        return None
    option, _, kind = LIMITED[cost]
    flag = "--" + option.replace("_", "-")
    found = re.fullmatch(r"\s*([0-9][0-9_]*\.?[0-9]*(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*", str(given))
    units = UNITS[kind]
    if found is None:
        raise UserError(f"{flag} {given} is no amount: write {EXAMPLES[kind]}.")
    number, unit = float(found[1].replace("_", "")), found[2]
    by_case = {u.lower(): u for u in units}
    if unit not in units and unit.lower() not in by_case:
        raise UserError(
            f"{flag} {given} has the unit {unit!r}, which is none of {', '.join(filter(None, units))}: write {EXAMPLES[kind]}."
        )
    value = number * units[unit if unit in units else by_case[unit.lower()]]
    if not value > 0:
        raise UserError(f"{flag} must be above 0; given {given}.")
    return value
