"""A run's own images for its report: what augmentation makes of them, and which of the test images the network gets most wrong.

Both are small pictures in JSON, of at most `BOUND` bytes each, so that a report needs neither torch nor the data.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence

import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor, nn

from oche.base import counted
from oche.data import Augmentation, Data, ImageSet, batches, none
from oche.data.overlay import colours, overlaid, plotted, shown
from oche.run import Run
from oche.tasks import Task

SIDE = 112
"""Pixels of a picture's longer side, at most."""

SMALL = 32
"""Pixels of the longer side up to which pictures are kept without loss."""

ORIGINALS, VARIED = 4, 5
"""Images that are shown augmented, and how often each."""

WORST = {"segment": 8}
"""Test images that are shown, by task; of the other tasks `MANY`."""

MANY = 24
NAMED, LEGEND = 4, 40
"""Labels that a caption names, and classes whose colours are told."""

BATCH, PIXELS = 256, 2**22
BOUND = 400_000
"""Bytes of each file."""

RESAMPLED, COUNTED = 400, 2**22
"""Resamplings of the test images for an interval, and the numbers that their tables may have together, at most."""

Entry = dict[str, object]


def keep_augmented(run: Run, data: Data, augment: Augmentation, seed: int) -> None:
    """Writes what augmentation makes of some train images into the run's folder."""
    run.write(Run.AUGMENTED, augmented(data, augment, seed))


def keep_mistakes(run: Run, network: nn.Module, data: Data, fabric: Fabric, task: Task) -> None:
    """Writes the test images that the network gets most wrong; nothing for a task that does not say what wrong is."""
    found = mistakes(network, data, fabric, task)
    if found is not None:
        run.write(Run.MISTAKES, found)


def augmented(data: Data, augment: Augmentation, seed: int) -> bytes:
    """Some train images, of different classes where they have one, each beside what `augment` makes of it, as JSON."""
    part = data.train
    chosen = _spread(part, data.task)
    generator = counted(seed, "samples")
    entries: list[Entry] = []
    for position in chosen:
        images, targets = part.take(torch.tensor([position]))
        several = augment.batch(
            images.expand(VARIED, *images.shape[1:]).contiguous(),
            targets.expand(VARIED, *targets.shape[1:]).contiguous(),
            generator,
        )
        varied = _pixels(several.images, data)
        masks = several.targets if data.task == "segment" else None
        entries.append(
            {
                "name": _name(data, "train", position),
                "class": data.classes[int(targets)] if data.task == "classify" else "",
                "original": _picture(_shown(images[0], data), targets[0] if masks is not None else None, data),
                "varied": [_picture(varied[i], None if masks is None else masks[i], data) for i in range(VARIED)],
            }
        )
    return _bounded({"how": augment.describe()}, entries)


