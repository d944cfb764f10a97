"""A bench of tables, methods and spaces of the user's own: what it takes from the table, and that changed files are told apart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from oche.bench import BenchResult, Matrix, matrix_from, run_bench
from oche.bench import trial as trial_module
from oche.bench.planned import asked, trials
from oche.bench.settled import settled
from oche.cli.main import app
from oche.errors import UserError
from oche.plan.request import Request
from oche.run import records
from oche.tables import Table, table_named
from reference.small_bench import ToyTable
from unit.test_parts_of_your_own import blocks

pytestmark = pytest.mark.usefixtures("undrawn")

GAEA = """
from dataclasses import replace
from oche.methods.darts import darts

def gaea(rate: float = 0.1):
    return replace(darts(), name="gaea", arch_start=0.0)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the parts of the pages on parts of one's own, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    for page in ("add_a_table", "add_a_method"):
        for name, code in blocks(page):
            if name:
                Path(name).write_text(code)
    Path("gaea.py").write_text(GAEA)
    exec(compile(Path("make_cells.py").read_text(), "make_cells.py", "exec"), {})  # noqa: S102
    return tmp_path


def benched(out: str, **fields: object) -> BenchResult:
    given: dict[str, object] = {
        "table": "table.py:mine",
        "methods": ("random_search", "near.py:near_the_best"),
        "baselines": ("random_sampling",),
        "budgets": ("smoke",),
        "seeds": 1,
        "settings": {"queries": 6},
    }
    return run_bench(matrix_from(None, {**given, **fields}), out)


def test_a_table_of_one_s_own_says_what_is_asked_and_reported(folder: Path) -> None:
    result = benched("b")
    m, table = result.matrix, table_named("table.py:mine")
    assert (m.evaluate, m.spaces, m.select, m.metrics) == (
        "table",
        ("toy",),
        "digits/valid",
        ("digits/test", "digits/valid"),
    )
    assert len(result.finished) == 3
    assert not result.failures
    for trial in result.finished:
        from oche.genotype import Genotype

        assert trial.values["digits/test"] == table.value(Genotype.parse(trial.genotype, "toy"), "digits/test")
        assert trial.code.keys() >= {str(folder / "table.py")}
    near = next(t for t in result.finished if t.method == "near.py:near_the_best")
    assert near.code.keys() == {str(folder / "table.py"), str(folder / "near.py")}
    assert len(near.probe("best_validation")) == 6
    run = folder / "b" / "trials" / near.name
    assert (run / "code" / "near.py").read_text() == (folder / "near.py").read_text()


@pytest.mark.parametrize("file", ["near.py", "table.py"])
def test_a_file_that_changed_since_is_refused_in_the_same_folder(file: str, folder: Path) -> None:
    benched("b")
    whole = Path(file).read_text()
    Path(file).write_text(whole + "# another rule\n")
    with pytest.raises(UserError, match=rf"was run with .*{file} as it was before it changed .*choose another folder"):
        benched("b", seeds=2)
    Path(file).write_text(whole)
    assert len(benched("b", seeds=2).finished) == 6


def test_another_version_is_refused_in_the_same_folder(folder: Path) -> None:
    result = benched("b")
    lines = [records.unseal(line) or {} for line in result.folder.read(result.folder.TRIALS).splitlines()]
    result.folder.write(
        result.folder.TRIALS, b"".join(json.dumps({**r, "version": "0.0.9"}).encode() + b"\n" for r in lines)
    )
    with pytest.raises(UserError, match=r"was run by oche 0\.0\.9, not "):
        benched("b", seeds=2)
    old = [{k: v for k, v in r.items() if k not in ("version", "code")} for r in lines]
    result.folder.write(result.folder.TRIALS, b"".join(json.dumps(r).encode() + b"\n" for r in old))
    assert len(benched("b", seeds=2).finished) == 6, "lines of earlier benches say nothing of it"


def test_a_trial_that_began_with_another_file_is_not_carried_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(event: str, record: Mapping[str, object]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trial_module, "checksums", lambda run: interrupted("", {}))
    with pytest.raises(KeyboardInterrupt):
        benched("b", methods=("near.py:near_the_best",), baselines=())
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    Path("near.py").write_text(Path("near.py").read_text() + "# another rule\n")
    again = benched("b", methods=("near.py:near_the_best",), baselines=())
    (reason,) = again.failures.values()
    assert "began with" in reason
    assert "near.py as it was before it changed" in reason


def test_what_is_left_open_comes_from_the_table(folder: Path) -> None:
    toys, mine = ToyTable(), table_named("table.py:mine")
    open_, told = Matrix(), Matrix(spaces=("nb201",), select="digits/other", metrics=("digits/test",), evaluate="both")
    assert settled(open_, None).evaluate == "train"
    assert settled(open_, None).spaces == ("nb201",)
    found = settled(open_, toys)
    assert (found.table, found.spaces, found.select, found.metrics) == (
        "toys",
        ("toy",),
        "digits/valid",
        ("digits/test", "digits/valid"),
    )
    assert settled(told, mine) == replace(told, table="mine")
    only_test = Table("t", "toy", mine.cells, {"d/test": lambda: mine.column("digits/test")}, ())  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="no metric that may select"):
        settled(open_, only_test)


