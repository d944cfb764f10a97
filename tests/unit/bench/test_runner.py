"""A bench as a whole: what it runs, what it keeps when it is killed, and what its files say afterwards."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from scipy.stats import ttest_1samp

from oche.bench import BenchResult, Matrix, pool, run_bench, show
from oche.bench import page as benchs_page
from oche.bench.pictures import PROBES, Panels, Pareto, _plots, drawn, front, looks, pictures
from oche.bench.planned import Trial
from oche.bench.render import NOT_RUN, overview, searches, tables, trial_table
from oche.bench.trial import BEST, NUMBERS, Outcome
from oche.errors import UserError
from reference.small_bench import CELLS, ToyTable, dies, dies_once, pretend

pytestmark = pytest.mark.usefixtures("undrawn")
TESTS = Path(__file__).parents[2]
MEASURED = ("seconds", "train_seconds", "memory_mib")


def table_of(result: BenchResult) -> list[dict[str, str]]:
    """results.csv without what is measured anew in every run."""
    rows = csv.DictReader(io.StringIO(result.folder.file(result.folder.CSV).read_text()))
    return [{key: value for key, value in row.items() if key not in MEASURED} for row in rows]


def row(result: BenchResult, method: str, metric: str = "digits/test") -> dict[str, str]:
    (found,) = (r for r in table_of(result) if r["method"] == method and r["metric"] == metric)
    return found


def killed_at(n: int) -> object:
    """A trial function that the user interrupts at its n-th call."""
    calls = 0

    def work(trial: Trial, folder: Path) -> Outcome:
        nonlocal calls
        calls += 1
        if calls == n:
            raise KeyboardInterrupt
        return pretend(trial, folder)

    return work


# ---------------------------------------------------------------------- what it says


def test_all_trials_run_once_and_tell_a_line(matrix: Matrix, table: ToyTable, tmp_path: Path) -> None:
    told: list[tuple[str, Mapping[str, object]]] = []
    result = run_bench(matrix, tmp_path / "b", listener=lambda *line: told.append(line), table=table, work=pretend)
    assert [event for event, _ in told] == ["begin"] + ["trial"] * 9
    assert told[0][1]["total"] == 9
    assert told[1][1]["value"] == table.value(CELLS[CELLS.index(result_cell(result, 0))], "digits/test")
    assert not result.missing
    assert {t.method for t in result.finished} == {"darts", "pcdarts", "random_sampling"}


def result_cell(result: BenchResult, i: int) -> object:
    from oche.genotype import Genotype

    return Genotype.parse(result.finished[i].genotype, "toy")


def test_rows_are_the_statistics_of_the_trials(matrix: Matrix, table: ToyTable, tmp_path: Path) -> None:
    result = run_bench(matrix, tmp_path / "b", table=table, work=pretend)
    mine = [t for t in result.finished if t.method == "darts"]
    values = [t.values["digits/test"] for t in mine]
    mean = sum(v for v in values if v is not None) / 3
    random = [t.values["digits/test"] or 0.0 for t in result.finished if t.method == "random_sampling"]
    found = row(result, "darts")
    assert float(found["mean"]) == pytest.approx(mean)
    assert float(found["improvement"]) == pytest.approx(100 * (mean - sum(random) / 3) / (sum(random) / 3))
    assert float(found["regret"]) == pytest.approx(table.column("digits/test").max() - mean)
    seeds = set()
    for method in matrix.searched:
        best = max((t for t in result.finished if t.method == method), key=lambda t: t.values["digits/valid"] or 0.0)
        assert float(row(result, method)["picked"]) == best.values["digits/test"]
        seeds.add(best.seed)
    assert len(seeds) > 1  # else the first would do
    gaps = [v - r for v, r in zip(values, random, strict=True)]  # type: ignore[operator]
    assert float(found["t_p"]) == pytest.approx(ttest_1samp(gaps, 0).pvalue)
    assert float(found["difference"]) == pytest.approx(sum(gaps) / 3)
    both = sorted(float(row(result, method)["t_p"]) for method in matrix.methods)
    assert sorted(float(row(result, method)["holm_p"]) for method in matrix.methods) == pytest.approx(
        [min(1.0, 2 * both[0]), min(1.0, max(2 * both[0], both[1]))]
    )
    assert row(result, "random_sampling")["t_p"] == ""  # the baseline is not compared with itself


def test_choices_without_a_search_are_there(matrix: Matrix, table: ToyTable, tmp_path: Path) -> None:
    """The oracle selects on validation, so on test accuracy it has a regret; the optimum has none."""
    result = run_bench(matrix, tmp_path / "b", table=table, work=pretend)
    all_convolutions = 79 + 12 - 2.6
    assert float(row(result, "oracle (by digits/valid)")["mean"]) == pytest.approx(all_convolutions)
    assert float(row(result, "best zerocost/digits/score")["mean"]) == pytest.approx(all_convolutions)
    assert float(row(result, "optimum of the table")["regret"]) == 0.0
    assert float(row(result, "mean of the table")["mean"]) == pytest.approx(float(table.column("digits/test").mean()))


def test_searching_one_data_set_and_looking_up_another_is_said(matrix: Matrix, tmp_path: Path) -> None:
    from oche.bench.result import _same_data

    assert _same_data("digits", "digits/test")
    assert _same_data("data/CIFAR-10.npz", "cifar10/test/12")
    assert not _same_data("digits", "cifar10/test")
    result = run_bench(matrix, tmp_path / "b", table=ToyTable(), work=pretend)
    assert not any("other data" in note for note in result.notes)
    assert any("Selected by digits/valid" in note for note in result.notes)


def test_training_instead_of_a_table(matrix: Matrix, tmp_path: Path) -> None:
    matrix = replace(matrix, evaluate="train", table=None, metrics=(), select=None)
    result = run_bench(matrix, tmp_path / "b", work=pretend)
    assert matrix.reported == ("trained/test", "trained/val")
    assert {r.metric for r in result.rows} == set(matrix.reported)
    assert all(not r.fixed for r in result.rows)


def test_the_page_needs_no_other_file(
    matrix: Matrix, table: ToyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchs_page, "pictures", pictures)
    result = run_bench(matrix, tmp_path / "b", table=table, work=pretend)
    page = result.folder.file("report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!#)', page)
    assert not re.findall(r"<script|@import|url\((?!#)", page)
    assert {path.stem for path in (result.folder.path / "figures").iterdir()} == {
        "seeds",
        "ranks",
        "anytime",
        "skips",
        "pareto_network",
        "pareto_search",
    }
    assert "oracle (by digits/valid)" in page


def test_the_front_of_equal_costs_keeps_the_best() -> None:
    assert front([(2.0, 1.0), (1.0, 1.0), (1.0, 2.0), (3.0, 2.5), (2.5, 2.5)]) == [(1.0, 2.0), (2.5, 2.5)]


def test_a_cloud_of_sixty_methods_names_those_on_the_front_and_keeps_its_room() -> None:
    points = {f"method {n}": [(float(n), 90.0 - abs(n - 20))] for n in range(60)}
    figure = drawn(Pareto("title", "cost", "accuracy", points), looks(list(points)))
    text = figure.decode()
    assert all(f">method {n}<" in text or f"method {n} " in text for n in (0, 20))
    assert "<!-- method 40 -->" not in text
    assert "of 60" in text


# ---------------------------------------------------------------------- killed and started again


@pytest.mark.parametrize("n", [1, 4, 9])
def test_a_killed_bench_runs_only_what_is_missing_and_ends_the_same(
    matrix: Matrix, table: ToyTable, tmp_path: Path, n: int
) -> None:
    whole = run_bench(matrix, tmp_path / "whole", table=table, work=pretend)
    with pytest.raises(KeyboardInterrupt):
        run_bench(matrix, tmp_path / "killed", table=table, work=killed_at(n))  # type: ignore[arg-type]
    if n > 1:
        half = show(tmp_path / "killed")
        assert len(half.missing) == 10 - n
        assert any("Unfinished" in note for note in half.notes)
    ran: list[str] = []
    again = run_bench(
        matrix,
        tmp_path / "killed",
        table=table,
        work=lambda trial, folder: (ran.append(trial.name), pretend(trial, folder))[1],
    )
    assert len(ran) == 10 - n
    assert table_of(again) == table_of(whole)
    assert again.finished == whole.finished


def test_showing_needs_the_files_alone(matrix: Matrix, table: ToyTable, tmp_path: Path) -> None:
    result = run_bench(matrix, tmp_path / "b", table=table, work=pretend)
    names = (result.folder.CSV, result.folder.MARKDOWN, "report.html")
    before = {name: result.folder.read(name) for name in names}
    for name in names:
        result.folder.file(name).unlink()
    show(tmp_path / "b")
    assert {name: result.folder.read(name) for name in names} == before


def test_a_studys_page_is_not_overwritten_by_a_benchs(matrix: Matrix, table: ToyTable, tmp_path: Path) -> None:
    result = run_bench(matrix, tmp_path / "b", table=table, work=pretend)
    result.folder.write(result.folder.STUDY, b"")
    with pytest.raises(UserError, match="oche study show"):
        show(tmp_path / "b")


def test_a_bench_may_grow(matrix: Matrix, table: ToyTable, tmp_path: Path) -> None:
    run_bench(matrix, tmp_path / "grown", table=table, work=pretend)
    larger = replace(matrix, seeds=4, methods=(*matrix.methods, "rf_darts"))
    grown = run_bench(larger, tmp_path / "grown", table=table, work=pretend)
    assert table_of(grown) == table_of(run_bench(larger, tmp_path / "at once", table=table, work=pretend))


def test_a_failed_trial_leaves_the_others_to_go_on(matrix: Matrix, table: ToyTable, tmp_path: Path) -> None:
    def work(trial: Trial, folder: Path) -> Outcome:
        if trial.method == "pcdarts" and trial.seed == 1:
            raise UserError("Out of memory.")
        return pretend(trial, folder)

    told: list[str] = []
    result = run_bench(matrix, tmp_path / "b", listener=lambda event, _: told.append(event), table=table, work=work)
    assert told.count("failed") == 1
    assert result.missing == ("pcdarts-toy-digits-smoke-1",)
    assert row(result, "pcdarts")["t_p"] == ""  # two seeds that both have tell nothing
    assert row(result, "darts")["holm_p"] == row(result, "darts")["t_p"] != ""  # the only one that is tested
    assert "failed: Out of memory." in result.folder.file(result.folder.MARKDOWN).read_text()
    assert not run_bench(matrix, tmp_path / "b", table=table, work=pretend).missing


def test_a_mistake_in_the_program_is_not_hidden(matrix: Matrix, table: ToyTable, tmp_path: Path) -> None:
    def work(trial: Trial, folder: Path) -> Outcome:
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        run_bench(matrix, tmp_path / "b", table=table, work=work)


# ---------------------------------------------------------------------- refused


def test_another_bench_is_not_mixed_in(matrix: Matrix, table: ToyTable, tmp_path: Path) -> None:
    run_bench(matrix, tmp_path / "b", table=table, work=pretend)
    with pytest.raises(UserError, match="with batch='none', not 8"):
        run_bench(replace(matrix, batch=8), tmp_path / "b", table=table, work=pretend)
    with pytest.raises(UserError, match="other settings"):
        run_bench(replace(matrix, settings={"space.cells": 2}), tmp_path / "b", table=table, work=pretend)


def test_an_unknown_method_is_told_before_anything_runs(matrix: Matrix, table: ToyTable, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'pcdarts'"):
        run_bench(replace(matrix, methods=("darts", "pcdart")), tmp_path / "b", table=table, work=pretend)
    with pytest.raises(UserError, match="no part 'clipp'"):
        run_bench(replace(matrix, settings={"clipp": 1}), tmp_path / "b", table=table, work=pretend)


@pytest.mark.parametrize(
    ("changes", "only", "says"),
    [
        ({"methods": ("pcdart",)}, (), "did you mean 'pcdarts'"),
        ({"epochs": 0}, (), "epochs"),
        ({"data": ("nowhere.npz",)}, (), "no file or folder nowhere.npz"),
        ({}, ("pcdart",), "did you mean 'pcdarts'"),
        ({"zero_cost": ("nothing",)}, (), "no metric of the table"),
    ],
)
def test_a_mistake_leaves_no_folder_that_the_corrected_bench_would_clash_with(
    matrix: Matrix, table: ToyTable, tmp_path: Path, changes: dict[str, object], only: tuple[str, ...], says: str
) -> None:
    wrong = replace(matrix, **changes)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=says):
        run_bench(wrong, tmp_path / "b", only=only, table=table, work=pretend)
    assert not (tmp_path / "b").exists()


def test_what_a_cluster_would_ignore_or_hide_is_refused(matrix: Matrix, table: ToyTable, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave --workers out"):
        run_bench(matrix, tmp_path / "b", 2, "local", table=table, work=pretend)
    with pytest.raises(UserError, match="needs --gpus 1"):
        run_bench(replace(matrix, device="cuda"), tmp_path / "b", address="local", table=table, work=pretend)
    with pytest.raises(UserError, match="negative number of CPUs"):
        run_bench(replace(matrix, gpus=-1.0), tmp_path / "b", table=table, work=pretend)


def test_a_bench_that_selects_by_what_it_trains_has_no_oracle(matrix: Matrix, table: ToyTable, tmp_path: Path) -> None:
    """The table cannot tell which cell that is; its optimum is there all the same."""
    both = replace(matrix, evaluate="both", select=None)
    result = run_bench(both, tmp_path / "b", table=table, work=pretend)
    fixed = {r.method for r in result.rows if r.fixed}
    assert "optimum of the table" in fixed
    assert not any(name.startswith("oracle") for name in fixed)
    best = max((t for t in result.finished if t.method == "darts"), key=lambda t: t.values["trained/val"] or 0.0)
    assert float(row(result, "darts")["picked"]) == best.values["digits/test"]


def test_all_stand_side_by_side(matrix: Matrix, table: ToyTable, tmp_path: Path) -> None:
    """In one place: what papers report, the best first, with RI, skips and the choices without a search; nothing of a validation metric."""
    both = replace(matrix, evaluate="both")
    result = run_bench(both, tmp_path / "b", only=["darts", "random_sampling"], table=table, work=pretend)
    _, headings, rows = overview(result)
    beside = ["- largest", "- as large"]
    assert headings == ["method", "seeds", "digits/test", "trained/test", *beside, "RI %", "skips", "search"]
    said = {line[0]: dict(zip(headings, line, strict=True)) for line in rows}
    means = [r.summary.mean for r in result.rows if r.metric == "digits/test" and not r.fixed]
    searched = [line for line in rows if line[0] in matrix.searched]
    assert [line[2].split()[0] for line in searched[:2]] == [f"{m:.2f}" for m in sorted(means, reverse=True)]
    assert searched[2] == ["pcdarts", "0 of 3", NOT_RUN, NOT_RUN, "", "", "", NOT_RUN, ""]
    (found,) = (r for r in result.rows if r.metric == "trained/test" and r.method == "darts")
    low, high = found.summary.interval or (0.0, 0.0)
    assert (
        said["darts"]["trained/test"] == f"{found.summary.mean:.2f} ± {found.summary.std:.2f} [{low:.2f}, {high:.2f}]"
    )
    assert said["optimum of the table"]["digits/test"] == f"{table.column('digits/test').max():.2f}"
    assert said["darts"]["RI %"].startswith(f"{float(row(result, 'darts')['improvement']):+.2f} [")
    assert said["random_sampling"]["RI %"] == ""


def test_an_unknown_table_is_a_sentence(matrix: Matrix, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no table 'toys'"):
        run_bench(matrix, tmp_path / "b")


def test_a_folder_that_is_no_bench_or_damaged_is_a_sentence(matrix: Matrix, table: ToyTable, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        show(tmp_path / "none")
    result = run_bench(matrix, tmp_path / "b", table=table, work=pretend)
    lines = result.folder.file(result.folder.TRIALS)
    lines.write_bytes(lines.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"Line 9 of .* is damaged"):
        show(tmp_path / "b")
    result.folder.write("run.toml", b"[request]\n")
    with pytest.raises(UserError, match="no bench's folder"):
        show(tmp_path / "b")


# ---------------------------------------------------------------------- real searches


PROGRAM = """
import sys
from dataclasses import replace
from pathlib import Path
from reference.small_bench import ToyTable
from oche.bench import Matrix, run_bench

