"""A search in stages: counted through, handed over by name, killed and resumed in each stage to the same bits."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from oche.errors import UserError
from oche.methods.darts import darts
from oche.methods.drnas import widened
from oche.methods.random_features import random_features
from oche.run import Run
from oche.schedule import Linear
from oche.search.begin import begin, fresh_alpha
from oche.search.loop import search
from oche.search.method import Method
from oche.search.stages import Enter, Stage, Staged, afresh, carry_on
from oche.search.state import Problem, SearchState
from oche.search.weights import same_shape
from oche.spaces.edges import PartialChannels
from reference.tiny import tiny_problem


@dataclass(frozen=True)
class Prune:
    """Two stages of half the epochs; the second without one candidate of each edge, with the weights and alpha of the first."""

    whole_schedule: bool = True

    def __call__(self, problem: Problem, method: Method, ended: tuple[SearchState, ...]) -> Stage | None:
        half = problem.epochs // 2
        if not ended:
            return Stage(problem.space, method, half, span=(0.0, 0.5) if self.whole_schedule else (0.0, 1.0))
        if len(ended) == 1:
            mask = {}
            for group, strength in ended[0].strengths():
                mask[group.name] = torch.ones(strength.shape, dtype=torch.bool)
                weakest = strength.argmin(-1, keepdim=True)
                weakest[0] = 2  # a convolution: something with weights must go
                mask[group.name].scatter_(1, weakest, False)
            return Stage(problem.space, method, half, (0.5, 1.0), mask, inherit, "pruned")
        return None


def inherit(state: SearchState, ended: tuple[SearchState, ...]) -> None:
    state.weights.take_over(ended[-1].weights, same_shape)
    with torch.no_grad():
        for name, t in ended[-1].alpha.items():
            state.alpha[name].copy_(t)


def staged(method: Method | None = None) -> Staged:
    return Staged("pruned", method or replace(darts(), weight_lr=Linear(0.1, 0.0)), Prune())


def fresh(path: Path) -> Run:
    run = Run.create(path)
    run.write(Run.CONFIG, b"")
    return run


def problem(run: Run | None = None, epochs: int = 4) -> Problem:
    return replace(tiny_problem("toy", epochs=epochs, count=24), run=run, checkpoint_every=2)


# ---------------------------------------------------------------------- one search in two parts


def test_two_halves_that_hand_everything_over_are_the_whole() -> None:
    """Nothing pruned, everything taken over: bit for bit the search in one piece, but for Adam, which begins anew."""

    @dataclass(frozen=True)
    class Halves:
        def __call__(self, problem: Problem, method: Method, ended: tuple[SearchState, ...]) -> Stage | None:
            spans = ((0.0, 0.5), (0.5, 1.0))
            if len(ended) == 2:
                return None
            return Stage(problem.space, method, 2, spans[len(ended)], enter=inherit if ended else Stage.enter)

    method = replace(darts(), arch_start=1.0, weight_lr=Linear(0.1, 0.0))
    one = search(problem(), method)
    two = Staged("halves", method, Halves()).search(problem())
    for name, t in one.state.theta.items():
        assert torch.equal(t, two.state.theta[name]), name
        a, b = (s.weight_optimizer.state[s.theta[name]]["momentum_buffer"] for s in (one.state, two.state))
        assert torch.equal(a, b)


def test_epochs_and_steps_are_counted_through(tmp_path: Path) -> None:
    run = fresh(tmp_path / "run")
    result = staged().search(problem(run))
    records = run.records()
    assert [r["kind"] for r in records] == ["stage", "epoch", "epoch", "stage", "epoch", "epoch", "supernet"]
    epochs = [r for r in records if r["kind"] == "epoch"]
    assert [r["epoch"] for r in epochs] == [0, 1, 2, 3]
    assert [r["step"] for r in epochs] == [3, 6, 9, 12]
    np.testing.assert_allclose([float(str(r["lr"])) for r in epochs], [0.1, 0.075, 0.05, 0.025])
    assert all(run.has(Run.genotype(e)) for e in range(4))
    with np.load(io.BytesIO(run.read(Run.ALPHAS))) as arrays:
        assert arrays["epoch"].tolist() == [0, 1, 2, 3, 4]
        assert len(arrays["cell/alpha"]) == 5
    stages = [r for r in records if r["kind"] == "stage"]
    assert [r["candidates"] for r in stages] == [{"cell": 9}, {"cell": 6}]
    assert result.genotype == type(result.genotype).from_json(run.read(Run.GENOTYPE).decode())


def test_what_was_pruned_is_gone_and_the_rest_was_taken_over() -> None:
    seen: list[tuple[SearchState, SearchState]] = []

    @dataclass(frozen=True)
    class Look(Prune):
        def __call__(self, problem: Problem, method: Method, ended: tuple[SearchState, ...]) -> Stage | None:
            stage = super().__call__(problem, method, ended)
            if ended and stage:

                def look(state: SearchState, ended: tuple[SearchState, ...]) -> None:
                    inherit(state, ended)
                    seen.append((ended[-1], state))
                    for name, t in state.theta.items():
                        assert torch.equal(t, ended[-1].theta[name])

                return replace(stage, enter=look)
            return stage

    result = replace(staged(), stages=Look()).search(problem())
    ((first, second),) = seen
    assert set(second.theta) < set(first.theta)
    for group in second.space.groups:
        chosen = result.genotype.groups[group.name]
        for e, choice in enumerate(chosen):
            assert second.mask[group.name][e, group.ops[e].index(choice.op)]
        weights = second.op_weights(second.alpha, second.draw("weight"))
        for w in weights.values():
            assert torch.equal(w == 0, ~second.mask[group.name])


def test_weights_may_change_their_shape_and_their_momentum_with_them() -> None:
    """A quarter of the channels becomes half: a fit that repeats what is there, momentum alike."""
    own = tiny_problem("nb201", channels=8, cells=1)
    narrow, wide = (begin(own, replace(darts(), edge=PartialChannels(k))) for k in (4, 2))
    for t in narrow.theta.values():
        t.grad = torch.randn_like(t)
    narrow.weight_optimizer.step()

    def repeat(name: str, t: Tensor, shape: torch.Size) -> Tensor | None:
        return t.repeat([new // old for new, old in zip(shape, t.shape, strict=True)])

    wide.weights.take_over(narrow.weights, repeat)
    grown = 0
    for name, t in wide.theta.items():
        old = narrow.theta[name]
        momentum = wide.weight_optimizer.state[t]["momentum_buffer"]
        assert momentum.shape == t.shape
        cut = tuple(slice(0, n) for n in old.shape)
        assert torch.equal(t.detach()[cut], old.detach())
        assert torch.equal(momentum[cut], narrow.weight_optimizer.state[old]["momentum_buffer"])
        grown += t.shape != old.shape
    assert grown
    wide.weight_optimizer.step()


# ---------------------------------------------------------------------- how far alpha has moved


@dataclass(frozen=True)
class Thirds:
    """Three stages of an epoch each, which begin in this way; alpha is held in those of `held`."""

    enter: Enter
    held: tuple[int, ...] = ()

    def __call__(self, problem: Problem, method: Method, ended: tuple[SearchState, ...]) -> Stage | None:
        own = replace(method, arch_start=1.0) if len(ended) in self.held else method
        return Stage(problem.space, own, 1, enter=self.enter if ended else afresh) if len(ended) < 3 else None


def supernet_record(stages: Thirds) -> tuple[dict[str, object], SearchState]:
    found: list[Mapping[str, object]] = []
    asked = replace(problem(epochs=3), listener=lambda event, r: found.append(r) if event == "supernet" else None)
    state = Staged("thirds", darts(), stages).search(asked).state
    return dict(found[0]), state


def rms(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    squares = [(a.detach() - b.detach()).square().flatten() for a, b in zip(one.values(), other.values(), strict=True)]
    return float(torch.cat(squares).mean().sqrt())


def test_alpha_that_begins_anew_in_each_stage_has_moved_since_the_last_beginning() -> None:
    """And not since the first stage's, from which it lies as far as two random draws do."""
    record, state = supernet_record(Thirds(afresh))
    begun = fresh_alpha(state.problem, darts(), ["stage 2"])
    assert record["alpha_moved"] == pytest.approx(rms(state.alpha, begun), rel=1e-6)
    assert record["alpha_moved"] != pytest.approx(rms(state.alpha, state.at(0).alpha), rel=1e-3)


