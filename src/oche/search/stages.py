"""A search in stages: each is a search of its own (`loop.advance`), in a space and with a method that the stages before it decide.

    Staged("pdarts", darts(), Grow(...)).run(problem)

All stages share one run folder and one log; epochs and steps are counted through. A stage that has ended is kept in `stages/`; a killed
search takes the ended ones from there, asks the plan again, which depends on nothing else, and carries on with the checkpoint of the
running one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from oche.genotype import Genotype
from oche.run import Run
from oche.search.begin import begin
from oche.search.callbacks import Callback
from oche.search.checkpoint import checkpoint, dumps, loads, resume
from oche.search.limits import limited
from oche.search.loop import advance
from oche.search.method import Method
from oche.search.record import SearchResult, conclude
from oche.search.state import Problem, SearchState
from oche.search.weights import same_shape
from oche.spaces import Space


class Enter(Protocol):
    """Changes a stage's fresh state by what the stages before it ended with: weights, alpha, memory.

    With alpha it takes over `began`; otherwise alpha counts as begun afresh.
    """

    def __call__(self, state: SearchState, ended: tuple[SearchState, ...]) -> None: ...


def afresh(state: SearchState, ended: tuple[SearchState, ...]) -> None:
    """Takes nothing over."""


@torch.no_grad()
def carry_on(state: SearchState, ended: tuple[SearchState, ...]) -> None:
    """Takes over the weights with their momentum, and alpha, of the stage before, as they are."""
    state.weights.take_over(ended[-1].weights, same_shape)
    state.began = ended[-1].began
    for name, t in ended[-1].alpha.items():
        state.alpha[name].copy_(t)


@torch.no_grad()
def carry_arch_optimizer(state: SearchState, earlier: SearchState) -> None:
    """Takes over what an earlier stage's optimiser remembers of alpha: the same parameters, in the same shapes."""
    for name, t in state.alpha.items():
        for key, value in earlier.arch_optimizer.state.get(earlier.alpha[name], {}).items():
            state.arch_optimizer.state[t][key] = value.clone() if isinstance(value, Tensor) else value


@dataclass(frozen=True)
class Stage:
    """One stage: `epochs` epochs of `method` in `space`, with only the candidates in `mask` {group: (E, O) bool}; the others are not built.

    Schedules run through `span`: (0, 1) is from their start to their end, (0.5, 1) their second half. `arch_start` is a share of the
    stage's own epochs. `note` goes into the log.
    """

    space: Space
    method: Method
    epochs: int
    span: tuple[float, float] = (0.0, 1.0)
    mask: Mapping[str, Tensor] = field(default_factory=dict)
    enter: Enter = afresh
    note: str = ""


class Stages(Protocol):
    """The next stage after those that have ended, or None after the last; decided by the problem, the method and their states alone."""

    def __call__(self, problem: Problem, method: Method, ended: tuple[SearchState, ...]) -> Stage | None: ...


class Choose(Protocol):
    """The result of all stages."""

    def __call__(self, problem: Problem, method: Method, ended: tuple[SearchState, ...]) -> Genotype: ...


def last(problem: Problem, method: Method, ended: tuple[SearchState, ...]) -> Genotype:
    """What the method selects in the last stage."""
    return method.selection(ended[-1], ended[-1].problem)


@dataclass(frozen=True)
class Staged:
    """A searcher in stages: `method` is what the plan `stages` varies, and what settings such as `arch_optimizer.lr` change.

    `problem.epochs` is the sum over all stages as the plan divides it up. `keeps_weights`: those of the last stage's supernet are part
    of what is found, so that nothing has to be trained from scratch; `keeps_whole`: so may all of its candidates be.
    """

    name: str
    method: Method
    stages: Stages
    choose: Choose = last
    keeps_weights: bool = False
    keeps_whole: bool = field(default=False, repr=False)

    @property
    def papers(self) -> tuple[str, ...]:
        return self.method.papers

    def run(self, problem: Problem, watch: Sequence[Callback] = ()) -> tuple[Genotype, SearchState | None]:
        """Searches, or carries on; `watch` are further callbacks of every stage. Returns the genotype and the last stage's state.

        Raises UserError where a checkpoint is damaged or of other settings.
        """
        watched = replace(self.method, callbacks=(*self.method.callbacks, *watch))
        result = replace(self, method=watched).search(problem)
        return result.genotype, result.state

    def search(self, problem: Problem) -> SearchResult:
        """Searches as `run` does, and returns the whole history too."""
        ended: tuple[SearchState, ...] = ()
        method = base = limited(problem, self.method)
        stepped = False
        while stage := self.stages(problem, base, ended):
            method = stage.method
            stepped |= method.arch_start < 1
            state = entered(problem, stage, ended)
            kept = Run.stage(len(ended))
            if problem.run and problem.run.has(kept):
                loads(state, problem.run.read(kept), problem.fabric.device)
            else:
                if not resume(state):
                    announce(state, stage)
                advance(state, method)
                if problem.run and problem.fabric.is_global_zero:
                    problem.run.write(kept, dumps(state))
            ended += (state,)
        if problem.run and problem.fabric.is_global_zero:
            problem.run.rewind(
                ended[-1].lines
            )  # what a killed process has written behind the last epoch is written again
        return conclude(ended[-1], stepped, self.choose(problem, method, ended))


def entered(problem: Problem, stage: Stage, ended: tuple[SearchState, ...]) -> SearchState:
    """The state that a stage begins with."""
    own = replace(problem, space=stage.space, epochs=stage.epochs)
    state = begin(own, stage.method, stage.mask, ended[-1] if ended else None)
    state.span = stage.span
    fresh = state.began
    stage.enter(state, ended)
    if state.began is fresh:
        state.began = state.now()
    return state


def announce(state: SearchState, stage: Stage) -> None:
    """One line of the log for a stage that begins, and the checkpoint to begin it from."""
    problem = state.problem
    left = {group.name: int(state.alive(group).sum()) for group in state.space.groups}
    record = {"kind": "stage", "stage": state.stage, "epochs": stage.epochs, "candidates": left, "note": stage.note}
    if problem.run and problem.fabric.is_global_zero:
        problem.run.log(record)
        state.lines = problem.run.lines()
    checkpoint(state)
    problem.listener("stage", record)
