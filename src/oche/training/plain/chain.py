"""A network of the chain space, or a rival, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from oche.spaces.blocks import Place
from oche.training.plain.cells import Cell, Choices


class ChainNetwork(nn.Module):
    """stem -> layers -> perhaps a 1x1 convolution -> classifier.

    `layers` has by name: channels in and out, stride, choices. `stem` is the first convolution's channels, `stem_kernel` its kernel,
    `stem_stride` 1, 2 or 4 (a pool behind it), `head` the channels of the 1x1 convolution, 0 for none, `classifier` what
    reads the features; `flat` networks are for signals,
    images of height 1; `build(op, place)` makes an operation.
    """

    def __init__(
        self,
        inputs: int,
        stem: int,
        stem_kernel: int,
        stem_stride: int,
        layers: Mapping[str, tuple[int, int, int, Choices]],
        head: int,
        bias: bool,
        flat: bool,
        build: Callable[[str, Place], nn.Module],
        classifier: nn.Module,
    ) -> None:
        super().__init__()
        around = Place(stem, stem, bias=bias, flat=flat)
        sides = ((1, 3), (1, 2), (0, 1)) if flat else ((3, 3), (2, 2), (1, 1))
        pool: list[nn.Module] = [nn.MaxPool2d(*sides)] if stem_stride == 4 else []
        self.stem = nn.Sequential(*around.normed(inputs, stem, stem_kernel, min(stem_stride, 2)), nn.ReLU(), *pool)
        self.cells = nn.ModuleDict()
        last = stem
        for name, (width, last, step, choices) in layers.items():
            place = Place(width, last, step, bias=bias, flat=flat)

            def operation(op: str, source: int, place: Place = place) -> nn.Module:
                return build(op, place)

            self.cells[name] = Cell([nn.Identity()], choices, operation)
        self.last = nn.Sequential()
        if head:
            self.last = nn.Sequential(*around.normed(last, head, 1), nn.ReLU())
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for cell in self.cells.values():
            x = cell({0: x})
        out: Tensor = self.classifier(self.last(x))
        return out
