"""Batch norm over the images of all processes: with it, several processes compute what one computes on the whole batch.

Every process holds as many images. Its share of the statistics is exchanged in the forward pass, and their gradients in each
backward pass, a second one included, so that the mean over processes of any gradient is the gradient of the mean loss.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from oche.optim import average


class _Mean(torch.autograd.Function):
    """The mean over processes; its derivative is the mean over processes, too."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, fabric: Fabric) -> Tensor:
        ctx.fabric = fabric
        return average(fabric, [t])[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        mean: Tensor = _Mean.apply(grad.contiguous(), ctx.fabric)  # type: ignore[no-untyped-call]
        return mean, None


class SynchronisedBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose batch is that of all processes of `fabric`: the same weights, buffers and results up to rounding."""

    fabric: Fabric

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training or self.running_mean is None):
            return super().forward(x)
        values = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        mean, variance = moments(values, self.fabric)
        self._remember(mean, variance, values.numel() // values.shape[1] * self.fabric.world_size)
        scale = (variance + self.eps).rsqrt()
        scale = scale if self.weight is None else scale * self.weight
        out = (values - mean[:, None, None]) * scale[:, None, None]
        out = out if self.bias is None else out + self.bias[:, None, None]
        return out.to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Moves the running statistics towards those of the batch, as `nn.BatchNorm2d` does."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_((variance * count / max(count - 1, 1)).to(self.running_var), share)


def moments(x: Tensor, fabric: Fabric) -> tuple[Tensor, Tensor]:
    """(mean, biased variance) (C,) of the images x (B, C, H, W) of all processes, in one exchange.

    Each process's own mean and variance lie in a row of their own, so that nothing is subtracted from a large mean square.
    """
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    own = torch.stack([mean, variance])
    rows = [own if rank == fabric.global_rank else torch.zeros_like(own) for rank in range(fabric.world_size)]
    means, variances = (fabric.world_size * _Mean.apply(torch.stack(rows), fabric)).unbind(1)  # type: ignore[no-untyped-call]
    whole = means.mean(0)
    return whole, (variances + (means - whole).square()).mean(0)


def synchronise(network: nn.Module, fabric: Fabric) -> None:
    """Makes every batch norm of the network one over all processes, in place."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SynchronisedBatchNorm
            module.__dict__["fabric"] = fabric


def alone_again(network: nn.Module) -> None:
    """Undoes `synchronise` in a network that keeps running statistics: an ordinary module again."""
    for module in network.modules():
        if isinstance(module, SynchronisedBatchNorm):
            del module.__dict__["fabric"]
            module.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
