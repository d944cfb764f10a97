"""Sums what leads into a node of a network that learns: chains of stages, tensors as they are, projections.

The formulas are in `stages`. What several terms read is one tensor, whose gradient is summed as it is stored.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from oche.fast.backends.buffers import shared
from oche.fast.backends.library import invoke
from oche.fast.kernels.chains import Chain, remember
from oche.fast.kernels.projections import Projection, project, project_back
from oche.fast.kernels.stages import Norm, Ran, chain_back, run_chain, through


class Term(NamedTuple):
    """What is summed into a node: a chain on a source, a projection of it, or with neither the source itself.

    `factor` (B,) multiplies it.
    """

    source: Tensor
    chain: Chain = ()
    factor: Tensor | None = None
    projection: Projection | None = None

    def weights(self) -> list[Tensor]:
        """The parameters of what is run on the source."""
        if self.projection is not None:
            return list(self.projection.conv.parameters())
        return [w for stage in self.chain for w in stage.weights()]


def joined(terms: Sequence[Term], activation: int = 0) -> Tensor:
    """The node (B, C, H, W), channels last, activated, and the running statistics of the chains' batch norms moved on."""
    moments: list[list[tuple[Tensor, Tensor, int]]] = []
    weights = [w for term in terms for w in term.weights()]
    how = [term._replace(source=None) for term in terms]  # type: ignore[arg-type]
    out: Tensor = _Node.apply(how, moments, activation, *[term.source for term in terms], *weights)  # type: ignore[no-untyped-call]
    for term, moved in zip(terms, moments, strict=True):
        for stage, (mean, variance, count) in zip(term.chain, moved, strict=True):
            remember(stage.norm, mean, variance, count)
    return out


class CNode(ctypes.Structure):
    """`struct Node` of stages/join.h."""

    _fields_ = [(name, ctypes.c_int64) for name in ("n", "pixels", "channels", "terms", "activation", "threads")]

    @staticmethod
    def of(x: Tensor, terms: int, activation: int) -> CNode:
        """That of a node (B, H, W, C)."""
        return CNode(len(x), x.shape[1] * x.shape[2], x.shape[3], terms, activation, torch.get_num_threads())


class _Took(NamedTuple):
    """A term that was summed: how, how many weights it has, and its chain's stages."""

    how: Term
    many: int
    steps: list[Ran]


class _Node(torch.autograd.Function):
    """Sources and weights -> the node. Arguments: terms without sources, a list that gets moments, activation, sources, weights."""

    @staticmethod
    def forward(ctx: Any, how: list[Term], moments: list[Any], activation: int, *given: Tensor) -> Tensor:
        sources, rest = given[: len(how)], list(given[len(how) :])
        took: list[_Took] = []
        ends: list[Tensor] = []
        biases: list[Tensor | None] = []
        for term, source in zip(how, sources, strict=True):
            count, x = len(term.weights()), source.permute(0, 2, 3, 1).contiguous()
            mine, rest = rest[:count], rest[count:]
            passed = run_chain(term.chain, x, mine)
            moments.append(passed.moments)
            took.append(_Took(term, count, passed.steps))
            if passed.steps:
                x = passed.steps[-1].y.view(len(x), *passed.steps[-1].sides(), -1)
            elif term.projection is not None:
                x = project(term.projection, x, mine[0])
            ends.append(x)
            biases.append(mine[1].double() if term.projection is not None and count > 1 else None)
        shape, dtype = ends[0].shape, ends[0].dtype
        one = torch.ones(shape[-1], dtype=torch.float64)
        shifts = [
            t.steps[-1].shift if t.steps else one * 0 if b is None else b for t, b in zip(took, biases, strict=True)
        ]
        a = torch.stack([t.steps[-1].slope if t.steps else one for t in took]).to(dtype)
        b = torch.stack(shifts).to(dtype)
        f = [None if term.factor is None else term.factor.reshape(-1).to(dtype) for term in how]
        out = shared().lasting(shape, dtype)
        invoke("join", dtype, CNode.of(out, len(how), activation), ends, a, b, f, out)
        out = out.permute(0, 3, 1, 2)
        ctx.took = [t._replace(steps=[step._replace(x=one, y=one) for step in t.steps]) for t in took]
        ctx.f, ctx.activation = f, activation
        ctx.same = [next(i for i, other in enumerate(sources) if other is source) for source in sources]
        ys = [step.y for t in took for step in t.steps]
        # autograd looks whether they were changed since
        ctx.save_for_backward(*given, *ys, *([out] if activation else []))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved, needs, same = ctx.saved_tensors, ctx.needs_input_grad[3:], ctx.same
        given, ys = saved[: len(needs)], iter(saved[len(needs) :])
        took = [t._replace(steps=_again(t.steps, x, ys)) for t, x in zip(ctx.took, given, strict=False)]
        out = saved[-1].permute(0, 2, 3, 1) if ctx.activation else None
        g, norms = _last_norms(took, ctx.f, grad.permute(0, 2, 3, 1).contiguous(), ctx.activation, out)
        starts = [len(took) + sum(t.many for t in took[:n]) for n in range(len(took))]
        back = _Back(g, given, needs, same, {}, [None] * len(given))
        projected = [one.how.projection is not None for one in took]
        for t in sorted(range(len(took)), key=projected.__getitem__):  # projections add to what is there
            factor = ctx.f[t]
            if took[t].steps:
                plain = [i for i, one in enumerate(took) if _identity(one) and same[i] == same[t]]
                back.chain(t, took[t], norms[t], factor, starts[t], bool(plain))
            elif projected[t]:
                back.projection(t, took[t], factor, starts[t])
        for t, one in enumerate(took):
            if needs[t] and not one.many and not (_identity(one) and same[t] in back.added):
                whole = g.permute(0, 3, 1, 2)
                back.grads[t] = whole if ctx.f[t] is None else whole * ctx.f[t].view(-1, 1, 1, 1)
        for t, dx in back.into.items():
            back.grads[t] = _sum(back.grads[t], dx.permute(0, 3, 1, 2))
        return None, None, None, *back.grads[: len(took) + sum(t.many for t in took)]