if __name__ == "__main__":
    matrix = Matrix(
        methods=("rf_darts",), spaces=("toy",), budgets=("smoke",), seeds=2, epochs=4, batch=64, device="cpu", evaluate="both",
        table="toys", metrics=("digits/test",), select="digits/valid", baselines=("random_sampling",), protocol="smoke",
        settings={"train.epochs": 1},
    )
    address = sys.argv[3] if len(sys.argv) > 3 else None
    run_bench(matrix, sys.argv[1], int(sys.argv[2]), address, lambda *line: print(*line, flush=True), table=ToyTable())
"""


def command(tmp_path: Path, *arguments: str) -> list[str]:
    program = tmp_path / "program.py"
    program.write_text(f"import sys\nsys.path[:0] = [{str(TESTS)!r}, {str(TESTS.parent / 'src')!r}]\n{PROGRAM}")
    return [sys.executable, str(program), *arguments]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> BenchResult:
    folder = tmp_path_factory.mktemp("unbroken")
    subprocess.run(command(folder, str(folder / "b"), "1"), check=True, capture_output=True)
    return show(folder / "b")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_bench_killed_in_a_search_ends_as_the_unbroken_one(unbroken: BenchResult, tmp_path: Path) -> None:
    call = command(tmp_path, str(tmp_path / "b"), "1")
    killed = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    running = tmp_path / "b" / "trials" / "rf_darts-toy-digits-smoke-1"
    deadline = time.monotonic() + 60
    while not (running / "genotypes" / "epoch_001.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert (running / "state.pt").exists()
    done = (tmp_path / "b" / "trials.jsonl").read_bytes()
    assert len(done.splitlines()) == 2
    first = running / "genotypes" / "epoch_000.json"
    written = first.stat().st_mtime_ns
    subprocess.run(call, check=True, capture_output=True)
    again = show(tmp_path / "b")
    assert (tmp_path / "b" / "trials.jsonl").read_bytes().startswith(done)
    assert not again.missing
    assert first.stat().st_mtime_ns == written  # the search went on, it did not begin anew
    assert table_of(again) == table_of(unbroken)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_worker_processes_give_the_same_table(unbroken: BenchResult, tmp_path: Path) -> None:
    subprocess.run(command(tmp_path, str(tmp_path / "b"), "2"), check=True, capture_output=True)
    assert table_of(show(tmp_path / "b")) == table_of(unbroken)


def importable() -> dict[str, str]:
    """The environment with the tests' modules on the path, for Ray's workers too."""
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'oche[ray]'")
def test_a_ray_cluster_gives_the_same_table(unbroken: BenchResult, tmp_path: Path) -> None:
    call = command(tmp_path, str(tmp_path / "b"), "1", "local")
    done = subprocess.run(call, capture_output=True, text=True, env=importable())
    assert done.returncode == 0, done.stderr
    assert table_of(show(tmp_path / "b")) == table_of(unbroken)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'oche[ray]'")
def test_what_a_ray_worker_cannot_import_is_told(tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path, str(tmp_path / "b"), "1", "local"), capture_output=True, text=True)
    assert done.stdout.count("A Ray worker could not begin (System error: No module named 'reference')") == 4


ON_RAY = """
import sys
from reference.small_bench import ToyTable, dies_once_or_refuses
from oche.bench import Matrix, run_bench

