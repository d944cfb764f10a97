"""OLES: Operation-Level Early Stopping for Robustifying Differentiable NAS. NeurIPS 2023.

Operations with weights overfit to the training half, and lose to skip connections for it. So each operation (cell, edge, op) is watched:

    similarity = mean over its weight tensors of mean( cosine along dim 0 of (d L_train at the last weight step, d L_val at this step) )

averaged over `window` steps; where the mean is below `threshold`, its weights are frozen for the rest of the search. The genotype is that
of the epoch with the best supernet accuracy on the validation images. First-order DARTS otherwise.

Taken from code (PasaLab/oles): window 20, threshold 0.4. Published: DARTS space, CIFAR-10 error 2.41 +- 0.11 % (best 2.30).
Recalled, not checked: NAS-Bench-201 test 93.70 / 70.40 / 43.97.

Deviations from the paper: none known.
Deviations from the authors' code: a frozen weight rests bit for bit, where momentum and weight decay may go on moving it there; the best
epoch is judged on validation images that neither half has seen.
Cost against DARTS: about a sixth more: the weights' validation gradients come out of the same backward pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from oche.base import Alpha, Params
from oche.genotype import Genotype
from oche.methods.darts import darts
from oche.search.bilevel import FirstOrder
from oche.search.callbacks import Callback, InnerStep, OuterStep
from oche.search.loop import score
from oche.search.method import Method
from oche.search.selection import Selection, TopK
from oche.search.state import Problem, SearchState


@dataclass(frozen=True)
class FreezeOverfitted(Callback):
    """The rule above. Remembers the last weight step's gradients and, by operation, the sum of similarities and their number."""

    window: int = 20
    threshold: float = 0.4

    def after_inner_backward(self, state: SearchState, grads: Params, inner: InnerStep) -> Params:
        for name in [name for names in operations(grads).values() for name in names]:
            state.memory[f"oles/grad/{name}"] = grads[name].detach().clone()
        return grads

    def after_outer_backward(self, state: SearchState, grads: Alpha, outer: OuterStep) -> Alpha:
        frozen: set[str] = set()
        for op, names in operations(outer.theta_grads).items():
            pairs = [(state.memory.get(f"oles/grad/{name}"), outer.theta_grads[name]) for name in names]
            found = [similarity(a, b) for a, b in pairs if a is not None]
            if not found:
                continue
            tally = state.memory.get(f"oles/{op}", torch.zeros(2, dtype=torch.float64))
            tally = tally + torch.stack([torch.stack(found).mean().double().cpu(), torch.ones((), dtype=torch.float64)])
            if tally[1] == self.window:
                if tally[0] / tally[1] < self.threshold:
                    frozen |= set(names)
                tally = torch.zeros_like(tally)
            state.memory[f"oles/{op}"] = tally
        if frozen:
            state.learn(state.learns - frozen)
            for key in [f"oles/grad/{name}" for name in frozen]:
                state.memory.pop(key, None)
        return grads


@dataclass(frozen=True)
class RememberAccuracy(Callback):
    """Keeps the supernet's accuracy on the validation images after each epoch, and writes it into the log."""

    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        accuracy, _ = score(state, state.problem, state.problem.data.val)
        record[f"val_{state.problem.task.metric}"] = accuracy
        known = state.memory.get("accuracies", torch.zeros(0, dtype=torch.float64))
        state.memory["accuracies"] = torch.cat([known, torch.tensor([accuracy], dtype=torch.float64)])


@dataclass(frozen=True)
class BestEpoch:
    """The genotype of the epoch with the best remembered accuracy, the first of equals; of the present one where none is known."""

    inner: Selection = TopK()

    def __call__(self, state: SearchState, problem: Problem) -> Genotype:
        known = state.memory.get("accuracies")
        return self.inner(state if known is None else state.at(int(known.argmax()) + 1), problem)


def operations(names: Iterable[str]) -> dict[str, list[str]]:
    """The weights that lie in an operation, by the operation's path `...edges.E.ops.OP`."""
    found: dict[str, list[str]] = {}
    for name in names:
        before, dot, inside = name.partition(".ops.")
        if dot:
            found.setdefault(f"{before}.ops.{inside.split('.')[0]}", []).append(name)
    return found


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """The mean of the cosines along dim 0."""
    return torch.cosine_similarity(a, b, dim=0).mean()


def oles(window: int = 20, threshold: float = 0.4) -> Method:
    """DARTS whose operations stop learning once they overfit.

    That is when training and validation pull them apart.
    """
    return replace(
        darts(),
        name="oles",
        arch_gradient=FirstOrder(keep_theta=True),
        callbacks=(FreezeOverfitted(window, threshold), RememberAccuracy()),
        selection=BestEpoch(),
        papers=("liu2019darts", "jiang2023oles"),
    )
