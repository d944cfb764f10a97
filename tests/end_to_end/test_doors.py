"""What oche has by name, a user brings from a file or hands over: searched, benched, resumed; and a run that keeps what it used."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import oche
from oche.api import search as module
from oche.api.resume import reopen
from oche.bench import Matrix
from oche.cli import main as cli
from oche.data import SPLITS, load
from oche.errors import UserError
from oche.methods.darts import darts
from oche.plan.named import method, searcher_named
from oche.plan.request import Request
from oche.plan.resolve import Plan, resolve
from oche.run import Run
from oche.search.searcher import as_searcher
from oche.spaces import SPACES
from oche.spaces.named import BUILT_IN, operations, space
from oche.spaces.ops import OPS
from oche.tables import table_named
from oche.tasks import Classify
from oche.training.protocols import PROTOCOLS
from reference.tiny import tiny_data

OWN = Path(__file__).parents[1] / "fixtures" / "own"
SMALL = tiny_data(12)
LIMITS = {"mine.py": 60, "space.py": 60, "table.py": 40, "task.py": 40}


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder with the files, and registries that are put back."""
    for name in LIMITS:
        shutil.copy(OWN / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "available_formats", tuple)
    yield
    for registry in (SPACES, OPS):
        for name in [name for name in registry if name not in BUILT_IN]:
            del registry[name]  # type: ignore[attr-defined]


def searched(out: str = "run", method_: Any = "mine.py:gaea", **options: Any) -> oche.Found:
    given = {
        "space": "space.py:Mine",
        "data": "mine.py:few",
        "budget": "smoke",
        "epochs": 1,
        "compare": 0,
        "device": "cpu",
    }
    return oche.search(method_, out=out, **{**given, **options})


def test_a_part_in_a_file_is_short() -> None:
    for name, most in LIMITS.items():
        assert len((OWN / name).read_text().splitlines()) <= most
    lines = (OWN / "mine.py").read_text().split("def every_other")[0].splitlines()
    assert len(lines) <= 40


# ---------------------------------------------------------------------- searched and resumed


EVERYTHING: dict[str, Any] = {
    "probes": ("mine.py:Norm",), "protocol": "mine.py:short", "compare": 1, "compare_seeds": 1,
    "settings": {"split": "mine.py:every_other", "space.ops": ("none", "skip_connect", "space.py:blur"), "method.lr": 0.2},
}  # fmt: skip


@pytest.mark.slow
def test_everything_from_files_is_searched_trained_and_resumed_without_them(tmp_path: Path) -> None:
    found = searched(**EVERYTHING)
    run = found.run
    assert {path.name for path in run.file("code").iterdir()} == {"mine.py", "space.py"}
    epoch = found.history[0]
    assert epoch["alpha_norm"] > 0  # type: ignore[operator]
    for name in LIMITS:
        (tmp_path / name).write_text("raise RuntimeError('the file is another now')\n")
    again = oche.resume(run.path)
    assert isinstance(again, oche.Found)
    assert again.genotype == found.genotype
    trained = oche.train(run.path, protocol="smoke", epochs=1, device="cpu", out="trained")
    assert trained.run.has("code/mine.py")
    assert oche.evaluate_run(trained.run.path) == trained.test
    trained_again = oche.resume(trained.run.path)
    assert isinstance(trained_again, oche.Trained)
    assert trained_again.test == trained.test


def test_the_plan_has_the_parts() -> None:
    plan = resolve(Request("mine.py:rf_gaea", space="space.py:Mine", data="mine.py:few", budget="quick", **EVERYTHING))
    inner = as_searcher(plan.searcher).method
    assert inner is not None
    assert (inner.name, type(inner.relaxation).__name__) == ("rf_gaea", "Squared")
    assert inner.arch_optimizer.lr == 0.2, "not the budget's"  # type: ignore[attr-defined]
    assert inner.trainable.classifier, "the budget's, for the file says nothing of it"  # type: ignore[attr-defined]
    assert (plan.space.name, plan.space.groups[0].ops[0]) == ("mine", ("none", "skip_connect", "blur"))
    assert (len(plan.data.train), plan.protocol.epochs) == (216, 1)
    parts = inner.split(plan.data.train, 0)
    assert parts.arch is not None
    assert (parts.weights.index[:2].tolist(), len(parts.arch)) == (plan.data.train.index[[0, 2]].tolist(), 108)


