"""Runs the nodes of a grid's supernet on the compiled kernels: inputs and operations are chains, summed as they are normalised."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from oche.base import Draw
from oche.fast.backends.buffers import Buffers, shared
from oche.fast.backends.native import kernels
from oche.fast.kernels.chains import Chain
from oche.fast.kernels.entry import single
from oche.fast.kernels.mixture import Part, takes, weighted_sum
from oche.fast.kernels.operations import Operation, chain_of, known, parts, told
from oche.spaces.edges import _Sum
from oche.spaces.grid import GridCell
from oche.spaces.ops import Zero


class FusedGridCell(GridCell):
    """A node with the same submodules under the same names. Candidates that are no chains run in torch and are summed here.

    An input is aligned and gated in one pass, and made larger behind it where it comes from a coarser level.
    """

    aligned: tuple[Chain, ...]  # of each entry, up to what makes it larger
    operations: dict[str, Operation]
    pool: Buffers  # keeps the kernels' buffers alive between steps

    @staticmethod
    def of(cell: GridCell) -> GridCell:
        """The same cell, changed, where the kernels know one of its operations."""
        mixed = cell.edges[f"{cell.inputs}-{cell.inputs + 1}"]
        if not isinstance(mixed, _Sum):
            return cell
        operations = known(dict(mixed.ops.items()))
        if any(op.chain for op in operations.values()):
            cell.__class__ = FusedGridCell
            assert isinstance(cell, FusedGridCell)
            cell.aligned = tuple(chain_of(list(entry.children())[:2]) for entry in cell.entries)
            cell.operations, cell.pool = operations, shared()
        return cell

    @property
    def tier(self) -> str:
        """`kernels`, or `nodes` with the operations that torch runs."""
        if kernels() is None:
            return "plain: no compiled kernels"
        if any(p.device.type != "cpu" for p in self.parameters()):
            return "plain: on an accelerator"
        return told(self.operations)

    def _mixed(self, inputs: Sequence[Tensor], chosen: Sequence[int], w: Tensor, draw: Draw) -> Tensor:
        wide = [single(x) for x in inputs]
        if kernels() is None or not all(takes((), x) and x.dtype == wide[0].dtype for x in wide):
            return super()._mixed(inputs, chosen, w, draw)
        scale = len(self.kept) / len(chosen)
        gates = [
            self._gated(i, x, w[i] if scale == 1 else scale * w[i], draw) for i, x in zip(chosen, wide, strict=True)
        ]
        h = weighted_sum(gates)
        terms = parts(list(self.operations.values()), h, w[self.inputs], draw)
        return weighted_sum(terms) if terms else h * 0

    def _gated(self, i: int, x: Tensor, row: Tensor, draw: Draw) -> Part:
        """An input, aligned and times its gate."""
        edge, entry, chain = self.edges[f"{i}-{self.inputs}"], self.entries[i], self.aligned[i]
        one = row.new_ones(())
        if not isinstance(edge, _Sum) or not all(isinstance(op, PASSING) for op in edge.ops.values()):
            return Part(single(edge(entry(x), row, draw)), one)
        open_ = [weight for op, weight in zip(edge.ops.values(), row, strict=False) if isinstance(op, nn.Identity)]
        weight = sum(open_[1:], open_[0]) if open_ else 0 * row[0]
        if not chain or not takes(chain, x):
            return Part(single(entry(x)), weight)
        behind = list(entry.children())[2:]
        if not behind:
            return Part(x, weight, chain)
        gated = weighted_sum([Part(x, weight, chain)])
        for module in behind:
            gated = module(gated)
        return Part(gated, one)


PASSING = (nn.Identity, Zero)
"""Operations without a computation of their own."""
