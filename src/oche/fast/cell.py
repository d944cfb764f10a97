"""Fuses the cells of a supernet: `accelerate` puts a `FusedCell` in the place of every cell it can."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from oche.base import Draw
from oche.fast.backends.buffers import shared
from oche.fast.backends.device import Backend, accelerator
from oche.fast.backends.native import Kernels, kernels, switched_off
from oche.fast.grid import FusedGridCell
from oche.fast.kernels.dense import DenseLayout, dense_layout, run_dense
from oche.fast.kernels.entry import enter, single
from oche.fast.kernels.layout import Layout, layout
from oche.fast.kernels.mixture import weighted_sum
from oche.fast.kernels.operations import Operation, layer_layout, parts, told
from oche.fast.kernels.packed import Weights
from oche.fast.kernels.packed_op import run_packed
from oche.fast.kernels.partial import run_partial
from oche.fast.portable.mixed import refusal, run_portable, zeros
from oche.fast.portable.program import Program
from oche.spaces.grid import GridCell
from oche.spaces.networks import Cell, Supernet


class FusedCell(Cell):
    """A cell with the same submodules under the same names, whose `mixed` shares and fuses the work of its candidates.

    Weights are read from the submodules when it is called, so `torch.func.functional_call` and optimisers see no difference. A caller that
    has them as the kernels want them (`packs`) gives them under the names `taps`, `matrices`, `gamma` and `beta` instead.
    """

    taps: Tensor | None
    matrices: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None

    def __init__(self, cell: Cell, program: Program | None = None) -> None:
        torch.nn.Module.__init__(self)
        for name in Weights._fields:
            self.register_buffer(name, None, persistent=False)
        self.entries, self.edges = cell.entries, cell.edges
        self.concat, self._into = cell.concat, cell._into
        self.training = cell.training
        self.layout, self.pool, self.program = _layout(cell), shared(), program

    @property
    def tier(self) -> str:
        """`kernels`: all of it compiled; `nodes`: the sums into nodes, with why not the rest; `portable`: plain torch; `triton`.

        `portable, compiled`: as a program of torch.compile instead of any of the last three.
        """
        return self.program.told(self._tier) if self.program else self._tier

    @property
    def _tier(self) -> str:
        device = next((p.device for p in self.parameters()), torch.device("cpu"))
        if device.type != "cpu":
            return "portable: no Triton" if accelerator(device) is None else "triton"
        if kernels() is None:
            return "portable: no compiled kernels"
        if isinstance(self.layout, dict):
            return told(self.layout)
        return f"nodes: {self.layout}" if isinstance(self.layout, str) else "kernels"

    def mixed(self, inputs: Sequence[Tensor], w: Tensor, draw: Draw) -> Tensor:
        """Like `Cell.mixed`: inputs (B, C, H, W), w (E, O)."""
        zero = zeros(w)
        compiled: Backend | None = kernels() if w.device.type == "cpu" else accelerator(w.device)
        states = [enter(entry, x, compiled) for entry, x in zip(self.entries, inputs, strict=True)]
        if isinstance(compiled, Kernels) and not isinstance(self.layout, str):
            states = [single(h) for h in states]
            if _simple(states):
                if isinstance(self.layout, DenseLayout):
                    return run_dense(self.layout, states, w, zero)
                if isinstance(self.layout, Layout):
                    run = run_packed if self.layout.share == 1 else run_partial
                    return run(self.layout, states, w, zero, draw, self._held())
                terms = parts(list(self.layout.values()), states[0], w[0], draw, {o for _, o in zero})
                if terms:
                    return weighted_sum(terms)
        out = self.program.run(self, states, w, zero) if self.program else None
        return run_portable(self, states, w, zero, draw, compiled) if out is None else out

    def leaves_out(self, w: Tensor) -> bool:
        """True if a candidate that has weights takes no part under the op weights w (E, O)."""
        if not isinstance(self.layout, Layout):
            return False
        zero, affine = zeros(w), self.layout.affine
        return any((u.edge, u.column) in zero for u in self.layout.units if u.pointwise or (affine and u.norms))

    def _held(self) -> Weights | None:
        if self.taps is None or self.matrices is None:
            return None
        return Weights(self.taps, self.matrices, self.gamma, self.beta)


def _layout(cell: Cell) -> Layout | DenseLayout | dict[str, Operation] | str:
    """The cell for the kernels that know its candidates, or the reason why none do."""
    depthwise = layout(cell)
    if isinstance(depthwise, Layout):
        return depthwise
    dense = dense_layout(cell)
    if isinstance(dense, DenseLayout):
        return dense
    layer = layer_layout(cell)
    return f"{depthwise}; {dense}" if isinstance(layer, str) else layer


def _simple(states: Sequence[Tensor]) -> bool:
    """True if the kernels take these: on the CPU, of one shape, in single or double precision."""
    first = states[0]
    return (
        first.device.type == "cpu"
        and first.dtype in (torch.float32, torch.float64)
        and all(h.shape == first.shape and h.dtype == first.dtype for h in states)
    )


def accelerate(supernet: Supernet, compile: bool = False) -> Supernet:
    """The same supernet with its cells fused where they can be, in place. `coverage` tells which.

    With `compile` torch.compile makes programs of those that no kernels compute whole.
    Parameters, their names and the results (up to rounding) stay as they were. OCHE_FAST=off leaves every cell plain.
    """
    if switched_off("OCHE_FAST"):
        return supernet
    cells = supernet.body.cells
    for name, cell in list(cells.items()):
        if type(cell) is Cell and refusal(cell) is None:
            cells[name] = FusedCell(cell, Program.of(cell) if compile else None)
        elif type(cell) is GridCell and refusal(cell) is None:
            cells[name] = FusedGridCell.of(cell)
    return supernet


def coverage(supernet: Supernet) -> dict[str, str]:
    """Cell's name -> how it runs: "kernels", "triton", "nodes: why not more", "portable: why", "plain: why".

    Or "portable, compiled: why no kernels".
    """
    said = {}
    for name, cell in supernet.body.cells.items():
        assert isinstance(cell, Cell)
        said[name] = (
            cell.tier if isinstance(cell, FusedCell | FusedGridCell) else f"plain: {refusal(cell) or 'not accelerated'}"
        )
    return said
