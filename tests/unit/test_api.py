"""The verbs as functions: what is taken over from a search, what is refused, and what a second call does not do again."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from oche.api import inference
from oche.api import search as api
from oche.api.folders import genotype_of
from oche.api.limits import cpu_threads, out_of_memory
from oche.api.resume import resume
from oche.api.train import Trained, plan_training
from oche.api.train import train as train_network
from oche.data import Data
from oche.errors import RunFailed, UserError
from oche.genotype import Genotype
from oche.plan.request import Request, TrainRequest, requested
from oche.plan.resolve import resolve
from oche.run import Run
from oche.search.searcher import MethodSearcher
from oche.tasks import confusion_matrix, mean_iou
from oche.training.export import CARD
from reference.tiny import tiny_data, tiny_masks

SMALL = tiny_data(12)
CELL = "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_3x3~1|"


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporting takes seconds, and has tests of its own."""
    monkeypatch.setattr(api, "available_formats", tuple)


def searched(path: Path, data: str | Data = SMALL, **options: object) -> api.Found:
    arguments = {
        "space": "toy",
        "budget": "smoke",
        "epochs": 1,
        "batch": 6,
        "compare": 0,
        "rivals": "none",
        "device": "cpu",
        **options,
    }
    return api.search("darts", data=data, out=path, **arguments)  # type: ignore[arg-type]


