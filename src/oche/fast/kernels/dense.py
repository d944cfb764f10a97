"""Runs cells of dense convolutions, average pools and skips in the compiled kernels: a plan and two operators.

Notation: h_j the states, W_t a convolution's weight, T_t its output before batch norm, w_t op weights, g and s the batch norms' scale and
shift (1 and 0 without), m and r = 1/sqrt(var + eps) over the M images and pixels. Forward, for each state in turn:

    T_t = W_t * relu(h_j)                        3x3 by Winograd's F(2x2, 3x3), sums of T and T^2 on the way
    h_i = sum_t (a_t T_t + b_t) + sum_j w h_j + pool(sum_j w h_j)    a = w g r, b = w (s - g m r); one pool per node, for it is linear

Kept for the backward: h and T; in wide images T of a 1x1 is computed anew instead (costs what writing and reading it would). Backward,
from the last state to the first, G_i = dh_i, and P_i = pool'(G_i) once per node:

    r1 = sum G, q_t = (sum G T_t - m r1) r;      dw = sum_c (g q + s r1), dg = w q, ds = w r1; identity <G, h>, pool <P, h>
    dT = a G - a (r1 - q m r)/M - (a q r/M) T    one affine map a channel, made as the convolution loads it
    dh = (h > 0) sum_t W_t' * dT_t + sum_i w G_i + sum_i w P_i
    dW_t = relu(h)' dT_t                         only where weights learn, in Winograd's domain

Neither relu(h) nor anything normalised, weighted or pooled is stored. The second derivative is that of the same cell in plain torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oche.fast.backends.buffers import shared
from oche.fast.backends.library import Context, define, derivative_of_derivative, invoke
from oche.fast.kernels.packed import LANES, Lanes
from oche.fast.portable.mixed import of_batch
from oche.spaces.edges import _Sum
from oche.spaces.networks import Cell
from oche.spaces.ops import Zero

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
                unit = unit_of(op)
                if unit is None:
                    return f"operation {name}"
                units.append(replace(unit, source=source, target=target, edge=e, column=o))
    norms = [unit.norm for unit in units if unit.norm is not None]
    if len({norm.eps for norm in norms}) > 1 or len({norm.affine for norm in norms}) > 1:
        return "batch norms that differ within the cell"
    if not norms:
        return "no convolutions"
    return DenseLayout(tuple(units), len(cell.entries), len(cell._into), norms[0].eps, norms[0].affine)


def unit_of(op: nn.Module, known: Callable[[nn.Module], bool] = of_batch) -> Unit | None:
    """Returns the kind of unit that an operation is, or None; `known` says whether a batch norm will do."""
    if isinstance(op, nn.Identity):
        return Unit(SKIP)
    if isinstance(op, nn.AvgPool2d):
        plain = not op.ceil_mode and not op.divisor_override and not op.count_include_pad
        return Unit(POOL) if plain and (op.kernel_size, op.stride, op.padding) == (3, 1, 1) else None
    if not (isinstance(op, nn.Sequential) and len(op) == 3):
        return None
    relu, conv, norm = op
    if not (isinstance(relu, nn.ReLU) and isinstance(conv, nn.Conv2d) and known(norm)):
        return None
    k = conv.kernel_size[0]
    if k not in (1, 3) or conv.bias is not None or conv.groups != 1 or conv.in_channels != conv.out_channels:
        return None
    if (conv.kernel_size, conv.stride, conv.dilation, conv.padding) != ((k, k), (1, 1), (1, 1), (k // 2, k // 2)):
        return None
    return Unit(WIDE if k == 3 else POINT, conv=conv, norm=norm)  # type: ignore[arg-type]


# ------------------------------------------------------------------ what the kernels are given


class DensePlan(NamedTuple):
    """Sizes; all but the last are those of `struct Plan` of dense/cell.h."""

    n: int
    height: int
    width: int
    lanes: int
    channels: int
    fold: int
    inputs: int
    nodes: int
    units: int
    convs: int
    group: int
    threads: int
    saved: int  # elements of what is kept

    def structure(self, eps: float) -> CPlan:
        """The row of integers that the kernels read."""
        return CPlan(*self[: len(CPlan.NAMES)], eps)

    @property
    def place(self) -> Lanes:
        """The layout of channels in vectors."""
        return Lanes(self.channels, self.fold, self.lanes)


class CPlan(ctypes.Structure):
    """`struct Plan` of dense/cell.h."""

    NAMES = DensePlan._fields[:-1]
    _fields_ = [*((name, ctypes.c_int64) for name in NAMES), ("eps", ctypes.c_double)]


_Kept = tuple[Tensor, Tensor, Tensor, Tensor]
_Given = tuple[Tensor, list[int], float, Tensor, Tensor | None, Tensor | None, list[Tensor], list[Tensor]]
_GIVEN = "Tensor table, int[] plan, float eps, Tensor w, Tensor? gamma, Tensor? beta, Tensor[] states, Tensor[] filters"


class _Dense(NamedTuple):
    """A row of integers a unit, sizes, op weights (E, O), scales and shifts (convs, C), states (B, C, H, W), filters (C, C, k, k)."""

    table: Tensor
    numbers: list[int]
    eps: float
    w: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    states: list[Tensor]
    filters: list[Tensor]

    @property
    def plan(self) -> DensePlan:
        """The sizes by name."""
        return DensePlan(*self.numbers)

    def passed(self) -> tuple[object, ...]:
        """In the order of the kernels' arguments."""
        images = [_packed(h, self.plan.place) for h in self.states]
        weights = (self.w.to(torch.float64).contiguous(), _filters(self.filters), self.gamma, self.beta)
        return self.plan.structure(self.eps), self.table, images, *weights

    def room(self, *size: int) -> Tensor:
        """Lanes for the states' precision."""
        return self.states[0].new_empty(size)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Room for means and deviations, a row a convolution."""
        size = (max(self.plan.convs, 1), self.plan.lanes)
        return self.w.new_empty(size, dtype=torch.float64), self.w.new_empty(size, dtype=torch.float64)


def run_dense(cell: DenseLayout, states: Sequence[Tensor], w: Tensor, zero: set[tuple[int, int]]) -> Tensor:
    """The cell's output (B, C, H, W) in channels_last from its states after the entries, each (B, C, H, W); w (E, O)."""
    return run_units(cell, states, w, zero)[0]


