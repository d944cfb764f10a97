"""What costs no search: exact expectations against enumeration and simulation, published figures, and what a result shows."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oche.bench.baselines import MOST, best_of, by_size, chances
from oche.bench.formats import to_csv
from oche.bench.matrix import Matrix
from oche.bench.render import overview, tables
from oche.bench.result import BenchResult, read
from oche.bench.runner import run_bench
from oche.bench.tables import LARGEST, Facts, facts
from oche.tables import TABLES, Table
from reference.small_bench import CELLS, ToyTable, pretend

scores_of = st.lists(st.integers(0, 4).map(float) | st.just(float("nan")), min_size=1, max_size=7)


@given(scores_of)
def test_chances_are_those_of_all_draws(scores: list[float]) -> None:
    """Every set of n cells, the prize shared by the best of it; ties and cells without a score included."""
    known = [i for i, score in enumerate(scores) if score == score]
    found = list(chances(np.array(scores), 4))
    assert len(found) == min(4, len(known))
    for n, weights in enumerate(found, start=1):
        expected, sets = np.zeros(len(scores)), list(itertools.combinations(known, n))
        for drawn in sets:
            top = max(scores[i] for i in drawn)
            tied = [i for i in known if scores[i] == top]  # of equal cells any may be the one
            expected[tied] += 1 / len(tied) / len(sets)
        np.testing.assert_allclose(weights, expected, atol=1e-12)


def test_mean_and_deviation_by_hand() -> None:
    """Two of three: 3 beats all in two of three pairs."""
    ((first, spread), (second, less)) = best_of(np.array([1.0, 2.0, 3.0]), np.array([0.0, 30.0, 60.0]), 2)
    assert (first, second) == pytest.approx((30.0, 50.0))
    assert (spread**2, less**2) == pytest.approx((600.0, 200.0))
    assert best_of(np.array([1.0, 2.0]), np.array([5.0, np.nan]), 9) == [(5.0, 0.0)], (
        "a cell without a value is not drawn"
    )


def test_the_best_of_all_is_the_best() -> None:
    rng = np.random.default_rng(0)
    scores, values = rng.permutation(MOST).astype(float), rng.normal(size=MOST)
    mean, spread = best_of(scores, values)[-1]
    assert mean == pytest.approx(values[scores.argmax()])
    assert spread == pytest.approx(0.0, abs=1e-6)


def test_as_large_means_the_same_number_of_parameters() -> None:
    sizes, scores = np.array([7.0, 7.0, 7.0, 9.0, np.nan]), np.array([1.0, 3.0, 2.0, 0.0, 5.0])
    assert by_size(sizes, scores, np.array([10.0, 20.0, 30.0, 40.0, 50.0])) == {"7": 20.0, "9": 40.0}
    many = by_size(np.ones(40), np.arange(40.0), np.arange(40.0))["1"]
    assert many == pytest.approx((40 + 1) * 10 / 11 - 1), "the largest of ten of forty"


# ---------------------------------------------------------------------- NAS-Bench-201


@pytest.fixture(scope="module")
def answers(data_folder: Path) -> Table:
    return TABLES["nb201"](data_folder)


@pytest.mark.parametrize(("n", "percent"), [(1, 87.06), (5, 92.60), (10, 93.03), (50, 93.62)])
def test_the_best_of_n_random_cells_by_validation(answers: Table, n: int, percent: float) -> None:
    """Test accuracy on CIFAR-10; the exact mean is within what 20,000 simulated searches say."""
    scores, values = answers.column("cifar10/valid"), answers.column("cifar10/test")
    mean, spread = best_of(scores, values, n)[-1]
    assert mean == pytest.approx(percent, abs=0.005)
    rng = np.random.default_rng(n)
    drawn = rng.integers(0, len(scores), (20_000, n))
    outcomes = values[drawn[np.arange(20_000), scores[drawn].argmax(axis=1)]]
    assert mean == pytest.approx(outcomes.mean(), abs=4 * spread / 20_000**0.5 + 0.01)  # cells may be drawn twice there
    assert spread == pytest.approx(outcomes.std(), rel=0.05)


def test_the_largest_cell_is_hard_to_beat(answers: Table) -> None:
    reported = ("cifar10/test", "cifar100/test", "imagenet16-120/test")
    (largest,) = (choice for choice in facts(answers, reported, "cifar10/valid", ()).fixed if choice.name == LARGEST)
    assert largest.genotype == answers.cells[1462]
    assert [round(largest.values[metric] or 0.0, 2) for metric in reported] == [93.76, 71.11, 41.44]
    assert (answers.column("cifar10/test") > 93.76).mean() < 0.02


def test_one_fact_for_each_size_of_the_benchmark(answers: Table) -> None:
    """28 numbers of parameters: as many convolutions of each kind as fit on six edges."""
    found = facts(answers, ("cifar10/test",), "cifar10/valid", ())
    assert len(found.sizes) == 28
    assert found.as_large(1_531_546.0, "cifar10/test") == pytest.approx(93.76)
    assert found.as_large(12.0, "cifar10/test") is None
    assert Facts.read(json.loads(json.dumps(found.table()))) == found


# ---------------------------------------------------------------------- in a result


def unseen(result: BenchResult) -> None:
    """Draws nothing: pictures take seconds."""


@pytest.fixture
def result(matrix: Matrix, table: ToyTable, tmp_path: Path) -> BenchResult:
    return run_bench(matrix, tmp_path / "b", table=table, work=pretend, render=unseen)


def test_every_mean_has_them_beside_it(result: BenchResult, table: ToyTable) -> None:
    tested, valid, sizes = (table.column(f"digits/{name}") for name in ("test", "valid", "parameters"))
    largest = tested[int(sizes.argmax())]
    for row in result.rows:
        if row.metric == "digits/test":
            assert row.over_largest == pytest.approx(row.summary.mean - largest)
    (darts,) = (r for r in result.rows if (r.method, r.metric) == ("darts", "digits/test"))
    over = []
    for trial in result.finished:
        if trial.method == "darts":
            same = np.flatnonzero(sizes == trial.values["digits/parameters"])
            rivals = best_of(valid[same], tested[same], 10)[-1][0]
            over.append((trial.values["digits/test"] or 0.0) - rivals)
    assert darts.over_size == pytest.approx(np.mean(over))
    assert len({round(value, 6) for value in over}) > 1


def test_random_cells_as_many_as_seeds_and_queries(result: BenchResult, table: ToyTable) -> None:
    """Three seeds, so the best of three beside the seed that is picked; a query-based search's number of queries the same way."""
    fixed = {r.method: r for r in result.rows if r.fixed and r.metric == "digits/test"}
    assert {f"best of {n} random cells" for n in (3, 5, 10)} <= fixed.keys()
    assert "best of 50 random cells" not in fixed, "the table has 27"
    mean, spread = best_of(table.column("digits/valid"), table.column("digits/test"), 3)[-1]
    assert fixed["best of 3 random cells"].summary.mean == pytest.approx(mean)
    assert fixed["best of 3 random cells"].summary.std == pytest.approx(spread)
    asked = tuple(replace(t, probes={"best_validation": [[k, 80.0] for k in range(1, 8)]}) for t in result.finished)
    assert "best of 7 random cells" in {r.method for r in replace(result, finished=asked).rows}


