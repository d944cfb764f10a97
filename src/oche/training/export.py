"""A trained network as files that need no oche: safetensors with a card, torch.export's .pt2, and ONNX checked against onnxruntime.

An exported file takes images as (B, C, H, W) floats in [0, 1], normalises them itself and gives logits; the contract of its training lies
in its metadata, and a script beside the ONNX file predicts without oche (`shipped`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from oche.config import describe, restore
from oche.data import Augment, Data
from oche.data.contract import Contract, PixelRule
from oche.errors import UserError, unknown
from oche.genotype import Genotype
from oche.run import Run
from oche.spaces import SPACES, Network, Space
from oche.spaces.cost import priced
from oche.spaces.limits import LIMITED, Limits
from oche.spaces.named import register_kept
from oche.tasks import Task
from oche.training.plausible import refuse_beyond, refuse_other_shapes, shapes_in
from oche.training.shipped import INPUT, OUTPUTS, SCRIPT_NAME, add_to_onnx, metadata, predict_script
from oche.training.standalone import NETWORK_NAME, built, refusal, script
from oche.training.timing import NOT_MEASURED, Latency, can_measure, latency_of

CARD, WEIGHTS = f"{Run.NETWORK}/card.json", f"{Run.NETWORK}/weights.safetensors"
FORMATS = ("pt2", "onnx")
TOLERANCE = 1e-4
SAME = 1e-6
"""How far the outputs of `network.py` may be from the network's: it computes the same in the same order."""


@dataclass(frozen=True)
class Loaded:
    """A network with its weights, in eval mode, and what must be known to use it; `card` is the JSON beside the weights."""

    network: Network
    space: Space
    genotype: Genotype
    classes: tuple[str, ...]
    augment: Augment
    card: Mapping[str, object]

    @property
    def contract(self) -> Contract:
        """What was decided about the data in training; for a network from before that was kept, what 8-bit images need."""
        table = self.card.get("contract")
        if isinstance(table, Mapping):
            return Contract.of(table)
        mean, std = self.augment.mean, self.augment.std
        return Contract(self.space.task, self.classes, self.space.inputs, self.space.size, PixelRule(), mean, std)


class Deployed(nn.Module):
    """Images (B, C, H, W) in [0, 1], or signals (B, C, 1, L) -> outputs (B, classes), or (B, classes, H, W).

    Normalisation and network in one plain module.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.network((images - self.mean) / self.std)
        return out


def save_network(
    run: Run,
    network: Network,
    space: Space,
    genotype: Genotype,
    data: Data,
    metrics: Mapping[str, object],
    task: Task | None = None,
    epochs: Sequence[int] = (),
    limits: Limits = Limits(),
) -> None:
    """Writes the run's `network/`: the weights without the auxiliary head, and the card that rebuilds the network around them.

    `task` is what it was trained for, whose loss the card then says, and `epochs` those of its trainings from scratch, one after the other.
    """
    contract, prices = data.contract, priced(limits)(space, genotype)
    counted = {name: int(value) for name, value in prices.items() if name != "latency"}
    foretold = {"foretold_ms": prices["latency"]} if "latency" in prices else {}
    card = {
        "oche": version("oche"),
        "task": space.task,
        "genotype": json.loads(genotype.to_json()),
        "space": describe(space),
        "classes": list(data.classes),
        "contract": contract.plain(),
        "input": {
            "shape": ["batch", data.channels, *data.size],
            "range": [contract.pixels.low, contract.pixels.high] if contract.signal else [0.0, 1.0],
            "mean": list(data.mean),
            "std": list(data.std),
            "says": INPUT,
        },
        "normalisation": "inside",
        "outputs": OUTPUTS.get(data.task, "the network's outputs as they are"),
        **counted,
        "latency": {**foretold, "measured": "not yet: oche export RUN" if can_measure() else NOT_MEASURED},
        **({"limits": limits.table(), "shares": limits.shares(prices)} if limits else {}),
        "metrics": dict(metrics),
        **({} if task is None else {"loss": describe(task)}),
        **({"epochs": list(epochs)} if epochs else {}),
    }
    weights = {
        name: t.detach().cpu().contiguous()
        for name, t in network.state_dict().items()
        if not name.startswith("auxiliary.")
    }
    run.write(WEIGHTS, safetensors_bytes(weights, metadata={"genotype": genotype.hash}))
    run.write(CARD, json.dumps(card, indent=1).encode())


def add_to_card(run: Run, more: Mapping[str, object]) -> None:
    """Writes more into the card of the run's network, in the place of what it said there before."""
    run.write(CARD, json.dumps({**json.loads(run.read(CARD)), **more}, indent=1).encode())


