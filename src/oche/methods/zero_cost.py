"""Scores of networks that nobody trains, from one batch and the weights they begin with: `--set evaluator=zero_cost`.

    naswot         log |K|, K[i, j] the ReLUs that images i and j agree on            Mellor et al., ICML 2021, arXiv 2006.04647
    jacov          -sum over eigenvalues v of the correlations of dy/dx: log(v + k) + 1/(v + k), k = 1e-5          its first version
    synflow        log10 of the sum of |theta dR/dtheta|, R the sum of outputs        Tanaka et al., NeurIPS 2020, arXiv 2006.05467
    logsynflow     sum of |theta| log(1 + dR/dtheta)                                  Cavagnero et al., AAAI 2023, arXiv 2207.05135
    snip           sum of |theta dL/dtheta|                                           Lee et al., ICLR 2019, arXiv 1810.02340
    grad_norm      sum over layers of |dL/dtheta|                                     Abdelfattah et al., ICLR 2021, arXiv 2101.08134
    zen            log of the last cell's change under noise of 0.01 + sum of the logs of what batch norms divide by
                                                                                      Lin et al., ICCV 2021, arXiv 2102.01063
    parameters, multiply_adds                                                         counted

For all of them more is better. In `synflow` and `logsynflow` the weights are replaced by their absolute values, batch norms are left
out and the image is all ones, in float64, as in the code of logsynflow (NiccoloCavagnero/FreeREA, metrics/synflow.py); they, `snip` and
`grad_norm` look at the weights of convolutions and linear layers alone. The others see batch norm with the batch's statistics.

Deviations: `zen` reads the output of the last cell, where its authors read what goes into the global average pool; `synflow` is a
logarithm, since sums reach 1e48. A score that is not finite (a network that passes nothing on has a `naswot` of minus infinity) becomes
the lowest number.
Against the published tables: `python benchmarks/zero_cost.py`, docs/results/zero_cost.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from oche.base import Batch, counted
from oche.data import Stream, none
from oche.errors import UserError, unknown
from oche.genotype import Genotype
from oche.search.callbacks import Callback
from oche.search.state import Problem
from oche.spaces import Network
from oche.spaces.cost import cost
from oche.tasks import Task

LOWEST = -1e300
"""The score of a network whose own score is no finite number."""

Score = Callable[[Network, Batch, Task], float]
"""(a fresh network in training mode, a batch, the task) -> score; more is better. The network is its own: it may be changed."""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
RELUS = (torch.ops.aten.relu.default, torch.ops.aten.relu_.default, torch.ops.aten.hardtanh.default)


# ------------------------------------------------------------------ what ReLUs tell apart


class Codes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects which units are on, one (B, units) bool matrix per ReLU or ReLU6 that is computed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.codes: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in RELUS:
            self.codes.append((out > 0).flatten(1))
        return out


def naswot(network: Network, batch: Batch, task: Task) -> float:
    """log |K| of the (B, B) matrix of how many ReLUs images agree on."""
    with torch.no_grad(), Codes() as seen:
        network(batch.images)
    if not seen.codes:
        return -math.inf
    alike = torch.zeros(len(batch.images), len(batch.images), dtype=torch.float64)
    for on in seen.codes:
        code = on.double() * 2 - 1  # +-1: the product is agreements minus disagreements
        alike += (code @ code.T + code.shape[1]).cpu() / 2
    return float(torch.linalg.slogdet(alike).logabsdet)


def jacov(network: Network, batch: Batch, task: Task) -> float:
    """How little the images' derivatives are correlated."""
    images = batch.images.clone().requires_grad_()
    (jacobian,) = torch.autograd.grad(network(images).sum(), images, allow_unused=True)
    alike = None if jacobian is None else torch.corrcoef(jacobian.flatten(1).double())
    if alike is None or not alike.isfinite().all():  # a derivative of zeros has no correlation
        return -math.inf
    v = torch.linalg.eigvalsh(alike)
    return -float((torch.log(v + 1e-5) + 1 / (v + 1e-5)).sum())


# ------------------------------------------------------------------ what weights pass on


def layers(network: nn.Module) -> Iterator[Tensor]:
    """The weights of convolutions and linear layers."""
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            yield module.weight


