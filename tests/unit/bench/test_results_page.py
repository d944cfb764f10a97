"""benchmarks/results_page.py: every number on the page is the benches', and what was written by hand stays."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from oche.bench import Matrix, run_bench
from oche.bench.matrix import SUPERNET_TRAIN
from oche.bench.planned import Trial
from oche.bench.trial import BEST, Outcome
from oche.genotype import Genotype
from oche.tables import TABLES
from reference.small_bench import ToyTable, cell, pretend

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "results_page.py"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script, which imports its neighbour by name, as when it runs."""
    spec = importlib.util.spec_from_file_location("results_page", SCRIPT)
    assert spec
    assert spec.loader
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


@pytest.mark.usefixtures("undrawn")
def test_the_page_tells_the_bench_and_keeps_the_reading(
    script: ModuleType, matrix: Matrix, table: ToyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "pictures", lambda result: {"skips": b"<svg/>", "entropy": b"<svg/>"})
    arms = {"rf_darts": {"method": "rf_darts", "settings": {"trainable": {"classifier": True}}}}
    small = replace(matrix, name="study", arms=arms, epochs=7)
    run_bench(small, tmp_path / "b", only=["darts", "rf_darts"], table=table, work=pretend)
    out = tmp_path / "docs" / "page.md"
    monkeypatch.setattr(sys, "argv", ["results_page.py", str(tmp_path / "b"), "--out", str(out)])
    script.main()
    text, details = out.read_text(), (tmp_path / "docs" / "page_details.md").read_text()
    for said in (
        "oche bench --config benchmarks/study.toml",
        "budget `smoke` with epochs 7",
        "`rf_darts`: rf_darts with `trainable.classifier = True`",
        "6 of 12 trials",
        "| pcdarts | 0 of 3 | not run |",
        "| rf_darts − pcdarts | 0 | not run |",
        "![skips](figures/study_skips.svg)",
        "[page_details.md](page_details.md)",
        "Not written yet.",
    ):
        assert said in text, said
    assert text.index("<!-- reading -->") < text.index("| method |") < text.index("![skips]")
    assert "![entropy](figures/study_entropy.svg)" in details
    assert "### digits/valid" in details
    assert "digits/valid:" not in text
    assert (tmp_path / "docs" / "study.jsonl").read_bytes() == (tmp_path / "b" / "trials.jsonl").read_bytes()
    assert (tmp_path / "docs" / "study.csv").read_bytes() == (tmp_path / "b" / "results.csv").read_bytes()
    assert (tmp_path / "docs" / "figures" / "study_skips.svg").read_bytes() == b"<svg/>"
    out.write_text(text.replace("Not written yet.", "It collapses."))
    script.main()
    assert "It collapses." in out.read_text()
    assert "Not written yet." not in out.read_text()


@pytest.mark.usefixtures("undrawn")
def test_pairs_stand_beside_each_other_the_best_first(
    script: ModuleType, matrix: Matrix, table: ToyTable, tmp_path: Path
) -> None:
    methods = ("darts", "rf_darts", "pcdarts", "rf_pcdarts", "gdas", "rf_gdas")
    result = run_bench(
        replace(matrix, methods=methods),
        tmp_path / "b",
        only=["darts", "rf_darts", "pcdarts", "random_sampling"],
        table=table,
        work=pretend,
    )
    ((_, headings, rows),) = script.pairs(result, "rf_{}")
    beside = ["- largest", "- as large"]
    assert headings[:8] == ["method", "alone", *beside, "rf_…", *beside, "difference"]
    searched = [row for row in rows if row[0] in result.matrix.searched]
    by = {
        m: {t.seed: t.values["digits/test"] or 0.0 for t in result.finished if t.method == m}
        for m in (*methods, "random_sampling")
    }
    best = {
        m: max(np.mean([*by[n].values()]) for n in (m, f"rf_{m}") if by.get(n))
        for m in ("darts", "pcdarts", "random_sampling")
    }
    assert [row[0] for row in searched] == [*sorted(best, key=lambda m: -best[m]), "gdas"]
    said = {row[0]: row[1:] for row in rows}
    gap = np.mean([by["rf_darts"][seed] - by["darts"][seed] for seed in range(3)])
    assert said["darts"][6] == f"{gap:+.2f}"
    largest = table.column("digits/test")[int(table.column("digits/parameters").argmax())]
    assert said["darts"][1] == f"{np.mean([*by['darts'].values()]) - largest:+.2f}"
    assert said["largest cell (by parameters)"][1] == "+0.00"
    over = {r.method: r.over_size for r in result.rows if r.metric == "digits/test"}
    assert said["darts"][2] == f"{over['darts']:+.2f}" != f"{over['rf_darts']:+.2f}" == said["darts"][5]
    assert said["pcdarts"][3:7] == ["not run", "", "", "not run"]
    assert said["gdas"][:7] == ["not run", "", "", "not run", "", "", "not run"]
    assert said["random_sampling"][3:] == [""] * 7  # there is nothing to freeze
    assert "optimum of the table" in said


