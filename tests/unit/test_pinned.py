"""What goes on with a run gets the data that it began with, or a refusal that says what changed."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oche.api import search as api
from oche.api.inference import evaluate_run
from oche.api.pinned import LEDGER, PRINT, changes, unrecorded
from oche.api.resume import reopen, resume
from oche.api.train import plan_training, train
from oche.cli import main as cli
from oche.data import load
from oche.errors import UserError
from oche.plan.request import Request, TrainRequest
from oche.plan.resolve import resolve
from oche.run import Run


def photos(root: Path, count: int = 30) -> Path:
    for n in range(count):
        path = root / "ab"[n % 2] / f"{n:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(n).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return root


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run that has begun, named by a relative path, and nothing searched yet."""
    photos(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    request = Request("darts", space="toy", data="photos", budget="smoke", compare=0, device="cpu")
    return api.start(resolve(request), tmp_path / "run")


def without_print(run: Run) -> Run:
    """The run as one from before fingerprints."""
    text = run.read(Run.CONFIG).decode()
    run.write(Run.CONFIG, "\n".join(x for x in text.splitlines() if not x.startswith("fingerprint")).encode())
    run.file(PRINT).unlink()
    return run


def test_the_same_data_from_another_folder(begun: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "else" / "photos").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "else")
    plan, _ = reopen(begun.path)
    assert plan.request.data == str(tmp_path / "photos")
    assert changes(begun, plan.data) == ()
    assert json.loads(begun.read(LEDGER))["layout"] == "folders of classes"


@pytest.mark.parametrize("kind", ["added", "removed", "class", "changed"])
def test_a_resumed_run_refuses_other_data_and_says_what_changed(begun: Run, tmp_path: Path, kind: str) -> None:
    root = tmp_path / "photos"
    if kind == "added":
        photos(root, 44)
        said = r"14 images are new \(a/30\.png.*moved from test to train"
    elif kind == "removed":
        (root / "a" / "04.png").unlink()
        said = r"1 image is gone \(a/04\.png\)"
    elif kind == "class":
        (root / "b").rename(root / "c")
        said = r"the class 'b' is gone; the class 'c' is new"
    else:
        Image.new("RGB", (8, 8)).save(root / "a" / "04.png")
        said = r"1 image changed \(a/04\.png\)"
    with pytest.raises(UserError, match=f"The data of .*run are not what they were: .*{said}"):
        resume(begun.path)


def test_run_toml_alone_tells_that_something_changed(begun: Run, tmp_path: Path) -> None:
    begun.file(PRINT).unlink()
    reopen(begun.path)
    (tmp_path / "photos" / "a" / "04.png").unlink()
    with pytest.raises(UserError, match="their fingerprint is another"):
        reopen(begun.path)


def test_what_an_old_run_did_not_record_is_said(begun: Run, tmp_path: Path) -> None:
    without_print(begun)
    (tmp_path / "photos" / "a" / "04.png").unlink()
    plan, _ = reopen(begun.path)
    assert any("did not record what its data were" in note for note in plan.data.notes)
    assert unrecorded(begun)


def test_what_labels_stood_for_in_an_old_run_is_said_to_be_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for kind, shape in (("images", (8, 8, 3)), ("masks", (8, 8))):
        (tmp_path / "scenes" / kind).mkdir(parents=True)
        for n in range(12):
            values = rng.integers(0, 2 if kind == "masks" else 256, shape, dtype=np.uint8)
            Image.fromarray(values).save(tmp_path / "scenes" / kind / f"{n}.png")
    says = tmp_path / "scenes" / "classes.toml"
    says.write_text("[classes]\nground = 0\ntree = 1\n")
    request = Request("darts", space="grid", data=str(tmp_path / "scenes"), budget="smoke", compare=0, device="cpu")
    begun = api.start(resolve(request), tmp_path / "run")
    assert not any("stand for" in note for note in reopen(begun.path)[0].data.notes)
    table = json.loads(begun.read(PRINT))
    del table["labels"]
    begun.write(PRINT, json.dumps(table).encode())
    said = f"{begun.path} has no record of what the labels in its masks stand for (it is older)"
    assert any(note.startswith(said) for note in reopen(begun.path)[0].data.notes)
    command = ["oche", "search", "--config", str(begun.file(Run.CONFIG)), "--dry-run", "--quiet"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert f"WARNING  {said}" in capsys.readouterr().out
    says.unlink()  # labels are the numbers of classes, and the names of classes tell of them
    with pytest.raises(UserError, match="the classes 'ground', 'tree' are gone"):
        reopen(begun.path)


def test_training_sees_the_searchs_split(begun: Run, tmp_path: Path) -> None:
    found = resolve(Request("random_sampling", space="toy", data="photos", budget="smoke", compare=0, device="cpu"))
    run = api.carry_out(found, begun).run
    plan_training(TrainRequest(run.path, protocol="smoke", device="cpu", settings={"data.size": 16}))
    with pytest.raises(UserError, match="moved from test to train"):
        plan_training(TrainRequest(run.path, protocol="smoke", device="cpu", settings={"data.seed": 5}))
    photos(tmp_path / "photos", 44)
    with pytest.raises(UserError, match="moved from test to train"):
        plan_training(TrainRequest(run.path, protocol="smoke", device="cpu"))
    other = TrainRequest(run.path, protocol="smoke", device="cpu", data=str(tmp_path / "photos"))
    assert len(plan_training(other).training.data.train) > 20


def test_evaluation_compares_too(begun: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = resolve(Request("random_sampling", space="toy", data="photos", budget="smoke", compare=0, device="cpu"))
    trained = train(
        api.carry_out(found, begun).run.path, protocol="smoke", epochs=1, device="cpu", out=tmp_path / "trained"
    )
    assert evaluate_run(trained.run.path, device="cpu") == trained.test
    (tmp_path / "photos" / "a" / "04.png").unlink()
    with pytest.raises(UserError, match=r"1 image is gone \(a/04\.png\)"):
        evaluate_run(trained.run.path, device="cpu")
    evaluate_run(trained.run.path, data=str(tmp_path / "photos"), device="cpu")


def test_data_made_by_hand_are_told_by_their_pixels(tmp_path: Path) -> None:
    data = load(photos(tmp_path / "photos"))
    bare = replace(data, identities={})
    request = Request("darts", space="toy", data=bare, budget="smoke", compare=0, device="cpu")
    run = api.start(resolve(request), tmp_path / "run")
    assert changes(run, bare) == ()
    assert changes(run, replace(bare, train=bare.train.subset(bare.train.index.sort().indices[1:])))


def test_repeating_a_run_says_what_changed(
    begun: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos" / "a" / "04.png").unlink()
    command = ["oche", "search", "--config", str(begun.file(Run.CONFIG)), "--dry-run", "--quiet"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert "the data are not those of" in capsys.readouterr().out
