"""A small network of the DARTS space and its architecture gradient, for the tests of second order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from oche.base import Alpha, Batch, Draw, Params
from oche.optim import SGD
from oche.search.bilevel import ArchGradient, Bilevel
from oche.spaces.darts import DartsSpace
from oche.spaces.networks import Supernet

SPACE = DartsSpace(channels=4, cells=3, nodes=2, size=(8, 8), stem_multiplier=2)


def arch_gradient(net: Supernet, how: ArchGradient, frozen: Sequence[str] = ()) -> Alpha:
    """The architecture gradient of a small network after one weight step, so that there is momentum."""
    rng = torch.Generator().manual_seed(5)
    images = [torch.randn(4, 3, 8, 8, generator=rng, dtype=torch.float64) for _ in range(2)]
    inner, outer = (Batch(x, torch.tensor([0, 1, 2, 3])) for x in images)
    alpha: Alpha = {
        g.name: torch.randn(len(g.edges), g.width, generator=rng, dtype=torch.float64).requires_grad_()
        for g in SPACE.groups
    }
    theta = {name: p for name, p in net.named_parameters() if not name.startswith(tuple(frozen) or "-")}
    optimizer = torch.optim.SGD(theta.values(), 0.025, momentum=0.9)

    def loss(weights: Params, by_group: Alpha, batch: Batch) -> Tensor:
        op_weights = SPACE.spread({name: t.softmax(-1) for name, t in by_group.items()})
        outputs, _ = torch.func.functional_call(net, weights, (batch.images, op_weights, Draw(0)))
        return F.cross_entropy(outputs, batch.targets)

    class Two:
        def inner(self) -> Batch:
            return inner

        def outer(self) -> Batch:
            return outer

    loss(theta, alpha, inner).backward()
    optimizer.step()
    problem = Bilevel(loss, loss, lambda weights, grads: SGD().look_ahead(weights, grads, optimizer))
    return how(problem, theta, alpha, Two())[1]  # type: ignore[arg-type]
