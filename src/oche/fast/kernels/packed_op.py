"""A cell of depthwise candidates as operators of `torch.library`: `packed`, its gradient, its second derivative.

Notation: that of `packed`. With B(x, G) the gradients there, x all arguments, and v directions of the same shapes, <B(x, G), v> is the
derivative of <G, S(x + e v)> at e = 0. So its gradient in G is the tangent S' of the forward pass along v, and its gradient in x the
tangent of the backward pass along v with G held: one forward sweep of tangents and one backward (`second.cpp`). ReLU masks and the places
of maxima do not move; with T^ = (T - m) r and k = mean(T^ T'), the batch statistics move by m' = mean(T'), r' = -r r k, and

    (g T^ + s)' = g r (T' - m') + (g' - g r k) T^ + s'           y' = P (D * [h > 0] h' + D' * relu(h)) + P' (D * relu(h))
    q' = sum G' T^ + r sum G (T' - m') - r k q                   r1' = sum G'
    dw' = sum_c (g' q + g q' + s' r1 + s r1'),   dg' = w' q + w q',   ds' = w' r1 + w r1',   a' = w' g r + w g' r - a r k
    dT' = a' (G - r1/M - T^ q/M) + a (G' - r1'/M - (r (T' - m') - r k T^) q/M - T^ q'/M)
    dz' = P^T dT' + P'^T dT,   dh' = flipped D * dz' + flipped D' * dz,   dP' = z^T dT' + z'^T dT

y and T, `values` below, are held between derivatives while their memory is not needed (`buffers`), under the tensor `mean` that the passes
share, and else computed once more: other passes may come between, and the nodes are a twentieth of them. The second derivative is that of
unrounded values, in whichever type they were kept. A third derivative is that of the same cell in plain torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from oche.base import Draw
from oche.fast.backends.buffers import shared
from oche.fast.backends.library import Context, asked, define, derivative_of_derivative, invoke
from oche.fast.kernels.layout import Layout
from oche.fast.kernels.packed import GIVEN, Arguments, Given, Lanes, Plan, Weights, kept_type, planned, weights_of
from oche.fast.kernels.plain import plain_packed

Kept = tuple[Tensor, Tensor, Tensor, Tensor]
KEPT = "Tensor values, Tensor nodes, Tensor mean, Tensor rstd"

# ------------------------------------------------------------------ forward


def _forward(kept: torch.dtype, *given: *Given) -> Kept:
    cell = Arguments(*given)
    values = shared().take(cell.plan.kept, kept)
    nodes, (mean, rstd) = cell.nodes(cell.states[0]), cell.moments()
    invoke("forward", kept, *cell.passed(), values, _pools(cell), nodes, mean, rstd)
    return nodes, values, mean, rstd


def _forward_fake(kept: torch.dtype, *given: *Given) -> Kept:
    cell = Arguments(*given)
    like = cell.states[0]
    return cell.nodes(like), like.new_empty(cell.plan.kept, dtype=kept), *cell.moments()


def _pools(cell: Arguments) -> Tensor:
    """Room for the pools while a kernel runs."""
    return shared().scratch(cell.plan.saved - cell.plan.kept, cell.states[0].dtype)


class Saved(Context):
    """The sizes that `save` needs, and the number of tensors that are kept besides the arguments."""

    numbers: list[int]
    eps: float
    more: int


def save(ctx: Saved, cell: Arguments, *more: Tensor) -> None:
    """Keeps all of these for a backward pass."""
    ctx.numbers, ctx.eps, ctx.more = cell.numbers, cell.eps, len(more)
    given = (cell.table, cell.w, cell.depth, cell.point, cell.gamma, cell.beta, *cell.states, *cell.extra)
    ctx.save_for_backward(*more, *given)


def saved(ctx: Saved) -> tuple[Arguments, list[Tensor]]:
    """The tensors that `save` was given."""
    kept, inputs = ctx.saved_tensors, Plan(*ctx.numbers).inputs  # asked for once: a recomputed cell gives them once
    table, w, depth, point, gamma, beta, *rest = kept[ctx.more :]
    assert table is not None
    assert w is not None
    assert depth is not None
    assert point is not None
    images = [t for t in rest if t is not None]
    states, extra = images[:inputs], images[inputs:]
    cell = Arguments(table, ctx.numbers, ctx.eps, w, depth, point, gamma, beta, states, extra)
    return cell, [t for t in kept[: ctx.more] if t is not None]


class _Context(Saved):
    """`values` while they are kept, and their type."""

    values: Tensor | None
    kept: torch.dtype


def _setup(ctx: _Context, inputs: tuple[object, ...], output: Kept) -> None:
    ctx.kept, *given = inputs  # type: ignore[assignment]
    nodes, values, mean, rstd = output
    ctx.mark_non_differentiable(values, mean, rstd)
    hooked = torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
    ctx.values = None if hooked else values
    # hooks on what autograd saves (recomputed cells) want to have all of it
    save(ctx, Arguments(*given), nodes, mean, rstd, *([values] if hooked else []))  # type: ignore[arg-type]


def _backward(ctx: _Context, grad: Tensor | None, *_: None) -> tuple[object, ...]:
    cell, (nodes, mean, rstd, *hooked) = saved(ctx)
    plan = cell.plan
    if grad is None:
        return None, *grads_of(cell, [None] * (5 + plan.inputs))
    values = hooked[0] if hooked else ctx.values
    if values is None:
        values = _held(mean, ctx.kept)
    if values is None:
        values = _again(cell, ctx.kept)[0]
    learn, again = asked(cell.depth) or asked(cell.point), torch.is_grad_enabled()
    grad = grad if plan.concat else grad[..., -plan.lanes :]
    kept = (values, nodes.detach(), mean, rstd)
    grads, _nodes = GRADIENT(grad.contiguous(), learn, again, *kept, *cell)
    more = torch._C._autograd._get_current_graph_task_keep_graph()
    if again or not more:
        ctx.values = None
    if more and ctx.values is None:
        shared().hold(values, mean)
    return None, *grads_of(cell, made(cell, learn, grads))


def _held(mean: Tensor, kept: torch.dtype) -> Tensor | None:
    """y and T, kept as such, if their memory was not needed since another pass of this cell."""
    values = shared().claim(mean)
    return values if values is not None and values.dtype == kept else None


def _again(cell: Arguments, kept: torch.dtype) -> Kept:
    """Values, nodes and moments, computed once more."""
    with torch.no_grad():
        nodes, values, mean, rstd = PACKED(kept, *cell)
    return values, nodes, mean, rstd


def made(cell: Arguments, learn: bool, grads: Sequence[Tensor]) -> list[Tensor | None]:
    """Those that stand for a gradient: of w, depth, point, gamma, beta and the states."""
    there = (True, learn, learn, cell.gamma is not None, cell.beta is not None, *[True] * len(cell.states))
    return [g if one else None for g, one in zip(grads, there, strict=True)]


def grads_of(cell: Arguments, grads: Sequence[Tensor | None]) -> tuple[object, ...]:
    """The same gradients in the order and the nesting of the operator's arguments."""
    return None, None, None, *grads[:5], list(grads[5:]), [None] * len(cell.extra)


