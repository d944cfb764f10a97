"""Training steps of modules by torch and on the kernels, and how far they are apart."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from oche.fast import quicken
from oche.fast.training import Quick


def drawn(build: Callable[[int, int], nn.Module], channels: int, stride: int = 1) -> nn.Module:
    """A module with batch norms that scale and shift."""
    torch.manual_seed(channels)
    op = build(channels, stride)
    for norm in op.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -1.0, 2.0)
    return op


def step(op: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Outputs, gradients and running statistics after a training step with some loss."""
    x = x.clone().requires_grad_()
    out = op.train()(x)
    (out * torch.linspace(-1, 2, out.numel(), dtype=x.dtype).view_as(out)).sum().backward()
    assert x.grad is not None
    found = {"out": out.detach(), "x": x.grad}
    found |= {f"gradient of {n}": p.grad for n, p in op.named_parameters() if p.grad is not None}
    return found | {n: b.clone().double() for n, b in op.named_buffers()}


def quick(op: nn.Module) -> nn.Module:
    """A copy on the kernels."""
    own = copy.deepcopy(op)
    quicken(own)
    assert any(isinstance(module, Quick) for module in own.modules())
    return own


def errors(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """The largest error of each tensor, as a part of its largest value."""
    assert found.keys() == exact.keys()
    return {n: float((found[n].double() - t).abs().max() / (t.abs().max() + 1e-2)) for n, t in exact.items()}
