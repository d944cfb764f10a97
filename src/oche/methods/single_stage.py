"""Single-stage search: warm-up, search, freeze, tune; the network that was searched is the one that is kept, with its weights.

"The devil is in discretization discrepancy" (Subbotko, Jablonski, Bilinski, CVPR workshops 2024, arXiv 2405.16610) says in its abstract
that turning a continuous architecture into a discrete one costs accuracy, and proposes a single-stage protocol that does not rely on
decoding and reuses the weights. A summary of its text adds that the architecture is frozen, and that nothing is trained from scratch.

    warm-up   epochs until arch_start      weights only; alpha as it was drawn, next to uniform
    search    until freeze                 a step of alpha, a step of the weights, on their own images
    freeze    the variant below            alpha and gates stop, to the bit
    tune      to the end                   weights only, on all images; one learning-rate schedule, one optimiser state, no restart

**The paper's body was not at hand.** All else here is our reading, a switch with a default of our choice, and no claim about the paper:

- `variant`: what the freeze does. "soft" (default) keeps every candidate with its op weight. "prune" leaves out branches whose op weight
  is below `threshold`, but for each node's strongest input and operation; the others keep their values, or are scaled up where
  `renormalise`. With `relative` (False) the threshold is a share of the strongest one's op weight, as in SSR's code, which takes 0.1 of
  an operation's and then freezes alpha; that gates are compared with their node's strongest is our choice. "one_hot" fixes a decision
  once the best leads the second by `margin` (DSNAS) and all others at the freeze, to the best; no node loses its strongest input.
- `freeze`: the share of the epochs after which alpha stops (0.6); 1 is never. The warm-up's share is the slot `arch_start` (0.2).
- `restart`: the learning rate's schedule begins anew at the freeze (False).
- `split`, a slot: who sees which images, see `data/splits.py`; by default halves until the freeze, then all images to the weights (S6).
- `entropy`, `gate_entropy`: weights of a penalty on undecided operations and gates; `entropy_form` is "shannon" (normalised), "ssr" or
  "da2s"; `entropy_schedule` "constant", "linear" from 0 at the warm-up's end to its weight at the freeze, or "delayed", the same over
  the search's second half.
- `gates`: "sigmoid", "softmax" or "relu_tanh"; `operations`: "softmax", "sigmoid" or "normalised" (sigmoids over their sum).
- Gates, one learning rate schedule (poly 0.9), Adam's settings without weight decay (which would pull alpha to uniform) and clipping
  are our choice among those of Auto-DeepLab, DSNAS, SSR and Dynamic Routing. Weight decay reaches batch norms and biases
  too; `--set weight_optimizer.decay_vectors=false` spares them, as is the custom in segmentation.

In Python:

    searcher = single_stage(variant="prune", threshold=0.1)                    # a Staged of two stages: until the freeze, and after it
    result = searcher.search(problem)                                          # SearchResult: genotype, state, history
    result.genotype                                                            # soft: Choice.coefficient; edge type "kept"
    network = oche.search.inherit.inherited(result.state, result.genotype)              # eval mode, running statistics re-estimated
    frozen = oche.methods.freezing.frozen_mask(state, threshold)                         # what "prune" leaves, {group: (E, O) bool}
    in_one_stage(some_method, SingleStage(freeze=0.5))                         # the same protocol around another method

`state.trajectory` holds alpha after every epoch; `stages/0.pt` in the run's folder is the checkpoint at the freeze, before anything is
removed, `stages/1.pt` that of the end. `oche search single_stage` writes `network/` as `oche train` does, and its test scores to the log.

Stated by the paper (abstract): 75.3 % mIoU in the searching stage on Cityscapes, some 5.5 GPU days of training in all.

Deviations from the paper: unknown where it is silent here, see above.
Deviations from the script of the published numbers: no code was found.
Cost against DARTS: the same passes while it searches, one pass less a step before and after; nothing is trained afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from oche.base import Alpha, Draw, Group
from oche.data import Released, UntilFreeze
from oche.errors import UserError
from oche.genotype import Genotype
from oche.methods.budgets import Budget
from oche.methods.darts import darts
from oche.methods.freezing import decided, frozen_mask
from oche.optim import SGD, Adam
from oche.schedule import Constant, Poly, Ramp, Schedule
from oche.search.callbacks import Callback
from oche.search.method import Method
from oche.search.relaxations import (
    Gate,
    Gated,
    Relaxation,
    ReluTanhGate,
    Sigmoid,
    SigmoidGate,
    Softmax,
    SoftmaxGate,
)
from oche.search.selection import Keep
from oche.search.stages import Stage, Staged, carry_on
from oche.search.state import Problem, SearchState
from oche.search.terms import Entropy, InputEntropy, Term, log_distance
from oche.search.trainable import AllWeights
from oche.spaces.edges import WeightedSum
from oche.watch.monitor import Degeneration

Variant = Literal["soft", "prune", "one_hot"]
Form = Literal["shannon", "ssr", "da2s"]
Growth = Literal["constant", "linear", "delayed"]

GATES: dict[str, Gate] = {"sigmoid": SigmoidGate(), "softmax": SoftmaxGate(), "relu_tanh": ReluTanhGate()}
OPERATIONS: dict[str, Relaxation] = {"softmax": Softmax(), "sigmoid": Sigmoid(), "normalised": Sigmoid(normalised=True)}

FEW = ("plain_3x3", "skip_connect")
"""Operations of a small mixture: a step takes half as long as with two inverted bottlenecks (docs/results/masks.md)."""

_OURS = "our choice: the paper's settings are not known"
BUDGETS = {
    "paper": {
        "grid": Budget(300, 8, {"space.layers": 14, "space.channels": 32}, _OURS),
        "darts": Budget(200, 64, {"space.cells": 8, "space.channels": 16}, _OURS),
        "nb201": Budget(200, 64, {"space.cells": 5, "space.channels": 16}, _OURS),
    },
    "quick": {
        "grid": Budget(
            60, 8, {"space.layers": 4, "space.channels": 8, "space.ops": FEW, "weight_lr.start": 0.1}, steps=1200
        ),
        "darts": Budget(40, 64, {"space.cells": 5, "space.channels": 8}),
        "nb201": Budget(60, 64, {"space.cells": 1, "space.channels": 16}),
    },
    "smoke": {
        "toy": Budget(5, 16),
        "grid": Budget(5, 4, {"space.layers": 3, "space.channels": 4, "space.levels": 3}),
        "darts": Budget(5, 16, {"space.cells": 3, "space.channels": 4}),
        "nb201": Budget(5, 16, {"space.cells": 1, "space.channels": 4}),
    },
}
"""Ours, one epoch of `smoke` for the warm-up, two to search and two to tune."""


@dataclass(frozen=True)
class SingleStage:
    """Two stages: until the freeze, warm-up included, and after it, with what the variant leaves; see the module."""

    variant: Variant = "soft"
    freeze: float = 0.6
    threshold: float = 0.05
    relative: bool = False
    renormalise: bool = False
    margin: float = 0.3
    restart: bool = False

    def __call__(self, problem: Problem, method: Method, ended: tuple[SearchState, ...]) -> Stage | None:
        if not method.arch_start < self.freeze <= 1 or not 0 <= self.threshold < 1 or not 0 < self.margin <= 1:
            raise UserError(
                "A single-stage search freezes after its warm-up and by its end, with a threshold and a margin within 0 and 1; given "
                f"arch_start={method.arch_start}, freeze={self.freeze}, threshold={self.threshold}, margin={self.margin}."
            )
        until = max(1, round(self.freeze * problem.epochs))
        if not ended:
            warm = min(until - 1, round(method.arch_start * problem.epochs))
            decide = (Decide(self.margin),) if self.variant == "one_hot" else ()
            searching = replace(method, arch_start=max(0.0, warm - 0.5) / until, callbacks=(*decide, *method.callbacks))
            return Stage(problem.space, searching, until, (0.0, until / problem.epochs), note="search")
        if len(ended) > 1:
            return None
        tuning = replace(method, arch_start=1.0, outer_terms=())
        if isinstance(method.split, UntilFreeze):
            tuning = replace(tuning, split=Released())
        if self.variant == "prune" and not self.renormalise:
            tuning = replace(tuning, relaxation=Unscaled(method.relaxation))
        span = (0.0 if self.restart else until / problem.epochs, 1.0)
        return Stage(problem.space, tuning, problem.epochs - until, span, self.left(ended[-1]), carry_on, "tune")

    def left(self, state: SearchState) -> dict[str, Tensor]:
        """{group: (E, O) bool}, the candidates that the freeze leaves; empty where it leaves all."""
        if self.variant == "soft":
            return {}
        if self.variant == "prune":
            return frozen_mask(state, self.threshold, relative=self.relative)
        return decided(state, 0.0)


def keep(problem: Problem, method: Method, ended: tuple[SearchState, ...]) -> Genotype:
    """The last stage's supernet as a genotype."""
    return Keep()(ended[-1], ended[-1].problem)


