"""Several searches, one cell: picked on validation images whatever the test images say, and resumable."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from oche.api import search as api
from oche.api.resume import reopen, resume
from oche.cli import main as cli
from oche.errors import UserError
from oche.genotype import Genotype
from oche.plan.request import Request
from oche.plan.resolve import resolve
from oche.run import Run, silent
from oche.training.evaluate import Score

SETTINGS = {
    "space.channels": 4, "split.weights": 0.05, "split.arch": 0.05, "data.val": 0.1, "train.epochs": 1, "train.batch": 128,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _few_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all the rest: only the outer run called `run` is drawn."""
    render = api.render
    monkeypatch.setattr("oche.api.search.render", lambda run: render(run) if run.path.name == "run" else run.path)


def search(out: Path, listener: Callable[[str, Mapping[str, object]], None] = silent, seeds: int = 3) -> api.Found:
    return api.search(
        "darts", space="toy", budget="smoke", epochs=1, seed=5, compare=0, protocol="smoke", settings=SETTINGS, seeds=seeds,
        device="cpu", out=out, listener=listener,
    )  # fmt: skip


def lines(run: Run) -> list[dict[str, object]]:
    return [record for record in run.records() if record.get("kind") == "seed"]


def test_the_best_on_validation_is_picked_though_test_disagrees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter(
        [0.7, 0.9, 0.8, 0.1, 0.6, 0.5]
    )  # validation, test of each seed: the second is best, and worst on test

    def score(*_: object) -> Score:
        return Score("accuracy", {"accuracy": next(scores)}, 0.0, ())

    monkeypatch.setattr("oche.api.pick.evaluate", score)
    monkeypatch.setattr("oche.api.pick.retrain", lambda training: None)
    found = search(tmp_path / "run")
    records = lines(found.run)
    assert [r["seed"] for r in records] == [5, 6, 7]
    assert [r["test_accuracy"] for r in records] == [0.9, 0.1, 0.5]
    assert str(found.genotype) == records[1]["genotype"]
    own = Run.open(tmp_path / "run" / "seeds" / "seed_6")
    assert found.run.read(Run.GENOTYPE) == own.read(Run.GENOTYPE)
    page = found.run.read(Run.REPORT).decode()
    assert "All seeds" in page
    assert "80.00" in page
    assert Genotype.from_json(Run.open(tmp_path / "run").read(Run.GENOTYPE).decode()) == found.genotype


def test_an_interrupted_one_goes_on_where_it_stood(tmp_path: Path) -> None:
    whole = search(tmp_path / "whole", seeds=2)

    def stop(event: str, record: Mapping[str, object]) -> None:
        if event == "epoch" and len(list((tmp_path / "broken" / "seeds").iterdir())) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "broken", stop, seeds=2)
    first = tmp_path / "broken" / "seeds" / "seed_5" / "trained" / "state.pt"
    written = first.stat().st_mtime_ns
    told: list[str] = []
    again = resume(tmp_path / "broken", listener=lambda event, record: told.append(event))
    assert isinstance(again, api.Found)
    assert lines(again.run) == lines(whole.run)
    assert again.genotype == whole.genotype
    assert told.count("searching") == 1
    assert first.stat().st_mtime_ns == written


def test_all_seeds_see_the_same_images_and_differ_in_their_search(tmp_path: Path) -> None:
    search(tmp_path / "two", seeds=2)
    plans = [reopen(tmp_path / "two" / "seeds" / f"seed_{seed}")[0] for seed in (5, 6)]
    assert [plan.request.seed for plan in plans] == [5, 6]
    first, second = (plan.data.val.targets.tolist() for plan in plans)
    whole = reopen(tmp_path / "two")[0].data.val.targets.tolist()
    assert first == second == whole
    alphas = [(tmp_path / "two" / "seeds" / f"seed_{seed}" / Run.ALPHAS).read_bytes() for seed in (5, 6)]
    assert alphas[0] != alphas[1]


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (Request("darts", seeds=0), "--seeds must be at least 1"),
        (Request("darts", seeds=2, pick="test"), "by test images"),
        (Request("darts", seeds=2, pick="validaton"), "did you mean 'validation'"),
        (Request("darts", seeds=2, devices=2), "one device"),
    ],
)
def test_what_cannot_be_picked_is_one_sentence(request_: Request, says: str) -> None:
    with pytest.raises(UserError, match=says):
        resolve(request_)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--pick", "validation"), "give `--seeds 4`"),
        (("--seeds", "4", "--pick", "test"), "by test images"),
        (("--seeds", "0"), "at least 1"),
    ],
)
def test_on_the_command_line(
    arguments: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["oche", "search", "darts", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr().err
    assert (stop.value.code, said.count("\n")) == (2, 1)
    assert says in said
