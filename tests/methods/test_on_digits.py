"""Each rule on real images (scikit-learn's digits): it does something, does not degenerate, and the log says what moves as scheduled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
import torch

from oche.data import for_search, load
from oche.methods.beta_darts import beta_darts
from oche.methods.darts import darts
from oche.methods.darts_aer import darts_aer
from oche.methods.darts_minus import darts_minus
from oche.methods.darts_pt import darts_pt
from oche.methods.ddpnas import ddpnas
from oche.methods.drnas import drnas, drnas_progressive
from oche.methods.fair_darts import fair_darts
from oche.methods.gdas import gdas
from oche.methods.lambda_darts import lambda_darts
from oche.methods.pcdarts import pcdarts
from oche.methods.pdarts import pdarts
from oche.methods.random_search_ws import accuracy, random_search_ws
from oche.methods.sdarts import Perturbation, sdarts_adv
from oche.methods.shapley_nas import Game, shapley_nas
from oche.optim import Adam
from oche.schedule import Linear
from oche.search.begin import StepBatches, begin, streams
from oche.search.loop import search
from oche.search.method import Method
from oche.search.selection import TopK
from oche.search.stages import Staged
from oche.search.state import Problem, SearchState
from oche.spaces import SPACES
from oche.tasks import Classify

pytestmark = pytest.mark.slow


@dataclass
class Seen:
    """A search's end, and its log by kind of line."""

    state: SearchState
    epochs: list[Mapping[str, object]]
    stages: list[Mapping[str, object]]

    def column(self, name: str) -> list[float]:
        """A number of every epoch."""
        return [float(record[name]) for record in self.epochs]  # type: ignore[arg-type]


def digits(epochs: int, images: int = 256, space: str = "nb201", **size: object) -> Problem:
    data = load("digits")
    data = replace(data, train=data.train.subset(torch.arange(images)), val=data.val.subset(torch.arange(96)))
    size = size or {"channels": 4, "cells": 1}
    bound = SPACES[space](inputs=data.channels, outputs=len(data.classes), size=data.size, **size)  # type: ignore[arg-type]
    return Problem(bound, data, Classify(), for_search(data), epochs, 16, 5)


def run(method: Method | Staged, problem: Problem) -> Seen:
    seen = Seen(None, [], [])  # type: ignore[arg-type]

    def listen(event: str, record: Mapping[str, object]) -> None:
        if event in ("epoch", "stage"):
            (seen.epochs if event == "epoch" else seen.stages).append(dict(record))

    problem = replace(problem, listener=listen)
    seen.state = (method.search(problem) if isinstance(method, Staged) else search(problem, method)).state
    return seen


def quick(method: Method) -> Method:
    """Alpha steps far enough for a few steps to show."""
    return replace(method, arch_optimizer=Adam(0.05))


def moved(seen: Seen, first: int, last: int) -> float:
    """How far alpha went between two epochs' ends."""
    rows = seen.state.trajectory.values()
    return max(float((row[last] - row[first]).abs().max()) for row in rows)


def spread(seen: Seen) -> float:
    """The mean of the strongest op's weight over the edges."""
    return float(torch.cat([s.amax(-1) for _, s in seen.state.strengths()]).mean())


def test_gdas_draws_one_op_per_edge_and_its_temperature_falls() -> None:
    seen = run(quick(gdas()), digits(4))
    column = seen.column("temperature")
    assert column == sorted(column, reverse=True)
    assert column[-1] == pytest.approx(0.1)
    assert column[0] == pytest.approx(10 - 9.9 / 4)
    assert moved(seen, 0, 4) > 0.1
    drawn = torch.stack(
        [
            seen.state.op_weights(seen.state.alpha, replace(seen.state, step=s).draw("weight"))["cell_0"]
            for s in range(40)
        ]
    )
    assert torch.equal(drawn.sum(-1), torch.ones(40, 6))
    assert (drawn.sum((0, 1)) > 0).sum() >= 4, "it has not come down to few ops"


