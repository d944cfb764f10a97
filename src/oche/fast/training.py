"""Trains a discretised network on the compiled kernels: its separable convolutions, inverted bottlenecks, 1x1 convolutions and nodes.

`quicken(network)` changes what those modules do in a training step and nothing else: parameters, names, running statistics and evaluation
are as they were, and `ordinary` takes it back. Within a sequence, activations, depthwise and 1x1 convolutions and batch norms are chains
of `kernels.stages`, of any number of channels; a cell sums its edges, each times its drop path, in the pass that normalises them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from oche.fast.backends.buffers import shared
from oche.fast.backends.native import kernels, switched_off
from oche.fast.kernels.chains import ACTIVATIONS, Chain, reduction, segments, several
from oche.fast.kernels.dense import DenseLayout
from oche.fast.kernels.dense_found import found_layout, run_found
from oche.fast.kernels.entry import single
from oche.fast.kernels.graph import run_graph, takes
from oche.fast.kernels.graph_layout import GraphLayout, graph_layout
from oche.fast.kernels.node import Term, joined
from oche.fast.kernels.projections import projection_of
from oche.spaces.blocks import MBConv, Residual
from oche.spaces.nb201 import ResidualReduction
from oche.spaces.networks import Cell, Chosen, Paths, Through
from oche.spaces.ops import FactorizedReduce, ReLUConvBN


def quicken(network: nn.Module) -> None:
    """Lets the modules that the kernels know run on them in training, on the CPU. OCHE_FAST=off leaves all as they are."""
    if switched_off("OCHE_FAST") or kernels() is None:
        return
    for module in network.modules():
        if type(module) in QUICK:
            parts = segments(list(module.children()))
            if any(isinstance(part, tuple) for part in parts):
                module.parts, module.pool = parts, shared()  # type: ignore[assignment]
                module.__class__ = QUICK[type(module)]
        elif type(module) in SUMS and _sums(module):
            if isinstance(module, Cell):
                module.dense, module.graph = found_layout(module), graph_layout(module)  # type: ignore[assignment]
                module.pool = shared()  # type: ignore[assignment]
            module.__class__ = SUMS[type(module)]


def ordinary(network: nn.Module) -> None:
    """Takes `quicken` back."""
    for module in network.modules():
        if isinstance(module, Quick):
            del module.parts, module.pool
        if isinstance(module, QuickCell):
            del module.dense, module.graph, module.pool
        if type(module) in ORDINARY:
            module.__class__ = ORDINARY[type(module)]


class Quick(nn.Sequential):
    """A sequence whose training steps run as chains of stages where they can."""

    parts: list[Chain | nn.Module]
    pool: object  # keeps the kernels' buffers alive between steps

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            out: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return out
        rest = list(self.parts)
        while rest:
            part = rest.pop(0)
            if not isinstance(part, tuple):
                x = part(x)
                continue
            behind = rest[0] if rest and not isinstance(rest[0], tuple) and type(rest[0]) in ACTIVATIONS else None
            del rest[: int(behind is not None)]
            x = _chained(part, behind, x)
        return x


class QuickEntry(Quick, ReLUConvBN):
    """A ReLUConvBN whose training steps do."""


class QuickSum(nn.Module):
    """A block that sums two branches: in a training step one sum of chains, identities and what other branches give."""

    activation: ClassVar[int] = 0

    def branches(self) -> tuple[nn.Module, nn.Module]:
        """The modules whose outputs are summed."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled() and _suits(x):
            chains, wide = [_whole(module) for module in self.branches()], single(x)
            if any(chain and _runs(chain, wide) for chain in chains):
                return joined([_branch(module, wide) for module in self.branches()], self.activation)
        out: Tensor = super().forward(x)
        return out


class QuickResidual(QuickSum, Residual):
    """A residual block."""

    activation = ACTIVATIONS[nn.ReLU]

    def branches(self) -> tuple[nn.Module, nn.Module]:
        return self.deep, self.short


class QuickReduction(QuickSum, ResidualReduction):
    """The block between two stages of NAS-Bench-201."""

    def branches(self) -> tuple[nn.Module, nn.Module]:
        return self.deep, self.short


class QuickBottleneck(QuickSum, MBConv):
    """An inverted bottleneck with a way past it."""

    def branches(self) -> tuple[nn.Module, nn.Module]:
        return self.layers, nn.Identity()


