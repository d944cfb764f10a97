"""P-DARTS: depths, candidates and dropout of its stages, and the limit on skip connections."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from oche.methods.pdarts import AtMostSkips, Fading, Progressive, deeper, pdarts
from oche.optim import Adam
from oche.schedule import Cosine
from oche.search.begin import begin
from oche.search.stages import Stage
from oche.search.state import SearchState
from oche.spaces import SPACES
from oche.spaces.edges import SkipDropout
from reference.tiny import tiny_problem


def stages(space: str, epochs: int = 75, **settings: object) -> list[Stage]:
    """The plan, with each stage's state as it begins in the place of an ended one."""
    problem = tiny_problem(space, epochs=epochs, **settings)
    searcher, ended, found = pdarts(), list[SearchState](), list[Stage]()
    while stage := Progressive()(problem, searcher.method, tuple(ended)):
        found.append(stage)
        state = begin(replace(problem, space=stage.space, epochs=stage.epochs), stage.method, stage.mask)
        ended.append(state)
    return found


def test_the_darts_space_has_the_published_stages() -> None:
    problem = tiny_problem("darts", channels=4, cells=5, nodes=1)
    assert [deeper(problem.space, depth).cells for depth in (5, 11, 17)] == [5, 11, 17]  # type: ignore[attr-defined]
    found = stages("darts", channels=4, cells=1, nodes=2)
    assert [stage.space.cells for stage in found] == [1, 2, 3]  # type: ignore[attr-defined]
    assert [stage.epochs for stage in found] == [25, 25, 25]
    assert not found[0].mask
    for stage, count in zip(found[1:], (5, 3), strict=True):
        assert all((mask.sum(-1) == count).all() for mask in stage.mask.values())
    assert (found[2].mask["normal"] & ~found[1].mask["normal"]).sum() == 0  # what was lost stays lost
    assert [
        stage.method.edge.rate(0.0) / (24 / 25) for stage in found if isinstance(stage.method.edge, SkipDropout)
    ] == [pytest.approx(r) for r in (0.0, 0.4, 0.7)]


def test_epochs_left_over_go_to_the_last_stage() -> None:
    assert [stage.epochs for stage in stages("toy", epochs=14)] == [4, 4, 6]


def test_edges_with_few_candidates_keep_them() -> None:
    found = stages("s2", channels=4, cells=1, nodes=1)
    assert all(mask.all() for stage in found[1:] for mask in stage.mask.values())


def test_pdarts_is_the_published_one() -> None:
    """train_search.py: alpha held for 10 of 25 epochs, its gradients clipped at 5, Adam 6e-4, SGD 0.025 -> 0."""
    method = pdarts().method
    assert (method.arch_start, method.arch_clip, method.clip) == (0.4, 5.0, 5.0)
    assert method.arch_optimizer == Adam(6e-4, (0.5, 0.999), 1e-3)
    assert method.weight_lr == Cosine(0.025, 0.0)
    assert pdarts().stages == Progressive((0.0, 0.4, 0.7))
    assert pdarts().choose == AtMostSkips(2)
    for stage in stages("nb201", channels=4, cells=1):
        assert stage.method.arch_clip == 5.0


def test_the_rate_fades_as_published() -> None:
    rate = Fading(0.7, 25)
    for epoch in range(25):
        wanted = 0.7 * (25 - epoch - 1) / 25 if epoch < 10 else 0.7 * math.exp(-0.2 * (epoch - 10))
        assert rate(epoch / 25) == pytest.approx(wanted)
        assert rate((epoch + 0.99) / 25) == pytest.approx(wanted)


def test_the_weakest_skips_are_struck_out_of_the_first_kind_of_cell_alone() -> None:
    problem = tiny_problem("darts", channels=4, cells=3, nodes=3)
    state = begin(problem, pdarts().method)
    skip = SPACES["darts"]().groups[0].ops[0].index("skip_connect")
    with torch.no_grad():
        for alpha in state.alpha.values():
            alpha.zero_()
            alpha[:, skip] = torch.arange(1.0, len(alpha) + 1)
            alpha[:, skip + 1] = 0.5
    found = AtMostSkips(2)(problem, pdarts().method, (state,))
    assert found.skips() == {"normal": 2, "reduce": 6}
    group = problem.space.groups[0]
    kept = {group.edges.index((c.source, c.target)) for c in found.groups["normal"] if c.op == "skip_connect"}
    assert kept == {7, 8}  # the strongest two edges of the last node
    free = AtMostSkips(8)(problem, pdarts().method, (state,))
    assert free == pdarts().method.selection(state, problem)


@pytest.mark.slow
def test_a_search_runs_through_its_stages() -> None:
    result = pdarts().search(tiny_problem("nb201", epochs=4, channels=4, cells=1))
    assert result.state.stage == 2
    assert result.state.epochs_before + result.state.epoch == 4
    assert result.genotype.skips()["cell"] <= 2