@pytest.mark.parametrize("enter", [carry_on, widened])
def test_alpha_that_is_carried_on_has_moved_since_the_search_began(enter: Enter) -> None:
    record, state = supernet_record(Thirds(enter))
    begun = fresh_alpha(state.problem, darts(), [])
    assert record["alpha_moved"] == pytest.approx(rms(state.alpha, begun), rel=1e-6)


def test_alpha_that_a_last_stage_only_holds_is_still_told_of() -> None:
    """Tuning holds alpha, which a stage before it has stepped."""
    record, state = supernet_record(Thirds(carry_on, held=(1, 2)))
    assert record["alpha_moved"] == pytest.approx(rms(state.alpha, fresh_alpha(state.problem, darts(), [])), rel=1e-6)
    assert "strengths_moved" not in record


def test_alpha_that_no_stage_steps_has_not_moved() -> None:
    record, _ = supernet_record(Thirds(afresh, held=(0, 1, 2)))
    assert record["strengths_moved"] == 0
    record, _ = supernet_record(Thirds(afresh, held=(1, 2)))
    assert record["alpha_moved"] == 0


# ---------------------------------------------------------------------- killed


class Killed(Exception):
    pass


def killed_after(steps: int, event: str = "step") -> object:
    left = [steps]

    def listener(what: str, record: Mapping[str, object]) -> None:
        if what == event:
            left[0] -= 1
            if left[0] == 0:
                raise Killed

    return listener


