"""TensorBoard and MLflow: what a run measures goes there too, as it is measured.

    oche search --data photos/ --track tensorboard
    tensorboard --logdir runs

A tracker hears the same events as the terminal. One that fails is a warning, and the run goes on without it.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

from oche.errors import NotDrawn, UserError, unknown
from oche.run import Run

LONGEST = 500
"""Letters of a setting that MLflow is told."""

STEPS = {"epoch": "search", "train_epoch": "train", "trained": "compare"}
"""Events that are told -> the group in which their numbers stand; others of the log are told when the run ends."""


class Tracker(Protocol):
    """Takes numbers by name at a step, until it is closed."""

    def numbers(self, values: Mapping[str, float], step: int) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Writes event files into `tensorboard/` in the run's folder."""

    def __init__(self, run: Run, settings: Mapping[str, object]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run.file("tensorboard")))

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class MLflow:
    """Writes a run of the experiment "oche", called like the folder, to where MLFLOW_TRACKING_URI says (MLflow's default without it)."""

    def __init__(self, run: Run, settings: Mapping[str, object]) -> None:
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient()
        found = self.client.get_experiment_by_name("oche")
        experiment = found.experiment_id if found else self.client.create_experiment("oche")
        self.id = self.client.create_run(experiment, run_name=run.path.resolve().name).info.run_id
        for name, value in settings.items():
            self.client.log_param(self.id, name, str(value)[:LONGEST])

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.client.log_metric(self.id, name, value, step=step)

    def close(self) -> None:
        self.client.set_terminated(self.id)


TRACKERS: dict[str, tuple[Callable[[Run, Mapping[str, object]], Tracker], str, str]] = {
    "tensorboard": (TensorBoard, "tensorboard", "tensorboard"),
    "mlflow": (MLflow, "mlflow", "mlflow"),
}
"""Name -> (tracker, the package that it needs, oche's extra with that package)."""


def checked(names: Sequence[str]) -> tuple[str, ...]:
    """The same. Raises UserError for a name that there is not, or whose package is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise unknown("tracker", name, TRACKERS)
        _, package, extra = TRACKERS[name]
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"--track {name} needs the package {package!r}, which is not installed: pip install 'oche[{extra}]'."
            )
    return tuple(names)


class Tracked:
    """Trackers of one run, as a listener."""

    def __init__(self, run: Run, names: Sequence[str], settings: Mapping[str, object]) -> None:
        self.run = run
        self.trackers: dict[str, Tracker] = {}
        for name in names:
            self._attempt(name, partial(self._begin, name, settings))

    def __call__(self, event: str, record: Mapping[str, object]) -> None:
        """Tells the trackers the numbers of an event."""
        if event in STEPS and self.trackers:
            group = STEPS[event] + (f"/{record['cell']}" if event == "trained" else "")
            self._tell(dict(_numbers(group, record)), _step(event, record))

    def close(self) -> None:
        """Tells the numbers that a run ends with, and closes the trackers."""
        if self.trackers:
            ends = {
                str(r["kind"]): r for r in self.run.records() if r.get("kind") in ("supernet", "test", "comparison")
            }
            self._tell({name: value for kind, r in ends.items() for name, value in _numbers(kind, r)}, 0)
        for name, tracker in list(self.trackers.items()):
            self._attempt(name, tracker.close)

    def _begin(self, name: str, settings: Mapping[str, object]) -> None:
        self.trackers[name] = TRACKERS[name][0](self.run, settings)

    def _tell(self, values: Mapping[str, float], step: int) -> None:
        for name, tracker in list(self.trackers.items()):
            self._attempt(name, partial(tracker.numbers, values, step))

    def _attempt(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - whatever a tracker dies of, the run goes on
            self.trackers.pop(name, None)
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            warnings.warn(
                f"{name} is no longer told ({reason}); the run goes on, and its log has everything.", NotDrawn, 2
            )


def _numbers(group: str, record: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    """The numbers of a record, those of a table within by its name and theirs."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _numbers(f"{group}/{key}", value)
        elif isinstance(value, int | float) and not isinstance(value, bool) and key not in ("epoch", "seed"):
            yield f"{group}/{key}", float(value)


def _step(event: str, record: Mapping[str, object]) -> int:
    step = record.get("epoch" if "epoch" in event else "seed", 0)
    return step if isinstance(step, int) else 0
