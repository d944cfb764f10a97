"""The whole road on small data: a folder of images, search, comparison, training, scores, predictions, exported files."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import oche as library
from oche.api import inference
from oche.api import search as api
from oche.api.resume import reopen
from oche.api.train import Trained, plan_training
from oche.api.train import train as train_network
from oche.base import counted
from oche.cli import main as cli
from oche.data import Data, load
from oche.data.reading.files import read_image
from oche.genotype import Choice, Genotype
from oche.plan.machine import fabric_for
from oche.run import Run
from oche.spaces import SPACES, Network
from oche.spaces.sampling import sample
from oche.training.export import FORMATS, export_network, load_network, save_network
from oche.training.protocols import PROTOCOLS
from oche.training.train import Training, retrain
from reference.tiny import tiny_data, tiny_space

MEASURED = {"seconds", "images_per_second", "memory_mib", "checkpoint_share"}
README = Path(__file__).parents[2] / "README.md"


def pattern(kind: str, rng: np.random.Generator, side: int = 16) -> np.ndarray:
    """A noisy RGB image: stripes across, stripes down, or a bright disc."""
    y, x = np.mgrid[:side, :side]
    shapes = {"rows": (y // 2) % 2, "columns": (x // 2) % 2, "disc": (x - 7.5) ** 2 + (y - 7.5) ** 2 < 25}
    plane = 60 + 130 * shapes[kind][..., None].astype(np.float64) + rng.normal(0, 20, (side, side, 3))
    return plane.clip(0, 255).astype(np.uint8)


def made(root: Path, count: int = 20) -> Path:
    rng = np.random.default_rng(3)
    for kind in ("rows", "columns", "disc"):
        (root / kind).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(pattern(kind, rng)).save(root / kind / f"{i:02d}.png")
    return root


Oche = Callable[..., str]


@pytest.fixture
def oche(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Oche:
    """Runs the command in this process; stdout of one that ended well."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["oche", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        assert not stop.value.code, err
        return out

    return run


def log(run: Path) -> list[dict[str, object]]:
    return [{k: v for k, v in record.items() if k not in MEASURED} for record in Run.open(run).records()]


# ---------------------------------------------------------------------- every command after one another


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_road_from_a_folder_of_images(oche: Oche, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images = made(tmp_path / "patterns")
    assert "rows" in oche("check", images)
    out = oche(
        "search", "rf_darts", "--space", "s2", "--data", images, "--budget", "smoke", "--compare", 1, "--compare-seeds", 2,
        "--protocol", "smoke", "--out", "searched",
    )  # fmt: skip
    for words in ("patterns", "rows", "s2", "supernet", "of them learn", "MiB", "searched", "oche train"):
        assert words in out
    searched = Run.open(Path("searched"))
    for name in (
        "run.toml",
        "log.jsonl",
        "alphas.npz",
        "genotype.json",
        "state.pt",
        "report.html",
        "genotypes/epoch_000.json",
    ):
        assert searched.has(name), name
    for name in ("card.json", "weights.safetensors", "model.pt2", "model.onnx"):
        assert searched.has(f"network/{name}"), name
    kinds = [record["kind"] for record in log(searched.path)]
    assert kinds == ["epoch", "epoch", "supernet", "test", "confusion", *["trained"] * 6, "comparison"]
    wrong = json.loads(searched.read(Run.MISTAKES))
    (tested,) = (record for record in log(searched.path) if record["kind"] == "test")
    assert tested["accuracy"] == pytest.approx(1 - wrong["wrong"] / wrong["of"])
    assert len(json.loads(searched.read(Run.AUGMENTED))["entries"]) == 4
    genotype = Genotype.from_json(searched.read(Run.GENOTYPE).decode())
    assert genotype == Genotype.from_json(searched.read(Run.genotype(1)).decode())
    tiny_space("s2", tiny_data()).check(genotype)
    with np.load(searched.file("alphas.npz")) as arrays:
        assert arrays["normal/alpha"].shape == (3, 14, 2)  # before the first epoch, and after each
        assert not np.array_equal(arrays["normal/alpha"][0], arrays["normal/alpha"][2])

    out = oche("train", "searched", "--protocol", "quick", "--epochs", 6, "--out", "trained")
    trained = Run.open(Path("trained"))
    assert len([r for r in log(trained.path) if r["kind"] == "train_epoch"]) == 6
    for name in (
        "run.toml",
        "genotype.json",
        "state.pt",
        "report.html",
        "checkpoints/last.safetensors",
        "checkpoints/best.safetensors",
    ):
        assert trained.has(name), name
    assert Genotype.from_json(trained.read(Run.GENOTYPE).decode()) == genotype

    scores = {c: json.loads(oche("eval", "trained", "--checkpoint", c, "--json")) for c in ("kept", "last", "best")}
    assert scores["kept"] == scores["last"]  # what this protocol keeps
    assert sum(map(sum, scores["kept"]["confusion"])) == scores["kept"]["images"] == 12
    tests = [record for record in log(trained.path) if record["kind"] == "test"]
    assert scores["kept"]["accuracy"] == pytest.approx(tests[0]["accuracy"])
    assert scores["kept"]["accuracy"] > 0.6, "the patterns are easy: chance is 1/3"
    assert f"{scores['kept']['accuracy']:.2%}" in oche("eval", "trained")

    lines = oche("predict", "trained", images / "disc", images / "rows" / "00.png", "--json").splitlines()
    told = [json.loads(line) for line in lines]
    assert len(told) == 21
    assert all(0 <= p["probability"] <= 1 and p["label"] in ("rows", "columns", "disc") for p in told)
    assert told[-1]["path"].endswith("00.png")

    oche("export", "trained")
    assert_exports_equal(trained, (3, 16, 16))
    assert "trained" in oche("report", "trained")
    assert oche("draw", "trained")

    out = oche("search", "--config", "searched/run.toml", "--out", "again", "--quiet")
    assert log(Path("again")) == log(Path("searched"))
    assert Run.open(Path("again")).read(Run.GENOTYPE) == searched.read(Run.GENOTYPE)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "space"), [("fault_darts", "signal"), ("darts", "sase")])