# ------------------------------------------------------------------ its gradient


def _gradient(
    grad: Tensor,
    learn: bool,
    again: bool,
    values: Tensor,
    nodes: Tensor,
    mean: Tensor,
    rstd: Tensor,
    *given: *Given,
) -> tuple[list[Tensor], Tensor]:
    """Gradients of w, depth, point, gamma, beta and the states, empty where there is none; where it is derived `again`, the nodes'."""
    cell = Arguments(*given)
    plan, plane = cell.plan, nodes.numel() // cell.plan.nodes
    work = shared().scratch((plan.nodes + plan.separable) * plane, grad.dtype)
    found = Grads.empty(cell, learn)
    invoke("backward", values.dtype, *cell.passed(), values, _pools(cell), nodes, mean, rstd, grad, *found, work)
    return found.like(cell), work[: plan.nodes * plane].clone() if again else grad.new_empty(0)


def _gradient_fake(
    grad: Tensor,
    learn: bool,
    again: bool,
    values: Tensor,
    nodes: Tensor,
    mean: Tensor,
    rstd: Tensor,
    *given: *Given,
) -> tuple[list[Tensor], Tensor]:
    cell = Arguments(*given)
    return Grads.empty(cell, learn).like(cell), grad.new_empty(nodes.numel() if again else 0)