def test_the_tables_show_them(result: BenchResult, matrix: Matrix, tmp_path: Path, table: ToyTable) -> None:
    for _, headings, rows in (overview(result), *tables(result)):
        assert {"- largest", "- as large"} <= set(headings)
        assert {LARGEST, "best of 5 random cells", "mean of the table"} <= {line[0] for line in rows}
        assert all(len(line) == len(headings) for line in rows)
    assert "over_largest,over_size" in to_csv(result).splitlines()[0]
    places = replace(matrix, budgets=("smoke", "quick"))
    several = run_bench(places, tmp_path / "two", table=table, work=pretend, render=unseen)
    _, headings, rows = overview(several)
    assert {LARGEST, "best of 5 random cells"} <= {line[0] for line in rows}
    assert all(len(line) == len(headings) for line in rows)


def test_a_bench_without_a_table_has_no_empty_columns(matrix: Matrix, tmp_path: Path) -> None:
    trained = replace(matrix, evaluate="train", table=None, metrics=(), select=None)
    result = run_bench(trained, tmp_path / "b", work=pretend, render=unseen)
    for _, headings, _ in (overview(result), *tables(result)):
        assert "- largest" not in headings


def test_an_older_bench_is_read(result: BenchResult) -> None:
    """Its table.json has no best of random cells, and its trials no sizes."""
    kept = json.loads(result.folder.read(result.folder.FACTS))
    older = {key: kept[key] for key in ("name", "optimum", "mean")}
    older["fixed"] = [choice for choice in kept["fixed"] if choice["name"] != LARGEST]
    result.folder.write(result.folder.FACTS, json.dumps(older).encode())
    again = read(result.folder.path)
    assert all(r.over_size is None and r.over_largest is None for r in again.rows)
    assert "- largest" not in overview(again)[1]
    assert len(CELLS) == 27
