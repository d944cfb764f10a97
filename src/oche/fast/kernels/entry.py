"""An entry: ReLU, 1x1 convolution and batch norm as one differentiable operation that keeps no copy of the ReLU.

    y = W max(x, 0),  out = a y + b              a = g r, b = s - g m r; m and r = 1/sqrt(var + eps) over M images and pixels
    dy = a (dout - (r1 + (y - m) r q) / M)       r1 = sum dout, q = (sum dout y - m r1) r;  dg = q, ds = r1
    dx = (x > 0) W^T dy,  dW = dy max(x, 0)^T

The input is kept by the operation that made it; here only y is, or nothing where there is no g: then (y - m) r is what went out. The second
derivative, along directions x', W', g', s' of the gradients, is as in `packed_op` with dout held: the tangent of out, which dout gets, then
those of the lines above. [x > 0] does not move, and with k = mean(T^ y'), T^ = (y - m) r, the statistics do by m' = mean(y') and
r' = -r r k; so

    y' = W [x > 0] x' + W' max(x, 0),  out' = a y' + a' y + b'      a' = g' r - a r k, b' = s' - a m' - a' m
    q' = r (sum dout (y' - m') - k q), r1' = 0;  dg gets q', ds nothing
    dy' = a' dout + c' + e' y + e y'      of dy = a dout + c + e y: e = -a q r/M, c = -a r1/M - e m
    dx gets (x > 0) (W^T dy' + W'^T dy),  dW gets dy' max(x, 0)^T + dy ([x > 0] x')^T

A third derivative is that of plain torch.
"""

from __future__ import annotations

import functools
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oche.fast.backends import rows
from oche.fast.backends.buffers import shared
from oche.fast.backends.device import Backend
from oche.fast.backends.library import Context, asked, define, derivative_of_derivative
from oche.fast.backends.native import Kernels
from oche.fast.kernels.packed import LANES
from oche.fast.portable.mixed import of_batch
from oche.spaces.ops import ReLUConvBN


def enter(entry: nn.Module, x: Tensor, kernels: Backend | None) -> Tensor:
    """entry(x), in the compiled kernels where they can."""
    wide = single(x)
    if not isinstance(kernels, Kernels) or not _fits(entry, wide, kernels):
        out: Tensor = entry(x)
        return out
    conv, norm = entry[1], entry[2]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    pixels = wide.permute(0, 2, 3, 1).contiguous()
    weight = conv.weight.flatten(1)
    return ENTRY(pixels, weight, norm.weight, norm.bias, norm.eps)[0].permute(0, 3, 1, 2)


def _fits(entry: nn.Module, x: Tensor, kernels: Kernels) -> TypeGuard[ReLUConvBN]:
    if not isinstance(entry, ReLUConvBN) or not of_batch(entry[2]) or not isinstance(entry[1], nn.Conv2d):
        return False
    conv = entry[1]
    return fills(conv) and x.dtype == conv.weight.dtype and rows.suit(kernels, [x])


def fills(conv: nn.Module) -> bool:
    """True if it is a 1x1 convolution that these kernels take: its numbers of channels fill the vectors."""
    if not isinstance(conv, nn.Conv2d) or conv.bias is not None:
        return False
    full = (conv.kernel_size, conv.stride, conv.padding, conv.groups) == ((1, 1), (1, 1), (0, 0), 1)
    return full and conv.in_channels % LANES == conv.out_channels % LANES == 0


def single(x: Tensor) -> Tensor:
    """Casts to single precision what autocast made half precision, in which the kernels are faster than torch is in bfloat16."""
    return x.float() if torch.is_autocast_enabled("cpu") and x.dtype in (torch.bfloat16, torch.float16) else x


# ------------------------------------------------------------------ the operators

_Four = tuple[Tensor, Tensor, Tensor, Tensor]


def _entry(x: Tensor, weight: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float) -> _Four:
    """Out (B, H, W, C') of x (B, H, W, C) and weight (C', C); y as one row of numbers if that is kept; its mean and r (C',) in fp64."""
    out = x.new_empty(*x.shape[:3], len(weight))
    kept = x.new_empty(0) if gamma is None else shared().take(out.numel(), x.dtype)
    y = (out if gamma is None else kept).view(-1, len(weight))
    mean, variance = rows.enter(x, weight.t().contiguous(), y)
    rstd = (variance + eps).rsqrt()
    a = rstd if gamma is None else gamma.double() * rstd
    b = -a * mean if beta is None else beta.double() - a * mean
    torch.addcmul(b.to(x.dtype), y, a.to(x.dtype), out=out.view(y.shape))
    return out, kept, mean, rstd