CONVOLUTIONS = {"darts": (2, 1, 3), "rf_darts": (0, 1, 1), "darts_x2": (2, 1, 2), "rf_darts_x2": (1, 2, 3)}
"""3x3 convolutions of each seed's cell: by the table each is worth 4 % test accuracy, but for a little."""


def planted(trial: Trial, folder: Path) -> Outcome:
    """A trial that finds a cell of so many convolutions, and skip connections else; its supernet's accuracy is ten times as many."""
    count = CONVOLUTIONS.get(trial.method, (0, 0, 0))[trial.seed % 3]
    found = cell(*["nor_conv_3x3"] * count, *["skip_connect"] * (3 - count))
    asked = {BEST: ((1, 80.0),)} if trial.method == "random_search" else {}
    return replace(pretend(trial, folder), genotype=str(found), measured={SUPERNET_TRAIN: 10.0 * count}, probes=asked)


@pytest.mark.usefixtures("undrawn")
def test_more_steps_are_judged_by_what_was_written_down_before(
    script: ModuleType, matrix: Matrix, table: ToyTable, tmp_path: Path
) -> None:
    arms = {name: {"method": name.removesuffix("_x2"), "epochs": 8} for name in CONVOLUTIONS if "_x2" in name}
    asked = replace(matrix, methods=("darts", "rf_darts"), arms=arms, epochs=4)
    early = run_bench(asked, tmp_path / "b", only=["darts", "rf_darts", "darts_x2"], table=table, work=planted)
    (said,) = script.verdicts(early, "rf_{}", "digits/test")
    assert said == "darts: more steps are not judged before all 3 seeds have run at both ends; 0 have."
    result = run_bench(asked, tmp_path / "b", table=table, work=planted)
    ((_, headings, rows),) = script.lengths(result, "rf_{}", "digits/test")
    value = {
        arm: [table.value(cell(*["nor_conv_3x3"] * n, *["skip_connect"] * (3 - n)), "digits/test") for n in counts]
        for arm, counts in CONVOLUTIONS.items()
    }
    short, long = (np.subtract(value[f"rf_darts{end}"], value[f"darts{end}"]) for end in ("", "_x2"))
    assert [row[:2] for row in rows] == [["darts", "4"], ["darts", "8"]]
    for row, gaps, end in zip(rows, (short, long), ("", "_x2"), strict=True):
        told = dict(zip(headings[8:], row[8:], strict=True))
        theirs = stats.ttest_1samp(gaps, 0.0)
        low, high = theirs.confidence_interval(0.95)
        assert told == {
            "difference, by seed": " ".join(f"{gap:+.2f}" for gap in gaps),
            "95 % interval": f"[{low:+.2f}, {high:+.2f}]",
            "that is": "worse" if high < 0 else "better" if low > 0 else "not told apart",
        }
        assert row[2] == f"{np.mean(value[f'darts{end}']):.2f} ± {np.std(value[f'darts{end}'], ddof=1):.2f}"
        assert row[6:8] == [
            " ".join(str(3 - n) for n in CONVOLUTIONS[f"rf_darts{end}"]),
            f"{10 * np.mean(CONVOLUTIONS[f'rf_darts{end}']):.0f}",
        ]
    assert (np.sum(long > short), headings[6:8]) == (3, ["without weights", "supernet %"])
    (said,) = script.verdicts(result, "rf_{}", "digits/test")
    assert said.startswith(
        'darts: "more steps mend it" is held up: from 4 to 8 epochs the difference rises in 3 of 3 seeds.'
    )
    assert said.endswith("more accurate in 3, and the cell has fewer operations without weights in 3.")
    assert [row[0] for row in script.pairs(result, "rf_{}")[0][2]].count("darts") == 1
    assert "darts_x2" not in {row[0] for row in script.pairs(result, "rf_{}")[0][2]}


@pytest.mark.parametrize(("long", "word"), [((1, 2, 3), "held up"), ((0, 1, 1), "refuted"), ((1, 0, 3), "undecided")])
@pytest.mark.usefixtures("undrawn")
def test_more_steps_mend_it_in_every_seed_or_in_none(
    script: ModuleType,
    matrix: Matrix,
    table: ToyTable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    long: tuple[int, int, int],
    word: str,
) -> None:
    monkeypatch.setitem(CONVOLUTIONS, "rf_darts_x2", long)
    monkeypatch.setitem(CONVOLUTIONS, "darts_x2", CONVOLUTIONS["darts"])
    arms = {name: {"method": name.removesuffix("_x2"), "epochs": 8} for name in CONVOLUTIONS if "_x2" in name}
    asked = replace(matrix, methods=("darts", "rf_darts"), arms=arms, epochs=4)
    result = run_bench(asked, tmp_path / "b", table=table, work=planted)
    (said,) = script.verdicts(result, "rf_{}", "digits/test")
    assert f'"more steps mend it" is {word}:' in said


