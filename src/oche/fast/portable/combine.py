"""Sums a node's candidates: `combine` is the batch norm of every candidate and their weighted sum as one operation.

For candidates T_t (B, C, H, W) into a node, their op weights w_t, and batch norms with scale g_t and shift s_t (1 and 0 where they
are not affine; candidates without batch norm enter as they are):

    S = sum_t w_t (g_t (T_t - m_t) r_t + s_t) = sum_t a_t T_t + b,    m, r = mean and 1/sqrt(var + eps) over B, H, W

Neither normalised nor weighted tensors exist; only T is kept. With G = dS, r1 = sum G and q_t = sum G (T_t - m_t) r_t per channel:

    dw_t = sum_c (g q + s r1),   dg = w q,   ds = w r1,   dT = a G - a (r1 + (T - m) r q) / M

Twice differentiable: under `create_graph` the backward is that of the plain formula.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from oche.fast.backends import rows
from oche.fast.backends.device import Backend
from oche.spaces.ops import batch_norm

PIXELS = (0, 2, 3)


@dataclass(frozen=True)
class Term:
    """A candidate into a node: its output before batch norm (B, C, H, W), its op weight (), and its batch norm if it has one."""

    value: Tensor
    weight: Tensor
    norm: nn.BatchNorm2d | None = None


@dataclass
class Moments:
    """Batch statistics by tensor, so that a pool which several nodes read is measured once. Lives as long as one forward pass."""

    kernels: Backend | None = None
    known: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def of(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance (C,) over images and pixels, at least in fp32."""
        if id(value) not in self.known:  # the tensor is kept beside its moments, so that its id stays taken
            with torch.no_grad():
                if self.kernels is not None and rows.suit(self.kernels, [value]):
                    mean, variance = rows.moments(self.kernels, value)
                else:
                    mean, variance = _moments(value)
            self.known[id(value)] = (value, mean, variance)
        return self.known[id(value)][1:]


def combine(terms: Sequence[Term], moments: Moments) -> Tensor:
    """S (B, C, H, W) of the module's docstring, in the terms' dtype. There has to be a term."""
    values = [term.value for term in terms]
    scales = [None if term.norm is None else term.norm.weight for term in terms]
    shifts = [None if term.norm is None else term.norm.bias for term in terms]
    weights = torch.stack([term.weight for term in terms])
    if torch.compiler.is_compiling():  # a compiler finds by itself what is fused by hand here
        norms = [(False, 0.0) if term.norm is None else (True, term.norm.eps) for term in terms]
        dtype = functools.reduce(torch.promote_types, [value.dtype for value in values])
        wide = [value.to(torch.promote_types(dtype, torch.float32)) for value in values]
        return plain_combine(norms, weights, wide, scales, shifts).to(dtype)
    spec, mean, rstd = [], [], []
    for term in terms:
        if term.norm is None:
            spec.append((False, 0.0))
            continue
        m, variance = moments.of(term.value)
        spec.append((True, term.norm.eps))
        mean.append(m)
        rstd.append((variance + term.norm.eps).rsqrt())
    compiled = moments.kernels if rows.suit(moments.kernels, [*values, weights]) else None
    out: Tensor = _Combine.apply(tuple(spec), mean, rstd, compiled, weights, *values, *scales, *shifts)  # type: ignore[no-untyped-call]
    return out


def plain_combine(
    spec: Sequence[tuple[bool, float]],
    weights: Tensor,
    values: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    shifts: Sequence[Tensor | None],
) -> Tensor:
    """The same sum by torch's own batch norm, term by term: differentiable any number of times."""
    total: Tensor | None = None
    for t, (value, (normed, eps), scale, shift) in enumerate(zip(values, spec, scales, shifts, strict=True)):
        if normed:
            value = batch_norm(value, scale, shift, eps)
        total = weights[t] * value if total is None else total + weights[t] * value
    assert total is not None
    return total


