"""The road from images with masks: search, comparison, training, scores, overlays, exported files; and what is refused on it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from oche.api import search as api
from oche.bench.matrix import SUPERNET, SUPERNET_TRAIN, TRAINED_TEST, TRAINED_VAL
from oche.bench.planned import Trial
from oche.bench.trial import run_trial
from oche.cli import main as cli
from oche.data import Data, load
from oche.data.overlay import as_picture, colours, overlaid
from oche.data.reading.files import read_image
from oche.errors import UserError
from oche.methods import method_named
from oche.plan.request import AUTO, Request
from oche.plan.resolve import resolve
from oche.run import Run
from oche.search.loop import search
from oche.search.method import Method
from oche.search.preflight import estimate
from oche.search.relaxations import Gated
from oche.tasks import Segment, balanced, mean_iou
from oche.training.evaluate import Score
from oche.training.export import FORMATS, load_network
from reference.tiny import tiny_data, tiny_masks, tiny_problem

SMALL = {"space.layers": 2, "space.levels": 2, "space.channels": 4, "space.ops": ["mbconv_k3_e3", "skip_connect"]}
Oche = Callable[..., tuple[object, str, str]]


@pytest.fixture
def oche(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Oche:
    """Runs the command in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["oche", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capsys.readouterr()

    return run


def made(root: Path, count: int = 15, side: int = 16) -> Path:
    """A bright disc on a dark ground, the ground's last row ignored."""
    rng = np.random.default_rng(3)
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for i in range(count):
        y, x = np.mgrid[:side, :side]
        at = rng.uniform(4, side - 4, 2)
        disc = (x - at[0]) ** 2 + (y - at[1]) ** 2 < 16
        image = 60 + 150 * disc[..., None] + rng.normal(0, 10, (side, side, 3))
        mask = disc.astype(np.uint8)
        mask[-1] = 255
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / f"images/{i}.png")
        Image.fromarray(mask).save(root / f"masks/{i}.png")
    (root / "classes.txt").write_text("ground\ndisc\n")
    return root


# ------------------------------------------------------------------ plans


def test_masks_decide_task_space_and_protocols() -> None:
    plan = resolve(Request("darts", data=tiny_masks(), budget="smoke"))
    assert (plan.request.space, plan.request.protocol) == ("grid", "segment_brief")
    assert plan.task == Segment()
    assert plan.table()["task"] == {"type": "Segment", "ignore": 255, "cross_entropy": 1.0, "class_weights": [], "ohem": "none",
        "ohem_least": 1 / 16, "dice": 0.0, "lovasz": 0.0, "label_smoothing": 0.0}  # fmt: skip
    classes = resolve(Request("darts", data=tiny_data(), budget="smoke"))
    assert (classes.request.space, classes.request.protocol, classes.task.metric) == ("nb201", "fast_brief", "accuracy")
    assert AUTO not in (plan.request.space, plan.request.protocol)


def test_the_loss_is_set_like_any_part_and_repeated_from_run_toml() -> None:
    settings = {"task.ohem": 0.7, "task.dice": 0.5, "task.balanced": True}
    data = tiny_masks()
    plan = resolve(Request("darts", data=data, budget="smoke", settings=settings))
    masks = data.train.take(torch.arange(len(data.train)))[1]
    counts = torch.tensor([int((masks == c).sum()) for c in range(3)])
    assert isinstance(plan.task, Segment)
    assert plan.task.class_weights == pytest.approx(balanced(counts), abs=1e-6)
    assert plan.task == Segment(ohem=0.7, dice=0.5, class_weights=plan.task.class_weights)
    other = replace(plan.request, settings={})
    assert resolve(replace(other, data=data), plan.table()).task == plan.task