class Grads(NamedTuple):
    """Gradients of a cell's arguments, as the kernels write them."""

    states: list[Tensor]
    w: Tensor
    depth: Tensor | None
    point: Tensor | None
    gamma: Tensor
    beta: Tensor

    @staticmethod
    def empty(cell: Arguments, learn: bool) -> Grads:
        def wide(*size: int) -> Tensor:
            return cell.w.new_zeros(size, dtype=torch.float64)

        gamma, beta = (wide(cell.plan.norms, cell.plan.lanes) for _ in range(2))
        taps, matrices = (torch.zeros_like(cell.depth), torch.zeros_like(cell.point)) if learn else (None, None)
        return Grads([torch.empty_like(t) for t in cell.states], wide(*cell.w.shape), taps, matrices, gamma, beta)

    def like(self, cell: Arguments) -> list[Tensor]:
        """In the types of the arguments; empty for those that have none."""
        none = self.w.new_empty
        norms = [
            none(0) if t is None else own.to(t.dtype) for t, own in ((cell.gamma, self.gamma), (cell.beta, self.beta))
        ]
        weights = [none(0) if t is None else t for t in (self.depth, self.point)]
        w = self.w if cell.w.dtype == torch.float64 else self.w.to(cell.w.dtype)
        return [w, *weights, *norms, *self.states]


def _gradient_setup(ctx: _Context, inputs: tuple[object, ...], output: tuple[list[Tensor], Tensor]) -> None:
    grad, _, _, _, nodes, mean, rstd, *given = inputs
    ctx.mark_non_differentiable(output[1])
    save(ctx, Arguments(*given), grad, nodes, mean, rstd, output[1])  # type: ignore[arg-type]


def _gradient_backward(ctx: _Context, directions: list[Tensor | None], _: None) -> tuple[object, ...]:
    cell, (grad, nodes, mean, rstd, g) = saved(ctx)
    if torch.is_grad_enabled():
        return _third(cell, grad, directions, ctx.needs)
    if not len(g):
        raise RuntimeError("packed_gradient was not told that it would be derived `again`")
    learn = asked(cell.depth) or asked(cell.point)
    w, *weights = directions[:5]
    moved = [
        torch.zeros_like(t) if d is None else d.contiguous() for t, d in zip(cell.states, directions[5:], strict=True)
    ]
    w = torch.zeros_like(cell.w) if w is None else w
    weights = [None if t is None else t.contiguous() for t in weights]
    values = _held(mean, g.dtype)
    now = _again(cell, g.dtype) if values is None else (values, nodes, mean, rstd)
    tangent, grads = SECOND(g, learn, w, *weights, moved, *now, *cell)
    shared().hold(now[0], mean)  # the cell's own backward pass may follow
    out = tangent if cell.plan.concat else tangent[..., -cell.plan.lanes :]
    return out, *[None] * 6, *grads_of(cell, made(cell, learn, grads))


def _third(
    cell: Arguments, grad: Tensor, directions: Sequence[Tensor | None], needs: Sequence[object]
) -> tuple[object, ...]:
    def plain(*tensors: Tensor) -> Tensor:
        return plain_packed(cell.with_tensors(tensors))

    flat = (needs[0], *needs[10:15], *needs[15])  # type: ignore[misc]
    out, *grads = derivative_of_derivative(plain, cell.tensors(), grad, directions, flat)
    return out, *[None] * 6, *grads_of(cell, grads)


