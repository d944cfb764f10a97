"""A network of the NAS-Bench-201 space in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from oche.spaces.nb201 import ResidualReduction
from oche.training.plain.cells import Cell, Choices


class NB201Network(nn.Module):
    """stem -> `stages` stages of `cells` cells with residual reductions between -> batch norm, ReLU, classifier.

    `genotype` has the cell of all, "cell", or one for each, "cell_0" and so on; `build(op, channels, stride)` makes an operation.
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        cells: int,
        stages: int,
        genotype: Mapping[str, Choices],
        build: Callable[[str, int, int], nn.Module],
        classifier: nn.Module,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(inputs, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.cells, self.reductions = nn.ModuleDict(), nn.ModuleDict()
        for i in range(stages * cells):
            name = f"cell_{i}"
            if i and i % cells == 0:
                self.reductions[name] = ResidualReduction(channels, 2 * channels)
                channels *= 2

            def operation(op: str, source: int, channels: int = channels) -> nn.Module:
                return build(op, channels, 1)

            choices = genotype[name] if name in genotype else genotype["cell"]
            self.cells[name] = Cell([nn.Identity()], choices, operation)
        self.last = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for name, cell in self.cells.items():
            x = cell({0: self.reductions[name](x) if name in self.reductions else x})
        out: Tensor = self.classifier(self.last(x))
        return out
