"""What a trained network says of images: `evaluate_run` scores it, `predict` names classes, `segment` paints masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import nan
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as safetensors_load
from torch import Tensor

from oche.api.own_data import data_of
from oche.data import Data
from oche.data.contract import Contract
from oche.data.overlay import as_picture, colours, overlaid, shown
from oche.data.problems import problems_of, refuse
from oche.data.reading.applied import Applied, applied, applied_to, painted
from oche.data.reading.given import image_files
from oche.errors import UserError, unknown
from oche.plan.machine import fabric_for
from oche.run import Run
from oche.training.evaluate import Score, evaluate
from oche.training.export import Loaded, load_network
from oche.training.train import BEST, LAST

Failed = Callable[[str], None]
"""Told the sentence about each image that cannot be read, while the others go on."""


@dataclass(frozen=True)
class Prediction:
    """What is predicted for one image: the class, its probability in [0, 1], and what training never saw of its values, "" for nothing.

    Of several labels `label` joins those of a probability of at least 0.5, "(none)" if there are none, `values` has the probability of each
    by name, and `probability` is that of all these answers together, taken as independent. Of numbers `values` has them by name, `label`
    says them, and `probability` is NaN.
    """

    path: Path
    label: str
    probability: float
    odd: str = ""
    values: Mapping[str, float] = field(default_factory=dict)


def evaluate_run(
    path: str | Path, *, data: str | Data | None = None, checkpoint: str = "kept", device: str = "auto"
) -> Score:
    """Scores a run's trained network on the test part of its own data, or of other data with the same classes.

    `checkpoint` is "kept" (the network/ folder), or of a training "last" or "best". The score's `notes` say how other data were divided
    and what of their values training never saw. Raises UserError.
    """
    run = Run.open(Path(path))
    loaded = load_network(run)
    if checkpoint not in ("kept", "last", "best"):
        raise unknown("checkpoint", checkpoint, ["kept", "last", "best"])
    if checkpoint != "kept":
        weights = safetensors_load(run.read(LAST if checkpoint == "last" else BEST))
        loaded.network.load_state_dict({name: t for name, t in weights.items() if not name.startswith("auxiliary.")})
    found, fabric, task = data_of(run, loaded, data, device)
    score = evaluate(loaded.network.to(fabric.device), found.test, loaded.augment, fabric, task)
    return score if data is None or isinstance(data, Data) else replace(score, notes=found.notes)


@torch.no_grad()
def predict(
    path: str | Path,
    images: Sequence[str | Path],
    *,
    device: str = "auto",
    batch: int = 64,
    failed: Failed | None = None,
) -> list[Prediction]:
    """Predicts classes, labels or numbers for images in files and folders, with a run's trained network, by its training's rule for values.

    What cannot be read or reached is told to `failed`, and left out. Raises UserError where nothing is left; without `failed`, for those
    images as well, all at once.
    """
    loaded = load_network(Run.open(Path(path)))
    _network_for("classify", loaded, path)
    files = image_files(images, failed)
    where = fabric_for(device).device
    loaded.network.to(where)
    predictions: list[Prediction] = []
    wrong: list[str] = []
    for i in range(0, len(files), batch):
        part = list(_readable(files[i : i + batch], loaded.contract, failed or wrong.append))
        if not wrong and part:
            predictions += _answers(loaded, part, where)
    refuse(wrong)
    return predictions


@torch.no_grad()
def predict_arrays(
    loaded: Loaded, arrays: Sequence[NDArray[np.generic]], *, device: str = "auto", batch: int = 64
) -> list[Prediction]:
    """Predicts for images as arrays (H, W, C), by the rule for values that files of these values would meet; see `predict`.

    The path of a prediction is the number of its array, `[0]` and so on. Raises UserError.
    """
    where = fabric_for(device).device
    loaded.network.to(where)
    ready = [(Path(f"[{i}]"), applied_to(array, loaded.contract, f"The image [{i}]")) for i, array in enumerate(arrays)]
    parts = (ready[i : i + batch] for i in range(0, len(ready), batch))
    return [prediction for part in parts for prediction in _answers(loaded, part, where)]


@torch.no_grad()
def segment_arrays(loaded: Loaded, arrays: Sequence[NDArray[np.generic]], *, device: str = "auto") -> list[Tensor]:
    """A mask (H, W) of class numbers, int64, for each image (H, W, C), in the image's own size. Raises UserError."""
    where = fabric_for(device).device
    network = loaded.network.to(where)

    def scores(pixels: Tensor) -> Tensor:
        out: Tensor = network(loaded.augment.normalise(pixels.to(where)))
        return out

    ready = [applied_to(array, loaded.contract, f"The image [{i}]") for i, array in enumerate(arrays)]
    return [painted(one.pixels, loaded.contract.size, scores) for one in ready]


def _answers(loaded: Loaded, part: Sequence[tuple[Path, Applied]], where: torch.device) -> list[Prediction]:
    """What the network, which is on the device already, says of images."""
    contract = loaded.contract
    pixels = _together([one.cropped(contract.size) for _, one in part])
    outputs = loaded.network(loaded.augment.normalise(pixels.to(where)))
    if contract.task == "classify":
        best, label = outputs.softmax(1).max(1)
        return [
            Prediction(f, loaded.classes[int(c)], float(p), one.odd)
            for (f, one), c, p in zip(part, label, best, strict=True)
        ]
    outputs = outputs.float().cpu()
    return [_predicted(f, one.odd, row, contract) for (f, one), row in zip(part, outputs, strict=True)]


