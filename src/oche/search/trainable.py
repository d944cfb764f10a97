"""Chooses the weights of a supernet that learn. The rest keep the values they were drawn with, bit for bit, and get no gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from oche.spaces.ops import PoolBN


class Trainable(Protocol):
    """Returns the names of the weights that learn. `affine`: the cells' batch norms have weights; `prepare` may draw weights anew."""

    @property
    def affine(self) -> bool: ...
    def prepare(self, supernet: nn.Module, rng: torch.Generator) -> None: ...
    def __call__(self, supernet: nn.Module) -> frozenset[str]: ...


@dataclass(frozen=True)
class AllWeights:
    """Every weight learns, as in DARTS; its supernets have no affine batch norm in the cells, `affine=True` is the ablation."""

    affine: bool = False

    def prepare(self, supernet: nn.Module, rng: torch.Generator) -> None:
        """Keeps PyTorch's initial values, as the authors' code does."""

    def __call__(self, supernet: nn.Module) -> frozenset[str]:
        return frozenset(name for name, _ in supernet.named_parameters())


Initialiser = Literal["pytorch", "kaiming_normal", "kaiming_uniform", "orthogonal", "binary"]


@dataclass(frozen=True)
class BatchNormOnly:
    """Random features: convolutions stay as drawn, batch norms learn (RF-DARTS, Zhang et al., CVPR 2023).

    The paper's abstract says that only batch norm is trained; the switches are what it leaves open, their defaults our reading:

    - `classifier`: the last linear layer learns (False: frozen, the literal reading).
    - `stem`: the stem's convolutions learn (False).
    - `pool_bn`: the batch norms that a DARTS supernet puts behind its pools learn (True).
    - `initialiser`: how convolutions are drawn. "pytorch" is U(-b, b) with b = 1/sqrt(fan_in); where a batch norm follows, the scale
      of the others makes no difference, only their shape.
    """

    classifier: bool = False
    stem: bool = False
    pool_bn: bool = True
    initialiser: Initialiser = "pytorch"

    @property
    def affine(self) -> bool:
        return True

    def prepare(self, supernet: nn.Module, rng: torch.Generator) -> None:
        """Draws every convolution's kernel from `initialiser`."""
        draw_kernels(supernet, self.initialiser, rng)

    def __call__(self, supernet: nn.Module) -> frozenset[str]:
        learn: set[str] = set()
        for path, module in supernet.named_modules():
            batch_norm = isinstance(module, nn.BatchNorm2d)
            of_pool = path.endswith(".norm") and isinstance(supernet.get_submodule(path.removesuffix(".norm")), PoolBN)
            if (
                (batch_norm and (self.pool_bn or not of_pool))
                or (self.classifier and path.endswith("classifier"))
                or (self.stem and isinstance(module, nn.Conv2d) and ".stem" in path)
            ):
                learn |= {f"{path}.{name}" for name, _ in module.named_parameters()}
        return frozenset(learn)


@dataclass(frozen=True)
class ClassifierOnly:
    """Convolutions and batch norms stay as drawn, the last linear layer alone learns: the controls of RF-DARTS.

    - `gamma`: "one", every batch norm normalises and nothing else (random features without batch norm: what does training it give?);
      "uniform", gamma is drawn from U(0, 1) and beta is 0, as in the batch-norm-only literature (open_lth), in the cells' batch norms
      too (are features of random scale as good as trained ones?).
    - `initialiser`: how convolutions are drawn, as in BatchNormOnly.
    """

    gamma: Literal["one", "uniform"] = "one"
    initialiser: Initialiser = "pytorch"

    @property
    def affine(self) -> bool:
        return self.gamma == "uniform"

    @torch.no_grad()
    def prepare(self, supernet: nn.Module, rng: torch.Generator) -> None:
        """Draws every convolution's kernel from `initialiser`, and every gamma where that is uniform."""
        draw_kernels(supernet, self.initialiser, rng)
        for module in supernet.modules():
            if isinstance(module, nn.BatchNorm2d) and self.gamma == "uniform":
                module.weight.uniform_(generator=rng)

    def __call__(self, supernet: nn.Module) -> frozenset[str]:
        return frozenset(name for name, _ in supernet.named_parameters() if ".classifier." in name)


