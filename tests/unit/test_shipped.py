"""The script beside an exported network says what `oche predict` says, whatever the images are."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from oche.api.inference import predict, segment
from oche.base import counted
from oche.data import load
from oche.data.contract import Contract, decided
from oche.data.reading.applied import painted
from oche.data.reading.pixels import resized
from oche.run import Run
from oche.spaces.sampling import sample
from oche.training.export import Deployed, export_network, save_network
from oche.training.shipped import SCRIPT, metadata
from reference.tiny import tiny_masks, tiny_space

Array = NDArray[np.generic]


def pictures(kind: str, side: tuple[int, int]) -> list[Array]:
    """12 images of one kind, dark ones and light ones in turn."""
    rng = np.random.default_rng(len(kind))
    shape = {"grey16": (*side, 1), "float": (*side, 1), "rgba": (*side, 4), "bands": (*side, 13), "stack": (*side, 5)}
    unit = rng.random((12, *shape.get(kind, (*side, 3)))) * 0.6 + 0.4 * (np.arange(12) % 2)[:, None, None, None]
    if kind in ("float", "bands"):
        return list(unit.astype("f4"))
    return list((unit * 4000).astype("u2") if kind in ("grey16", "stack") else (unit * 255).astype("u1"))


def write(root: Path, kind: str, images: list[Array]) -> list[Path]:
    suffix = {"bands": ".npy", "float": ".tif", "stack": ".tif"}.get(kind, ".png")
    paths = [root / f"c{i % 2}" / f"{i:02}{suffix}" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "bands":
            np.save(path, np.moveaxis(image, 2, 0))
        elif kind == "stack":
            pages = [Image.fromarray(image[..., c]) for c in range(image.shape[2])]
            pages[0].save(path, save_all=True, append_images=pages[1:])
        elif kind == "tensors":
            np.save(path.with_suffix(".npy"), (image / 255).astype("f4"))
        else:
            Image.fromarray(image.squeeze()).save(path)
    return paths


def exported(root: Path, paths: list[Path], size: int | None = None, channels: int | None = None) -> Run:
    """A run with an untrained network for the images, exported to ONNX alone."""
    data = load(paths[0].parents[1], size=size, channels=channels)
    space = tiny_space("toy", data, channels=8)
    genotype = sample(space, counted(4))
    torch.manual_seed(5)
    network = space.network(genotype).train()
    for _ in range(3):
        network(torch.rand(8, data.channels, *data.size))
    with torch.no_grad():
        [m for m in network.modules() if isinstance(m, nn.Linear)][-1].weight.mul_(5)  # answers that differ
    run = Run.create(root / "run")
    run.write(Run.CONFIG, b"")
    save_network(run, network.eval(), space, genotype, data, {})
    export_network(run, ["onnx"])
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "size", "channels"),
    [
        ("rgb", 12, None), ("rgb", 13, 1), ("grey16", 12, None), ("float", 12, None),
        ("rgba", None, 4), ("rgba", 12, None), ("tensors", None, None), ("bands", 12, None), ("stack", None, None),
    ],
)  # fmt: skip
def test_the_script_agrees_with_predict(tmp_path: Path, kind: str, size: int | None, channels: int | None) -> None:
    """In a process that cannot import oche or torch: the same labels, probabilities within 1e-5."""
    paths = write(tmp_path / "data", kind, pictures(kind, (16, 20)))
    run = exported(tmp_path, paths, size, channels)
    if kind == "tensors":  # trained on floats in [0, 1], used on the 8-bit files that they came from
        paths = write(tmp_path / "files", "rgb", pictures(kind, (16, 20)))
    (tmp_path / "torch.py").write_text("raise ImportError")
    (tmp_path / "bad.png").write_bytes(b"no image")
    done = subprocess.run(
        [sys.executable, str(run.file("network/predict.py")), str(tmp_path / "bad.png"), *map(str, paths)],
        capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 1, "one of the files is no image; the others are answered"
    assert f"{tmp_path / 'bad.png'} cannot be read" in done.stderr
    assert "Traceback" not in done.stderr
    wanted = predict(run.path, paths)
    said = [line.split() for line in done.stdout.splitlines()]
    assert [(path, label) for path, label, _ in said] == [(str(p.path), p.label) for p in wanted]
    assert [float(p) for _, _, p in said] == pytest.approx([p.probability for p in wanted], abs=1e-5)
    assert len({p.label for p in wanted}) == 2 or len({round(p.probability, 4) for p in wanted}) > 6
    held = {p.key: p.value for p in onnx.load(run.file("network/model.onnx")).metadata_props}
    assert json.loads(held["classes"]) == ["c0", "c1"]
    assert Contract.of(json.loads(held["contract"])) == load(tmp_path / "data", size=size, channels=channels).contract
    assert (held["normalisation"], held["outputs"].split()[0]) == ("inside", "logits")


def test_the_script_resizes_as_pytorch_does() -> None:
    """Bytes bit for bit, floats within rounding, of many sizes; only the functions of the script are run, without its model."""
    functions = SCRIPT[SCRIPT.index("def painted") : SCRIPT.index("if __name__")]
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width, *size = (int(n) for n in rng.integers(8, 70, 4))
        image = rng.integers(0, 256, (height, width, int(rng.choice([1, 3, 4, 13]))), dtype=np.uint8)
        room: dict[str, object] = {"np": np, "size": size}
        exec(functions, room)  # noqa: S102  the text that is shipped, as it is
        for values in (image, (image / 255).astype("f4")):
            wanted = resized(torch.from_numpy(values)[None], (size[0], size[1]))[0].numpy()
            got = room["resized"](room["cropped"](values))  # type: ignore[operator]
            np.testing.assert_allclose(got, wanted, atol=0 if values.dtype == np.uint8 else 1e-5)


def test_the_script_finds_strange_what_predict_does() -> None:
    functions = SCRIPT[SCRIPT.index("def strange") : SCRIPT.index("def channelled")]
    rng, told = np.random.default_rng(2), set()
    for _ in range(300):
        depth, other = rng.choice(["uint8", "uint16", "float32"], 2)
        low, high = sorted(float(n) for n in rng.integers(0, {"uint8": 256, "uint16": 5000}.get(depth, 300), 2))
        rule = decided(low, high, [str(depth)], bool(rng.random() < 0.5))
        values = rng.integers(0, int(rng.choice([3, 256, 60_000] if other != "uint8" else [3, 256])), (4, 4, 1)).astype(
            other
        )
        values = values - np.float32(900) if other == "float32" and rng.random() < 0.3 else values
        room: dict[str, object] = {"np": np, "rule": asdict(rule)}
        exec(functions, room)  # noqa: S102  the text that is shipped, as it is
        wanted = rule.strange(float(values.min()), float(values.max()), values.dtype.name)
        assert room["strange"](values) == (wanted or "")  # type: ignore[operator]
        told.add((wanted or "").partition(" up")[0].partition(" down")[0])
    assert {"", "values", "uint8 values"} <= told


def test_the_metadata_is_text() -> None:
    held = metadata(load("digits").contract)
    assert all(isinstance(value, str) for value in held.values())
    assert Contract.of(json.loads(held["contract"])) == load("digits").contract


def test_the_script_paints_as_predict_does() -> None:
    """The mask of an image of any size, from scores that vary over every window, against `painted`."""
    functions = SCRIPT[SCRIPT.index("def painted") : SCRIPT.index("if __name__")]
    rng = np.random.default_rng(1)
    for _ in range(40):
        height, width, *size = (int(n) for n in rng.integers(8, 70, 4))
        image, mix = rng.random((height, width, 3), dtype="f4"), rng.random((4, 3), dtype="f4")

        def scores(pixels: Array, mix: Array = mix) -> Array:
            return np.ascontiguousarray((pixels @ mix.T).transpose(2, 0, 1))

        room: dict[str, object] = {"np": np, "size": size}
        exec(functions, room)  # noqa: S102  the text that is shipped, as it is
        room["scores"] = scores
        wanted = painted(
            torch.from_numpy(image), (size[0], size[1]), lambda x: torch.from_numpy(scores(x[0].numpy()))[None]
        )
        got = room["painted"](image)  # type: ignore[operator]
        assert got.shape == (height, width)
        assert (got == wanted.numpy()).mean() > 0.999  # scores that are equal to rounding may fall either way


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_exported_masks_of_any_size_are_those_of_predict(tmp_path: Path) -> None:
    """Both files take sizes that training never saw, multiples of a stride or not; the script's masks have their images' sizes."""
    data = tiny_masks(6, (24, 24), channels=3)
    space = tiny_space("grid", data, channels=4, layers=2, levels=2, ops=("mbconv_k3_e3", "skip_connect"))
    torch.manual_seed(5)
    genotype = sample(space, counted(4))
    network = space.network(genotype).train()
    for _ in range(3):
        network(torch.rand(8, 3, 24, 24))
    run = Run.create(tmp_path / "run")
    run.write(Run.CONFIG, b"")
    save_network(run, network.eval(), space, genotype, data, {})
    export_network(run)
    module = Deployed(network.eval(), data.mean, data.std).eval()
    program = torch.export.load(run.file("network/model.pt2")).module()
    session = onnxruntime.InferenceSession(run.file("network/model.onnx"))
    for count, height, width in ((1, 9, 9), (2, 24, 40), (1, 16, 16), (3, 31, 57)):
        images = torch.rand(count, 3, height, width)
        wanted = module(images).detach()
        assert wanted.shape[2:] == (height, width)
        torch.testing.assert_close(program(images), wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(session.run(None, {"images": images.numpy()})[0], wanted, rtol=1e-3, atol=1e-4)
    held = {p.key: p.value for p in onnx.load(run.file("network/model.onnx")).metadata_props}
    assert held["sizes"] == "any height and width from 9 on; trained at 24 x 24"

    paths = [tmp_path / f"{n}.png" for n in range(3)]
    for path, shape in zip(paths, ((24, 24), (30, 70), (90, 41)), strict=True):
        Image.fromarray(np.random.default_rng(7).integers(0, 256, (*shape, 3), dtype=np.uint8)).save(path)
    (tmp_path / "torch.py").write_text("raise ImportError")
    script = [sys.executable, str(run.file("network/predict.py")), *map(str, paths)]
    environment = {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    subprocess.run(script, capture_output=True, check=True, env=environment, cwd=tmp_path)
    for one in segment(run.path, paths, tmp_path / "out"):
        with Image.open(one.mask) as wanted_mask, Image.open(tmp_path / f"{one.path.stem}_mask.png") as got:
            assert got.size == wanted_mask.size
            assert (np.array(got) == np.array(wanted_mask)).mean() > 0.999