def _predicted(file: Path, odd: str, outputs: Tensor, contract: Contract) -> Prediction:
    """The labels or numbers that a network's outputs (K,) for one image stand for."""
    if contract.task == "multilabel":
        chances = outputs.sigmoid()
        values = dict(zip(contract.classes, chances.tolist(), strict=True))
        said = ", ".join(name for name, output in zip(contract.classes, outputs.tolist(), strict=True) if output >= 0)
        return Prediction(file, said or "(none)", float(chances.maximum(1 - chances).prod()), odd, values)
    numbers = outputs.double()
    if contract.target_mean is not None and contract.target_std is not None:
        numbers = numbers * numbers.new_tensor(contract.target_std) + numbers.new_tensor(contract.target_mean)
    if contract.task == "count":
        count = float(numbers.sum())
        return Prediction(file, f"{count:.1f}", nan, odd, {contract.classes[0]: count})
    values = dict(zip(contract.classes, numbers.tolist(), strict=True))
    return Prediction(file, ", ".join(f"{name} {n:.5g}" for name, n in values.items()), nan, odd, values)


def _readable(files: Sequence[Path], contract: Contract, failed: Failed) -> Iterator[tuple[Path, Applied]]:
    """The files that can be read, by the contract; the sentences about the others go to `failed`."""
    for file in files:
        try:
            one = applied(file, contract)
        except UserError as error:
            for sentence in problems_of(error):
                failed(sentence)
            continue
        yield file, one


def _together(pixels: Sequence[Tensor]) -> Tensor:
    """One batch of images: bytes where all are, else floats."""
    if len({one.dtype for one in pixels}) > 1:
        pixels = [one.float() / 255 if one.dtype == torch.uint8 else one for one in pixels]
    return torch.cat(list(pixels))


@dataclass(frozen=True)
class Segmented:
    """What is written for one image: its overlay and its mask as files, and the share of the pixels of each class found, the largest first.

    `odd` is what training never saw of its values, "" for nothing.
    """

    path: Path
    overlay: Path
    mask: Path
    shares: Mapping[str, float]
    odd: str = ""


@torch.no_grad()
def segment(
    path: str | Path,
    images: Sequence[str | Path],
    out: str | Path,
    *,
    device: str = "auto",
    failed: Failed | None = None,
) -> Iterator[Segmented]:
    """Segments image files, or all images in folders, with a run's trained network; pictures go to the folder `out`.

    Both have the size of the image, which is looked at window by window (`painted`): NAME_overlay.png, the classes' colours over it, and
    NAME_mask.png, class numbers with these colours as palette, those of the training masks where they had some. Nothing is overwritten.
    Images that cannot be read are told to `failed`, and left out; without it, `Problems` comes after the last. Raises UserError.
    """
    loaded = load_network(Run.open(Path(path)))
    _network_for("segment", loaded, path)
    files, folder = image_files(images, failed), Path(out)
    files, names = _named_apart(files, failed)
    taken = [p for name in names for p in (folder / f"{name}_overlay.png", folder / f"{name}_mask.png") if p.exists()]
    if taken:
        raise UserError(f"{taken[0]} exists already; choose another folder, with `--out FOLDER`.")
    folder.mkdir(parents=True, exist_ok=True)
    where = fabric_for(device).device
    network, contract, wrong = loaded.network.to(where), loaded.contract, list[str]()
    palette = torch.tensor(contract.palette, dtype=torch.uint8) if contract.palette else colours(len(loaded.classes))

    def scores(pixels: Tensor) -> Tensor:
        out: Tensor = network(loaded.augment.normalise(pixels.to(where)))
        return out

    for file, one in _readable(files, contract, failed or wrong.append):
        mask = painted(one.pixels, contract.size, scores)
        overlay, labels = folder / f"{file.stem}_overlay.png", folder / f"{file.stem}_mask.png"
        overlaid(shown(one.pixels), mask, palette).save(overlay)
        as_picture(mask, palette).save(labels)
        counts = torch.bincount(mask.flatten(), minlength=len(loaded.classes)) / mask.numel()
        ranked = sorted(zip(loaded.classes, counts.tolist(), strict=True), key=lambda pair: -pair[1])
        yield Segmented(file, overlay, labels, {name: share for name, share in ranked if share > 0}, one.odd)
    refuse(wrong)


def _named_apart(files: Sequence[Path], failed: Failed | None) -> tuple[list[Path], list[str]]:
    """The files, each once and of one stem the first, and their stems. The others are told to `failed`; without it, raises UserError."""
    first: dict[str, Path] = {}
    wrong = []
    for file in dict.fromkeys(files):
        if (other := first.setdefault(file.stem, file)) != file:
            wrong.append(
                f"The mask of {file} would have the name of that of {other}; predict it by itself, with `--out FOLDER`."
            )
    if failed is None:
        refuse(wrong)
    for sentence in wrong:
        assert failed is not None
        failed(sentence)
    return list(first.values()), list(first)


def _network_for(task: str, loaded: Loaded, path: str | Path) -> None:
    if loaded.space.task != task:
        verb = "segment" if loaded.space.task == "segment" else "predict"
        raise UserError(
            f"The network of {path} is to {loaded.space.task}; use oche.{verb}, or `oche predict`, which knows."
        )
