"""How does an input enter a cell? ReLU, 1x1 convolution and batch norm as one differentiable operation that keeps no copy of the ReLU.

    y = W max(x, 0),  out = a y + b              a = g r, b = s - g m r; m and r = 1/sqrt(var + eps) over M images and pixels
    dy = a (dout - (r1 + (y - m) r q) / M)       r1 = sum dout, q = (sum dout y - m r1) r;  dg = q, ds = r1
    dx = (x > 0) W^T dy,  dW = dy max(x, 0)^T

The input is kept by whoever made it; only y is kept here. The second derivative is that of plain torch.
"""

from __future__ import annotations

import functools
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oche.fast import rows
from oche.fast.buffers import shared
from oche.fast.device import Backend
from oche.fast.library import Context, asked, define, derivative_of_derivative
from oche.fast.native import Kernels
from oche.fast.packed import LANES
from oche.fast.portable import of_batch
from oche.ops import ReLUConvBN


def enter(entry: nn.Module, x: Tensor, kernels: Backend | None) -> Tensor:
    """entry(x), in the compiled kernels where they can."""
    if not isinstance(kernels, Kernels) or not _fits(entry, x, kernels):
        out: Tensor = entry(x)
        return out
    conv, norm = entry[1], entry[2]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    pixels = x.permute(0, 2, 3, 1).contiguous()
    weight = conv.weight.flatten(1)
    return ENTRY(pixels, weight, norm.weight, norm.bias, norm.eps)[0].permute(0, 3, 1, 2)


def _fits(entry: nn.Module, x: Tensor, kernels: Kernels) -> TypeGuard[ReLUConvBN]:
    if not isinstance(entry, ReLUConvBN) or not of_batch(entry[2]) or not isinstance(entry[1], nn.Conv2d):
        return False
    conv = entry[1]
    return (
        (conv.kernel_size, conv.stride, conv.padding, conv.groups) == ((1, 1), (1, 1), (0, 0), 1)
        and conv.in_channels % LANES == conv.out_channels % LANES == 0
        and conv.bias is None
        and x.dtype == conv.weight.dtype
        and rows.suit(kernels, [x])
        and not torch.is_autocast_enabled("cpu")
    )


# ------------------------------------------------------------------ the operators

_Four = tuple[Tensor, Tensor, Tensor, Tensor]


def _entry(x: Tensor, weight: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float) -> _Four:
    """Out (B, H, W, C') of x (B, H, W, C) and weight (C', C); y as one row of numbers; its mean and r (C',) in fp64."""
    kept = shared().take(x[..., 0].numel() * len(weight), x.dtype)
    y = kept.view(-1, len(weight))
    mean, variance = rows.enter(x, weight.t().contiguous(), y)
    rstd = (variance + eps).rsqrt()
    a = rstd if gamma is None else gamma.double() * rstd
    b = -a * mean if beta is None else beta.double() - a * mean
    return torch.addcmul(b.to(x.dtype), y, a.to(x.dtype)).view(*x.shape[:3], len(weight)), kept, mean, rstd


def _entry_fake(x: Tensor, weight: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float) -> _Four:
    out = x.new_empty(*x.shape[:3], len(weight))
    mean, rstd = (x.new_empty(len(weight), dtype=torch.float64) for _ in range(2))
    return out, x.new_empty(out.numel()), mean, rstd


class _Context(Context):
    eps: float


def _entry_setup(
    ctx: _Context, inputs: tuple[Tensor, Tensor, Tensor | None, Tensor | None, float], output: _Four
) -> None:
    *tensors, ctx.eps = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*tensors, *output[1:])


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
    found = GRADIENT(grad.contiguous(), *need, kept, mean, rstd, x, weight, gamma, beta, ctx.eps)
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
    """Gradients of x, weight, gamma and beta; empty where there is none."""
    y = kept.view(-1, len(weight))
    grad = grad.view(y.shape)
    pivot = mean.to(y.dtype)
    r2, r1 = rows.DOTS([_image(y)], pivot, _image(grad))
    q = (r2 - (mean - pivot.double()) * r1) * rstd
    a = rstd if gamma is None else gamma.double() * rstd
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
    grad, _, _, _, _, _, *tensors, eps = inputs
    ctx.eps = eps  # type: ignore[assignment]
    ctx.save_for_backward(grad, *tensors)  # type: ignore[arg-type]


def _gradient_backward(ctx: _Context, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
    grad, *tensors = ctx.saved_tensors
    assert grad is not None
    needs, plain = ctx.needs, functools.partial(_plain, ctx.eps)
    out, *grads = derivative_of_derivative(plain, tensors, grad, directions, (needs[0], *needs[6:10]))
    return out, None, None, None, None, None, *grads, None


def _image(t: Tensor) -> Tensor:
    """(M, C) as (M, C, 1, 1)."""
    return t[:, :, None, None]


def _plain(eps: float, x: Tensor, weight: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    y = F.conv2d(x.permute(0, 3, 1, 2).relu(), weight[:, :, None, None])
    return F.batch_norm(y, None, None, gamma, beta, True, 0.0, eps).permute(0, 2, 3, 1)


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
