"""The checks of `oche.testing`: the project's own parts pass them, and each check finds what it is there to find."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import oche.testing as contracts
from contracts.registry import ARCH_GRADIENTS, RELAXATIONS, SMALL, TRIED
from oche.base import Alpha, Draw, Group, Params
from oche.errors import UserError
from oche.genotype import Genotype
from oche.methods.ask_tell import AskTell, Told
from oche.methods.darts import darts
from oche.methods.local_search import local_search
from oche.methods.random_sampling import RandomSampling
from oche.methods.random_search import Uniform, random_search
from oche.methods.regularized_evolution import regularized_evolution
from oche.optim import Adam
from oche.search.bilevel import ArchGradient, Batches, Bilevel, FiniteDifference, FirstOrder, Unrolled
from oche.search.callbacks import Callback
from oche.search.relaxations import Relaxation, Softmax
from oche.search.searcher import SearcherLike
from oche.search.state import SearchState
from oche.spaces import SPACES, Space
from oche.spaces.base import BuildEdge
from oche.spaces.heads import Pooled
from oche.spaces.nb201 import NB201Body
from oche.spaces.networks import Body
from oche.spaces.toy import ToySpace
from oche.testing import (
    check_arch_gradient,
    check_method,
    check_relaxation,
    check_searcher,
    check_space,
    check_table,
)
from reference.small_bench import ToyTable
from unit.benchmarks.test_table import table

named = {"ids": lambda part: repr(part).replace("oche.", "")}


def space_named(name: str) -> Space:
    return SPACES[name](**SMALL[name])  # type: ignore[arg-type]


# ---------------------------------------------------------------------- our own parts


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("relaxation", RELAXATIONS, **named)
def test_relaxations(relaxation: Relaxation, space: str) -> None:
    check_relaxation(relaxation, space_named(space))


LIKE: dict[type, tuple[ArchGradient | None, float]] = {FirstOrder: (FirstOrder(), 1e-12), Unrolled: (Unrolled(), 1e-12)}


@pytest.mark.parametrize("arch_gradient", ARCH_GRADIENTS + TRIED, **named)
def test_arch_gradients(arch_gradient: ArchGradient) -> None:
    check_arch_gradient(arch_gradient, derivative=arch_gradient not in TRIED)


def test_a_finite_difference_is_near_the_exact_gradient() -> None:
    check_arch_gradient(FiniteDifference(1e-3), like=Unrolled(), tolerance=1e-5)


@pytest.mark.parametrize("name", SPACES)
def test_spaces(name: str) -> None:
    check_space(space_named(name))


def test_tables() -> None:
    check_table(table())
    with pytest.raises(AssertionError, match="answers for a metric that it does not have with KeyError"):
        check_table(ToyTable(), ToyTable and ToySpace())


@pytest.mark.parametrize(
    "searcher", [RandomSampling(), random_search(9), regularized_evolution(12, 4, 2), local_search(9)], **named
)
def test_searchers(searcher: SearcherLike) -> None:
    check_searcher(searcher)


def test_a_method_that_is_killed_too() -> None:
    check_method(darts(), kill_every=3)


# ---------------------------------------------------------------------- what each check finds


def fails(check: Callable[[], object], sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check()


@dataclass(frozen=True)
class Streamed(Softmax):
    """Noise from torch's global generator."""

    def __call__(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        return super().__call__(alpha, group, draw) * torch.rand(1)


@dataclass(frozen=True)
class Unmasked(Softmax):
    def __call__(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        return alpha[f"{group.name}/alpha"].softmax(-1)


@dataclass(frozen=True)
class Constant(Softmax):
    def __call__(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        return (
            super().__call__({n: t.detach() for n, t in alpha.items()}, group, draw) + 0 * alpha[f"{group.name}/alpha"]
        )


@dataclass(frozen=True)
class NoisyStrength(Softmax):
    def strength(self, alpha: Alpha, group: Group, draw: Draw) -> Tensor:
        return super().strength(alpha, group, draw) + torch.rand(1, generator=draw.generator("noise"))


@dataclass(frozen=True)
class Misnamed(Softmax):
    def init(self, group: Group, rng: torch.Generator) -> Alpha:
        return {"alpha": torch.zeros(len(group.edges), group.width)}


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        (Streamed(), "the same draw gives other weights"),
        (Unmasked(), "was masked has a weight"),
        (Constant(), "no gradient reaches alpha"),
        (NoisyStrength(), "`strength` has noise"),
        (Misnamed(), "must be named"),
    ],
    **named,
)
def test_a_broken_relaxation_is_found(part: Relaxation, sentence: str) -> None:
    fails(lambda: check_relaxation(part), sentence)


@dataclass(frozen=True)
class Stepping:
    """Moves the weights and leaves them there."""

    def __call__(self, problem: Bilevel, theta: Params, alpha: Alpha, batches: Batches) -> tuple[Tensor, Alpha]:
        with torch.no_grad():
            for t in theta.values():
                t += 0.1
        return FirstOrder()(problem, theta, alpha, batches)


@dataclass(frozen=True)
class Doubled:
    def __call__(self, problem: Bilevel, theta: Params, alpha: Alpha, batches: Batches) -> tuple[Tensor, Alpha]:
        loss, grads = FirstOrder()(problem, theta, alpha, batches)
        return loss, {name: 2 * g for name, g in grads.items()}


@dataclass(frozen=True)
class Forgetful:
    def __call__(self, problem: Bilevel, theta: Params, alpha: Alpha, batches: Batches) -> tuple[Tensor, Alpha]:
        loss, grads = FirstOrder()(problem, theta, alpha, batches)
        return loss, dict(list(grads.items())[:1])


@pytest.mark.parametrize(
    ("part", "like", "sentence"),
    [
        (Stepping(), None, "Stepping changes u"),
        (Doubled(), None, "does not add its own derivative"),
        (Forgetful(), None, "returns gradients of"),
        (FirstOrder(), Unrolled(), "differs from Unrolled"),
    ],
    **named,
)
def test_a_broken_arch_gradient_is_found(part: ArchGradient, like: ArchGradient | None, sentence: str) -> None:
    fails(lambda: check_arch_gradient(part, like=like), sentence)


@dataclass(frozen=True)
class Exploding(Callback):
    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        if state.epoch == state.problem.epochs - 1:  # before that, the search itself would stop
            with torch.no_grad():
                next(iter(state.theta.values())).fill_(float("inf"))


class Remembering(Callback):
    """Counts in itself, which no checkpoint keeps, and lets the count into the weights."""

    def __init__(self) -> None:
        self.epochs = 0

    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        self.epochs += 1
        record["epochs so far"] = self.epochs


def test_a_broken_method_is_found() -> None:
    fails(lambda: check_method(replace(darts(), callbacks=(Exploding(),)), kill_every=None), "not finite")
    fails(lambda: check_method(replace(darts(), arch_optimizer=Unwritable())), "another method once it was written")
    fails(
        lambda: check_searcher(replace(darts(), callbacks=(Remembering(),))),
        "killed .* times differs in log line",
    )
    fails(lambda: check_method(RandomSampling()), "has no method")


@dataclass(frozen=True)
class Unwritable(Adam):
    """Has a setting that run.toml does not hold."""

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


@dataclass(frozen=True)
class Fixed:
    """Asks for the same cells whatever the seed."""

    def ask(self, space: Space, told: Sequence[Told], seed: int) -> Genotype | None:
        return Uniform().ask(space, told, 0)


class Stateful:
    """Remembers how often it was asked, which a killed process forgets."""

    def __init__(self) -> None:
        self.asked = 0

    def ask(self, space: Space, told: Sequence[Told], seed: int) -> Genotype | None:
        self.asked += 1
        return Uniform().ask(space, told, seed + self.asked)


def test_a_broken_searcher_is_found() -> None:
    fails(lambda: check_searcher(AskTell("fixed", Fixed(), queries=4)), "does the same with four seeds")
    fails(lambda: check_searcher(AskTell("stateful", Stateful(), queries=4)), "a second run with the same seed differs")


@dataclass(frozen=True)
class Skipping(ToySpace):
    """Its body leaves the last cell out."""

    name: str = "skipping"

    def body(self, build: BuildEdge, *, affine: bool) -> NB201Body:
        body = super().body(build, affine=affine)
        last = body.cells["cell_1"]
        body.cells["cell_1"] = nn.Identity()
        del body.cells["cell_1"]
        body.cells["spare"] = last
        return body


@dataclass(frozen=True)
class Square(ToySpace):
    """Its classifier takes images of one size alone."""

    name: str = "square"

    def body(self, build: BuildEdge, *, affine: bool) -> Body:  # type: ignore[override]
        body = super().body(build, affine=affine)
        body.classifier = Pooled(body.classifier.in_features, 2)
        return body


def test_a_broken_space_is_found() -> None:
    fails(lambda: check_space(Skipping()), "the body has no cell cell_1")
    fails(lambda: check_space(Square()), r"the supernet returns \(4, 2\), not \(4, 5\)")


@dataclass(frozen=True)
class Told2:
    """A table with parts of another's replaced."""

    metrics: Collection[str] = ("d/valid", "d/test")
    smaller: Collection[str] = ()
    shift: float = 0.0
    name: str = "told"
    space: str = "nb201"

    def column(self, metric: str, /) -> NDArray[np.floating]:
        return np.arange(5.0)

    def value(self, genotype: Genotype, metric: str, /) -> float:
        index = table().index(genotype)
        if metric not in self.metrics:
            raise UserError("no")
        return index + self.shift

    def genotype(self, i: int, /) -> Genotype:
        return table().genotype(i)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (Told2(shift=0.5), r"has d/valid 0\.5 when looked up, and 0\.0 in the column"),
        (Told2(metrics=("d/test",)), "nothing may select a cell"),
        (Told2(smaller=("d/cost",)), "are no metrics of it"),
        (Told2(space="toy"), "is of the space 'nb201', not 'toy'"),
    ],
    **named,
)
def test_a_broken_table_is_found(wrong: Told2, sentence: str) -> None:
    check_table(Told2())
    fails(lambda: check_table(wrong), sentence)


def test_every_check_is_public() -> None:
    assert {name for name in vars(contracts) if name.startswith("check_")} <= set(contracts.__all__)