# ------------------------------------------------------------------ its second derivative


def _second(
    g: Tensor,
    learn: bool,
    w_t: Tensor,
    depth_t: Tensor | None,
    point_t: Tensor | None,
    gamma_t: Tensor | None,
    beta_t: Tensor | None,
    states_t: list[Tensor],
    values: Tensor,
    nodes: Tensor,
    mean: Tensor,
    rstd: Tensor,
    *given: *Given,
) -> tuple[Tensor, list[Tensor]]:
    """The nodes' tangent, and the gradients of <gradients, directions>; `g` is what `_gradient` left of the nodes' gradients."""
    cell = Arguments(*given)
    plan, plane = cell.plan, nodes.numel() // cell.plan.nodes
    work = shared().scratch((plan.nodes + 2 * plan.separable) * plane, g.dtype)
    values_t, nodes_t, found = shared().scratch(plan.saved, g.dtype), torch.empty_like(nodes), Grads.empty(cell, learn)
    weights_t = (w_t.to(torch.float64).contiguous(), depth_t, point_t, gamma_t, beta_t)
    tangents = (states_t, *weights_t, values_t, nodes_t)
    invoke("second", g.dtype, *cell.passed(), values, _pools(cell), nodes, mean, rstd, g, *tangents, *found, work)
    return nodes_t, found.like(cell)


def _second_fake(
    g: Tensor,
    learn: bool,
    w_t: Tensor,
    depth_t: Tensor | None,
    point_t: Tensor | None,
    gamma_t: Tensor | None,
    beta_t: Tensor | None,
    states_t: list[Tensor],
    values: Tensor,
    nodes: Tensor,
    mean: Tensor,
    rstd: Tensor,
    *given: *Given,
) -> tuple[Tensor, list[Tensor]]:
    cell = Arguments(*given)
    return torch.empty_like(nodes), Grads.empty(cell, learn).like(cell)


PACKED = define(
    f"packed(ScalarType kept, {GIVEN}) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
    setup=_setup,
    backward=_backward,
)
"""Nodes (n, H', W', nodes * lanes), values (y and T as `kept`), means and deviations of a slot (slots, lanes)."""

GRADIENT = define(
    f"packed_gradient(Tensor grad, bool learn, bool again, {KEPT}, {GIVEN}) -> (Tensor[], Tensor)",
    _gradient,
    _gradient_fake,
    setup=_gradient_setup,
    backward=_gradient_backward,
)

SECOND = define(
    "packed_second(Tensor g, bool learn, Tensor w_t, Tensor? depth_t, Tensor? point_t, Tensor? gamma_t, Tensor? beta_t, "
    f"Tensor[] states_t, {KEPT}, {GIVEN}) -> (Tensor, Tensor[])",
    _second,
    _second_fake,
)


def run_packed(
    cell: Layout,
    states: Sequence[Tensor],
    w: Tensor,
    zero: set[tuple[int, int]],
    draw: Draw,
    held: Weights | None = None,
) -> Tensor:
    """The cell's output (B, C', H', W') from its states after the entries, each (B, C, H, W); w (E, O).

    Weights are read from the modules unless they are `held` as the kernels want them.
    """
    units = [unit for unit in cell.units if (unit.edge, unit.column) not in zero]
    place = Lanes.of(*states[0].shape[:2])
    table, plan, extra = planned(cell, units, held is not None, place, states[0], w, draw)
    weights = weights_of(cell, units, held, place, states[0])
    given = (table, list(plan), cell.eps, w, *weights, [place.image(h) for h in states], extra)
    nodes = PACKED(kept_type(states[0]), *given)[0]
    return place.back(nodes, plan.nodes) if cell.concat else place.back(nodes[..., -plan.lanes :], 1)