def assert_same_bits(one: Run, other: Run) -> None:
    drop = {"seconds", "images_per_second", "memory_mib", "checkpoint_share"}
    assert [{k: v for k, v in r.items() if k not in drop} for r in one.records()] == [
        {k: v for k, v in r.items() if k not in drop} for r in other.records()
    ]
    for name in (Run.STATE, Run.stage(0), Run.stage(1)):
        a, b = (torch.load(io.BytesIO(run.read(name)), weights_only=True) for run in (one, other))
        assert a["weights"].keys() == b["weights"].keys()
        assert all(torch.equal(a["weights"][n], b["weights"][n]) for n in a["weights"])
        assert all(torch.equal(a["alpha"][n], b["alpha"][n]) for n in a["alpha"])
        assert str(a["weight_optimizer"]) == str(b["weight_optimizer"])
        assert str(a["arch_optimizer"]) == str(b["arch_optimizer"])
        assert a["counters"] == b["counters"]
    assert one.read(Run.GENOTYPE) == other.read(Run.GENOTYPE)


@pytest.mark.parametrize("frozen", [False, True], ids=["all weights", "random features"])
def test_killed_at_every_step_and_resumed_it_ends_the_same(frozen: bool, tmp_path: Path) -> None:
    """Killed after each step anew, so at least once in each stage and at the border; also right after a stage is announced."""
    searcher = random_features(staged()) if frozen else staged()
    assert isinstance(searcher, Staged)
    whole, broken = fresh(tmp_path / "whole"), fresh(tmp_path / "broken")
    searcher.run(problem(whole))
    kills = 0
    for after, event in [(1, "stage"), *[(3, "step")] * 4, (2, "epoch"), (1, "stage"), *[(3, "step")] * 20]:
        try:
            searcher.run(replace(problem(broken), listener=killed_after(after, event)))  # type: ignore[arg-type]
            break
        except Killed:
            kills += 1
    assert kills >= 6
    assert_same_bits(whole, broken)


def test_a_finished_stage_is_not_searched_again(tmp_path: Path) -> None:
    run = fresh(tmp_path / "run")
    staged().run(problem(run))
    with pytest.raises(Killed):
        staged().run(replace(problem(run), listener=killed_after(1, "supernet")))  # type: ignore[arg-type]
    staged().run(replace(problem(run), listener=killed_after(1)))  # type: ignore[arg-type]


def test_a_checkpoint_of_another_search_is_refused(tmp_path: Path) -> None:
    run = fresh(tmp_path / "run")
    staged().run(problem(run))
    with pytest.raises(UserError, match="another space or method"):
        staged().run(replace(problem(run), space=replace(problem().space, channels=8)))
