"""What rules do to a real search: digits in a small supernet. Each does something, and does not degenerate; in the long run only."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from oche.methods.d_darts import d_darts
from oche.methods.darts_ada import RollBack, darts_ada
from oche.methods.darts_es import Curvature, darts_es
from oche.methods.darts_plus import darts_plus
from oche.methods.gm_nas import Split, gm_nas, half
from oche.methods.rdarts import rdarts
from oche.methods.single_stage import single_stage
from oche.optim import Adam
from oche.search.bilevel import FirstOrder
from oche.search.loop import advance, search
from oche.search.method import Method
from oche.search.stages import entered
from oche.spaces.edges import DropPath
from oche.watch.monitor import EigenvalueRule
from reference.real import digits, epochs_of, real_problem

pytestmark = pytest.mark.slow

Records = list[dict[str, Any]]


def test_the_curvature_is_measured_as_often_as_it_says() -> None:
    told: Records = []
    search(real_problem("nb201", digits(), 4, listener=epochs_of(told)), darts_es())
    measured = {record["epoch"]: record["eigenvalue"] for record in told if "eigenvalue" in record}
    assert list(measured) == [0, 2, 3]
    assert all(0 < value < 1e3 for value in measured.values())
    assert len(set(measured.values())) == 3


def test_ada_goes_back_and_raises_the_weight_decay_until_it_may_not() -> None:
    """With a rule that any curvature breaks: 3e-4, then 3e-3, then 3e-2, and no more."""
    told: Records = []
    near = RollBack(EigenvalueRule(window=1, lag=1, ratio=0.0, start=0), Curvature(1))
    problem = real_problem("nb201", digits(), 3, listener=epochs_of(told))
    state = search(problem, replace(darts_ada(), arch_gradient=FirstOrder(), callbacks=(near,))).state
    assert [record["epoch"] for record in told] == [0, 1, 1, 1, 2]
    assert [record["weight_decay"] for record in told] == pytest.approx([3e-4, 3e-4, 3e-3, 3e-2, 3e-2])
    assert state.epoch == 3


@pytest.mark.parametrize("regularisation", ["l2", "dp"])
def test_more_regularised_weights_fit_less(regularisation: Any) -> None:
    """At its greatest strength against none: the training loss is higher, and the search learns all the same."""
    losses = []
    for strength in (3e-4, 0.0243) if regularisation == "l2" else (0.0, 0.6):
        told: Records = []
        method = replace(rdarts(regularisation, strength), arch_gradient=FirstOrder())
        search(real_problem("nb201", digits(), 3, listener=epochs_of(told)), method)
        assert told[-1]["weight_loss"] < told[0]["weight_loss"]
        losses.append(told[-1]["weight_loss"])
    assert losses[1] > losses[0]
    if isinstance(method.edge, DropPath):
        assert [method.edge.rate(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.0, 0.3, 0.6])


def test_a_split_supernet_never_gets_back_what_it_gave_away() -> None:
    searcher = replace(gm_nas(), stages=Split(2, batches=2))
    problem, ended = real_problem("nb201", digits(), 10), ()
    while stage := searcher.stages(problem, searcher.method, ended):
        state = entered(problem, stage, ended)
        advance(state, stage.method)
        ended += (state,)  # type: ignore[assignment]
    assert len(ended) == 7
    group = problem.space.groups[0]
    for number, state in enumerate(ended):
        if number:
            parent = ended[(number - 1) // 2]
            assert not (state.alive(group) & ~parent.alive(group)).any()
            assert state.alive(group).sum() < parent.alive(group).sum()
        if number < 3:
            halves = [half(state, side)[group.name] for side in (0, 1)]
            assert ((halves[0] | halves[1]) == state.alive(group)).all()
            shared = halves[0] & halves[1]
            (split,) = (~(shared == state.alive(group)).all(-1)).nonzero().flatten().tolist()
            assert not shared[split].any(), "on one edge the halves share nothing"
            assert int(halves[0][split].sum()) >= 2
    scores = [float(state.memory["gm_nas/accuracy"]) for state in ended[3:]]
    assert len(scores) == 4
    assert max(scores) > 0.1


def test_skip_connections_end_a_search_that_has_too_many() -> None:
    """With a large rate of alpha: the epoch that ends it has two or more, none before it."""
    told: Records = []
    problem = real_problem("nb201", digits(), 12, listener=epochs_of(told))
    result = search(problem, replace(darts_plus(), arch_optimizer=Adam(0.1)))
    counts = [record["skips"]["cell"] for record in told]
    if len(told) < 12:
        assert counts[-1] >= 2
    assert all(count < 2 for count in counts[:-1])
    assert result.state.stop == (counts[-1] >= 2)


def test_every_cell_of_its_own_decides_and_contributes() -> None:
    told: Records = []
    problem = real_problem("darts", digits(), 3, listener=epochs_of(told), sharing="cell", without=("none",))
    state = search(problem, replace(d_darts(), arch_optimizer=Adam(3e-2, (0.9, 0.999)))).state
    assert all(set(record["contributions"]) == set(problem.space.cell_groups()) for record in told)
    apart = [sum(float((rows[i].sigmoid() - 0.5).abs().mean()) for rows in state.trajectory.values()) for i in range(4)]
    assert all(before < after for before, after in pairwise(apart)), "the zero-one loss drives op weights apart"


def test_what_is_pruned_at_the_freeze_stays_pruned() -> None:
    told: Records = []
    searcher = single_stage(variant="prune", threshold=0.8, relative=True)
    searcher = replace(searcher, method=replace(searcher.method, arch_optimizer=Adam(0.1, weight_decay=0.0)))
    problem = real_problem("nb201", digits(), 5, listener=epochs_of(told))
    assert isinstance(searcher.method, Method)
    result = searcher.search(problem)
    group = problem.space.groups[0]
    alive = result.state.alive(group)
    assert 6 <= int(alive.sum()) < alive.numel()
    assert {(c.source, c.target, c.op) for c in result.genotype.groups["cell"]} <= {
        (*group.edges[e], group.ops[e][o]) for e, o in alive.nonzero().tolist()
    }
    assert told[-1]["weight_accuracy"] > told[0]["weight_accuracy"]
