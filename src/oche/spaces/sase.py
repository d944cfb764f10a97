"""The space of attention blocks: what to squeeze and how to excite, in six slots, behind every block of a fixed backbone.

SASE (Wang et al., arXiv 2411.08333) searches the plug-in attention and leaves the backbone as it is. Its wiring, from a review of it:

    d = slot 1(x)          channel squeeze     (B, C, H, W) -> (B, C, 1, 1)
    c = slot 2(d)          channel excitation: the channel branch
    r = slot 3(d)          channel excitation: weighs what the spatial branch sees
    m = slot 4(x), n = slot 5(x * sigmoid(r))          spatial squeezes -> (B, 1, H, W)
    s = slot 6( norm( conv [m ; n] ) )                 spatial excitation
    y = x * sigmoid(c) * sigmoid(s)

Each slot is an edge with candidates of its own (`slots`), and one architecture holds for all blocks, or with `sharing="cell"` one for each.
Known from the paper: the four sets of operations, the wiring, the relaxation over each slot. Ours: which operations the sets have, the
product of the two branches, the 3x3 convolution that joins the maps, and backbones for small images: residual blocks of two 3x3
convolutions (`resnet`), or inverted bottlenecks of expansion 3 with the attention behind the depthwise convolution (`mobile`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from oche.base import Group
from oche.errors import UserError
from oche.spaces.base import BuildEdge, Space
from oche.spaces.blocks import Place
from oche.spaces.edges import EdgeFactory, Normed, whole
from oche.spaces.heads import head
from oche.spaces.networks import Body, Cell, RunCell, Through
from oche.spaces.slots import CHANNEL_EXCITE, CHANNEL_SQUEEZE, SLOT_OPS, SPATIAL_EXCITE, SPATIAL_SQUEEZE

SLOTS = ((0, 1), (1, 2), (1, 3), (0, 4), (3, 5), (5, 6))
"""Slots as edges; slot 6 reads node 4 beside node 5."""

SETS = (CHANNEL_SQUEEZE, CHANNEL_EXCITE, CHANNEL_EXCITE, SPATIAL_SQUEEZE, SPATIAL_SQUEEZE, SPATIAL_EXCITE)

EXPANSION = 3


class Layer(NamedTuple):
    """A block of the backbone: its name, channels in and out, stride."""

    name: str
    inputs: int
    outputs: int
    stride: int


@dataclass(frozen=True)
class SaseSpace(Space):
    """Attention of six slots in every block of a backbone of `layers` blocks per stage; the width doubles from stage to stage."""

    name: str = "sase"
    channels: int = 16
    layers: tuple[int, ...] = (2, 2, 2)
    backbone: Literal["resnet", "mobile"] = "resnet"

    def __post_init__(self) -> None:
        if not self.layers or min(self.channels, *self.layers) < 1:
            raise UserError("A backbone needs at least one channel, one stage, and one block in every stage.")
        super().__post_init__()

    @property
    def known(self) -> Collection[str]:
        return SLOT_OPS

    def blocks(self) -> tuple[Layer, ...]:
        """The blocks, from the stem on."""
        found, inputs = list[Layer](), self.channels
        for stage, count in enumerate(self.layers, 1):
            for number in range(1, count + 1):
                width = self.channels * 2 ** (stage - 1)
                stride = 2 if number == 1 and stage > 1 else 1
                found.append(Layer(f"stage{stage}_block{number}", inputs, width, stride))
                inputs = width
        return tuple(found)

    def kinds(self) -> tuple[Group, ...]:
        cells = tuple(layer.name for layer in self.blocks())
        return (Group("attention", SLOTS, tuple(tuple(ops) for ops in SETS), None, cells),)

    def mixing(self, group: Group, e: int, edge: EdgeFactory) -> EdgeFactory:
        """A slot has no channels that could pass by it, and no batch norm behind an identity: it passes descriptors and maps on."""
        return whole(edge.inner if isinstance(edge, Normed) else edge)

    def operation(
        self, group: Group, e: int, op: str, channels: int, stride: int, affine: bool, *, alone: bool
    ) -> nn.Module:
        if op not in SLOT_OPS:
            raise UserError(
                f"A slot of an attention block has no {op}: choose a method that adds no operation of its own."
            )
        return SLOT_OPS[op](channels)

    def body(self, build: BuildEdge, *, affine: bool) -> SaseBody:
        return SaseBody(self, build, affine)

    @property
    def reduction(self) -> int:
        """The stride of the stem: 1, from 64 pixels on 2, from 128 on 4."""
        side = max(self.size)
        return 1 if side < 64 else 2 if side < 128 else 4

    def notes(self) -> tuple[str, ...]:
        side = f"{self.size[0]}x{self.size[1]}"
        return (f"blocks begin at 1/{self.reduction} of {side}",) if self.reduction > 1 else ()


class AttentionCell(Cell):
    """x (B, C, H, W) times its channels' and its pixels' attention, from six slots."""

    def __init__(self, group: Group, edges: Sequence[nn.Module | None], affine: bool) -> None:
        super().__init__([nn.Identity()], group, edges, concat=False)
        self.join = nn.Sequential(nn.Conv2d(2, 1, 3, padding=1, bias=False), nn.BatchNorm2d(1, affine=affine))

    def forward(self, inputs: Sequence[Tensor], through: Through) -> Tensor:
        (x,) = inputs
        slots = list(enumerate(self.edges.values()))
        descriptor = through(*slots[0], x)
        branch, weigh = through(*slots[1], descriptor), through(*slots[2], descriptor)
        maps = through(*slots[3], x), through(*slots[4], x * weigh.sigmoid())
        pixels = through(*slots[5], self.join(torch.cat(maps, dim=1)))
        return x * branch.sigmoid() * pixels.sigmoid()


class SaseBody(Body):
    """stem -> blocks, each with its attention -> head."""

    def __init__(self, space: SaseSpace, build: BuildEdge, affine: bool) -> None:
        super().__init__()
        around = Place(space.inputs, space.channels)
        pool = [nn.MaxPool2d(3, 2, 1)] if space.reduction == 4 else []
        self.stem = nn.Sequential(
            *around.normed(space.inputs, space.channels, 3, min(space.reduction, 2)), nn.ReLU(), *pool
        )
        self.cells, self.before, self.behind, self.shortcuts = (nn.ModuleDict() for _ in range(4))
        groups = space.cell_groups()
        for layer in space.blocks():
            place, group = Place(layer.inputs, layer.outputs, layer.stride), groups[layer.name]
            wide = layer.outputs if space.backbone == "resnet" else EXPANSION * layer.inputs
            first, last = resnet_block(place) if space.backbone == "resnet" else mobile_block(place, wide)
            self.before[layer.name], self.behind[layer.name] = nn.Sequential(*first), nn.Sequential(*last)
            self.shortcuts[layer.name] = place.shortcut()
            self.cells[layer.name] = AttentionCell(
                group, [build(group, e, wide, 1) for e in range(len(group.edges))], affine
            )
        self.last = nn.Identity() if space.backbone == "mobile" else nn.ReLU()
        self.classifier = head(layer.outputs, space.outputs, space.density)

    def forward(self, x: Tensor, run_cell: RunCell) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.stem(x)
        observed: dict[str, Tensor] = {}
        for name, cell in self.cells.items():
            assert isinstance(cell, Cell)
            observed[name] = h = run_cell(name, cell, (self.before[name](x),))
            x = self.last(self.behind[name](h) + self.shortcuts[name](x))
        return self.classifier(x), observed


def resnet_block(place: Place) -> tuple[list[nn.Module], list[nn.Module]]:
    """Two 3x3 convolutions before the attention, nothing behind it."""
    first = place.normed(place.inputs, place.outputs, 3, place.stride)
    return [*first, nn.ReLU(), *place.normed(place.outputs, place.outputs, 3)], []


def mobile_block(place: Place, wide: int) -> tuple[list[nn.Module], list[nn.Module]]:
    """1x1 to `wide` channels and a depthwise 3x3 before the attention, 1x1 to the block's width behind it."""
    first = [*place.normed(place.inputs, wide, 1), nn.ReLU()]
    first += [*place.normed(wide, wide, 3, place.stride, groups=wide), nn.ReLU()]
    return first, place.normed(wide, place.outputs, 1)
