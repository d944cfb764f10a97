"""The slow side of `benchmarks/supernet.py`: a supernet of oche's as the field writes it, so that nobody wins by a slow baseline.

The modules and parameters are those of `oche.spaces` (1,930,618 parameters in the DARTS space, as the official code has); what the
official code does besides is put back here, where it belongs: NCHW, batch norms that keep running statistics nobody reads, an
optimiser that steps one weight after the other, `none` computed as x times 0, sums over every candidate, edge weights multiplied onto
whole edges (PC-DARTS), and `backward()` into all that learns, alpha in the weight step and the weights in the architecture step
included. `benchmarks/peers/darts_nchw.py` is the same from scratch, without oche.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oche.base import Alpha, Draw, counted
from oche.search.method import Method
from oche.spaces import Space, Supernet
from oche.spaces.edges import Candidate, Edge, EdgeFactory, _Partial
from oche.spaces.ops import FactorizedReduce, Halving, Zero, run


class _Reduced(FactorizedReduce):
    """Every second pixel as published: two strided convolutions behind the ReLU of all pixels."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        spare = (0, x.shape[3] % 2, 0, x.shape[2] % 2)  # sizes that the official code cannot halve
        shifted = (F.pad(x, spare) if any(spare) else x)[:, :, 1:, 1:]
        out: Tensor = self.norm(torch.cat([self.even(x), self.odd(shifted)], dim=1))
        return out


