"""How does an input enter a cell? ReLU, 1x1 convolution and batch norm as one differentiable operation that keeps no copy of the ReLU.

    y = W max(x, 0),  out = a y + b              a = g r, b = s - g m r; m and r = 1/sqrt(var + eps) over M images and pixels
    dy = a (dout - (r1 + (y - m) r q) / M)       r1 = sum dout, q = (sum dout y - m r1) r;  dg = q, ds = r1
    dx = (x > 0) W^T dy,  dW = dy max(x, 0)^T

The input is kept by whoever made it; only y is kept here. Twice differentiable, by plain torch.
"""

from __future__ import annotations

import functools
from typing import Protocol, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oche.fast import rows
from oche.fast.buffers import Buffers
from oche.fast.device import Backend
from oche.fast.native import Kernels
from oche.fast.packed import LANES, differentiable
from oche.fast.portable import of_batch
from oche.ops import ReLUConvBN


def enter(entry: nn.Module, x: Tensor, kernels: Backend | None, buffers: Buffers) -> Tensor:
    """entry(x), in the compiled kernels where they can."""
    if not isinstance(kernels, Kernels) or not _fits(entry, x, kernels):
        out: Tensor = entry(x)
        return out
    conv, norm = entry[1], entry[2]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    pixels = x.permute(0, 2, 3, 1).contiguous()
    weight = conv.weight.flatten(1)
    made: Tensor = _Enter.apply(kernels, buffers, norm.eps, pixels, weight, norm.weight, norm.bias)  # type: ignore[no-untyped-call]
    return made.permute(0, 3, 1, 2)


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


class _Context(Protocol):
    saved_tensors: tuple[Tensor | None, ...]
    needs_input_grad: tuple[bool, ...]
    kernels: Kernels
    eps: float
    moments: tuple[Tensor, Tensor]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class _Enter(torch.autograd.Function):
    """(kernels, buffers, eps, x (B, H, W, C), weight (C', C), gamma or None, beta or None) -> (B, H, W, C')."""

    @staticmethod
    def forward(
        ctx: _Context,
        kernels: Kernels,
        buffers: Buffers,
        eps: float,
        x: Tensor,
        weight: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
    ) -> Tensor:
        shape = (*x.shape[:3], len(weight))
        kept = buffers.take(x[..., 0].numel() * len(weight), x.dtype)
        y = kept.view(-1, len(weight))
        mean, variance = rows.enter(kernels, x, weight.t().contiguous(), y)
        rstd = (variance + eps).rsqrt()
        a = rstd if gamma is None else gamma.double() * rstd
        b = -a * mean if beta is None else beta.double() - a * mean
        ctx.kernels, ctx.eps, ctx.moments = kernels, eps, (mean, rstd)
        ctx.save_for_backward(x, weight, gamma, beta, kept)  # not its view: the buffer lives as long as this
        return torch.addcmul(b.to(x.dtype), y, a.to(x.dtype)).view(shape)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, gamma, beta, kept = ctx.saved_tensors
        assert x is not None
        assert weight is not None
        assert kept is not None
        if torch.is_grad_enabled():
            plain = functools.partial(_plain, ctx.eps)
            return (None, None, None, *differentiable(plain, ctx.needs_input_grad[3:], grad, [x, weight, gamma, beta]))
        mean, rstd = ctx.moments
        y = kept.view(-1, len(weight))
        grad = grad.contiguous().view(y.shape)
        pivot = mean.to(y.dtype)
        r2, r1 = rows.dots(ctx.kernels, [_image(y)], pivot, _image(grad))
        q = (r2 - (mean - pivot.double()) * r1) * rstd
        a = rstd if gamma is None else gamma.double() * rstd
        e = -a * q * rstd / len(y)
        b = -a * r1 / len(y) - e * mean
        a, b, e = (t.to(y.dtype) for t in (a, b, e))
        dx, dweight = rows.leave(ctx.kernels, x, y, grad, weight, a, b, e, *ctx.needs_input_grad[3:5])
        dgamma, dbeta = (t.to(y.dtype) if beta is not None else None for t in (q, r1))
        return None, None, None, dx, dweight, dgamma, dbeta


def _image(t: Tensor) -> Tensor:
    """(M, C) as (M, C, 1, 1)."""
    return t[:, :, None, None]


def _plain(eps: float, x: Tensor, weight: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    y = F.conv2d(x.permute(0, 3, 1, 2).relu(), weight[:, :, None, None])
    return F.batch_norm(y, None, None, gamma, beta, True, 0.0, eps).permute(0, 2, 3, 1)