def test_the_code_s_scalars_move_the_ops_that_were_not_drawn() -> None:
    problem, method = digits(1), gdas()
    state = begin(problem, method)
    now = StepBatches(*streams(problem, method), 0)
    weights = {c: w.detach().requires_grad_() for c, w in state.op_weights(state.alpha, state.draw("alpha")).items()}
    loss, _ = state.task_loss(weights, now.outer(), state.draw("alpha"))
    grads = torch.autograd.grad(loss, list(weights.values()))
    off = torch.cat([g[w.detach() == 0] for g, w in zip(grads, weights.values(), strict=True)])
    assert (off != 0).float().mean() > 0.9


def test_pcdarts_holds_alpha_and_beta_then_moves_both() -> None:
    seen = run(quick(pcdarts(2)), digits(4))
    assert moved(seen, 0, 2) == 0
    for rows in seen.state.trajectory.values():
        assert float((rows[4] - rows[2]).abs().max()) > 0.05
    assert [record["phase"] for record in seen.epochs] == ["warm-up", "warm-up", "search", "search"]


def test_aer_spreads_first_and_sharpens_last() -> None:
    method = quick(darts_aer(3.0, second_order=False))
    seen, plain = run(method, digits(6)), run(quick(darts()), digits(6))
    assert seen.column("entropy_coefficient")[-1] == pytest.approx(3.0)
    early, late = seen.column("entropy"), plain.column("entropy")
    assert early[1] > late[1], "more undecided than DARTS while the coefficient is negative"
    assert early[5] < early[2], "and more decided in the end than in the middle"
    best = max(range(6), key=lambda e: seen.column("supernet_arch_accuracy")[e])
    chosen = method.selection(seen.state, seen.state.problem)
    assert chosen == TopK()(seen.state.at(best + 1), seen.state.problem)


def test_drnas_samples_differ_and_alpha_moves_without_collapse() -> None:
    seen = run(quick(drnas()), digits(4))
    state = seen.state
    samples = torch.stack(
        [state.op_weights(state.alpha, replace(state, step=s).draw("weight"))["cell_0"].detach() for s in range(30)]
    )
    assert float(samples.std(0).min()) > 0.02
    assert moved(seen, 0, 4) > 0.1
    assert spread(seen) < 0.9


def test_drnas_progressive_prunes_for_good() -> None:
    method = drnas_progressive()
    seen = run(replace(method, method=quick(method.method)), digits(4))
    assert [list(record["candidates"].values()) for record in seen.stages] == [[30], [18]]  # type: ignore[attr-defined]
    assert seen.state.alive(seen.state.space.groups[0]).sum(-1).tolist() == [3] * 6


def test_ddpnas_loses_one_op_per_round_and_never_gets_it_back() -> None:
    seen = run(ddpnas(1), digits(14))
    left = seen.column("operations_left")
    assert left == sorted(left, reverse=True)
    assert seen.state.alive(seen.state.space.groups[0]).sum(-1).tolist() == [1] * 6
    visited = seen.column("visited_accuracy")
    assert 0.05 < sum(visited) / len(visited) < 1.0
    assert max(visited) > min(visited)


def test_sdarts_epsilon_grows_and_the_attack_raises_the_loss() -> None:
    problem = digits(3)
    seen = run(quick(sdarts_adv(steps=3)), problem)
    assert seen.column("epsilon") == pytest.approx([0.12, 0.21, 0.3])
    state, raised = seen.state, 0
    for step in range(10):
        now = replace(state, step=step)
        batch = StepBatches(*streams(problem, sdarts_adv()), step).inner()
        clean = {c: w.detach() for c, w in now.op_weights(now.alpha, now.draw("weight")).items()}
        p = Perturbation(Linear(0.03, 0.3), 3).before_inner_step(now, clean, now.alpha, batch)
        losses = [float(now.task_loss(w, batch, now.draw("weight"))[0].detach()) for w in (clean, p)]
        raised += losses[1] > losses[0]
    assert raised >= 8


def test_fair_darts_zero_one_loss_drives_the_weights_apart() -> None:
    away = {
        weight: float(
            (run(quick(fair_darts(weight)), digits(4)).state.alpha["cell/alpha"].detach().sigmoid() - 0.5).abs().mean()
        )
        for weight in (0.0, 100.0)
    }
    assert away[100.0] > 1.2 * away[0.0]


