"""DrNAS: Dirichlet Neural Architecture Search. X. Chen, R. Wang, M. Cheng, X. Tang, C. Hsieh. ICLR 2021, arXiv 2006.10355.

    beta_eo = ELU(eta_eo) + 1,   p_e ~ Dirichlet(beta_e)                    one draw a cell type and forward; independent in both steps
    eta <- eta - Adam( d L_val(theta, p(eta)) / d eta + lambda R(eta) )     through the sample (pathwise)
    R = |eta|^2 / 2 (`l2`, Adam's weight decay), or sum_e KL(Dir(beta_e) || Dir(1)) (`kl=True`)

Progressive (`drnas_progressive`): two stages. 1/K of the channels are searched, the rest passes by; at the border each edge keeps its
strongest ops, K falls, and every convolution's new channels are copies of random old ones, momenta alike. Alpha waits at each stage's
start; its Adam goes on.

Taken from code (xiangning-chen/DrNAS @ f2caa4d): lambda 1e-3 (reg_scale), initial eta 1e-3 N(0, 1). NAS-Bench-201
(201-space/train_search.py:36-59): 100 epochs, batch 64, SGD 0.025 -> 0.001 cosine, weight decay 3e-4, Adam 3e-4; progressive there
(train_search_progressive.py:189-191, 280): K 4 -> 2, ops 5 -> 3, 50 + 50 epochs, alpha held for 10 of each. DARTS space, CIFAR-10
(DARTS-space/train_search.py:25-46, 120-122, 182): 7 ops (no `none`), 20 cells of 36 channels, K 6 -> 4, ops 7 -> 4, 25 + 25 epochs, alpha
held for 10 of each, SGD 0.1 -> 0, Adam 6e-4. ImageNet (train_search_imagenet.py): 14 cells of 48 channels, K 6 -> 3, batch 512, SGD 0.5
-> 0 after a warm-up of 5 epochs, Adam 6e-3, alpha's gradient clipped at 5. Cells are derived from softmax(eta), not from the Dirichlet's
mean (`by_mean=True`): the two differ across edges. Ours: `arch_start` 0.3 outside of the published settings.

Published: NAS-Bench-201 test 94.36 / 73.51 / 46.34 (CIFAR-10, -100, ImageNet16-120, each searched on; readme), without stages (issue 8).
Others reproduce the first and the last, and 70.0 to 70.9 for CIFAR-100 (issues 9 and 10). DARTS space, CIFAR-10 error 2.46 +- 0.03 %
(readme), in stages.

Deviations from the paper: none known; its text was not at hand beyond the abstract.
Deviations from the script of the published numbers: below eta = -13.8 the concentration is held at 1e-6 (theirs underflows to 0 and
raises); samples are drawn in logarithms, so that small concentrations do not underflow; evaluation takes the mean, where theirs samples
(train_search.py `infer`); removed ops are left out of the sample, which has the same law as theirs, drawn and renormalised (utils.py
`process_step_vector`); alpha's gradients do not count in the weights' clip, as they do in NAS-Bench-201 (train_search.py,
`clip_grad_norm_` over all parameters).
Cost against DARTS: the same passes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from oche.base import Alpha, Batch, Draw, Group, NonNegative, Params, counted
from oche.errors import UserError
from oche.methods.budgets import Budget
from oche.methods.darts import darts
from oche.optim import Adam
from oche.search.method import Method
from oche.search.relaxations import Relaxation, Softmax
from oche.search.selection import leading
from oche.search.stages import Stage, Staged, carry_arch_optimizer
from oche.search.state import Problem, SearchState
from oche.spaces.edges import PartialChannels

LEAST = 1e-6


def concentration(eta: Tensor) -> Tensor:
    """ELU(eta) + 1, without the cancellation at negative eta; at least 1e-6."""
    return (eta.relu() + eta.clamp(max=0.0).exp()).clamp_min(LEAST)


class _Sample(torch.autograd.Function):
    """(E, O) concentrations, 0 where there is no candidate -> a sample of Dirichlet(beta_e); backward is its pathwise derivative."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, beta: Tensor, rng: torch.Generator) -> Tensor:
        own = beta.detach().double().cpu()
        there = own > 0
        gamma = torch._standard_gamma(own + 1, generator=rng).log()  # Gamma(b) = Gamma(b + 1) U^(1/b); never 0 in torch
        uniform = torch.rand(own.shape, generator=rng, dtype=torch.float64).clamp_min(1e-300)
        logs = (gamma + uniform.log() / own.clamp_min(LEAST)).masked_fill(~there, float("-inf"))
        x = logs.softmax(-1).masked_fill(~there, 0.0)
        ctx.save_for_backward(own, x)
        return x.to(beta)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        own, x = ctx.saved_tensors  # type: ignore[attr-defined]
        g, there = grad.detach().double().cpu(), own > 0
        total = own.sum(-1, keepdim=True).expand_as(own)
        alone = there & (own < total)  # an edge with one candidate left always draws it
        u = torch._dirichlet_grad(x, own.clamp_min(LEAST), total.clamp_min(LEAST))  # finite at 0 and 1, too
        return (u * (g - (x * g).sum(-1, keepdim=True))).masked_fill(~alone, 0.0).to(grad), None


