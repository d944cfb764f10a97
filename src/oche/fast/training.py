"""Trains a discretised network on the compiled kernels: its separable convolutions, inverted bottlenecks, 1x1 convolutions and nodes.

`quicken(network)` changes what those modules do in a training step and nothing else: parameters, names, running statistics and evaluation
are as they were, and `ordinary` takes it back. A sequence of activations, depthwise and 1x1 convolutions and batch norms is a chain of
`kernels.stages`, of any number of channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from oche.fast.backends.buffers import shared
from oche.fast.backends.native import kernels, switched_off
from oche.fast.kernels.entry import single
from oche.fast.kernels.stages import Chain, Term, chain_of, joined, several
from oche.spaces.ops import ReLUConvBN


def quicken(network: nn.Module) -> None:
    """Lets the modules that the kernels know run on them in training, on the CPU. OCHE_FAST=off leaves all as they are."""
    if kernels() is None or switched_off("OCHE_FAST"):
        return
    for module in network.modules():
        if type(module) in QUICK and (chain := chain_of(list(module.children()))) is not None:
            module.chain, module.pool = chain, shared()  # type: ignore[assignment]
            module.__class__ = QUICK[type(module)]


def ordinary(network: nn.Module) -> None:
    """Takes `quicken` back."""
    for module in network.modules():
        if isinstance(module, Quick):
            del module.chain, module.pool
            module.__class__ = ORDINARY[type(module)]  # type: ignore[assignment]


class Quick(nn.Sequential):
    """A sequence whose training steps run as a chain of stages."""

    chain: Chain
    pool: object  # keeps the kernels' buffers alive between steps

    def forward(self, x: Tensor) -> Tensor:
        wide = single(x)
        if not runs(self, wide):
            out: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return out
        return joined([Term(wide, self.chain)])


class QuickEntry(Quick, ReLUConvBN):
    """A ReLUConvBN whose training steps do."""


QUICK: dict[type[nn.Module], type[Quick]] = {nn.Sequential: Quick, ReLUConvBN: QuickEntry}
ORDINARY: dict[type[nn.Module], type[nn.Module]] = {quick: plain for plain, quick in QUICK.items()}


def runs(op: Quick, x: Tensor) -> bool:
    """True if this is a training step that the kernels can take."""
    fits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    same = fits and all(w.dtype == x.dtype for stage in op.chain for w in stage.weights())
    return op.training and torch.is_grad_enabled() and same and several(op.chain, x)
