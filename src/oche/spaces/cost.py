"""Costs of a network, counted: parameters, multiply-adds, peak memory of its activations, size of its file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from oche.base import Draw, Group
from oche.genotype import Genotype
from oche.spaces import Space
from oche.spaces.base import Supernet
from oche.spaces.edges import WeightedSum
from oche.spaces.ops import PoolBN
from oche.spaces.traced import FLOAT, Tracer, traced

OVERHEAD, PER_CALL, PER_CLASS = 4096, 256, 96
"""Bytes of an ONNX file beside its weights: for the contract and the like, for each operation, and for a class's name. All are generous."""


@dataclass(frozen=True)
class Cost:
    """What one image costs, and what the network weighs, without its auxiliary head.

    `parameters` are those that learn: running statistics do not count. `memory` is the peak of the activations in bytes, float32,
    by the rule of `traced`. `size` is the most that its ONNX file in float32 takes, in bytes.
    """

    parameters: int
    multiply_adds: int
    memory: int
    size: int

    def __str__(self) -> str:
        counted = f"{self.parameters / 1e6:.3f} M parameters, {self.multiply_adds / 1e6:.2f} M multiply-adds"
        return f"{counted}, {self.memory / 1e3:.1f} KB of activations"

    def table(self) -> dict[str, int]:
        """By name, for a card and a log."""
        return asdict(self)


def cost(space: Space, genotype: Genotype) -> Cost:
    """The cost of `space.network(genotype)`. Nothing is computed: shapes are followed on the meta device."""
    with torch.device("meta"):
        found = cost_of(space.network(genotype), space.inputs, space.size)
    return replace(found, size=found.size + PER_CLASS * space.outputs)


def prices_of(space: Space, genotype: Genotype) -> dict[str, float]:
    """The counted costs by name."""
    return dict(cost(space, genotype).table())


def cost_of(network: nn.Module, inputs: int, size: tuple[int, ...]) -> Cost:
    """The cost of a network on the meta device, for one image of `inputs` channels and that size."""
    found = traced(network.eval(), torch.zeros(1, inputs, *size, device="meta"))
    weights = [
        t for t in (*network.parameters(), *network.buffers()) if t.dim() > 0
    ]  # a counter of batches is no weight
    held = FLOAT * sum(t.numel() for t in weights)
    return Cost(parameters(network), found.multiply_adds, found.peak(), held + PER_CALL * found.calls + OVERHEAD)


@cache
def candidates(space: Space, affine: bool = False) -> dict[str, Tensor]:
    """{group: (n, E, O, 2) float64}: parameters and multiply-adds of every candidate of the supernet, 0 where an edge has none.

    n is the number of cells that share the group's alpha; each edge of a grid is there once. Counted on two images, for batch norms. With
    `affine` the weights of batch norms count, but for those behind a supernet's pools, which its networks do not have.
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
            module = space.operation(group, e, op, width, stride, affine, alone=False)
            hooks.append(module.register_forward_hook(partial(note, row[group.ops[e].index(op)])))
            return module

        return space.mixing(group, e, WeightedSum())(group.ops[e], channels, stride, candidate)

    with torch.device("meta"):
        supernet = Supernet(space.body(build, affine=affine))
        ones = {group.name: torch.ones(len(group.edges), group.width) for group in space.groups}
        images = torch.zeros(2, space.inputs, *space.size)
        with torch.no_grad(), Tracer((), images):
            supernet(images, space.spread(ones), Draw(0))
        for hook in hooks:
            hook.remove()
        for row, module, shape in called:
            norm = parameters(module.norm) if isinstance(module, PoolBN) else 0
            row[0], row[1] = parameters(module) - norm, multiply_adds(module, torch.zeros(shape)) / shape[0]
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
    return traced(network, images).multiply_adds
