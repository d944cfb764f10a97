"""A study as a whole: what it runs, what it keeps, what it refuses, and what its page says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from oche import config
from oche.bench.matrix import TRAINED_VAL
from oche.bench.planned import trials
from oche.bench.result import BenchResult
from oche.errors import UserError
from oche.plan.resolve import resolve
from oche.run import Run
from oche.study import run_study, show, study_from
from oche.study.presets import STUDIES, preset
from oche.study.runner import check

FILE = """
methods = []
spaces = ["grid"]
data = ["digits_masks"]
budgets = ["smoke"]
epochs = 1
batch = 16
seeds = 1
baseline = "soft"
baselines = []
protocol = "segment_smoke"
arms.soft = {method = "darts"}
arms.again = {method = "darts", settings = {train.epochs = 1}}
arms.drawn = {method = "random_sampling", settings = {train.epochs = 1}}

[settings]
space.layers = 2
space.levels = 2
space.ops = ["mbconv_k3_e3", "skip_connect"]

[measure]
decodings = ["op", "op+best2", "path"]
sweep = ["ramp@0.5"]
tuned = ["op"]
tune_epochs = [1]
closely = ["soft"]
retrained = ["again"]
batches = 4

[roles]
single = "soft"
two_stage = "again"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(FILE)
    return path


def numbers(result: BenchResult) -> dict[str, object]:
    return {t.name: (t.genotype, dict(t.values), t.probes) for t in result.finished}


@pytest.mark.slow
def test_a_study_runs_measures_and_carries_on(file: Path, tmp_path: Path) -> None:
    study = study_from("protocol", file, {"measure": {"decodings": ("op", "op+best2")}})
    first = run_study(study, tmp_path / "s", only=["soft", "drawn"])
    assert {t.method for t in first.finished} == {"soft", "drawn"}
    result = run_study(study, tmp_path / "s")
    assert not result.missing
    soft, again, drawn = (next(t for t in result.finished if t.method == name) for name in ("soft", "again", "drawn"))
    assert soft.values["continuous/re-estimated"] == soft.values[TRAINED_VAL]
    assert soft.values["continuous/raw"] == soft.values["continuous/re-estimated"]
    assert {"op/tuned 1", "ramp@0.5/raw", "op+best2/re-estimated", "entropy", "gate/50"} <= set(soft.values)
    assert "op/tuned 1" not in again.values
    assert not soft.train_seconds
    assert again.train_seconds > 0
    assert "continuous/raw" not in drawn.values
    text = result.folder.read(result.folder.MARKDOWN).decode()
    assert "## Claims: grid, digits_masks, smoke" in text
    assert "back no claim" in text
    page = result.folder.read(Run.REPORT)
    result.folder.write(Run.REPORT, b"")
    show(tmp_path / "s")
    assert result.folder.read(Run.REPORT) == page


@pytest.mark.slow
def test_a_study_that_lost_its_line_measures_to_the_same_numbers(file: Path, tmp_path: Path) -> None:
    study = study_from("protocol", file, {"measure": {"decodings": ("op",)}})
    whole = run_study(study, tmp_path / "s", only=["soft", "again"])
    before = numbers(whole)
    whole.folder.write(whole.folder.TRIALS, b"")  # killed between a trial's end and its line
    again = run_study(study, tmp_path / "s", only=["soft", "again"])
    assert numbers(again) == before


# ---------------------------------------------------------------------- mistakes


def test_a_folder_keeps_to_what_it_measures(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.mkdir()
    study = study_from("protocol", file, {"measure": {"decodings": ("op",)}})
    other = study_from("protocol", file, {"measure": {"decodings": ("op", "best2")}})
    tables = {"name": "protocol", "measure": config.loads(FILE, "x")["measure"], "roles": {}}
    (path / "study.toml").write_bytes(config.dumps(tables).encode())
    for one in (study, other):
        with pytest.raises(UserError, match="measures something else"):
            run_study(one, path)


def test_a_decoding_that_fits_no_arm_is_refused_before_anything_runs(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"path cannot be measured: .*softmax"):
        run_study(study_from("protocol", file), tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"retrained": ("nobody",)}, "nobody"),
        ({"closely": ("nobody",)}, "nobody"),
        ({"inherited": ("again",)}, "once"),
        ({"decodings": ("opp",)}, "'op'"),
        ({"batch": 3}, "batches"),
    ],
)
def test_a_mistake_is_one_sentence(file: Path, tmp_path: Path, change: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        run_study(study_from("protocol", file, {"measure": {"decodings": ("op",), **change}}), tmp_path / "s")


def test_unknown_studies_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="discretisation"):
        study_from("discretization")
    with pytest.raises(UserError, match="no file"):
        study_from("split", tmp_path / "none.toml")
    with pytest.raises(UserError, match="needs 5 epochs"):
        study_from("split", overrides={"epochs": 2})
    with pytest.raises(UserError, match="no budget 'smok'; did you mean 'smoke'"):
        study_from("split", overrides={"budgets": ("smok",)})
    (tmp_path / "run.toml").write_text("[bench]\n")
    with pytest.raises(UserError, match="study"):
        show(tmp_path)


# ---------------------------------------------------------------------- the presets


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("masks", [True, False])
def test_a_preset_at_equal_epochs(name: str, masks: bool) -> None:
    """Every arm's epochs, search and training after it, sum up to the horizon, but where M after retraining is asked for beside M."""
    found = preset(name, "quick", 50, masks=masks)
    arms = found.matrix["arms"]
    assert isinstance(arms, dict)
    later = {*found.measure.retrained, *found.measure.inherited}
    for arm, table in arms.items():
        settings = table["settings"]
        search = table.get("epochs", 50) if table["method"] != "random_sampling" else 0
        trains = arm in later or table["method"] == "random_sampling"
        total = search + (settings["train.epochs"] if trains else 0)
        assert total == (70 if name == "entropy" else 50), arm


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("masks", [True, False])
def test_every_arm_of_a_preset_is_a_search_that_can_be_run(name: str, masks: bool) -> None:
    """On images without groups all but the split by groups: an option or setting that does not exist is refused."""
    matrix = study_from(name, overrides={} if masks else {"spaces": ("nb201",)}).matrix
    plans = {t.method: resolve(t.request) for t in trials(matrix) if t.seed == 0}
    assert plans.keys() == set(matrix.searched)
    assert {plan.space.name for plan in plans.values()} == {"grid" if masks else "nb201"}


def test_only_the_study_of_discretisation_probes_the_gap_and_no_file_inherits_it(file: Path) -> None:
    probed = {name: study_from(name).matrix.probes for name in STUDIES}
    assert probed == {**dict.fromkeys(STUDIES, ()), "discretisation": ("gap",)}
    assert study_from("discretisation", file).matrix.probes == ()


@pytest.mark.parametrize("name", ["single_stage_camvid", "single_stage_cells", "single_stage_gpu"])
def test_a_file_of_benchmarks_is_a_whole_study(name: str) -> None:
    study = study_from("discretisation", Path(__file__).parents[3] / "benchmarks" / f"{name}.toml")
    check(study)
    made = {trial.method: trial for trial in trials(study.matrix)}
    assert made.keys() == set(study.matrix.searched)
    space = study.matrix.spaces[0]
    for trial in made.values():
        small = {**trial.request.settings, "data.size": (16, 16)}
        data = "digits_masks" if space == "grid" else "digits"
        assert resolve(replace(trial.request, data=data, device="cpu", settings=small)).space.name == space