@dataclass(frozen=True)
class Dirichlet(Relaxation):
    """p_e ~ Dirichlet(ELU(eta_e) + 1) over the candidates that remain; in evaluation its mean."""

    by_mean: bool = False
    scale: NonNegative = 1e-3

    def init(self, group: Group, rng: torch.Generator) -> Alpha:
        return Softmax(self.scale).init(group, rng)

    def __call__(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        beta = concentration(alpha[f"{group.name}/alpha"])
        beta = beta * draw.alive(group).to(beta)
        if draw.phase == "eval":
            return beta / beta.sum(-1, keepdim=True).clamp_min(LEAST)
        sample: Tensor = _Sample.apply(beta, draw.generator(f"dirichlet/{group.name}"))  # type: ignore[no-untyped-call]
        return sample

    def strength(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        return self(alpha, group, replace(draw, phase="eval")) if self.by_mean else Softmax()(alpha, group, draw)


@dataclass(frozen=True)
class DirichletKL:
    """weight * sum over edges of KL(Dir(beta_e) || Dir(1)), over the candidates that remain."""

    weight: float = 1e-3

    def __call__(self, state: SearchState, theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        total = torch.zeros((), device=batch.images.device)
        for group in state.space.groups:
            eta = alpha[f"{group.name}/alpha"]
            alive = state.alive(group).to(eta)
            total = total + divergence(concentration(eta) * alive + (1 - alive), alive).sum()
        return self.weight * total


def divergence(beta: Tensor, alive: Tensor) -> Tensor:
    """(E,) KL(Dir(beta_e) || Dir(1)) over the entries where `alive` is 1; beta is 1 elsewhere."""
    whole, count = (beta * alive).sum(-1), alive.sum(-1)
    logs = (torch.lgamma(beta) * alive).sum(-1)
    drift = ((beta - 1) * (torch.digamma(beta) - torch.digamma(whole)[:, None]) * alive).sum(-1)
    return torch.lgamma(whole) - logs - torch.lgamma(count) + drift


# ------------------------------------------------------------------ progressive learning


@dataclass(frozen=True)
class Progressive:
    """Stage k searches 1/K[k] of the channels with keep[k] ops per edge, the strongest of the stage before; equal shares of the epochs.

    Alpha's Adam goes on from stage to stage (`keep_adam`), or starts anew.
    """

    K: tuple[int, ...] = (4, 2)
    keep: tuple[int, ...] = (8, 3)
    keep_adam: bool = True

    def __call__(self, problem: Problem, method: Method, ended: tuple[SearchState, ...]) -> Stage | None:
        n, count = len(ended), len(self.K)
        if count != len(self.keep) or problem.epochs < count:
            raise UserError(f"Progressive(K={self.K}, keep={self.keep}) needs as many of both, and an epoch for each.")
        if n == count:
            return None
        mask = {}
        for group in problem.space.groups:
            alive = ended[-1].alive(group) if ended else group.valid()
            eta = ended[-1].alpha[f"{group.name}/alpha"].detach().cpu() if ended else torch.zeros(alive.shape)
            mask[group.name] = leading(eta, alive, self.keep[n])
        epochs = problem.epochs * (n + 1) // count - problem.epochs * n // count
        own = replace(method, edge=PartialChannels(self.K[n]))
        enter = widened_with_adam if self.keep_adam else widened
        return Stage(problem.space, own, epochs, (n / count, (n + 1) / count), mask, enter, f"K={self.K[n]}")


def widened_with_adam(state: SearchState, ended: tuple[SearchState, ...]) -> None:
    """`widened`, and takes over what alpha's optimiser remembers."""
    widened(state, ended)
    if ended:
        carry_arch_optimizer(state, ended[-1])


@torch.no_grad()
def widened(state: SearchState, ended: tuple[SearchState, ...]) -> None:
    """Takes over alpha, 0 where an op was removed, and the weights, new channels as copies of random old ones."""

    def fit(name: str, t: Tensor, shape: torch.Size) -> Tensor | None:
        for dim, (new, old) in enumerate(zip(shape, t.shape, strict=True)):
            if new < old:
                return None
            rng = counted(state.problem.seed, "widen", state.stage, name, dim)
            extra = torch.randint(old, (new - old,), generator=rng).to(t.device)
            t = torch.cat([t, t.index_select(dim, extra)], dim)
        return t

    if ended:
        state.weights.take_over(ended[-1].weights, fit)
        state.began = ended[-1].began
        for group in state.space.groups:
            key = f"{group.name}/alpha"
            state.alpha[key].copy_(ended[-1].alpha[key] * state.alive(group).to(state.alpha[key]))


# ------------------------------------------------------------------ the methods

_DARTS: dict[str, object] = {"weight_lr.start": 0.1, "weight_lr.end": 0.0, "arch_optimizer.lr": 6e-4}
_SOURCE = "xiangning-chen/DrNAS @ f2caa4d"

PUBLISHED = {
    "nb201": Budget(100, 64, {"space.cells": 5, "space.channels": 16}, f"{_SOURCE}, 201-space/train_search.py"),
    "darts": Budget(
        50,
        64,
        {"space.cells": 8, "space.channels": 16, **_DARTS},
        f"ours: the rates of {_SOURCE}, DARTS-space/train_search.py, without its stages",
    ),
}
BUDGETS = {"paper": PUBLISHED}
PROGRESSIVE = {
    "nb201": Budget(
        100,
        64,
        {"space.cells": 5, "space.channels": 16, "arch_start": 0.2, "stages.K": (4, 2), "stages.keep": (5, 3)},
        f"{_SOURCE}, 201-space/train_search_progressive.py",
    ),
    "darts": Budget(
        50,
        64,
        {
            "space.cells": 20,
            "space.channels": 36,
            "arch_start": 0.4,
            "stages.K": (6, 4),
            "stages.keep": (7, 4),
            **_DARTS,
        },
        f"{_SOURCE}, DARTS-space/train_search.py",
    ),
    "imagenet": Budget(
        50,
        512,
        {
            "space.cells": 14,
            "space.channels": 48,
            "arch_start": 0.4,
            "stages.K": (6, 3),
            "stages.keep": (7, 4),
            "weight_lr.start": 0.5,
            "weight_lr.end": 0.0,
            "weight_lr.warm_up": 0.1,
            "arch_optimizer.lr": 6e-3,
            "arch_clip": 5.0,
            "split.weights": 0.1,
            "split.arch": 0.025,
        },
        f"{_SOURCE}, DARTS-space/train_search_imagenet.py",
    ),
}
PROGRESSIVE_BUDGETS = {"paper": PROGRESSIVE}


def drnas(kl: bool = False, by_mean: bool = False) -> Method:
    """DrNAS: op weights drawn from a Dirichlet.

    Without stages. `kl` regularises by the divergence from the uniform Dirichlet instead of Adam's weight decay.
    """
    return replace(
        darts(),
        name="drnas",
        relaxation=Dirichlet(by_mean),
        arch_optimizer=Adam(weight_decay=0.0) if kl else Adam(),
        outer_terms=(DirichletKL(),) if kl else (),
        space={"darts.without": ("none",)},
        papers=("chen2021drnas",),
    )


def drnas_progressive(kl: bool = False) -> Staged:
    """DrNAS in two stages: fewer ops, more channels."""
    return Staged("drnas_progressive", replace(drnas(kl), name="drnas_progressive", arch_start=0.3), Progressive())
