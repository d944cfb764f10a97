"""Runs a cell of a network that learns as one operator: nodes that sum chains of stages, pools and other nodes, side by side or the last.

The formulas are in `stages`. A table says what leads from one state to another (`csrc/stages/graph.h`). The first states are given: what
the cell reads, and what operations that the kernels do not know make of that. An entry that is a chain is part of the cell. Backward, a
state's gradient is one sum, to which all that leads out of it adds as it is stored. Kept for the backward: the inputs, each y, the nodes
that are read, and pools.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping, MutableMapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from oche.fast.backends.buffers import shared
from oche.fast.backends.library import invoke
from oche.fast.kernels.chains import Stage
from oche.fast.kernels.graph_layout import GraphLayout, Link, Pool


def takes(layout: GraphLayout, given: Sequence[Tensor]) -> bool:
    """True if the kernels can take the cell on what its entries read, or give where they are run outside."""
    first, stages = given[0], layout.stages
    norms = [stage.norm for stage in stages]
    tensors = [*given, *(w for stage in stages for w in stage.weights()), *(norm.running_mean for norm in norms)]
    return (
        first.device.type == "cpu"
        and first.dtype in (torch.float32, torch.float64)
        and all(t is not None and t.dtype == first.dtype and t.numel() > 0 for t in tensors)
        and all(norm.training for norm in norms)
        and (
            len(first) > 1 or min(x.shape[2] * x.shape[3] for x in given) >= 16
        )  # torch refuses batch norms of one value
    )


def run_graph(layout: GraphLayout, given: Sequence[Tensor], factors: Mapping[int, Tensor]) -> Tensor:
    """What the cell gives of its given states, channels last; the running statistics of its batch norms are moved on.

    `factors` (B, 1, 1, 1) by edge.
    """
    weights = [w for stage in layout.stages for w in stage.weights()]
    dtype = given[0].dtype
    given = [_twins.get(x, x) if i == 0 else x for i, x in enumerate(given)]
    by_link = [factors[q.edge].reshape(-1).to(dtype) if q.edge in factors else None for q in layout.links]
    out, twin = _Graph.apply(layout, by_link, *given, *weights)  # type: ignore[no-untyped-call]
    _twins[out] = twin
    found: Tensor = out
    return found


_twins: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()
"""What a cell gave -> the same once more, for the second cell that reads it: the kernels sum both gradients as they load them."""


# ------------------------------------------------------------------ what the kernels are given


class CGraph(ctypes.Structure):
    """`struct Graph` of stages/graph.h."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("n", "inputs", "states", "steps", "pools", "links", "width", "learn", "threads")
    ]


Size = tuple[int, int, int]
"""Rows, columns and channels of a state."""