class _Context(Protocol):
    """The context that autograd hands to both passes."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    spec: tuple[tuple[bool, float], ...]
    mean: list[Tensor]
    rstd: list[Tensor]
    kernels: Backend | None
    table: _Table

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class _Combine(torch.autograd.Function):
    """Arguments after `weights` (n,): n values, n scales or None, n shifts or None."""

    @staticmethod
    def forward(
        ctx: _Context,
        spec: tuple[tuple[bool, float], ...],
        mean: list[Tensor],
        rstd: list[Tensor],
        kernels: Backend | None,
        weights: Tensor,
        *rest: Tensor | None,
    ) -> Tensor:
        n = len(spec)
        values = [_given(t) for t in rest[:n]]
        ctx.spec, ctx.mean, ctx.rstd, ctx.kernels = spec, mean, rstd, kernels
        ctx.save_for_backward(weights, *rest)
        if kernels is not None:
            ctx.table = _Table.of(spec, mean, rstd, weights, rest)
            a, b = ctx.table.forward(values[0].dtype)
            return rows.weighted(kernels, [rows.as_rows(t) for t in values], a, b)
        dtype = values[0].dtype
        for value in values:
            dtype = torch.promote_types(dtype, value.dtype)
        wide = dtype if dtype in (torch.float32, torch.float64) else torch.float32
        w = weights.detach().to(wide)
        moments = iter(zip(mean, rstd, strict=True))
        factors: list[Tensor] = []
        constant: Tensor | None = None
        for t, (normed, _) in enumerate(spec):
            factor = w[t]
            if normed:
                m, r = next(moments)
                scale, shift = rest[n + t], rest[2 * n + t]
                factor = factor * (r if scale is None else r * scale)
                added = -factor * m if shift is None else w[t] * shift - factor * m
                constant = added if constant is None else constant + added
            factors.append(factor.reshape(-1, 1, 1))
        first = values[0].to(wide)
        out = first * factors[0] if constant is None else torch.addcmul(constant.reshape(-1, 1, 1), first, factors[0])
        for value, factor in zip(values[1:], factors[1:], strict=True):
            out.addcmul_(value.to(wide), factor)
        return out.to(dtype)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | list[Tensor] | None, ...]:
        weights, *rest = ctx.saved_tensors
        n = len(ctx.spec)
        if torch.is_grad_enabled():
            return (None, None, None, None, *_differentiable(ctx, grad, weights, rest))
        need = ctx.needs_input_grad[5:]
        if ctx.kernels is not None:
            return _compiled_backward(ctx, ctx.kernels, grad, weights, rest)
        grad = _like(grad, rest[0])
        wide = torch.promote_types(grad.dtype, torch.float32)
        w = weights.to(wide).unbind()
        r1 = grad.sum(PIXELS, dtype=wide)
        moments = iter(zip(ctx.mean, ctx.rstd, strict=True))
        values: list[Tensor | None] = [None] * n
        scales, shifts = list(values), list(values)
        dots: list[Tensor] = []  # what dw_t is the sum of
        for t, (normed, eps) in enumerate(ctx.spec):
            value, scale, shift = rest[t], rest[n + t], rest[2 * n + t]
            if not normed:
                values[t] = (grad * w[t].to(grad.dtype)).to(value.dtype) if need[t] else None
                if ctx.needs_input_grad[4]:
                    dots.append(_dot(grad, value, wide))
                continue
            m, r = next(moments)
            gain = w[t].expand_as(r).contiguous() if scale is None else w[t] * scale
            values[t], q, _ = torch.ops.aten.native_batch_norm_backward(
                grad, _like(value, grad), gain, None, None, m, r, True, eps, [need[t], True, False]
            )
            scales[t] = w[t] * q if need[n + t] else None
            shifts[t] = w[t] * r1 if need[2 * n + t] else None
            if ctx.needs_input_grad[4]:
                q = q if scale is None else scale * q
                dots.append((q if shift is None else torch.addcmul(q, shift, r1)).sum())
        dw = torch.stack(dots).to(weights.dtype) if dots else None
        return (None, None, None, None, dw, *values, *scales, *shifts)


@dataclass(frozen=True)
class _Table:
    """The factors of a node's terms, in fp64, (n, C) each: w g, s w, m, r; 0 and 1 without batch norm. normed (n, 1)."""

    w: Tensor
    scale: Tensor
    shift: Tensor
    mean: Tensor
    rstd: Tensor
    normed: Tensor

    @staticmethod
    def of(
        spec: Sequence[tuple[bool, float]],
        mean: list[Tensor],
        rstd: list[Tensor],
        weights: Tensor,
        rest: Sequence[Tensor | None],
    ) -> _Table:
        n, wide, first = len(spec), torch.float64, _given(rest[0])
        zero, one = (first.new_full((first.shape[1],), value, dtype=wide) for value in (0.0, 1.0))
        found, deviations = iter(mean), iter(rstd)
        return _Table(
            weights.detach().to(wide)[:, None],
            torch.stack([one if t is None else t.detach().to(wide) for t in rest[n : 2 * n]]),
            torch.stack([zero if t is None else t.detach().to(wide) for t in rest[2 * n :]]),
            torch.stack([next(found).to(wide) if normed else zero for normed, _ in spec]),
            torch.stack([next(deviations).to(wide) if normed else one for normed, _ in spec]),
            torch.stack([one[:1] if normed else zero[:1] for normed, _ in spec]),
        )

    @property
    def slope(self) -> Tensor:
        """a = w g r."""
        return self.w * self.scale * self.rstd

    def forward(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """a (n, C) and b (C,), at least in fp32."""
        dtype = torch.promote_types(dtype, torch.float32)
        constant = (self.normed * (self.w * self.shift - self.slope * self.mean)).sum(0)
        return self.slope.to(dtype), constant.to(dtype)


def _compiled_backward(
    ctx: _Context, kernels: Backend, grad: Tensor, weights: Tensor, rest: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    table, n, dtype = ctx.table, len(ctx.spec), torch.promote_types(grad.dtype, torch.float32)
    need = ctx.needs_input_grad[5:]
    values = [rows.as_rows(t) for t in rest[:n]]
    grad = rows.dense(grad)
    pivot = table.mean.to(dtype)
    found = rows.dots(kernels, values, pivot, grad)
    r1 = found[n]
    q = (found[:n] - (table.mean - pivot.double()) * r1) * table.rstd
    dw = (table.scale * q + table.shift * r1).sum(1)
    share = table.slope * table.normed / (grad.numel() // grad.shape[1])
    tilt = -share * q * table.rstd
    level = -share * r1 - tilt * table.mean
    dvalues = rows.maps(kernels, values, table.slope.to(dtype), level.to(dtype), tilt.to(dtype), grad, need[:n])
    dscales = [(table.w[t] * q[t]).to(rest[n + t].dtype) if need[n + t] else None for t in range(n)]
    dshifts = [(table.w[t] * r1).to(rest[2 * n + t].dtype) if need[2 * n + t] else None for t in range(n)]
    return (None, None, None, None, dw.to(weights.dtype), *dvalues, *dscales, *dshifts)


def _differentiable(ctx: _Context, grad: Tensor, weights: Tensor, rest: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients that carry a graph: those of the plain formula at aliases of the inputs, so that no input is upstream of another."""
    n = len(ctx.spec)
    inputs = [None if t is None else t.view_as(t) for t in (weights, *rest)]
    out = plain_combine(
        ctx.spec,
        _given(inputs[0]),
        [_given(t) for t in inputs[1 : n + 1]],
        inputs[n + 1 : 2 * n + 1],
        inputs[2 * n + 1 :],
    )
    wanted = [i for i, need in enumerate(ctx.needs_input_grad[4:]) if need]
    found = torch.autograd.grad(out, [_given(inputs[i]) for i in wanted], grad, create_graph=True)
    grads: list[Tensor | None] = [None] * len(inputs)
    for i, g in zip(wanted, found, strict=True):
        grads[i] = g
    return grads


def _given(t: Tensor | None) -> Tensor:
    assert t is not None
    return t


def _moments(t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, by the pass that torch's batch norm makes: in channels_last `var_mean` takes 20 times longer."""
    if t.device.type not in ("cpu", "cuda"):
        variance, mean = torch.var_mean(t.float(), PIXELS, correction=0)
        return mean, variance
    wide = t.dtype in (torch.float32, torch.float64)
    running = [
        None if wide else t.new_zeros(t.shape[1], dtype=torch.float32) for _ in range(2)
    ]  # fp32 asks for fp32 statistics
    mean, variance = torch.ops.aten.batch_norm_update_stats(t, *running, 0.0)
    return mean, variance


def _dot(grad: Tensor, value: Tensor, wide: torch.dtype) -> Tensor:
    """sum grad value, in the wide type. On the CPU as one dot product per image, without a tensor of products."""
    if grad.device.type != "cpu":
        return (grad.to(wide) * value).sum()
    images, pixels = len(grad), grad[0].numel()
    g, v = (_like(t, grad).to(wide).as_strided((images, pixels), (pixels, 1)) for t in (grad, value))
    products: Tensor = torch.linalg.vecdot(g, v)
    return products.sum()


def _like(t: Tensor, other: Tensor) -> Tensor:
    """t in the other's dtype, and dense in its memory format: in channels_last where the other is part of a larger tensor."""
    t = t.to(other.dtype)
    return t.contiguous(memory_format=torch.contiguous_format if other.is_contiguous() else torch.channels_last)
