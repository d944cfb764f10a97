"""A network of attention blocks in a fixed backbone, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from oche.spaces.blocks import Place
from oche.spaces.sase import EXPANSION, mobile_block, resnet_block
from oche.training.plain.cells import Cell, Choices


class Attention(Cell):
    """x times its channels' and its pixels' attention; the edges are the six slots, in their order."""

    def __init__(self, choices: Choices, build: Callable[[str, int], nn.Module]) -> None:
        super().__init__([nn.Identity()], choices, build)
        self.join = nn.Sequential(nn.Conv2d(2, 1, 3, padding=1, bias=False), nn.BatchNorm2d(1))

    def forward(self, inputs: Mapping[int, Tensor]) -> Tensor:
        x, slots = inputs[0], list(self.edges.values())
        descriptor = slots[0](x)
        branch, weigh = slots[1](descriptor), slots[2](descriptor)
        maps = slots[3](x), slots[4](x * weigh.sigmoid())
        pixels = slots[5](self.join(torch.cat(maps, dim=1)))
        out: Tensor = x * branch.sigmoid() * pixels.sigmoid()
        return out


class SaseNetwork(nn.Module):
    """stem -> blocks, each with its attention -> classifier.

    `blocks` has by name: channels in and out, stride, choices. `channels` are the stem's, `stem_stride` is 1, 2 or 4 (a pool behind it);
    `mobile` blocks are inverted bottlenecks, else they are residual; `build(op, channels)` makes an operation.
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        stem_stride: int,
        blocks: Mapping[str, tuple[int, int, int, Choices]],
        mobile: bool,
        build: Callable[[str, int], nn.Module],
        classifier: nn.Module,
    ) -> None:
        super().__init__()
        pool = [nn.MaxPool2d(3, 2, 1)] if stem_stride == 4 else []
        read = Place(inputs, channels).normed(inputs, channels, 3, min(stem_stride, 2))
        self.stem = nn.Sequential(*read, nn.ReLU(), *pool)
        self.cells, self.before, self.behind, self.shortcuts = (nn.ModuleDict() for _ in range(4))
        for name, (width, out, stride, choices) in blocks.items():
            place = Place(width, out, stride)
            wide = EXPANSION * width if mobile else out
            first, last = mobile_block(place, wide) if mobile else resnet_block(place)

            def operation(op: str, source: int, wide: int = wide) -> nn.Module:
                return build(op, wide)

            self.before[name], self.behind[name] = nn.Sequential(*first), nn.Sequential(*last)
            self.shortcuts[name], self.cells[name] = place.shortcut(), Attention(choices, operation)
        self.last = nn.Identity() if mobile else nn.ReLU()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for name, cell in self.cells.items():
            h = cell({0: self.before[name](x)})
            x = self.last(self.behind[name](h) + self.shortcuts[name](x))
        out: Tensor = self.classifier(x)
        return out
