"""The chain space: stages of layers one behind another, an operation chosen for each (ProxylessNAS, MnasNet; our own candidates).

A layer is a residual block, a depthwise separable convolution, an inverted bottleneck or nothing. Its operation decides its kernel, and
its width inside: the expansion of a bottleneck, the share of a residual block's channels between its two convolutions. So what a layer
costs depends on its own operation alone, and the expected cost of a supernet is a sum over layers. `channels` is the width of all stages.
`skip_connect` leaves a layer out: the depth of a stage is searched. ResNets, MobileNetV2 and their relatives are genotypes of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from oche.base import Group, OpWeights
from oche.errors import UserError
from oche.spaces.base import BuildEdge, Space
from oche.spaces.blocks import BLOCKS, Place
from oche.spaces.edges import EdgeFactory, whole
from oche.spaces.heads import head
from oche.spaces.networks import Body, Cell, RunCell

CHAIN_OPS = (
    "skip_connect",
    "residual_3x3",
    "residual_3x3_w50",
    "ds_conv_3x3",
    "mbconv_k3_e1",
    "mbconv_k3_e3",
    "mbconv_k3_e6",
    "mbconv_k5_e3",
)


class Layer(NamedTuple):
    """A place for an operation: the cell's name, channels in and out, stride."""

    name: str
    inputs: int
    outputs: int
    stride: int

    @property
    def same(self) -> bool:
        """True if the output has the input's shape."""
        return self.stride == 1 and self.inputs == self.outputs


@dataclass(frozen=True)
class ChainSpace(Space):
    """Stages of `layers` layers with `widths` times `channels` channels; the first layer of a stage has its stride in `strides`.

    - `ops`: the candidates of each layer. A layer that changes width or resolution has those of them that can: blocks, not `skip_connect`.
    - `stem`: channels of the first convolution, in units of `channels`; `stem_kernel`: its kernel. `stem_stride`: 1, 2 or 4 (a pool
      behind it); 0 takes 1 below 64 pixels, 2 below 128 and 4 from there on.
    - `head`: channels of a 1x1 convolution before the classifier, in units of `channels`; 0 for none.
    - `bias`: convolutions have biases and shortcuts no batch norm, as in MLPerf Tiny's ResNet-8.
    """

    large: ClassVar[int] = 64

    name: str = "chain"
    channels: int = 16
    layers: tuple[int, ...] = (3, 3, 3)
    widths: tuple[float, ...] = (1.0, 2.0, 4.0)
    strides: tuple[int, ...] = (1, 2, 2)
    ops: tuple[str, ...] = CHAIN_OPS
    stem: float = 1.0
    stem_kernel: int = 3
    stem_stride: int = 0
    head: float = 0.0
    bias: bool = False

    def __post_init__(self) -> None:
        if not (self.layers and self.widths and self.strides) or min(self.channels, *self.layers, *self.strides) < 1:
            raise UserError(
                "A chain needs at least one channel, one stage, and in every stage one layer and a stride of 1 or more."
            )
        if min(self.stem, *self.widths) <= 0 or self.head < 0:
            raise UserError("The widths of a chain, and of its stem, must be above 0, that of its head 0 or more.")
        if self.stem_stride not in (0, 1, 2, 4):
            raise UserError(f"stem_stride={self.stem_stride} is none of 1, 2, 4 and 0 (chosen by the images' size).")
        if self.stem_kernel < 1 or self.stem_kernel % 2 == 0:
            raise UserError(f"stem_kernel={self.stem_kernel} has no centre: choose 1, 3, 5 or another odd number.")
        super().__post_init__()
        if not BLOCKS.keys() & self.ops:
            raise UserError(
                f"No operation of the chain can change the width, which the first layer of a stage does: {', '.join(self.ops)}; "
                f"add residual_{'3' if self.flat else '3x3'}, for example."
            )

    # ------------------------------------------------------------------ the layers

    def width(self, times: float) -> int:
        """`times` times `channels`: at least one channel, two where a layer may split them in halves."""
        return max(2 if any(op.startswith("shuffle") for op in self.ops) else 1, round(times * self.channels))

    def places(self) -> tuple[Layer, ...]:
        """The layers, from the stem to the head."""
        found, inputs = list[Layer](), self.width(self.stem)
        stages = zip(self.layers, self.widths, self.strides, strict=False)  # `body` refuses lists of several lengths
        for stage, (count, times, stride) in enumerate(stages, 1):
            for number in range(1, count + 1):
                name = f"stage{stage}_layer{number}"
                found.append(Layer(name, inputs, self.width(times), stride if number == 1 else 1))
                inputs = self.width(times)
        return tuple(found)

    @property
    def reduction(self) -> int:
        """The stride of the stem."""
        side = max(self.size)
        return self.stem_stride or (1 if side < self.large else 2 if side < 2 * self.large else 4)

    def kinds(self) -> tuple[Group, ...]:
        """One group whose edges are the layers; with `sharing="cell"` a group for each."""
        places = self.places()
        changing = tuple(op for op in self.ops if op in BLOCKS) or self.ops  # the latter is refused
        ops = tuple(self.ops if place.same else changing for place in places)
        if self.sharing == "cell":
            return tuple(
                Group(place.name, ((0, 1),), (own,), None, (place.name,))
                for place, own in zip(places, ops, strict=True)
            )
        edges = tuple((i, i + 1) for i in range(len(places)))
        return (Group("chain", edges, ops, None, tuple(place.name for place in places)),)

    def spread(self, by_group: Mapping[str, Tensor]) -> OpWeights:
        """Each layer's row of the one matrix."""
        if self.sharing == "cell":
            return super().spread(by_group)
        return {place.name: by_group["chain"][i : i + 1] for i, place in enumerate(self.places())}

    def at(self, group: Group, e: int) -> Layer:
        """The layer of an edge."""
        name = group.cells[e] if self.sharing == "type" else group.name
        return next(place for place in self.places() if place.name == name)

    # ------------------------------------------------------------------ what a space defines

    def mixing(self, group: Group, e: int, edge: EdgeFactory) -> EdgeFactory:
        """A layer that changes shape has no channels that could pass by it."""
        return edge if self.at(group, e).same else whole(edge)

    def operation(
        self, group: Group, e: int, op: str, channels: int, stride: int, affine: bool, *, alone: bool
    ) -> nn.Module:
        layer = self.at(group, e)
        place = Place(
            channels if layer.same else layer.inputs, channels, stride, affine, bias=self.bias, flat=self.flat
        )
        if op in BLOCKS:
            return BLOCKS[op](place)
        if op == "skip_connect":  # beside the candidates of a layer that changes shape, in methods that add one
            return place.shortcut()
        return super().operation(group, e, op, channels, stride, affine, alone=alone)

    def body(self, build: BuildEdge, *, affine: bool) -> ChainBody:
        if not len(self.layers) == len(self.widths) == len(self.strides):  # settings change one list after the other
            raise UserError(
                f"A chain needs as many widths and strides as stages; given layers={self.layers}, widths={self.widths}, "
                f"strides={self.strides}."
            )
        return ChainBody(self, build)

    def notes(self) -> tuple[str, ...]:
        if self.stem_stride == 0 and self.reduction > 1:
            side = f"{self.size[1]} values" if self.flat else f"{self.size[0]}x{self.size[1]}"
            return (f"layers begin at 1/{self.reduction} of the resolution (space.stem_stride=1 keeps all of {side})",)
        return ()


