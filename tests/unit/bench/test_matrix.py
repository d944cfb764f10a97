"""Requests that a bench takes, and the sentence for those that it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from oche import config
from oche.bench.matrix import Matrix, check, matrix_from
from oche.bench.planned import slug, trials
from oche.bench.settled import settled
from oche.bench.trial import run_trial
from oche.errors import UserError
from oche.plan.request import Request
from oche.plan.resolve import resolve
from oche.search.method import Method
from oche.search.trainable import ClassifierOnly
from reference.small_bench import ToyTable

TOML = """
methods = ["darts", "rf_darts"]
spaces = ["toy"]
budgets = ["smoke"]
seeds = 2
evaluate = "train"

[settings]
space.cells = 1
weight_lr.start = 0.05

[settings_of.rf_darts]
trainable.classifier = true
"""


def written(folder: Path, text: str = TOML) -> Path:
    path = folder / "small.toml"
    path.write_text(text)
    return path


def test_a_file_and_flags_make_a_matrix(tmp_path: Path) -> None:
    matrix = matrix_from(written(tmp_path), {"seeds": 1, "epochs": None, "settings": {"space.channels": 8}})
    assert (matrix.name, matrix.methods, matrix.seeds) == ("small", ("darts", "rf_darts"), 1)
    assert matrix.settings == {"space.cells": 1, "weight_lr.start": 0.05, "space.channels": 8}
    assert matrix.settings_of == {"rf_darts": {"trainable.classifier": True}}
    assert matrix_from(None, {"methods": "darts"}).methods == ("darts",)


def test_each_trial_gets_the_settings_it_has_parts_for(tmp_path: Path) -> None:
    matrix = replace(matrix_from(written(tmp_path)), baselines=())
    found = {trial.name: trial.request.settings for trial in trials(matrix)}
    assert list(found)[:3] == [
        "darts-toy-digits-smoke-0",
        "rf_darts-toy-digits-smoke-0",
        "random_sampling-toy-digits-smoke-0",
    ]
    assert found["rf_darts-toy-digits-smoke-1"] == {
        "space.cells": 1,
        "weight_lr.start": 0.05,
        "trainable.classifier": True,
    }
    assert found["random_sampling-toy-digits-smoke-0"] == {"space.cells": 1}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("method = ['darts']", "no .* setting 'method'; did you mean 'methods'"),
        ("seeds = 'many'", "seeds must be int"),
        ("methods = ['darts', 'darts']", "none twice"),
        ("seeds = 0", "at least one seed"),
        ("select = 'trained/test'", "would select on test data"),
        (
            "evaluate = 'table'\ntable = 'nb201'\nmetrics = ['cifar10/test']\nselect = 'cifar10/test'",
            "would select on test data",
        ),
        ("evaluate = 'table'\ntable = 'nb201'\nselect = 'trained/val'", "`select` must name"),
        ("evaluate = 'both'\nselect = 'cifar10/valid'", "needs a `table` and the `metrics`"),
        ("evaluate = 'train'\ntable = 'nb201'", "does not look at it"),
        ("protocol = 'quik'", "did you mean 'quick'"),
        ("settings_of.dart.clip = 1.0", "did you mean 'darts'"),
        ("seeds = [", "not valid TOML"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        matrix_from(written(tmp_path, text))


@pytest.mark.parametrize(("space", "given", "named"), [
    ("nb201", "auto", "fast_brief"), ("grid", "auto", "segment_brief"), ("nb201", "quick", "quick"),
])  # fmt: skip
def test_trials_record_the_protocol_that_every_comparison_takes(space: str, given: str, named: str) -> None:
    data = "digits_masks" if space == "grid" else "digits"
    matrix = Matrix(methods=("random_sampling",), spaces=(space,), data=(data,), protocol=given, evaluate="train")
    found = {trial.asked()["protocol"] for trial in trials(matrix)}
    assert found == {named}
    if given == "auto":
        assert resolve(Request("random_sampling", space=space, data=data)).request.protocol == named


def test_limits_are_those_of_every_trial(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text(
        'methods = ["darts"]\nseeds = 2\nevaluate = "train"\nmax_params = "80k"\nmax_latency = 3.5\n'
    )
    matrix = matrix_from(tmp_path / "b.toml")
    assert {trial.request.max_params for trial in trials(settled(matrix, None))} == {"80k"}
    assert {trial.request.max_latency for trial in trials(settled(matrix, None))} == {3.5}
    assert matrix == replace(
        Matrix(methods=("darts",), seeds=2, evaluate="train", max_params="80k", max_latency=3.5), name="b"
    )
    assert config.build(Matrix, matrix.written(), "again") == matrix
    with pytest.raises(UserError, match="max_macs limits networks that are trained"):
        check(Matrix(evaluate="table", table="nb201", metrics=("cifar10/valid",), max_macs=5))


def test_a_trial_under_a_limit_keeps_it(tmp_path: Path) -> None:
    """What was found, and the network that was trained of it."""
    matrix = Matrix(
        methods=("rf_darts",), spaces=("toy",), budgets=("smoke",), protocol="smoke", epochs=1, seeds=1, max_params=1500
    )
    matrix = replace(matrix, evaluate="train", baselines=(), baseline="rf_darts", settings={"train.epochs": 1})
    (trial,) = trials(settled(matrix, None))
    outcome = run_trial(trial, tmp_path / "trial")
    free = run_trial(replace(trial, request=replace(trial.request, max_params=None)), tmp_path / "free")
    assert outcome.parameters <= 1500 < free.parameters


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no file"):
        matrix_from(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"metrics": ("digits/tset",)}, "did you mean 'digits/test'"),
        ({"select": "digits/val"}, "did you mean 'digits/valid'"),
        ({"metrics": ("digits/parameters",)}, "is a cost"),
        ({"zero_cost": ("zerocost/digits/scores",)}, "did you mean 'zerocost/digits/score'"),
        ({"spaces": ("nb201",)}, "holds cells of toy, not of nb201"),
    ],
)
def test_what_the_table_cannot_answer_is_a_sentence(
    matrix: Matrix, table: ToyTable, changes: dict[str, tuple[str, ...]], says: str
) -> None:
    check(matrix, table)
    with pytest.raises(UserError, match=says):
        check(replace(matrix, **changes), table)  # type: ignore[arg-type]


def test_two_paths_never_share_a_folder() -> None:
    assert slug("a/b") != slug("a b") != slug("a_b")


def test_data_that_is_a_path_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (trial, *_) = trials(Matrix(methods=("darts",), spaces=("toy",), data=("images",), baselines=()))
    assert (trial.data, trial.request.data) == ("images", str(tmp_path / "images"))


ARMS = """
spaces = ["toy"]
budgets = ["smoke"]
seeds = 1
evaluate = "train"
baselines = []