def flows(network: Network, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """(|theta|, dR/dtheta) of every layer, without batch norms, for one image of ones, in float64."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, BATCH_NORMS):
                setattr(parent, name, nn.Identity())
    network.double()
    with torch.no_grad():
        for p in network.parameters():
            p.abs_()
    weights = list(layers(network))
    total = network(torch.ones_like(batch.images[:1], dtype=torch.float64)).sum()
    grads = torch.autograd.grad(total, weights, allow_unused=True)
    for weight, grad in zip(weights, grads, strict=True):
        yield weight.detach(), torch.zeros_like(weight) if grad is None else grad


def synflow(network: Network, batch: Batch, task: Task) -> float:
    """log10 of what the weights pass on."""
    total = sum(float((weight * grad).sum()) for weight, grad in flows(network, batch))
    return math.log10(total) if total > 0 else -math.inf


def logsynflow(network: Network, batch: Batch, task: Task) -> float:
    """What the weights pass on, with the logarithm of the derivatives, which would explode with the depth."""
    return sum(float((weight * grad.log1p()).sum()) for weight, grad in flows(network, batch))


def slopes(network: Network, batch: Batch, task: Task) -> Iterator[tuple[Tensor, Tensor]]:
    """(theta, dL/dtheta) of every layer, L the loss of the batch."""
    weights = list(layers(network))
    grads = torch.autograd.grad(task.loss(network(batch.images), batch.targets), weights, allow_unused=True)
    for weight, grad in zip(weights, grads, strict=True):
        yield weight.detach(), torch.zeros_like(weight) if grad is None else grad


def snip(network: Network, batch: Batch, task: Task) -> float:
    """By how much the loss would change without each weight, to first order."""
    return sum(float((weight * grad).abs().sum()) for weight, grad in slopes(network, batch, task))


def grad_norm(network: Network, batch: Batch, task: Task) -> float:
    """The Euclidean norms of the layers' gradients, summed."""
    return sum(float(grad.norm()) for _, grad in slopes(network, batch, task))


# ------------------------------------------------------------------ what noise becomes


@contextmanager
def deviations(network: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what each batch norm divides by: the root of its input's variance, the mean over the channels, plus its eps."""
    found: list[Tensor] = []

    def note(module: Any, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].transpose(0, 1).flatten(1)
        found.append((x.var(1, correction=0).mean() + module.eps).sqrt())

    hooks = [m.register_forward_pre_hook(note) for m in network.modules() if isinstance(m, BATCH_NORMS)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def zen(network: Network, batch: Batch, task: Task) -> float:
    """How far noise moves the last cell's output, times what batch norms took out of it, as a logarithm.

    Weights of N(0, 1), drawn by torch's own generator; images of N(0, 1) and noise of N(0, 1) times 0.01, the same for every network.
    """
    for weight in layers(network):
        nn.init.normal_(weight)
    rng = counted(0, "zen")
    image, noise = (torch.randn(batch.images.shape, generator=rng).to(batch.images) for _ in range(2))
    last = list(network.body.cells)[-1]

    def output(x: Tensor) -> Tensor:
        _, observed = network.body(x, lambda name, cell, inputs: cell(inputs, lambda e, edge, h: edge(h, None)))
        found: Tensor = observed[last]
        return found

    with torch.no_grad():
        with deviations(network) as scales:
            still = output(image)
        moved = (output(image + 0.01 * noise) - still).abs().mean()
    return float(moved.log() + torch.stack(scales).log().sum())


SCORES: dict[str, Score] = {
    "naswot": naswot,
    "jacov": jacov,
    "synflow": synflow,
    "logsynflow": logsynflow,
    "snip": snip,
    "grad_norm": grad_norm,
    "zen": zen,
}
"""Scores of an initial network by name."""

COUNTED = ("parameters", "multiply_adds")
"""Scores that are counted, without a network."""

BLIND = {
    "synflow": "an image of ones",
    "logsynflow": "an image of ones",
    "zen": "noise",
    **dict.fromkeys(COUNTED, "no image"),
}
"""Scores that see no image of the data, and what they take instead."""


@dataclass(frozen=True)
class ZeroCost:
    """Scores a cell's network without training it, on the first `images` train images in random order; the mean over `networks` drawn ones.

    `score` is a name of `SCORES` or `COUNTED`.
    """

    score: str = "naswot"
    images: int = 64
    networks: int = 1

    def __post_init__(self) -> None:
        if self.score not in (*SCORES, *COUNTED):
            raise unknown("zero-cost score", self.score, (*SCORES, *COUNTED))
        if min(self.images - 1, self.networks) < 1:
            raise UserError(
                f"A zero-cost score needs two images and one network at least; given images={self.images}, "
                f"networks={self.networks}."
            )

    def ready(self, problem: Problem, watch: Sequence[Callback]) -> Callable[[Genotype], float]:
        """Takes the batch."""
        space, task, device = problem.space, problem.task, problem.fabric.device
        if self.score in COUNTED:
            return lambda genotype: float(cost(space, genotype).table()[self.score])
        count = min(self.images, len(problem.data.train))
        batch = Stream(problem.data.train, count, problem.seed, "zero cost", none(problem.data), device).at(0)

        def score(genotype: Genotype) -> float:
            found = [self.one(problem, genotype, batch, task, n) for n in range(self.networks)]
            mean = sum(found) / len(found)
            return mean if math.isfinite(mean) else LOWEST

        return score

    def one(self, problem: Problem, genotype: Genotype, batch: Batch, task: Task, number: int) -> float:
        """The score of one network of the genotype; equal for equal (seed, number)."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(counted(problem.seed, "zero cost", number).initial_seed())
            network = problem.space.network(genotype).to(problem.fabric.device).train()
            return SCORES[self.score](network, batch, task)
