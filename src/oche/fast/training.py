"""Trains a discretised network on the compiled kernels: its separable convolutions and 1x1 entries run as a supernet's do.

`quicken(network)` changes what those modules do in a training step and nothing else: parameters, names, running statistics and evaluation
are as they were, and `ordinary` takes it back. A separable convolution is a cell of one input, one node and one candidate
of weight 1 (`packed`); the batch statistics that it returns go into its running ones. Channels that are no multiple of `LANES` would fill
the vectors with zeros, which does not pay: such modules stay as they are.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn

from oche.base import Draw
from oche.fast.backends.native import kernels, switched_off
from oche.fast.kernels.entry import ENTRY, fills, single
from oche.fast.kernels.layout import SKIP, Layout, Unit, separable
from oche.fast.kernels.packed import LANES, Lanes, kept_type, planned, weights_of
from oche.fast.kernels.packed_op import PACKED
from oche.spaces.ops import ReLUConvBN


def quicken(network: nn.Module) -> None:
    """Lets the modules that the kernels know run on them in training, on the CPU. OCHE_FAST=off leaves all as they are."""
    if kernels() is None or switched_off("OCHE_FAST"):
        return
    for module in network.modules():
        if type(module) is nn.Sequential and (cell := _cell(module)) is not None:
            module.cell = cell  # type: ignore[assignment]
            module.__class__ = Separable
        elif type(module) is ReLUConvBN and fills(module[1]) and _running(module[2]):
            module.__class__ = Entry


def ordinary(network: nn.Module) -> None:
    """Takes `quicken` back."""
    for module in network.modules():
        if type(module) is Separable:
            del module.cell
            module.__class__ = nn.Sequential  # type: ignore[assignment]
        elif type(module) is Entry:
            module.__class__ = ReLUConvBN  # type: ignore[assignment]


class Separable(nn.Sequential):
    """ReLU, depthwise and pointwise convolution, batch norm, once or twice: `sep_conv_*`, `dil_conv_*`; `cell` for the kernels."""

    cell: Layout

    def forward(self, x: Tensor) -> Tensor:
        wide = single(x)
        if not _in_kernels(self, wide):
            out: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return out
        cell, place, one = self.cell, Lanes.of(*wide.shape[:2]), wide.new_ones(1, 1)
        table, plan, _ = planned(cell, cell.units, False, place, wide, one, Draw(0))
        weights = weights_of(cell, cell.units, None, place, wide)
        nodes, _, mean, rstd = PACKED(
            kept_type(wide), table, list(plan), cell.eps, one, *weights, [place.image(wide)], []
        )
        for norm, m, r in zip(cell.units[0].norms, mean, rstd, strict=True):
            _remember(norm, m, r, nodes[..., 0].numel())
        return place.back(nodes, 1)


class Entry(ReLUConvBN):
    """ReLU, 1x1 convolution, batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        wide, conv, norm = single(x), self[1], self[2]
        if not _in_kernels(self, wide):
            plain: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return plain
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        pixels = wide.permute(0, 2, 3, 1).contiguous()
        out, _, mean, rstd = ENTRY(pixels, conv.weight.flatten(1), norm.weight, norm.bias, norm.eps)
        _remember(norm, mean, rstd, out[..., 0].numel())
        return out.permute(0, 3, 1, 2)


# ------------------------------------------------------------------ helpers


def _in_kernels(op: nn.Sequential, x: Tensor) -> bool:
    """True if this is a training step that the kernels can take. A batch of one is left to torch, which refuses single numbers."""
    fits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and x.dtype == op[1].weight.dtype
    return op.training and torch.is_grad_enabled() and len(x) > 1 and fits


def _running(norm: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """True if it is a batch norm that averages its statistics with a fixed weight."""
    return isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.momentum is not None


def _cell(op: nn.Sequential) -> Layout | None:
    """The cell of one candidate that it is, or None where the kernels do not know it or its channels do not fill the vectors."""
    unit = separable(op, Unit(SKIP, 0, 1, 0, 0, 1), _running)
    if unit is None or len(unit.depthwise[0].weight) % LANES or unit.stride not in (1, 2):
        return None
    eps, affine = {(norm.eps, norm.affine) for norm in unit.norms}.pop()
    if any((norm.eps, norm.affine) != (eps, affine) for norm in unit.norms):
        return None
    return Layout((unit,), 1, 1, unit.stride, 1, eps, affine, False, ((0, 0, 1),))


@torch.no_grad()
def _remember(norm: nn.BatchNorm2d, mean: Tensor, rstd: Tensor, count: int) -> None:
    """Moves the running statistics as torch does, by means and deviations of `count` numbers each."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    variance = (rstd.pow(-2) - norm.eps) * (count / (count - 1))
    norm.running_mean.lerp_(mean.to(norm.running_mean), norm.momentum)
    norm.running_var.lerp_(variance.to(norm.running_var), norm.momentum)
    norm.num_batches_tracked += 1
