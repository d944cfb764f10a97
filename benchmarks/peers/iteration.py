"""A search iteration as it was published: what the peers of this folder have in common. Nothing here needs oche.

First order (DARTS, section 2.3; PC-DARTS and NAS-Bench-201's DARTS-V1 take the same steps): alpha lies beside the weights in one graph,
and each `backward()` computes every gradient. Second order (DARTS, eqs. 7 and 8): a second model holds the weights of the look-ahead, and
the product with the Hessian is a difference of gradients at weights moved to both sides and back.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RATE, DECAY, CLIP, RADIUS = 0.025, 3e-4, 5.0, 0.01
MOMENTUM = 0.9

Batch = tuple[Tensor, Tensor]


@dataclass
class Built:
    """The model, its optimisers, and the two batches of an iteration."""

    network: nn.Module
    alphas: list[Tensor]
    weight_optimizer: torch.optim.Optimizer
    alpha_optimizer: torch.optim.Optimizer
    train: Batch
    val: Batch
    order: str


def begin(
    network: nn.Module, alphas: list[Tensor], batch: int, size: int, order: str, layout: str, *, nesterov: bool = False
) -> Built:
    """The search on random images. `order`: "first" or "second"; `layout`: "nchw" or "channels_last"."""
    memory = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}[layout]
    network.to(memory_format=memory)
    sgd = torch.optim.SGD(network.parameters(), RATE, momentum=MOMENTUM, weight_decay=DECAY, nesterov=nesterov)
    adam = torch.optim.Adam(alphas, 3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
    train, val = (
        (torch.randn(batch, 3, size, size).contiguous(memory_format=memory), torch.randint(10, (batch,)))
        for _ in range(2)
    )
    return Built(network, alphas, sgd, adam, train, val, {"first": "first", "second": "second"}[order])


def step(built: Built) -> None:
    """Alpha on one batch, then the weights on the other."""
    built.alpha_optimizer.zero_grad()
    if built.order == "first":
        loss(built.network, built.val).backward()
    else:
        second_order(built)
    built.alpha_optimizer.step()
    built.weight_optimizer.zero_grad()
    loss(built.network, built.train).backward()
    nn.utils.clip_grad_norm_(built.network.parameters(), CLIP)
    built.weight_optimizer.step()


def loss(network: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy."""
    return F.cross_entropy(network(batch[0]), batch[1])


def second_order(built: Built) -> None:
    """Leaves in alpha the gradient of the validation loss at w - rate dL/dw, the dependence of that on alpha included."""
    weights = list(built.network.parameters())
    grads = torch.autograd.grad(loss(built.network, built.train), weights)
    ahead = deepcopy(built.network)
    ahead.alphas = built.alphas
    moved = list(ahead.parameters())
    with torch.no_grad():
        for own, p, g in zip(weights, moved, grads, strict=True):
            buffer = built.weight_optimizer.state.get(own, {}).get("momentum_buffer")
            velocity = g + DECAY * own if buffer is None else MOMENTUM * buffer + g + DECAY * own
            p.sub_(RATE * velocity)
    loss(ahead, built.val).backward()
    vector = [p.grad for p in moved]
    radius = RADIUS / torch.cat([g.reshape(-1) for g in vector]).norm()
    sides = []
    for factor in (radius, -2 * radius):
        with torch.no_grad():
            for p, g in zip(weights, vector, strict=True):
                p.add_(factor * g)
        sides.append(torch.autograd.grad(loss(built.network, built.train), built.alphas))
    with torch.no_grad():
        for p, g in zip(weights, vector, strict=True):
            p.add_(radius * g)
        for alpha, plus, minus in zip(built.alphas, *sides, strict=True):
            alpha.grad -= RATE * (plus - minus) / (2 * radius)
