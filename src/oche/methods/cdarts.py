"""CDARTS: Cyclic Differentiable Architecture Search. H. Yu et al. TPAMI 2023, arXiv 2006.10724.

Beside the search network S trains an evaluation network E, the discrete cell that alpha stands for, derived anew in every cycle:

    theta <- theta - SGD( d CE_S / d theta )                                           on the weights' images
    (alpha, w_E) <- one step of both, by Adam and SGD, along the gradient of           on alpha's images
        CE_S + CE_E + T^2 KL( softmax(z_E / T) || softmax(z_S / T) ) + lambda sum |alpha_eo| over pools and skip connections

so that E teaches S which cell does well by itself. KL is a mean over images *and classes*, as torch's `KLDivLoss()` is; T = 2; lambda
falls from 5 straight to 0 at half of the search. On NAS-Bench-201 the last term is lambda times the mean of |alpha| over `none`. The step
of alpha comes first. `rule="paper"` takes KL as the mean over images alone, and pools and skip connections until the end, in every space.

Taken from code (microsoft/Cream @ 4a13c40): these constants (CDARTS/benchmark201/configs/config.py:66-108, models/loss.py:26,
models/cdarts_controller.py:371, core/search_function.py:36-111; CDARTS/lib/models/cdarts_controller.py:787-806), S's rate 0.05 and E's
0.1, both constant since their schedulers never step (benchmark201/search.py:137, 239), S of 8 cells and E of 20 in the DARTS space
(`cells=20`; by default E has the size of S). From the log that it ships (benchmark201/search/cifar10-search): 25 cycles of one epoch, no
training of S alone, batch 64, alpha's Adam at 3e-4 (6e-4 in the config). Its shell scripts are not published, so the settings of the
DARTS space are ours. Published: NAS-Bench-201 cells of 94.37 / 73.09 / 46.33, 94.09 / 72.57 / 45.63 and 93.62 / 70.10 / 44.57.

Deviations from the paper: E has no auxiliary heads, whose logits the paper's distillation takes too, and no drop path.
Deviations from the script of the published numbers: E is not trained alone before the joint steps of a cycle (search.py:206-208, up to 5
epochs each, which cost more than the search); the two networks have a stem each, where theirs share one; each network's gradient is
clipped by itself, where theirs and alpha's are clipped together (search_function.py:59); a cycle keeps momenta and the weights of
operations that were in E before it, the code only the weights, of all that were ever in it; the log's rounds are a fifth of the images
(SAMPLE_RATIO=0.2), here all.
Cost against DARTS: forward and backward of E at each architecture step, and a second forward and backward of S for z_S.
With random features S is frozen, E learns.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from oche.base import Alpha, Batch, Count, Fraction, NonNegative, Params, Positive, counted
from oche.errors import UserError
from oche.genotype import Genotype
from oche.methods.budgets import Budget
from oche.methods.darts import darts
from oche.optim import Adam, average
from oche.schedule import Cosine, Linear, Schedule
from oche.search.callbacks import Callback, OuterStep
from oche.search.method import Method
from oche.search.selection import Selection, TopK
from oche.search.state import SearchState
from oche.spaces import Network, Space
from oche.spaces.synchronised import alone_again, synchronise

Rule = Literal["code", "paper"]

PUBLISHED = {
    "nb201": Budget(
        25,
        64,
        {
            "space.cells": 5,
            "space.channels": 16,
            "method.cycles": 25,
            "arch_optimizer.lr": 3e-4,
            "weight_lr.start": 0.05,
            "weight_lr.end": 0.05,
        },
        "microsoft/Cream @ 4a13c40, CDARTS/benchmark201/search/cifar10-search/cifar10-search.log",
    ),
    "darts": Budget(25, 64, {"space.cells": 8, "space.channels": 16, "method.cells": 20}, "ours"),
}
BUDGETS = {"paper": PUBLISHED}

CELL, CYCLE, LOSS, WEIGHT, MOMENTUM = (f"cdarts/{key}" for key in ("cell", "cycle", "loss", "weight/", "momentum/"))


@dataclass(frozen=True)
class Evaluation(Callback):
    """Network E: as an outer term what it teaches alpha, T^2 KL(E || S); as a callback its cycles and its own steps.

    Its cell (JSON as bytes), weights and momenta live in the state's memory. The term leaves E's own loss there, on whose gradient
    the callback steps before the loop steps alpha: the two gradients are those of one joint loss, since each sees the other's logits
    as they are.
    """

    cycles: Count = 5
    cells: Count | None = None
    temperature: Positive = 2.0
    weight: NonNegative = 1.0
    lr: Schedule = Cosine(0.1, 0.1)
    momentum: Fraction = 0.9
    weight_decay: NonNegative = 3e-4
    clip: Positive = 5.0
    selection: Selection = TopK()
    rule: Rule = "code"

    def on_epoch_start(self, state: SearchState) -> None:
        """Derives E where a cycle begins; a resumed search has it already."""
        memory, epochs = state.memory, state.problem.epochs
        cycle = state.epoch * min(self.cycles, epochs) // epochs
        if CYCLE in memory and int(memory[CYCLE]) == cycle:
            return
        genotype = self.selection(state, state.problem)
        seed = counted(state.problem.seed, "evaluation network", cycle).initial_seed()
        fresh = network(self.space(state), genotype.to_json(), seed, next(state.supernet.parameters()))
        old = {name: memory.pop(name) for name in list(memory) if name.startswith((WEIGHT, MOMENTUM))}
        for name, p in fresh.named_parameters():
            for key, value in ((WEIGHT + name, p.detach()), (MOMENTUM + name, torch.zeros_like(p))):
                kept = old[key] if key in old and old[key].shape == value.shape else value
                memory[key] = kept.detach().clone()
        memory[CELL] = torch.tensor(list(genotype.to_json().encode()), dtype=torch.uint8)
        memory[CYCLE] = torch.tensor(cycle)

    def __call__(self, state: SearchState, theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        draw, task = state.draw("alpha"), state.problem.task
        images = batch.images.to(next(state.supernet.parameters()).dtype)
        own = {name: t.requires_grad_() for name, t in weights(state, WEIGHT).items()}
        op_weights = state.op_weights(alpha, draw)
        with state.problem.fabric.autocast():
            z_s, _ = torch.func.functional_call(state.supernet, theta, (images, op_weights, draw))
            z_e = torch.func.functional_call(self.derived(state), own, (images,))
        z_s, z_e = z_s.to(images.dtype), z_e.to(images.dtype)
        loss = task.loss(z_e, batch.targets)
        state.memory[LOSS] = loss + self.weight * self.divergence(z_e, z_s.detach())
        state.meter(evaluation_confusion=task.confusion(z_e.detach(), batch.targets))
        lesson = self.divergence(z_e.detach(), z_s)
        state.meter(lesson=lesson, lessons=1.0)
        return self.weight * lesson

    def divergence(self, z_e: Tensor, z_s: Tensor) -> Tensor:
        """T^2 KL, by the code's rule a mean over classes too."""
        whole = divergence(z_e, z_s, self.temperature)
        return whole / z_e.shape[1] if self.rule == "code" else whole

    def after_outer_backward(self, state: SearchState, grads: Alpha, outer: OuterStep) -> Alpha:
        """E's own step, SGD with momentum, its gradient clipped."""
        own, momenta = weights(state, WEIGHT), weights(state, MOMENTUM)
        tensors = torch.autograd.grad(state.memory.pop(LOSS), list(own.values()), materialize_grads=True)
        by_weight = average(state.problem.fabric, tensors)
        norm = torch.stack([g.norm() for g in by_weight]).norm()
        scale = (self.clip / (norm + 1e-6)).clamp(max=1.0)
        with torch.no_grad():
            for (name, w), g in zip(own.items(), by_weight, strict=True):
                v = momenta[name].mul_(self.momentum).add_(scale * g + self.weight_decay * w)
                w.sub_(self.lr(state.progress) * v)
        return grads

    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        if "evaluation_confusion" in state.meters:
            record["evaluation_cell"] = str(self.cell(state))
            task = state.problem.task
            record["lesson"] = float(state.meters["lesson"]) / float(state.meters["lessons"])
            record[f"evaluation_{task.metric}"] = task.score(state.meters["evaluation_confusion"].round().long())

    def cell(self, state: SearchState) -> Genotype:
        """E's cell."""
        return Genotype.from_json(bytes(state.memory[CELL].tolist()).decode())

    def derived(self, state: SearchState) -> Network:
        """E without its weights."""
        built = network(self.space(state), self.cell(state).to_json(), 0, next(state.supernet.parameters()))
        if state.problem.sync and state.problem.fabric.world_size > 1:
            synchronise(built, state.problem.fabric)
        else:
            alone_again(built)
        return built

    def space(self, state: SearchState) -> Space:
        """The searched space, with E's number of cells. Raises UserError where it has none."""
        if self.cells is None:
            return state.space
        if self.cells < 1 or "cells" not in {field.name for field in fields(state.space)}:
            raise UserError(
                f"cells={self.cells} for CDARTS's evaluation network: expected at least 1, in a space that counts its cells; "
                f"leave it out for the size of the search in {state.space.name}."
            )
        return replace(state.space, cells=self.cells)  # type: ignore[call-arg]


