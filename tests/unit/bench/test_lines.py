"""The lines of a bench's trials: damage is found, numbers that are none stay out, one process at a time writes to a trial."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from oche.bench import Matrix, run_bench
from oche.bench import trial as trial_module
from oche.bench.matrix import SUPERNET
from oche.bench.planned import Trial, trials
from oche.bench.result import finished
from oche.bench.trial import Judged, Outcome, run_trial
from oche.errors import UserError
from oche.genotype import Genotype
from oche.plan.resolve import Plan
from oche.run import Run, records
from reference.small_bench import ToyTable, pretend

pytestmark = pytest.mark.usefixtures("undrawn")


def test_a_line_of_a_trial_that_was_damaged_is_refused(matrix: Matrix, table: ToyTable, tmp_path: Path) -> None:
    """Any bit, also in a number, which would be another number; lines of earlier benches have no checksum and are read."""
    result = run_bench(replace(matrix, seeds=1), tmp_path / "b", table=table, work=pretend)
    lines = result.folder.file(result.folder.TRIALS)
    data, rng = lines.read_bytes(), random.Random(0)
    for bit in [*rng.sample(range(8 * len(data)), 200), 8 * len(data) - 1]:
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        lines.write_bytes(changed)
        with pytest.raises(UserError, match=r"Line \d of .* is damaged"):
            finished(result.folder)
    lines.write_bytes(b"".join(json.dumps(records.unseal(line)).encode() + b"\n" for line in data.splitlines()))
    assert finished(result.folder) == {trial.name: trial for trial in result.finished}


def test_a_number_that_is_none_stays_out_of_the_lines(matrix: Matrix, table: ToyTable, tmp_path: Path) -> None:
    def work(trial: Trial, folder: Path) -> Outcome:
        done = pretend(trial, folder)
        none = {SUPERNET: float("nan")}
        return replace(done, measured=none, probes={"entropy": ((1, 0.5), (2, float("nan")))})

    result = run_bench(replace(matrix, seeds=1), tmp_path / "b", table=table, work=work)
    for line in result.folder.read(result.folder.TRIALS).splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert {trial.values[SUPERNET] for trial in result.finished} == {None}
    assert {tuple(trial.probe("entropy").items()) for trial in result.finished} == {((1, 0.5),)}


def test_a_trial_s_folder_is_locked_while_it_is_run(
    matrix: Matrix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`oche search --resume` in it meanwhile is refused, and so is a second bench's process that thinks the first one lost."""
    monkeypatch.setattr(trial_module, "PATIENCE", 0.0)
    trial = trials(replace(matrix, evaluate="train", table=None, metrics=(), select=None, epochs=1, batch=256))[0]

    def after(trial: Trial, plan: Plan, run: Run, genotype: Genotype) -> Judged:
        with pytest.raises(UserError, match="Another process is writing"):
            run_trial(trial, tmp_path / "t")
        return Judged({}, genotype, plan.space)

    assert run_trial(trial, tmp_path / "t", after).genotype