class ChainBody(Body):
    """stem -> layers -> perhaps a 1x1 convolution -> head."""

    serial: ClassVar[bool] = True

    def __init__(self, space: ChainSpace, build: BuildEdge) -> None:
        super().__init__()
        places, first = space.places(), space.width(space.stem)
        around = Place(first, first, bias=space.bias, flat=space.flat)
        pool: list[nn.Module] = []
        if space.reduction == 4:
            sides = ((1, 3), (1, 2), (0, 1)) if space.flat else ((3, 3), (2, 2), (1, 1))
            pool = [nn.MaxPool2d(*sides)]
        read = around.normed(space.inputs, first, space.stem_kernel, min(space.reduction, 2))
        self.stem = nn.Sequential(*read, nn.ReLU(), *pool)
        self.cells = nn.ModuleDict()
        for group in space.groups:
            for e in range(len(group.edges)):
                layer = space.at(group, e)
                own = Group(layer.name, ((0, 1),), (group.ops[e],))
                edge = build(group, e, layer.outputs, layer.stride)
                self.cells[layer.name] = Cell([nn.Identity()], own, [edge], concat=False)
        channels = places[-1].outputs
        self.last = nn.Sequential()
        if space.head:
            wide = space.width(space.head)
            self.last = nn.Sequential(*around.normed(channels, wide, 1), nn.ReLU())
            channels = wide
        self.classifier = head(channels, space.outputs, space.density)

    def forward(self, x: Tensor, run_cell: RunCell) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.stem(x)
        observed: dict[str, Tensor] = {}
        for name, cell in self.cells.items():
            assert isinstance(cell, Cell)
            observed[name] = x = run_cell(name, cell, (x,))
        return self.classifier(self.last(x)), observed
