"""Describes a cell of depthwise candidates to the compiled kernels: a plan, a table of units, packed weights.

Notation: h_j the states, T_t the candidates' outputs before their last batch norm, w_t op weights, g and s the batch norms' scale and shift
(1 and 0 without), m and r = 1/sqrt(var + eps) over the M images and pixels. Forward, for each state in turn:

    y = P (D * relu(h))                         depthwise D, pointwise P in one pass over an image; sums of y and y^2 on the way
    T = P' (D' * relu(g r (y - m) + s))         separable convolutions: the first batch norm is folded into the load
    S_i = sum_t a_t T_t + b                     node i; a = w g r, b = sum w (s - g m r); identity: a = w

Kept for the backward: h, y and T; pools are computed again. Under bf16 autocast all is computed in fp32, and y and T are kept as bfloat16:
who reads them later, in either pass, sees them rounded; their statistics are of the unrounded ones. Backward, from the last state to the
first, G_i = dS_i:

    r1 = sum G, q_t = (sum G T_t - m r1) r;     dw = sum_c (g q + s r1), dg = w q, ds = w r1
    dT = a G - a (r1 - q m r)/M - (a q r/M) T   one affine map a channel, never stored
    dz = P^T dT, dh = flipped D * dz            stride 2: zeros between the pixels of dz first
    dP = z^T dT, dD[tap] = sum dz h             only where weights learn; z = D * relu(h) anew

Images whose channels do not fill the processor's vectors lie `fold` side by side in them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from math import gcd
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oche.base import Draw
from oche.fast.kernels.layout import AVGPOOL, EXTRA, HALVE, MAXPOOL, SEP, SKIP, Layout, Unit

LANES = 16  # channels come in multiples of this


class Plan(NamedTuple):
    """Sizes; all but the last two are those of `struct Plan` of packed/plan.h."""

    n: int
    height: int
    width: int
    lanes: int
    channels: int
    fold: int
    inputs: int
    nodes: int
    stride: int
    units: int
    slots: int
    norms: int
    ops: int
    depth: int
    points: int
    concat: int
    threads: int
    kept: int  # elements of y and T
    saved: int  # elements of y, T and pools
    separable: int  # most separable units of one source

    def structure(self, eps: float) -> CPlan:
        """The row of integers that the kernels read."""
        return CPlan(*self[: len(CPlan.NAMES)], eps)

    @property
    def place(self) -> Lanes:
        """The layout of channels in vectors."""
        return Lanes(self.channels, self.fold, self.lanes)


class CPlan(ctypes.Structure):
    """`struct Plan` of packed/plan.h."""

    NAMES = Plan._fields[:-2]
    _fields_ = [*((name, ctypes.c_int64) for name in NAMES), ("eps", ctypes.c_double)]


@dataclass(frozen=True)
class Lanes:
    """The layout of channels in vectors: `fold` images of `channels` side by side, then zeros up to `lanes`."""

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


Given = tuple[
    Tensor, list[int], float, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, list[Tensor], list[Tensor]
]
GIVEN = (
    "Tensor table, int[] plan, float eps, Tensor w, Tensor depth, Tensor point, Tensor? gamma, Tensor? beta, "
    "Tensor[] states, Tensor[] extra"
)
"""The arguments of a cell as a schema says it."""


class Arguments(NamedTuple):
    """A cell's arguments: a row of integers per unit, sizes, op weights (E, O), packed weights, states (n, H, W, lanes), noise."""

    table: Tensor
    numbers: list[int]
    eps: float
    w: Tensor
    depth: Tensor
    point: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    states: list[Tensor]
    extra: list[Tensor]

    @property
    def plan(self) -> Plan:
        """The sizes by name."""
        return Plan(*self.numbers)

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Those that have a gradient: w, depth, point, gamma, beta, and the states."""
        return self.w, self.depth, self.point, self.gamma, self.beta, *self.states

    def with_tensors(self, tensors: Sequence[Tensor]) -> Arguments:
        """The same with others in their place."""
        w, depth, point, gamma, beta, *states = tensors
        return self._replace(w=w, depth=depth, point=point, gamma=gamma, beta=beta, states=states)

    def elements(self, kept: torch.dtype, more: int = 0) -> int:
        """Size of a buffer of y and T as `kept` and, behind them, pools and `more` elements of the states' precision."""
        plan, whole = self.plan, self.states[0].dtype
        return plan.kept + (plan.saved - plan.kept + more) * whole.itemsize // kept.itemsize

    def nodes(self, like: Tensor) -> Tensor:
        """Room for all nodes (n, H', W', nodes * lanes)."""
        plan = self.plan
        size = (-(-plan.height // plan.stride), -(-plan.width // plan.stride))
        return like.new_empty(plan.n, *size, plan.nodes * plan.lanes)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Room for means and deviations, a row a slot."""
        mean, rstd = (self.table.new_empty(self.plan.slots, self.plan.lanes, dtype=torch.float64) for _ in range(2))
        return mean, rstd

    def passed(self) -> tuple[object, ...]:
        """In the order of the kernels' arguments."""
        plan = self.plan.structure(self.eps)
        weights = (self.w.to(torch.float64).contiguous(), self.depth, self.point, self.gamma, self.beta)
        return plan, self.table, self.states, *weights, self.extra


def kept_type(like: Tensor) -> torch.dtype:
    """The type in which y and T of such states are kept: bfloat16 under autocast, where the kernels compute in single precision."""
    half = torch.is_autocast_enabled("cpu") and like.dtype == torch.float32
    return torch.bfloat16 if half else like.dtype


class Weights(NamedTuple):
    """A cell's weights, one tensor per kind, as `stack` makes them or as they lie (`packs`).

    taps (rows, C): the k k rows of a depthwise convolution one below the other, small kernels first; matrices (P, C, C), inputs times
    outputs, those of `FactorizedReduce`, even outputs beside odd ones, last; gamma and beta (norms * C,), None without.
    """

    taps: Tensor
    matrices: Tensor
    gamma: Tensor | None
    beta: Tensor | None

    def laid(self, halves: int, place: Lanes) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """The kernels' weights: taps, flat; matrices (points, lanes, lanes), the last `halves` in two; rows (norms, lanes)."""
        matrices, channels = self.matrices, place.channels
        if halves:
            even = (torch.arange(channels) < channels // 2).to(matrices)
            both = matrices[-halves:, None] * torch.stack([even, 1 - even])[:, None]
            matrices = torch.cat([matrices[:-halves], both.flatten(0, 1)])
        gamma, beta = (None if t is None else place.vector(t.view(-1, channels)).contiguous() for t in self[2:])
        return place.vector(self.taps).flatten(), place.matrix(matrices).contiguous(), gamma, beta


class Parts(NamedTuple):
    """The modules of some units in the order of `Weights`: kernels, 1x1 kernels, pairs of halves, batch norms."""

    depthwise: list[nn.Conv2d]
    pointwise: list[nn.Conv2d]
    halves: list[tuple[nn.Conv2d, ...]]
    norms: list[nn.BatchNorm2d]

    @staticmethod
    def of(units: Sequence[Unit]) -> Parts:
        """Small kernels first, else as the units come."""
        by_size = sorted((unit for unit in units if unit.depthwise), key=lambda unit: unit.kernel)
        return Parts(
            [conv for unit in by_size for conv in unit.depthwise],
            [conv for unit in units if unit.kind != HALVE for conv in unit.pointwise],
            [unit.pointwise for unit in units if unit.kind == HALVE],
            [norm for unit in units for norm in unit.norms],
        )


def stack(units: Sequence[Unit], affine: bool, channels: int, like: Tensor) -> Weights:
    """The units' weights, of `channels` channels, copied out of their modules."""
    parts = Parts.of(units)
    runs = [list(run) for _, run in groupby(parts.depthwise, key=lambda conv: conv.kernel_size)]
    taps = [torch.stack([conv.weight for conv in run]).flatten(2).transpose(1, 2).flatten(0, 1) for run in runs]
    square = [conv.weight for conv in parts.pointwise] + [
        torch.cat([conv.weight for conv in pair]) for pair in parts.halves
    ]
    matrices = torch.stack(square).flatten(2).transpose(1, 2) if square else like.new_zeros(0, channels, channels)
    norms = parts.norms if affine else []
    return Weights(
        torch.cat(taps) if taps else like.new_zeros(0, channels),
        matrices,
        torch.cat([norm.weight for norm in norms]) if norms else None,
        torch.cat([norm.bias for norm in norms]) if norms else None,
    )


def weights_of(
    cell: Layout, units: Sequence[Unit], held: Weights | None, place: Lanes, like: Tensor
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The weights as the kernels read them: of all the cell's units if they are `held`, else of these."""
    weights = held or stack(units, cell.affine, place.channels, like)
    return weights.laid(sum(unit.kind == HALVE for unit in (cell.units if held else units)), place)


def planned(
    cell: Layout, units: Sequence[Unit], whole: bool, place: Lanes, like: Tensor, w: Tensor, draw: Draw
) -> tuple[Tensor, Plan, list[Tensor]]:
    """Table, plan and noise of a cell whose states are `like` (B, C, H, W), and op weights w (E, O).

    `whole`: the weights are those of all the cell's units, not only of these.
    """
    key = (
        tuple((unit.edge, unit.column) for unit in units),
        whole,
        place,
        like.shape,
        w.shape,
        torch.get_num_threads(),
    )
    if key not in cell.plans:
        cell.plans[key] = _planned(cell, units, whole, place, like, w)
    table, numbers = cell.plans[key]
    plan = Plan(*numbers)
    extra = []
    for unit in units:
        if unit.noise is not None:
            size = (plan.height, plan.width)
            if unit.source >= cell.inputs:
                size = (-(-plan.height // plan.stride), -(-plan.width // plan.stride))
            noise = unit.noise(like.new_zeros(()).expand(*like.shape[:2], *size), draw)
            extra.append(place.image(noise))
    return table, plan, extra


def _planned(
    cell: Layout, units: Sequence[Unit], whole: bool, place: Lanes, like: Tensor, w: Tensor
) -> tuple[Tensor, Plan]:
    batch, channels, height, width = like.shape
    n = batch // place.fold
    out_height, out_width = -(-height // cell.stride), -(-width // cell.stride)
    plane = n * out_height * out_width * place.lanes
    parts = Parts.of(cell.units if whole else units)
    starts = accumulate((conv.kernel_size[0] ** 2 * place.lanes for conv in parts.depthwise), initial=0)
    taps_of = dict(zip(map(id, parts.depthwise), starts, strict=False))
    pairs = [conv for pair in parts.halves for conv in pair]
    matrix_of = {id(conv): i for i, conv in enumerate(parts.pointwise + pairs)}
    norm_of = {id(norm): i for i, norm in enumerate(parts.norms)}
    rows: list[list[int]] = []
    slots = saved = extras = 0
    pooled = plane * sum(len(unit.norms) for unit in units if unit.kind not in (MAXPOOL, AVGPOOL))
    pools: dict[tuple[int, int], tuple[int, int]] = {}
    for unit in units:
        taps, matrices, norms = (
            [*(table[id(module)] for module in modules), -1, -1]
            for table, modules in ((taps_of, unit.depthwise), (matrix_of, unit.pointwise), (norm_of, unit.norms))
        )
        slot1 = slot2 = y1 = term = -1
        first = 0
        if unit.kind == SEP:
            slot1, y1 = slots, saved
            slots, saved = slots + 1, saved + plane
        if unit.kind == EXTRA:
            term, extras = extras, extras + 1
        elif unit.kind in (MAXPOOL, AVGPOOL):
            first = int((unit.kind, unit.source) not in pools)
            if first:
                pools[unit.kind, unit.source] = (slots, pooled)
                slots, pooled = slots + 1, pooled + plane
            slot2, term = pools[unit.kind, unit.source]
        elif unit.kind != SKIP:
            slot2, term = slots, saved
            slots, saved = slots + 1, saved + plane
        norm1, norm2 = norms[:2] if unit.kind == SEP else (-1, norms[0])
        place_of = (unit.edge * w.shape[1] + unit.column, taps[0], matrices[0], taps[1], matrices[1])
        rows.append(
            [unit.kind, unit.kernel, unit.source, unit.target, *place_of, norm1, norm2, slot1, slot2, y1, term, first]
        )
    separable = max(
        (sum(u.kind == SEP and u.source == j for u in units) for j in range(cell.inputs + cell.nodes)), default=0
    )
    depth = sum(conv.kernel_size[0] ** 2 for conv in parts.depthwise) * place.lanes
    plan = Plan(
        *(n, height, width, place.lanes, channels, place.fold, cell.inputs, cell.nodes, cell.stride),
        *(len(units), slots, len(parts.norms), w.numel(), depth, len(matrix_of), int(cell.concat)),
        *(torch.get_num_threads(), saved, pooled, separable),
    )
    table = torch.tensor(rows, dtype=torch.int64) if rows else torch.zeros(0, 16, dtype=torch.int64)
    return table, plan
