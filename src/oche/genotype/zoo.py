"""Published cells by name, and the cells of NAS-Bench-201 by index: `cell("pc-darts")`, `cell("nb201:9930")`.

`zoo.toml` holds the cells as their authors wrote them down, each with the repository, commit and file that it is from, and the
network that they train. Names are compared without case, hyphens, underscores and spaces.
"""

from __future__ import annotations

import difflib
import itertools
import random
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from oche.errors import UserError

CELLS = 15_625
"""Cells of NAS-Bench-201: one of five operations on each of six edges."""

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""NAS-Bench-201's operations in the order that its enumeration counts in."""

_INDEX = re.compile(r"(?:nb201|nats|natsbench|natstss|nasbench201):?0*(\d{1,9})")


@dataclass(frozen=True)
class Published:
    """A cell of the zoo: its text, what it is from, and the costs of the network that is trained with it, by oche's counting.

    `size` is "cifar" (20 cells of 36 channels, 32 x 32 images of 10 classes), "imagenet" (14 of 48, 224 x 224, 1,000 classes) or "nb201".
    `aliases` are other names; `told` are figures that its sources give: parameters and multiply-adds in millions, and from where.
    """

    name: str
    cell: str
    space: str
    size: str
    source: str
    paper: str
    parameters: int
    multiply_adds: int
    aliases: tuple[str, ...] = ()
    told: Mapping[str, object] | None = None

    @property
    def line(self) -> str:
        """What a list says of it."""
        costs = f"{self.parameters / 1e6:.2f} M parameters, {self.multiply_adds / 1e6:.0f} M multiply-adds"
        return f"{self.space}, {costs} ({self.size}); {self.paper}; {self.source}"


@cache
def published() -> Mapping[str, Published]:
    """All published cells by name."""
    tables = tomllib.loads(files("oche.genotype").joinpath("zoo.toml").read_text(encoding="utf-8"))
    return {
        name: Published(name=name, **{**table, "aliases": tuple(table.get("aliases", ()))})
        for name, table in tables.items()
    }


def cell(name: str) -> str | None:
    """The text of the cell of that name or index, or None where there is none. Raises UserError for an index that is too large."""
    plain = _plain(name)
    if found := _INDEX.fullmatch(plain):
        return indexed(int(found.group(1)))
    by_name = _names()
    return published()[by_name[plain]].cell if plain in by_name else None


def nearest(name: str) -> str:
    """The end of an error about an unknown name: a full stop, and before it the nearest name where one is near."""
    near = difflib.get_close_matches(_plain(name[:60]), list(_names()), n=1, cutoff=0.6)
    return f"; did you mean {_names()[near[0]]!r}?" if near else "."


def indexed(index: int) -> str:
    """The cell of an index of NAS-Bench-201 and of NATS-Bench's topology space, 0 to 15,624. Raises UserError for others.

    >>> indexed(9930)
    '|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|'
    """
    if not 0 <= index < CELLS:
        raise UserError(f"There is no cell {index} in NAS-Bench-201; cells are numbered 0 to {CELLS - 1}.")
    ops = _enumerated()[index]
    return "+".join(
        "|" + "|".join(f"{ops[target * (target - 1) // 2 + s]}~{s}" for s in range(target)) + "|"
        for target in (1, 2, 3)
    )


@cache
def _enumerated() -> list[tuple[str, ...]]:
    """All cells in the order of the benchmark: counted edge by edge, then shuffled with seed 88 (AutoDL-Projects f46486e)."""
    order = list(itertools.product(OPS, repeat=6))
    random.Random(88).shuffle(order)
    return order


@cache
def _names() -> Mapping[str, str]:
    """Every name and alias in plain letters -> the name."""
    return {_plain(alias): name for name, entry in published().items() for alias in (name, *entry.aliases)}


def _plain(name: str) -> str:
    """Without case, hyphens, underscores and spaces; Greek letters by name, and the hyphen of DARTS- as a word."""
    text = re.sub(r"(?<=s)-$", "minus", name.strip().lower().replace("α", "alpha").replace("β", "beta"))
    return re.sub(r"[-_\s#]", "", text)