# ------------------------------------------------------------------ parts


@dataclass(frozen=True)
class Decide(Callback):
    """Before every epoch, fixes the decisions whose margin is reached; a search that is resumed in the middle of one has done so."""

    margin: float = 0.3

    def on_epoch_start(self, state: SearchState) -> None:
        if state.step * state.problem.epochs == state.epoch * state.steps:
            state.mask.update(decided(state, self.margin))


@dataclass(frozen=True)
class Unscaled(Relaxation):
    """`inner` over all candidates, then zero where the draw's mask has removed one: the others keep the values they had beside it."""

    inner: Relaxation

    def init(self, group: Group, rng: torch.Generator) -> Alpha:
        return self.inner.init(group, rng)

    def __call__(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        w = self.inner(alpha, group, replace(draw, mask={}))
        return w * draw.alive(group, w.device)

    def strength(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        w = self.inner.strength(alpha, group, replace(draw, mask={}))
        return w * draw.alive(group, w.device)


# ------------------------------------------------------------------ the method


def in_one_stage(method: Method, plan: SingleStage = SingleStage()) -> Staged:
    """Another method under this protocol: its rules until the freeze, then its weights tuned. Raises UserError where they do not fit."""
    if not isinstance(method.edge, WeightedSum):
        raise UserError(
            f"{method.name} does not mix its candidates by a weighted sum of all channels, which is what a single-stage network keeps."
        )
    trained = replace(method, trainable=AllWeights(affine=True), split=UntilFreeze(method.split))
    whole = plan.variant != "one_hot"
    return Staged(f"single_stage_{method.name}", trained, plan, keep, keeps_weights=True, keeps_whole=whole)


def single_stage(
    variant: Variant = "soft",
    freeze: float = 0.6,
    threshold: float = 0.05,
    relative: bool = False,
    renormalise: bool = False,
    margin: float = 0.3,
    restart: bool = False,
    entropy: float = 0.0,
    gate_entropy: float = 0.0,
    entropy_form: Form = "shannon",
    entropy_schedule: Growth = "constant",
    gates: Literal["sigmoid", "softmax", "relu_tanh"] = "sigmoid",
    operations: Literal["softmax", "sigmoid", "normalised"] = "softmax",
) -> Staged:
    """Search, freeze, tune on: the network is kept, not decoded."""
    method = replace(
        darts(),
        name="single_stage",
        relaxation=Gated(OPERATIONS[operations], GATES[gates]),
        trainable=AllWeights(affine=True),
        split=UntilFreeze(),
        arch_start=0.2,
        arch_optimizer=Adam(3e-3, (0.5, 0.999), 0.0),
        weight_optimizer=SGD(weight_decay=5e-4),
        weight_lr=Poly(0.05),
        callbacks=(Degeneration(),),
        papers=("subbotko2024devil",),
    )
    terms = penalty(entropy, gate_entropy, entropy_form, entropy_schedule, (method.arch_start, freeze))
    plan = SingleStage(variant, freeze, threshold, relative, renormalise, margin, restart)
    whole = variant != "one_hot"
    return Staged("single_stage", replace(method, outer_terms=terms), plan, keep, keeps_weights=True, keeps_whole=whole)


def penalty(ops: float, gates: float, form: Form, growth: Growth, search: tuple[float, float]) -> tuple[Term, ...]:
    """The entropy term of these weights, none where both are 0; `search` is when alpha steps, as shares of the whole."""
    if ops == gates == 0:
        return ()
    start, end = search
    since = start if growth == "linear" else (start + end) / 2

    def weight(value: float) -> Schedule:
        return Constant(value) if growth == "constant" else Ramp(value, since, end)

    if form == "da2s":
        return (InputEntropy(weight(ops), weight(gates)),)
    return (
        Entropy(weight(ops), weight(gates), log_distance) if form == "ssr" else Entropy(weight(ops), weight(gates)),
    )
