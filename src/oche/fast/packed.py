"""How does a cell of depthwise candidates reach the compiled kernels? As a plan, packed weights, and one differentiable operation.

Notation: h_j the states, T_t the candidates' outputs before their last batch norm, w_t op weights, g and s the batch norms' scale and shift
(1 and 0 without), m and r = 1/sqrt(var + eps) over the M images and pixels. Forward, for each state in turn:

    y = P (D * relu(h))                         depthwise D, pointwise P in one pass over an image; sums of y and y^2 on the way
    T = P' (D' * relu(g r (y - m) + s))         separable convolutions: the first batch norm is folded into the load
    S_i = sum_t a_t T_t + b                     node i; a = w g r, b = sum w (s - g m r); identity: a = w

Kept for the backward: h, y, T and one tensor per pool. Backward, from the last state to the first, G_i = dS_i:

    r1 = sum G, q_t = (sum G T_t - m r1) r;     dw = sum_c (g q + s r1), dg = w q, ds = w r1
    dT = a G - a (r1 - q m r)/M - (a q r/M) T   one affine map a channel, never stored
    dz = P^T dT, dh = flipped D * dz            stride 2: zeros between the pixels of dz first
    dP = z^T dT, dD[tap] = sum dz h             only where weights learn; z = D * relu(h) anew

Images whose channels do not fill the processor's vectors lie `fold` side by side in them.

The second derivative is compiled too (`second.h`). With B(x, G) the gradients above, x all arguments, and v directions of the same shapes,
<B(x, G), v> is the derivative of <G, S(x + e v)> at e = 0. So its gradient in G is the tangent S' of the forward pass along v, and its
gradient in x the tangent of the backward pass along v with G held: one forward sweep of tangents and one backward. ReLU masks and the
places of maxima do not move; with T^ = (T - m) r and k = mean(T^ T'), the batch statistics move by m' = mean(T'), r' = -r r k, and

    (g T^ + s)' = g r (T' - m') + (g' - g r k) T^ + s'           y' = P (D * [h > 0] h' + D' * relu(h)) + P' (D * relu(h))
    q' = sum G' T^ + r sum G (T' - m') - r k q                   r1' = sum G'
    dw' = sum_c (g' q + g q' + s' r1 + s r1'),   dg' = w' q + w q',   ds' = w' r1 + w r1',   a' = w' g r + w g' r - a r k
    dT' = a' (G - r1/M - T^ q/M) + a (G' - r1'/M - (r (T' - m') - r k T^) q/M - T^ q'/M)
    dz' = P^T dT' + P'^T dT,   dh' = flipped D * dz' + flipped D' * dz,   dP' = z^T dT' + z'^T dT

y, T and the pools are let go of between the two and computed once more. A third derivative is that of the same cell in plain torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oche.base import Draw
from oche.edges import _Partial, _Sum
from oche.fast.buffers import Buffers
from oche.fast.native import Kernels
from oche.fast.portable import of_batch
from oche.ops import FactorizedReduce, Noise, PoolBN, Zero
from oche.spaces.base import Cell

LANES = 16  # channels come in multiples of this
SEP, DIL, MAXPOOL, AVGPOOL, SKIP, HALVE, EXTRA = range(7)


@dataclass(frozen=True)
class Unit:
    """One candidate of one edge: what it is, where it stands, and the modules whose parameters it reads when called."""

    kind: int
    source: int
    target: int
    edge: int
    column: int
    stride: int | None  # None: fits any
    kernel: int = 0
    depthwise: tuple[nn.Conv2d, ...] = ()
    pointwise: tuple[nn.Conv2d, ...] = ()
    norms: tuple[nn.BatchNorm2d, ...] = ()
    noise: Noise | None = None


@dataclass(frozen=True)
class Layout:
    """A cell's units and what all of them agree on."""

    units: tuple[Unit, ...]
    inputs: int
    nodes: int
    stride: int
    width: int  # O, the number of columns of the op weights
    eps: float
    affine: bool
    concat: bool
    edges: tuple[tuple[int, int, int], ...]  # number, source, target
    share: int = 1  # 1/share of the channels go through the units (`oche.fast.partial`)