if __name__ == "__main__":
    matrix = Matrix(
        methods=("darts", "pcdarts"), spaces=("toy",), budgets=("smoke",), seeds=1, evaluate="table", table="toys",
        metrics=("digits/test",), select="digits/valid", baselines=(),
    )
    print(run_bench(matrix, sys.argv[1] + "/bench", address="local", table=ToyTable(), work=dies_once_or_refuses).failures)
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)  # to start and to end a cluster takes a minute, on a busy machine some
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'oche[ray]'")
def test_a_ray_worker_that_is_lost_is_replaced_and_one_that_fails_is_told(
    matrix: Matrix, table: ToyTable, tmp_path: Path
) -> None:
    """In one cluster. What does not fit into it is refused in `test_cluster`."""
    (tmp_path / "program.py").write_text(ON_RAY)
    call = [sys.executable, str(tmp_path / "program.py"), str(tmp_path)]
    done = subprocess.run(call, check=True, capture_output=True, text=True, env=importable())
    assert (tmp_path / "bench" / "trials" / "darts-toy-digits-smoke-0" / "tried").exists()
    found = show(tmp_path / "bench")
    assert found.missing == ("pcdarts-toy-digits-smoke-0",)
    assert "pcdarts-toy-digits-smoke-0': 'It will not.'" in done.stdout
    small = replace(matrix, methods=("darts",), seeds=1, metrics=("digits/test",), baselines=())
    whole = run_bench(small, tmp_path / "whole", table=table, work=pretend)
    one, other = (
        {trial.name: trial for trial in bench.finished}["darts-toy-digits-smoke-0"] for bench in (found, whole)
    )
    assert (one.genotype, one.values) == (other.genotype, other.values)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_lost_process_is_started_again(matrix: Matrix, table: ToyTable, tmp_path: Path) -> None:
    small = replace(matrix, seeds=1, methods=("darts",))
    lost = run_bench(small, tmp_path / "lost", 2, table=table, work=dies_once)
    assert (tmp_path / "lost" / "trials" / "darts-toy-digits-smoke-0" / "tried").exists()
    assert table_of(lost) == table_of(run_bench(small, tmp_path / "whole", table=table, work=pretend))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_trial_that_always_dies_takes_no_other_with_it(
    matrix: Matrix, table: ToyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "RETRIES", 1)
    result = run_bench(replace(matrix, seeds=1, methods=("darts",)), tmp_path / "b", 2, table=table, work=dies)
    assert result.missing == ("darts-toy-digits-smoke-0",)
    assert "lost its process 2 times" in result.failures[result.missing[0]]


