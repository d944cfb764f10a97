"""Runs a training step of a found cell of dense convolutions on the kernels of the supernet's cells (`dense.py`), all op weights 1."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from oche.fast.kernels.chains import remember, running
from oche.fast.kernels.dense import DenseLayout, Unit, run_units, unit_of
from oche.spaces.networks import Cell, Chosen
from oche.spaces.ops import Zero


def found_layout(cell: Cell) -> DenseLayout | None:
    """The cell of a network as the kernels see it, or None where they cannot: other operations, batch norms that differ."""
    if cell.concat:
        return None
    units: list[Unit] = []
    for target, incoming in enumerate(cell._into, len(cell.entries)):
        for e, source, key in incoming:
            edge = cell.edges[key]
            assert isinstance(edge, Chosen)
            (op,) = edge.ops.values()
            if isinstance(op, Zero) and op.stride == 1:
                continue
            unit = unit_of(op, running)
            if unit is None:
                return None
            units.append(replace(unit, source=source, target=target, edge=e))
    norms = [unit.norm for unit in units if unit.norm is not None]
    if not norms or len({norm.eps for norm in norms}) > 1:
        return None
    return DenseLayout(tuple(units), len(cell.entries), len(cell._into), norms[0].eps, affine=True)


def run_found(cell: DenseLayout, states: list[Tensor]) -> Tensor:
    """The cell's output (B, C, H, W) from its states after the entries; the running statistics of its batch norms are moved on."""
    first, edges = states[0], 1 + max(unit.edge for unit in cell.units)
    out, _, mean, rstd = run_units(cell, states, torch.ones(edges, 1, dtype=first.dtype), set())
    channels, count = first.shape[1], first.numel() // first.shape[1]
    norms = [unit.norm for unit in cell.units if unit.norm is not None]
    for norm, m, r in zip(norms, mean[:, :channels], rstd[:, :channels], strict=True):
        remember(norm, m, r**-2 - cell.eps, count)
    return out