def test_the_road_of_other_spaces(
    method: str, space: str, oche: Oche, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an archive of arrays to a prediction and a file: signals, and images with searched attention."""
    monkeypatch.chdir(tmp_path)
    rng, y = np.random.default_rng(0), np.arange(90) % 3
    wave = np.sin((0.2 + 0.25 * y[:, None]) * np.arange(48) + rng.uniform(0, 6, (90, 1)))[:, None]
    x = wave + 0.1 * rng.normal(size=wave.shape)
    if space == "sase":
        x = (np.broadcast_to(x, (90, 48, 48))[:, :16, :16, None] * 60 + 128).clip(0, 255).astype(np.uint8)
    np.savez("data.npz", x=x, y=y)
    size = ["space.layers=2,1,1"] if space == "signal" else ["space.layers=1,1"]
    out = oche(
        "search", method, "--space", space, "--data", "data.npz", "--budget", "smoke", "--compare", 1, "--compare-seeds", 1,
        "--protocol", "smoke", "--out", "found", "--set", *size, "--set", "space.channels=4",
    )  # fmt: skip
    assert space in out
    found = Run.open(Path("found"))
    assert [record["kind"] for record in log(found.path)][-1] == "comparison"
    told = json.loads(oche("eval", "found", "--json"))
    (tested,) = (record for record in log(found.path) if record["kind"] == "test")
    assert told["accuracy"] == pytest.approx(tested["accuracy"])
    oche("export", "found")
    assert_exports_equal(found, (1, 1, 48) if space == "signal" else (1, 16, 16))


def test_predictions_are_those_of_the_network(tmp_path: Path) -> None:
    """One by one in Python, from pixels to probability, and the same in any batch."""
    images = made(tmp_path / "patterns", count=12)
    trained = quick_training(load(str(images)), tmp_path / "run")
    told = inference.predict(trained.path, [images], batch=7)
    loaded = load_network(trained)
    assert len(told) == 36
    for p in told[::5]:
        pixels = torch.from_numpy(read_image(p.path)).permute(2, 0, 1)[None].double() / 255
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (loaded.augment.mean, loaded.augment.std))
        probability = loaded.network(((pixels - mean) / std).float()).softmax(1)[0].detach()
        assert p.label == loaded.classes[int(probability.argmax())]
        assert p.probability == pytest.approx(float(probability.max()), abs=1e-5)
    assert inference.predict(trained.path, [told[3].path])[0].label == told[3].label


def quick_training(data: Data, path: Path, space: str = "toy") -> Run:
    """A finished training, as `oche train` leaves it."""
    genotype = sample(tiny_space(space, data), counted(2))
    settings = {"train.epochs": 1} | ({"space.cells": 2, "space.channels": 4} if space != "toy" else {})
    return train_network(
        str(genotype), space=space, data=data, protocol="smoke", settings=settings, device="cpu", out=path
    ).run


# ---------------------------------------------------------------------- what the seed settles


def test_training_a_search_tests_on_images_that_the_search_never_saw(tmp_path: Path) -> None:
    """The split is the search's, whatever seed the training has."""
    settings = {"split.weights": 0.05, "split.arch": 0.05}
    found = api.search(
        "darts", space="toy", budget="smoke", epochs=1, seed=4, compare=0, settings=settings, out=tmp_path / "s"
    )
    from oche.plan.request import TrainRequest

    plan = plan_training(TrainRequest(str(found.run.path), protocol="smoke", seed=9))
    searched, _ = reopen(found.run.path)
    for part in ("train", "val", "test"):
        assert torch.equal(getattr(plan.training.data, part).index, getattr(searched.data, part).index)
    assert plan.training.seed == 9


@pytest.mark.slow
def test_two_searches_with_one_seed_are_one(tmp_path: Path) -> None:
    runs = [smoke("darts", "toy", tmp_path / str(seed), seed=seed % 2) for seed in range(3)]
    assert log(runs[0].path) == log(runs[2].path) != log(runs[1].path)
    assert runs[0].read(Run.GENOTYPE) == runs[2].read(Run.GENOTYPE)


# ---------------------------------------------------------------------- every space and method


def smoke(method: str, space: str, out: Path, seed: int = 0, **settings: object) -> Run:
    data = tiny_data(12, (1, 16)) if space == "signal" else tiny_data(12)
    found = api.search(
        method, space=space, data=data, budget="smoke", epochs=1, batch=4, seed=seed, compare=0, settings=settings,
        device="cpu", out=out,
    )  # fmt: skip
    assert (found.run.path / "report.html").exists()
    assert [record["epoch"] for record in found.history] == [0]
    tiny_space(space, data, sharing=settings.get("space.sharing", "type"), **SIZES.get(space, {})).check(found.genotype)
    return found.run


SIZES: dict[str, dict[str, object]] = {
    "nb201": {"cells": 1},
    **{s: {"cells": 3} for s in ("darts", "stages", "s1", "s2", "s3", "s4")},
    "chain": {"layers": (2, 1, 1)},
    "sase": {"layers": (1, 1)},
    "signal": {"layers": (2, 1, 1)},
}


@pytest.mark.parametrize(
    "space",
    [
        "toy",
        "nb201",
        *(
            pytest.param(s, marks=pytest.mark.slow)
            for s in ("darts", "stages", "s1", "s2", "s3", "s4", "chain", "signal", "sase")
        ),
    ],
)
@pytest.mark.parametrize("method", ["rf_darts", pytest.param("pcdarts", marks=pytest.mark.slow)])
def test_every_space_is_searched_from_python(space: str, method: str, tmp_path: Path) -> None:
    smoke(method, space, tmp_path / "run")


def test_every_space_is_in_the_list_above() -> None:
    assert set(SPACES) == {"toy", "grid", *SIZES}  # the grid: test_masks.py


@pytest.mark.parametrize("method", ["darts", "darts_2nd", "rf_darts_2nd", "pcdarts", "rf_pcdarts", "random_sampling"])
def test_every_method_searches_the_toy_space(method: str, tmp_path: Path) -> None:
    if method == "random_sampling":
        found = api.search(method, space="toy", data=tiny_data(12), budget="smoke", compare=0, out=tmp_path / "run")
        assert found.run.has(Run.GENOTYPE)
    else:
        smoke(method, "toy", tmp_path / "run")


def test_alpha_for_each_cell_by_itself(tmp_path: Path) -> None:
    run = smoke("darts", "toy", tmp_path / "run", **{"space.sharing": "cell"})
    genotype = Genotype.from_json(run.read(Run.GENOTYPE).decode())
    assert set(genotype.groups) == {"cell_0", "cell_1"}


# ---------------------------------------------------------------------- every operation exported


def assert_exports_equal(run: Run, size: tuple[int, int, int]) -> None:
    """Both files give the network's scores on batches of one and five, to 1e-4."""
    import onnxruntime

    loaded = load_network(run)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (loaded.augment.mean, loaded.augment.std))
    program = torch.export.load(run.file("network/model.pt2")).module()
    session = onnxruntime.InferenceSession(run.read("network/model.onnx"), providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        images = torch.rand(batch, *size, generator=torch.Generator().manual_seed(batch + 10))
        with torch.no_grad():
            wanted = loaded.network((images - mean) / std)
            torch.testing.assert_close(program(images), wanted, atol=1e-4, rtol=1e-4)
        (scores,) = session.run(None, {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(scores), wanted, atol=1e-4, rtol=1e-4)


def holding(space: str, op: str, seed: int, data: Data) -> Genotype:
    """A random genotype of the space that has the operation at least once, where the space has it at all."""
    bound = tiny_space(space, data)
    for n in range(seed, seed + 500):
        genotype = sample(bound, counted(n))
        if genotype.count(op):
            return genotype
    raise AssertionError(f"{space} never chose {op}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("space", "op", "channels", "size"),
    [
        ("toy", "none", 1, (8, 8)),
        ("nb201", "avg_pool_3x3", 3, (9, 13)),
        ("darts", "sep_conv_5x5", 3, (9, 13)),
        ("darts", "max_pool_3x3", 1, (16, 16)),
        ("s1", "dil_conv_5x5", 3, (11, 8)),
        ("s2", "skip_connect", 1, (9, 13)),
        ("s3", "sep_conv_3x3", 3, (8, 8)),
        ("s4", "noise", 1, (9, 13)),
        ("s4", "noise", 3, (8, 8)),
    ],
)
def test_every_space_is_exported(space: str, op: str, channels: int, size: tuple[int, int], tmp_path: Path) -> None:
    data = tiny_data(12, size, channels)
    sizes = {} if space == "toy" else {"cells": 1 if space == "nb201" else 3, "channels": 4}
    bound, genotype = tiny_space(space, data, **sizes), holding(space, op, 1, data)
    protocol = replace(PROTOCOLS["smoke"], epochs=1, batch=6)
    network = retrain(Training(bound, genotype, data, protocol, 0, fabric_for("cpu")))
    run = Run.create(tmp_path / "run")
    run.write(Run.CONFIG, b"")
    save_network(run, network, bound, genotype, data, {})
    assert [path.name for path in export_network(run)] == [f"model.{name}" for name in FORMATS]
    assert_exports_equal(run, (channels, *size))


def test_a_network_without_oche(tmp_path: Path) -> None:
    """`Trained.network()` takes images in [0, 1] and normalises them itself."""
    data = tiny_data(12)
    run = quick_training(data, tmp_path / "run")
    trained = Trained(run, inference.evaluate_run(run.path, data=data))
    images, _ = data.test.take(torch.arange(5))
    loaded = load_network(run)
    with torch.no_grad():
        got = trained.network()(images.permute(0, 3, 1, 2))
        wanted = loaded.network(loaded.augment.normalise(images))
    torch.testing.assert_close(got, wanted)


def test_a_network_predicts_each_image_by_itself(tmp_path: Path) -> None:
    """Running statistics: a prediction does not depend on its batch."""
    data = tiny_data(12)
    network = load_network(quick_training(data, tmp_path / "run")).network
    assert isinstance(network, Network)
    images = torch.rand(6, data.channels, *data.size)
    with torch.no_grad():
        torch.testing.assert_close(torch.cat([network(x[None]) for x in images]), network(images))


# ---------------------------------------------------------------------- the README


@pytest.mark.slow
def test_the_readme_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first Python block, as it stands."""
    found = re.search(r"```python\n(.*?)```", README.read_text() if README.exists() else "", re.DOTALL)
    if found is None:
        pytest.skip("README.md has no Python example yet")
    example = found[1]
    assert len(example.strip().splitlines()) <= 15
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})  # noqa: S102
    assert (tmp_path / "runs").is_dir()


def test_public_names_are_there() -> None:
    assert all(getattr(library, name) is not None for name in library.__all__)
    with pytest.raises(AttributeError, match="no attribute 'serch'"):
        getattr(library, "serch")  # noqa: B009


def test_soft_genotypes_are_rebuilt() -> None:
    """A cell that keeps coefficients and two operations an edge: the network mixes them as the supernet would."""
    data = tiny_data()
    bound = tiny_space("toy", data)
    edges = bound.groups[0].edges
    mixed = [Choice(s, t, op, c) for s, t in edges for op, c in (("skip_connect", 0.25), ("nor_conv_3x3", 0.5))]
    soft = Genotype("toy", {"cell": tuple(mixed)})
    network = bound.network(Genotype.from_json(soft.to_json())).eval()
    assert network(torch.rand(2, data.channels, *data.size)).shape == (2, 3)