def test_beta_decay_grows_by_epoch_and_keeps_the_weights_together() -> None:
    seen, plain = run(quick(beta_darts(5.0)), digits(4)), run(quick(darts()), digits(4))
    assert seen.column("beta_decay") == [0.0, 5.0, 10.0, 15.0]
    assert spread(seen) < spread(plain)


def test_darts_minus_fades_its_help_out() -> None:
    seen = run(quick(darts_minus()), digits(4))
    assert seen.column("beta") == pytest.approx([0.75, 0.5, 0.25, 0.0])
    assert moved(seen, 0, 4) > 0.1


def test_lambda_rises_and_the_cells_come_to_agree_more() -> None:
    """The mean cosine of the cells' gradients in alpha over the last batches, against that of plain DARTS."""
    size = {"channels": 4, "cells": 3}
    seen, plain = run(lambda_darts("corr", 2.0), digits(4, **size)), run(darts(), digits(4, **size))
    assert seen.column("lambda") == pytest.approx([0.5, 1.0, 1.5, 2.0])

    def agreement(state: SearchState) -> float:
        found = []
        for step in range(8):
            batch = StepBatches(*streams(state.problem, darts()), step).inner()
            weights = {
                c: w.detach().requires_grad_() for c, w in state.op_weights(state.alpha, state.draw("eval")).items()
            }
            loss, _ = state.task_loss(weights, batch, state.draw("eval"))
            g = torch.stack([t.flatten() for t in torch.autograd.grad(loss, list(weights.values()))])
            u = g / g.norm(dim=1, keepdim=True)
            found.append(float((u @ u.T).fill_diagonal_(0).sum() / (len(u) * (len(u) - 1))))
        return sum(found) / len(found)

    assert agreement(seen.state) > agreement(plain.state)


def test_pdarts_deepens_prunes_and_its_dropout_fades() -> None:
    seen = run(pdarts(), digits(9, 128))
    candidates = [next(iter(record["candidates"].values())) for record in seen.stages]  # type: ignore[attr-defined]
    assert candidates == [30, 30, 18]  # of 6 edges: 5 candidates are all there are, then 3
    notes = [record["note"] for record in seen.stages]
    assert notes == ["1 cells", "2 cells", "3 cells"]
    dropped = seen.column("skip_dropout")
    assert dropped[:3] == [0.0, 0.0, 0.0]
    for stage in (dropped[3:6], dropped[6:]):
        assert stage == sorted(stage, reverse=True)
        assert stage[0] > stage[-1] > 0


def test_darts_pt_decides_one_edge_per_stage_for_good() -> None:
    seen = run(darts_pt(tune=1), digits(7))
    left = [next(iter(record["candidates"].values())) for record in seen.stages]  # type: ignore[attr-defined]
    assert left == [30, 26, 22, 18, 14, 10]
    assert seen.column("lr")[-5:] == pytest.approx([0.0025] * 5)


def test_shapley_scores_tell_candidates_apart_in_the_second_half() -> None:
    method = replace(shapley_nas(K=2), callbacks=(Game(3, 48),))
    seen = run(method, digits(4))
    assert moved(seen, 0, 2) == 0
    assert moved(seen, 2, 4) > 0.01
    assert [("shapley_reached" in record) for record in seen.epochs] == [False] * 2 + [True] * 2
    for record in seen.epochs[2:]:
        assert 0 < float(record["shapley_reached"]) <= 1  # type: ignore[arg-type]
        assert float(record["shapley_accuracy"]) > 0.1  # type: ignore[arg-type]
    m = next(t for key, t in seen.state.memory.items() if key == "shapley/cell")
    assert len({round(x, 9) for x in m.flatten().tolist()}) > 10


def test_random_search_takes_a_cell_that_its_supernet_prefers() -> None:
    problem = digits(3)
    method = replace(random_search_ws(), selection=replace(random_search_ws().selection, samples=20))  # type: ignore[type-var]
    result = search(problem, method)
    own = accuracy(result.state, problem, problem.data.val, result.genotype)
    cells = method.selection._cells(result.state, problem, 15)  # type: ignore[attr-defined]
    others = sorted(accuracy(result.state, problem, problem.data.val, cell) for cell in cells)
    assert own >= others[7]
    assert not result.state.arch_optimizer.state