def layout(cell: Cell) -> Layout | str:
    """The cell as the kernels see it, or the reason why they cannot."""
    units: list[Unit] = []
    edges: list[tuple[int, int, int]] = []
    targets, strides = 0, {True: set[int](), False: set[int]()}
    for incoming in cell._into:
        for e, source, key in incoming:
            edge = cell.edges[key]
            assert isinstance(edge, _Sum | _Partial)
            edges.append((e, source, len(cell.entries) + targets))
            if isinstance(edge, _Partial):
                strides[source < len(cell.entries)].add(edge.stride)
            for o, (name, op) in enumerate(edge.ops.items()):
                if isinstance(op, Zero):
                    continue
                unit = _unit(op)
                if unit is None:
                    return f"operation {name}"
                units.append(replace(unit, source=source, target=len(cell.entries) + targets, edge=e, column=o))
        targets += 1
    inputs = len(cell.entries)
    halving = strides[True] | {unit.stride for unit in units if unit.source < inputs} - {None}
    inner = strides[False] | {unit.stride for unit in units if unit.source >= inputs} - {None}
    norms = [norm for unit in units for norm in unit.norms]
    stride = halving.pop() if halving else 1
    if (
        halving
        or inner - {1}
        or stride not in (1, 2)
        or (stride > 1 and any(u.kind == SKIP and u.source < inputs for u in units))
    ):
        return "strides that differ within the cell"
    if len({norm.eps for norm in norms}) > 1 or len({norm.affine for norm in norms}) > 1:
        return "batch norms that differ within the cell"
    if not any(unit.depthwise for unit in units):
        return "no depthwise candidates"
    assert stride is not None
    affine = bool(norms) and norms[0].affine
    mixed = [edge for edge in cell.edges.values() if isinstance(edge, _Sum | _Partial)]
    width, share = max(len(edge.ops) for edge in mixed), mixed[0].share if isinstance(mixed[0], _Partial) else 1
    eps = norms[0].eps if norms else 1e-5
    return Layout(tuple(units), inputs, targets, stride, width, eps, affine, cell.concat, tuple(edges), share)


def _unit(op: nn.Module) -> Unit | None:
    """What kind of unit an operation is, or None."""
    norm: tuple[nn.BatchNorm2d, ...] = ()
    if isinstance(op, PoolBN):
        if not of_batch(op.norm):
            return None
        norm, op = (op.norm,), op.pool
    blank = Unit(SKIP, 0, 0, 0, 0, 1, norms=norm)
    if isinstance(op, nn.MaxPool2d) and (op.kernel_size, op.padding, op.dilation, op.ceil_mode) == (3, 1, 1, False):
        return replace(blank, kind=MAXPOOL, stride=op.stride) if isinstance(op.stride, int) else None
    if isinstance(op, nn.AvgPool2d) and (op.kernel_size, op.padding, op.count_include_pad) == (3, 1, False):
        if op.ceil_mode or op.divisor_override or not isinstance(op.stride, int):
            return None
        return replace(blank, kind=AVGPOOL, stride=op.stride)
    if isinstance(op, nn.Identity):
        return blank
    if isinstance(op, Noise):
        return replace(blank, kind=EXTRA, stride=op.stride, noise=op)
    if isinstance(op, FactorizedReduce) and of_batch(op.norm):
        return replace(blank, kind=HALVE, stride=2, pointwise=(op.even, op.odd), norms=(op.norm,))
    if isinstance(op, nn.Sequential) and len(op) in (4, 8):
        return _separable(list(op), blank)
    return None


