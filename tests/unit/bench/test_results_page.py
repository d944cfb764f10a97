"""benchmarks/results_page.py: every number on the page is the benches', and what was written by hand stays."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from oche.bench import Matrix, run_bench
from oche.benchmarks import TABLES
from oche.genotype import Genotype
from reference.small_bench import ToyTable, pretend

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "results_page.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results_page", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("undrawn")
def test_the_page_tells_the_bench_and_keeps_the_reading(
    script: ModuleType, matrix: Matrix, table: ToyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "pictures", lambda result: {"skips": b"<svg/>"})
    arms = {"rf_darts": {"method": "rf_darts", "settings": {"trainable": {"classifier": True}}}}
    small = replace(matrix, name="study", arms=arms, epochs=7)
    run_bench(small, tmp_path / "b", only=["darts", "rf_darts"], table=table, work=pretend)
    out = tmp_path / "docs" / "page.md"
    monkeypatch.setattr(sys, "argv", ["results_page.py", str(tmp_path / "b"), "--out", str(out)])
    script.main()
    text = out.read_text()
    for said in (
        "oche bench --config benchmarks/study.toml",
        "budget `smoke` with epochs 7",
        "`rf_darts`: rf_darts with `trainable.classifier = True`",
        "6 of 12 trials",
        "| pcdarts | 0 of 3 | not run |",
        "| rf_darts − pcdarts | 0 | not run |",
        "![skips](figures/study_skips.svg)",
        "Not written yet.",
    ):
        assert said in text, said
    assert (tmp_path / "docs" / "figures" / "study_skips.svg").read_bytes() == b"<svg/>"
    out.write_text(text.replace("Not written yet.", "It collapses."))
    script.main()
    assert "It collapses." in out.read_text()
    assert "Not written yet." not in out.read_text()


def test_a_difference_is_that_of_the_seeds_both_have(script: ModuleType) -> None:
    a, b = {0: 94.0, 1: 93.0, 2: 95.0, 9: 10.0}, {0: 90.0, 1: 91.0, 2: 90.5, 7: 99.0}
    seeds, gap, interval, p, verdict = script.difference(a, b)
    gaps = [4.0, 2.0, 4.5]
    found = stats.bootstrap((gaps,), np.mean, n_resamples=9999, rng=np.random.default_rng(0)).confidence_interval
    assert (seeds, gap, verdict) == ("3", "+3.50", "better")
    assert interval == f"[{found.low:+.2f}, {found.high:+.2f}]"
    assert p.startswith(f"{stats.ttest_rel([94, 93, 95], [90, 91, 90.5]).pvalue:.3f}")
    assert script.difference(b, a)[-1] == "worse"
    assert script.difference({0: 1.0, 1: 2.0, 2: 3.0}, {0: 2.0, 1: 2.0, 2: 2.0})[-1] == "not told apart"
    assert script.difference({0: 1.0}, {0: 2.0})[-1] == "one seed: no verdict"


def test_a_folder_that_is_no_bench_is_refused(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["results_page.py", str(tmp_path / "none"), "--out", str(tmp_path / "page.md")])
    with pytest.raises(SystemExit) as stop:
        script.main()
    assert stop.value.code == 2
    assert "no run folder" in capsys.readouterr().err


def test_what_is_computed_from_the_table_is_the_table_s(script: ModuleType, data_folder: Path) -> None:
    """The published rows that the table itself can answer for."""
    answers = TABLES["nb201"](data_folder)
    metrics = ("cifar10/test", "cifar100/test", "imagenet16-120/test")
    skips = Genotype.parse(
        "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|"
    )
    rows = {row[0]: row[1:4] for row in script.PUBLISHED}
    assert rows["DARTS, first and second order"] == tuple(f"{answers.value(skips, m):.2f}" for m in metrics)
    assert rows["optimum of the table"] == tuple(f"{answers.best(m):.2f}" for m in metrics)
    assert rows["RF-DARTS, best run"][0] == f"{answers.value(answers.genotype(9930), metrics[0]):.2f}"
