"""How does a cell of depthwise candidates reach the compiled kernels? As a plan, a table of units, and packed weights.

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
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from oche.base import Draw
from oche.fast.layout import AVGPOOL, EXTRA, HALVE, MAXPOOL, SEP, SKIP, Layout, Unit

LANES = 16  # channels come in multiples of this


class Plan(NamedTuple):
    """Sizes; all but the last two are those of `struct Plan` of kernels.cpp."""

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
    saved: int  # elements of y, T and pools
    separable: int  # most separable units of one source

    def structure(self, eps: float) -> CPlan:
        """As the kernels read it."""
        return CPlan(*self[: len(CPlan.NAMES)], eps)

    @property
    def place(self) -> Lanes:
        """How channels lie in vectors."""
        return Lanes(self.channels, self.fold, self.lanes)


class CPlan(ctypes.Structure):
    """`struct Plan` of kernels.cpp."""

    NAMES = Plan._fields[:-2]
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


Given = tuple[
    Tensor, list[int], float, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, list[Tensor], list[Tensor]
]
GIVEN = (
    "Tensor table, int[] plan, float eps, Tensor w, Tensor depth, Tensor point, Tensor? gamma, Tensor? beta, "
    "Tensor[] states, Tensor[] extra"
)
"""The arguments of a cell as a schema says it."""


class Arguments(NamedTuple):
    """What a cell is computed from: a row of integers a unit, sizes, op weights (E, O), packed weights, states (n, H, W, lanes), noise."""

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


def pack(
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


def planned(
    cell: Layout, units: Sequence[Unit], place: Lanes, like: Tensor, w: Tensor, draw: Draw
) -> tuple[Tensor, Plan, list[Tensor]]:
    """Table, plan and noise of a cell whose states are `like` (B, C, H, W), and op weights w (E, O)."""
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
    separable = max(
        (sum(u.kind == SEP and u.source == j for u in units) for j in range(cell.inputs + cell.nodes)), default=0
    )
    plan = Plan(
        *(n, height, width, place.lanes, channels, place.fold, cell.inputs, cell.nodes, cell.stride),
        *(
            len(units),
            slots,
            norms,
            w.numel(),
            depth,
            points,
            int(cell.concat),
            torch.get_num_threads(),
            saved,
            separable,
        ),
    )
    table = torch.tensor(rows, dtype=torch.int64) if rows else torch.zeros(0, 16, dtype=torch.int64)
    return table, plan, extra