def test_objects_are_searched_and_resumed() -> None:
    mine = replace(darts(), name="mine_too", split=SPLITS["redrawn"])
    kind = replace(SPACES["toy"](), name="other", nodes=2)  # type: ignore[call-arg]
    found = oche.search(
        mine, space=kind, data=SMALL, task=Classify(0.1), protocol=PROTOCOLS["smoke"], budget="smoke", epochs=1, batch=6, compare=1,
        compare_seeds=1, device="cpu", out="run", settings={"split": SPLITS["full"]},
    )  # fmt: skip
    assert found.genotype.space == "other"
    assert reopened("data").startswith("The run's method was handed over as an object (mine_too)")
    objects: dict[str, Any] = {
        "method": mine, "space": kind, "task": Classify(0.1), "protocol": PROTOCOLS["smoke"], "settings": {"split": SPLITS["full"]}
    }  # fmt: skip
    again = oche.resume(found.run.path, SMALL, **objects)
    assert isinstance(again, oche.Found)
    assert again.genotype == found.genotype
    plan, _ = reopen(found.run.path, SMALL, **objects)
    assert plan.task == Classify(0.1)
    assert type(as_searcher(plan.searcher).method.split) is type(SPLITS["full"])  # type: ignore[union-attr]


def reopened(*_: str) -> str:
    with pytest.raises(UserError) as told:
        oche.resume("run", SMALL)
    return str(told.value)


@pytest.mark.slow
def test_a_task_with_its_metric_is_searched_scored_and_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    found = searched(
        task="task.py:Macro",
        compare=1,
        compare_seeds=1,
        protocol="mine.py:short",
        settings={"task.label_smoothing": 0.1},
        progress=True,
    )
    assert 0 <= found.history[0]["weight_recall"] <= 1  # type: ignore[operator]
    assert found.comparison is not None
    assert found.comparison.metric == "recall"
    said = capsys.readouterr().out
    assert "gaea" in said
    assert "recall" in said
    assert oche.evaluate_run(found.run.path).metric == "recall"
    again = oche.resume(found.run.path)
    assert isinstance(again, oche.Found)
    assert again.comparison == found.comparison


def test_a_copy_that_was_changed_is_refused() -> None:
    run = searched().run
    copy = run.file("code/mine.py")
    copy.write_bytes(copy.read_bytes() + b"\n# changed\n")
    with pytest.raises(UserError):
        oche.resume(run.path)


@pytest.mark.slow
def test_an_operation_from_a_file_is_exported_and_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_formats", lambda: ("onnx",))
    found = searched(settings={"space.ops": ("space.py:blur",)}, compare=1, compare_seeds=1, protocol="smoke")
    assert "blur" in str(found.genotype)
    (found.run.path.parent / "space.py").unlink()
    code = f"import oche.cli.main, sys; sys.argv = ['oche', 'export', {str(found.run.path)!r}]; oche.cli.main.main()"
    subprocess.run([sys.executable, "-c", code], check=True)  # in a process that knows nothing of the file
    assert found.run.has("network/model.onnx")
    assert "blur" in found.run.file("figures/cells.svg").read_text()


# ---------------------------------------------------------------------- benched


def test_a_bench_of_files(tmp_path: Path) -> None:
    events: list[str] = []
    matrix = Matrix(
        methods=("random_search", "mine.py:rf_gaea"), spaces=("space.py:Mine",), data=("mine.py:few",), budgets=("smoke",), seeds=1,
        epochs=1, evaluate="table", table="table.py:mine", metrics=("toy/test",), select="toy/valid", device="cpu",
        baselines=("random_sampling",), settings={"queries": 3},
    )  # fmt: skip
    result = oche.bench(matrix, tmp_path / "bench", listener=lambda event, _: events.append(event))
    assert events == ["begin", "trial", "trial", "trial"]
    assert not result.failures
    worth = table_named("table.py:mine")
    for trial in result.finished:
        assert trial.values["toy/test"] == worth.value(oche.Genotype.parse(trial.genotype, "mine"), "toy/test")
    assert {trial.method for trial in result.finished} == {"random_search", "mine.py:rf_gaea", "random_sampling"}


