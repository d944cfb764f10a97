"""A short sample of the campaign of damage, and the campaign itself on files that nothing protects."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from chaos import damage
from chaos.damage import GOOD, KERNEL, TARGETS, campaign, damaged, make, outcome, read, table
from oche.run import Run, digests


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stopped search and its unbroken end."""
    folder = tmp_path_factory.mktemp("runs")
    make(folder, {"stopped search"})
    return folder


def ends(found: Iterator[dict[str, object]]) -> set[object]:
    return {line["end"] for line in found}


@pytest.mark.parametrize("name", ["search state", "run.toml", "log", "digests"])
def test_a_damaged_file_is_refused_or_changes_nothing(name: str, runs: Path) -> None:
    assert ends(damaged(runs, name, flips=2, cuts=1, seed=0)) <= set(GOOD)


def test_a_change_that_nothing_protects_is_seen(runs: Path, tmp_path: Path) -> None:
    """Without its table of digests a run takes over what is written there: the campaign says that the end is another one."""
    run, target = tmp_path / "edited", TARGETS["search state"]
    shutil.copytree(runs / target.run, run)
    (run / digests.FILE).unlink()
    assert outcome(runs, target, run, "") == "equal"
    shutil.rmtree(run)
    shutil.copytree(runs / target.run, run)
    (run / digests.FILE).unlink()
    state = torch.load(run / Run.STATE, weights_only=True)
    next(iter(state["weights"].values())).mul_(1.5)
    torch.save(state, run / Run.STATE)
    assert outcome(runs, target, run, "").startswith("silently different")


def test_a_traceback_is_seen(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(run: Run, name: str) -> bytes:
        raise ZeroDivisionError("in reading")

    monkeypatch.setattr(Run, "read", broken)
    run = runs / "stopped search"
    code, _, said = read(runs, TARGETS["run.toml"].command, run)
    assert (code, said) == (damage.TRACEBACK, "Traceback: ZeroDivisionError: in reading")
    assert outcome(runs, TARGETS["run.toml"], run, "") not in GOOD


def test_the_table_counts_and_names_what_is_wrong() -> None:
    found: list[dict[str, object]] = [
        {"file": "card", "damage": "bit 7", "end": "refused"},
        {"file": "card", "damage": "bit 9", "end": "silently different: x"},
    ]
    assert table(found).splitlines()[2:] == [
        "| card | WRONG | 1 |",
        "| card | refused | 1 |",
        '{"file": "card", "damage": "bit 9", "end": "silently different: x"}',
    ]


@pytest.mark.slow
def test_every_kind_of_file(tmp_path: Path) -> None:
    found = campaign(tmp_path, 3, 2, 1, [*TARGETS, KERNEL])
    assert {line["file"] for line in found} >= set(TARGETS)
    assert {str(line["end"]) for line in found} <= set(GOOD)
