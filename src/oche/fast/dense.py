"""How does a cell of dense convolutions, average pools and skips reach the compiled kernels? As a plan and one differentiable operation.

Notation: h_j the states, W_t a convolution's weight, T_t its output before batch norm, w_t op weights, g and s the batch norms' scale and
shift (1 and 0 without), m and r = 1/sqrt(var + eps) over the M images and pixels. Forward, for each state in turn:

    T_t = W_t * relu(h_j)                        3x3 by Winograd's F(2x2, 3x3), sums of T and T^2 on the way
    h_i = sum_t (a_t T_t + b_t) + sum_j w h_j + pool(sum_j w h_j)    a = w g r, b = w (s - g m r); one pool a node, for it is linear

Kept for the backward: h and T; in wide images T of a 1x1 is computed anew instead (costs what writing and reading it would). Backward,
from the last state to the first, G_i = dh_i, and P_i = pool'(G_i) once a node:

    r1 = sum G, q_t = (sum G T_t - m r1) r;      dw = sum_c (g q + s r1), dg = w q, ds = w r1; identity <G, h>, pool <P, h>
    dT = a G - a (r1 - q m r)/M - (a q r/M) T    one affine map a channel, made as the convolution loads it
    dh = (h > 0) sum_t W_t' * dT_t + sum_i w G_i + sum_i w P_i
    dW_t = relu(h)' dT_t                         only where weights learn, in Winograd's domain

Neither relu(h) nor anything normalised, weighted or pooled is stored. Twice differentiable: under `create_graph` the backward is that of
the same cell in plain torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oche.edges import _Sum
from oche.fast.buffers import Buffers
from oche.fast.native import Kernels
from oche.fast.packed import LANES, Lanes
from oche.fast.portable import of_batch
from oche.ops import Zero
from oche.spaces.base import Cell

WIDE, POINT, SKIP, POOL = range(4)
TILES = 64
"""Images are taken in groups of about so many 2x2 tiles, so that small images share the weights' way through the caches."""


@dataclass(frozen=True)
class Unit:
    """One candidate of one edge: what it is, where it stands, and its convolution and batch norm if it has them."""

    kind: int
    source: int = 0
    target: int = 0
    edge: int = 0
    column: int = 0
    conv: nn.Conv2d | None = None
    norm: nn.BatchNorm2d | None = None


@dataclass(frozen=True)
class DenseLayout:
    """A cell's units and what all of them agree on."""

    units: tuple[Unit, ...]
    inputs: int
    nodes: int
    eps: float
    affine: bool


def dense_layout(cell: Cell) -> DenseLayout | str:
    """The cell as the kernels see it, or the reason why they cannot."""
    if cell.concat:
        return "concatenated nodes"
    units: list[Unit] = []
    for target, incoming in enumerate(cell._into, len(cell.entries)):
        for e, source, key in incoming:
            edge = cell.edges[key]
            if not isinstance(edge, _Sum):
                return "partial channels"
            for o, (name, op) in enumerate(edge.ops.items()):
                if isinstance(op, Zero) and op.stride == 1:
                    continue
                unit = _unit(op)
                if unit is None:
                    return f"operation {name}"
                units.append(replace(unit, source=source, target=target, edge=e, column=o))
    norms = [unit.norm for unit in units if unit.norm is not None]
    if len({norm.eps for norm in norms}) > 1 or len({norm.affine for norm in norms}) > 1:
        return "batch norms that differ within the cell"
    if not norms:
        return "no convolutions"
    return DenseLayout(tuple(units), len(cell.entries), len(cell._into), norms[0].eps, norms[0].affine)