def test_a_table_may_be_an_object_a_function_or_a_function_of_a_folder(folder: Path) -> None:
    Path("more.py").write_text(
        "from table_ import mine\nof = lambda folder: (mine(), folder)[0]\nready = mine()\nwrong = lambda: 3\n"
    )
    Path("table_.py").write_text(Path("table.py").read_text())
    import sys

    sys.path.insert(0, str(folder))
    try:
        for name in ("of", "ready", "mine"):
            assert table_named(f"more.py:{name}", folder).name == "mine"
        with pytest.raises(UserError, match="gives int, which is no table"):
            table_named("more.py:wrong")
        with pytest.raises(UserError, match="did you mean 'nb201'"):
            table_named("nb20")
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("table_", None)


def test_parts_in_files_are_found_from_anywhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = settled(
        Matrix(methods=("near.py:near_the_best",), table="table.py:mine", baselines=()), table_named("table.py:mine")
    )
    assert matrix.table == f"{folder / 'table.py'}:mine"
    (trial, *_) = trials(matrix)
    assert trial.request.method == f"{folder / 'near.py'}:near_the_best"
    assert trial.request.settings["evaluator.table"] == matrix.table


@pytest.mark.slow
def test_the_command_with_parts_of_one_s_own(folder: Path) -> None:
    command = (
        "bench --table table.py:mine --method random_search --method regularized_evolution --method gaea.py:rf_gaea"
    )
    done = CliRunner().invoke(app, [*command.split(), "--budget", "smoke", "--seeds", "1", "--out", "b"])
    assert done.exit_code == 0, done.output
    said = (folder / "b" / "results.md").read_text()
    assert all(name in said for name in ("gaea.py:rf_gaea", "regularized_evolution", "optimum of the table"))


@pytest.mark.slow
def test_a_space_of_one_s_own_is_benched(folder: Path) -> None:
    for name, code in blocks("add_a_space"):
        if name:
            Path(name).write_text(code)
    matrix = Matrix(
        methods=("darts",), spaces=("space.py:Blocks",), budgets=("smoke",), seeds=1, protocol="smoke", baselines=()
    )
    result = run_bench(matrix, "b")
    assert not result.failures
    assert {t.method for t in result.finished} == {"darts", "random_sampling"}


def test_a_trial_whose_line_is_missing_is_carried_on(folder: Path) -> None:
    """As after a kill between a search's end and its line: its folder is the same trial's, whatever was left open in the request."""
    matrix = Matrix(
        methods=("darts",),
        spaces=("toy",),
        budgets=("smoke",),
        seeds=1,
        baselines=(),
        evaluate="train",
        protocol="smoke",
    )
    result = run_bench(matrix, "b")
    result.folder.write(result.folder.TRIALS, b"")
    again = run_bench(matrix, "b")
    assert not again.failures
    assert [(t.genotype, t.asked) for t in again.finished] == [(t.genotype, t.asked) for t in result.finished]


def test_lines_of_benches_of_before_are_of_the_same_trials() -> None:
    """An option that came later stands in a line only where it is given; the literal line is one of docs/results/collapse_nb201.jsonl."""
    before = {
        "method": "darts", "space": "nb201", "data": "cifar10.npz", "budget": "paper", "epochs": 30, "batch": 64, "seed": 0,
        "device": "auto", "devices": 1, "precision": "32", "threads": 1, "compare": 0, "compare_seeds": 3, "protocol": "brief",
        "settings": {"space.cells": 5}, "recompute": False,
    }  # fmt: skip
    given = {**before, "devices": None}
    assert asked(Request(**given)) == before  # type: ignore[arg-type]
    assert asked(Request(**given, probes=("gap",), seeds=4)) == before  # type: ignore[arg-type]
    limited = asked(Request(**given, max_params="80k"))  # type: ignore[arg-type]
    assert limited == {**before, "max_params": "80k"}


def test_methods_spaces_and_data_may_be_objects(folder: Path) -> None:
    """By the names that the matrix has for them; killed and started again, and shown from the files alone."""
    from oche.bench import show
    from oche.methods.random_search import random_search
    from oche.spaces.toy import ToySpace
    from reference.tiny import tiny_data

    parts = {"few": random_search(4), "small": ToySpace(channels=2), "noise": tiny_data()}
    matrix = Matrix(
        methods=("few", "random_sampling"), spaces=("small",), data=("noise",), budgets=("smoke",), seeds=1, evaluate="table",
        select="digits/valid", baselines=(),
    )  # fmt: skip
    result = run_bench(matrix, "b", table=ToyTable(), parts=parts)
    assert not result.failures
    assert [t.name for t in result.finished] == ["few-small-noise-smoke-0", "random_sampling-small-noise-smoke-0"]
    (few, _) = result.finished
    assert len(few.curve) == 4
    assert few.values["digits/valid"] == few.probe("best_validation")[4]
    assert show("b").finished == result.finished
    result.folder.write(result.folder.TRIALS, b"")
    again = run_bench(matrix, "b", table=ToyTable(), parts=parts)
    assert [(t.name, t.genotype) for t in again.finished] == [(t.name, t.genotype) for t in result.finished]
    with pytest.raises(UserError, match="holds cells of toy, not of small"):
        run_bench(matrix, "c", table=ToyTable())
