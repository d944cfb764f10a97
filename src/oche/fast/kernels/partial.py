"""Runs cells of partial channels (PC-DARTS), whose edges pass most channels by, in the compiled kernels.

The first C / K channels of every state, its head, are the state of a plain cell: `kernels.packed` plans it, images side by side in the
vectors. Around it, for node i with b_e = sum_o w_eo and h through a 2x2 max pool where the edge halves:

    S_i = shuffle [ candidates' sum | sum_e b_e h_src(e) ]      one sum and one shuffle per node: they commute
    db_e = sum dS_i h_src(e), dh_src(e) += b_e dS_i             dS_i before the shuffle, without its head

Whole states stay as torch has them; only heads are copied. Kept for the backward besides the plain cell's: states, heads, pools.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from oche.base import Draw
from oche.fast.backends.buffers import shared
from oche.fast.backends.library import asked, define, derivative_of_derivative, invoke
from oche.fast.kernels.layout import Layout
from oche.fast.kernels.packed import GIVEN, Arguments, Given, Lanes, Weights, kept_type, planned, weights_of
from oche.fast.kernels.packed_op import Grads, Saved, grads_of, made, save, saved
from oche.fast.kernels.plain import plain_states

_Kept = tuple[Tensor, Tensor, Tensor, Tensor]


def run_partial(
    cell: Layout,
    states: Sequence[Tensor],
    w: Tensor,
    zero: set[tuple[int, int]],
    draw: Draw,
    held: Weights | None = None,
) -> Tensor:
    """The cell's output (B, C', H', W') from its states after the entries, each (B, C, H, W); w (E, O); `held` as in `run_packed`."""
    units = [unit for unit in cell.units if (unit.edge, unit.column) not in zero]
    head = states[0][:, : states[0].shape[1] // cell.share]
    place = Lanes.of(*head.shape[:2])
    table, plan, extra = planned(cell, units, held is not None, place, head, w, draw)
    wholes = [h.permute(0, 2, 3, 1).contiguous() for h in states]
    edges, weights = torch.tensor(cell.edges, dtype=torch.int64), weights_of(cell, units, held, place, head)
    nodes = PARTIAL(kept_type(head), edges, cell.share, table, list(plan), cell.eps, w, *weights, wholes, extra)[0]
    return (nodes if cell.concat else nodes[..., -states[0].shape[1] :]).permute(0, 3, 1, 2)


class _Partial(NamedTuple):
    """The edges' numbers, sources and targets, one over the share, and a cell whose states are whole: (B, H, W, C)."""

    edges: Tensor
    share: int
    cell: Arguments

    @staticmethod
    def of(edges: Tensor, share: int, *given: *Given) -> _Partial:
        return _Partial(edges, share, Arguments(*given))

    def table(self, learns: bool) -> Tensor:
        """`struct Share` of packed/partial.h and its edges; `learns`: whether the gradient of w is asked for."""
        plan = self.cell.plan
        head = [self.share, len(self.edges), self.cell.w.shape[1], int(learns), plan.saved, plan.separable]
        return torch.cat([torch.tensor(head), self.edges.flatten()])

    def sizes(self) -> tuple[int, int, int]:
        """Elements: heads of all inputs, head of one node, one whole state of the nodes' resolution."""
        plan = self.cell.plan
        pixels = -(-plan.height // plan.stride) * -(-plan.width // plan.stride)
        head = plan.n * pixels * plan.lanes
        whole = plan.n * plan.fold * pixels * plan.channels * self.share
        return plan.inputs * plan.n * plan.height * plan.width * plan.lanes, head, whole

    def kept(self, kept: torch.dtype) -> int:
        """Elements of what is kept: values, heads of inputs and nodes, pools of the channels that pass by."""
        plan, (heads, head, whole) = self.cell.plan, self.sizes()
        return self.cell.elements(kept, heads + plan.nodes * head + (plan.inputs * whole if plan.stride > 1 else 0))

    def nodes(self) -> Tensor:
        """Room for all nodes (B, H', W', nodes * C)."""
        plan, like = self.cell.plan, self.cell.states[0]
        batch, height, width, channels = like.shape
        return like.new_empty(batch, -(-height // plan.stride), -(-width // plan.stride), plan.nodes * channels)


def _forward(kept: torch.dtype, edges: Tensor, share: int, *given: *Given) -> _Kept:
    of = _Partial.of(edges, share, *given)
    nodes, (mean, rstd) = of.nodes(), of.cell.moments()
    values = shared().take(of.kept(kept), kept)
    invoke("partial_forward", kept, *of.cell.passed(), values, nodes, mean, rstd, of.table(False))
    return nodes, values, mean, rstd


def _forward_fake(kept: torch.dtype, edges: Tensor, share: int, *given: *Given) -> _Kept:
    of = _Partial.of(edges, share, *given)
    return of.nodes(), of.cell.states[0].new_empty(of.kept(kept), dtype=kept), *of.cell.moments()


class _Context(Saved):
    share: int


def _setup(ctx: _Context, inputs: tuple[object, ...], output: _Kept) -> None:
    _, edges, ctx.share, *given = inputs  # type: ignore[assignment]
    ctx.mark_non_differentiable(*output[1:])
    save(ctx, Arguments(*given), edges, *output)  # type: ignore[arg-type]


def _backward(ctx: _Context, grad: Tensor | None, *_: None) -> tuple[object, ...]:
    cell, (edges, nodes, *kept) = saved(ctx)
    if grad is None:
        return None, None, None, *grads_of(cell, [None] * (5 + len(cell.states)))
    learn = asked(cell.depth) or asked(cell.point)
    grad = grad if cell.plan.concat else grad[..., -cell.states[0].shape[-1] :]
    grads = GRADIENT(grad.contiguous(), learn, ctx.needs[6], nodes.detach(), *kept, edges, ctx.share, *cell)
    return None, None, None, *grads_of(cell, made(cell, learn, grads))


def _gradient(
    grad: Tensor,
    learn: bool,
    learn_w: bool,
    nodes: Tensor,
    kept: Tensor,
    mean: Tensor,
    rstd: Tensor,
    edges: Tensor,
    share: int,
    *given: *Given,
) -> list[Tensor]:
    """Gradients of w, depth, point, gamma, beta and the states, empty where there is none."""
    of = _Partial.of(edges, share, *given)
    plan, (heads, head, whole) = of.cell.plan, of.sizes()
    work = shared().scratch((plan.nodes + plan.separable) * head + heads + plan.nodes * whole, grad.dtype)
    found = Grads.empty(of.cell, learn)
    results = (of.table(learn_w), grad, *found, work)
    invoke("partial_backward", kept.dtype, *of.cell.passed(), kept, nodes, mean, rstd, *results)
    return found.like(of.cell)


def _gradient_fake(
    grad: Tensor,
    learn: bool,
    learn_w: bool,
    nodes: Tensor,
    kept: Tensor,
    mean: Tensor,
    rstd: Tensor,
    edges: Tensor,
    share: int,
    *given: *Given,
) -> list[Tensor]:
    cell = Arguments(*given)
    return Grads.empty(cell, learn).like(cell)


def _gradient_setup(ctx: _Context, inputs: tuple[object, ...], output: list[Tensor]) -> None:
    grad, _, _, _, _, _, _, edges, ctx.share, *given = inputs  # type: ignore[assignment]
    save(ctx, Arguments(*given), grad, edges)  # type: ignore[arg-type]


def _gradient_backward(ctx: _Context, directions: list[Tensor | None]) -> tuple[object, ...]:
    cell, (grad, edges) = saved(ctx)
    needs = ctx.needs

    def plain(*tensors: Tensor) -> Tensor:
        return _plain(edges, ctx.share, cell.with_tensors(tensors))

    flat = (needs[0], *needs[12:17], *needs[17])  # type: ignore[misc]
    out, *grads = derivative_of_derivative(plain, cell.tensors(), grad, directions, flat)
    return out, *[None] * 8, *grads_of(cell, grads)


def _plain(edges: Tensor, share: int, cell: Arguments) -> Tensor:
    """The same from the same arguments in plain torch, for a second derivative."""
    plan, place, w = cell.plan, cell.plan.place, cell.w
    wholes = [t.permute(0, 3, 1, 2) for t in cell.states]
    heads = [place.image(h[:, : plan.channels]) for h in wholes]

    def node(total: Tensor, target: int) -> Tensor:
        mixed = place.back(total.permute(0, 2, 3, 1), 1)
        passed = torch.zeros_like(mixed).repeat(1, share - 1, 1, 1)
        for number, source, into in edges.tolist():
            if into == target:
                rest = wholes[source][:, plan.channels :]
                if plan.stride > 1 and source < plan.inputs:
                    rest = F.max_pool2d(rest, 2, 2, ceil_mode=True)
                passed = passed + w[number].sum() * rest
        groups = torch.cat([mixed, passed], dim=1)
        wholes.append(groups.view(len(groups), share, plan.channels, *groups.shape[2:]).transpose(1, 2).flatten(1, 2))
        return place.image(wholes[-1][:, : plan.channels]).permute(0, 3, 1, 2)

    plain_states(cell._replace(states=heads), node)
    shown = wholes[plan.inputs :] if plan.concat else wholes[-1:]
    return torch.cat(shown, dim=1).permute(0, 2, 3, 1)


_EDGES = "Tensor edges, int share"

PARTIAL = define(
    f"partial(ScalarType kept, {_EDGES}, {GIVEN}) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
    setup=_setup,
    backward=_backward,
)
"""Nodes (B, H', W', nodes * C), what is kept, means and deviations of a slot."""

GRADIENT = define(
    "partial_gradient(Tensor grad, bool learn, bool learn_w, Tensor nodes, Tensor kept, Tensor mean, Tensor rstd, "
    f"{_EDGES}, {GIVEN}) -> Tensor[]",
    _gradient,
    _gradient_fake,
    setup=_gradient_setup,
    backward=_gradient_backward,
)
