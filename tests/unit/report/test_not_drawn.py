"""A report that cannot be drawn is a warning: the run has ended well, its results are kept, and a command draws it again."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

import oche
from oche.api import search as search_module
from oche.api import train as train_module
from oche.bench import Matrix, run_bench
from oche.bench.result import BenchFolder
from oche.cli.boundary import guarded
from oche.errors import NotDrawn
from oche.report import attempt
from oche.run import Run
from reference.small_bench import ToyTable, pretend
from reference.tiny import tiny_data

SMALL = tiny_data(12)
MATRIX = Matrix(
    methods=("darts",), spaces=("toy",), budgets=("smoke",), seeds=1, baselines=("random_sampling",), evaluate="table", table="toys",
    metrics=("digits/test", "digits/valid"), select="digits/valid",
)  # fmt: skip


def broken(*given: object) -> Path:
    raise ValueError("no such font\nand more")


def test_the_sentence_says_what_is_kept_and_what_draws_it(tmp_path: Path) -> None:
    with pytest.warns(NotDrawn) as told:
        attempt(broken, tmp_path / "two words", "oche report")
    assert str(told[0].message) == (
        f"The report could not be drawn (ValueError: no such font). All results are kept in {str(tmp_path / 'two words')!r}; "
        f"`oche report '{tmp_path / 'two words'}'` draws it again."
    )


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(1)])
def test_an_interruption_is_none_of_its_business(tmp_path: Path, stop: BaseException) -> None:
    def interrupted() -> None:
        raise stop

    with pytest.raises(type(stop)):
        attempt(interrupted, tmp_path, "oche report")


def test_a_search_and_a_training_end_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (search_module, train_module):
        monkeypatch.setattr(module, "render", broken)
    monkeypatch.setattr(train_module, "save_network", lambda *given: None)
    with pytest.warns(NotDrawn, match=rf"`oche report {tmp_path}/s` draws it again"):
        found = oche.search(
            "darts",
            data=SMALL,
            space="toy",
            budget="smoke",
            epochs=1,
            batch=6,
            compare=0,
            out=tmp_path / "s",
            progress=False,
        )
    assert found.run.has(Run.GENOTYPE)
    with pytest.warns(NotDrawn, match=rf"`oche report {tmp_path}/t` draws it again"):
        trained = oche.train(tmp_path / "s", data=SMALL, protocol="smoke", epochs=1, batch=6, out=tmp_path / "t")
    assert trained.test.metrics["accuracy"] > 0


@pytest.mark.parametrize(("study", "command"), [(False, "oche bench show"), (True, "oche study show")])
def test_a_bench_and_a_study_end_well(tmp_path: Path, study: bool, command: str) -> None:
    if study:
        BenchFolder(tmp_path).write(BenchFolder.STUDY, b"")
    with pytest.warns(NotDrawn, match=f"`{command} {tmp_path}`"):
        result = run_bench(MATRIX, tmp_path, table=ToyTable(), work=pretend, render=broken)
    assert len(result.finished) == 2


def test_the_command_line_says_it_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        guarded(lambda: attempt(broken, tmp_path, "oche report"))  # returns: exit code 0
        shown = capsys.readouterr().err
        assert shown.startswith("oche: WARNING  The report could not be drawn")
        assert shown.count("\n") == 1
        guarded(lambda: warnings.warn("of another library", UserWarning, stacklevel=1))
        assert "UserWarning: of another library" in capsys.readouterr().err