# ---------------------------------------------------------------------- what is something else


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"method_": "mine.py:few"}, "returned Data; expected an oche.Method"),
        ({"method_": "mine.py:gaeaa"}, "no name in mine.py 'gaeaa'; did you mean 'gaea'"),
        ({"method_": 3}, "3|is of the type int, which is no method: expected a name"),
        ({"space": "mine.py:gaea"}, "which is no space: expected a name .*, or an oche.spaces.Space"),
        ({"space": darts()}, "darts is of the type Method, which is no space"),
        ({"protocol": "mine.py:few"}, "which is no protocol"),
        ({"probes": ("mine.py:short",)}, "which is no probe"),
        ({"settings": {"split": "mine.py:short"}}, "which is no split"),
        ({"settings": {"space.ops": ("mine.py:few",)}}, "the function few, which is no operation"),
        ({"data": "mine.py:gaea"}, "Data cannot be read from a Method"),
        ({"task": "mine.py:few"}, "which is no task"),
        ({"space": "nowhere.py:Mine"}, "There is no file 'nowhere.py'"),
    ],
)
def test_what_is_something_else_is_said(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        searched(**wrong)


def test_names_that_are_taken() -> None:
    with pytest.raises(UserError, match="a space 'nb201' already"):
        space(replace(SPACES["toy"](), name="nb201"))
    assert space(replace(SPACES["nb201"](), cells=2))().cells == 2  # type: ignore[call-arg, attr-defined]
    assert SPACES["nb201"]().cells == 5, "the one of oche stays"  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="an operation 'skip_connect' already"):
        operations((skip_connect,))


def skip_connect(channels: int, stride: int, affine: bool) -> torch.nn.Module:
    return torch.nn.Identity()


def test_a_file_that_fails_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(UserError, match=r"bad\.py cannot be imported: ModuleNotFoundError"):
        searcher_named("bad.py:gaea")


def test_rf_before_a_name() -> None:
    assert (method("mine.py:rf_gaea").frozen, method("mine.py:gaea").frozen) == (True, False)
    assert method("rf_darts").factory.__name__ == "rf_darts"


# ---------------------------------------------------------------------- a run.toml that names code


Typed = Callable[..., tuple[int, str]]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["oche", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), " ".join((out + err).split())

    return run


def test_code_in_a_run_toml_is_asked_for_and_a_change_is_said(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan: Plan = resolve(
        Request("mine.py:gaea", space="toy", data="mine.py:few", budget="smoke", compare=0, device="cpu")
    )
    run = module.start(plan, tmp_path / "run")
    monkeypatch.setattr("oche.api.search.timed", lambda plan, *rest: (plan, None))
    repeat = ("search", "--config", "run/run.toml", "--dry-run", "--out", "again")
    code, said = typed(*repeat)
    assert (code, "read it, then repeat with `--trust`" in said) == (2, True)
    code, said = typed(*repeat, "--trust")
    assert (code, "has changed" in said) == (0, False)
    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text() + "\n# changed\n")
    code, said = typed(*repeat, "--trust")
    assert code == 0
    assert f"{tmp_path}/mine.py has changed since run/run.toml was written" in said
    monkeypatch.chdir("/")
    assert typed("search", "--config", str(run.file(Run.CONFIG)), "--dry-run", "--trust")[0] == 0


def test_typing_a_file_is_consent(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oche.api.search.timed", lambda plan, *rest: (plan, None))
    assert (
        typed("search", "mine.py:gaea", "--space", "space.py:Mine", "--data", "mine.py:few", "--dry-run", "-q")[0] == 0
    )


def test_data_as_a_torch_dataset(tmp_path: Path) -> None:
    images = torch.randint(0, 255, (60, 1, 8, 8), dtype=torch.uint8)
    dataset = torch.utils.data.TensorDataset(images, torch.arange(60) % 3)
    plan = resolve(Request("darts", space="toy", data=dataset, budget="smoke"))  # type: ignore[arg-type]
    assert (len(plan.data.train), plan.objects) == (36, ("data",))
    assert load("digits").name == "digits"
    json.dumps(plan.table())