def load_network(run: Run) -> Loaded:
    """The run's trained network. Raises UserError where there is none, or where card and weights do not belong together."""
    if not run.has(CARD):
        raise UserError(f"{run.path} holds no trained network; train one with `oche train {run.path}`.")
    try:
        card = json.loads(run.read(CARD))
        given, classes, described = card["input"], tuple(card["classes"]), card["space"]
        mean, std = (tuple(map(float, given[name])) for name in ("mean", "std"))
        chosen = json.dumps(card["genotype"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{run.file(CARD)} is damaged: train the network again.") from None
    genotype = Genotype.from_json(chosen)
    register_kept(run)
    if genotype.space not in SPACES:
        raise UserError(
            f"The network of {run.path} is of the space {genotype.space!r}, which oche does not have: its search was given it as an "
            "object, which has to be handed over again, `oche.resume(RUN, space=...)`."
        )
    try:
        held = run.read(WEIGHTS)
        shapes = shapes_in(run.file(WEIGHTS))
        if SPACES[genotype.space].__module__.startswith("oche."):  # numbers of a user's own space may mean anything
            refuse_beyond(described, shapes, run.file(CARD))
        space = restore(SPACES[genotype.space](), described, "card.json: space")
        refuse_other_shapes(space, genotype, shapes)
        network = space.network(genotype)
        network.load_state_dict(safetensors_load(held))
        with safe_open(run.file(WEIGHTS), "pt") as weights:
            trained = (weights.metadata() or {}).get("genotype")
    except (RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{run.file(WEIGHTS)} does not hold the weights of the network in its card ({reason}): train it again."
        ) from None
    if trained != genotype.hash:
        raise UserError(f"{run.file(WEIGHTS)} was trained for another genotype than that of its card: train it again.")
    return Loaded(network.eval(), space, genotype, classes, Augment(mean, std), card)


def export_network(run: Run, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Writes the run's network as `network/model.pt2` and `network/model.onnx`, both with a free batch size, and a script for the latter.

    `network/network.py` beside them builds it in plain PyTorch; it is written for all but spaces and operations of the user's own.
    Networks for masks take images of any size from `Space.least_side` on. Every file is loaded again and compared with the module on
    batches of 1 and 3, and of other sizes. Raises UserError for an unknown format, a
    missing extra, or a file whose scores differ by more than 1e-4 of the largest.
    """
    for name in formats:
        if name not in FORMATS:
            raise unknown("export format", name, FORMATS)
    trained = load_network(run)
    module = Deployed(trained.network, trained.augment.mean, trained.augment.std).eval()
    size, least = (trained.space.inputs, *trained.space.size), trained.space.least_side()
    sizes = [size] if least is None else [size, (size[0], size[1] + least // 2, size[2] + 3)]
    says = says_of(trained)
    if not refusal(trained.space, trained.genotype):
        _write_source(run, trained, module, sizes)
    written = []
    card = dict(trained.card)
    for name in formats:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"model.{name}"
            if name == "pt2":
                torch.export.save(_program(module, size, least), path, extra_files=says)
            else:
                to_onnx(module, size, least, path)
                add_to_onnx(path, says)
                within(trained.card, path.stat().st_size)
            runner = _runner(name, path)
            for one in sizes:
                _compare(module, runner, one, f"{name} file's", TOLERANCE)
            run.write(f"{Run.NETWORK}/model.{name}", path.read_bytes())
            if name == "onnx":
                run.write(f"{Run.NETWORK}/{SCRIPT_NAME}", predict_script().encode())
                latency = card.get("latency")
                foretold = latency if isinstance(latency, Mapping) else {}
                card["latency"] = {**foretold, "measured": latency_of(path.read_bytes(), size).table()}
                run.write(CARD, json.dumps(card, indent=1).encode())
        written.append(run.file(f"{Run.NETWORK}/model.{name}"))
    return written


def _write_source(run: Run, trained: Loaded, module: nn.Module, sizes: Sequence[tuple[int, ...]]) -> None:
    """Writes `network/network.py`, once what it builds has been compared with the module."""
    weights = run.read(WEIGHTS)
    text = script(
        trained.network, trained.space, trained.genotype, trained.contract, hashlib.sha256(weights).hexdigest()
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NETWORK_NAME
        path.write_text(text, encoding="utf-8")
        path.with_name(Path(WEIGHTS).name).write_bytes(weights)
        other = built(path)
    for size in sizes:
        _compare(module, other, size, f"{NETWORK_NAME}'s", SAME)
    run.write(f"{Run.NETWORK}/{NETWORK_NAME}", text.encode())


def measured_latency(space: Space, genotype: Genotype) -> Latency:
    """The latency of the ONNX file that a genotype's network becomes, whatever its weights. Raises UserError without the extra `onnx`."""
    module = Deployed(space.network(genotype), [0.0] * space.inputs, [1.0] * space.inputs).eval()
    size = (space.inputs, *space.size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        to_onnx(module, size, space.least_side(), path)
        return latency_of(path.read_bytes(), size)


def over_latency(card: Mapping[str, object]) -> str:
    """A sentence where the measured latency is above the limit that the network was made for, else ""."""
    limits, latency = card.get("limits"), card.get("latency")
    most = limits.get("latency") if isinstance(limits, Mapping) else None
    measured = latency.get("measured") if isinstance(latency, Mapping) else None
    median = measured.get("median_ms") if isinstance(measured, Mapping) else None
    if not isinstance(most, int | float) or not isinstance(median, int | float) or median <= most:
        return ""
    return above(median, most)


def above(median: float, most: float) -> str:
    """The sentence about a latency above its limit."""
    return f"The exported network takes {median:.3f} ms on this machine, more than --max-latency {most:g}ms: search again with less."


def within(card: Mapping[str, object], taken: int, cost: str = "size") -> None:
    """Raises UserError where the ONNX file is larger than the limit, of `size` or `int8_size`, that the network was made for."""
    limits = card.get("limits")
    most = limits.get(cost) if isinstance(limits, Mapping) else None
    if isinstance(most, int) and taken > most:
        flag = "--" + LIMITED[cost][0].replace("_", "-")
        raise UserError(
            f"The ONNX file takes {taken:,} bytes, more than {flag} {most:,}: search again with a smaller limit."
        )


def says_of(trained: Loaded) -> dict[str, str]:
    """What an exported file says of its network."""
    return metadata(trained.contract, trained.space.least_side())


def available_formats() -> tuple[str, ...]:
    """The formats that can be written here: ONNX needs the extra `onnx`."""
    there = all(find_spec(name) for name in ("onnxruntime", "onnxscript"))
    return FORMATS if there else tuple(name for name in FORMATS if name != "onnx")


def _program(module: nn.Module, size: tuple[int, ...], least: int | None) -> torch.export.ExportedProgram:
    images, free = _example(size, least)
    return torch.export.export(module, (images,), dynamic_shapes={"images": free})


def _example(size: tuple[int, ...], least: int | None) -> tuple[Tensor, dict[int, torch.export.Dim]]:
    """Images to trace a network with, and the dimensions that stay free: the batch, and height and width where there is a least side.

    Such images are no multiple of a stride, so that padding them is traced too.
    """
    free = {0: torch.export.Dim("batch")}
    if least is None:
        return torch.zeros(2, *size), free
    free |= {2: torch.export.Dim("height", min=least), 3: torch.export.Dim("width", min=least)}
    return torch.zeros(2, size[0], 2 * least + 1, 2 * least + 3), free


def to_onnx(module: nn.Module, size: tuple[int, ...], least: int | None, path: Path) -> None:
    """Writes a module as an ONNX file for images of a size, or of any from `least` on. Raises UserError without the extra `onnx`."""
    if "onnx" not in available_formats():
        raise UserError("Exporting to ONNX needs the extra `onnx`: pip install 'oche[onnx]'.")
    images, free = _example(size, least)
    with _without_chatter():
        torch.onnx.export(
            module,
            (images,),
            path,
            dynamo=True,
            external_data=False,
            input_names=["images"],
            output_names=["scores"],
            dynamic_shapes={"images": free},
            verbose=False,
        )


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Keeps torch's exporter from speaking of torchvision and of its own deprecations, which no user can mend."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)


def _runner(name: str, path: Path) -> nn.Module:
    if name == "pt2":
        loaded = torch.export.load(path).module()
        assert isinstance(loaded, nn.Module)
        return loaded
    return OnnxModule(path)


class OnnxModule(nn.Module):
    """An ONNX file, called like the module it came from."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        import onnxruntime

        self.session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def forward(self, images: Tensor) -> Tensor:
        (scores,) = self.session.run(None, {"images": images.numpy()})
        return torch.from_numpy(scores)


@torch.no_grad()
def _compare(module: nn.Module, other: nn.Module, size: tuple[int, ...], whose: str, tolerance: float) -> None:
    for batch in (1, 3):
        images = torch.rand(batch, *size, generator=torch.Generator().manual_seed(batch))
        wanted, got = module(images), other(images)
        gap = float((wanted - got).abs().max() / wanted.abs().max().clamp_min(1.0))
        if not gap <= tolerance:  # NaN is refused too
            raise UserError(
                f"The {whose} scores differ from the network's by {gap:.1e} of the largest; it was not written. Report this."
            )