class _Zeroed(nn.Module):
    """`none` as published: it is computed, and back-propagated through."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x.mul(0.0) if self.stride == 1 else x[:, :, :: self.stride, :: self.stride].mul(0.0)


class _Published(Edge):
    """sum_o w_o op_o(x) over every candidate; with partial channels the edge's weight multiplies the whole shuffled output."""

    def __init__(self, built: Edge) -> None:
        super().__init__()
        self.ops = built.ops
        self.share, self.stride = (built.share, built.stride) if isinstance(built, _Partial) else (1, 1)
        for name, op in self.ops.items():
            if isinstance(op, Zero):
                self.ops[name] = _Zeroed(op.stride)

    def forward(self, x: Tensor, w: Tensor, draw: Draw | None) -> Tensor:
        if self.share == 1:
            return sum(each * run(op, x, draw) for each, op in zip(w, self.ops.values(), strict=True))
        edge = w.sum()
        active, bypass = x.tensor_split([x.shape[1] // self.share], dim=1)
        mixed = sum(each * run(op, active, draw) for each, op in zip(w / edge, self.ops.values(), strict=True))
        passed = F.max_pool2d(bypass, 2, 2, ceil_mode=True) if self.stride > 1 else bypass
        out = torch.cat([mixed, passed], dim=1)
        batch, channels, height, width = out.shape
        groups = out.view(batch, self.share, channels // self.share, height, width)
        return edge * groups.transpose(1, 2).contiguous().view(batch, channels, height, width)


@dataclass(frozen=True)
class AsPublished:
    """An edge type with the published amount of work; the same function, the same parameters."""

    edge: EdgeFactory

    def __call__(self, ops: Sequence[str], channels: int, stride: int, build: Candidate) -> Edge:
        return _Published(self.edge(ops, channels, stride, build))


@dataclass
class Field:
    """One search in the field's form: `step()` is an iteration."""

    space: Space
    method: Method
    supernet: Supernet
    alpha: Alpha
    weight_optimizer: torch.optim.Optimizer
    arch_optimizer: torch.optim.Optimizer
    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    order: Callable[[Field], None]

    @property
    def weights(self) -> list[Tensor]:
        return [p for p in self.supernet.parameters() if p.requires_grad]

    def loss(self, batch: tuple[Tensor, Tensor], supernet: Supernet | None = None) -> Tensor:
        """The task's loss with alpha in the graph."""
        draw = Draw(0)
        w = self.space.spread({g.name: self.method.relaxation(self.alpha, g, draw) for g in self.space.groups})
        outputs, _ = (supernet or self.supernet)(batch[0], w, draw)
        return F.cross_entropy(outputs, batch[1])

    def step(self) -> None:
        """An architecture step and a weight step."""
        self.order(self)
        self.arch_optimizer.step()
        self.weight_optimizer.zero_grad()
        self.loss(self.train).backward()
        if self.method.clip is not None:
            nn.utils.clip_grad_norm_(self.weights, self.method.clip)
        self.weight_optimizer.step()


def build(space: Space, method: Method, order: str, batch: int, device: torch.device) -> Field:
    """The search on random images, ready for its first step."""
    torch.manual_seed(0)
    supernet = space.supernet(AsPublished(method.edge), affine=method.trainable.affine)
    for module in supernet.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = True
            module.running_mean, module.running_var = torch.zeros(module.num_features), torch.ones(module.num_features)
            module.num_batches_tracked = torch.tensor(0)
        elif isinstance(module, FactorizedReduce):
            module.__class__ = _Reduced
        elif isinstance(module, Halving):
            module.__class__ = nn.Conv2d
    supernet.to(device)
    learns = method.trainable(supernet)
    for name, p in supernet.named_parameters():
        p.requires_grad_(name in learns)
    alpha: Alpha = {}
    for group in space.groups:
        fresh = method.relaxation.init(group, counted(0, group.name))
        alpha |= {name: t.to(device).requires_grad_() for name, t in fresh.items()}

    def images() -> tuple[Tensor, Tensor]:
        pixels = torch.randn(batch, space.inputs, *space.size)
        return pixels.to(device), torch.randint(space.outputs, (batch,)).to(device)

    weights = [p for p in supernet.parameters() if p.requires_grad]
    sgd, adam = method.weight_optimizer(weights), method.arch_optimizer(list(alpha.values()))
    for group in (*sgd.param_groups, *adam.param_groups):
        group["foreach"] = None  # torch's own choice, as in the official code: on the CPU one weight after the other
    for group in sgd.param_groups:
        group["lr"] = method.weight_lr(0.0)
    return Field(space, method, supernet, alpha, sgd, adam, images(), images(), ORDERS[order])


# ------------------------------------------------------------------ architecture gradients, as published


def first(field: Field) -> None:
    """Every gradient of the validation loss; only alpha's is used."""
    field.arch_optimizer.zero_grad()
    field.loss(field.val).backward()


def finite(field: Field) -> None:
    """DARTS, eqs. 7 and 8, as in the authors' code: a second model for the look-ahead, weights moved to both sides and back."""
    (group,) = field.weight_optimizer.param_groups
    rate, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
    alphas = list(field.alpha.values())
    grads = torch.autograd.grad(field.loss(field.train), field.weights)
    ahead = deepcopy(field.supernet)
    with torch.no_grad():
        moving = [p for p in ahead.parameters() if p.requires_grad]
        for own, p, g in zip(field.weights, moving, grads, strict=True):
            buffer = field.weight_optimizer.state.get(own, {}).get("momentum_buffer")
            velocity = (0.0 if buffer is None else momentum * buffer) + g + decay * own
            p.sub_(rate * velocity)
    field.arch_optimizer.zero_grad()
    field.loss(field.val, ahead).backward()
    vector = [p.grad for p in moving]
    radius = 0.01 / torch.cat([g.reshape(-1) for g in vector]).norm()
    sides = []
    for factor in (radius, -2 * radius):
        with torch.no_grad():
            for p, g in zip(field.weights, vector, strict=True):
                p.add_(factor * g)
        sides.append(torch.autograd.grad(field.loss(field.train), alphas))
    with torch.no_grad():
        for p, g in zip(field.weights, vector, strict=True):
            p.add_(radius * g)
        for t, plus, minus in zip(alphas, *sides, strict=True):
            t.grad -= rate * (plus - minus) / (2 * radius)


ORDERS: dict[str, Callable[[Field], None]] = {"first": first, "finite": finite, "exact": finite}
"""What each `--order` is compared with: nobody in the field computes the exact product."""