@torch.no_grad()
def mistakes(network: nn.Module, data: Data, fabric: Fabric, task: Task) -> bytes | None:
    """The test images that the network gets most wrong, the worst first, as JSON; None for a task of another kind than the data.

    Wrong is, of classes, an image of another class: the surer the network was, the worse; of masks the share of wrong pixels; of labels the
    number of wrong ones; of numbers the mean squared error in standard deviations. `interval` is that of the score (`resampled`).
    """
    if task.name != data.task:
        return None
    was_training = network.training
    network.eval()
    height, width = data.size
    found, tables = list[Tensor](), list[Tensor]()
    for batch in batches(data.test, max(1, min(BATCH, PIXELS // (height * width))), none(data), fabric.device):
        with fabric.autocast():
            outputs = network(batch.images).float()
        found.append(badness(outputs, batch.targets, data).cpu())
        if data.task != "classify" and len(data.test) * len(data.classes) ** 2 <= COUNTED:
            tables += [task.confusion(outputs[i : i + 1], batch.targets[i : i + 1]).cpu() for i in range(len(outputs))]
    bad = torch.cat(found)
    wrong = int((bad > 0).sum())
    worst = bad.argsort(descending=True, stable=True)[: min(wrong, WORST.get(data.task, MANY))]
    entries: list[Entry] = []
    for position in worst.tolist():
        images, targets = data.test.take(torch.tensor([position]))
        with fabric.autocast():
            outputs = network(none(data).normalise(images.to(fabric.device))).float().cpu()
        entries.append({"name": _name(data, "test", position), **_told(images[0], targets[0].cpu(), outputs[0], data)})
    network.train(was_training)
    head: Entry = {"task": data.task, "wrong": wrong, "of": len(bad)}
    if data.task == "segment":
        named = zip(data.classes, _palette(data).tolist(), strict=False)
        head["colours"] = [[name, "#{:02x}{:02x}{:02x}".format(*colour)] for name, colour in named][:LEGEND]
    return _bounded({**head, "interval": resampled(torch.stack(tables), task)} if tables else head, entries)


def resampled(tables: Tensor, task: Task) -> list[float]:
    """The 95 % interval of a score over other images of the same kind, by the bootstrap.

    Args:
        tables: (N, ...) what `task.confusion` counts of each image.
        task: reads the score from their sum.
    """
    count, flat = len(tables), tables.double().flatten(1)
    generator = counted("resampled", count)
    scores = []
    for _ in range(RESAMPLED):
        drawn = torch.bincount(torch.randint(count, (count,), generator=generator), minlength=count)
        scores.append(task.score((drawn.double() @ flat).view(tables.shape[1:])))
    ends = torch.tensor(scores, dtype=torch.float64).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return [float(end) for end in ends]


def badness(outputs: Tensor, targets: Tensor, data: Data) -> Tensor:
    """(B,) how wrong the answers are, 0 for one that is right; see `mistakes`."""
    if data.task == "classify":
        sure, said = outputs.softmax(1).max(1)
        return sure * (said != targets)
    if data.task == "segment":
        assert data.ignore is not None
        valid = targets.ne(data.ignore)
        off = outputs.argmax(1).ne(targets) & valid
        return off.flatten(1).sum(1) / valid.flatten(1).sum(1).clamp_min(1)
    if data.task == "multilabel":
        return ((outputs >= 0) != (targets > 0)).sum(1).float()
    if data.task == "count":
        return (outputs - targets.to(outputs)).sum(1).abs()
    return (outputs - targets.to(outputs)).square().mean(1)


def _told(image: Tensor, target: Tensor, output: Tensor, data: Data) -> Entry:
    """One image as it is shown: its picture, what is true and what the network says."""
    entry: Entry = {"picture": _picture(_shown(image, data), None, data)}
    if data.task == "classify":
        said = int(output.argmax())
        sure = float(output.softmax(0)[said])
        return {**entry, "true": data.classes[int(target)], "said": data.classes[said], "note": f"{sure:.0%} sure"}
    if data.task == "segment":
        share = float(badness(output[None], target[None], data))
        assert data.ignore is not None
        said_mask = output.argmax(0).where(target != data.ignore, data.ignore)
        pictures = {"truth": _picture(shown(image), target, data), "painted": _picture(shown(image), said_mask, data)}
        return {**entry, **pictures, "true": "", "said": "", "note": f"{share:.0%} of the pixels wrong"}
    if data.task == "multilabel":
        there, named = (target > 0).tolist(), (output >= 0).tolist()
        return {**entry, "true": _listed(there, data.classes), "said": _listed(named, data.classes), "note": ""}
    return {**entry, "true": _numbers(target, data), "said": _numbers(output, data), "note": ""}


def _listed(flags: Sequence[bool], names: Sequence[str]) -> str:
    found = [name for name, flag in zip(names, flags, strict=True) if flag]
    return ", ".join(found[:NAMED]) + (f" and {len(found) - NAMED} more" if len(found) > NAMED else "") or "(none)"


def _numbers(values: Tensor, data: Data) -> str:
    if data.target_mean is not None and data.target_std is not None:
        values = values.double() * values.new_tensor(data.target_std) + values.new_tensor(data.target_mean)
    if data.task == "count":
        return f"{float(values.sum()):.4g}"
    pairs = list(zip(data.classes, values.tolist(), strict=True))
    return ", ".join(f"{name} {value:.4g}" for name, value in pairs[:NAMED])


def _spread(part: ImageSet, task: str) -> list[int]:
    """Positions of `ORIGINALS` images: the first of as many classes, then those that lie evenly over the part."""
    firsts: dict[int, int] = {}
    if task == "classify":
        for position, target in enumerate(part.targets.tolist()):
            firsts.setdefault(target, position)
    even = [len(part) * n // ORIGINALS for n in range(ORIGINALS)]
    return list(dict.fromkeys([*(firsts[c] for c in sorted(firsts)), *even]))[: min(ORIGINALS, len(part))]


def _shown(image: Tensor, data: Data) -> Tensor:
    """(H, W, 1 or 3) uint8 of an image (H, W, C) as it is stored, or the curves of a signal (1, L, C)."""
    return _pixels(none(data).normalise(image[None]), data)[0] if data.things == "signals" else shown(image)


def _pixels(images: Tensor, data: Data) -> Tensor:
    """(B, H, W, 1 or 3) uint8 of normalised images (B, C, H, W), or the curves of signals (B, C, 1, L)."""
    if data.things == "signals":
        return torch.stack([plotted(signal[:, 0].T) for signal in images])
    mean, std = images.new_tensor(data.mean), images.new_tensor(data.std)
    return shown(images.permute(0, 2, 3, 1) * std + mean)


def _picture(image: Tensor, mask: Tensor | None, data: Data) -> str:
    """A data URI of the image (H, W, 1 or 3) uint8, with its mask over it: PNG where it is small, else JPEG."""
    image = image.cpu()
    if mask is None:
        picture = Image.fromarray(image.squeeze(-1).numpy() if image.shape[-1] == 1 else image.numpy())
    else:
        picture = overlaid(image, mask.cpu(), _palette(data), ignore=data.ignore)
    longer = max(picture.size)
    if longer > SIDE:
        width, height = (max(1, round(side * SIDE / longer)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    kind = "png" if longer <= SMALL else "jpeg"
    picture.save(file, kind, **({} if kind == "png" else {"quality": 85}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _palette(data: Data) -> Tensor:
    """(classes, 3) uint8: the colours that the masks had, or colours of ours."""
    return torch.tensor(data.palette, dtype=torch.uint8) if data.palette else colours(len(data.classes))


def _name(data: Data, part: str, position: int) -> str:
    identity = data.identities.get(part)
    return identity.names[position] if identity else f"image {position}"


def _bounded(head: Entry, entries: list[Entry]) -> bytes:
    """The JSON of as many of the entries as keep the bound."""
    while True:
        text = json.dumps({**head, "entries": entries}).encode()
        if len(text) <= BOUND or not entries:
            return text
        entries = entries[:-1]