def run_units(cell: DenseLayout, states: Sequence[Tensor], w: Tensor, zero: set[tuple[int, int]]) -> _Kept:
    """The same, what is kept, and by convolution the means and 1/deviations (convs, lanes) of its batch norm."""
    units = tuple(unit for unit in cell.units if (unit.edge, unit.column) not in zero)
    batch, channels, height, width = states[0].shape
    place = Lanes.of(batch, channels)
    n, threads = batch // place.fold, torch.get_num_threads()
    plane = n * height * width * place.lanes
    saved = (cell.nodes - 1) * plane
    rows: list[list[int]] = []
    convs = 0
    for unit in units:
        conv = term = -1
        if unit.conv is not None:
            conv, convs = convs, convs + 1
            if unit.kind == WIDE or place.lanes > 2 * LANES:
                term, saved = saved, saved + plane
        rows.append([unit.kind, unit.source, unit.target, unit.edge * w.shape[1] + unit.column, conv, term])
    tiles = -(-height // 2) * -(-width // 2)
    group = max(1, min(-(-TILES // tiles), n // threads))
    plan = DensePlan(
        *(n, height, width, place.lanes, channels, place.fold, cell.inputs, cell.nodes),
        *(len(units), convs, group, threads, saved),
    )
    filters = [unit.conv.weight for unit in units if unit.conv is not None]
    gamma = beta = None
    norms = [unit.norm for unit in units if unit.norm is not None]
    if cell.affine and norms:
        gamma, beta = torch.stack([norm.weight for norm in norms]), torch.stack([norm.bias for norm in norms])
    table = torch.tensor(rows, dtype=torch.int64) if rows else torch.zeros(0, 6, dtype=torch.int64)
    return DENSE(table, list(plan), cell.eps, w, gamma, beta, list(states), filters)


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


def _filters(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_int64]:
    """`struct Filter`s: address and strides of weights (C, C, k, k)."""
    numbers = [number for t in tensors for number in (t.data_ptr(), *t.stride())]
    return (ctypes.c_int64 * max(len(numbers), 1))(*numbers)


# ------------------------------------------------------------------ the operators


def _forward(*given: *_Given) -> _Kept:
    """The last node (B, C, H, W), what is kept, means and deviations."""
    cell = _Dense(*given)
    plan = cell.plan
    size, dtype = (plan.n, plan.height, plan.width, plan.lanes), cell.states[0].dtype
    out, kept = shared().lasting(size, dtype), shared().take(plan.saved, dtype)
    mean, rstd = cell.moments()
    invoke("dense_forward", out.dtype, *cell.passed(), kept, out, mean, rstd)
    return _unpacked(out, plan.place), kept, mean, rstd


def _forward_fake(*given: *_Given) -> _Kept:
    cell = _Dense(*given)
    plan = cell.plan
    out = _unpacked(cell.room(plan.n, plan.height, plan.width, plan.lanes), plan.place)
    return out, cell.room(plan.saved), *cell.moments()


class _Context(Context):
    numbers: list[int]
    eps: float
    more: int


def _save(ctx: _Context, cell: _Dense, *more: Tensor) -> None:
    ctx.numbers, ctx.eps, ctx.more = cell.numbers, cell.eps, len(more)
    ctx.save_for_backward(*more, cell.table, cell.w, cell.gamma, cell.beta, *cell.states, *cell.filters)


def _saved(ctx: _Context) -> tuple[_Dense, list[Tensor]]:
    saved, inputs = ctx.saved_tensors, DensePlan(*ctx.numbers).inputs
    table, w, gamma, beta, *rest = saved[ctx.more :]
    assert table is not None
    assert w is not None
    given = [t for t in rest if t is not None]
    cell = _Dense(table, ctx.numbers, ctx.eps, w, gamma, beta, given[:inputs], given[inputs:])
    return cell, [t for t in saved[: ctx.more] if t is not None]


def _setup(ctx: _Context, inputs: _Given, output: _Kept) -> None:
    ctx.mark_non_differentiable(*output[1:])
    _save(ctx, _Dense(*inputs), *output[1:])


def _backward(ctx: _Context, grad: Tensor | None, *_: None) -> tuple[object, ...]:
    cell, kept = _saved(ctx)
    states, filters = ctx.needs[6:]
    wanted, learn = list(states), any(filters)  # type: ignore[call-overload, arg-type]
    if grad is None:
        return (None,) * 6 + ([None] * len(cell.states), [None] * len(cell.filters))
    grads = GRADIENT(grad, learn, wanted, *kept, *cell)
    there = (True, cell.gamma is not None, cell.beta is not None, *wanted, *[learn] * len(cell.filters))
    return _nested(cell, [g if one else None for g, one in zip(grads, there, strict=True)])


def _nested(cell: _Dense, grads: Sequence[Tensor | None]) -> tuple[object, ...]:
    """Gradients of w, gamma, beta, states and filters in the order and the nesting of the operator's arguments."""
    count = 3 + len(cell.states)
    return None, None, None, *grads[:3], list(grads[3:count]), list(grads[count:])


def _gradient(
    grad: Tensor, learn: bool, wanted: list[bool], kept: Tensor, mean: Tensor, rstd: Tensor, *given: *_Given
) -> list[Tensor]:
    """Gradients of w, gamma, beta, the states and the filters, empty where there is none."""
    cell = _Dense(*given)
    plan, dtype = cell.plan, grad.dtype
    plane = plan.n * plan.height * plan.width * plan.lanes
    dfilters = [torch.empty_like(t) for t in cell.filters] if learn else []
    size = (plan.n, plan.height, plan.width, plan.lanes)
    dstates = [shared().lasting(size, dtype) if one else None for one in wanted]
    work = shared().scratch((2 * plan.nodes - 1) * plane, dtype)
    dw = cell.w.new_zeros(cell.w.shape, dtype=torch.float64)
    dnorms = [torch.empty(max(plan.convs, 1), plan.channels, dtype=torch.float64) for _ in range(2)]
    dout = _packed(grad, plan.place)
    results = (dout, dstates, dw, _filters(dfilters) if learn else None, *dnorms, work)
    invoke("dense_backward", dtype, *cell.passed(), kept, dout, mean, rstd, *results)
    return [
        dw.to(cell.w.dtype),
        *(dw.new_empty(0) if t is None else d.to(dtype) for t, d in zip((cell.gamma, cell.beta), dnorms, strict=True)),
        *(dw.new_empty(0) if t is None else _unpacked(t, plan.place) for t in dstates),
        *(dfilters if learn else [dw.new_empty(0) for _ in cell.filters]),
    ]


def _gradient_fake(
    grad: Tensor, learn: bool, wanted: list[bool], kept: Tensor, mean: Tensor, rstd: Tensor, *given: *_Given
) -> list[Tensor]:
    cell = _Dense(*given)
    plan = cell.plan
    image = _unpacked(cell.room(plan.n, plan.height, plan.width, plan.lanes), plan.place)
    there = ((cell.w, True), (cell.gamma, True), (cell.beta, True), *((image, one) for one in wanted))
    filters = ((t, learn) for t in cell.filters)
    return [
        torch.empty_like(t) if t is not None and one else cell.w.new_empty(0, dtype=torch.float64)
        for t, one in (*there, *filters)
    ]


def _gradient_setup(ctx: _Context, inputs: tuple[object, ...], output: list[Tensor]) -> None:
    grad, _, _, _, _, _, *given = inputs
    _save(ctx, _Dense(*given), grad)  # type: ignore[arg-type]


def _gradient_backward(ctx: _Context, directions: list[Tensor | None]) -> tuple[object, ...]:
    cell, (grad,) = _saved(ctx)
    needs = ctx.needs

    def plain(w: Tensor, gamma: Tensor | None, beta: Tensor | None, *rest: Tensor) -> Tensor:
        states, filters = list(rest[: len(cell.states)]), list(rest[len(cell.states) :])
        return plain_dense(cell._replace(w=w, gamma=gamma, beta=beta, states=states, filters=filters))

    tensors = (cell.w, cell.gamma, cell.beta, *cell.states, *cell.filters)
    flat = (needs[0], *needs[9:12], *needs[12], *needs[13])  # type: ignore[misc]
    out, *grads = derivative_of_derivative(plain, tensors, grad, directions, flat)
    return out, *[None] * 5, *_nested(cell, grads)


DENSE = define(
    f"dense({_GIVEN}) -> (Tensor, Tensor, Tensor, Tensor)", _forward, _forward_fake, setup=_setup, backward=_backward
)

GRADIENT = define(
    f"dense_gradient(Tensor grad, bool learn, bool[] wanted, Tensor kept, Tensor mean, Tensor rstd, {_GIVEN}) -> Tensor[]",
    _gradient,
    _gradient_fake,
    setup=_gradient_setup,
    backward=_gradient_backward,
)


# ------------------------------------------------------------------ the same in plain torch, for a second derivative


def plain_dense(cell: _Dense) -> Tensor:
    """Computes what the kernels compute, from the same arguments, by torch's convolutions, pools and batch norms."""
    states, flat = list(cell.states), cell.w.flatten()
    for into in range(cell.plan.inputs, cell.plan.inputs + cell.plan.nodes):
        total = torch.zeros_like(states[0])
        for kind, source, target, weight, conv, _ in cell.table.tolist():
            if target != into:
                continue
            value = states[source]
            if kind == POOL:
                value = F.avg_pool2d(value, 3, 1, 1, count_include_pad=False)
            elif kind != SKIP:
                value = F.conv2d(value.relu(), cell.filters[conv], padding=int(kind == WIDE))
                scale, shift = (None if t is None else t[conv] for t in (cell.gamma, cell.beta))
                value = F.batch_norm(value, None, None, scale, shift, True, 0.0, cell.eps)
            total = total + flat[weight] * value
        states.append(total)
    return states[-1]
