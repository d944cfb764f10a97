"""Trains a discretised network on the compiled kernels: its separable convolutions, inverted bottlenecks, 1x1 convolutions and nodes.

`quicken(network)` changes what those modules do in a training step and nothing else: parameters, names, running statistics and evaluation
are as they were, and `ordinary` takes it back. Within a sequence, activations, depthwise and 1x1 convolutions and batch norms are chains
of `kernels.stages`, of any number of channels; a cell sums its edges, each times its drop path, in the pass that normalises them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from oche.fast.backends.buffers import shared
from oche.fast.backends.native import kernels, switched_off
from oche.fast.kernels.entry import single
from oche.fast.kernels.stages import Chain, Term, joined, segments, several
from oche.spaces.networks import Cell, Chosen, Paths, Through
from oche.spaces.ops import ReLUConvBN


def quicken(network: nn.Module) -> None:
    """Lets the modules that the kernels know run on them in training, on the CPU. OCHE_FAST=off leaves all as they are."""
    if kernels() is None or switched_off("OCHE_FAST"):
        return
    for module in network.modules():
        if type(module) in QUICK:
            parts = segments(list(module.children()))
            if any(isinstance(part, tuple) for part in parts):
                module.parts, module.pool = parts, shared()  # type: ignore[assignment]
                module.__class__ = QUICK[type(module)]
        elif type(module) is Cell and all(type(edge) is Chosen for edge in module.edges.values()):
            module.__class__ = QuickCell


def ordinary(network: nn.Module) -> None:
    """Takes `quicken` back."""
    for module in network.modules():
        if isinstance(module, Quick):
            del module.parts, module.pool
            module.__class__ = ORDINARY[type(module)]  # type: ignore[assignment]
        elif type(module) is QuickCell:
            module.__class__ = Cell  # type: ignore[assignment]


class Quick(nn.Sequential):
    """A sequence whose training steps run as chains of stages where they can."""

    parts: list[Chain | nn.Module]
    pool: object  # keeps the kernels' buffers alive between steps

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            out: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return out
        for part in self.parts:
            x = _chained(part, x) if isinstance(part, tuple) else part(x)
        return x


class QuickEntry(Quick, ReLUConvBN):
    """A ReLUConvBN whose training steps do."""


class QuickCell(Cell):
    """A cell of a network: in a training step a node is one sum of its chains, identities and other operations."""

    def forward(self, inputs: Sequence[Tensor], through: Through) -> Tensor:
        quick = self.training and torch.is_grad_enabled() and isinstance(through, Paths) and not through.serial
        if not quick:
            return super().forward(inputs, through)
        assert isinstance(through, Paths)
        states = {i: entry(x) for i, (entry, x) in enumerate(zip(self.entries, inputs, strict=True))}
        for target, incoming in enumerate(self._into, start=len(states)):
            terms = [_term(e, self.edges[key], states[source], through) for e, source, key in incoming]
            if terms:
                first = terms[0].source
                fits = all(_suits(t.source) and t.source.dtype == first.dtype for t in terms)
                states[target] = joined(terms) if fits else sum(map(_plain, terms[1:]), _plain(terms[0]))
        return self.output(states)


QUICK: dict[type[nn.Module], type[Quick]] = {nn.Sequential: Quick, ReLUConvBN: QuickEntry}
ORDINARY: dict[type[nn.Module], type[nn.Module]] = {quick: plain for plain, quick in QUICK.items()}

# ------------------------------------------------------------------ helpers


def _suits(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and x.numel() > 0


def _runs(chain: Chain, x: Tensor) -> bool:
    """True if the kernels can take the chain on x."""
    same = all(w.dtype == x.dtype for stage in chain for w in stage.weights())
    return _suits(x) and same and all(stage.norm.training for stage in chain) and several(chain, x)


def _chained(chain: Chain, x: Tensor) -> Tensor:
    """The chain on x, on the kernels or by torch."""
    wide = single(x)
    if _runs(chain, wide):
        return joined([Term(wide, chain)])
    for stage in chain:
        for module in stage.modules:
            x = module(x)
    return x


def _term(e: int, edge: nn.Module, h: Tensor, through: Paths) -> Term:
    """What an edge adds to its node: its chain, where all of it is one, or what it gives."""
    assert isinstance(edge, Chosen)
    (op,) = edge.ops.values()
    factor = through.factors.get(e)
    wide = single(h)
    if isinstance(op, Quick) and len(op.parts) == 1 and isinstance(op.parts[0], tuple) and _runs(op.parts[0], wide):
        return Term(wide, op.parts[0], factor)
    out: Tensor = edge(h, through.draw)
    return Term(single(out), (), None if out is h else factor)


def _plain(term: Term) -> Tensor:
    """A term without a chain, by torch."""
    return term.source if term.factor is None else term.source * term.factor.to(term.source.dtype)
