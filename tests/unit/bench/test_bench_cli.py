"""`oche bench` on the command line: what cannot be is one sentence and exit code 2."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from oche.cli import main as cli

TABLE = pytest.mark.skipif("OCHE_DATA" not in os.environ, reason="NAS-Bench-201's table is where OCHE_DATA says")
SMALL = ("--method", "darts", "--space", "toy", "--budget", "smoke")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "needs `--config FILE.toml`"),
        (("--config", "no.toml"), "no file 'no.toml'"),
        ((*SMALL, "--select", "cifar10/test"), "would select on test data"),
        ((*SMALL, "--evaluate", "tables"), "evaluate must be"),
        ((*SMALL, "--seeds", "0"), "at least one seed"),
        ((*SMALL, "--probe", "gaps"), "did you mean 'gap'"),
        pytest.param((*SMALL, "--probe", "tau"), "not of toy", marks=TABLE),
        ((*SMALL, "--only", "dart"), "did you mean 'darts'"),
        ((*SMALL, "--workers", "0"), "at least one worker"),
        ((*SMALL, "--set", "space.cell=1"), "did you mean 'cells'"),
        (("show", "nowhere"), "no run folder 'nowhere'"),
        (("query", "nb202", "NB201_9930"), "did you mean 'nb201'"),
        pytest.param(
            ("query", "nb201", "NB201_9930", "--metric", "cifar10/tset"), "did you mean 'cifar10/test'", marks=TABLE
        ),
        pytest.param(("query", "nb201", "DARTS_V2"), "of the space 'darts'", marks=TABLE),
        (("query", "nb201", "NB201_9930", "--folder", "."), "There is no nb201.csv.gz"),
    ],
)
@pytest.mark.usefixtures("data_folder")
def test_a_mistake_is_one_sentence_and_two(
    arguments: tuple[str, ...],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["oche", "bench", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert says in said
    assert said.count("\n") == 1