class _Table:
    """The rows of one call: integers and addresses, of tensors that live until its backward pass is done."""

    def __init__(self, layout: GraphLayout, given: list[Tensor], weights: Sequence[Tensor]) -> None:
        self.layout, self.given, self.n, self.dtype = layout, given, len(given[0]), given[0].dtype
        self.sizes: list[Size] = [(x.shape[1], x.shape[2], x.shape[3]) for x in given]
        self.shapes: list[list[int]] = []  # by step: `struct Stage`
        self.left: list[int] = []  # by step: the numbers that it leaves
        for target in range(layout.inputs, layout.states):
            reached = {self._follow(link) for link in layout.links if link.target == target}
            if len(reached) != 1:
                raise ValueError(f"What leads to node {target} is of different sizes: {sorted(reached)}.")
            self.sizes += reached
        self.pooled = [self._pooled(pool) for pool in layout.pools]
        outputs = [self.sizes[j] for j in layout.outputs]
        self.width = sum(size[2] for size in outputs)
        self.out = (self.n, *outputs[0][:2], self.width)
        self.weights = [w if _dense(w) else w.contiguous() for w in weights]
        self.itemsize, self.kept = given[0].element_size(), layout.kept

    def _follow(self, link: Link) -> Size:
        """The size of what a link adds to its target; the shapes of its chain's steps are noted."""
        height, width, channels = self.sizes[link.source]
        for stage in link.chain:
            conv, co = stage.depthwise, stage.norm.num_features
            k, stride, dilation = (0, 1, 1) if conv is None else (conv.kernel_size[0], conv.stride[0], conv.dilation[0])
            shape = (self.n, height, width, channels, co, k, stride, dilation, int(stage.pointwise is not None))
            self.shapes.append([*shape, stage.activation, torch.get_num_threads()])
            (height, width), channels = stage.size(height, width), co
            self.left.append(self.n * height * width * co)
        return self._pooled(self.layout.pools[link.pool]) if link.pool >= 0 else (height, width, channels)

    def _pooled(self, pool: Pool) -> Size:
        height, width, channels = self.sizes[pool.source]
        return -(-height // pool.stride), -(-width // pool.stride), channels

    def plane(self, size: Size) -> int:
        """The numbers of a state of this size."""
        return self.n * size[0] * size[1] * size[2]

    def nodes(self) -> list[int]:
        """By state: the numbers that are kept of it."""
        return [self.plane(size) if j in self.kept else 0 for j, size in enumerate(self.sizes)]

    def is_out(self, j: int) -> bool:
        """True if the state is all that the cell gives."""
        return not self.layout.concat and j in self.layout.outputs

    def addresses(self, base: Tensor | None, sizes: Sequence[int]) -> list[int]:
        """Where parts of these sizes lie in a buffer, each at the start of a line; 0 for those of none."""
        if base is None:
            return [0] * len(sizes)
        starts = accumulate(map(_lines, sizes), initial=0)
        return [base.data_ptr() + at * self.itemsize if size else 0 for at, size in zip(starts, sizes, strict=False)]

    def structure(self, learn: bool) -> CGraph:
        """The sizes."""
        layout = self.layout
        counts = (layout.inputs, layout.states, len(self.shapes), len(layout.pools), len(layout.links))
        return CGraph(self.n, *counts, self.width, int(learn), torch.get_num_threads())

    def rows(
        self,
        kept: Tensor,
        out: int,
        factors: Sequence[Tensor | None],
        gradients: Sequence[int],
        pools: Sequence[int],
        learnt: int,
    ) -> tuple[ctypes.Array[ctypes.c_int64], ...]:
        """States, steps, pools and links, with addresses of gradients where there are any; `learnt`: that of the weights' gradients."""
        layout = self.layout
        parts = self.addresses(kept, [*self.nodes(), *self.left, *map(self.plane, self.pooled)])
        columns = dict(
            zip(layout.outputs, accumulate((self.sizes[j][2] for j in layout.outputs), initial=0), strict=False)
        )
        states, steps, links = list[int](), list[int](), list[int]()
        for j, size in enumerate(self.sizes):
            at = self.given[j].data_ptr() if j < layout.inputs else out if self.is_out(j) else parts[j]
            states += [*size, columns.get(j, -1), at, gradients[j]]
        rest, left = iter(self.weights), iter(parts[layout.states :])
        for stage, shape in zip(layout.stages, self.shapes, strict=True):
            places, grads, norm = dict.fromkeys(WEIGHTS, 0), dict.fromkeys(WEIGHTS, 0), stage.norm
            for name in _names(stage):
                w = next(rest)
                places[name] = w.data_ptr()
                if learnt:
                    grads[name] = learnt
                    learnt += w.numel() * self.itemsize
            assert norm.momentum is not None
            statistics = map(_address, (norm.running_mean, norm.running_var, norm.num_batches_tracked))
            steps += [*shape, _bits(norm.momentum), _bits(norm.eps), *places.values(), *statistics, next(left)]
            steps += [grads[name] for name in WEIGHTS if name != "bias"]  # a bias has the gradient zero
        pooled = [n for pool, to in zip(layout.pools, pools, strict=True) for n in (*pool, next(left), to)]
        first = 0
        for link, factor in zip(layout.links, factors, strict=True):
            links += [link.source, link.target, first, len(link.chain), link.pool, _address(factor)]
            first += len(link.chain)
        return tuple((ctypes.c_int64 * max(1, len(row)))(*row) for row in (states, steps, pooled, links))


WEIGHTS = ("taps", "matrix", "bias", "gamma", "beta")


def _names(stage: Stage) -> list[str]:
    """The weights that a stage has, in their order."""
    there = (stage.depthwise is not None, stage.pointwise is not None, stage.bias is not None, True, True)
    return [name for name, one in zip(WEIGHTS, there, strict=True) if one]


def _bits(number: float) -> int:
    found: int = struct.unpack("q", struct.pack("d", number))[0]
    return found


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _dense(w: Tensor) -> bool:
    """True if the numbers lie as the kernels read them: of sides of 1 or one channel, both orders are one."""
    return w.is_contiguous() or (w.dim() == 4 and w.is_contiguous(memory_format=torch.channels_last))


def _lines(size: int) -> int:
    """As many numbers as begin and end at cache lines."""
    return -(-size // 16) * 16


# ------------------------------------------------------------------ the operator


class _Graph(torch.autograd.Function):
    """Layout, a factor per link, given states and weights -> what the cell gives, twice."""

    @staticmethod
    def forward(ctx: Any, layout: GraphLayout, factors: list[Tensor | None], *tensors: Tensor) -> tuple[Tensor, Tensor]:
        given = [x.permute(0, 2, 3, 1).contiguous() for x in tensors[: layout.inputs]]
        table = _Table(layout, given, tensors[layout.inputs :])
        sizes = [*table.nodes(), *table.left, *map(table.plane, table.pooled)]
        kept = shared().take(sum(map(_lines, sizes)), table.dtype)
        out = shared().lasting(table.out, table.dtype)
        moments = torch.empty(sum(2 * shape[4] for shape in table.shapes), dtype=torch.float64)
        none = [0] * layout.states
        rows = table.rows(kept, out.data_ptr(), factors, none, [0] * len(layout.pools), 0)
        invoke("graph_forward", table.dtype, table.structure(False), *rows, moments, out)
        ctx.table, ctx.kept, ctx.factors, ctx.moments = table, kept, factors, moments
        out = out.permute(0, 3, 1, 2)
        reads = not layout.concat and any(link.source in layout.outputs for link in layout.links)
        ctx.out = out.data_ptr() if reads else 0
        ctx.save_for_backward(*tensors, *([out] if reads else []))  # autograd looks whether they were changed since
        ctx.set_materialize_grads(False)
        return out, out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads_of_out: Tensor | None) -> tuple[Tensor | None, ...]:
        table: _Table = ctx.table
        layout, dtype, needs = table.layout, table.dtype, ctx.needs_input_grad[2:]
        tensors = ctx.saved_tensors[: len(needs)]
        learn = any(needs[layout.inputs :])
        douts = [None if g is None else g.permute(0, 2, 3, 1).contiguous() for g in grads_of_out]
        dgiven = [
            shared().lasting(x.shape, dtype) if need else None for x, need in zip(table.given, needs, strict=False)
        ]
        nodes = [0 if j < layout.inputs else table.plane(size) for j, size in enumerate(table.sizes)]
        pooled = list(map(table.plane, table.pooled))
        between = [shape[0] * shape[1] * shape[2] * shape[3] for shape in table.shapes]
        room = _lines(max(between))
        work = shared().scratch(sum(map(_lines, [*nodes, *pooled])) + 2 * room, dtype)
        places = table.addresses(work, [*nodes, *pooled, 2 * room])
        gradients = [*map(_address, dgiven), *places[layout.inputs : layout.states]]
        sizes = [w.numel() for w in tensors[layout.inputs :]]
        learnt = torch.zeros(sum(sizes), dtype=dtype) if learn else None
        rows = table.rows(ctx.kept, ctx.out, ctx.factors, gradients, places[layout.states : -1], _address(learnt))
        invoke(
            "graph_backward",
            dtype,
            table.structure(learn),
            *rows,
            ctx.moments,
            *douts,
            ctypes.c_void_p(places[-1]),
            room,
        )
        grads: list[Tensor | None] = [None if x is None else x.permute(0, 3, 1, 2) for x in dgiven]
        if learnt is None:
            return None, None, *grads, *[None] * len(sizes)
        views = zip(torch.split(learnt, sizes), tensors[layout.inputs :], strict=True)
        return None, None, *grads, *(part.view(w.shape) for part, w in views)
