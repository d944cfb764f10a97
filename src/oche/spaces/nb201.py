"""The NAS-Bench-201 space: one cell of four nodes, one of five operations on each of six edges (Dong & Yang, ICLR 2020).

Three stages of `cells` cells at 16, 32 and 64 channels, a residual block with stride 2 between stages. Every edge keeps its
strongest operation, `none` included. Structure as in D-X-Y/AutoDL-Projects.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from oche.base import Group
from oche.errors import UserError
from oche.spaces.base import BuildEdge, Space
from oche.spaces.heads import head
from oche.spaces.networks import Body, Cell, RunCell
from oche.spaces.ops import ReLUConvBN

NB201_OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


@dataclass(frozen=True)
class NB201Space(Space):
    """`stages` stages of `cells` cells (N in the paper), the first with `channels` channels; `nodes` counts the input node."""

    name: str = "nb201"
    channels: int = 16
    cells: int = 5
    stages: int = 3
    nodes: int = 4
    ops: tuple[str, ...] = NB201_OPS

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.channels, self.cells, self.stages) < 1 or self.nodes < 2:
            raise UserError("A NAS-Bench-201 space needs at least one channel, cell and stage, and two nodes.")

    def kinds(self) -> tuple[Group, ...]:
        edges = tuple((source, target) for target in range(1, self.nodes) for source in range(target))
        names = tuple(f"cell_{i}" for i in range(self.stages * self.cells))
        return (Group("cell", edges, (self.ops,) * len(edges), None, names),)

    def body(self, build: BuildEdge, *, affine: bool) -> NB201Body:
        return NB201Body(self, build)


class NB201Body(Body):
    """stem -> stages of cells with residual reductions between -> batch norm, ReLU, global average -> linear."""

    def __init__(self, space: NB201Space, build: BuildEdge) -> None:
        super().__init__()
        channels = space.channels
        self.stem = nn.Sequential(nn.Conv2d(space.inputs, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.cells, self.reductions = nn.ModuleDict(), nn.ModuleDict()
        groups = space.cell_groups()
        for i in range(space.stages * space.cells):
            name = f"cell_{i}"
            if i and i % space.cells == 0:
                self.reductions[name] = ResidualReduction(channels, 2 * channels)
                channels *= 2
            group = groups[name]
            edges = [build(group, e, channels, 1) for e in range(len(group.edges))]
            self.cells[name] = Cell([nn.Identity()], group, edges, concat=False)
        self.last = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.classifier = head(channels, space.outputs, space.density)

    def forward(self, x: Tensor, run_cell: RunCell) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.stem(x)
        observed: dict[str, Tensor] = {}
        for name, cell in self.cells.items():
            assert isinstance(cell, Cell)
            if name in self.reductions:
                x = self.reductions[name](x)
            observed[name] = x = run_cell(name, cell, (x,))
        return self.classifier(self.last(x)), observed


class ResidualReduction(nn.Module):
    """Two 3x3 convolutions, the first with stride 2, beside a 2x2 average pool and a 1x1 convolution without batch norm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.deep = nn.Sequential(ReLUConvBN(inputs, outputs, 3, 2, True), ReLUConvBN(outputs, outputs, 3, 1, True))
        self.short = nn.Sequential(
            nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False), nn.Conv2d(inputs, outputs, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.deep(x) + self.short(x)
        return out
