"""A max pool that `torch.compile` leaves to torch: on the CPU inductor's own takes twice as long, forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from oche.fast.backends.library import Context, define


def left_alone(pool: nn.MaxPool2d, x: Tensor) -> Tensor:
    """pool(x), an operator that a program calls; on an accelerator, or of a rarer kind, the pool itself."""
    sizes = (pool.kernel_size, pool.stride, pool.padding)
    whole = [n for n in sizes if isinstance(n, int)]
    if x.device.type != "cpu" or len(whole) < len(sizes) or pool.dilation != 1 or pool.ceil_mode:
        out: Tensor = pool(x)
        return out
    return MAX_POOL(x, *whole)[0]


def _pool(x: Tensor, kernel: int, stride: int, padding: int) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = torch.ops.aten.max_pool2d_with_indices(x, [kernel] * 2, [stride] * 2, [padding] * 2)
    return found


class _Context(Context):
    sizes: tuple[int, int, int]


def _setup(ctx: _Context, inputs: tuple[Tensor, int, int, int], output: tuple[Tensor, Tensor]) -> None:
    x, *sizes = inputs
    ctx.sizes = (sizes[0], sizes[1], sizes[2])
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, output[1])


def _backward(ctx: _Context, grad: Tensor | None, _: object) -> tuple[Tensor | None, None, None, None]:
    x, indices = ctx.saved_tensors
    assert x is not None
    assert indices is not None
    return None if grad is None else GRADIENT(grad, x, indices, *ctx.sizes), None, None, None


def _gradient(grad: Tensor, x: Tensor, indices: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    found: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(
        grad, x, [kernel] * 2, [stride] * 2, [padding] * 2, [1, 1], False, indices
    )
    return found


_SIZES = "int kernel, int stride, int padding"

MAX_POOL = define(f"max_pool(Tensor x, {_SIZES}) -> (Tensor, Tensor)", _pool, _pool, setup=_setup, backward=_backward)
GRADIENT = define(f"max_pool_gradient(Tensor grad, Tensor x, Tensor indices, {_SIZES}) -> Tensor", _gradient, _gradient)
