"""DARTS+PT: on a planted supernet perturbation finds what alpha ranks last; decisions see each other; stages add up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module

import pytest
import torch

from oche.base import Group
from oche.data import batches, none
from oche.errors import UserError
from oche.genotype import Genotype
from oche.methods.darts import darts
from oche.methods.darts_pt import Perturb, accuracy, choose, crowded, darts_pt, decide_op, decided, rounds, shuffled
from oche.search.begin import begin
from oche.search.selection import TopK
from oche.search.stages import Stage, Staged, entered
from oche.search.state import Problem, SearchState
from reference.tiny import tiny_problem


def planted(monkeypatch: pytest.MonkeyPatch, worth: Mapping[tuple[str, int, int], float]) -> None:
    """The supernet's accuracy is the sum of what its present candidates are worth."""

    def planned(
        state: SearchState, mask: Mapping[str, torch.Tensor], group: Group, off: list[tuple[int, int]]
    ) -> float:
        there = {(g, e, o) for g, m in mask.items() for e, o in m.nonzero().tolist()}
        return sum(v for key, v in worth.items() if key in there - {(group.name, e, o) for e, o in off})

    monkeypatch.setattr(import_module("oche.methods.darts_pt"), "accuracy", planned)


def walk(problem: Problem, state: SearchState) -> Genotype:
    for number in range(rounds(problem.space)):
        state = replace(state, mask=decided(state, number))
    return TopK()(state, problem)


def test_it_recovers_the_planted_operation_of_every_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = tiny_problem("nb201", channels=4, cells=1)
    state = begin(problem, darts())
    (group,) = problem.space.groups
    useful = {e: 1 + e % 4 for e in range(len(group.edges))}
    with torch.no_grad():  # alpha ranks them last
        for e, o in useful.items():
            state.alpha["cell/alpha"][e, o] = -9.0
    planted(monkeypatch, {("cell", e, o): 0.1 for e, o in useful.items()})
    found = walk(problem, state).groups["cell"]
    assert [choice.op for choice in found] == [group.ops[e][o] for e, o in useful.items()]


