"""Pages of results against the numbers behind them, derived a second way; none trains or searches anything."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from pathlib import Path
from statistics import mean, stdev

import pytest

from oche.data import none
from oche.methods.zero_cost import LOWEST, ZeroCost
from oche.search.state import Problem
from oche.spaces.nb201 import NB201Space
from oche.tables import TABLES, Table
from oche.tasks import Classify
from reference.tiny import tiny_data

RESULTS = Path(__file__).parents[3] / "docs" / "results"
BASELINES = ("random_search", "regularized_evolution")
LEARNED = ("gaussian_process", "bananas", "dsm_nas", "svge", "oncenas", "dnas")
QUANTILE = 2.0930240544
"""Of Student's t with 19 degrees of freedom, at 97.5 %."""


@pytest.fixture(scope="module")
def table(data_folder: Path) -> Table:
    return TABLES["nb201"](data_folder)


def lines(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (RESULTS / name).read_text(encoding="utf-8").splitlines()]


def rows(page: str, heading: str) -> dict[str, list[str]]:
    """The rows of the first table under a heading, by their first column."""
    text = (RESULTS / page).read_text(encoding="utf-8").split(heading)[1]
    found = re.search(r"\|[- |]+\|\n((?:\|.*\n)+)", text)
    assert found
    cells = [[c.strip().strip("`") for c in line.strip("|").split("|")] for line in found[1].splitlines()]
    return {name: rest for name, *rest in cells}


# ------------------------------------------------------------------ searches in learned spaces


def searches() -> dict[str, dict[int, list[int]]]:
    found: dict[str, dict[int, list[int]]] = defaultdict(dict)
    for record in lines("latent_searches.jsonl"):
        assert record["seed"] not in found[str(record["method"])]
        found[str(record["method"])][int(str(record["seed"]))] = record["cells"]  # type: ignore[assignment]
    return found


def test_every_search_has_twenty_seeds_of_a_hundred_cells() -> None:
    found = searches()
    assert found.keys() == {*BASELINES, *LEARNED}
    for name, by_seed in found.items():
        assert sorted(by_seed) == list(range(20)), name
        assert {len(cells) for cells in by_seed.values()} == {100}, name
        if name not in ("regularized_evolution", "dsm_nas"):  # which may ask for a cell again, and pay for it
            assert {len(set(cells)) for cells in by_seed.values()} == {100}, name


def interval(values: list[float]) -> str:
    half = QUANTILE * stdev(values) / math.sqrt(20)
    return f"{mean(values):.2f} [{mean(values) - half:.2f}, {mean(values) + half:.2f}]"


def test_the_page_of_learned_spaces_is_that_of_its_searches(table: Table) -> None:
    """Regret after 10, 25, 50 and 100 queries, the cells found, and their differences from both baselines, seed by seed."""
    found, page = searches(), rows("latent.md", "## Anytime regret")
    accuracies = rows("latent.md", "## CIFAR-10 test accuracy")
    valid, test = (table.column(metric).tolist() for metric in ("cifar10/valid", "cifar10/test"))
    assert page.keys() == accuracies.keys() == found.keys()
    chosen = {
        name: [test[max(cells, key=lambda n: valid[n])] for _, cells in sorted(seeds.items())]
        for name, seeds in found.items()
    }
    for name, seeds in found.items():
        regrets = [
            interval([max(valid) - max(valid[n] for n in cells[:count]) for cells in seeds.values()])
            for count in (10, 25, 50, 100)
        ]
        assert page[name] == ["20", *regrets]
        assert accuracies[name][0] == interval(chosen[name])
        for other, said in zip(BASELINES, accuracies[name][1:], strict=True):
            if other != name:
                off = [a - b for a, b in zip(chosen[name], chosen[other], strict=True)]
                sure = abs(mean(off)) > QUANTILE * stdev(off) / math.sqrt(20)
                word = ("better" if mean(off) > 0 else "worse") if sure else "not told apart"
                assert said == f"{interval(off)}: {word}"


# ------------------------------------------------------------------ zero-cost scores


def ranks(values: list[float]) -> list[float]:
    """From 1, equal values with the mean of their ranks."""
    count, below, found = Counter(values), 0, dict[float, float]()
    for value in sorted(count):
        found[value] = below + (count[value] + 1) / 2
        below += count[value]
    return [found[value] for value in values]


def correlation(a: list[float], b: list[float]) -> float:
    """Pearson's, by its definition."""
    x, y = ([v - mean(values) for v in values] for values in (a, b))
    return sum(p * q for p, q in zip(x, y, strict=True)) / math.sqrt(sum(p * p for p in x) * sum(q * q for q in y))


@pytest.mark.parametrize(
    ("name", "theirs"), [("naswot", "naswot"), ("logsynflow", "logsynflow"), ("synflow", "log10_synflow")]
)
def test_scores_rank_three_hundred_cells_as_the_table_does(name: str, theirs: str, table: Table) -> None:
    published = table.column(f"zerocost/cifar10/{theirs}").tolist()
    both = [
        (float(str(row[name])), published[int(str(row["index"]))])
        for row in lines("zero_cost.jsonl")
        if float(str(row[name])) > LOWEST and math.isfinite(published[int(str(row["index"]))])
    ]
    assert len(both) >= 300
    found = correlation(*(ranks(list(values)) for values in zip(*both, strict=True)))
    assert found >= 0.9
    said = rows("zero_cost.md", "# Zero-cost scores")[name]
    assert said[2:4] == [f"{found:.3f}", str(len(both))]


def test_the_scores_of_the_page_are_those_of_today_s_code(table: Table) -> None:
    """logsynflow looks at no image, so that its rows can be computed again; and what is counted."""
    data = tiny_data(2, (32, 32), channels=3, classes=10)
    problem = Problem(NB201Space(size=(32, 32), outputs=10), data, Classify(), none(data), 1, 2, 0)
    own = [row for row in lines("zero_cost.jsonl") if float(str(row["logsynflow"])) > 0][:1]
    for name in ("logsynflow", "parameters", "multiply_adds"):
        score = ZeroCost(name, images=2).ready(problem, ())
        found = [score(table.genotype(int(str(row["index"])))) for row in own]
        assert found == [pytest.approx(row[name], rel=1e-6) for row in own], name