@dataclass(frozen=True)
class PoolsAndSkips:
    """max(0, coefficient(progress)) times sum |alpha_eo| over the pools and skip connections: a term of the outer loss.

    By the code's rule, in cells that keep an op on every edge it is the mean of |alpha_eo| over `none` instead, where there is one.
    """

    coefficient: Schedule = Linear(5.0, -5.0)
    rule: Rule = "code"

    def __call__(self, state: SearchState, theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        total = torch.zeros((), device=batch.images.device)
        for group in state.space.groups:
            none = group.named("none")
            if self.rule == "code" and group.keep is None:
                if none.any():
                    total = total + alpha[f"{group.name}/alpha"][none.to(total.device)].abs().mean()
                continue
            there = [(e, o) for e, ops in enumerate(group.ops) for o, op in enumerate(ops) if simple(op)]
            for e, o in there:
                total = total + alpha[f"{group.name}/alpha"][e, o].abs()
        return max(0.0, self.coefficient(state.progress)) * total


def simple(op: str) -> bool:
    """A pool or a skip connection."""
    return op == "skip_connect" or "pool" in op


def divergence(z_e: Tensor, z_s: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(z_E / T) || softmax(z_S / T)), mean over all but the classes; z (B, classes, ...)."""
    p, q = (z_e / temperature).log_softmax(1), (z_s / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(q, p, reduction="none", log_target=True).sum(1).mean()


def weights(state: SearchState, prefix: str) -> Params:
    """The tensors that the memory holds under a prefix, not copies."""
    return {name.removeprefix(prefix): t for name, t in state.memory.items() if name.startswith(prefix)}


def network(space: Space, text: str, seed: int, like: Tensor) -> Network:
    """The cell's network as that seed draws it, in training mode, where and in what precision `like` is."""
    return _network(space, text, seed, like.device, like.dtype)


@lru_cache(maxsize=8)
def _network(space: Space, text: str, seed: int, device: torch.device, dtype: torch.dtype) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = space.network(Genotype.from_json(text))
    return built.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def cdarts(
    cycles: int = 5,
    cells: int | None = None,
    temperature: float = 2.0,
    weight: float = 1.0,
    l1: float = 5.0,
    rule: Rule = "code",
) -> Method:
    """A search and an evaluation network that teach each other.

    `cells` is the second one's depth, `rule` whose divergence and penalty.
    """
    if cycles < 1 or temperature <= 0:
        raise UserError(f"CDARTS needs at least one cycle and a temperature above 0; given {cycles} and {temperature}.")
    evaluation = Evaluation(cycles, cells, temperature, weight, rule=rule)
    penalty = PoolsAndSkips(Linear(l1, -l1 if rule == "code" else 0.0), rule)
    return replace(
        darts(),
        name="cdarts",
        arch_optimizer=Adam(6e-4),
        weight_lr=Cosine(0.05, 0.05),
        outer_terms=(evaluation, penalty),
        callbacks=(evaluation,),
        papers=("liu2019darts", "yu2023cdarts"),
    )
