"""Runs that an earlier commit wrote: a killed one is carried on with and ends as it did then, a finished one is reported and scored.

`tests/fixtures/runs/README.md` says how they were made. `expected.json` is what that commit itself ends with when it resumes in plain
torch (OCHE_FAST=off). Another processor sums in another order: between instruction sets these runs differ by 4e-7 at most, so numbers are
compared within a tolerance, all else exactly.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import oche
from oche.cli import main as cli

RUNS = Path(__file__).parents[1] / "fixtures" / "runs" / "0fbd6f0"
NAMES = sorted(path.name for path in RUNS.iterdir())
KILLED = sorted(f"{path.parent.name}/{path.name}" for path in RUNS.glob("*/killed*"))

ALPHA, LOSS, SCORE = 1e-6, 1e-5, 5e-3
"""Tolerances of alpha, of what is computed from it or from losses, and of shares of images, where one image in 800 may tip over."""

SLOW = {name for name in KILLED if name not in ("rf_darts/killed", "packed/killed", "training/killed")}
"""Those that take more than two seconds."""


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells run in plain torch, and pictures are not drawn, which would take longer than all the rest."""

    def blank(figure: Figure, file: io.BytesIO, **options: object) -> None:
        file.write(b'<svg xmlns="http://www.w3.org/2000/svg" width="1pt" height="1pt" viewBox="0 0 1 1"></svg>')

    monkeypatch.setenv("OCHE_FAST", "off")
    monkeypatch.setattr(Figure, "savefig", blank)


def expected(name: str) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads((RUNS / name / "expected.json").read_text())
    return found


def copied(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(RUNS / name, folder / "run"))


def records(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------------- being equal


def differences(got: object, wanted: object, path: str = "", *, within: float = LOSS) -> Iterator[str]:
    """What `got` lacks or has otherwise; what it has beside is none of ours."""
    if isinstance(wanted, Mapping) and isinstance(got, Mapping):
        for key, value in wanted.items():
            share = key.endswith(("accuracy", "miou"))
            yield from differences(got.get(key), value, f"{path}/{key}", within=SCORE if share else within)
    elif isinstance(wanted, list) and isinstance(got, list) and len(got) == len(wanted):
        for n, (one, other) in enumerate(zip(got, wanted, strict=True)):
            yield from differences(one, other, f"{path}/{n}", within=within)
    elif isinstance(wanted, float) and isinstance(got, float):
        if not abs(got - wanted) <= within:
            yield f"{path}: {got}, expected {wanted} within {within}"
    elif got != wanted:
        yield f"{path}: {got!r}, expected {wanted!r}"


def assert_ended_as(run: Path, wanted: Mapping[str, object]) -> None:
    """The same genotype, alpha, and records in the log."""
    genotype = json.loads((run / "genotype.json").read_text())
    wanted_genotype = dict(wanted["genotype"])  # type: ignore[call-overload]
    del wanted_genotype["hash"]  # that of a soft genotype hangs on the last bit of its coefficients
    assert list(differences(genotype, wanted_genotype)) == []
    told = wanted["log"]
    assert isinstance(told, list)
    kinds = {record["kind"] for record in told}
    if "network" in kinds:  # kept as it was searched: since 29f11ef it is not warned of a cell that nothing derives
        told = [{key: value for key, value in record.items() if key != "warning"} for record in told]
    assert list(differences([r for r in records(run) if r["kind"] in kinds], told)) == []
    if "alphas" in wanted:
        with np.load(run / "alphas.npz") as arrays:
            last = {name: arrays[name][-1].tolist() for name in arrays if arrays[name].dtype.kind == "f"}
        assert list(differences(last, wanted["alphas"], within=ALPHA)) == []


# ---------------------------------------------------------------------- the runs


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in KILLED])
def test_a_killed_run_ends_as_it_would_have(name: str, tmp_path: Path) -> None:
    folder, way = name.split("/")
    run = copied(name, tmp_path)
    oche.resume(run)
    assert_ended_as(run, expected(folder)[way])
    assert (run / "report.html").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_a_finished_run_is_reported(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = copied(f"{name}/finished", tmp_path)
    before = (run / "log.jsonl").read_bytes()
    monkeypatch.setattr(sys, "argv", ["oche", "report", str(run)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code in (0, None)
    assert "</html>" in (run / "report.html").read_text()
    assert (run / "log.jsonl").read_bytes() == before
    assert_ended_as(run, expected(name)["finished"])


@pytest.mark.parametrize("name", NAMES)
def test_a_finished_run_is_scored(name: str, tmp_path: Path) -> None:
    """Its network, or where it has none the one that its cell becomes in one epoch."""
    run = copied(f"{name}/finished", tmp_path)
    if (run / "network").exists():
        score = oche.evaluate_run(run)
    else:
        found = oche.resume(run)
        assert isinstance(found, oche.Found)
        assert list(found.history) == [r for r in records(run) if r["kind"] == "epoch"]
        score = found.train(protocol="smoke", epochs=1, threads=1, device="cpu", out=tmp_path / "trained").test
    assert list(differences({**score.metrics, "loss": score.loss}, expected(name)["judged"])) == []
