"""Computes a cell with shared work in plain torch: any operation, any device, no compiler.

Every candidate runs up to its batch norm, on a ReLU that all candidates of a state share; pools run once per state; each node is then
one `combine`. A partial-channel cell sums its edges first and shuffles once per node, since the permutation commutes with the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oche.base import Draw
from oche.fast.backends.device import Backend
from oche.fast.portable.combine import Moments, Term, combine
from oche.fast.portable.depthwise import Geometry, depthwise, is_depthwise, thinned
from oche.fast.portable.maxpool import left_alone
from oche.fast.portable.separable import run_separable, suits
from oche.spaces.blocks import MBConv
from oche.spaces.edges import _Partial, _Sum
from oche.spaces.networks import Cell
from oche.spaces.ops import FactorizedReduce, Noise, PoolBN, Zero, run


@dataclass
class State:
    """A node's value h (B, C, H, W) and what several of its edges need from it, each computed when first asked for."""

    h: Tensor
    made: dict[tuple[object, ...], Tensor] = field(default_factory=dict)
    parts: dict[tuple[str, int], State] = field(default_factory=dict)

    def once(self, key: tuple[object, ...], make: Callable[[Tensor], Tensor]) -> Tensor:
        """make(h), or what an earlier call with the same key made."""
        if key not in self.made:
            self.made[key] = make(self.h)
        return self.made[key]

    def relu(self) -> Tensor:
        """max(h, 0)."""
        return self.once(("relu",), torch.relu)

    def head(self, share: int) -> State:
        """The state of the first 1/share of the channels."""
        return self._part(("head", share), lambda: self.h[:, : self.h.shape[1] // share])

    def every(self, pixels: int) -> State:
        """The state of every so many-th pixel down and right."""
        return self._part(("every", pixels), lambda: thinned(self.h, pixels))

    def _part(self, key: tuple[str, int], make: Callable[[], Tensor]) -> State:
        if key not in self.parts:
            self.parts[key] = State(make())
        return self.parts[key]


def run_portable(
    cell: Cell,
    states: Sequence[Tensor],
    w: Tensor,
    zero: set[tuple[int, int]],
    draw: Draw,
    compiled: Backend | None = None,
) -> Tensor:
    """The cell's output from the states after its entries; w (E, O)."""
    known = [State(h) for h in states]
    moments = Moments(compiled)
    for incoming in cell._into:
        edges = [(e, known[source], cell.edges[key]) for e, source, key in incoming]
        known.append(State(_node(edges, w, zero, draw, moments)))
    nodes = [state.h for state in known[len(cell.entries) :]]
    return torch.cat(nodes, dim=1) if cell.concat else nodes[-1]


def _node(
    edges: Sequence[tuple[int, State, nn.Module]], w: Tensor, zero: set[tuple[int, int]], draw: Draw, moments: Moments
) -> Tensor:
    share = edges[0][2].share if isinstance(edges[0][2], _Partial) else 1
    terms, bypassed = [], []
    for e, state, edge in edges:
        active = state
        if isinstance(edge, _Partial):
            bypassed.append((w[e].sum(), state.once(("bypass", share, edge.stride), _bypass(share, edge.stride))))
            active = state.head(share)
        ops = edge.ops
        assert isinstance(ops, nn.ModuleDict)
        terms += [
            term
            for o, (name, op) in enumerate(ops.items())
            if (e, o) not in zero and not (name == "none" and len(ops) > 1)
            for term in _terms(op, active, w[e, o], draw, moments)
        ]
    if not terms:  # every candidate is `none` or has no weight: zeros of the right shape
        e, state, edge = edges[0]
        assert isinstance(edge, _Sum | _Partial)
        empty = Zero(_stride(edge, state.h))(state.head(share).h if share > 1 else state.h)
        terms = [Term(empty, w[e].sum())]
    mixed = combine(terms, moments)
    if not bypassed:
        return mixed
    passed = combine([Term(value, weight) for weight, value in bypassed], moments)
    return _shuffled(torch.cat([mixed, passed], dim=1), share)


def _shuffled(groups: Tensor, share: int) -> Tensor:
    """Channel i of group s becomes channel i share + s. The result lies in channels_last: the next cell reads it there."""
    batch, channels, height, width = groups.shape
    pixels = groups.permute(0, 2, 3, 1).reshape(batch, height, width, share, channels // share)
    return pixels.transpose(-1, -2).flatten(-2).permute(0, 3, 1, 2)


def _terms(op: nn.Module, state: State, weight: Tensor, draw: Draw, moments: Moments) -> list[Term]:
    """A candidate up to its batch norm, and what is added behind it; one that is not known runs as it is."""
    if isinstance(op, Zero):
        return []
    if isinstance(op, nn.Identity):
        return [Term(state.h, weight)]
    if isinstance(op, nn.MaxPool2d | nn.AvgPool2d):
        return [Term(_pool(op, state), weight)]
    if isinstance(op, PoolBN) and of_batch(op.norm):
        return [Term(_pool(op.pool, state), weight, op.norm)]
    if isinstance(op, FactorizedReduce) and of_batch(op.norm):
        return [Term(op.halves(state.h), weight, op.norm)]
    if suits(op, moments.kernels) and of_batch(op[-1]):
        value, mean, variance = run_separable(op, state.h)
        moments.known[id(value)] = (value, mean, variance)
        return [Term(value, weight, op[-1])]
    if isinstance(op, MBConv) and of_batch(op.layers[-1]):
        added = [Term(state.h, weight)] if op.residual else []
        return [*added, Term(_through(list(op.layers)[:-1], state.h), weight, op.layers[-1])]
    if isinstance(op, nn.Sequential) and len(op) > 2 and isinstance(op[0], nn.ReLU) and of_batch(op[-1]):
        return [Term(_behind_relu(list(op)[1:-1], state), weight, op[-1])]
    return [Term(run(op, state.h, draw), weight)]


def _behind_relu(modules: Sequence[nn.Module], state: State) -> Tensor:
    """Applies modules to the state's ReLU; a first one that reads only every d-th pixel is given only those."""
    first = modules[0]
    if is_depthwise(first, state.h) and (every := Geometry.of(first).every) > 1:
        return _through(modules[1:], depthwise(state.every(every).relu(), first.weight, Geometry.of(first).thinned()))
    return _through(modules, state.relu())


def _through(modules: Sequence[nn.Module], value: Tensor) -> Tensor:
    for module in modules:
        value = depthwise(value, module.weight, Geometry.of(module)) if is_depthwise(module, value) else module(value)
    return value


def _pool(pool: nn.Module, state: State) -> Tensor:
    make: Callable[[Tensor], Tensor] = _average if _averages(pool, state.h) else pool
    if torch.compiler.is_compiling() and isinstance(pool, nn.MaxPool2d):
        make = partial(left_alone, pool)
    return state.once((type(pool), repr(pool)), make)


def _averages(pool: nn.Module, h: Tensor) -> TypeGuard[nn.AvgPool2d]:
    """True if it is the usual average pool of stride 1, on the CPU in fp32: torch's own takes three times as long as a convolution."""
    if torch.compiler.is_compiling():
        return False
    if not isinstance(pool, nn.AvgPool2d) or pool.ceil_mode or pool.count_include_pad or pool.divisor_override:
        return False
    usual = (pool.kernel_size, pool.stride, pool.padding) == (3, 1, 1)
    return usual and h.device.type == "cpu" and h.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def _average(h: Tensor) -> Tensor:
    """The mean over those of each pixel's 3x3 neighbours that lie inside: the sum of all, over how many there are."""
    out: Tensor = _Average.apply(h)  # type: ignore[no-untyped-call]
    return out


class _Average(torch.autograd.Function):
    """y = n K x with K the sum over neighbours and n one over their number; K is symmetric: dx = K (n dy)."""

    @staticmethod
    def forward(ctx: object, h: Tensor) -> Tensor:
        return _neighbours(h).mul_(_shares(h))

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return _neighbours(grad * _shares(grad))


def _neighbours(x: Tensor) -> Tensor:
    return F.conv2d(x, _ones(x.shape[1], x.dtype), padding=1, groups=x.shape[1])


def _shares(x: Tensor) -> Tensor:
    """(H, W): one over the number of a pixel's neighbours."""
    return _shared(x.shape[2], x.shape[3], x.dtype)


@lru_cache(maxsize=64)  # making these takes as long as a small pool
def _ones(channels: int, dtype: torch.dtype) -> Tensor:
    return torch.ones(channels, 1, 3, 3, dtype=dtype)


@lru_cache(maxsize=64)
def _shared(height: int, width: int, dtype: torch.dtype) -> Tensor:
    return 1 / _neighbours(torch.ones(1, 1, height, width, dtype=dtype))[0, 0]


def _bypass(share: int, stride: int) -> Callable[[Tensor], Tensor]:
    def rest(h: Tensor) -> Tensor:
        passed = h[:, h.shape[1] // share :]
        return F.max_pool2d(passed, 2, 2, ceil_mode=True) if stride > 1 else passed

    return rest


def zeros(w: Tensor) -> set[tuple[int, int]]:
    """Entries of w that are exactly zero and need no gradient: those candidates need not run.

    On an accelerator none is skipped: to know them would make the host wait.
    """
    if w.requires_grad or w.device.type != "cpu":
        return set()
    return {(e, o) for e, row in enumerate(w.tolist()) for o, value in enumerate(row) if value == 0.0}


def _stride(edge: _Sum | _Partial, h: Tensor) -> int:
    """The edge's stride, read from any candidate that has one."""
    for module in edge.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d | Zero | Noise):
            stride = module.stride
            found = max(stride) if isinstance(stride, tuple) else stride
            if found > 1:
                return int(found)
    return 1


def of_batch(norm: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """True if it is a batch norm that uses the batch's statistics and keeps none."""
    return isinstance(norm, nn.BatchNorm2d) and norm.running_mean is None


def refusal(cell: Cell) -> str | None:
    """Returns why the cell cannot be fused, or None."""
    kinds = {type(edge) for edge in cell.edges.values()}
    if kinds - {_Sum, _Partial}:
        return f"edges of type {', '.join(sorted(kind.__name__.lstrip('_') for kind in kinds - {_Sum, _Partial}))}"
    if _Partial in kinds and (len(kinds) > 1 or len({edge.share for edge in cell.edges.values()}) > 1):
        return "edges that pass by different shares of the channels"
    if any(isinstance(m, nn.BatchNorm2d) and not of_batch(m) for m in cell.modules()):
        return "batch norm with running statistics"
    return None
