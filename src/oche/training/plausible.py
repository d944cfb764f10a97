"""Refuses a card of a network that its weights cannot be, before anything of it is built: a few bytes may ask for terabytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from oche.errors import UserError
from oche.genotype import Genotype
from oche.spaces import Space

SMALL, SIDE = 64, 1 << 24
"""Numbers that need no explanation by a weight, and the largest side of an image, or length of a signal."""

Shapes = Mapping[str, tuple[int, ...]]


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights in a file, from its head alone. Raises SafetensorError."""
    with safe_open(path, "pt") as weights:
        return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118  no dict


def refuse_beyond(table: object, shapes: Shapes, where: Path) -> None:
    """Raises UserError for a number in a card's table of the space that is larger than its weights explain."""
    most = max(SMALL, len(shapes), *(n for shape in shapes.values() for n in shape))
    for name, value in table.items() if isinstance(table, Mapping) else ():
        limit = SIDE if name == "size" else most
        numbers = [n for n in (value if isinstance(value, list) else [value]) if isinstance(n, int | float)]
        if not all(abs(n) <= limit for n in numbers):
            raise UserError(
                f"{where} is damaged: {name} is {value}, which its weights do not have. Train the network again."
            )
        refuse_beyond(value, shapes, where)


def refuse_other_shapes(space: Space, genotype: Genotype, shapes: Shapes) -> None:
    """Raises RuntimeError where the network of the card has weights of other shapes; none are made to find that out."""
    with torch.device("meta"):
        own = {name: tuple(t.shape) for name, t in space.network(genotype).state_dict().items()}
    for name in (*own, *shapes):
        if own.get(name) != shapes.get(name):
            raise RuntimeError(f"{name} has the shape {shapes.get(name)} where {own.get(name)} is expected")
