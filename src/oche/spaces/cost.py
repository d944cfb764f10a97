"""Costs of a network: parameters and multiply-adds, counted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

from oche.base import Draw, Group
from oche.genotype import Genotype
from oche.spaces import Space
from oche.spaces.base import Supernet
from oche.spaces.edges import WeightedSum


@dataclass(frozen=True)
class Cost:
    """`parameters` of the network without its auxiliary head; `multiply_adds` for one image."""

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


@cache
def candidates(space: Space) -> dict[str, Tensor]:
    """{group: (n, E, O, 2) float64}: parameters and multiply-adds of every candidate of the supernet, 0 where an edge has none.

    n is the number of cells that share the group's alpha; each edge of a grid is there once. Counted on two images, for batch norms.
    """
    rows: dict[str, list[list[Tensor]]] = {group.name: [[] for _ in group.edges] for group in space.groups}
    hooks: list[RemovableHandle] = []
    called: list[tuple[Tensor, nn.Module, torch.Size]] = []

    def note(row: Tensor, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        called.append((row, module, inputs[0].shape))

    def build(group: Group, e: int, channels: int, stride: int) -> nn.Module:
        row = torch.zeros(group.width, 2, dtype=torch.float64, device="cpu")
        rows[group.name][e].append(row)

        def candidate(op: str, width: int) -> nn.Module:
            module = space.operation(group, e, op, width, stride, False, alone=False)
            hooks.append(module.register_forward_hook(partial(note, row[group.ops[e].index(op)])))
            return module

        return space.mixing(group, e, WeightedSum())(group.ops[e], channels, stride, candidate)

    with torch.device("meta"):
        supernet = Supernet(space.body(build, affine=False))
        ones = {group.name: torch.ones(len(group.edges), group.width) for group in space.groups}
        supernet(torch.zeros(2, space.inputs, *space.size), space.spread(ones), Draw(0))
        for hook in hooks:
            hook.remove()
        for row, module, shape in called:
            row[0], row[1] = parameters(module), multiply_adds(module, torch.zeros(shape)) / shape[0]
    none = {group.name: torch.zeros(0, group.width, 2, dtype=torch.float64) for group in space.groups}
    return {
        name: torch.stack([torch.stack(edge) if edge else none[name] for edge in edges], dim=1)
        for name, edges in rows.items()
    }


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