def photos(folder: Path) -> None:
    """Writes a folder of three classes with ten images each."""
    rng = np.random.default_rng(0)
    for name in "abc":
        (folder / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(folder / name / f"{i}.png")


def trained(path: Path, data: Data = SMALL, **options: object) -> Trained:
    return train_network(CELL, space="toy", data=data, protocol="smoke", epochs=1, batch=6, out=path, **options)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- the network that is kept

MASKS = {"space.layers": 2, "space.levels": 2, "space.channels": 4, "space.ops": ["mbconv_k3_e3"]}


@pytest.mark.usefixtures("no_export")
def test_the_searched_network_is_there_from_python(tmp_path: Path) -> None:
    """`found` of a method that keeps its weights: module, score and masks, against the module's own answers."""
    data = tiny_masks(8, channels=3)
    found = api.search(
        data=data, budget="smoke", compare=0, settings=MASKS, device="cpu", batch=4, out=tmp_path / "run"
    )
    images, masks = data.test.take(torch.arange(8))
    scores = found.network()(images.permute(0, 3, 1, 2))
    matrix = confusion_matrix(scores, masks, 255)
    assert found.test.metrics["miou"] == pytest.approx(mean_iou(matrix), abs=1e-9)
    logged = next(record for record in found.run.records() if record["kind"] == "test")
    assert found.test.metrics["miou"] == pytest.approx(logged["miou"], abs=1e-9)
    picture = tmp_path / "one.png"
    Image.fromarray((images[0].numpy() * 255).astype(np.uint8)).save(picture)
    (painted,) = found.predict(picture, tmp_path / "pictures")
    assert isinstance(painted, inference.Segmented)
    with Image.open(painted.mask) as mask:
        assert mask.size == (8, 8)


@pytest.mark.usefixtures("no_export")
def test_the_network_of_the_comparison_is_there_too(tmp_path: Path) -> None:
    found = searched(tmp_path / "run", compare=1, compare_seeds=1, protocol="smoke")
    images, targets = SMALL.test.take(torch.arange(len(SMALL.test)))
    right = (found.network()(images.permute(0, 3, 1, 2)).argmax(1) == targets).double().mean()
    assert found.test.accuracy == pytest.approx(float(right))
    with pytest.raises(UserError, match="leave it out"):
        found.predict("some.png", tmp_path)


def test_a_search_that_trained_nothing_says_how_to(tmp_path: Path) -> None:
    found = searched(tmp_path / "run")
    for ask in (found.network, lambda: found.test, lambda: found.predict("x.png")):
        with pytest.raises(UserError, match="holds no trained network; train one with `oche train"):
            ask()


# ---------------------------------------------------------------------- search


@pytest.mark.parametrize("inside", [torch.no_grad, torch.inference_mode])
def test_what_learns_has_gradients_whatever_the_caller_has_switched_off(
    inside: Callable[[], Any], tmp_path: Path
) -> None:
    """The same weights as without; and the caller's mode is as it was."""
    plain = trained(tmp_path / "plain", SMALL)
    with inside():
        found = searched(tmp_path / "run")
        again = trained(tmp_path / "again", SMALL)
        assert not torch.is_grad_enabled()
        score = inference.evaluate_run(again.run.path, data=SMALL)
    assert found.history[-1]["weight_loss"] == searched(tmp_path / "other").history[-1]["weight_loss"]
    assert again.test == plain.test == score


def test_images_that_are_read_in_inference_mode_can_be_trained_on(tmp_path: Path) -> None:
    """Of files, whose tensors are changed in place; arrays are copied first."""
    photos(tmp_path / "photos")
    given: dict[str, Any] = {"data": str(tmp_path / "photos"), "device": "cpu", "progress": False, "epochs": 1}
    plain = train_network("resnet8", protocol="smoke", out=tmp_path / "plain", **given)
    with torch.inference_mode():
        again = train_network("resnet8", protocol="smoke", out=tmp_path / "again", **given)
        found = api.search("rf_darts", space="toy", budget="smoke", compare=0, out=tmp_path / "run", **given)
    assert again.test == plain.test
    assert found.history


@pytest.mark.usefixtures("no_export")
def test_the_comparison_tells_how_a_rival_reads_the_same_data(tmp_path: Path) -> None:
    photos(tmp_path / "my photos")
    found = searched(
        tmp_path / "run", str(tmp_path / "my photos"), compare=1, compare_seeds=1, rivals="resnet8", protocol="smoke"
    )
    record = next(r for r in found.run.records() if r["kind"] == "comparison")
    assert record["again"] == f"--data '{tmp_path / 'my photos'}'"


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    runs = [searched(tmp_path / "run").run.path.name for _ in range(2)]
    assert runs == ["run", "run-2"]


def test_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = resolve(Request("rf_darts", space="toy", data=SMALL, budget="smoke"))
    assert api.start(plan).path == Path("runs/rf_darts-toy")


@pytest.mark.usefixtures("no_export")
def test_a_search_with_its_comparison(tmp_path: Path) -> None:
    events: list[str] = []
    found = searched(
        tmp_path / "run",
        compare=1,
        compare_seeds=2,
        rivals="auto",
        protocol="smoke",
        listener=lambda event, _: events.append(event),
    )
    assert found.comparison
    assert set(found.comparison.accuracies) == {"found", "random 1", *found.comparison.rivals}
    assert len(found.comparison.rivals) == 1
    assert events[-7:] == ["trained"] * 6 + ["beside"]
    (logged,) = (r for r in found.run.records() if r["kind"] == "comparison")
    assert len(logged["verdicts"]) == 2  # type: ignore[arg-type]
    card = json.loads(found.run.read(CARD))["comparison"]
    assert {"kind": "comparison", **card} == logged
    page = html.unescape(found.run.read(Run.REPORT).decode())
    for said in logged["verdicts"]:  # type: ignore[attr-defined]
        assert said[1:] in page
    assert events.count("epoch") == 1
    assert "supernet" in events
    score = inference.evaluate_run(found.run.path, data=SMALL)
    assert score.accuracy == found.comparison.found[0], "the exported network is the first of the comparison"
    again = resume(found.run.path, SMALL)
    assert isinstance(again, api.Found)
    assert again.comparison == found.comparison
    assert again.genotype == found.genotype


@pytest.mark.usefixtures("no_export")
def test_a_finished_search_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = searched(tmp_path / "run", compare=1, compare_seeds=1, protocol="smoke")
    before = found.run.read(Run.LOG)
    monkeypatch.setattr(MethodSearcher, "run", lambda *_: pytest.fail("searched again"))
    monkeypatch.setattr("oche.training.compare.retrain", lambda *_: pytest.fail("trained again"))
    resume(found.run.path, SMALL)
    assert found.run.read(Run.LOG) == before


@pytest.mark.slow
def test_missing_exports_are_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search killed between the comparison's record and the export."""
    monkeypatch.setattr(api, "available_formats", lambda: ("pt2",))
    found = searched(tmp_path / "run", compare=1, compare_seeds=1, protocol="smoke")
    file = found.run.file("network/model.pt2")
    file.unlink()
    resume(found.run.path, SMALL)
    assert file.exists()


def test_data_objects_are_needed_again_to_resume(tmp_path: Path) -> None:
    found = searched(tmp_path / "run")
    with pytest.raises(UserError, match="noise"):
        resume(found.run.path)
    assert isinstance(resume(found.run.path, SMALL), api.Found)


# ---------------------------------------------------------------------- train


def test_a_training_takes_over_space_size_and_data(tmp_path: Path) -> None:
    found = searched(
        tmp_path / "run",
        data="digits",
        settings={"space.channels": 6, "data.size": 12, "split.weights": 0.02, "split.arch": 0.02},
    )
    plan = plan_training(TrainRequest(str(found.run.path), protocol="smoke"))
    assert plan.training.genotype == found.genotype
    assert (plan.training.space.size, getattr(plan.training.space, "channels", 0)) == ((12, 12), 6)
    assert plan.training.data.name == "digits"
    assert plan.name == "run-train"
    other = plan_training(
        TrainRequest(str(found.run.path), data=SMALL, protocol="smoke", settings={"space.channels": 8})
    )
    assert (getattr(other.training.space, "channels", 0), other.training.data.name) == (8, "noise")


def test_genotypes_in_every_form(tmp_path: Path) -> None:
    genotype = Genotype.parse(CELL, "toy")
    file = tmp_path / "cell.json"
    file.write_text(genotype.to_json())
    run = searched(tmp_path / "run").run
    for given in (CELL, genotype.to_json(), file):
        assert genotype_of(given, "toy") == (genotype, None)
    assert genotype_of(run.path)[1] == run
    assert genotype_of("NB201_9930")[0].space == "nb201"
    with pytest.raises(UserError, match="'toy', not of 'nb201'"):
        genotype_of(file, "nb201")


def test_a_genotype_s_own_text_is_trained_however_long_it_is() -> None:
    """No file system is asked for a name of so many letters."""
    genotype = Genotype.parse("DARTS_V2")
    text = genotype.to_json()
    assert len(text) > 255
    settings = {"space.channels": 4, "space.cells": 3}
    plan = plan_training(TrainRequest(text, data=SMALL, protocol="smoke", settings=settings))
    assert plan.training.genotype.groups == genotype.groups
    with pytest.raises(UserError, match="Only a run's folder has weights"):
        plan_training(TrainRequest(text, data=SMALL, protocol="smoke", settings=settings, inherit=True))


def test_a_training_is_scored_on_the_test_images(tmp_path: Path) -> None:
    done = trained(tmp_path / "run")
    assert inference.evaluate_run(done.run.path, data=SMALL) == done.test
    kinds = [record["kind"] for record in done.run.records()]
    assert kinds == ["train_epoch", "test", "confusion"]
    assert sum(map(sum, done.test.confusion)) == len(SMALL.test)


def test_a_finished_training_resumed_gives_the_same(tmp_path: Path) -> None:
    done = trained(tmp_path / "run")
    log, weights = done.run.records(), done.run.read("network/weights.safetensors")
    again = resume(done.run.path, SMALL)
    assert isinstance(again, Trained)
    assert again.test == done.test
    assert [{k: v for k, v in r.items() if k != "seconds"} for r in again.run.records()] == [
        {k: v for k, v in r.items() if k != "seconds"} for r in log
    ]
    assert done.run.read("network/weights.safetensors") == weights


def test_options_of_found_train_are_checked(tmp_path: Path) -> None:
    found = searched(tmp_path / "run")
    with pytest.raises(UserError, match="did you mean 'epochs'"):
        found.train("smoke", epoch=3)


# ---------------------------------------------------------------------- evaluate and predict


def test_checkpoints_by_name(tmp_path: Path) -> None:
    done = trained(tmp_path / "run")
    assert inference.evaluate_run(done.run.path, data=SMALL, checkpoint="last") == done.test
    inference.evaluate_run(done.run.path, data=SMALL, checkpoint="best")
    with pytest.raises(UserError, match="did you mean 'best'"):
        inference.evaluate_run(done.run.path, data=SMALL, checkpoint="bets")


def test_data_with_other_classes_or_sizes_is_refused(tmp_path: Path) -> None:
    done = trained(tmp_path / "run")
    with pytest.raises(UserError, match="choose data with the same classes"):
        inference.evaluate_run(done.run.path, data=tiny_data(12, classes=4))
    with pytest.raises(UserError, match="choose data with the same classes"):
        inference.evaluate_run(done.run.path, data=tiny_data(12, (9, 9)))


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained network of one channel, 8 x 8."""
    return trained(tmp_path_factory.mktemp("api") / "run", tiny_data(12, channels=1)).run.path


def test_any_image_can_be_predicted(grey: Path, tmp_path: Path) -> None:
    """Colour and size are brought to the network's; folders are searched, names sorted."""
    (tmp_path / "more").mkdir()
    Image.new("RGB", (30, 20), (200, 10, 10)).save(tmp_path / "more" / "b.png")
    Image.new("L", (8, 8), 100).save(tmp_path / "more" / "a.png")
    Image.new("RGBA", (9, 40)).save(tmp_path / "c.webp")
    (tmp_path / "more" / "notes.txt").write_text("no image")
    told = inference.predict(grey, [tmp_path / "c.webp", tmp_path / "more"])
    assert [p.path.name for p in told] == ["c.webp", "a.png", "b.png"]
    assert all(p.label in ("0", "1", "2") and 1 / 3 <= p.probability <= 1 for p in told)


def test_one_damaged_image_does_not_lose_the_others(grey: Path, tmp_path: Path) -> None:
    for name in ("a", "c", "e"):
        Image.new("L", (8, 8), 100).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"nothing")
    (tmp_path / "d.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    failed: list[str] = []
    told = inference.predict(grey, [tmp_path], batch=2, failed=failed.append)
    assert [p.path.name for p in told] == ["a.png", "c.png", "e.png"]
    assert [name in sentence for name, sentence in zip(("b.png", "d.png"), failed, strict=True)] == [True, True]
    with pytest.raises(UserError, match=r"2 problems.*b\.png.*d\.png"):
        inference.predict(grey, [tmp_path], batch=2)


def test_what_cannot_be_reached_does_not_lose_the_others(
    grey: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a shell hands over `photos/*`: a folder without images, a link that leads nowhere, HEIC without its package."""
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("L", (8, 8), 100).save(photos / "a.png")
    (photos / "empty").mkdir()
    (photos / "link.png").symlink_to("nowhere.png")
    (photos / "closed").mkdir()
    (photos / "phone.heic").write_bytes(b"x")
    monkeypatch.setattr("oche.data.reading.files._heic", lambda: False)
    real = Path.iterdir

    def closed(self: Path) -> Iterator[Path]:
        if self.name == "closed":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self)

    monkeypatch.setattr(Path, "iterdir", closed)
    for given, count in (([photos / name for name in ("a.png", "closed", "empty", "link.png")], 3), ([photos], 3)):
        failed: list[str] = []
        assert [p.path.name for p in inference.predict(grey, given, failed=failed.append)] == ["a.png"]
        assert len(failed) == count
        said = " ".join(failed)
        assert "closed cannot be read: Permission denied" in said
        assert "link.png" in said
        assert ("empty holds no images" in said) == (len(given) > 1)
        assert ("phone.heic cannot be read: .heic needs the package" in said) == (len(given) == 1)
        with pytest.raises(UserError, match="3 problems"):
            inference.predict(grey, given)
    with pytest.raises(UserError, match="no file or folder"):
        inference.predict(grey, ["nothing.png"], failed=failed.append)


def test_masks_of_one_name_do_not_lose_the_others() -> None:
    files = [Path(name) for name in ("a/1.png", "a/2.png", "b/1.png", "a/1.png", "1.tif")]
    failed: list[str] = []
    assert inference._named_apart(files, failed.append) == (files[:2], ["1", "2"])
    assert ["b/1.png would have the name of that of a/1.png" in failed[0], "1.tif" in failed[1]] == [True, True]
    with pytest.raises(UserError, match="2 problems"):
        inference._named_apart(files, None)


def test_values_that_training_never_saw_are_said(grey: Path, tmp_path: Path) -> None:
    """The network was trained on floats in [0, 1]: bytes are divided by 255, as ever, and larger values are odd."""
    Image.new("L", (8, 8), 100).save(tmp_path / "bytes.png")
    Image.fromarray(np.full((8, 8), 100 / 255, np.float32)).save(tmp_path / "floats.tif")
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(tmp_path / "deep.png")
    one, deep, two = inference.predict(grey, [tmp_path])
    assert (one.label, two.odd) == (two.label, "")
    assert one.probability == pytest.approx(two.probability, abs=1e-6)
    assert "8-bit values, divided by 255" in one.odd
    assert "values up to 4000, where the train images end at 1" in deep.odd


def test_what_cannot_be_predicted(grey: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file or folder"):
        inference.predict(grey, [tmp_path / "none.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        inference.predict(grey, [tmp_path / "empty"])
    (tmp_path / "bad.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        inference.predict(grey, [tmp_path / "bad.png"])


# ---------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_memory_that_runs_out_is_a_sentence(error: Exception) -> None:
    with pytest.raises(RunFailed, match="--batch 32"), out_of_memory(64):
        raise error


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="a bug"), out_of_memory(64):
        raise RuntimeError("a bug")


def test_threads_are_put_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    with cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_requests_are_kept_as_they_were_asked(tmp_path: Path) -> None:
    done = trained(tmp_path / "run", seed=4, settings={"train.clip": 2.0})
    request, table = requested(done.run)
    assert isinstance(request, TrainRequest)
    assert (request.seed, request.protocol, request.data, request.settings) == (
        4,
        "smoke",
        "noise",
        {"train.clip": 2.0},
    )
    assert table["train"]["clip"] == 2.0  # type: ignore[index]
    assert replace(request, seed=4) == request


def test_results_print_in_a_line_and_give_rows(tmp_path: Path) -> None:
    found, done = searched(tmp_path / "run"), trained(tmp_path / "trained")
    for result in (found, done):
        assert len(repr(result).splitlines()) == 1
        assert str(result.run.path) in repr(result)
        assert len(result.rows()) == 1
        assert not any(isinstance(value, dict) for row in result.rows() for value in row.values())
    assert found.rows()[0]["skips.cell"] == found.genotype.skips()["cell"]
    assert done.rows()[0]["epoch"] == 0
