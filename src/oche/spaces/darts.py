"""The DARTS space (S0): cells with two inputs, four nodes and eight candidate operations (Liu et al., ICLR 2019).

Normal cells keep the resolution; reduction cells at L//3 and 2L//3 halve it and double the channels. A node keeps its two
strongest incoming edges. Structure and sizes as in quark0/darts; the ImageNet stem as in yuhuixu1993/PC-DARTS.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

import torch
from torch import Tensor, nn

from oche.base import Group
from oche.errors import UserError
from oche.genotype import Choice, Genotype
from oche.spaces.base import BuildEdge, Space, with_pool_norm
from oche.spaces.heads import head
from oche.spaces.networks import Body, Cell, RunCell
from oche.spaces.ops import FactorizedReduce, ReLUConvBN

DARTS_OPS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)

MORE_OPS = ("sep_conv_7x7", "conv_7x1_1x7", "conv_3x1_1x3", "max_pool_5x5", "avg_pool_5x5")
"""Operations that published cells have beside those of the space (NASNet, AmoebaNet, SETN, alpha-ADARTS)."""

MOST_NODES = 10
"""Nodes of the largest published cell that is built; NASNet has five."""


def _with(ops: tuple[str, ...], used: set[str]) -> tuple[str, ...]:
    """The candidates and those of MORE_OPS that are used besides."""
    return ops + tuple(op for op in MORE_OPS if op in used and op not in ops)


def _edges(nodes: int) -> tuple[tuple[int, int], ...]:
    return tuple((source, target) for target in range(2, 2 + nodes) for source in range(target))


@dataclass(frozen=True)
class DartsSpace(Space):
    """`cells` cells of `nodes` nodes, the first with `channels` channels.

    `normal` and `reduce` list each edge's candidates, or the candidates of all edges. `stem` is "cifar" (one 3x3 convolution
    to `stem_multiplier * channels`), "imagenet" (three stride-2 convolutions, 1/8 of the resolution), or "auto": imagenet
    from 128 pixels on (our choice).
    """

    name: str = "darts"
    channels: int = 16
    cells: int = 8
    nodes: int = 4
    normal: tuple[tuple[str, ...], ...] = (DARTS_OPS,)
    reduce: tuple[tuple[str, ...], ...] = (DARTS_OPS,)
    stem: Literal["auto", "cifar", "imagenet"] = "auto"
    stem_multiplier: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cells < 1 or self.channels < 1 or self.nodes < 1:
            raise UserError(
                f"A DARTS space needs at least one cell, channel and node; given {self.cells}, {self.channels}, {self.nodes}."
            )

    @property
    def imagenet_stem(self) -> bool:
        return self.stem == "imagenet" or (self.stem == "auto" and min(self.size) >= 128)

    @property
    def reductions(self) -> set[int]:
        """Numbers of the reduction cells."""
        return {self.cells // 3, 2 * self.cells // 3}

    def kinds(self) -> tuple[Group, ...]:
        edges = _edges(self.nodes)
        names = {"normal": [], "reduce": []}  # type: dict[str, list[str]]
        for i in range(self.cells):
            names["reduce" if i in self.reductions else "normal"].append(f"cell_{i}")
        lists = {"normal": self.normal, "reduce": self.reduce}
        return tuple(
            Group(kind, edges, ops * len(edges) if len(ops) == 1 else ops, 2, tuple(names[kind]))
            for kind, ops in lists.items()
        )

    def outputs_of(self, kind: str) -> tuple[int, ...]:
        """The nodes that a cell of a kind concatenates."""
        return tuple(range(2, 2 + self.nodes))

    def fitted(self, genotype: Genotype) -> DartsSpace:
        """This space, or for a published cell that is none of its own one with the nodes, outputs and operations that the cell has.

        Operations and nodes are added to the DARTS space alone: its sub-spaces are defined by what they leave out.
        """
        if not genotype.plain or set(genotype.groups) != {"normal", "reduce"} or self.sharing != "type":
            return self
        cells = genotype.groups
        last = max((c.target for choices in cells.values() for c in choices), default=0)
        given = {f.name: getattr(self, f.name) for f in fields(DartsSpace)}
        if type(self) is DartsSpace and 2 <= last < 2 + MOST_NODES:
            used = {c.op for choices in cells.values() for c in choices}
            given["nodes"] = last - 1
            if len(self.normal) == len(self.reduce) == 1:
                given |= {kind: (_with(given[kind][0], used),) for kind in ("normal", "reduce")}
        if genotype.discrete and not genotype.concat and all(getattr(self, name) == v for name, v in given.items()):
            return self
        return PublishedSpace(**given, cells_of=cells, concat=genotype.concat)

    def candidate(self, op: str, channels: int, stride: int, affine: bool) -> nn.Module:
        return with_pool_norm(op, channels, stride, affine)

    def body(self, build: BuildEdge, *, affine: bool) -> DartsBody:
        return DartsBody(self, build, affine)

    def auxiliary(self) -> tuple[str, nn.Module] | None:
        size, channels, last = self._auxiliary_input()
        square = size if self.size[0] == self.size[1] else 0  # the published pools are for squares
        head = AuxiliaryHead(channels, square, self.outputs, last_norm=not self.imagenet_stem) if size >= 4 else None
        return (last, head) if head else None

    def _auxiliary_input(self) -> tuple[int, int, str]:
        """Resolution, channels and name of the second reduction cell's output."""
        size = min(self.size)
        for _ in range(len(self.reductions) + (3 if self.imagenet_stem else 0)):
            size = -(-size // 2)
        width = len(self.outputs_of("reduce")) * self.channels * 2 ** len(self.reductions)
        return size, width, f"cell_{max(self.reductions)}"

    def notes(self) -> tuple[str, ...]:
        said = []
        if any(not group.cells for group in self.kinds() if group.name == "normal"):
            said.append("there is no normal cell in so few cells: its part of the genotype is not searched")
        if self.imagenet_stem:
            said.append(
                f"images of {self.size[0]}x{self.size[1]} pixels: the ImageNet stem reduces them to 1/8 before the first cell"
            )
        if self.auxiliary() is None:
            said.append(f"the auxiliary head is off: images of {self.size[0]}x{self.size[1]} are too small for it")
        return tuple(said)


@dataclass(frozen=True)
class PublishedSpace(DartsSpace):
    """The DARTS space as one published cell has it: `concat` names the outputs that are not all, an edge may be there twice.

    Nodes that no choice leads to are absent. Its network is what `DartsSpace.fitted` is for; it has no supernet of its own.
    """

    cells_of: Mapping[str, tuple[Choice, ...]] = field(default_factory=dict)
    concat: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def fitted(self, genotype: Genotype) -> DartsSpace:
        return self

    def outputs_of(self, kind: str) -> tuple[int, ...]:
        return self.concat.get(kind, super().outputs_of(kind))

    def kinds(self) -> tuple[Group, ...]:
        """The groups of the space, with an edge for each of several operations between the same nodes."""
        found = []
        for kind in super().kinds():
            counts = Counter((c.source, c.target) for c in self.cells_of.get(kind.name, ()))
            times = [max(1, counts[edge]) for edge in kind.edges]
            edges = tuple(edge for edge, n in zip(kind.edges, times, strict=True) for _ in range(n))
            ops = tuple(listed for listed, n in zip(kind.ops, times, strict=True) for _ in range(n))
            found.append(Group(kind.name, edges, ops, kind.keep, kind.cells))
        return tuple(found)

    def check_inputs(self, genotype: Genotype) -> None:
        for name, choices in genotype.groups.items():
            fed, outputs = {c.target for c in choices}, self.outputs_of(name)
            lost = [node for node in outputs if node not in fed] or [
                c.source for c in choices if c.source >= 2 and c.source not in fed
            ]
            if lost or not outputs:
                raise UserError(
                    f"Cell {name!r} of the genotype leaves a node without input{f' ({lost[0]})' if lost else ''}: every node that is read "
                    "or concatenated needs at least one edge."
                )


class DartsBody(Body):
    """stem -> cells, each reading the two before it -> head."""

    def __init__(self, space: DartsSpace, build: BuildEdge, affine: bool) -> None:
        super().__init__()
        before = last = space.stem_multiplier * space.channels
        self.stem, self.stem1 = stems(space.inputs, last, space.imagenet_stem)
        self.cells = nn.ModuleDict()
        channels, was_reduction = space.channels, space.imagenet_stem
        groups = space.cell_groups()
        for i in range(space.cells):
            reduction = i in space.reductions
            channels *= 2 if reduction else 1
            name = f"cell_{i}"
            entry: Callable[[], nn.Module] = _entry(before, channels, was_reduction, affine)
            group = groups[name]
            edges = [
                build(group, e, channels, 2 if reduction and source < 2 else 1)
                for e, (source, _) in enumerate(group.edges)
            ]
            outputs = space.outputs_of("reduce" if reduction else "normal")
            entries = [entry(), ReLUConvBN(last, channels, 1, 1, affine)]
            self.cells[name] = Cell(entries, group, edges, concat=True, outputs=outputs)
            before, last, was_reduction = last, len(outputs) * channels, reduction
        self.classifier = head(last, space.outputs, space.density)

    def forward(self, x: Tensor, run_cell: RunCell) -> tuple[Tensor, dict[str, Tensor]]:
        before = self.stem(x)
        last = before if self.stem1 is None else self.stem1(before)
        observed: dict[str, Tensor] = {}
        for name, cell in self.cells.items():
            assert isinstance(cell, Cell)
            before, last = last, run_cell(name, cell, (before, last))
            observed[name] = last
        return self.classifier(last), observed


def _entry(inputs: int, channels: int, halve: bool, affine: bool) -> Callable[[], nn.Module]:
    if halve:
        return lambda: FactorizedReduce(inputs, channels, affine)
    return lambda: ReLUConvBN(inputs, channels, 1, 1, affine)


def stems(inputs: int, width: int, imagenet: bool) -> tuple[nn.Module, nn.Module | None]:
    """What leads to the first cell, and to the second input of it where that has a convolution more."""
    if not imagenet:
        return nn.Sequential(nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)), None
    first = nn.Sequential(
        nn.Conv2d(inputs, width // 2, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width // 2),
        nn.ReLU(),
        nn.Conv2d(width // 2, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
    )
    return first, ReLUConvBN(width, width, 3, 2, True)


class AuxiliaryHead(nn.Module):
    """The DARTS auxiliary classifier on features of `size` x `size`: pool to 2x2, 1x1 to 128, 2x2 to 768, linear.

    At 8x8 (CIFAR) and 7x7 (ImageNet) the pools are the published ones; other sizes pool adaptively (our choice).
    `last_norm=False` leaves out the second batch norm, as the ImageNet code does on purpose.
    """

    def __init__(self, channels: int, size: int, outputs: int, *, last_norm: bool) -> None:
        super().__init__()
        published = {8: nn.AvgPool2d(5, 3), 7: nn.AvgPool2d(5, 2)}
        self.features = nn.Sequential(
            nn.ReLU(),
            published.get(size, nn.AdaptiveAvgPool2d(2)),
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768) if last_norm else nn.Identity(),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return out
