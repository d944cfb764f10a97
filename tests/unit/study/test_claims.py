"""The tables and verdicts of a study, from trials whose numbers are made up so that the answer is known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev

import pytest
from scipy import stats

from oche.bench import BenchResult, Matrix, run_bench
from oche.bench.matrix import TRAINED_TEST, TRAINED_VAL
from oche.bench.pictures import looks
from oche.bench.planned import Trial
from oche.bench.trial import Outcome
from oche.errors import UserError
from oche.study.claims import HOLDS, NOT, OPEN, Roles, judged
from oche.study.degeneration import FREE_SHARE, PARAMETERS
from oche.study.measure import USUAL
from oche.study.pictures import Cloud, plots, svg
from oche.study.tables import decodings, filled, sheets, told, value
from reference.small_bench import CELLS

pytestmark = pytest.mark.usefixtures("undrawn")

ARMS: dict[str, dict[str, object]] = {name: {"method": "darts"} for name in ("base", "penalised", "two", "s0", "s2")}
ROLES = Roles("base", "penalised", "two", "s0", ("s2",))
NOISE = (-1.0, 0.0, 1.0)  # by seed: a standard deviation of 1


def made(
    path: Path, scores: Mapping[str, float], op: float = 0.0, free: Mapping[str, float] | None = None, **fields: object
) -> BenchResult:
    """A bench of these mean scores: the continuous network's, which the final one shares; `op` of the decoding op."""

    def work(trial: Trial, folder: Path) -> Outcome:
        score = scores[trial.method] + NOISE[trial.seed]
        values = {
            TRAINED_TEST: score,
            TRAINED_VAL: score,
            USUAL: 30.0,
            "entropy": 90.0,
            "gate/0": 10.0,
            "max op/0": 20.0,
        }
        for name, own in (("continuous", score), ("op", op + NOISE[trial.seed]), ("edge@0.50", score - 1)):
            values |= {f"{name}/raw": own - 2, f"{name}/re-estimated": own}
        share = (free or {}).get(trial.method, 0.2)
        series = {FREE_SHARE: ((0, 0.0), (1, share)), PARAMETERS: ((0, 100.0), (1, 40.0 if trial.seed else 9.0))}
        return Outcome(str(CELLS[0]), values, seconds=10.0, probes=series)

    budget = fields.pop("budget", "quick")
    matrix = Matrix("m", (), ("toy",), ("digits",), (str(budget),), 3, arms=ARMS, baseline="base", baselines=())
    return run_bench(replace(matrix, **fields), path, work=work)  # type: ignore[arg-type]


def verdicts(result: BenchResult) -> dict[str, str]:
    (sheet,) = judged(result, ROLES)
    return {row[0][:2]: row[3] for row in sheet[2]}


LEVEL = dict.fromkeys(ARMS, 50.0)


@pytest.mark.parametrize(
    ("changed", "op", "claim", "verdict"),
    [
        ({}, 46.9, "C1", HOLDS),  # an error of 3.1 against a sigma of 1
        ({}, 47.1, "C1", NOT),
        ({"penalised": 47.9}, 0, "C2", HOLDS),
        ({"penalised": 48.1}, 0, "C2", NOT),
        ({"penalised": 55.0}, 0, "C2", NOT),
        ({"two": 50.0}, 0, "C3", HOLDS),
        ({"two": 50.1}, 0, "C3", NOT),
        ({"s2": 52.1}, 0, "C7", NOT),  # better, but not less degenerated
        ({"s2": 51.9}, 0, "C7", NOT),
    ],
)
def test_a_claim_is_judged_by_its_criterion(
    tmp_path: Path, changed: dict[str, float], op: float, claim: str, verdict: str
) -> None:
    assert verdicts(made(tmp_path / "b", {**LEVEL, **changed}, op))[claim] == verdict


def test_another_split_must_also_have_fewer_operations_without_weights(tmp_path: Path) -> None:
    scores = {**LEVEL, "s2": 52.1}
    assert verdicts(made(tmp_path / "b", scores, free={"s2": 0.1, "s0": 0.3}))["C7"] == HOLDS
    assert verdicts(made(tmp_path / "c", scores, free={"s2": 0.3, "s0": 0.3}))["C7"] == NOT


def test_one_split_that_passes_is_enough_and_degeneration_has_to_be_measured(tmp_path: Path) -> None:
    roles = replace(ROLES, splits=("s2", "two"))
    result = made(tmp_path / "b", {**LEVEL, "s2": 52.1}, free={"s2": 0.1, "s0": 0.3})
    (sheet,) = judged(result, roles)
    found = {row[0].partition(":")[0]: row[2:] for row in sheet[2]}
    assert found["C7"] == ["1 of 2: s2", HOLDS]
    assert (found["its arm s2"][1], found["its arm two"][1]) == (HOLDS, NOT)
    blind = replace(result, finished=tuple(replace(t, probes={}) for t in result.finished))
    (sheet,) = judged(blind, ROLES)
    assert {row[0][:2]: row[3] for row in sheet[2]}["C7"] == f"{OPEN}: degeneration was not measured"