@dataclass(frozen=True)
class WeightSubset:
    """A random few of the convolutions' weights and the classifier learn, as many weights as batch norms would have: a control.

    From the batch-norm-only literature (Frankle et al., arXiv 2003.00152): is it batch norm that makes random features work, or would
    as many weights of any kind do? The others are a buffer, so neither a gradient nor weight decay reaches them; batch norms have no
    weights in the cells, and keep 1 and 0 elsewhere.
    """

    @property
    def affine(self) -> bool:
        return False

    @torch.no_grad()
    def prepare(self, supernet: nn.Module, rng: torch.Generator) -> None:
        """Draws the weights that learn uniformly from all convolutions, and makes them parameters of their own."""
        kernels = [module for module in supernet.modules() if isinstance(module, nn.Conv2d)]
        count = sum(2 * module.num_features for module in supernet.modules() if isinstance(module, nn.BatchNorm2d))
        ends = torch.tensor([module.weight.numel() for module in kernels]).cumsum(0)
        chosen = torch.randperm(int(ends[-1]), generator=rng)[:count].sort().values
        for module, end in zip(kernels, ends.tolist(), strict=True):
            start = end - module.weight.numel()
            own = chosen[(chosen >= start) & (chosen < end)] - start
            parametrize.register_parametrization(module, "weight", _Entries(module.weight.detach().clone(), own))

    def __call__(self, supernet: nn.Module) -> frozenset[str]:
        ends = (".parametrizations.weight.original", ".classifier.weight", ".classifier.bias")
        return frozenset(name for name, _ in supernet.named_parameters() if name.endswith(ends))


class _Entries(nn.Module):
    """values (n,) -> the kernel `fixed` with its entries at `index` (n,) replaced by them."""

    fixed: Tensor
    index: Tensor

    def __init__(self, fixed: Tensor, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("fixed", fixed)
        self.register_buffer("index", index)

    def forward(self, values: Tensor) -> Tensor:
        return self.fixed.flatten().index_copy(0, self.index, values).view(self.fixed.shape)

    def right_inverse(self, kernel: Tensor) -> Tensor:
        return kernel.flatten()[self.index]


TRAINABLES: dict[str, Trainable] = {
    "all": AllWeights(),
    "batch_norm": BatchNormOnly(),
    "classifier": ClassifierOnly(),
    "subset": WeightSubset(),
}
"""By name, for `--set trainable=NAME`."""


@torch.no_grad()
def draw_kernels(supernet: nn.Module, initialiser: Initialiser, rng: torch.Generator) -> None:
    """Draws every convolution's kernel anew; "pytorch" keeps those there are."""
    if initialiser != "pytorch":
        for module in supernet.modules():
            if isinstance(module, nn.Conv2d):
                _INITIALISERS[initialiser](module.weight, rng)


def _binary(weight: Tensor, rng: torch.Generator) -> None:
    """+-sqrt(2 / fan_in): the signs of a Kaiming normal with its standard deviation (open_lth)."""
    nn.init.kaiming_normal_(weight, generator=rng)
    fan_in = weight[0].numel()
    weight.copy_(weight.sign() * (2 / fan_in) ** 0.5)


_INITIALISERS: dict[str, Callable[[Tensor, torch.Generator], object]] = {
    "kaiming_normal": lambda weight, rng: nn.init.kaiming_normal_(weight, generator=rng),
    "kaiming_uniform": lambda weight, rng: nn.init.kaiming_uniform_(weight, generator=rng),
    "orthogonal": lambda weight, rng: nn.init.orthogonal_(weight, generator=rng),
    "binary": _binary,
}
