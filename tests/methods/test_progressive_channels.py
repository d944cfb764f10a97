"""Progressive partial channels: what each stage searches, what it takes from the one before, and what the last decides."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from contracts.same import problem_of
from oche.errors import UserError
from oche.methods.adarts import adarts
from oche.methods.pdarts import deeper
from oche.methods.progressive_channels import Growing, progressive_channels
from oche.search.begin import begin
from oche.search.selection import TopK
from oche.search.stages import entered
from oche.search.state import SearchState
from oche.spaces.attention import AttendedChannels

pytestmark = pytest.mark.usefixtures("float64")


def test_three_stages_by_the_table() -> None:
    searcher = progressive_channels()
    problem = problem_of("darts", epochs=8, cells=8)
    seen, ended = [], tuple[SearchState, ...]()
    while stage := searcher.stages(problem, searcher.method, ended):
        state = entered(problem, stage, ended)
        count = {int(state.alive(group).sum(-1).max()) for group in state.space.groups}
        seen.append((stage.space.cells, stage.method.edge, stage.epochs, stage.span, stage.note, count))  # type: ignore[attr-defined]
        ended += (state,)
    whole = (0.0, 1.0)
    assert seen == [
        (8, AttendedChannels(8), 2, whole, "8 cells, K=8", {8}),
        (14, AttendedChannels(4), 3, whole, "14 cells, K=4", {5}),
        (20, AttendedChannels(2), 3, whole, "20 cells, K=2", {3}),
    ]


def test_every_edge_keeps_its_strongest_of_those_it_had() -> None:
    problem, searcher = problem_of("darts", epochs=3), progressive_channels()
    first = begin(problem, searcher.method)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for t in first.alpha.values():
            t += torch.randn(t.shape, generator=rng, dtype=t.dtype)
    second = searcher.stages(problem, searcher.method, (first,))
    assert second is not None
    for group in problem.space.groups:
        rows = first.alpha[f"{group.name}/alpha"].detach()
        for e, row in enumerate(rows.tolist()):
            best = sorted(range(8), key=lambda o: -row[o])[:5]
            assert sorted(second.mask[group.name][e].nonzero().flatten().tolist()) == sorted(best)
    middle = entered(problem, second, (first,))
    with torch.no_grad():
        for t in middle.alpha.values():
            t += torch.randn(t.shape, generator=rng, dtype=t.dtype)
    third = searcher.stages(problem, searcher.method, (first, middle))
    assert third is not None
    for name, mask in third.mask.items():
        assert not (mask & ~second.mask[name]).any(), "what went does not come back"
        assert (mask.sum(-1) == 3).all()


def test_stages_begin_anew() -> None:
    """Neither weights nor alpha are taken over."""
    problem, searcher = problem_of("toy", epochs=3), progressive_channels()
    first = begin(problem, searcher.method)
    with torch.no_grad():
        for t in (*first.alpha.values(), *first.supernet.parameters()):
            t.fill_(7.0)
    stage = searcher.stages(problem, searcher.method, (first,))
    assert stage is not None
    second = entered(problem, stage, (first,))
    assert all(float(t.detach().abs().max()) < 1 for t in second.alpha.values())
    assert not any(bool((p == 7).any()) for p in second.supernet.parameters())


def test_wrong_tables_and_too_few_epochs_are_told() -> None:
    searcher = progressive_channels()
    for stages, epochs in ((Growing(), 2), (Growing(K=(8, 4)), 9), (Growing(cells=(8,)), 9), (Growing(keep=(1,)), 9)):
        with pytest.raises(UserError, match="an epoch for every stage"):
            replace(searcher, stages=stages).search(problem_of("toy", epochs=epochs))


def test_it_is_adarts_in_each_stage() -> None:
    method = progressive_channels().method
    same = {"name": "x", "arch_start": 0.0, "unfit": (), "unfit_why": "", "papers": ()}
    assert replace(method, **same) == replace(adarts(), **same)  # type: ignore[arg-type]
    assert method.arch_start == 0.4
    assert method.selection == TopK()
    assert Growing() == Growing((8, 14, 20), (8, 5, 3), (8, 4, 2))


def test_depth_in_a_ratio() -> None:
    problem = problem_of("darts", cells=5)
    assert [deeper(problem.space, d, 8).cells for d in (8, 14, 20)] == [5, 9, 12]  # type: ignore[attr-defined]
    assert [deeper(problem.space, d).cells for d in (5, 11, 17)] == [5, 11, 17]  # type: ignore[attr-defined]