def test_without_ray_the_extra_is_named(
    matrix: Matrix, table: ToyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'oche\[ray\]'"):
        run_bench(matrix, tmp_path / "b", address="local", table=table, work=pretend)


def test_lines_hold_all_that_is_needed(matrix: Matrix, table: ToyTable, tmp_path: Path) -> None:
    result = run_bench(matrix, tmp_path / "b", table=table, work=pretend)
    line = json.loads(result.folder.read(result.folder.TRIALS).splitlines()[0])
    assert set(line["values"]) == {"digits/test", "digits/valid", "digits/parameters", "supernet/val"}
    assert [epoch for epoch, _, _ in line["curve"]] == [1, 2, 3]
    assert line["curve"][-1][2] == line["values"]["digits/test"]
    assert line["asked"]["method"] == "darts"


# ---------------------------------------------------------------------- a study that is not finished


def test_what_was_not_run_says_so(matrix: Matrix, table: ToyTable, tmp_path: Path) -> None:
    budgets = replace(matrix, budgets=("smoke", "quick"))
    whole = run_bench(replace(matrix, seeds=2), tmp_path / "b", only=["darts"], table=table, work=pretend)
    assert {t.method for t in whole.finished} == {"darts"}
    result = run_bench(budgets, tmp_path / "b", only=["random_sampling"], table=table, work=pretend)
    _, headings, grid = overview(result)
    assert headings == ["method", "smoke", "quick"]
    by_method = {row[0]: row[1:] for row in grid}
    assert by_method["pcdarts"] == [NOT_RUN, NOT_RUN]
    assert by_method["darts"][0].endswith("(2 of 3)")
    assert by_method["darts"][1] == NOT_RUN
    assert by_method["random_sampling"][1].endswith("(3)")
    for title, names, rows in tables(result):
        said = {row[0]: dict(zip(names, row, strict=True)) for row in rows}
        smoke = title.endswith("smoke")
        assert said["darts"]["seeds"] == ("2 of 3" if smoke else "0 of 3")
        assert said["pcdarts"]["mean ± std"] == NOT_RUN
        assert {"optimum of the table", "oracle (by digits/valid)"} <= said.keys()
    text = result.folder.file(result.folder.MARKDOWN).read_text()
    assert text.count("| pcdarts-toy-digits-quick-2 | 2 |") == 1
    assert "not run" in result.folder.file("report.html").read_text()
    assert any("10 of 18 trials are missing" in note for note in result.notes)


def test_what_was_chosen_is_told_seed_by_seed(matrix: Matrix, table: ToyTable, tmp_path: Path) -> None:
    def work(trial: Trial, folder: Path) -> Outcome:
        cell = CELLS[(0, 13, 26)[trial.seed]]  # none, skip_connect, nor_conv_3x3 on all edges
        measured = {"supernet/val": 50.0 + trial.seed, "supernet/train": 60.0}
        return Outcome(str(cell), measured, warning="collapse" if trial.seed == 1 else "")

    result = run_bench(replace(matrix, methods=("darts",)), tmp_path / "b", table=table, work=work)
    ((_, headings, rows),) = searches(result)
    said = dict(zip(headings, rows[0], strict=True))
    assert (said["skips"], said["none"], said["without weights %"], said["warned"]) == (
        "0 3 0",
        "3 0 0",
        "67",
        "1 of 3",
    )
    assert said["supernet, validation %"] == "51.0 (50.0 to 52.0)"
    headings, lines = trial_table(result)
    assert dict(zip(headings, lines[1], strict=True))["genotype"] == str(CELLS[13])


def test_only_names_what_the_bench_holds(matrix: Matrix, table: ToyTable, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'pcdarts'"):
        run_bench(matrix, tmp_path / "b", only=["pdarts"], table=table, work=pretend)


def test_numbers_beside_the_search_are_kept_and_drawn(matrix: Matrix, table: ToyTable, tmp_path: Path) -> None:
    def work(trial: Trial, folder: Path) -> Outcome:
        series = {"eigenvalue": ((1, 0.5), (3, 0.25 * trial.seed))}
        return replace(pretend(trial, folder), probes={} if trial.method == "random_sampling" else series)

    run_bench(matrix, tmp_path / "b", table=table, work=work)
    again = show(tmp_path / "b")
    assert [t.probe("eigenvalue") for t in again.finished if t.method == "darts"] == [
        {1: 0.5, 3: s / 4} for s in range(3)
    ]
    drawn = pictures(again)
    assert b"Largest Hessian eigenvalue" in drawn["eigenvalue"]
    assert "kendall_tau" not in drawn


def test_each_number_that_is_kept_of_an_epoch_has_a_picture() -> None:
    assert {*NUMBERS, BEST} == set(PROBES)


def test_probes_may_be_added_to_a_bench_that_has_begun(matrix: Matrix, table: ToyTable, tmp_path: Path) -> None:
    run_bench(replace(matrix, seeds=1), tmp_path / "b", table=table, work=pretend)
    more = replace(matrix, seeds=2, probes=("gap",), settings={"probe.every": 2})
    assert not run_bench(more, tmp_path / "b", table=table, work=pretend).missing


# ---------------------------------------------------------------------- searches that ask for cells one by one


QUERIES = 8


@pytest.fixture
def asking(matrix: Matrix) -> Matrix:
    methods = ("random_search", "regularized_evolution", "local_search")
    return replace(matrix, methods=methods, seeds=1, settings={"queries": QUERIES})


def test_queries_ask_the_bench_s_table_by_what_selects(asking: Matrix, table: ToyTable, tmp_path: Path) -> None:
    """The best validation so far, and what the table's test metric says of that cell, after every query; never a test metric asked."""
    result = run_bench(asking, tmp_path / "b", table=table)
    assert not result.missing
    for trial in result.finished:
        if trial.method == "random_sampling":
            assert "best_validation" not in trial.probes
            continue
        best = trial.probe("best_validation")
        assert list(best) == list(range(1, QUERIES + 1))
        assert list(best.values()) == sorted(best.values())
        assert best[QUERIES] == trial.values["digits/valid"]
        assert [n for n, _, _ in trial.curve] == list(best)
        by_validation = {table.value(cell, "digits/valid"): table.value(cell, "digits/test") for cell in CELLS}
        assert [value for _, _, value in trial.curve] == [by_validation[score] for score in best.values()]
        settings = trial.asked["settings"]
        assert isinstance(settings, dict)
        assert (settings["evaluator"], settings["evaluator.metric"]) == ("table", "digits/valid")
    plots = dict(_plots(result, result.finished))
    best_plot, anytime = plots["best_validation"], plots["anytime"]
    assert isinstance(best_plot, Panels)
    assert isinstance(anytime, Panels)
    assert best_plot.values.keys() == anytime.values.keys() == anytime.queries == {*asking.methods}
    assert list(anytime.epochs["local_search"]) == list(range(1, QUERIES + 1))


def test_epochs_and_queries_have_scales_of_their_own(matrix: Matrix, table: ToyTable, tmp_path: Path) -> None:
    def work(trial: Trial, folder: Path) -> Outcome:
        series = {BEST: ((1, 80.0), (2, 84.0))} if trial.method == "darts" else {}
        return replace(pretend(trial, folder), probes=series)

    result = run_bench(replace(matrix, seeds=1), tmp_path / "b", table=table, work=work)
    anytime = dict(_plots(result, result.finished))["anytime"]
    picture = drawn(anytime, looks(["darts", "pcdarts", "random_sampling"]))
    assert b"darts, queries" in picture
    assert b"pcdarts, queries" not in picture
    assert b"after each epoch or query" in picture


def test_an_evaluator_of_one_s_own_is_not_replaced(asking: Matrix, table: ToyTable) -> None:
    from oche.bench.planned import trials

    own = replace(asking, settings_of={"local_search": {"evaluator": "supernet"}}, select="supernet/val")
    assert {t.request.settings.get("evaluator") for t in trials(own)} == {None, "supernet"}
    own = replace(asking, settings_of={"local_search": {"method.evaluator": "supernet"}})
    found = {t.method: t.request.settings for t in trials(own)}
    assert "evaluator.table" not in found["local_search"]
    assert found["random_search"]["evaluator.table"] == "toys"
    assert found["random_sampling"] == {}


# ---------------------------------------------------------------------- two benches in one folder


def test_a_second_bench_in_the_folder_waits_its_turn(matrix: Matrix, table: ToyTable, tmp_path: Path) -> None:
    """It is told in a sentence, runs nothing, and the first goes on as if there had been none."""
    ran: list[str] = []
    other = replace(matrix, seeds=1)

    def work(trial: Trial, folder: Path) -> Outcome:
        if not ran:
            with pytest.raises(UserError, match="Another process is writing"):
                run_bench(other, tmp_path / "b", table=table, work=lambda *_: pytest.fail("ran in a folder of another"))
        ran.append(trial.name)
        return pretend(trial, folder)

    result = run_bench(matrix, tmp_path / "b", table=table, work=work)
    lines = result.folder.read(result.folder.TRIALS).decode().splitlines()
    assert [json.loads(line)["name"] for line in lines] == ran
    assert len(ran) == len(set(ran)) == 9
    assert not run_bench(matrix, tmp_path / "b", table=table, work=pretend).missing
