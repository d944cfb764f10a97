"""A supernet of one group and the same on the kernels, with its loss and gradients."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from oche.base import Draw
from oche.fast import accelerate
from oche.spaces.base import Space
from oche.spaces.edges import WeightedSum
from oche.spaces.networks import Supernet


def pair(of: Space, dtype: torch.dtype, affine: bool = False) -> tuple[Supernet, Supernet, Tensor, Tensor]:
    """(plain supernet, the same on the kernels, alpha-like weights, two images); its batch norms scale and shift."""
    torch.manual_seed(0)
    plain = of.supernet(WeightedSum(), affine=affine).to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for p in plain.parameters():
        if p.dim() == 1:
            p.data.add_(0.2 * torch.rand_like(p))
    (group,) = of.groups
    w = torch.rand(len(group.edges), max(len(ops) for ops in group.ops), dtype=dtype) + 0.1
    return plain, accelerate(copy.deepcopy(plain)), w, torch.randn(2, of.inputs, *of.size, dtype=dtype)


def loss(net: Supernet, w: Tensor, x: Tensor, of: Space) -> Tensor:
    (group,) = of.groups
    out, _ = net(x, of.spread({group.name: w}), Draw(0, 0, "weight", 0.0, {}))
    return (out * torch.linspace(-1, 2, out.numel(), dtype=x.dtype).view_as(out)).sum() / 100


def step(net: Supernet, w: Tensor, x: Tensor, of: Space) -> dict[str, Tensor]:
    """The loss and all gradients."""
    net.zero_grad()
    w, x = w.clone().requires_grad_(), x.clone().requires_grad_()
    value = loss(net, w, x, of)
    value.backward()
    found = {"loss": value.detach(), "w": w.grad, "x": x.grad}
    return {n: t for n, t in {**found, **{n: p.grad for n, p in net.named_parameters()}}.items() if t is not None}


def product(net: Supernet, w: Tensor, x: Tensor, of: Space) -> list[Tensor]:
    """A product with the Hessian in the op weights and the first cell's weights."""
    given = w.clone().requires_grad_()
    inputs = [given, *next(iter(net.body.cells.values())).parameters()]
    grads = torch.autograd.grad(loss(net, given, x, of) ** 2, inputs, create_graph=True)
    along = sum((g * torch.linspace(0, 1, g.numel(), dtype=g.dtype).view_as(g)).sum() for g in grads)
    return list(torch.autograd.grad(along, inputs))


def apart(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """The largest error of each tensor, as a part of its largest value."""
    assert found.keys() == exact.keys()
    return {n: float((found[n].double() - t).abs().max() / (t.abs().max() + 1e-2)) for n, t in exact.items()}
