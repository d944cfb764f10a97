"""Runs the nodes of a grid's supernet on the compiled kernels: inputs and operations are chains, summed as they are normalised."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from oche.base import Draw
from oche.fast.backends.buffers import Buffers, shared
from oche.fast.backends.native import kernels
from oche.fast.kernels.chains import Chain, segments
from oche.fast.kernels.entry import single
from oche.fast.kernels.mixture import Part, takes, weighted_sum
from oche.fast.portable.mixed import of_batch
from oche.spaces.blocks import MBConv
from oche.spaces.edges import _Sum
from oche.spaces.grid import GridCell
from oche.spaces.ops import Zero, run


class FusedGridCell(GridCell):
    """A node with the same submodules under the same names. Candidates that are no chains run in torch and are summed here.

    An input is aligned and gated in one pass, and made larger behind it where it comes from a coarser level.
    """

    aligned: tuple[Chain, ...]  # of each entry, up to what makes it larger
    chains: dict[str, Chain]  # of each operation
    pool: Buffers  # keeps the kernels' buffers alive between steps

    @staticmethod
    def of(cell: GridCell) -> GridCell:
        """The same cell, changed, where the kernels know one of its operations."""
        mixed = cell.edges[f"{cell.inputs}-{cell.inputs + 1}"]
        if not isinstance(mixed, _Sum):
            return cell
        chains = {name: _chain(op) for name, op in mixed.ops.items()}
        if any(chains.values()):
            cell.__class__ = FusedGridCell
            assert isinstance(cell, FusedGridCell)
            cell.aligned = tuple(_only(list(entry.children())[:2]) for entry in cell.entries)
            cell.chains, cell.pool = chains, shared()
        return cell

    @property
    def tier(self) -> str:
        """`kernels`, or `nodes` with the operations that torch runs."""
        if kernels() is None:
            return "plain: no compiled kernels"
        if any(p.device.type != "cpu" for p in self.parameters()):
            return "plain: on an accelerator"
        others = [name for name, op in self._ops.items() if not self.chains[name] and not isinstance(op, PASSING)]
        return f"nodes: {', '.join(others)} by PyTorch" if others else "kernels"

    @property
    def _ops(self) -> nn.ModuleDict:
        mixed = self.edges[f"{self.inputs}-{self.inputs + 1}"]
        assert isinstance(mixed, _Sum)
        return mixed.ops

    def _mixed(self, inputs: Sequence[Tensor], chosen: Sequence[int], w: Tensor, draw: Draw) -> Tensor:
        wide = [single(x) for x in inputs]
        if kernels() is None or not all(takes((), x) and x.dtype == wide[0].dtype for x in wide):
            return super()._mixed(inputs, chosen, w, draw)
        scale = len(self.kept) / len(chosen)
        gates = [
            self._gated(i, x, w[i] if scale == 1 else scale * w[i], draw) for i, x in zip(chosen, wide, strict=True)
        ]
        h = weighted_sum(gates)
        parts, passed = [], []
        for (name, op), weight in zip(self._ops.items(), w[self.inputs], strict=False):
            chain = self.chains[name]
            known = bool(chain) and takes(chain, h)
            if known:
                parts.append(Part(h, weight, chain))
            elif not isinstance(op, PASSING):
                parts.append(Part(single(run(op, h, draw)), weight))
            if isinstance(op, nn.Identity) or (known and isinstance(op, MBConv) and op.residual):
                passed.append(weight)
        if passed:
            parts.append(Part(h, sum(passed[1:], passed[0])))
        return weighted_sum(parts) if parts else h * 0

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


def _chain(op: nn.Module) -> Chain:
    """The chain that an operation is, but for a way past it, or none."""
    return _only(list((op.layers if isinstance(op, MBConv) else op).children()))


def _only(modules: list[nn.Module]) -> Chain:
    """The chain that all of the modules make up, or none."""
    parts = segments(modules, of_batch)
    whole = parts[0] if len(parts) == 1 else ()
    return whole if isinstance(whole, tuple) and all(stage.bias is None for stage in whole) else ()
