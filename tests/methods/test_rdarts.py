"""R-DARTS, DARTS-ES, DARTS-ADA and DARTS+: their rules on planted series, what they return, and what they are without their constant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from contracts.same import assert_other_search, assert_same_search, moved
from contracts.test_resume import content, run_with_kills
from oche.errors import UserError
from oche.genotype import Genotype
from oche.methods.darts import darts, darts_2nd
from oche.methods.darts_ada import RollBack, darts_ada
from oche.methods.darts_es import Curvature, EigenvalueStop, Returned, darts_es
from oche.methods.darts_plus import RankStop, SkipStop, darts_plus, order
from oche.methods.rdarts import rdarts
from oche.optim import SGD
from oche.plan.request import Request
from oche.plan.resolve import resolve
from oche.run import Run
from oche.schedule import Linear
from oche.search.begin import begin
from oche.search.bilevel import FirstOrder
from oche.search.callbacks import Callback
from oche.search.loop import search
from oche.search.method import Method
from oche.search.selection import TopK
from oche.search.state import Problem, SearchState
from oche.spaces.edges import DropPath
from oche.watch.monitor import EigenvalueRule
from reference.tiny import tiny_data, tiny_masks, tiny_problem

GOLDEN = {  # the eigenvalues that automl/RobustDARTS keeps, every second epoch -> epoch of the stop, epoch returned
    (22, 10): ".1788 .1482 .1703 .1464 .1211 .2488 .2311 .3595 .2246 .3859 .2085 .4298 .5083",
    (24, 12): ".1009 .0995 .0734 .0900 .0818 .0786 .0989 .0679 .1267 .0961 .0840 .0970 .1928 .1541",
}


@dataclass(frozen=True)
class Planted:
    """Given values for given epochs; where the weight decay has grown to `enough`, the first one."""

    values: tuple[float, ...]
    every: int = 1
    enough: float = inf
    name: ClassVar[str] = "eigenvalue"

    def __call__(self, state: SearchState, problem: Problem, genotype: Genotype) -> float:
        if state.weight_optimizer.param_groups[0]["weight_decay"] >= self.enough:
            return self.values[0]
        return self.values[state.epoch // self.every]


@dataclass(frozen=True)
class RaiseDecay(Callback):
    """The literal reference: from epoch `epoch` on, another weight decay."""

    epoch: int
    decay: float

    def on_epoch_start(self, state: SearchState) -> None:
        if state.epoch == self.epoch:
            state.weight_optimizer.param_groups[0]["weight_decay"] = self.decay


def quick(problem_epochs: int) -> Problem:
    """One step an epoch."""
    return tiny_problem("toy", epochs=problem_epochs, count=8)


# ---------------------------------------------------------------------- R-DARTS


def test_at_the_weakest_strength_it_is_second_order_darts() -> None:
    assert_same_search(
        rdarts("dp", 0.0), darts_2nd(), tolerance=1e-6
    )  # its edges are no fused kernels: other roundings
    assert_other_search(rdarts("dp", 0.6), darts_2nd())


def test_the_strength_is_the_optimiser_s_or_the_edge_s() -> None:
    assert rdarts().weight_optimizer == SGD(weight_decay=27e-4)
    edge = rdarts("dp", 0.4).edge
    assert isinstance(edge, DropPath)
    assert [edge.rate(t) for t in (0.0, 0.5, 1.0)] == [0.0, 0.2, 0.4]
    assert edge.whole
    assert rdarts("dp", 0.4, whole=False).edge == replace(edge, whole=False)
    assert rdarts("dp").edge == replace(edge, rate=Linear(0.0, 0.2)), "the default strength"
    with pytest.raises(UserError, match="strength"):
        rdarts("dp", 1.0)


@pytest.mark.parametrize("space", ["darts", "s1", "s4", "nb201", "grid"])
@pytest.mark.parametrize("budget", ["paper", "quick", "smoke"])
def test_the_strength_reaches_the_optimiser_in_every_space_and_budget(space: str, budget: str) -> None:
    data = tiny_masks() if space == "grid" else tiny_data()
    for given, expected in (({"method.strength": 0.0081}, 0.0081), ({}, 27e-4)):
        found = resolve(Request("rdarts", space=space, data=data, budget=budget, settings=given)).searcher
        assert isinstance(found, Method)
        assert isinstance(found.weight_optimizer, SGD)
        assert found.weight_optimizer.weight_decay == expected
        assert found.arch_first


# ---------------------------------------------------------------------- DARTS-ES


@pytest.mark.parametrize("labels", GOLDEN)
def test_it_stops_and_returns_as_the_published_series_say(labels: tuple[int, int]) -> None:
    stopped, returned = labels
    series = tuple(map(float, GOLDEN[labels].split()))
    callback = EigenvalueStop(curvature=Curvature(2, Planted(series, 2)))
    method = replace(darts(), callbacks=(callback,), selection=darts_es().selection)
    result = search(quick(50), method)
    assert result.state.epoch == stopped + 1
    assert int(result.state.memory["returned"]) == returned + 1
    assert result.genotype == TopK()(result.state.at(returned + 1), result.state.problem)
    alpha = search(quick(returned + 1), replace(darts(), weight_lr=Stretched(50, returned + 1))).state.alpha
    for name, t in result.state.at(returned + 1).alpha.items():
        assert torch.equal(t, alpha[name]), "alpha is that of a search of so many epochs"


@dataclass(frozen=True)
class Stretched:
    """The first `short` of `whole` epochs of DARTS's schedule."""

    whole: int
    short: int

    def __call__(self, progress: float) -> float:
        return darts().weight_lr(round(progress * self.short) / self.whole)