def test_nodes_keep_the_two_edges_that_are_worth_most(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = tiny_problem("darts", channels=4, cells=3, nodes=3)
    state = begin(problem, darts())
    worth = {
        (group.name, e, 1 + e % 7): 0.01 * (1 + (7 * e) % 11)
        for group in problem.space.groups
        for e in range(len(group.edges))
    }
    planted(monkeypatch, worth)
    found = walk(problem, state)
    last = state
    for number in range(rounds(problem.space)):
        last = replace(last, mask=decided(last, number))
    assert [int(last.mask[group.name].sum()) for group in problem.space.groups] == [6, 6], "an edge that goes is gone"
    for group in problem.space.groups:
        for node, into in group.into().items():
            best = sorted(into, key=lambda e: -worth[group.name, e, 1 + e % 7])[:2]
            chosen = {(c.source, c.op) for c in found.groups[group.name] if c.target == node}
            assert chosen == {(group.edges[e][0], group.ops[e][1 + e % 7]) for e in best}
    assert rounds(problem.space) == 9 + 2
    assert crowded(problem.space.groups[0]) == [3, 4]


def test_the_accuracy_without_an_operation_is_that_of_zeroed_weights() -> None:
    """Not renormalised: against the supernet evaluated by hand on alpha's images."""
    problem = tiny_problem("toy", batch=12)
    state = begin(problem, darts())
    (group,) = problem.space.groups
    mask = {group.name: state.alive(group)}
    weights = state.op_weights(state.alpha, state.draw("eval"))
    for cell in weights:
        weights[cell] = weights[cell].detach().clone()
        weights[cell][0, 1] = 0.0
    hits = sum(
        float(state.task_loss(weights, batch, state.draw("eval"))[1].trace())
        for batch in batches(state.arch_images, 12, none(problem.data))
    )
    assert accuracy(state, mask, group, [(0, 1)]) == pytest.approx(hits / len(state.arch_images))


def test_a_search_has_a_stage_for_each_decision() -> None:
    problem = tiny_problem("nb201", epochs=7, channels=4, cells=1)
    result = darts_pt(tune=1).search(problem)
    assert result.state.stage == 5
    assert result.state.epochs_before + result.state.epoch == 7
    left = result.state.alive(problem.space.groups[0]).sum(-1).tolist()
    undecided = shuffled(range(6), result.state, "edges/cell")[-1]
    assert left == [5 if e == undecided else 1 for e in range(6)]
    assert result.genotype.discrete


def stages_of(searcher: Staged, problem: Problem) -> tuple[list[Stage], list[SearchState]]:
    """The plan and the states it begins with, each with something in its optimisers, as after a step."""
    plan, ended = list[Stage](), list[SearchState]()
    while stage := searcher.stages(problem, searcher.method, tuple(ended)):
        state = entered(problem, stage, tuple(ended))
        plan.append(stage)
        ended.append(replace(state))
        for t in [*state.weights.tensors.values(), *state.alpha.values()]:
            t.grad = torch.ones_like(t)
        state.weight_optimizer.step()
        state.arch_optimizer.step()
    return plan, ended


def test_tuning_is_at_a_tenth_of_the_first_rate_throughout() -> None:
    """projection.py:134: the optimiser is made anew with learning_rate / 10; the scheduler beside it is never stepped."""
    problem = tiny_problem("toy", epochs=6)
    plan, _ = stages_of(darts_pt(tune=2), problem)
    assert [stage.epochs for stage in plan] == [2, 2, 2]
    assert [plan[0].method.weight_lr(p) for p in (0.0, 1.0)] == [0.025, pytest.approx(0.001)]
    for stage in plan[1:]:
        assert [stage.method.weight_lr(p) for p in (0.0, 0.5, 1.0)] == [pytest.approx(0.0025)] * 3
    assert [stage.span for stage in plan] == [(0.0, 1.0), (0.0, 0.5), (0.5, 1.0)]
    falling = replace(darts_pt(), stages=Perturb(2, falling=True))
    rate = stages_of(falling, problem)[0][1].method.weight_lr
    assert [rate(p) for p in (0.0, 1.0)] == [pytest.approx(0.0025), pytest.approx(0.0001)]


def test_darts_pt_is_the_published_one() -> None:
    assert darts_pt().stages == Perturb(5, False, "adam")
    assert darts_pt().method.space == {"darts.without": ("none",)}
    assert darts_pt().method.arch_start == 0.0
    assert darts_pt(fixed_alpha=True).method.arch_start == 1.0


def test_the_result_is_what_the_last_decision_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """All edges but the last are decided; alpha prefers op 1 there, and what is planted is op 3."""
    problem = tiny_problem("nb201", channels=4, cells=1)
    state = begin(problem, darts())
    last = shuffled(range(6), state, "edges/cell")[-1]
    mask = torch.zeros(6, 5, dtype=torch.bool)
    mask[:, 2] = True
    mask[last] = True
    with torch.no_grad():
        state.alpha["cell/alpha"][last, 1] = 9.0
    planted(monkeypatch, {("cell", last, 3): 1.0})
    found = choose(problem, darts(), (replace(state, mask={"cell": mask}),))
    ops = problem.space.groups[0].ops[0]
    assert [c.op for c in found.groups["cell"]] == [ops[3] if e == last else ops[2] for e in range(6)]


@pytest.mark.parametrize(("space", "op"), [("nb201", "none"), ("s3", "skip_connect")])
def test_none_is_a_candidate_where_all_edges_are_kept(monkeypatch: pytest.MonkeyPatch, space: str, op: str) -> None:
    problem = tiny_problem(space, channels=4, cells=1 if space == "nb201" else 3)
    state = begin(problem, darts())
    group = problem.space.groups[0]
    none = group.ops[0].index("none")
    planted(monkeypatch, {(group.name, e, none): 1.0 for e in range(len(group.edges))})
    mask = {g.name: state.alive(g) for g in problem.space.groups}
    decide_op(state, group, 0, mask)
    assert [group.ops[0][o] for o in mask[group.name][0].nonzero().flatten().tolist()] == [op]


def test_momentum_begins_anew_with_the_tuning_and_alpha_s_adam_goes_on() -> None:
    problem = tiny_problem("toy", epochs=3)
    for carry, fresh in (("adam", True), ("momentum", False)):
        searcher = replace(darts_pt(), stages=Perturb(1, carry=carry))  # type: ignore[arg-type]
        ended = tuple[SearchState, ...]()
        momenta, adams = [], []
        while stage := searcher.stages(problem, searcher.method, ended):
            state = entered(problem, stage, ended)
            momenta.append(any("momentum_buffer" in s for s in state.weight_optimizer.state.values()))
            adams.append([int(s["step"]) for s in state.arch_optimizer.state.values()])
            for t in [*state.weights.tensors.values(), *state.alpha.values()]:
                t.grad = torch.ones_like(t)
            state.weight_optimizer.step()
            state.arch_optimizer.step()
            ended += (state,)
        assert momenta == [False, not fresh, True]
        assert adams == ([[], [1], [2]] if fresh else [[]] * 3)


def test_cells_of_both_kinds_are_decided_in_sight_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """projection.py:169-172: the normal cell's edge is projected before the reduction cell's is tried."""
    problem = tiny_problem("darts", channels=4, cells=3, nodes=1)
    state = begin(problem, darts())
    seen: list[tuple[str, int]] = []

    def planned(state: SearchState, mask: Mapping[str, torch.Tensor], group: Group, off: object) -> float:
        seen.append((group.name, int(mask["normal"].sum())))
        return 0.0

    monkeypatch.setattr(import_module("oche.methods.darts_pt"), "accuracy", planned)
    whole = int(state.alive(problem.space.groups[0]).sum())
    decided(state, 0)
    assert {n for name, n in seen if name == "normal"} == {whole}
    assert {n for name, n in seen if name == "reduce"} == {whole - 7}


def test_alpha_can_be_fixed() -> None:
    state = darts_pt(tune=1, fixed_alpha=True).search(tiny_problem("nb201", epochs=6, channels=4, cells=1)).state
    assert not any(t.any() for t in state.alpha.values())


@pytest.mark.parametrize(("epochs", "between"), [(125, 5), (40, 5), (37, 4), (20, 2), (6, 1)])
def test_tuning_takes_at_most_two_thirds_of_the_epochs(epochs: int, between: int) -> None:
    searcher, problem = darts_pt(), tiny_problem("nb201", epochs=epochs, channels=4, cells=1)
    stage = searcher.stages(problem, searcher.method, ())
    assert stage is not None
    assert stage.epochs == epochs - 5 * between


def test_one_tuning_between_two_decisions_may_take_all_its_epochs() -> None:
    searcher, problem = darts_pt(), tiny_problem("darts", epochs=9, channels=4, cells=3, nodes=1)
    assert rounds(problem.space) == 2
    stage = searcher.stages(problem, searcher.method, ())
    assert stage is not None
    assert stage.epochs == 9 - 5


def test_too_few_epochs_are_one_sentence() -> None:
    with pytest.raises(UserError, match="given 5 epochs and tune=5: give more"):
        darts_pt().search(tiny_problem("nb201", epochs=5, channels=4, cells=1))