class _Back:
    """The gradients of a node's arguments while they are computed; `into`: by a source's first term, (B, H, W, C)."""

    def __init__(
        self,
        g: Tensor,
        given: Sequence[Tensor],
        needs: Sequence[bool],
        same: list[int],
        into: dict[int, Tensor],
        grads: list[Tensor | None],
    ) -> None:
        self.g, self.given, self.needs, self.same, self.into, self.grads = g, given, needs, same, into, grads
        self.added: set[int] = set()

    def chain(self, t: int, took: _Took, norm: Norm, factor: Tensor | None, start: int, plain: bool) -> None:
        """Those of a chain; `plain`: its source is a term too."""
        dx = also = None
        if self.needs[t]:
            dx = also = self.into.get(self.same[t])
            if dx is None:
                dx = self.into[self.same[t]] = shared().lasting(took.steps[0].x.shape, self.g.dtype)
                if plain:
                    also = self.g
                    self.added.add(self.same[t])
        learn = any(self.needs[start : start + took.many])
        learnt = chain_back(took.how.chain, took.steps, self.g, norm, factor, dx, also, learn)
        for i, w in enumerate(learnt, start):
            self.grads[i] = w.reshape(self.given[i].shape)

    def projection(self, t: int, took: _Took, factor: Tensor | None, start: int) -> None:
        """Those of a projection."""
        assert took.how.projection is not None
        g = self.g if factor is None else self.g * factor.view(-1, 1, 1, 1)
        if took.many > 1 and self.needs[start + 1]:
            self.grads[start + 1] = g.sum((0, 1, 2))
        dx, x = None, self.given[t].permute(0, 2, 3, 1).contiguous()
        if self.needs[t]:
            dx = self.into.get(self.same[t])
            if dx is None:
                dx = self.into[self.same[t]] = shared().lasting(x.shape, g.dtype).zero_()
        self.grads[start] = project_back(took.how.projection, x, self.given[start], g, dx, self.needs[start])


# ------------------------------------------------------------------ helpers


def _again(steps: list[Ran], source: Tensor, ys: Iterator[Tensor]) -> list[Ran]:
    """A chain's stages with what they read, the first one its source (B, C, H, W), and what they left."""
    found: list[Ran] = []
    x = source.permute(0, 2, 3, 1).contiguous()
    for step in steps:
        found.append(step._replace(x=x, y=next(ys)))
        x = found[-1].y.view(len(x), *step.sides(), -1)
    return found


def _identity(took: _Took) -> bool:
    """True if the term is its source, unchanged."""
    return not took.steps and took.how.projection is None and took.how.factor is None


def _sum(one: Tensor | None, other: Tensor) -> Tensor:
    return other if one is None else one + other


def _last_norms(
    took: list[_Took], f: list[Tensor | None], g: Tensor, activation: int, out: Tensor | None
) -> tuple[Tensor, dict[int, Norm]]:
    """What of g passes the activation that left `out`, and the batch norms before the sum by the number of their term."""
    numbers = [n for n, t in enumerate(took) if t.steps]
    ends = [took[n].steps[-1] for n in numbers]
    pivot = torch.stack([end.mean for end in ends]).to(g.dtype) if ends else g.new_empty(0)
    sums = torch.zeros(len(ends), 2, g.shape[-1], dtype=torch.float64)
    passing = None if out is None else shared().lasting(g.shape, g.dtype)
    if ends or activation:
        some = [f[n] for n in numbers]
        node = CNode.of(g, len(ends), activation)
        invoke("join_dots", g.dtype, node, [end.y for end in ends], pivot, some, g, out, passing, sums)
    norms = {n: through(end, s[1], s[0]) for n, end, s in zip(numbers, ends, sums, strict=True)}
    return g if passing is None else passing, norms
