"""Computes depthwise-separable candidates up to their batch norm in one kernel, on an accelerator.

`separable` is ReLU, depthwise, pointwise and the result's statistics; `sep_conv` is two of them with a batch norm between. Twice
differentiable: under `create_graph` the backward is that of the plain formula.
"""

from __future__ import annotations

from typing import Protocol, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oche.fast.backends import rows
from oche.fast.backends.device import Backend, Triton


def suits(op: nn.Module, kernels: Backend | None) -> TypeGuard[nn.Sequential]:
    """True if there are kernels for the candidate: blocks of ReLU, depthwise, pointwise, batch norm, of equal widths."""
    if not isinstance(kernels, Triton) or not isinstance(op, nn.Sequential) or not len(op) or len(op) % 4:
        return False
    return all(_block(*list(op)[first : first + 4]) for first in range(0, len(op), 4))


def run_separable(op: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(value before the last batch norm, its mean, its biased variance) of a candidate that `suits`; x before its ReLU."""
    modules = list(op)
    for first in range(0, len(modules), 4):
        depthwise, pointwise, norm = modules[first + 1 : first + 4]
        assert isinstance(depthwise, nn.Conv2d)
        assert isinstance(pointwise, nn.Conv2d)
        value, mean, variance = separable(
            x, depthwise.weight, pointwise.weight, depthwise.stride[0], depthwise.dilation[0]
        )
        x = norm(value) if first + 4 < len(modules) else value
    return x, mean, variance


def separable(x: Tensor, depth: Tensor, point: Tensor, stride: int, dilation: int) -> tuple[Tensor, Tensor, Tensor]:
    """(y (B, O, H', W'), mean (O,), variance (O,)); x (B, C, H, W), depth (C, 1, k, k), point (O, C, 1, 1)."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, depth, point = x.to(dtype), depth.to(dtype), point.to(dtype)
    found: tuple[Tensor, Tensor, Tensor] = _Separable.apply(x, depth, point, stride, dilation)  # type: ignore[no-untyped-call]
    return found


def plain_separable(x: Tensor, depth: Tensor, point: Tensor, stride: int, dilation: int) -> Tensor:
    """y by torch's convolutions: differentiable any number of times."""
    padding = dilation * (depth.shape[-1] - 1) // 2
    return F.conv2d(F.conv2d(F.relu(x), depth, None, stride, padding, dilation, len(depth)), point)


def _block(relu: nn.Module, depthwise: nn.Module, pointwise: nn.Module, norm: nn.Module) -> bool:
    if not (isinstance(relu, nn.ReLU) and isinstance(depthwise, nn.Conv2d) and isinstance(pointwise, nn.Conv2d)):
        return False
    if not isinstance(norm, nn.BatchNorm2d) or depthwise.bias is not None or pointwise.bias is not None:
        return False
    channels, (k, breadth), (dilation, across) = depthwise.in_channels, depthwise.kernel_size, depthwise.dilation
    centred = k == breadth and k % 2 == 1 and dilation == across and depthwise.stride[0] == depthwise.stride[1]
    return (
        centred
        and depthwise.groups == channels == depthwise.out_channels
        and depthwise.padding == (dilation * (k - 1) // 2,) * 2
        and (pointwise.kernel_size, pointwise.stride, pointwise.groups) == ((1, 1), (1, 1), 1)
        and pointwise.padding == (0, 0)
    )


class _Context(Protocol):
    saved_tensors: tuple[Tensor, Tensor, Tensor]
    needs_input_grad: tuple[bool, ...]
    stride: int
    dilation: int

    def save_for_backward(self, *tensors: Tensor) -> None: ...
    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...


class _Separable(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context, x: Tensor, depth: Tensor, point: Tensor, stride: int, dilation: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        from oche.fast.backends import triton_separable

        ctx.stride, ctx.dilation = stride, dilation
        ctx.save_for_backward(x, depth, point)
        x = rows.as_rows(x)
        y, mean, variance = triton_separable.forward(x, rows.step(x), depth, point, stride, dilation)
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx: _Context, grad: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        from oche.fast.backends import triton_separable

        need, given = ctx.needs_input_grad[:3], ctx.saved_tensors
        if torch.is_grad_enabled():
            inputs = [t.view_as(t) for t in given]
            y = plain_separable(inputs[0], inputs[1], inputs[2], ctx.stride, ctx.dilation)
            wanted = [t for t, asked in zip(inputs, need, strict=True) if asked]
            made = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
            return (*(next(made) if asked else None for asked in need), None, None)
        x, depth, point = given
        x, grad = rows.as_rows(x), rows.dense(grad)
        step, (outputs, channels) = rows.step(x), point.shape[:2]
        batch, _, height, width = grad.shape
        flat = grad.permute(0, 2, 3, 1).reshape(-1, outputs)
        dz = (flat @ point.reshape(outputs, channels)).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        dx = triton_separable.to_input(x, step, depth, dz, ctx.stride, ctx.dilation) if need[0] else None
        if not need[1] and not need[2]:
            return dx, None, None, None, None
        z, ddepth = triton_separable.to_weights(x, step, depth, dz, ctx.stride, ctx.dilation)
        dpoint = (flat.T @ z.permute(0, 2, 3, 1).reshape(-1, channels)).reshape(point.shape)
        return dx, ddepth, dpoint, None, None