def _separable(modules: list[nn.Module], blank: Unit) -> Unit | None:
    depthwise, pointwise, norms = [], [], []
    for start in range(0, len(modules), 4):
        relu, d, p, norm = modules[start : start + 4]
        if not (isinstance(relu, nn.ReLU) and isinstance(d, nn.Conv2d) and isinstance(p, nn.Conv2d) and of_batch(norm)):
            return None
        k, dilation = d.kernel_size[0], d.dilation[0]
        square = all(len(set(pair)) == 1 for pair in (d.kernel_size, d.stride, d.dilation))
        if not square or not d.groups == d.in_channels == d.out_channels or d.padding != (dilation * (k // 2),) * 2:
            return None
        if (
            (p.kernel_size, p.stride, p.groups, p.padding) != ((1, 1), (1, 1), 1, (0, 0))
            or d.bias is not None
            or p.bias is not None
        ):
            return None
        depthwise.append(d)
        pointwise.append(p)
        norms.append(norm)
    k, dilation, stride = depthwise[0].kernel_size[0], depthwise[0].dilation[0], depthwise[0].stride[0]
    alike = all(d.kernel_size[0] == k and d.stride[0] == 1 and d.dilation[0] == 1 for d in depthwise[1:])
    fits = (dilation == 1 and k in (3, 5, 7)) if len(depthwise) == 2 else (dilation == 2 and k in (3, 5))
    if not alike or not fits:
        return None
    return replace(
        blank,
        kind=SEP if len(depthwise) == 2 else DIL,
        stride=stride,
        kernel=k,
        depthwise=tuple(depthwise),
        pointwise=tuple(pointwise),
        norms=tuple(norms),
    )


# ------------------------------------------------------------------ what the kernels are given


class CPlan(ctypes.Structure):
    """`struct Plan` of kernels.cpp."""

    NAMES = (
        *("n", "height", "width", "lanes", "channels", "fold", "inputs", "nodes", "stride"),
        *("units", "slots", "norms", "ops", "depth", "points", "concat", "threads"),
    )
    _fields_ = [*((name, ctypes.c_int64) for name in NAMES), ("eps", ctypes.c_double)]


@dataclass(frozen=True)
class Lanes:
    """How channels lie in vectors: `fold` images of `channels` side by side, then zeros up to `lanes`."""

    channels: int
    fold: int
    lanes: int

    @staticmethod
    def of(batch: int, channels: int) -> Lanes:
        """The smallest fold that fills the vectors and divides the batch; else zeros fill them."""
        fold = LANES // gcd(LANES, channels)
        if batch % fold:
            fold = 1
        return Lanes(channels, fold, -(-fold * channels // LANES) * LANES)

    def image(self, h: Tensor) -> Tensor:
        """(B, C, H, W) -> (B / fold, H, W, lanes), contiguous."""
        batch, channels, height, width = h.shape
        packed = h.view(batch // self.fold, self.fold, channels, height, width) if self.fold > 1 else h.unsqueeze(1)
        packed = packed.permute(0, 3, 4, 1, 2).flatten(3)
        spare = self.lanes - packed.shape[-1]
        return (F.pad(packed, (0, spare)) if spare else packed).contiguous()

    def back(self, packed: Tensor, nodes: int) -> Tensor:
        """(B / fold, H, W, nodes * lanes) -> (B, nodes * C, H, W), channels last."""
        n, height, width, _ = packed.shape
        split = packed.view(n, height, width, nodes, self.lanes)[..., : self.fold * self.channels]
        split = split.reshape(n, height, width, nodes, self.fold, self.channels).permute(0, 4, 3, 5, 1, 2)
        out = split.reshape(n * self.fold, nodes * self.channels, height, width)
        return out.contiguous(memory_format=torch.channels_last)

    def vector(self, v: Tensor) -> Tensor:
        """(..., C) -> (..., lanes)."""
        if self.fold > 1:
            v = v.repeat(*[1] * (v.dim() - 1), self.fold)
        return F.pad(v, (0, self.lanes - v.shape[-1])) if self.lanes > v.shape[-1] else v

    def matrix(self, m: Tensor) -> Tensor:
        """(U, C, C) -> (U, lanes, lanes), block diagonal."""
        if self.fold > 1:
            eye = torch.eye(self.fold, dtype=m.dtype)[:, None, :, None]
            m = (eye * m[:, None, :, None, :]).flatten(3, 4).flatten(1, 2)
        spare = self.lanes - m.shape[-1]
        return F.pad(m, (0, spare, 0, spare)) if spare else m


@dataclass(frozen=True)
class Call:
    """One use of the kernels: the plan, its units as integers, and what is not differentiated."""

    plan: CPlan
    table: Tensor
    saved: int
    separable: int  # most separable units of one source
    extra: tuple[Tensor, ...]
    kernels: Kernels
    buffers: Buffers
    of: Layout
    units: tuple[Unit, ...]
    place: Lanes


def run_packed(
    cell: Layout,
    states: Sequence[Tensor],
    w: Tensor,
    zero: set[tuple[int, int]],
    draw: Draw,
    kernels: Kernels,
    buffers: Buffers,
) -> Tensor:
    """The cell's output (B, C', H', W') from its states after the entries, each (B, C, H, W); w (E, O)."""
    units = tuple(unit for unit in cell.units if (unit.edge, unit.column) not in zero)
    batch, channels = states[0].shape[:2]
    place = Lanes.of(batch, channels)
    depth, point, gamma, beta = _pack(units, cell.affine, place, states[0])
    call = _call(cell, units, place, states[0], w, draw, kernels, buffers)
    packed = _Packed.apply(call, w, depth, point, gamma, beta, *[place.image(h) for h in states])  # type: ignore[no-untyped-call]
    return place.back(packed, cell.nodes if cell.concat else 1)


def _pack(
    units: Sequence[Unit], affine: bool, place: Lanes, like: Tensor
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Taps by kernel size, (units, k k, lanes) flattened one after the other; matrices (units, lanes, lanes); scales and shifts."""
    depths, empty = [], like.new_zeros(0)
    for k in sorted({unit.kernel for unit in units if unit.depthwise}):
        taps = torch.stack([d.weight for unit in units if unit.kernel == k for d in unit.depthwise])
        depths.append(place.vector(taps.flatten(2).transpose(1, 2)).flatten())
    matrices = []
    for unit in units:
        if unit.kind == HALVE:
            even, odd = (conv.weight for conv in unit.pointwise)
            matrices += [F.pad(even, (0, 0, 0, 0, 0, 0, 0, len(odd))), F.pad(odd, (0, 0, 0, 0, 0, 0, len(even), 0))]
        else:
            matrices += [conv.weight for conv in unit.pointwise]
    point = place.matrix(torch.stack(matrices).flatten(2).transpose(1, 2)).contiguous() if matrices else empty
    norms = [norm for unit in units for norm in unit.norms]
    depth = torch.cat(depths) if depths else empty
    if not affine or not norms:
        return depth, point, None, None
    return (
        depth,
        point,
        place.vector(torch.stack([norm.weight for norm in norms])).contiguous(),
        place.vector(torch.stack([norm.bias for norm in norms])).contiguous(),
    )


def _call(
    cell: Layout,
    units: tuple[Unit, ...],
    place: Lanes,
    like: Tensor,
    w: Tensor,
    draw: Draw,
    kernels: Kernels,
    buffers: Buffers,
) -> Call:
    batch, channels, height, width = like.shape
    n = batch // place.fold
    out_height, out_width = -(-height // cell.stride), -(-width // cell.stride)
    plane = n * out_height * out_width * place.lanes
    sizes = sorted({unit.kernel for unit in units if unit.depthwise})
    at = {}
    depth = 0
    for k in sizes:
        at[k] = depth
        depth += sum(len(unit.depthwise) for unit in units if unit.kernel == k) * k * k * place.lanes
    rows: list[list[int]] = []
    extra: list[Tensor] = []
    points = norms = slots = saved = 0
    pools: dict[tuple[int, int], tuple[int, int]] = {}
    for unit in units:
        taps = [-1, -1]
        for i in range(len(unit.depthwise)):
            taps[i] = at[unit.kernel]
            at[unit.kernel] += unit.kernel**2 * place.lanes
        matrices = [points + i if i < len(unit.pointwise) else -1 for i in range(2)]
        points += len(unit.pointwise)
        norm1 = norm2 = slot1 = slot2 = y1 = term = -1
        first = 0
        if unit.kind == SEP:
            norm1, slot1, y1 = norms, slots, saved
            norms, slots, saved = norms + 1, slots + 1, saved + plane
        if unit.norms:
            norm2, norms = norms, norms + 1
        if unit.kind == EXTRA:
            assert unit.noise is not None
            shape = (height, width) if unit.source < cell.inputs else (out_height, out_width)
            noise = unit.noise(like.new_zeros(()).expand(batch, channels, *shape), draw)
            term = len(extra)
            extra.append(place.image(noise))
        elif unit.kind in (MAXPOOL, AVGPOOL):
            first = int((unit.kind, unit.source) not in pools)
            if first:
                pools[unit.kind, unit.source] = (slots, saved)
                slots, saved = slots + 1, saved + plane
            slot2, term = pools[unit.kind, unit.source]
        elif unit.kind != SKIP:
            slot2, term = slots, saved
            slots, saved = slots + 1, saved + plane
        place_of = (unit.edge * w.shape[1] + unit.column, taps[0], matrices[0], taps[1], matrices[1])
        rows.append(
            [unit.kind, unit.kernel, unit.source, unit.target, *place_of, norm1, norm2, slot1, slot2, y1, term, first]
        )
    plan = CPlan(
        *(n, height, width, place.lanes, channels, place.fold, cell.inputs, cell.nodes, cell.stride),
        *(len(units), slots, norms, w.numel(), depth, points, int(cell.concat), torch.get_num_threads(), cell.eps),
    )
    separable = max(
        (sum(u.kind == SEP and u.source == j for u in units) for j in range(cell.inputs + cell.nodes)), default=0
    )
    table = torch.tensor(rows, dtype=torch.int64) if rows else torch.zeros(0, 16, dtype=torch.int64)
    return Call(plan, table, saved, separable, tuple(extra), kernels, buffers, cell, units, place)


# ------------------------------------------------------------------ the operation


@dataclass
class Kept:
    """What the forward pass leaves for the backward passes: y and pools, the nodes, batch statistics.

    y and pools may be let go of between two passes; `_ensure` computes them again. Hooks on what autograd saves (recomputed cells) want
    to have all of it among the saved tensors instead.
    """

    values: Tensor | None
    nodes: Tensor
    moments: tuple[Tensor, Tensor]


class _Context(Protocol):
    saved_tensors: tuple[Tensor | None, ...]
    needs_input_grad: tuple[bool, ...]
    call: Call
    kept: Kept
    moments: tuple[Tensor, Tensor]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...
    def set_materialize_grads(self, value: bool) -> None: ...


class _Packed(torch.autograd.Function):
    """(call, w, depth, point, gamma or None, beta or None, *inputs (n, H, W, lanes)) -> (n, H', W', nodes * lanes), or the last node."""

    @staticmethod
    def forward(
        ctx: _Context,
        call: Call,
        w: Tensor,
        depth: Tensor,
        point: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        *inputs: Tensor,
    ) -> Tensor:
        plan, dtype = call.plan, inputs[0].dtype
        out_height, out_width = -(-plan.height // plan.stride), -(-plan.width // plan.stride)
        nodes = torch.empty(plan.n, out_height, out_width, plan.nodes * plan.lanes, dtype=dtype)
        values = call.buffers.take(call.saved, dtype)
        moments = tuple(torch.empty(plan.slots, plan.lanes, dtype=torch.float64) for _ in range(2))
        _invoke("forward", call, (w, depth, point, gamma, beta), inputs, (values, nodes, *moments))
        out = nodes if call.of.concat else nodes[..., -plan.lanes :].contiguous()
        ctx.call, ctx.moments = call, (moments[0], moments[1])
        shown: tuple[Tensor, ...] = ()
        if torch._C._autograd._top_saved_tensors_default_hooks(False) is None:
            ctx.kept = Kept(values, nodes.detach(), ctx.moments)
        else:
            shown = values, out if call.of.concat else nodes
        ctx.save_for_backward(w, depth, point, gamma, beta, *inputs, *shown)
        return out

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved, count = ctx.saved_tensors, 5 + ctx.call.plan.inputs  # asked for once: a recomputed cell gives them once
        arguments, shown = saved[:count], saved[count:]
        if shown:
            values, nodes = shown
            assert nodes is not None
            kept = Kept(values, nodes.detach(), ctx.moments)
        else:
            kept = ctx.kept
        learn, again = _asked(arguments[1]) or _asked(arguments[2]), torch.is_grad_enabled()
        grads = _Gradient.apply(ctx.call, kept, learn, again, grad.contiguous(), *arguments)  # type: ignore[no-untyped-call]
        return None, *grads


class _Gradient(torch.autograd.Function):
    """(call, kept, learn, again, grad, the arguments of _Packed after the call) -> their gradients; None for weights that do not learn.

    `again`: it will be differentiated; y and pools are then let go of until they are needed, for other passes may come between.
    """

    @staticmethod
    def forward(
        ctx: _Context, call: Call, kept: Kept, learn: bool, again: bool, grad: Tensor, *arguments: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        w, depth, point, gamma, beta, *inputs = arguments
        plan, given = call.plan, [t for t in inputs if t is not None]
        dtype, plane = grad.dtype, kept.nodes.numel() // call.plan.nodes
        work = call.buffers.take((plan.nodes + call.separable) * plane, dtype)
        grads = _Grads.empty(call, w, depth, point, given, learn)
        values = _ensure(call, kept, arguments)
        _invoke(
            "backward", call, arguments[:5], given, (values, kept.nodes, *kept.moments), (grad, *grads.fields(), work)
        )
        if again:
            kept.values = None
            ctx.call, ctx.kept = call, kept
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(work[: plan.nodes * plane].clone(), grad, *arguments)
        return grads.like(w, gamma, beta)

    @staticmethod
    def backward(ctx: _Context, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
        g, grad, *arguments = ctx.saved_tensors
        assert grad is not None
        if torch.is_grad_enabled():
            return None, None, None, None, *_differentiable_twice(ctx, grad, arguments, directions)
        call, kept, plan = ctx.call, ctx.kept, ctx.call.plan
        w, depth, point, gamma, beta, *inputs = arguments
        assert w is not None
        given = [t for t in inputs if t is not None]
        learn = _asked(depth) or _asked(point)
        moved = [
            torch.zeros_like(t) if d is None else d.contiguous() for t, d in zip(given, directions[5:], strict=True)
        ]
        moved_w = torch.zeros_like(w) if directions[0] is None else directions[0]
        weights = [None if t is None else t.contiguous() for t in directions[1:5]]
        plane = kept.nodes.numel() // plan.nodes
        work = call.buffers.take((plan.nodes + 2 * call.separable) * plane, grad.dtype)
        moved_values, moved_nodes = call.buffers.take(call.saved, grad.dtype), torch.empty_like(kept.nodes)
        grads = _Grads.empty(call, w, depth, point, given, learn)
        values = _ensure(call, kept, arguments)
        tangents = (moved, moved_w.to(torch.float64).contiguous(), *weights, moved_values, moved_nodes)
        results = (g, *tangents, *grads.fields(), work)
        _invoke("second", call, arguments[:5], given, (values, kept.nodes, *kept.moments), results)
        out = moved_nodes if call.of.concat else moved_nodes[..., -plan.lanes :].contiguous()
        return None, None, None, None, out, *grads.like(w, gamma, beta)


@dataclass(frozen=True)
class _Grads:
    """Gradients of a call's arguments, as the kernels write them."""

    inputs: list[Tensor]
    w: Tensor
    depth: Tensor | None
    point: Tensor | None
    gamma: Tensor
    beta: Tensor

    @staticmethod
    def empty(
        call: Call, w: Tensor | None, depth: Tensor | None, point: Tensor | None, inputs: list[Tensor], learn: bool
    ) -> _Grads:
        assert w is not None
        assert depth is not None
        assert point is not None
        gamma, beta = (torch.zeros(call.plan.norms, call.plan.lanes, dtype=torch.float64) for _ in range(2))
        taps, matrices = (torch.zeros_like(depth), torch.zeros_like(point)) if learn else (None, None)
        dw = torch.zeros(w.shape, dtype=torch.float64)
        return _Grads([torch.empty_like(t) for t in inputs], dw, taps, matrices, gamma, beta)

    def fields(self) -> tuple[Tensor | list[Tensor] | None, ...]:
        """In the order of the kernels' arguments."""
        return self.inputs, self.w, self.depth, self.point, self.gamma, self.beta

    def like(self, w: Tensor | None, gamma: Tensor | None, beta: Tensor | None) -> tuple[Tensor | None, ...]:
        """In the order and the types of _Packed's arguments."""
        assert w is not None
        scale, shift = (None if t is None else own.to(t.dtype) for t, own in ((gamma, self.gamma), (beta, self.beta)))
        return self.w.to(w.dtype), self.depth, self.point, scale, shift, *self.inputs


def _asked(weights: Tensor | None) -> bool:
    """Whether this backward pass wants the weights' gradient: `needs_input_grad` only says that some pass may.

    The question torch.utils.checkpoint and FSDP ask of the engine; packed weights that learn are no leaves, as it demands.
    """
    return weights is not None and weights.grad_fn is not None and torch._C._will_engine_execute_node(weights.grad_fn)


def _ensure(call: Call, kept: Kept, arguments: Sequence[Tensor | None]) -> Tensor:
    """y and pools, computed once more if they were let go of."""
    if kept.values is None:
        inputs = [t for t in arguments[5:] if t is not None]
        kept.values = call.buffers.take(call.saved, kept.nodes.dtype)
        scratch = torch.empty_like(kept.nodes), *(torch.empty_like(t) for t in kept.moments)
        _invoke("forward", call, arguments[:5], inputs, (kept.values, *scratch))
    return kept.values


def _invoke(
    way: str,
    call: Call,
    weights: Sequence[Tensor | None],
    inputs: Sequence[Tensor],
    kept: tuple[Tensor, ...],
    results: tuple[Tensor | list[Tensor] | None, ...] = (),
) -> None:
    """Calls `oche_forward_*`, `_backward_*` or `_second_*`; `weights` are w, depth, point, gamma, beta.

    Every tensor whose address is passed lives until the call returns.
    """
    w, *others = weights
    assert w is not None
    dtype = inputs[0].dtype
    w = w.detach().to(torch.float64).contiguous()
    held: list[object] = [w, call.plan]

    def address(t: Tensor | Sequence[Tensor] | None) -> ctypes.c_void_p:
        if t is None:
            return ctypes.c_void_p(None)
        if isinstance(t, Tensor):
            assert t.is_contiguous()
            return ctypes.c_void_p(t.data_ptr())
        array = (ctypes.c_void_p * max(len(t), 1))(*[one.data_ptr() for one in t])
        held.append(array)
        return ctypes.cast(array, ctypes.c_void_p)

    function = getattr(call.kernels.library, f"oche_{way}_{'f32' if dtype == torch.float32 else 'f64'}")
    function.restype = None
    arguments = (call.table, inputs, w, *others, call.extra, *kept, *results)
    function(ctypes.byref(call.plan), *[address(t) for t in arguments])
    held.clear()


# ------------------------------------------------------------------ the same in plain torch, for a third derivative


def _differentiable_twice(
    ctx: _Context, grad: Tensor, tensors: Sequence[Tensor | None], directions: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Gradients of <gradients of the plain formula, directions> in (grad, *tensors) that carry a graph.

    At aliases of the arguments, so that none is upstream of another.
    """
    aliases = [None if t is None else t.view_as(t) for t in (grad, *tensors)]
    inner = [t if t is None or t.requires_grad else t.detach().requires_grad_() for t in aliases]
    out = plain_packed(ctx.call, *inner[1:])
    along = [(t, d) for t, d in zip(inner[1:], directions, strict=True) if t is not None and d is not None]
    first = torch.autograd.grad(out, [t for t, _ in along], inner[0], create_graph=True, materialize_grads=True)
    needs = ctx.needs_input_grad[4:]
    wanted = [i for i, (t, need) in enumerate(zip(inner, needs, strict=True)) if need and t is not None]
    found = torch.autograd.grad(
        first,
        [t for i in wanted if (t := inner[i]) is not None],
        [d for _, d in along],
        create_graph=True,
        materialize_grads=True,
    )
    grads: list[Tensor | None] = [None] * len(inner)
    for i, g in zip(wanted, found, strict=True):
        grads[i] = g
    return grads


def differentiable(
    plain: Callable[..., Tensor], needs: Sequence[bool], grad: Tensor, tensors: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Gradients of plain(*tensors) that carry a graph, at aliases of the inputs, so that none is upstream of another."""
    aliases = [None if t is None else t.view_as(t) for t in tensors]
    out = plain(*aliases)
    wanted = [i for i, need in enumerate(needs) if need]
    found = torch.autograd.grad(
        out, [t for i in wanted if (t := aliases[i]) is not None], grad, create_graph=True, materialize_grads=True
    )
    grads: list[Tensor | None] = [None] * len(tensors)
    for i, g in zip(wanted, found, strict=True):
        grads[i] = g
    return grads


def plain_packed(call: Call, *tensors: Tensor | None) -> Tensor:
    """What the kernels compute, from the same packed arguments, by torch's convolutions and batch norms."""
    states = plain_states(call, *tensors, node=lambda total, _: total)
    shown = states[call.plan.inputs :] if call.of.concat else states[-1:]
    return torch.cat([t.permute(0, 2, 3, 1) for t in shown], dim=3)


def plain_states(call: Call, *tensors: Tensor | None, node: Callable[[Tensor, int], Tensor]) -> list[Tensor]:
    """The states (n, lanes, H, W); `node` makes one of the sum of its candidates and its number."""
    w, depth, point, gamma, beta, *inputs = tensors
    assert w is not None
    assert depth is not None
    assert point is not None
    plan, place = call.plan, call.place
    flat = w.flatten()
    states = [t.permute(0, 3, 1, 2) for t in inputs if t is not None]

    def normed(x: Tensor, norm: int) -> Tensor:
        images = x[:, : place.fold * place.channels].reshape(len(x), place.fold, place.channels, *x.shape[2:])
        variance, mean = torch.var_mean(images, (0, 1, 3, 4), correction=0)
        x = (x - place.vector(mean)[:, None, None]) * place.vector((variance + plan.eps).rsqrt())[:, None, None]
        if gamma is None or beta is None:
            return x
        return x * gamma[norm][:, None, None] + beta[norm][:, None, None]

    def convolved(x: Tensor, taps: int, matrix: int, k: int, stride: int, dilation: int) -> Tensor:
        kernel = depth[taps : taps + k * k * plan.lanes].view(k, k, plan.lanes).permute(2, 0, 1).unsqueeze(1)
        z = F.conv2d(x.relu(), kernel, None, stride, dilation * (k // 2), dilation, plan.lanes)
        return F.conv2d(z, point[matrix].t()[:, :, None, None])

    for target in range(plan.inputs, plan.inputs + plan.nodes):
        total = None
        for row in call.table.tolist():
            kind, k, source, into, weight, d1, p1, d2, p2, norm1, norm2, *_, term, _ = row
            if into != target:
                continue
            h, stride = states[source], plan.stride if source < plan.inputs else 1
            if kind == SEP:
                value = convolved(normed(convolved(h, d1, p1, k, stride, 1), norm1), d2, p2, k, 1, 1)
            elif kind == DIL:
                value = convolved(h, d1, p1, k, stride, 2)
            elif kind == MAXPOOL:
                value = F.max_pool2d(h, 3, stride, 1)
            elif kind == AVGPOOL:
                value = F.avg_pool2d(h, 3, stride, 1, count_include_pad=False)
            elif kind == HALVE:
                x = h.relu()
                shifted = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))[:, :, 1:, 1:]
                even, odd = point[p1].t()[:, :, None, None], point[p2].t()[:, :, None, None]
                value = F.conv2d(x, even, None, 2) + F.conv2d(shifted, odd, None, 2)
            else:
                value = h if kind == SKIP else call.extra[term].permute(0, 3, 1, 2)
            value = flat[weight] * (normed(value, norm2) if norm2 >= 0 else value)
            total = value if total is None else total + value
        if total is None:
            s = plan.stride
            total = torch.zeros_like(states[0][:, :, ::s, ::s] if target == plan.inputs else states[-1])
        states.append(node(total, target))
    return states
