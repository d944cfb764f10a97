"""A network of the DARTS space, or of S1 to S4, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from oche.spaces.darts import stems
from oche.spaces.ops import FactorizedReduce, ReLUConvBN
from oche.training.plain.cells import Cell, Choices


class DartsNetwork(nn.Module):
    """stem -> cells, each reading the two before it -> classifier. Cells at 1/3 and 2/3 of the depth halve the resolution.

    `genotype` and `concat` have the cells "normal" and "reduce", or one for each, "cell_0" and so on; `build(op, channels, stride)` makes
    an operation; `imagenet` is the stem of three convolutions with stride 2.
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        cells: int,
        stem: int,
        imagenet: bool,
        genotype: Mapping[str, Choices],
        concat: Mapping[str, Sequence[int]],
        build: Callable[[str, int, int], nn.Module],
        classifier: nn.Module,
    ) -> None:
        super().__init__()
        self.stem, self.stem1 = stems(inputs, stem, imagenet)
        self.cells = nn.ModuleDict()
        before = last = stem
        was_reduction = imagenet
        for i in range(cells):
            reduction = i in (cells // 3, 2 * cells // 3)
            channels *= 2 if reduction else 1
            name, kind = f"cell_{i}", "reduce" if reduction else "normal"
            fit = FactorizedReduce if was_reduction else point
            entries = [fit(before, channels, True), point(last, channels, True)]

            def operation(op: str, source: int, channels: int = channels, reduction: bool = reduction) -> nn.Module:
                return build(op, channels, 2 if reduction and source < 2 else 1)

            choices = genotype[name] if name in genotype else genotype[kind]
            nodes = concat[name] if name in concat else concat[kind]
            self.cells[name] = Cell(entries, choices, operation, nodes)
            before, last, was_reduction = last, len(nodes) * channels, reduction
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        before = self.stem(x)
        last = before if self.stem1 is None else self.stem1(before)
        for cell in self.cells.values():
            before, last = last, cell({0: before, 1: last})
        out: Tensor = self.classifier(last)
        return out


def point(inputs: int, outputs: int, affine: bool) -> nn.Module:
    """The 1x1 convolution that fits an input to a cell's width."""
    return ReLUConvBN(inputs, outputs, 1, 1, affine)
