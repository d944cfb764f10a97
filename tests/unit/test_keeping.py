"""How often a search writes checkpoints: seldom enough to cost little, and never so that its end would depend on it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from chaos.cases import a_search
from chaos.dying import assert_same_run, attempt, die_at, fresh
from oche.methods.darts import darts
from oche.methods.drnas import drnas_progressive
from oche.run import Run
from oche.search import keeping
from oche.search.begin import begin
from oche.search.checkpoint import checkpoint
from oche.search.keeping import Keeping, copied
from oche.search.loop import search
from oche.search.state import Problem
from reference.tiny import tiny_problem
from unit.test_finite import Explodes, method


@pytest.fixture
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """No checkpoint but the first one and the last one is due."""
    monkeypatch.setattr(keeping, "SHARE", 0.0)


def stops_after(epochs: int, error: BaseException) -> object:
    """A listener that raises at the first step after so many epochs."""

    def listener(event: str, record: Mapping[str, object]) -> None:
        if event == "step" and record["epoch"] == epochs:
            raise error

    return listener


def epoch_on_disk(run: Run) -> int:
    return int(torch.load(io.BytesIO(run.read(Run.STATE)), weights_only=True)["counters"][1])


def problem(run: Run | None, epochs: int = 5, **changes: object) -> Problem:
    return replace(tiny_problem("toy", epochs=epochs, count=24), run=run, **changes)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- when it is written


def test_it_is_due_where_it_takes_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping.time, "perf_counter", lambda: 1000.0)
    assert Keeping().due
    assert Keeping(wrote=1000.0 - 201 * 0.03, cost=0.03).due
    assert not Keeping(wrote=1000.0 - 199 * 0.03, cost=0.03).due
    assert Keeping(spent=0.5, total=25.0).share == pytest.approx(0.02)


@pytest.mark.usefixtures("seldom")
def test_a_killed_search_resumes_from_an_earlier_epoch_and_ends_equal(tmp_path: Path) -> None:
    whole, broken = fresh(tmp_path / "whole"), fresh(tmp_path / "broken")
    work = a_search("rf_darts", every=None)
    work(whole)
    assert attempt(partial(work, broken), partial(die_at, "after a log line", 4))
    assert epoch_on_disk(broken) == 1
    assert [p.name for p in broken.file("genotypes").iterdir()] == ["epoch_000.json"]
    assert attempt(partial(work, broken)) == 0
    assert_same_run(whole, broken)


@pytest.mark.usefixtures("seldom")
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("the disk is gone")])
def test_an_interrupted_search_loses_no_epoch(error: BaseException, tmp_path: Path) -> None:
    run = fresh(tmp_path / "run")
    with pytest.raises(type(error)):
        search(problem(run, listener=stops_after(3, error)), darts())
    assert epoch_on_disk(run) == 3
    assert run.has(Run.genotype(2))
    whole = fresh(tmp_path / "whole")
    search(problem(whole), darts())
    search(problem(run), darts())
    assert_same_run(whole, run)


@pytest.mark.usefixtures("seldom")
def test_an_interrupted_stage_loses_no_epoch(tmp_path: Path) -> None:
    run, whole = fresh(tmp_path / "run"), fresh(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        drnas_progressive().search(problem(run, epochs=6, listener=stops_after(2, KeyboardInterrupt())))
    assert epoch_on_disk(run) == 2
    for again in (run, whole):
        drnas_progressive().search(problem(again, epochs=6))
    assert_same_run(whole, run)


@pytest.mark.usefixtures("seldom")
def test_a_disk_that_fails_once_more_does_not_hide_why_the_search_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object, **more: object) -> None:
        raise OSError("No space left on device")

    def listener(event: str, record: Mapping[str, object]) -> None:
        if event == "epoch" and record["epoch"] == 1:
            monkeypatch.setattr(Run, "write_all", full)
            raise ValueError("the first error")

    with pytest.raises(ValueError, match="the first error"):
        search(problem(fresh(tmp_path / "run"), listener=listener), darts())


# ---------------------------------------------------------------------- what does not depend on it


def test_where_a_search_goes_back_to_does_not_depend_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every epoch's end written or not: the same log and the same end."""
    runs = [fresh(tmp_path / name) for name in ("often", "seldom")]
    for run, share in zip(runs, (1e9, 0.0), strict=True):
        monkeypatch.setattr(keeping, "SHARE", share)
        search(problem(run), method(Explodes(at=7, above=0.0126)))
    assert [r["to_step"] for r in runs[1].records() if r["kind"] == "rolled_back"] == [6]
    assert_same_run(*runs)


def test_what_is_kept_is_a_copy(tmp_path: Path) -> None:
    state = begin(problem(fresh(tmp_path / "run")), darts())
    checkpoint(state)
    assert state.keeping.table
    before = copied(state.keeping.table)
    with torch.no_grad():
        for t in (*state.theta.values(), *state.alpha.values()):
            t.add_(1)
    state.remember()
    state.mask["cell"] = torch.ones(1)
    after = state.keeping.table
    assert all(torch.equal(before["weights"][name], t) for name, t in after["weights"].items())
    assert all(torch.equal(before["alpha"][name], t) for name, t in after["alpha"].items())
    assert {len(known) for known in after["trajectory"].values()} == {1}
    assert after["tensors"][0] == {}
    assert not any(torch.equal(t, after["alpha"][name]) for name, t in state.alpha.items())


def test_the_log_says_what_it_cost(tmp_path: Path) -> None:
    run = fresh(tmp_path / "run")
    search(problem(run, epochs=2), darts())
    (record,) = (r for r in run.records() if r["kind"] == "supernet")
    assert 0 < float(str(record["checkpoint_share"])) < 1
