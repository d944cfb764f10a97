"""What a network costs: parameters and multiply-adds, counted, not guessed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from oche.genotype import Genotype
from oche.spaces import Space


@dataclass(frozen=True)
class Cost:
    """`parameters` of the network without its auxiliary head; `multiply_adds` of one image."""

    parameters: int
    multiply_adds: int

    def __str__(self) -> str:
        return f"{self.parameters / 1e6:.3f} M parameters, {self.multiply_adds / 1e6:.2f} M multiply-adds"


def cost(space: Space, genotype: Genotype) -> Cost:
    """The cost of `space.network(genotype)`. Nothing is computed: shapes are followed on the meta device."""
    with torch.device("meta"):
        network = space.network(genotype).eval()
        images = torch.zeros(1, space.inputs, *space.size)
    return Cost(parameters(network), multiply_adds(network, images))


def parameters(module: nn.Module) -> int:
    """The number of weights."""
    return sum(p.numel() for p in module.parameters())


def multiply_adds(network: nn.Module, images: torch.Tensor) -> int:
    """Multiply-adds of the convolutions and linear layers, and one add for each linear bias, as NAS-Bench-201 counts.

    Batch norm, pools, sums and activations are left out, as everywhere in the field.
    """
    biases = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal biases
        if isinstance(module, nn.Linear) and module.bias is not None:
            biases += output.numel()

    hooks = [module.register_forward_hook(count) for module in network.modules()]
    with FlopCounterMode(display=False) as counter:
        network(images)
    for hook in hooks:
        hook.remove()
    return int(counter.get_total_flops()) // 2 + biases