def test_trained_alpha_is_held_against_random_alpha_of_its_entropy_seed_by_seed(tmp_path: Path) -> None:
    """Against scipy's interval of the differences, in a study whose other level has no such arm."""
    result = made(tmp_path / "b", {**LEVEL, "s2": 49.0})
    moved = tuple(
        replace(t, values={**t.values, TRAINED_TEST: t.values[TRAINED_TEST] + 0.1 * t.seed}) if t.method == "s2" else t  # type: ignore[operator]
        for t in result.finished
    )
    roles = Roles(levels={"decided": {"single": "base", "random": "s2"}, "other": {"fixed": "s0", "splits": ["two"]}})
    sheets_ = judged(replace(result, finished=moved), roles)
    assert [heading for heading, *_ in sheets_] == [
        "Claims: toy, digits, quick, decided", "Claims: toy, digits, quick, other"
    ]  # fmt: skip
    (row,) = [r for r in sheets_[0][2] if r[0].startswith("Ours")]
    low, high = stats.ttest_1samp([1.0, 0.9, 0.8], 0.0).confidence_interval(0.95)
    assert row[2:] == [f"+0.90 [{low:.2f}, {high:.2f}] points over 3 seeds; entropy 90.0 and 90.0 %", HOLDS]
    backwards = judged(replace(result, finished=moved), Roles(single="s2", random="base"))
    assert next(r for r in backwards[0][2] if r[0].startswith("Ours"))[3] == NOT
    one = replace(result, finished=tuple(t for t in moved if t.seed == 0))
    assert next(r for r in judged(one, roles)[0][2] if r[0].startswith("Ours"))[3].startswith(OPEN)


def test_a_level_is_a_table_of_roles(tmp_path: Path) -> None:
    assert Roles("a", levels={"x": {"single": "b", "random": "c"}}).arms() == {"a", "b", "c"}
    with pytest.raises(UserError, match="must be a table of roles, not 3"):
        Roles(levels={"x": 3}).arms()
    with pytest.raises(UserError, match="no roles of the level x setting 'singel'; did you mean 'single'"):
        Roles(levels={"x": {"singel": "b"}}).arms()


def test_a_smoke_test_and_a_single_seed_judge_nothing(tmp_path: Path) -> None:
    smoke = verdicts(made(tmp_path / "a", LEVEL, budget="smoke"))
    assert {*smoke.values()} == {f"{OPEN}: smoke"}
    alone = verdicts(made(tmp_path / "b", LEVEL, seeds=1))
    assert all(alone[claim].startswith(OPEN) for claim in ("C1", "C2", "C3", "C6", "C7"))


def test_a_tables_cell_is_mean_deviation_and_interval(tmp_path: Path) -> None:
    result = made(tmp_path / "b", LEVEL)
    mine = [t for t in result.finished if t.method == "base"]
    values = [t.values["op/raw"] for t in mine]
    ends = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    text = told(mine, value("op/raw"))
    assert text.startswith(f"{mean(values):.2f} ± {stdev(values):.2f} [")
    low, high = map(float, text.partition("[")[2].rstrip("]").split(","))
    assert (low, high) == pytest.approx((ends.low, ends.high), abs=0.006)


def test_the_tables_tell_errors_and_degeneration(tmp_path: Path) -> None:
    result = made(tmp_path / "b", LEVEL, op=45.0, free={"base": 0.6})
    titles = {title.split(",")[0].split(":")[0]: (headings, rows) for title, headings, rows in sheets(result)}
    headings, rows = titles["Discretisation of base"]
    by_name = {row[0]: dict(zip(headings, row, strict=True)) for row in rows}
    assert by_name["op"]["error, re-estimated"].startswith("5.00 ± 0.00")
    assert by_name["op"]["error, raw"].startswith("7.00 ± 0.00")
    assert by_name["continuous"]["raw"].startswith("48.00 ± 1.00")
    headings, rows = titles["Degeneration"]
    flags = {row[0]: row[-1] for row in rows}
    assert flags == {**dict.fromkeys(ARMS, "1 / 1 of 3"), "base": "3 / 3 of 3"}  # one seed has 9 of 30 weights


