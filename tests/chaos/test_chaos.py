"""A short sample of `make chaos`, and the harness itself on runs that do not end as they should."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from chaos.cases import CALLS, Case, a_search, cases, same_run
from chaos.disks import Disk, struck
from chaos.dying import attempt, fresh
from chaos.harness import Log, broken, campaign, starved, table
from oche.run import Run

needs_disk = pytest.mark.skipif(not Disk.possible(), reason="a file system must be mounted, which needs the right to")


def short(kind: str = "darts") -> Case:
    work = a_search(kind, epochs=2)
    return Case(lambda path: work(Run(path)), fresh, same_run, CALLS, 1.0)


def test_every_kind_of_run_is_there(tmp_path: Path) -> None:
    searches = {"search darts", "search rf_darts", "search pcdarts", "search seldom written", "staged search"}
    assert cases(tmp_path).keys() == searches | {"retrain", "bench", "import", "kernel compilation"}


@pytest.mark.parametrize("fault", ["full disk", "read-only"])
@needs_disk
def test_a_disk_that_fails_and_is_mended(fault: str, tmp_path: Path) -> None:
    case, whole = short(), tmp_path / "whole"
    fresh(whole)
    case.work(whole)
    with Disk.mounted(tmp_path / "disk") as disk:
        found = [line for seed in range(3) for line in starved(case, whole, disk, random.Random(seed), fault)]
    assert found
    assert {line["end"] for line in found} == {"equal"}
    assert all("Traceback" not in str(line["said"]) for line in found)


@needs_disk
def test_a_fault_without_its_sentence_is_seen(tmp_path: Path) -> None:
    def mute(path: Path) -> None:
        try:
            Run(path).write("a.json", bytes(1 << 20))
            Run(path).write("b.json", bytes(1 << 20))
        except OSError:
            raise SystemExit(1) from None

    with Disk.mounted(tmp_path / "disk") as disk:
        fresh(disk.path / "run")
        with pytest.raises(AssertionError):
            struck(partial(mute, disk.path / "run"), disk, "full disk", "before rename", 1, 0)


def test_an_end_that_differs_is_written_down(tmp_path: Path) -> None:
    case, whole = short(), tmp_path / "whole"
    fresh(whole)
    short("pcdarts").work(whole)
    faults = [fault for seed in range(3) for fault in broken(case, whole, tmp_path / "broken", random.Random(seed), 2)]
    assert faults
    assert all(str(fault["end"]).startswith("different") for fault in faults)


def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    line = {"run": "retrain", "number": 0, "fault": "kill", "at": "import", "call": 1, "files": 0, "end": "equal"}
    Log(tmp_path / "faults.jsonl").add([line] * 2)
    assert len(Log(tmp_path / "faults.jsonl").of("retrain", "kills")) == 2
    assert Log(tmp_path / "faults.jsonl").of("retrain", "disks") == []
    assert table([line] * 2).endswith("| retrain | kill | import | 2 | 2 |\n| all | | | 2 | 2 |")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["staged search", "bench", "import", "kernel compilation"])
def test_a_few_kills_of_each_other_kind(kind: str, tmp_path: Path) -> None:
    faults = campaign(tmp_path, kills=8, disks=0, seed=1, only=kind)
    assert faults
    assert {fault["end"] for fault in faults} == {"equal"}
    again = campaign(tmp_path, kills=8, disks=0, seed=1, only=kind)
    assert again == [json.loads(line) for line in (tmp_path / "faults.jsonl").read_text().splitlines()] == faults


def test_a_child_that_fails_is_no_kill(tmp_path: Path) -> None:
    case = replace(short(), work=lambda path: 1 / 0)
    with pytest.raises(AssertionError, match="failed instead of being killed"):
        attempt(partial(case.work, tmp_path))
