"""Finds in a network's modules what the kernels for training know: `segments`, stages and the chains that they make up.

A stage is an activation, a convolution, or a depthwise and a 1x1 one, and a batch norm. The last convolution may have a bias, which the
batch norm takes away again: it has no effect but on the running mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oche.spaces.blocks import Thinning
from oche.spaces.ops import FactorizedReduce, Halving, ReLUConvBN

ACTIVATIONS: dict[type[nn.Module], int] = {nn.ReLU: 1, nn.ReLU6: 2}


@dataclass(frozen=True)
class Squares:
    """The two convolutions of a FactorizedReduce as one, of squares of 2x2 pixels.

    A square's first pixel makes the first half of the outputs, its last one the others.
    """

    even: nn.Conv2d
    odd: nn.Conv2d
    kernel_size = stride = (2, 2)
    dilation = (1, 1)
    padding = (0, 0)
    groups = 1
    bias = None

    @property
    def weight(self) -> Tensor:
        """Its weight (C', C, 2, 2)."""
        return torch.cat([F.pad(self.even.weight, (0, 1, 0, 1)), F.pad(self.odd.weight, (1, 0, 1, 0))])


@dataclass(frozen=True)
class Stage:
    """An activation (0: none, 1: ReLU, 2: ReLU6), one or two convolutions, a batch norm; `modules` has all of them.

    The convolutions are a dense one (`wide`), or a depthwise and a 1x1 one, of which one may be missing.
    """

    activation: int
    wide: nn.Conv2d | Squares | None
    depthwise: nn.Conv2d | None
    pointwise: nn.Conv2d | None
    norm: nn.BatchNorm2d
    modules: tuple[nn.Module, ...]

    @property
    def convs(self) -> tuple[nn.Conv2d | Squares, ...]:
        """Its convolutions, of which the first alone may have a stride."""
        return tuple(conv for conv in (self.wide, self.depthwise, self.pointwise) if conv is not None)

    @property
    def bias(self) -> Tensor | None:
        """The bias of its last convolution."""
        return self.convs[-1].bias

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of what it leaves."""
        stride = self.convs[0].stride[0]
        return -(-height // stride), -(-width // stride)

    def weights(self) -> list[Tensor]:
        """Its parameters, in the order in which `joined` takes them."""
        bias = [] if self.bias is None else [self.bias]
        return [*(conv.weight for conv in self.convs), *bias, self.norm.weight, self.norm.bias]


Chain = tuple[Stage, ...]


def segments(
    modules: Sequence[nn.Module], normed: Callable[[nn.Module], TypeGuard[nn.BatchNorm2d]] | None = None
) -> list[Chain | nn.Module]:
    """The modules of a sequence in their order, those that make up a chain as one; sequences within it are taken apart.

    `normed` tells the batch norms that a chain may have; those that learn and average their statistics where it is None.
    """
    found: list[Chain | nn.Module] = []
    rest = [one for module in modules for one in _leaves(module)]
    while rest:
        stage = _stage(rest, normed or running)
        if stage is None:
            found.append(rest.pop(0))
            continue
        del rest[: len(stage.modules)]
        before = found[-1] if found else None
        if isinstance(before, tuple):
            found[-1] = (*before, stage)
        else:
            found.append((stage,))
    return found


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that a sequence runs one after the other."""
    if isinstance(module, nn.Sequential) and (type(module) in (nn.Sequential, ReLUConvBN)):
        for child in module:
            yield from _leaves(child)
    elif type(module) is not nn.Identity:
        yield module


def _stage(modules: Sequence[nn.Module], normed: Callable[[nn.Module], TypeGuard[nn.BatchNorm2d]]) -> Stage | None:
    """The stage that the sequence begins with, or None."""
    rest = list(modules)
    activation = ACTIVATIONS.get(type(rest[0]), 0)
    del rest[: int(activation > 0)]
    wide = rest.pop(0) if rest and _wide(rest[0]) else None
    depthwise = rest.pop(0) if wide is None and rest and _depthwise(rest[0]) else None
    pointwise = rest.pop(0) if wide is None and rest and _pointwise(rest[0]) else None
    convs = [conv for conv in (wide, depthwise, pointwise) if conv is not None]
    if not convs or any(conv.bias is not None for conv in convs[:-1]) or not rest or not normed(rest[0]):
        return None
    count = len(modules) - len(rest) + 1
    return Stage(activation, wide, depthwise, pointwise, rest[0], tuple(modules[:count]))  # type: ignore[arg-type]


def reduction(module: FactorizedReduce) -> Chain:
    """The module as a chain, for images of even sides, or none where the kernels do not know it."""
    norm, many = module.norm, module.even.in_channels * module.norm.num_features
    if not running(norm) or 4 * many > 10 * LARGEST:
        return ()
    return (Stage(ACTIVATIONS[nn.ReLU], Squares(module.even, module.odd), None, None, norm, (module,)),)


def several(chain: Chain, x: Tensor) -> bool:
    """True if every batch norm of the chain sees more than one value per channel: torch refuses to train on one."""
    size = (x.shape[2], x.shape[3])
    for stage in chain:
        size = stage.size(*size)
        if len(x) * size[0] * size[1] < 2:
            return False
    return True


def running(norm: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """True if it is an affine batch norm that averages its statistics with a fixed weight."""
    return type(norm) is nn.BatchNorm2d and norm.affine and norm.running_mean is not None and norm.momentum is not None


@torch.no_grad()
def remember(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """Moves the running statistics as torch does, by means and biased variances of `count` numbers each."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    norm.running_mean.lerp_(mean.to(norm.running_mean), norm.momentum)
    norm.running_var.lerp_((variance * (count / (count - 1))).to(norm.running_var), norm.momentum)
    norm.num_batches_tracked += 1


# ------------------------------------------------------------------ what is known


LARGEST = 128 * 128
"""Channels in times channels out from which on torch's dense convolutions are left to torch, whose matrices are cut for the caches."""


def _square(conv: nn.Module, *types: type[nn.Module]) -> bool:
    """True if it is one of the types, its sides alike, its kernel odd and as much padded as leaves the size to the stride."""
    if type(conv) not in types:
        return False
    assert isinstance(conv, nn.Conv2d)
    k, d = conv.kernel_size[0], conv.dilation[0]
    alike = all(pair[0] == pair[1] for pair in (conv.kernel_size, conv.stride, conv.dilation))
    return alike and conv.padding_mode == "zeros" and k % 2 == 1 and conv.padding == (d * (k // 2),) * 2


def _depthwise(conv: nn.Module) -> bool:
    if not _square(conv, nn.Conv2d):
        return False
    assert isinstance(conv, nn.Conv2d)
    return conv.groups == conv.in_channels == conv.out_channels and (conv.groups > 1 or conv.kernel_size[0] > 1)


def _pointwise(conv: nn.Module) -> bool:
    if not _square(conv, nn.Conv2d):
        return False
    assert isinstance(conv, nn.Conv2d)
    return (conv.kernel_size, conv.stride, conv.groups) == ((1, 1), (1, 1), 1)


def _wide(conv: nn.Module) -> bool:
    """True if it is dense, and neither a depthwise convolution of one channel nor a 1x1 one with stride 1."""
    if not _square(conv, nn.Conv2d, Halving, Thinning) or _depthwise(conv) or _pointwise(conv):
        return False
    assert isinstance(conv, nn.Conv2d)
    return conv.groups == 1 and conv.in_channels * conv.out_channels <= LARGEST