def test_columns_in_which_nothing_stands_are_left_out(tmp_path: Path) -> None:
    """No gate was measured here, and no fine-tuning: neither has a column."""
    titles = {title.split(",")[0].split(":")[0]: headings for title, headings, _ in sheets(made(tmp_path / "b", LEVEL))}
    assert titles["Degeneration"] == ["arm", "seeds", FREE_SHARE, PARAMETERS, "degenerated: at the end / ever"]
    assert "error of op" in titles["Arms"]
    assert not {"error of op+edge@0.50", "error of op+best2", "decoded (op+best2)"} & set(titles["Arms"])
    assert filled(["a", "b", "c"], [["1", "", ""], ["2", "", "3"]]) == (["a", "c"], [["1", ""], ["2", "3"]])


def test_a_family_of_decodings_stands_and_is_drawn_by_its_threshold(tmp_path: Path) -> None:
    """Though 0.5 was measured first; what only looks like one of the family is none of it."""
    result = made(tmp_path / "b", LEVEL)
    own = ("edge@0.50", "op", "edge@0.00", "edge@0.40", "edge@0.40+op")
    scores = {f"{name}/{kind}": float(n) for n, name in enumerate(own) for kind in ("raw", "re-estimated")}
    trials = [replace(t, values={**scores, "continuous/re-estimated": 9.0}) for t in result.finished]
    assert decodings(trials) == ["edge@0.00", "edge@0.40", "edge@0.50", "op", "edge@0.40+op"]
    line = dict(plots(trials))["edge"]
    assert list(line.at["base, raw"]) == [0.0, 0.4, 0.5]  # type: ignore[union-attr]
    assert line.values["base, raw"].mean(axis=1).tolist() == [2.0, 3.0, 0.0]  # type: ignore[union-attr]


def test_a_penalty_s_costs_are_drawn_against_its_weight(tmp_path: Path) -> None:
    """From no penalty on: three arms on both kinds are a line, one on the operations another."""
    both = {"method.entropy_schedule": "linear"}
    settings = {
        "base": {},
        "penalised": {**both, "method.entropy": 0.1, "method.gate_entropy": 0.1},
        "two": {**both, "method.entropy": 0.3, "method.gate_entropy": 0.3},
        "s0": {"method.entropy": 0.1, "method.entropy_form": "ssr"},
    }
    result = made(tmp_path / "b", {**LEVEL, "penalised": 48.0, "two": 47.0, "s0": 40.0}, op=45.0)
    trials = [replace(t, asked={"settings": settings[t.method]}) for t in result.finished if t.method in settings]
    drawn = dict(plots(trials))
    line = drawn["penalty_supernet"]
    assert line.at == {"operations+gates, linear": [0.0, 0.1, 0.3], "operations, ssr": [0.0, 0.1]}  # type: ignore[union-attr]
    assert line.values["operations+gates, linear"].mean(axis=1).tolist() == [50.0, 48.0, 47.0]  # type: ignore[union-attr]
    assert line.linear == 0.1  # type: ignore[union-attr]
    errors = drawn["penalty_error"].values["operations, ssr"]  # type: ignore[union-attr]
    assert errors.mean(axis=1).tolist() == pytest.approx([5.0, -5.0])
    assert "penalty_supernet" not in dict(plots(result.finished)), "nothing was penalised"


def test_a_legend_of_many_arms_is_as_large_as_it_needs() -> None:
    """No name lies outside of the picture or on another."""
    names = [f"both_constant_{n / 1000:g}" for n in range(57)]
    plot = Cloud("Many", ("x", "y"), {name: [(n, n)] for n, name in enumerate(names)})
    text = svg(plot, looks(names)).decode()
    width, height = (float(side) for side in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups())  # type: ignore[union-attr]
    places = [tuple(map(float, at)) for at in re.findall(r'<text[^>]*x="([\d.]+)" y="([\d.]+)"[^>]*>both_', text)]
    assert len(places) == 57
    assert all(0 < x < width - 60 and 0 < y < height for x, y in places)
    assert min(abs(a[1] - b[1]) for a, b in combinations(places, 2) if a[0] == b[0]) > 8


def test_the_pictures_have_what_was_measured(tmp_path: Path) -> None:
    drawn = dict(plots(made(tmp_path / "b", LEVEL, op=45.0).finished))
    assert {"edge", "error_op", "free_share", "parameters"} <= set(drawn)
    line = drawn["edge"]
    assert list(line.at["base, raw"]) == [0.5]  # type: ignore[union-attr]
    assert line.values["base, raw"].tolist() == [[46.0, 47.0, 48.0]]  # type: ignore[union-attr]
    assert sorted(drawn["error_op"].points["base"]) == [(90.0, 5.0)] * 3  # type: ignore[union-attr]