@pytest.mark.usefixtures("undrawn")
def test_searches_stand_above_or_below_what_costs_none(
    script: ModuleType, matrix: Matrix, table: ToyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONVOLUTIONS, "pcdarts", (0, 1, 1))
    monkeypatch.setitem(CONVOLUTIONS, "gdas", (3, 2, 2))
    methods = ("darts", "gdas", "pcdarts", "largest_cell", "random_search")
    arms = {"still": {"method": "snas"}}
    asked = replace(matrix, methods=methods, arms=arms, seeds=6)
    result = run_bench(asked, tmp_path / "b", table=table, work=planted)
    value = {
        name: [t.values["digits/test"] or 0.0 for t in result.finished if t.method == name]
        for name in ("darts", "gdas", "pcdarts", "still")
    }
    random, largest = table.column("digits/test").mean(), table.value(cell(*["nor_conv_3x3"] * 3), "digits/test")
    above, beside = script.standing(result, "digits/test")
    for said, bar in ((above, random), (beside, largest)):
        ends = {name: stats.ttest_1samp(v, 0.0).confidence_interval(0.95) for name, v in value.items() if np.ptp(v)}
        over, under = (
            {name for name, (low, high) in ends.items() if side(low, high, bar)}
            for side in (lambda low, high, bar: low > bar, lambda low, high, bar: high < bar)
        )
        found = re.search(r"above it: (.*)\. With all below: (.*)\.$", said)
        assert found
        assert [set(text.split(", ")) for text in found.groups()] == [over or {"none"}, under or {"none"}]
        count = sum(np.mean(v) > bar for v in value.values())
        assert said.startswith(f"Of 4 rows of searches with a supernet, {count} have a mean above ")
    assert "above it: gdas. With all below: pcdarts." in above
    assert "above it: none" in beside
    assert f"the table's mean of {random:.2f}" in above
    assert f"the largest cell's {largest:.2f}." in beside


@pytest.mark.usefixtures("undrawn")
def test_two_benches_are_on_one_page_and_places_have_their_skips(
    script: ModuleType, matrix: Matrix, table: ToyTable, tmp_path: Path
) -> None:
    places = replace(matrix, name="places", budgets=("smoke", "quick"))
    results = [
        run_bench(replace(matrix, name="one"), tmp_path / "one", table=table, work=pretend),
        run_bench(places, tmp_path / "places", only=["darts"], table=table, work=pretend),
    ]
    text = script.page("Both", results, "", "both_details.md", {"one": {}, "places": {}}, None)
    assert text.index("## one") < text.index("## places")
    _, headings, rows = script.skips(results[1])
    assert headings == ["method", "smoke", "quick"]
    found = {row[0]: row[1:] for row in rows}
    assert found["pcdarts"] == ["not run", "not run"]
    quick = [t for t in results[1].finished if t.budget == "quick"]
    assert found["darts"][1] == " ".join(str(Genotype.parse(t.genotype, "toy").count("skip_connect")) for t in quick)


def test_a_difference_is_that_of_the_seeds_both_have(script: ModuleType) -> None:
    a, b = {0: 94.0, 1: 93.0, 2: 95.0, 9: 10.0}, {0: 90.0, 1: 91.0, 2: 90.5, 7: 99.0}
    seeds, gap, interval, p, verdict = script.difference(a, b)
    theirs = stats.ttest_rel([94, 93, 95], [90, 91, 90.5])
    low, high = theirs.confidence_interval(0.95)
    assert (seeds, gap, verdict) == ("3", "+3.50", "better")
    assert interval == f"[{low:+.2f}, {high:+.2f}]"
    assert p.startswith(f"{theirs.pvalue:.3f}")
    assert script.difference(b, a)[-1] == "worse"
    assert script.difference({0: 1.0, 1: 2.0, 2: 3.0}, {0: 2.0, 1: 2.0, 2: 2.0})[-1] == "not told apart"
    few = script.difference({0: 1.0, 1: 9.0}, {0: 0.0, 1: 0.0})
    assert (few[2], few[-1]) == ("", "no verdict: fewer than 3 seeds")


def test_a_folder_that_is_no_bench_is_refused(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["results_page.py", str(tmp_path / "none"), "--out", str(tmp_path / "page.md")])
    with pytest.raises(SystemExit) as stop:
        script.main()
    assert stop.value.code == 2
    assert "no run folder" in capsys.readouterr().err


def test_what_is_computed_from_the_table_is_the_table_s(script: ModuleType, data_folder: Path) -> None:
    """The published numbers that the table itself can answer for."""
    answers = TABLES["nb201"](data_folder)
    metrics = ("cifar10/test", "cifar100/test", "imagenet16-120/test")
    skips = Genotype.parse(
        "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|"
    )
    assert script.PUBLISHED["darts"].values == tuple(f"{answers.value(skips, m):.2f}" for m in metrics)
    assert f"best run {answers.value(answers.genotype(9930), metrics[0]):.2f}" in script.PUBLISHED["rf_darts"].more
    best = [f"{answers.value(answers.genotype(9930), m):.2f} ± 0.00" for m in metrics]
    assert list(script.PUBLISHED["drnas"].values) == best  # the same cell in every run
    assert {p.source for p in script.PUBLISHED.values()} <= script.SOURCES.keys()
