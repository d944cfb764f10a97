"""Builds what a search begins with: its state, its streams of batches, and its two losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from oche.base import Alpha, Batch, NotRepeatable, Params, counted
from oche.data import ImageSet, Stream
from oche.fast import accelerate
from oche.optim import average
from oche.search.bilevel import Bilevel
from oche.search.callbacks import sees_weights
from oche.search.method import Method
from oche.search.state import Problem, SearchState
from oche.search.terms import OfAlpha
from oche.search.weights import SupernetWeights
from oche.spaces.attention import choose_together
from oche.spaces.synchronised import synchronise


def begin(
    problem: Problem, method: Method, mask: Mapping[str, Tensor] | None = None, before: SearchState | None = None
) -> SearchState:
    """A fresh state: everything random in it depends on the seed alone, and on the number of the stage that it follows, `before`.

    Candidates that `mask` leaves out are not built.
    """
    stage = [f"stage {before.stage + 1}"] if before else []
    alpha = fresh_alpha(problem, method, stage)
    weights, arch = streams(problem, method)
    state = SearchState(
        problem=problem,
        weights=fresh_weights(problem, method, mask or {}, stage),
        relaxation=method.relaxation,
        alpha=alpha,
        arch_optimizer=method.arch_optimizer(list(alpha.values())),
        arch_images=arch.images,
        steps=problem.epochs * weights.steps_per_epoch,
        mask=dict(mask or {}),
    )
    if before:
        state.keeping = before.keeping
        state.stage, state.lines, state.genotype = before.stage + 1, before.lines, before.genotype
        state.steps_before, state.epochs_before = before.steps_before + before.step, before.epochs_before + before.epoch
    state.began = state.now()
    shapes = {name: t.shape for name, t in alpha.items()}
    if before and {name: rows[0].shape for name, rows in before.trajectory.items()} == shapes:
        state.trajectory = {name: list(rows) for name, rows in before.trajectory.items()}
    else:
        state.remember()
    if packable(method):
        state.weights.pack()
    return state


def fresh_weights(
    problem: Problem, method: Method, mask: Mapping[str, Tensor], stage: Sequence[str]
) -> SupernetWeights:
    """A supernet on the device, its cells fused where they can be, and the optimiser of the weights that learn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(counted(problem.seed, "weights", *stage).initial_seed())
        supernet = problem.space.supernet(method.edge, affine=method.trainable.affine, mask=mask)
    supernet.recompute = problem.recompute
    method.trainable.prepare(supernet, counted(problem.seed, "initialiser", *stage))
    supernet.to(device=problem.fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if problem.fabric.world_size > 1:
        choose_together(supernet, problem.fabric)
    if problem.sync and problem.fabric.world_size > 1:  # the fused cells' batch norms see one process alone
        synchronise(supernet, problem.fabric)
    else:
        accelerate(supernet, problem.compile)
    learns = method.trainable(supernet)
    for name, p in supernet.named_parameters():
        p.requires_grad_(name in learns)
    optimizer = method.weight_optimizer([p for n, p in supernet.named_parameters() if n in learns])
    return SupernetWeights(supernet, learns, optimizer)


def fresh_alpha(problem: Problem, method: Method, stage: Sequence[str]) -> Alpha:
    """Architecture parameters as the relaxation draws them, on the device."""
    alpha: Alpha = {}
    for group in problem.space.groups:
        fresh = method.relaxation.init(group, counted(problem.seed, "alpha", group.name, *stage))
        alpha |= {name: t.to(problem.fabric.device).requires_grad_() for name, t in fresh.items()}
    return alpha


def packable(method: Method) -> bool:
    """True if no term or callback is handed weights or their gradients by name."""
    terms = [term for term in (*method.inner_terms, *method.outer_terms) if not isinstance(term, OfAlpha)]
    return not (terms or any(map(sees_weights, method.callbacks)))


def streams(problem: Problem, method: Method, epoch: int = 0, begun: int = 0) -> tuple[Stream, Stream]:
    """The two streams of batches in an epoch that begins with the step number `begun`: the weights' images and alpha's.

    They are endless, and the same in every epoch unless the split draws its parts anew. They are one where alpha takes the weights'
    batches. An epoch has as many steps as the weights' images of the first one need.
    """
    fabric = problem.fabric
    labelled = method.targets(problem.data.train, len(problem.data.classes), problem.seed)
    parts = method.split(labelled, problem.seed, epoch)

    def stream(images: ImageSet, purpose: str) -> Stream:
        return Stream(
            images,
            problem.share,
            problem.seed,
            f"{purpose}/{epoch}" if parts.anew else purpose,
            problem.augment,
            fabric.device,
            fabric.global_rank,
            fabric.world_size,
            begun if parts.anew else 0,
        )

    weights = stream(parts.weights, "weights")
    return weights, weights if parts.arch is None else stream(parts.arch, "arch")


@dataclass
class StepBatches:
    """The two batches of one step, each made when first asked for; one batch where the two streams are one.

    `done` counts the weight steps of this step that have been done.
    """

    weights: Stream
    arch: Stream
    step: int
    done: int = 0
    kept: dict[int, Batch] = field(default_factory=dict)

    def inner(self, ahead: int = 0) -> Batch:
        """The batch of the weight step that comes `ahead` steps after the next one."""
        number = self.done + ahead
        if number not in self.kept:
            self.kept[number] = self.weights.at(self.step + number)
        return self.kept[number]

    def outer(self) -> Batch:
        """The batch of the architecture step."""
        return self.inner(-self.done) if self.arch is self.weights else self.arch.at(self.step)

    def after(self) -> StepBatches:
        """The same step behind its weight step: the next one's batch is the inner one."""
        return replace(self, done=self.done + 1)


def bilevel(state: SearchState, method: Method) -> Bilevel:
    """The two losses of this search as pure functions of (theta, alpha)."""
    state.weights.settle()

    def inner(theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        draw = state.draw("weight")
        loss, _ = state.task_loss(state.op_weights(alpha, draw), batch, draw, theta)
        return sum((term(state, theta, alpha, batch) for term in method.inner_terms), loss)

    def outer(theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        draw = state.draw("alpha")
        loss, confusion = state.task_loss(state.op_weights(alpha, draw), batch, draw, theta)
        state.meter(arch_loss=loss, arch_confusion=confusion, arch_steps=1.0)
        return sum((term(state, theta, alpha, batch) for term in method.outer_terms), loss)

    def rate() -> float:
        if state.still:
            raise NotRepeatable("the step asks for the learning rate")
        return state.weights.rate

    mean, draw = partial(average, state.problem.fabric), partial(state.draw, "alpha")
    descend = partial(state.weights.look_ahead, method.weight_optimizer)
    return Bilevel(inner, outer, descend, mean, rate, draw, meter=state.meter)