@pytest.mark.parametrize(
    ("request_", "data", "said"),
    [
        (Request("darts", space="nb201", budget="smoke"), tiny_masks(),
         "has masks, which the space nb201 is not for; choose `--space grid`"),
        (Request("darts", space="grid", budget="smoke"), tiny_data(), "noise has one class per image, which the space grid is not for"),
        (Request("darts", budget="smoke", settings={"task.balanced": True}), tiny_data(), "have none"),
        (Request("darts", budget="smoke", settings={"task.dicee": 1}), tiny_masks(), "did you mean 'dice'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(request_: Request, data: Data, said: str) -> None:
    with pytest.raises(UserError, match=said):
        resolve(replace(request_, data=data))


def test_memory_is_measured_on_few_large_images() -> None:
    problem = tiny_problem("grid", channels=4, layers=2, levels=2, batch=6)
    method = method_named("darts")
    assert isinstance(method, Method)
    measured = estimate(problem, method)
    assert measured.memory_mib > 0
    assert measured.steps == 2


# ------------------------------------------------------------------ a search from Python


def test_a_search_with_gates_learns_and_is_repeated_to_the_bit() -> None:
    """Alphas and gates move, the score is the mean IoU, and the log names it."""
    method = method_named("darts")
    assert isinstance(method, Method)
    method = replace(method, relaxation=Gated(), arch_first=True)
    results = [search(tiny_problem("grid", channels=4, layers=2, levels=2, count=12), method) for _ in range(2)]
    alpha = results[0].state.alpha
    assert set(alpha) == {"grid/alpha", "grid/beta"}
    for name, t in alpha.items():
        assert torch.equal(t, results[1].state.alpha[name])
        assert not torch.equal(t, results[0].state.trajectory[name][0])
    assert results[0].genotype == results[1].genotype


def test_overlays_show_the_classes() -> None:
    palette = colours(19)
    assert len({tuple(row) for row in palette.tolist()}) == 19
    image = torch.randint(0, 255, (6, 9, 3), dtype=torch.uint8)
    mask = torch.randint(0, 19, (6, 9))
    mixed = np.asarray(overlaid(image, mask, palette), dtype=np.float64)
    wanted = image.double().mean(-1, keepdim=True) / 2 + palette[mask].double() / 2
    assert np.abs(mixed - wanted.numpy()).max() <= 0.5 + 1e-4
    picture = as_picture(mask, palette)
    assert np.array_equal(np.asarray(picture), mask.numpy())
    assert np.array_equal(np.asarray(picture.convert("RGB")), palette[mask].numpy())


# ------------------------------------------------------------------ every command after one another


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_road_from_a_folder_of_masks(oche: Oche, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made(tmp_path / "discs")
    sets = [word for path, value in SMALL.items() for word in ("--set", f"{path}={json.dumps(value)}")]
    common = ("--data", "discs", "--device", "cpu", "--threads", "1")
    code, out, err = oche("search", "rf_darts", "--task", "segment", *common, "--budget", "smoke", "--compare", 1, "--compare-seeds", 1,
                          "--protocol", "segment_smoke", "--out", "run", *sets)  # fmt: skip
    assert code in (0, None), err
    assert "test mIoU" in out
    records = Run.open(Path("run")).records()
    epochs = [r for r in records if r["kind"] == "epoch"]
    assert all(0 <= r["weight_miou"] <= 1 for r in epochs)  # type: ignore[operator]
    assert {"val_miou", "val_pixel_accuracy"} <= next(r for r in records if r["kind"] == "supernet").keys()
    loaded = load_network(Run.open(Path("run")))
    assert (loaded.space.task, loaded.card["task"], loaded.classes) == ("segment", "segment", ("ground", "disc"))

    code, out, err = oche("train", "run", "--protocol", "segment", "--epochs", 12, "--batch", 4, "--device", "cpu", "--threads", 1,
                          "--out", "trained")  # fmt: skip
    assert code in (0, None), err
    score = json.loads(oche("eval", "trained", "--json")[1])
    confusion = np.array(score["confusion"])
    assert confusion.sum() == score["pixels"] == 3 * 15 * 16
    assert score["miou"] > 0.55
    assert "test mIoU" in Path("trained/report.html").read_text()
    kept = [r for r in Run.open(Path("trained")).records() if r["kind"] == "class"]
    assert [r["class"] for r in kept] == ["ground", "disc"]
    right = np.diag(confusion)
    assert [r["iou"] for r in kept] == pytest.approx(list(right / (confusion.sum(0) + confusion.sum(1) - right)))

    code, out, err = oche("predict", "trained", "discs/images/3.png", "--json")
    assert code in (0, None), err
    told = json.loads(out)
    with Image.open(told["mask"]) as picture:
        mask = np.array(picture)
    assert mask.shape == (16, 16)
    assert told["shares"]["disc"] == pytest.approx(float((mask == 1).mean()))
    assert read_image(Path(told["overlay"])).shape == (16, 16, 3)
    code, _, err = oche("predict", "trained", "discs/images/3.png")
    assert code == 2
    assert "exists already" in err

    code, _, err = oche("export", "trained")
    assert code in (0, None), err
    assert all(Path(f"trained/network/model.{name}").is_file() for name in FORMATS)
    image = torch.from_numpy(read_image(Path("discs/images/3.png"))).permute(2, 0, 1)[None].float() / 255
    program = torch.export.load("trained/network/model.pt2").module()
    assert np.array_equal(program(image).argmax(1)[0].numpy(), mask)


def test_mistakes_in_masks_end_with_one_sentence_and_code_two(oche: Oche, tmp_path: Path) -> None:
    root = made(tmp_path / "discs", 4)
    (root / "masks/2.png").unlink()
    code, _, err = oche("search", "--data", root, "--dry-run")
    assert code == 2
    assert err.startswith("oche: The image")
    assert "2.png has no mask" in err
    assert err.count("\n") == 1
    code, _, err = oche("search", "--data", "digits", "--task", "segment", "--dry-run")
    assert code == 2
    assert "digits has a class for each image, no masks" in err


@pytest.mark.slow
@pytest.mark.parametrize("method", ["darts", "rf_darts"])
def test_a_smoke_search_on_camvid(method: str, data_folder: Path, tmp_path: Path) -> None:
    """A few real images at 64x96; the numbers mean nothing."""
    whole = load(data_folder / "camvid", size=(64, 96))
    few = {part: getattr(whole, part).subset(torch.arange(8)) for part in ("train", "val", "test")}
    found = api.search(
        method, data=replace(whole, **few), budget="smoke", compare=0, device="cpu", threads=1, out=tmp_path / "run"
    )
    assert found.genotype.space == "grid"
    assert [0 <= r["weight_miou"] <= 1 for r in found.history] == [True, True]  # type: ignore[operator]
    assert (tmp_path / "run/report.html").is_file()


def test_a_score_tells_classes_apart() -> None:
    score = Score("miou", {"miou": 0.5}, 0.0, ((3, 1, 0), (0, 4, 0), (0, 0, 0)))
    assert score.value == 0.5
    assert score.accuracy == pytest.approx(7 / 8)
    assert score.iou[:2] == pytest.approx((3 / 4, 4 / 5))
    assert np.isnan(score.iou[2])


# ------------------------------------------------------------------ several searches


def test_a_bench_measures_mean_iou(tmp_path: Path) -> None:
    """In percent, as the run's own log has it; the loss asked for is the training's too."""
    request = Request(
        "darts", space="grid", data=str(made(tmp_path / "discs")), budget="smoke", compare=0, protocol="segment_smoke", device="cpu",
        settings={**SMALL, "train.epochs": 1, "task.dice": 0.5},
    )  # fmt: skip
    outcome = run_trial(Trial("darts", "grid", "discs", "smoke", 0, request, train=True), tmp_path / "trial")
    records = Run.open(tmp_path / "trial").records()
    (supernet,) = (r for r in records if r["kind"] == "supernet")
    epochs = [r for r in records if r["kind"] == "epoch"]
    assert outcome.measured[SUPERNET] == pytest.approx(100 * supernet["val_miou"])
    assert outcome.measured[SUPERNET_TRAIN] == pytest.approx(100 * epochs[-1]["weight_miou"])
    for key in ("weight_miou", "arch_miou"):
        assert [value for _, value in outcome.probes[key]] == [r[key] for r in epochs]
    trained = Run.open(tmp_path / "trial" / "trained")
    (epoch,) = (r for r in trained.records() if r["kind"] == "train_epoch")
    assert outcome.measured[TRAINED_VAL] == pytest.approx(100 * epoch["val_miou"])
    assert 0 <= outcome.measured[TRAINED_TEST] <= 100
    assert "dice = 0.5" in trained.read(Run.CONFIG).decode()


@pytest.mark.slow
def test_a_seed_is_picked_by_mean_iou(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though another has more pixels right."""
    confusions = iter([((9, 0), (3, 0)), ((9, 0), (3, 0)), ((6, 3), (1, 2)), ((6, 3), (1, 2))])

    def score(*_: object) -> Score:
        counts = next(confusions)
        return Score("miou", Segment().metrics(torch.tensor(counts)), 0.0, counts)

    monkeypatch.setattr("oche.api.pick.evaluate", score)
    monkeypatch.setattr("oche.api.pick.retrain", lambda training: None)
    found = api.search(
        "darts", data=str(made(tmp_path / "discs")), budget="smoke", epochs=1, compare=0, seeds=2, device="cpu",
        settings=SMALL, out=tmp_path / "run",
    )  # fmt: skip
    first, second = (r for r in found.run.records() if r["kind"] == "seed")
    assert first["val_pixel_accuracy"] > second["val_pixel_accuracy"]
    assert second["val_miou"] == pytest.approx(mean_iou(torch.tensor(((6, 3), (1, 2)))))
    own = Run.open(tmp_path / "run" / "seeds" / "seed_1")
    assert found.run.read(Run.GENOTYPE) == own.read(Run.GENOTYPE)
    assert "validation mIoU" in found.run.read(Run.REPORT).decode()
