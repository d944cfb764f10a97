"""Scores a network on images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan

import torch
from lightning_fabric import Fabric
from torch import nn

from oche.config import describe
from oche.data import Augmentation, ImageSet, batches
from oche.tasks import (
    Classify,
    Count,
    MultiLabel,
    Regress,
    Segment,
    Task,
    Vectors,
    accuracy,
    class_iou,
    label_f1,
    named,
)

BATCH, PIXELS = 256, 2**22
"""Images and pixels in one batch of an evaluation, at most."""


@dataclass(frozen=True)
class Score:
    """A network's scores on images: the task's `metrics`, mean `loss`, and `confusion` (classes, classes), true class by row.

    `value` is the metric that counts: accuracy, mean IoU, mean F1 or R2. Of labels and numbers `confusion` has the sums that
    `MultiLabel` and `Regress` describe, and there is neither `accuracy` nor `iou`. `notes` are about images that were read for the score.
    """

    metric: str
    metrics: Mapping[str, float]
    loss: float
    confusion: tuple[tuple[float, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        return self.metrics[self.metric]

    @property
    def accuracy(self) -> float:
        """Right answers over all: of images, or of pixels."""
        return accuracy(torch.tensor(self.confusion))

    def floor(self, task: Task) -> float:
        """The score of a network that always names the commonest class of these images, or their commonest labels, or their mean."""
        if isinstance(task, Vectors):
            return task.floor(torch.tensor(self.confusion))
        true = torch.tensor(self.confusion).sum(1)
        constant = torch.zeros(len(true), len(true), dtype=torch.int64)
        constant[:, int(true.argmax())] = true
        return task.score(constant)

    def honest(self, task: Task) -> dict[str, object]:
        """What the log has beside a score: `floor`, and of classes the number of those that are there and of those that are named."""
        if isinstance(task, Vectors):
            return {"metric": self.metric, "floor": self.floor(task)}
        counts = torch.tensor(self.confusion)
        if counts.dim() != 2 or counts.shape[0] != counts.shape[1]:  # a task of one's own counts otherwise
            return {"metric": self.metric}
        there, named = int((counts.sum(1) > 0).sum()), int((counts.sum(0) > 0).sum())
        return {"metric": self.metric, "floor": self.floor(task), "predicted": min(named, there), "classes": there}

    def card(self, task: Task) -> dict[str, object]:
        """What a network's card tells of these scores on test images: every metric, and the floor beside them."""
        floor = self.honest(task).get("floor")
        return {**named(self.metrics, "test"), **({} if floor is None else {"floor": floor})}

    @property
    def iou(self) -> tuple[float, ...]:
        """Intersection over union of each class; NaN for a class that is neither there nor predicted."""
        return tuple(class_iou(torch.tensor(self.confusion)).tolist())


def records_of(score: Score, task: Task | None, classes: Sequence[str], teaches: str) -> list[dict[str, object]]:
    """A score on test images as the records of a log: of masks and labels each class's, and of classes the confusion matrix.

    `teaches` is the task that the data are for; without `task`, one of the user's own, nothing is said of the commonest class.
    """
    honest = {"metric": score.metric} if task is None else {**score.honest(task), "task": describe(task)}
    records: list[dict[str, object]] = [{"kind": "test", **score.metrics, "loss": score.loss, **honest}]
    if score.metric == MultiLabel.metric:
        f1 = label_f1(torch.tensor(score.confusion)).tolist()
        return records + [
            {"kind": "class", "class": name, "f1": value} for name, value in zip(classes, f1, strict=True)
        ]
    if teaches == Segment.name:
        for name, iou in zip(classes, score.iou, strict=True):
            records.append({"kind": "class", "class": name, "iou": None if isnan(iou) else iou})
    if teaches not in (MultiLabel.name, Regress.name, Count.name):
        rows = [list(row) for row in score.confusion]
        records.append({"kind": "confusion", "classes": list(classes), "matrix": rows})
    return records


def fitting_batch(size: tuple[int, int], batch: int = BATCH) -> int:
    """Images of this size in one batch of an evaluation, at most."""
    return max(1, min(batch, PIXELS // (size[0] * size[1])))


@torch.no_grad()
def evaluate(
    network: nn.Module,
    images: ImageSet,
    augment: Augmentation,
    fabric: Fabric,
    task: Task = Classify(),
    batch: int = BATCH,
) -> Score:
    """Scores a network in eval mode; `augment` normalises (`data.none`). The network's mode is left as it was.

    The loss is the batches' mean, weighted by their images. Large images come in smaller batches, of at most `PIXELS` pixels.
    """
    height, width = images.take(torch.zeros(1, dtype=torch.int64))[0].shape[1:3]
    batch = fitting_batch((height, width), batch)
    was_training = network.training
    network.eval()
    loss, confusion = 0.0, torch.zeros(1, 1, device=fabric.device, dtype=torch.int64)
    for part in batches(images, batch, augment, fabric.device):
        with fabric.autocast():
            outputs = network(part.images).float()
        loss += float(task.loss(outputs, part.targets)) * len(part.targets)
        confusion = confusion + task.confusion(outputs, part.targets)
    network.train(was_training)
    rows = tuple(tuple(row) for row in confusion.tolist())
    return Score(task.metric, task.metrics(confusion), loss / len(images), rows)