[settings]
space.cells = 1

[arms.darts]
method = "darts"

[arms.frozen]
method = "darts"
[arms.frozen.settings]
trainable = "classifier"
"trainable.gamma" = "uniform"
"""


def test_an_arm_is_a_method_with_settings_under_a_name_of_its_own(tmp_path: Path) -> None:
    matrix = matrix_from(written(tmp_path, ARMS))
    assert matrix.searched == ("darts", "frozen", "random_sampling")
    darts, frozen, _ = trials(matrix)
    assert (frozen.name, frozen.method, frozen.request.method) == ("frozen-toy-digits-smoke-0", "frozen", "darts")
    assert frozen.request.settings == {
        "space.cells": 1,
        "trainable": "classifier",
        "trainable.gamma": "uniform",
    }
    assert darts.request.settings == {"space.cells": 1}
    method = resolve(frozen.request).searcher
    assert isinstance(method, Method)
    assert method.trainable == ClassifierOnly(gamma="uniform")


def test_an_arm_may_have_more_seeds_or_fewer_than_the_rest(tmp_path: Path) -> None:
    text = ARMS.replace("seeds = 1", "seeds = 2\nfirst_seed = 5").replace("baselines = []", "")
    text += "\n[arms.random_sampling]\nmethod = 'random_sampling'\nseeds = 3\n[arms.pcdarts]\nmethod = 'pcdarts'\nseeds = 1\n"
    found = [(t.seed, t.method) for t in trials(matrix_from(written(tmp_path, text)))]
    assert found == [
        *((5, name) for name in ("darts", "frozen", "random_sampling", "pcdarts", "random_search_ws")),
        *((6, name) for name in ("darts", "frozen", "random_sampling", "random_search_ws")),
        (7, "random_sampling"),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("arms = {}", "methods must name at least one"),
        ("methods = ['darts']\n[arms.darts]\nmethod = 'darts'", "none twice"),
        ("[arms.a]\nsettings.clip = 1.0", "arm a needs a value for method"),
        ("[arms.a]\nmethod = 'darts'\nsetting.clip = 1.0", "no arm a setting 'setting'; did you mean 'settings'"),
        ("arms.a = 'darts'", "arms.a must be a table"),
        ("[arms.a]\nmethod = 'darts'\nseeds = 0", "at least one seed"),
    ],
)
def test_a_mistake_in_an_arm_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        matrix_from(written(tmp_path, text))


@pytest.mark.slow
def test_the_studies_configurations_are_matrices() -> None:
    folder = Path(__file__).parents[3] / "benchmarks"
    for path in sorted(
        set(folder.glob("*.toml")) - set(folder.glob("single_stage*"))
    ):  # those are studies, with more in them
        matrix = matrix_from(path)
        made = {trial.method: trial for trial in trials(matrix)}
        assert made.keys() == set(matrix.searched)
        for trial in made.values():
            resolve(replace(trial.request, data="digits"))