def _entry_fake(x: Tensor, weight: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float) -> _Four:
    out = x.new_empty(*x.shape[:3], len(weight))
    mean, rstd = (x.new_empty(len(weight), dtype=torch.float64) for _ in range(2))
    return out, x.new_empty(0 if gamma is None else out.numel()), mean, rstd


class _Context(Context):
    eps: float


def _entry_setup(
    ctx: _Context, inputs: tuple[Tensor, Tensor, Tensor | None, Tensor | None, float], output: _Four
) -> None:
    *tensors, ctx.eps = inputs
    out, kept, mean, rstd = output
    ctx.mark_non_differentiable(kept, mean, rstd)
    ctx.save_for_backward(*tensors, out if tensors[2] is None else kept, mean, rstd)


def _entry_backward(ctx: _Context, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    x, weight, gamma, beta, kept, mean, rstd = ctx.saved_tensors
    if grad is None:
        return (None,) * 5
    assert x is not None
    assert weight is not None
    assert kept is not None
    assert mean is not None
    assert rstd is not None
    need = (ctx.needs[0], asked(weight))
    found = GRADIENT(grad.contiguous(), *need, kept.detach(), mean, rstd, x, weight, gamma, beta, ctx.eps)
    made = (*need, gamma is not None, beta is not None)
    return *(g if there else None for g, there in zip(found, made, strict=True)), None


def _gradient(
    grad: Tensor,
    need_x: bool,
    need_weight: bool,
    kept: Tensor,
    mean: Tensor,
    rstd: Tensor,
    x: Tensor,
    weight: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
) -> _Four:
    """Gradients of x, weight, gamma and beta; empty where there is none. `kept`: y, or without gamma what went out."""
    y = kept.view(-1, len(weight))
    grad = grad.view(y.shape)
    a = rstd if gamma is None else gamma.double() * rstd
    if gamma is None:  # the formulas for a y of mean 0 and deviation 1
        mean, rstd = torch.zeros_like(mean), torch.ones_like(rstd)
    pivot = mean.to(y.dtype)
    r2, r1 = rows.DOTS([_image(y)], pivot, _image(grad))
    q = (r2 - (mean - pivot.double()) * r1) * rstd
    e = -a * q * rstd / len(y)
    b = -a * r1 / len(y) - e * mean
    a, b, e = (t.to(y.dtype) for t in (a, b, e))
    dx, dweight = rows.leave(x, y, grad, weight, a, b, e, need_x, need_weight)
    dgamma, dbeta = (x.new_empty(0) if of is None else t.to(of.dtype, copy=True) for t, of in ((q, gamma), (r1, beta)))
    return dx, dweight, dgamma, dbeta


def _gradient_fake(
    grad: Tensor,
    need_x: bool,
    need_weight: bool,
    kept: Tensor,
    mean: Tensor,
    rstd: Tensor,
    x: Tensor,
    weight: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
) -> _Four:
    outputs, inputs = weight.shape
    dweight = x.new_empty(inputs, outputs).t() if need_weight else x.new_empty(0)
    dx, dgamma, dbeta = (
        x.new_empty(0) if t is None else torch.empty_like(t) for t in (x if need_x else None, gamma, beta)
    )
    return dx, dweight, dgamma, dbeta


def _gradient_setup(ctx: _Context, inputs: tuple[object, ...], output: _Four) -> None:
    grad, _, _, *tensors, eps = inputs
    ctx.eps = eps  # type: ignore[assignment]
    ctx.mark_non_differentiable(*[t for t in output if not t.numel()])
    ctx.save_for_backward(grad, *tensors)  # type: ignore[arg-type]


def _gradient_backward(ctx: _Context, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
    grad, kept, mean, rstd, *tensors = ctx.saved_tensors
    assert grad is not None
    needs = (ctx.needs[0], *ctx.needs[6:10])
    if torch.is_grad_enabled():
        plain = functools.partial(_plain, ctx.eps)
        out, *grads = derivative_of_derivative(plain, tensors, grad, directions, needs)
    elif all(d is None for d in directions):
        return (None,) * 11
    else:
        x, weight, gamma, beta = tensors
        assert x is not None
        assert weight is not None
        wanted = (bool(needs[1]) and asked(x), asked(weight))
        along = [None if d is None else d.contiguous() for d in directions]
        out, *found = SECOND(*along, *wanted, grad, kept, mean, rstd, x, weight, gamma, beta, ctx.eps)
        made = (*wanted, gamma is not None)
        grads = [*(g if there else None for g, there in zip(found, made, strict=True)), None]
    return out, None, None, None, None, None, *grads, None


def _image(t: Tensor) -> Tensor:
    """(M, C) as (M, C, 1, 1)."""
    return t[:, :, None, None]


def _second(
    x_t: Tensor | None,
    weight_t: Tensor | None,
    gamma_t: Tensor | None,
    beta_t: Tensor | None,
    need_x: bool,
    need_weight: bool,
    grad: Tensor,
    kept: Tensor,
    mean: Tensor,
    rstd: Tensor,
    x: Tensor,
    weight: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
) -> _Four:
    """The output's tangent, and the gradients of <gradients, directions> in x, weight and gamma, empty where there is none."""
    y = kept.view(-1, len(weight))
    if gamma is None:
        y = torch.addcmul(mean.to(y.dtype), y, rstd.reciprocal().to(y.dtype))
    pivot, count = mean.to(y.dtype), len(y)
    y_t, (s, p, r1, r2, u) = rows.enter_tangent(x, x_t, weight, weight_t, y, pivot, grad)
    off, mean_t = mean - pivot.double(), s / count
    q, k = (r2 - off * r1) * rstd, (p - off * s) * rstd / count
    a = rstd if gamma is None else gamma.double() * rstd
    a_t = -a * rstd * k if gamma_t is None else (gamma_t.double() - a * k) * rstd
    c_t = -a * mean_t - a_t * mean if beta_t is None else beta_t.double() - a * mean_t - a_t * mean
    q_t = rstd * (u - mean_t * r1 - k * q)
    e = -a * q * rstd / count
    e_t = (a * q * rstd * k - a_t * q - a * q_t) * rstd / count
    b, b_t = -a * r1 / count - e * mean, -a_t * r1 / count - e_t * mean - e * mean_t
    maps = torch.stack([a, b, e, a_t, b_t, e_t, c_t]).to(y.dtype)
    dx, dweight = rows.leave_tangent(x, x_t, y, y_t, grad, weight, weight_t, maps, need_x, need_weight)
    return y_t.view(grad.shape), dx, dweight, x.new_empty(0) if gamma is None else q_t.to(gamma.dtype)


def _second_fake(
    x_t: Tensor | None,
    weight_t: Tensor | None,
    gamma_t: Tensor | None,
    beta_t: Tensor | None,
    need_x: bool,
    need_weight: bool,
    grad: Tensor,
    kept: Tensor,
    mean: Tensor,
    rstd: Tensor,
    x: Tensor,
    weight: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
) -> _Four:
    dx, dweight, dgamma, _ = _gradient_fake(grad, need_x, need_weight, kept, mean, rstd, x, weight, gamma, beta, eps)
    return torch.empty_like(grad), dx, dweight, dgamma


def _plain(eps: float, x: Tensor, weight: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    """The same, spelled out: torch's own batch norm takes its statistics for constants in its third derivative."""
    y = F.linear(x.relu(), weight)
    variance, mean = torch.var_mean(y, (0, 1, 2), correction=0)
    out = (y - mean) * (variance + eps).rsqrt()
    out = out if gamma is None else out * gamma
    return out if beta is None else out + beta


_GIVEN = "Tensor x, Tensor weight, Tensor? gamma, Tensor? beta, float eps"
_RESULTS = "(Tensor, Tensor, Tensor, Tensor)"

ENTRY = define(f"entry({_GIVEN}) -> {_RESULTS}", _entry, _entry_fake, setup=_entry_setup, backward=_entry_backward)

GRADIENT = define(
    f"entry_gradient(Tensor grad, bool need_x, bool need_weight, Tensor y, Tensor mean, Tensor rstd, {_GIVEN}) -> {_RESULTS}",
    _gradient,
    _gradient_fake,
    setup=_gradient_setup,
    backward=_gradient_backward,
)

SECOND = define(
    "entry_second(Tensor? x_t, Tensor? weight_t, Tensor? gamma_t, Tensor? beta_t, bool need_x, bool need_weight, Tensor grad, "
    f"Tensor y, Tensor mean, Tensor rstd, {_GIVEN}) -> {_RESULTS}",
    _second,
    _second_fake,
)
