"""Trackers hear what the terminal hears, may fail without harm, and are refused in a sentence where they cannot work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from oche.api.telling import telling
from oche.errors import NotDrawn, UserError
from oche.plan.request import Request
from oche.plan.resolve import resolve
from oche.run import Run
from oche.watch import trackers
from oche.watch.trackers import TRACKERS, checked

EPOCH = {"epoch": 3, "weight_loss": 0.5, "skips": {"cell": 2}, "changed": True, "genotype": "x"}


class Kept:
    """Keeps what it is told."""

    def __init__(self, run: Run, settings: Mapping[str, object]) -> None:
        self.told: list[tuple[dict[str, float], int]] = []
        self.settings = settings
        self.closed = False
        made.append(self)

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        self.told.append((dict(values), step))

    def close(self) -> None:
        self.closed = True


class Broken(Kept):
    def numbers(self, values: Mapping[str, float], step: int) -> None:
        raise OSError("the server is gone")


made: list[Kept] = []


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made.clear()
    return Run.create(tmp_path / "run")


def test_numbers_are_told_by_group_and_step(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRACKERS, "kept", (Kept, "json", "kept"))
    heard: list[str] = []
    run.log({"kind": "test", "accuracy": 0.9})
    with telling(run, checked(["kept"]), lambda event, record: heard.append(event), {"seed": 3}) as told:
        told("step", {"step": 1})
        told("watched", {"seconds": 2.0})
        told("epoch", EPOCH)
        told("trained", {"cell": "random 1", "seed": 2, "test_accuracy": 0.8})
    assert heard == ["step", "epoch", "trained", "beside"]
    (tracker,) = made
    assert tracker.settings == {"seed": 3}
    assert tracker.told == [
        ({"search/weight_loss": 0.5, "search/skips/cell": 2.0}, 3),
        ({"compare/random 1/test_accuracy": 0.8}, 2),
        ({"test/accuracy": 0.9}, 0),
    ]
    assert tracker.closed


def test_what_watching_costs_is_told(run: Run) -> None:
    ends: dict[str, float] = {}

    def listen(event: str, record: Mapping[str, object]) -> None:
        if event == "beside":
            ends.update({name: float(str(value)) for name, value in record.items()})

    with telling(run, (), listen, {}) as told:
        told("watched", {"seconds": 2.0})
        told("watched", {"seconds": 1.5})
    assert ends["seconds"] >= 3.5
    assert ends["total"] > 0


def test_a_tracker_that_fails_is_a_warning(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRACKERS, "broken", (Broken, "json", "broken"))
    monkeypatch.setitem(TRACKERS, "kept", (Kept, "json", "kept"))
    with telling(run, ("broken", "kept"), lambda event, record: None, {}) as told:
        with pytest.warns(NotDrawn, match=r"broken is no longer told \(the server is gone\); the run goes on"):
            told("epoch", EPOCH)
        told("epoch", EPOCH)
    assert len(made[1].told) == 3


def test_trackers_are_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no tracker 'tensorbord'; did you mean 'tensorboard'"):
        resolve(Request("darts", track=("tensorbord",)))
    monkeypatch.setitem(TRACKERS, "absent", (Kept, "no_such_package", "absent"))
    with pytest.raises(UserError, match=r"needs the package 'no_such_package'.*pip install 'oche\[absent\]'"):
        checked(["absent"])


@pytest.mark.slow
def test_tensorboard_has_the_numbers(run: Run) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with telling(run, ("tensorboard",), lambda event, record: None, {}) as told:
        told("epoch", EPOCH)
    events = EventAccumulator(str(run.file("tensorboard")))
    events.Reload()
    (found,) = events.Scalars("search/weight_loss")
    assert (found.step, found.value) == (3, 0.5)


@pytest.mark.slow
def test_mlflow_has_the_numbers(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    with telling(run, ("mlflow",), lambda event, record: None, {"method": "darts"}) as told:
        told("epoch", EPOCH)
    client = MlflowClient()
    experiment = client.get_experiment_by_name("oche")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.data.params == {"method": "darts"}
    (metric,) = client.get_metric_history(found.info.run_id, "search/weight_loss")
    assert (metric.step, metric.value) == (3, 0.5)
    assert found.info.status == "FINISHED"


def test_the_names_are_those_of_the_extras() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in text for _, _, extra in trackers.TRACKERS.values())
