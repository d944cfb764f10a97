"""Packs a cell's weights into one tensor per kind; the weights become views of it, so a step has few tensors to handle.

A supernet has over a thousand weights, and what is done per weight (collecting, splitting gradients, stepping) takes as long as what the
kernels compute on a small batch. A `Pack` is a tensor in the order of `packed.Weights`; it is a leaf of its own, and each weight a view
of its memory: reading or writing a weight by its name reads or writes the pack. Gradients, clipping and the optimiser take packs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from oche.base import OpWeights
from oche.fast.cell import FusedCell
from oche.fast.kernels.layout import Layout
from oche.fast.kernels.packed import Parts, Weights, stack
from oche.spaces.networks import Supernet

View = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Pack:
    """`values`, the weights one beside the other, under the name that `functional_call` takes; `views` gives each weight's part by name."""

    name: str
    values: Tensor
    weights: Mapping[str, nn.Parameter]
    views: Mapping[str, View]
    addresses: list[int] = field(default_factory=list)

    @property
    def intact(self) -> bool:
        """True if the weights still lie in it; a change of precision, for example, moves them."""
        return self.addresses == [p.data_ptr() for p in self.weights.values()]

    def split(self, like: Tensor) -> dict[str, Tensor]:
        """Each weight's part of a tensor like `values`, as a tensor of its own."""
        return {name: _own(view(like)) for name, view in self.views.items()}

    def join(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Undoes `split`; zeros for missing parts."""
        joined = torch.zeros_like(self.values)
        for name, part in parts.items():
            self.views[name](joined).copy_(part)
        return joined

    def lay(self) -> None:
        """Makes the weights views of it."""
        for name, p in self.weights.items():
            p.data = self.views[name](self.values.detach())
        self.addresses[:] = [p.data_ptr() for p in self.weights.values()]

    def lift(self) -> None:
        """Gives the weights memory of their own again."""
        for p in self.weights.values():
            p.data = _own(p.data)


def _own(t: Tensor) -> Tensor:
    return t.clone(memory_format=torch.channels_last if t.dim() == 4 else torch.contiguous_format)


def packs(supernet: Supernet) -> tuple[Pack, ...]:
    """The packs of all cells that run in compiled kernels of depthwise candidates, whose weights lie in them from now on.

    A cell some of whose weights of a kind learn and some do not has none, nor one whose weights are computed (parametrized).
    """
    names = {id(module): name for name, module in supernet.named_modules()}
    known = dict(supernet.named_parameters())
    found: list[Pack] = []
    for cell in supernet.body.cells.values():
        if isinstance(cell, FusedCell) and isinstance(cell.layout, Layout) and cell.tier == "kernels":
            found += _of_cell(cell, cell.layout, names, known)
    for pack in found:
        pack.lay()
    return tuple(found)


def leaves_out(supernet: Supernet, op_weights: OpWeights) -> bool:
    """True if a cell passes over a candidate that has weights: its op weight is 0 and needs no gradient."""
    cells = ((cell, op_weights[name]) for name, cell in supernet.body.cells.items() if isinstance(cell, FusedCell))
    return any(cell.leaves_out(w) for cell, w in cells)


@torch.no_grad()
def _of_cell(
    cell: FusedCell, layout: Layout, names: Mapping[int, str], known: Mapping[str, nn.Parameter]
) -> list[Pack]:
    kinds = _views(layout, names)
    if any(name not in known for views in kinds for name in views):
        return []
    weights = [{name: known[name] for name in views} for views in kinds]
    if any(len({p.requires_grad for p in own.values()}) > 1 for own in weights):
        return []
    like = next(iter(known.values()))
    channels = _channels(layout)
    made = stack(layout.units, layout.affine, channels, like)
    own_name = names[id(cell)]
    return [
        Pack(f"{own_name}.{kind}", values.clone().requires_grad_(_learns(own)), own, views)
        for kind, values, own, views in zip(Weights._fields, made, weights, kinds, strict=True)
        if values is not None
    ]


def _learns(weights: Mapping[str, nn.Parameter]) -> bool:
    return any(p.requires_grad for p in weights.values())


def _channels(layout: Layout) -> int:
    return next(len(conv.weight) for conv in Parts.of(layout.units).depthwise)


def _views(layout: Layout, names: Mapping[int, str]) -> Sequence[dict[str, View]]:
    """{weight's name: its part} for each field of `Weights`."""
    parts, channels = Parts.of(layout.units), _channels(layout)

    def named(modules: Iterable[nn.Module], attribute: str = "weight") -> list[str]:
        return [f"{names[id(module)]}.{attribute}" for module in modules]

    taps: dict[str, View] = {}
    start = 0
    for name, conv in zip(named(parts.depthwise), parts.depthwise, strict=True):
        k = conv.kernel_size[0]
        taps[name] = partial(_kernel, start, k)
        start += k * k
    matrices: dict[str, View] = {
        name: partial(_matrix, i, 0, channels) for i, name in enumerate(named(parts.pointwise))
    }
    for i, (even, odd) in enumerate(parts.halves, len(parts.pointwise)):
        half = len(even.weight)
        matrices |= zip(
            named([even, odd]), (partial(_matrix, i, 0, half), partial(_matrix, i, half, channels)), strict=True
        )
    norms = parts.norms if layout.affine else []
    rows: list[dict[str, View]] = [
        {name: partial(_row, i, channels) for i, name in enumerate(named(norms, kind))} for kind in ("weight", "bias")
    ]
    return [taps, matrices, *rows]


def _kernel(start: int, k: int, taps: Tensor) -> Tensor:
    """(C, 1, k, k) of taps (rows, C)."""
    kernel = taps[start : start + k * k]
    return kernel.t().view(kernel.shape[1], 1, k, k)


def _matrix(i: int, first: int, last: int, matrices: Tensor) -> Tensor:
    """(outputs, C, 1, 1) of matrices (P, C, C)."""
    return matrices[i, :, first:last].t()[:, :, None, None]


def _row(i: int, channels: int, values: Tensor) -> Tensor:
    """(C,) of values (norms * C,)."""
    return values[i * channels : (i + 1) * channels]
