"""How does a cell whose edges pass most channels by (PC-DARTS) reach the compiled kernels?

The first C / K channels of every state, its head, are the state of a plain cell: `oche.fast.packed` plans it, images side by side in the
vectors. Around it, for node i with b_e = sum_o w_eo and h through a 2x2 max pool where the edge halves:

    S_i = shuffle [ candidates' sum | sum_e b_e h_src(e) ]      one sum and one shuffle a node: they commute
    db_e = sum dS_i h_src(e), dh_src(e) += b_e dS_i             dS_i before the shuffle, without its head

Whole states stay as torch has them; only heads are copied. Kept for the backward besides the plain cell's: states, heads, pools.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from oche.base import Draw
from oche.fast.buffers import Buffers
from oche.fast.native import Kernels
from oche.fast.packed import Call, Lanes, Layout, _call, _invoke, _pack, differentiable, plain_states


@dataclass(frozen=True)
class Partial:
    """A call of the kernels, and what they are told of the channels that pass by."""

    call: Call
    share: int
    columns: int  # O

    def table(self, learns: bool) -> Tensor:
        """`struct Share` of partial.h and its edges; `learns`: whether the gradient of w is asked for."""
        of = self.call.of
        head = [self.share, len(of.edges), self.columns, int(learns), self.call.saved, self.call.separable]
        return torch.tensor([*head, *(number for edge in of.edges for number in edge)], dtype=torch.int64)

    def sizes(self) -> tuple[int, int, int]:
        """Elements: heads of all inputs, head of one node, one whole state of the nodes' resolution."""
        plan = self.call.plan
        pixels = -(-plan.height // plan.stride) * -(-plan.width // plan.stride)
        head = plan.n * pixels * plan.lanes
        whole = plan.n * plan.fold * pixels * plan.channels * self.share
        return plan.inputs * plan.n * plan.height * plan.width * plan.lanes, head, whole


def run_partial(
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
    head = states[0][:, : states[0].shape[1] // cell.share]
    place = Lanes.of(*head.shape[:2])
    weights = _pack(units, cell.affine, place, head)
    call = _call(cell, units, place, head, w, draw, kernels, buffers)
    wholes = [h.permute(0, 2, 3, 1).contiguous() for h in states]
    out: Tensor = _Mixed.apply(Partial(call, cell.share, w.shape[1]), w, *weights, *wholes)  # type: ignore[no-untyped-call]
    return out.permute(0, 3, 1, 2)


class _Context(Protocol):
    saved_tensors: tuple[Tensor | None, ...]
    needs_input_grad: tuple[bool, ...]
    partial: Partial
    moments: tuple[Tensor, Tensor]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class _Mixed(torch.autograd.Function):
    """(partial, w, depth, point, gamma or None, beta or None, *states (B, H, W, C)) -> (B, H', W', nodes * C), or the last node."""

    @staticmethod
    def forward(
        ctx: _Context,
        partial: Partial,
        w: Tensor,
        depth: Tensor,
        point: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        *states: Tensor,
    ) -> Tensor:
        call, plan = partial.call, partial.call.plan
        batch, height, width, channels = states[0].shape
        out_height, out_width = -(-height // plan.stride), -(-width // plan.stride)
        nodes = states[0].new_empty(batch, out_height, out_width, plan.nodes * channels)
        heads, head, whole = partial.sizes()
        pools = plan.inputs * whole if plan.stride > 1 else 0
        kept = call.buffers.take(call.saved + heads + plan.nodes * head + pools, nodes.dtype)
        moments = tuple(torch.empty(plan.slots, plan.lanes, dtype=torch.float64) for _ in range(2))
        results = (partial.table(False),)
        _invoke("partial_forward", call, (w, depth, point, gamma, beta), states, (kept, nodes, *moments), results)
        ctx.partial, ctx.moments = partial, (moments[0], moments[1])
        out = nodes if call.of.concat else nodes[..., -channels:].contiguous()
        ctx.save_for_backward(w, depth, point, gamma, beta, *states, kept, out if call.of.concat else nodes)
        return out

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        w, depth, point, gamma, beta, *given, kept, nodes = ctx.saved_tensors
        assert w is not None
        assert depth is not None
        assert point is not None
        assert kept is not None
        assert nodes is not None
        if torch.is_grad_enabled():
            tensors, plain = [w, depth, point, gamma, beta, *given], functools.partial(_plain, ctx.partial)
            return (None, *differentiable(plain, ctx.needs_input_grad[1:], grad, tensors))
        states = [t for t in given if t is not None]
        partial, call, plan, dtype = ctx.partial, ctx.partial.call, ctx.partial.call.plan, grad.dtype
        heads, head, whole = partial.sizes()
        work = call.buffers.take((plan.nodes + call.separable) * head + heads + plan.nodes * whole, dtype)
        learn = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        dstates = [torch.empty_like(t) for t in states]
        dw = torch.zeros(w.shape, dtype=torch.float64)
        ddepth, dpoint = (torch.zeros_like(depth), torch.zeros_like(point)) if learn else (None, None)
        dgamma, dbeta = (torch.zeros(plan.norms, plan.lanes, dtype=torch.float64) for _ in range(2))
        table = partial.table(ctx.needs_input_grad[1])
        results = (table, grad.contiguous(), dstates, dw, ddepth, dpoint, dgamma, dbeta, work)
        _invoke("partial_backward", call, (w, depth, point, gamma, beta), states, (kept, nodes, *ctx.moments), results)
        return (
            None,
            dw.to(w.dtype),
            ddepth,
            dpoint,
            None if gamma is None else dgamma.to(dtype),
            None if beta is None else dbeta.to(dtype),
            *dstates,
        )


def _plain(partial: Partial, *tensors: Tensor | None) -> Tensor:
    """The same from the same arguments in plain torch, for a second derivative."""
    call, plan, place, share = partial.call, partial.call.plan, partial.call.place, partial.share
    w, depth, point, gamma, beta, *given = tensors
    assert w is not None
    wholes = [t.permute(0, 3, 1, 2) for t in given if t is not None]
    heads = [place.image(h[:, : plan.channels]) for h in wholes]

    def node(total: Tensor, target: int) -> Tensor:
        mixed = place.back(total.permute(0, 2, 3, 1), 1)
        passed = torch.zeros_like(mixed).repeat(1, share - 1, 1, 1)
        for number, source, into in call.of.edges:
            if into == target:
                rest = wholes[source][:, plan.channels :]
                if plan.stride > 1 and source < plan.inputs:
                    rest = F.max_pool2d(rest, 2, 2, ceil_mode=True)
                passed = passed + w[number].sum() * rest
        groups = torch.cat([mixed, passed], dim=1)
        wholes.append(groups.view(len(groups), share, plan.channels, *groups.shape[2:]).transpose(1, 2).flatten(1, 2))
        return place.image(wholes[-1][:, : plan.channels]).permute(0, 3, 1, 2)

    plain_states(call, w, depth, point, gamma, beta, *heads, node=node)
    shown = wholes[plan.inputs :] if call.of.concat else wholes[-1:]
    return torch.cat(shown, dim=1).permute(0, 2, 3, 1)