def test_a_search_measures_the_eigenvalue() -> None:
    state = search(tiny_problem("toy", epochs=4), darts_es()).state
    assert state.memory["curvature"][:, 0].tolist() == [0, 2, 3]
    assert state.memory["curvature"].isfinite().all()


def test_published_constants_of_the_stop_and_of_the_return() -> None:
    """RobustDARTS's args.py, and its script for DARTS-ADA."""
    (stop,), (back,) = darts_es().callbacks, darts_ada().callbacks
    assert isinstance(stop, EigenvalueStop)
    assert isinstance(back, RollBack)
    for part in (stop, back):
        assert part.rule == EigenvalueRule(window=5, lag=4, ratio=1.3, start=10)
        assert part.curvature.every == 2
    assert (back.factor, back.most) == (10.0, 0.03)
    assert (EigenvalueStop(), RollBack()) == (stop, back), "a part by itself has the method's numbers"
    assert darts_es().selection == Returned()


# ---------------------------------------------------------------------- DARTS-ADA

NEAR = EigenvalueRule(window=1, lag=1, ratio=1.3, start=0)


def ada(values: Sequence[float], enough: float = inf, most: float = 0.0243) -> Method:
    callback = RollBack(NEAR, Curvature(1, Planted(tuple(values), 1, enough)), factor=3.0, most=most)
    return replace(darts_ada(), callbacks=(callback,))


def test_it_goes_back_and_takes_more_weight_decay(tmp_path: Path) -> None:
    """Sharp until the weight decay is 27e-4: twice back to the end of epoch 0. Against a search that is told so."""
    run = Run.create(tmp_path / "run")
    run.write(Run.CONFIG, b"")
    problem = tiny_problem("toy", epochs=4)
    state = search(replace(problem, run=run), ada([1, 2, 4, 8], 26e-4)).state
    expected = search(problem, replace(darts_2nd(), callbacks=(RaiseDecay(1, 27e-4),))).state
    assert moved(state, expected) == 0
    assert state.trajectory.keys() == expected.trajectory.keys()
    assert all(torch.equal(torch.stack(t), torch.stack(expected.trajectory[n])) for n, t in state.trajectory.items())
    epochs = [r for r in run.records() if r["kind"] == "epoch"]
    assert [r["epoch"] for r in epochs] == [0, 1, 1, 1, 2, 3]
    assert [r["weight_decay"] for r in epochs] == pytest.approx([3e-4, 3e-4, 9e-4, 27e-4, 27e-4, 27e-4])


@pytest.mark.parametrize("most", [9e-4, 2e-3])
def test_it_stops_going_back_at_the_greatest_weight_decay(most: float) -> None:
    state = search(quick(3), replace(ada([1, 2, 4], most=most), arch_gradient=FirstOrder())).state
    assert state.weight_optimizer.param_groups[0]["weight_decay"] == pytest.approx(9e-4)
    assert state.epoch == 3


def test_killed_around_a_return_it_ends_the_same(tmp_path: Path) -> None:
    contents = []
    for folder, every in (("whole", None), ("broken", 2)):
        run = Run.create(tmp_path / folder)
        run.write(Run.CONFIG, b"")
        problem = replace(tiny_problem("toy", epochs=3, count=16), run=run, checkpoint_every=1)
        run_with_kills(replace(ada([1, 2, 4], 26e-4), arch_gradient=FirstOrder()), problem, every)
        contents.append(content(run))
    assert contents[0].keys() == contents[1].keys()
    assert [key for key in contents[0] if contents[0][key] != contents[1][key]] == []


def test_it_keeps_no_more_states_than_the_rule_can_reach() -> None:
    state = search(quick(9), ada([1.0] * 9)).state
    assert states(state) == ["ada/state/6", "ada/state/7"]
    wide = EigenvalueRule(
        window=3, lag=1, ratio=1.3, start=0
    )  # the mean at 5 is over 4 to 6, known and compared with that at 6 after 7
    callback = RollBack(wide, Curvature(1, Planted((1.0,) * 9)))
    state = search(quick(9), replace(darts(), callbacks=(callback,))).state
    assert states(state) == ["ada/state/5", "ada/state/6", "ada/state/7"]


