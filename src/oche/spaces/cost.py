"""Costs of a network, counted: parameters, multiply-adds, peak memory of its activations, size of its file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from oche.base import Draw, Group
from oche.genotype import Genotype
from oche.spaces import Space
from oche.spaces.edges import WeightedSum
from oche.spaces.latency import Latencies
from oche.spaces.limits import Limits, Pricer
from oche.spaces.networks import Supernet
from oche.spaces.ops import PoolBN
from oche.spaces.traced import FLOAT, Tracer, traced

OVERHEAD, PER_CALL, PER_CLASS = 4096, 256, 96
"""Bytes of an ONNX file beside its weights: for the contract and the like, for each operation, and for a class's name. All are generous."""

INT8_CALL, INT8_CHANNEL = 96, 17
"""Bytes of an int8 file for each operation, whose steps of quantisation have short names, and for each output channel of a layer: a scale
and a zero of its weights, and a bias of four bytes with a scale and a zero of its own."""


@dataclass(frozen=True)
class Cost:
    """What one image costs, and what the network weighs, without its auxiliary head.

    `parameters` are those that learn: running statistics do not count. `memory` is the peak of the activations in bytes, float32,
    by the rule of `traced`. `size` is the most that its ONNX file in float32 takes, in bytes, `int8_size` the most that the int8 one does.
    """

    parameters: int
    multiply_adds: int
    memory: int
    size: int
    int8_size: int

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
    names = PER_CLASS * space.outputs
    return replace(found, size=found.size + names, int8_size=found.int8_size + names)


def prices_of(space: Space, genotype: Genotype) -> dict[str, float]:
    """The counted costs by name."""
    return dict(cost(space, genotype).table())


def priced(limits: Limits) -> Pricer:
    """What tells a network's costs under these limits: the counted ones, and the latency where it is limited."""
    table = limits.latencies
    if limits.latency is None or table is None:
        return prices_of
    return lambda space, genotype: {**prices_of(space, genotype), "latency": table.of_network(space, genotype)}


def cost_of(network: nn.Module, inputs: int, size: tuple[int, ...]) -> Cost:
    """The cost of a network on the meta device, for one image of `inputs` channels and that size."""
    found = traced(network.eval(), torch.zeros(1, inputs, *size, device="meta"))
    weights = [
        t for t in (*network.parameters(), *network.buffers()) if t.dim() > 0
    ]  # a counter of batches is no weight
    held = sum(t.numel() for t in weights)
    layers = [t for t in network.parameters() if t.dim() > 1]
    kernels = sum(t.numel() for t in layers)
    in_int8 = kernels + INT8_CHANNEL * sum(len(t) for t in layers) + FLOAT * (held - kernels)
    return Cost(
        parameters(network),
        found.multiply_adds,
        found.peak(),
        FLOAT * held + PER_CALL * found.calls + OVERHEAD,
        in_int8 + INT8_CALL * found.calls + OVERHEAD,
    )


@dataclass(frozen=True)
class Candidate:
    """A candidate of the supernet in the place where it stands: group, edge, cell among those of the group, number among the operations.

    `module` is the supernet's, `alone` builds that of a discrete network; `shape` is what comes in, batch included.
    """

    group: str
    edge: int
    cell: int
    number: int
    module: nn.Module
    alone: Callable[[], nn.Module]
    shape: torch.Size


def each_candidate(space: Space, affine: bool = False) -> tuple[list[Candidate], Mapping[tuple[str, int], int]]:
    """All candidates of the supernet that a forward pass of two images calls, on the meta device; (group, edge) -> cells that have it."""
    hooks: list[RemovableHandle] = []
    found: list[Candidate] = []
    built: Counter[tuple[str, int]] = Counter()

    def build(group: Group, e: int, channels: int, stride: int) -> nn.Module:
        cell = built[group.name, e]
        built[group.name, e] += 1

        def candidate(op: str, width: int) -> nn.Module:
            make = partial(space.operation, group, e, op, width, stride)
            module, number = make(affine, alone=False), group.ops[e].index(op)
            alone = partial(make, True, alone=True)

            def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                found.append(Candidate(group.name, e, cell, number, module, alone, inputs[0].shape))

            hooks.append(module.register_forward_hook(note))
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
    return found, built


@cache
def candidates(space: Space, affine: bool = False) -> dict[str, Tensor]:
    """{group: (n, E, O, 2) float64}: parameters and multiply-adds of every candidate of the supernet, 0 where an edge has none.

    n is the number of cells that share the group's alpha; each edge of a grid is there once. Counted on two images, for batch norms. With
    `affine` the weights of batch norms count, but for those behind a supernet's pools, which its networks do not have.
    """
    found, built = each_candidate(space, affine)
    tables = {}
    for group in space.groups:
        cells = max((n for (name, _), n in built.items() if name == group.name), default=0)
        tables[group.name] = torch.zeros(cells, len(group.edges), group.width, 2, dtype=torch.float64)
    for c in found:
        norm = parameters(c.module.norm) if isinstance(c.module, PoolBN) else 0
        adds = multiply_adds(c.module, torch.zeros(c.shape, device="meta")) / c.shape[0]
        row = tables[c.group][c.cell, c.edge, c.number]
        row[0], row[1] = parameters(c.module) - norm, adds
    return tables


@cache
def candidate_latencies(space: Space, table: Latencies) -> dict[str, Tensor]:
    """{group: (E, O) float64}: milliseconds of every candidate as it stands in a discrete network, summed over the cells that share it."""
    found = {group.name: torch.zeros(len(group.edges), group.width, dtype=torch.float64) for group in space.groups}
    for c in each_candidate(space)[0]:
        with torch.device("meta"):
            module = c.alone()
        found[c.group][c.edge, c.number] += table.of_module(module, tuple(c.shape[1:]))
    return found


def parameters(module: nn.Module) -> int:
    """The number of weights."""
    return sum(p.numel() for p in module.parameters())


def multiply_adds(network: nn.Module, images: torch.Tensor) -> int:
    """Multiply-adds of the convolutions and linear layers, and one add for each linear bias, as NAS-Bench-201 counts.

    Batch norm, pools, sums and activations are left out, as everywhere in the field.
    """
    return traced(network, images).multiply_adds