def _unit(op: nn.Module) -> Unit | None:
    """What kind of unit an operation is, or None."""
    if isinstance(op, nn.Identity):
        return Unit(SKIP)
    if isinstance(op, nn.AvgPool2d):
        plain = not op.ceil_mode and not op.divisor_override and not op.count_include_pad
        return Unit(POOL) if plain and (op.kernel_size, op.stride, op.padding) == (3, 1, 1) else None
    if not (isinstance(op, nn.Sequential) and len(op) == 3):
        return None
    relu, conv, norm = op
    if not (isinstance(relu, nn.ReLU) and isinstance(conv, nn.Conv2d) and of_batch(norm)):
        return None
    k = conv.kernel_size[0]
    if k not in (1, 3) or conv.bias is not None or conv.groups != 1 or conv.in_channels != conv.out_channels:
        return None
    if (conv.kernel_size, conv.stride, conv.dilation, conv.padding) != ((k, k), (1, 1), (1, 1), (k // 2, k // 2)):
        return None
    return Unit(WIDE if k == 3 else POINT, conv=conv, norm=norm)


# ------------------------------------------------------------------ what the kernels are given


class CPlan(ctypes.Structure):
    """`struct Plan` of dense.cpp."""

    NAMES = (
        *("n", "height", "width", "lanes", "channels", "fold", "inputs", "nodes"),
        *("units", "convs", "group", "threads"),
    )
    _fields_ = [*((name, ctypes.c_int64) for name in NAMES), ("eps", ctypes.c_double)]


@dataclass(frozen=True)
class Call:
    """One use of the kernels: the plan, its units as integers, the elements of the saved buffer, and the cell it is of."""

    plan: CPlan
    table: list[int]
    saved: int
    kernels: Kernels
    buffers: Buffers
    of: DenseLayout
    units: tuple[Unit, ...]
    place: Lanes

    @property
    def plane(self) -> int:
        """Elements of a state."""
        return int(self.plan.n * self.plan.height * self.plan.width * self.plan.lanes)


def run_dense(
    cell: DenseLayout,
    states: Sequence[Tensor],
    w: Tensor,
    zero: set[tuple[int, int]],
    kernels: Kernels,
    buffers: Buffers,
) -> Tensor:
    """The cell's output (B, C, H, W) in channels_last from its states after the entries, each (B, C, H, W); w (E, O)."""
    units = tuple(unit for unit in cell.units if (unit.edge, unit.column) not in zero)
    batch, channels, height, width = states[0].shape
    place = Lanes.of(batch, channels)
    n, threads = batch // place.fold, torch.get_num_threads()
    plane = n * height * width * place.lanes
    saved = (cell.nodes - 1) * plane
    table: list[int] = []
    convs = 0
    for unit in units:
        conv = term = -1
        if unit.conv is not None:
            conv, convs = convs, convs + 1
            if unit.kind == WIDE or place.lanes > 2 * LANES:
                term, saved = saved, saved + plane
        table += [unit.kind, unit.source, unit.target, unit.edge * w.shape[1] + unit.column, conv, term]
    tiles = -(-height // 2) * -(-width // 2)
    group = max(1, min(-(-TILES // tiles), n // threads))
    plan = CPlan(
        *(n, height, width, place.lanes, channels, place.fold, cell.inputs, cell.nodes),
        *(len(units), convs, group, threads, cell.eps),
    )
    call = Call(plan, table, saved, kernels, buffers, cell, units, place)
    filters = [unit.conv.weight for unit in units if unit.conv is not None]
    gamma = beta = None
    norms = [unit.norm for unit in units if unit.norm is not None]
    if cell.affine and norms:
        gamma, beta = torch.stack([norm.weight for norm in norms]), torch.stack([norm.bias for norm in norms])
    out: Tensor = _Dense.apply(call, w, gamma, beta, *states, *filters)  # type: ignore[no-untyped-call]
    return out


def _packed(h: Tensor, place: Lanes) -> Tensor:
    """(B, C, H, W) -> (B / fold, H, W, lanes), contiguous; a view where h lies so."""
    if place.fold == 1 and place.lanes == place.channels:
        return h.permute(0, 2, 3, 1).contiguous()
    return place.image(h)


def _unpacked(packed: Tensor, place: Lanes) -> Tensor:
    """The inverse of `_packed`, in channels_last."""
    if place.fold == 1 and place.lanes == place.channels:
        return packed.permute(0, 3, 1, 2)
    return place.back(packed, 1)


# ------------------------------------------------------------------ the operation


class _DenseContext(Protocol):
    """What autograd hands to both passes."""

    saved_tensors: tuple[Tensor | None, ...]
    needs_input_grad: tuple[bool, ...]
    call: Call
    moments: tuple[Tensor, Tensor]

    def save_for_backward(self, *saved: Tensor | None) -> None: ...


class _Dense(torch.autograd.Function):
    """(call, w, gamma or None, beta or None, *inputs (B, C, H, W), *filters (C, C, k, k)) -> the last node (B, C, H, W)."""

    @staticmethod
    def forward(
        ctx: _DenseContext, call: Call, w: Tensor, gamma: Tensor | None, beta: Tensor | None, *rest: Tensor
    ) -> Tensor:
        plan, dtype, inputs = call.plan, rest[0].dtype, call.of.inputs
        images = [_packed(h, call.place) for h in rest[:inputs]]
        out = torch.empty(plan.n, plan.height, plan.width, plan.lanes, dtype=dtype)
        kept = call.buffers.take(call.saved, dtype)
        moments = (torch.empty(2, max(plan.convs, 1), plan.lanes, dtype=torch.float64)).unbind()
        _invoke("forward", call, w, gamma, beta, images, rest[inputs:], (kept, out, *moments))
        ctx.call, ctx.moments = call, (moments[0], moments[1])
        ctx.save_for_backward(w, gamma, beta, *rest, kept)
        return _unpacked(out, call.place)

    @staticmethod
    def backward(ctx: _DenseContext, grad: Tensor) -> tuple[Tensor | None, ...]:
        w, gamma, beta, *given = ctx.saved_tensors
        assert w is not None
        call, plan = ctx.call, ctx.call.plan
        *rest, kept = [t for t in given if t is not None]
        if torch.is_grad_enabled():
            return (None, *_differentiable(ctx, grad, [w, gamma, beta, *rest]))
        images, filters, dtype = (
            [_packed(h, call.place) for h in rest[: plan.inputs]],
            rest[plan.inputs :],
            rest[0].dtype,
        )
        need = ctx.needs_input_grad[4:]
        learn = any(need[plan.inputs :])
        dfilters = [torch.empty_like(t) for t in filters] if learn else None
        dinputs = [torch.empty_like(t) if wanted else None for t, wanted in zip(images, need, strict=False)]
        work = call.buffers.take((2 * plan.nodes - 1) * call.plane, dtype)
        dw = torch.zeros(w.shape, dtype=torch.float64)
        dnorms = torch.empty(2, max(plan.convs, 1), plan.channels, dtype=torch.float64).unbind()
        dout = _packed(grad, call.place)
        results = (dout, dinputs, dw, None if dfilters is None else _Filters(dfilters), *dnorms, work)
        _invoke("backward", call, w, gamma, beta, images, filters, (kept, dout, *ctx.moments, *results))
        return (
            None,
            dw.to(w.dtype),
            *(None if t is None else d.to(dtype) for t, d in zip((gamma, beta), dnorms, strict=True)),
            *(None if t is None else _unpacked(t, call.place) for t in dinputs),
            *([None] * plan.convs if dfilters is None else dfilters),
        )


class _Filters(list[Tensor]):
    """Weights (C, C, k, k) that are passed as `struct Filter`s: address and strides."""


def _invoke(
    way: str,
    call: Call,
    w: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    images: Sequence[Tensor],
    filters: Sequence[Tensor],
    rest: Sequence[Tensor | Sequence[Tensor | None] | None],
) -> None:
    """Calls `oche_dense_forward_*` or `oche_dense_backward_*`. Every tensor whose address is passed lives until the call returns."""
    weights = w.detach().to(torch.float64).contiguous()
    held: list[object] = []

    def address(t: Tensor | Sequence[Tensor | None] | None) -> ctypes.c_void_p:
        if t is None:
            return ctypes.c_void_p(None)
        if isinstance(t, Tensor):
            assert t.is_contiguous()
            return ctypes.c_void_p(t.data_ptr())
        numbers = [0 if one is None else one.data_ptr() for one in t]
        if isinstance(t, _Filters):
            numbers = [number for one in t for number in (one.data_ptr(), *one.stride())]
        array = (ctypes.c_int64 * max(len(numbers), 1))(*numbers)
        held.append(array)
        return ctypes.cast(array, ctypes.c_void_p)

    function = getattr(call.kernels.library, f"oche_dense_{way}_{'f32' if images[0].dtype == torch.float32 else 'f64'}")
    function.restype = None
    table = (ctypes.c_int64 * max(len(call.table), 1))(*call.table)
    arguments = (images, weights, _Filters(filters), gamma, beta, *rest)
    function(ctypes.byref(call.plan), table, *[address(t) for t in arguments])
    held.clear()


# ------------------------------------------------------------------ the same in plain torch, for a second derivative


def _differentiable(ctx: _DenseContext, grad: Tensor, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients that carry a graph, at aliases of the inputs, so that none is upstream of another."""
    aliases = [None if t is None else t.view_as(t) for t in tensors]
    out = plain_dense(ctx.call, *aliases)
    wanted = [i for i, need in enumerate(ctx.needs_input_grad[1:]) if need]
    found = torch.autograd.grad(
        out, [t for i in wanted if (t := aliases[i]) is not None], grad, create_graph=True, materialize_grads=True
    )
    grads: list[Tensor | None] = [None] * len(tensors)
    for i, g in zip(wanted, found, strict=True):
        grads[i] = g
    return grads


def plain_dense(call: Call, *tensors: Tensor | None) -> Tensor:
    """What the kernels compute, from the same arguments, by torch's convolutions, pools and batch norms."""
    w, gamma, beta, *rest = tensors
    assert w is not None
    given = [t for t in rest if t is not None]
    states, filters = given[: call.of.inputs], iter(given[call.of.inputs :])
    number = 0
    for target in range(call.of.inputs, call.of.inputs + call.of.nodes):
        total = torch.zeros_like(states[0])
        for unit in call.units:
            if unit.target != target:
                continue
            value = states[unit.source]
            if unit.kind == POOL:
                value = F.avg_pool2d(value, 3, 1, 1, count_include_pad=False)
            elif unit.kind != SKIP:
                value = F.conv2d(value.relu(), next(filters), padding=int(unit.kind == WIDE))
                scale, shift = (None if t is None else t[number] for t in (gamma, beta))
                value, number = F.batch_norm(value, None, None, scale, shift, True, 0.0, call.of.eps), number + 1
            total = total + w[unit.edge, unit.column] * value
        states.append(total)
    return states[-1]