def states(state: SearchState) -> list[str]:
    return sorted(name for name in state.memory if name.startswith("ada/state"))


def test_going_back_forgets_the_states_of_later_epochs() -> None:
    method = replace(ada([5.0, 6.0, 7.0]), arch_gradient=FirstOrder())
    state = search(quick(3), method).state
    assert states(state) == ["ada/state/0", "ada/state/1"]
    (callback,) = method.callbacks
    assert isinstance(callback, RollBack)
    callback.go_back(state, 0)
    assert states(state) == ["ada/state/0"]
    assert state.memory["curvature"].tolist() == [[0.0, 5.0]]
    assert state.epoch == 1


def test_the_look_ahead_takes_the_raised_weight_decay() -> None:
    """Against torch's own step."""
    theta = {"u": torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)}
    optimizer = SGD()([*theta.values()])
    optimizer.param_groups[0] |= {"lr": 0.1, "weight_decay": 0.5}
    ahead = SGD().look_ahead(theta, {"u": torch.ones(2, dtype=torch.float64)}, optimizer)["u"].detach()
    theta["u"].grad = torch.ones(2, dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(ahead, theta["u"].detach(), rtol=0, atol=1e-14)


# ---------------------------------------------------------------------- DARTS+


@dataclass(frozen=True)
class Walk(Callback):
    """After epoch e, alpha chooses `skips[e]` skip connections."""

    skips: tuple[int, ...]

    @torch.no_grad()
    def after_outer_backward(self, state, grads, outer):  # type: ignore[no-untyped-def]
        alpha = state.alpha["cell/alpha"]
        alpha.zero_()
        for e, ops in enumerate(state.space.groups[0].ops):
            alpha[e, ops.index("skip_connect" if e < self.skips[state.epoch] else "nor_conv_3x3")] = 1.0
        return {}


@pytest.mark.parametrize(("returned", "expected"), [("before", 1), ("at", 2)])
def test_skips_stop_it_and_the_one_just_before_is_returned(returned: str, expected: int) -> None:
    method = darts_plus(returned=returned)  # type: ignore[arg-type]
    method = replace(method, callbacks=(Walk((0, 1, 2, 3, 3)), *method.callbacks))
    result = search(tiny_problem("toy", epochs=5, count=8), method)
    assert result.state.epoch == 3
    assert result.genotype.skips() == {"cell": expected}


def test_published_constants_of_darts_plus() -> None:
    assert darts_plus().callbacks == (SkipStop(2, "before"),) == (SkipStop(),)
    assert darts_plus("rank").callbacks == (RankStop(10, "before"),) == (RankStop(),)


def test_skips_of_the_warm_up_stop_nothing() -> None:
    state = begin(tiny_problem("nb201", channels=4, cells=1), darts_plus())
    skips = "|skip_connect~0|+|skip_connect~0|none~1|+|skip_connect~0|none~1|none~2|"
    for phase in ("warm-up", "search"):
        SkipStop().on_epoch_end(state, {"phase": phase, "genotype": skips})
        assert state.stop == (phase == "search")


def test_the_order_has_to_stand_still_for_so_many_epochs() -> None:
    state = begin(tiny_problem("nb201", epochs=30, channels=4, cells=1), darts_plus("rank"))
    stop, record = RankStop(3), {"phase": "search"}
    with torch.no_grad():
        state.alpha["cell/alpha"].copy_(torch.arange(30.0).view(6, 5))
    for epoch, swap in enumerate([False, False, True, False, False, False]):
        state.epoch = epoch
        if swap:
            with torch.no_grad():
                state.alpha["cell/alpha"][4] *= -1
        stop.on_epoch_end(state, dict(record))
        assert state.stop == (epoch == 5)
    assert int(state.memory["returned"]) == 5
    ops = state.space.groups[0].ops[0]
    learn = [o for o, op in enumerate(ops) if op.startswith("nor_conv")]
    assert order(state).view(6, 2).tolist() == [learn[::-1]] * 4 + [learn] + [learn[::-1]]


def test_skip_connections_and_pools_have_no_say_in_the_order() -> None:
    state = begin(tiny_problem("nb201", channels=4, cells=1), darts())
    before = order(state)
    with torch.no_grad():
        state.alpha["cell/alpha"][:, [0, 1, 4]] += 5
    assert torch.equal(order(state), before)


def test_a_toy_edge_has_no_order_and_never_stops() -> None:
    assert search(tiny_problem("toy", epochs=4, count=8), darts_plus("rank", patience=1)).state.epoch == 4


def test_without_its_constant_it_is_darts() -> None:
    assert_same_search(darts_plus("rank", patience=99), darts())
