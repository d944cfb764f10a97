"""What does a trained network say of images? `evaluate_run` scores it, `predict` names classes, `segment` paints masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load as safetensors_load

from oche import config
from oche.api.overlay import as_picture, colours, overlaid
from oche.data import Data, load
from oche.data.reading.folders import SUFFIXES, read_image
from oche.data.reading.pixels import resized, with_channels
from oche.errors import UserError, unknown
from oche.plan.resolve import fabric_for, requested, task_for
from oche.run import Run
from oche.training.evaluate import Score, evaluate
from oche.training.export import Loaded, load_network
from oche.training.train import BEST, LAST


@dataclass(frozen=True)
class Prediction:
    """Of one image: the class, and its probability in [0, 1]."""

    path: Path
    label: str
    probability: float


def evaluate_run(
    path: str | Path, *, data: str | Data | None = None, checkpoint: str = "kept", device: str = "auto"
) -> Score:
    """Scores a run's trained network on the test part of its own data, or of other data with the same classes.

    `checkpoint` is "kept" (the network/ folder), or of a training "last" or "best". Raises UserError.
    """
    run = Run.open(Path(path))
    loaded = load_network(run)
    if checkpoint not in ("kept", "last", "best"):
        raise unknown("checkpoint", checkpoint, ["kept", "last", "best"])
    if checkpoint != "kept":
        weights = safetensors_load(run.read(LAST if checkpoint == "last" else BEST))
        loaded.network.load_state_dict({name: t for name, t in weights.items() if not name.startswith("auxiliary.")})
    request, _ = requested(run)
    if not isinstance(data, Data):
        own = (
            {k.removeprefix("data."): v for k, v in request.settings.items() if k.startswith("data.")}
            if data is None
            else {}
        )
        options = {"source": data or request.data, "seed": request.seed, "channels": loaded.space.inputs, **own}
        data = config.build(load, options if data is None else {**options, "size": loaded.space.size}, "data")
    if data.classes != loaded.classes or data.size != loaded.space.size:
        raise UserError(
            f"{data.name} has {len(data.classes)} classes at {data.size}, the network was trained for {len(loaded.classes)} at "
            f"{loaded.space.size}: choose data with the same classes, in the same size."
        )
    fabric, task = fabric_for(device), task_for(data, {})
    return evaluate(loaded.network.to(fabric.device), data.test, loaded.augment, fabric, task)


@torch.no_grad()
def predict(
    path: str | Path, images: Sequence[str | Path], *, device: str = "auto", batch: int = 64
) -> list[Prediction]:
    """Classifies image files, or all images in folders, with a run's trained network. Raises UserError."""
    loaded = load_network(Run.open(Path(path)))
    _network_for("classify", loaded, path)
    files = list(image_files(images))
    where = fabric_for(device).device
    network = loaded.network.to(where)
    predictions = []
    for i in range(0, len(files), batch):
        part = files[i : i + batch]
        pixels = [
            resized(with_channels(read_image(f), loaded.space.inputs, str(f))[None], loaded.space.size) for f in part
        ]
        scores = network(loaded.augment.normalise(torch.cat(pixels).to(where))).softmax(1)
        best, label = scores.max(1)
        predictions += [
            Prediction(f, loaded.classes[int(c)], float(p)) for f, c, p in zip(part, label, best, strict=True)
        ]
    return predictions


@dataclass(frozen=True)
class Segmented:
    """Of one image: its overlay and its mask as files, and the share of the pixels of each class found, the largest first."""

    path: Path
    overlay: Path
    mask: Path
    shares: Mapping[str, float]


@torch.no_grad()
def segment(
    path: str | Path, images: Sequence[str | Path], out: str | Path, *, device: str = "auto"
) -> Iterator[Segmented]:
    """Segments image files, or all images in folders, with a run's trained network; pictures go to the folder `out`.

    An image is cropped at the centre and resized as in training; of each come NAME_overlay.png, the classes' colours over it, and
    NAME_mask.png, class numbers with these colours as palette. Nothing is overwritten. Raises UserError.
    """
    loaded = load_network(Run.open(Path(path)))
    _network_for("segment", loaded, path)
    files, folder = list(image_files(images)), Path(out)
    names = Counter(file.stem for file in files)
    if twice := [name for name, count in names.items() if count > 1]:
        raise UserError(
            f"{names[twice[0]]} of these images are called {twice[0]!r}; their pictures would have one name."
        )
    taken = [p for name in names for p in (folder / f"{name}_overlay.png", folder / f"{name}_mask.png") if p.exists()]
    if taken:
        raise UserError(f"{taken[0]} exists already; choose another folder, with `--out FOLDER`.")
    folder.mkdir(parents=True, exist_ok=True)
    where = fabric_for(device).device
    network, palette = loaded.network.to(where), colours(len(loaded.classes))
    for file in files:
        pixels = resized(with_channels(read_image(file), loaded.space.inputs, str(file))[None], loaded.space.size)
        mask = network(loaded.augment.normalise(pixels.to(where))).argmax(1)[0].cpu()
        overlay, labels = folder / f"{file.stem}_overlay.png", folder / f"{file.stem}_mask.png"
        overlaid(pixels[0], mask, palette).save(overlay)
        as_picture(mask, palette).save(labels)
        counts = torch.bincount(mask.flatten(), minlength=len(loaded.classes)) / mask.numel()
        ranked = sorted(zip(loaded.classes, counts.tolist(), strict=True), key=lambda pair: -pair[1])
        yield Segmented(file, overlay, labels, {name: share for name, share in ranked if share > 0})


def image_files(given: Sequence[str | Path]) -> Iterator[Path]:
    """The files named, and all images below the folders named, sorted. Raises UserError where something is missing or holds none."""
    for path in map(Path, given):
        if path.is_dir():
            found = sorted(p for p in path.rglob("[!.]*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not found:
                raise UserError(f"{path} holds no images; expected files such as {', '.join(sorted(SUFFIXES)[:4])}.")
            yield from found
        elif path.is_file():
            yield path
        else:
            raise UserError(
                f"There is no file or folder {str(path)!r} to predict; name image files or folders of them."
            )


def _network_for(task: str, loaded: Loaded, path: str | Path) -> None:
    if loaded.space.task != task:
        verb = "segment" if loaded.space.task == "segment" else "predict"
        raise UserError(
            f"The network of {path} is to {loaded.space.task}; use oche.{verb}, or `oche predict`, which knows."
        )