class QuickReduce(FactorizedReduce):
    """A FactorizedReduce: in a training step on images of even sides a chain of one stage."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled() and _suits(x) and not (x.shape[2] % 2 or x.shape[3] % 2):
            chain, wide = reduction(self), single(x)
            if chain and _runs(chain, wide):
                return joined([Term(wide, chain)])
        return super().forward(x)


class QuickCell(Cell):
    """A cell of a network: in a training step one operator, where the kernels know what lies between its nodes, or else one sum per node.

    A node sums chains, identities and what other operations give.
    """

    dense: DenseLayout | None
    graph: GraphLayout | None

    def forward(self, inputs: Sequence[Tensor], through: Through) -> Tensor:
        quick = self.training and torch.is_grad_enabled() and isinstance(through, Paths) and not through.serial
        if not quick:
            return super().forward(inputs, through)
        assert isinstance(through, Paths)
        if self.graph is not None:
            wide = [single(x) for x in inputs]
            if takes(self.graph, wide):
                return self._whole(self.graph, wide, through)
        states = {i: entry(x) for i, (entry, x) in enumerate(zip(self.entries, inputs, strict=True))}
        if self.dense is not None and not through.factors and _takes(self.dense, list(states.values())):
            return run_found(self.dense, [single(h) for h in states.values()])
        for target, incoming in enumerate(self._into, start=len(states)):
            terms = [_term(e, self.edges[key], states[source], through) for e, source, key in incoming]
            if terms:
                first = terms[0].source
                fits = all(_suits(t.source) and t.source.dtype == first.dtype for t in terms)
                states[target] = joined(terms) if fits else sum(map(_plain, terms[1:]), _plain(terms[0]))
        return self.output(states)

    def _whole(self, graph: GraphLayout, inputs: list[Tensor], through: Paths) -> Tensor:
        """The cell as one operator, after the entries and edges that the kernels do not know."""
        entries = zip(self.entries, graph.inside, inputs, strict=True)
        given = [x if inside else single(entry(x)) for entry, inside, x in entries]
        given += [single(self.edges[key](given[source], through.draw)) for _, source, key in graph.outside]
        return run_graph(graph, given, through.factors)


QUICK: dict[type[nn.Module], type[Quick]] = {nn.Sequential: Quick, ReLUConvBN: QuickEntry}
SUMS: dict[type[nn.Module], type[nn.Module]] = {
    Residual: QuickResidual,
    ResidualReduction: QuickReduction,
    MBConv: QuickBottleneck,
    FactorizedReduce: QuickReduce,
    Cell: QuickCell,
}
ORDINARY: dict[type[nn.Module], type[nn.Module]] = {quick: plain for plain, quick in [*QUICK.items(), *SUMS.items()]}

# ------------------------------------------------------------------ helpers


def _sums(module: nn.Module) -> bool:
    """True if a training step of the block is a sum that the kernels know."""
    if isinstance(module, Cell):
        return all(type(edge) is Chosen for edge in module.edges.values())
    return not isinstance(module, MBConv) or module.residual


def _suits(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and x.numel() > 0


def _takes(dense: DenseLayout, states: list[Tensor]) -> bool:
    """True if the kernels can take the cell with these states."""
    first = states[0]
    alike = all(_suits(h) and h.shape == first.shape and h.dtype == first.dtype for h in states)
    weights = [w for unit in dense.units if unit.conv for w in unit.conv.parameters()]
    return (
        alike
        and len(first) * first.shape[2] * first.shape[3] > 1
        and all(w.dtype == first.dtype for w in weights)
        and all(unit.norm.training for unit in dense.units if unit.norm)
    )


def _runs(chain: Chain, x: Tensor) -> bool:
    """True if the kernels can take the chain on x."""
    same = all(w.dtype == x.dtype for stage in chain for w in stage.weights())
    return _suits(x) and same and all(stage.norm.training for stage in chain) and several(chain, x)


def _chained(chain: Chain, behind: nn.Module | None, x: Tensor) -> Tensor:
    """The chain and the activation behind it on x, on the kernels or by torch."""
    wide = single(x)
    if _runs(chain, wide):
        return joined([Term(wide, chain)], ACTIVATIONS[type(behind)] if behind is not None else 0)
    for module in [*(module for stage in chain for module in stage.modules), *([] if behind is None else [behind])]:
        x = module(x)
    return x


def _term(e: int, edge: nn.Module, h: Tensor, through: Paths) -> Term:
    """What an edge adds to its node: its chain, where all of it is one, or what it gives."""
    assert isinstance(edge, Chosen)
    (op,) = edge.ops.values()
    factor = through.factors.get(e)
    chain, wide = _whole(op), single(h)
    if chain and _runs(chain, wide):
        return Term(wide, chain, factor)
    out: Tensor = edge(h, through.draw)
    return Term(single(out), (), None if out is h else factor)


def _branch(module: nn.Module, x: Tensor) -> Term:
    """What a module adds to a sum: its chain, where all of it is one that the kernels can take, or what it gives."""
    chain = _whole(module)
    if chain and _runs(chain, x):
        return Term(x, chain)
    projection = projection_of(module, *x.shape[2:])
    if projection is not None and all(w.dtype == x.dtype for w in module.parameters()):
        return Term(x, projection=projection)
    return Term(single(module(x)).to(x.dtype))


def _whole(module: nn.Module) -> Chain:
    """The one chain that the module is, or none."""
    parts = module.parts if isinstance(module, Quick) else []
    return parts[0] if len(parts) == 1 and isinstance(parts[0], tuple) else ()


def _plain(term: Term) -> Tensor:
    """A term without a chain, by torch."""
    return term.source if term.factor is None else term.source * term.factor.to(term.source.dtype)
