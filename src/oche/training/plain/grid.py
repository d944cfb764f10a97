"""A network of the grid space, for masks, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from oche.spaces.segmentation import IMAGE, align
from oche.training.plain.cells import Cell, Choices


class GridNetwork(nn.Module):
    """stem -> nodes at strides 4 to 32, layer by layer -> head -> logits of the image's size. The head is handed the image, too.

    `nodes` has by name: the node's number and level (its stride is 4 2^level, its channels `channels` 2^level), its inputs, as entry ->
    number of the node that it reads (0 is the stem), and its choices. `last` has the number of the node that the head reads, by level.
    `build(op, channels, stride)` makes an operation. Images are padded to a multiple of `multiple`, the largest stride.
    """

    def __init__(
        self,
        stem: nn.Module,
        head: nn.Module,
        channels: int,
        nodes: Mapping[str, tuple[int, int, Mapping[int, int], Choices]],
        last: Mapping[int, int],
        multiple: int,
        build: Callable[[str, int, int], nn.Module],
    ) -> None:
        super().__init__()
        self.stem, self.head, self.last, self.multiple = stem, head, dict(last), multiple
        self.cells = nn.ModuleDict()
        self.reads = {number: dict(inputs) for number, _, inputs, _ in nodes.values()}
        self.numbers = [number for number, *_ in nodes.values()]
        levels = {0: 0} | {number: level for number, level, *_ in nodes.values()}
        for name, (_, level, inputs, choices) in nodes.items():
            width = channels << level
            at = max(target for _, target, *_ in choices) - 1  # the sum of the inputs, which the node's operation reads
            entries = [
                align(channels << levels[inputs[i]], width, level - levels[inputs[i]], True)
                if i in inputs
                else nn.Identity()
                for i in range(at)
            ]

            def operation(op: str, source: int, width: int = width) -> nn.Module:
                return build(op, width, 1)

            self.cells[name] = Cell(entries, choices, operation)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        down, right = -height % self.multiple, -width % self.multiple
        padded = F.pad(x, (0, right, 0, down))
        states = {0: self.stem(padded)}
        for number, cell in zip(self.numbers, self.cells.values(), strict=True):
            states[number] = cell({i: states[source] for i, source in self.reads[number].items()})
        out: Tensor = self.head({IMAGE: padded, **{level: states[number] for level, number in self.last.items()}})
        return out[..., :height, :width]
