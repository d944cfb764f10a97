"""What is being learned: the loss, and the score, read from one confusion matrix over all that was looked at."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from oche.base import Share
from oche.errors import UserError
from oche.own import Kind, has


class Task(Protocol):
    """A loss (a mean over the batch) and a score.

    `confusion` (classes, classes) int64 counts the answers, true class by row: it adds up over batches and processes, as does the table of
    sums that tasks with K targets an image have in its place. `metrics` reads numbers from the sum, mostly in [0, 1], `score` the one named
    `metric` among them, of which more is better.
    """

    name: ClassVar[str]
    metric: ClassVar[str]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor: ...
    def confusion(self, outputs: Tensor, targets: Tensor) -> Tensor: ...
    def score(self, confusion: Tensor) -> float: ...
    def metrics(self, confusion: Tensor) -> dict[str, float]: ...
    def smoothed(self, label_smoothing: float) -> Task: ...


@dataclass(frozen=True)
class Classify:
    """One class an image: cross-entropy on outputs (B, classes) and targets (B,), optionally with label smoothing."""

    name: ClassVar[str] = "classify"
    metric: ClassVar[str] = "accuracy"
    label_smoothing: Share = 0.0

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)

    def confusion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return confusion_matrix(outputs, targets)

    def score(self, confusion: Tensor) -> float:
        return accuracy(confusion)

    def metrics(self, confusion: Tensor) -> dict[str, float]:
        return {self.metric: self.score(confusion)}

    def smoothed(self, label_smoothing: float) -> Classify:
        return replace(self, label_smoothing=label_smoothing)


@dataclass(frozen=True)
class Segment:
    """One class a pixel: outputs (B, classes, H, W), targets (B, H, W); pixels of the label `ignore` count nowhere.

    loss = cross_entropy CE + dice Dice + lovasz Lovasz, each over all valid pixels of the batch, 0 where there are none.

    - CE: sum of w_t l / sum of w_t, with w_t the `class_weights` entry of the pixel's class (empty: 1).
    - `ohem`: CE over the pixels whose own class has a probability of at most max(`ohem`, that of the pixel at the share `ohem_least`
      of the hardest), 0.7 and 1/16 in FasterSeg; None takes all.
    - Dice: 1 - mean over classes present of 2 sum(p y) / (sum p + sum y) (kornia); Lovasz: the Lovasz-softmax of the Jaccard loss over
      the classes present (kornia; Berman et al., CVPR 2018).

    The score is the mean IoU over classes, from one confusion matrix over all images.
    """

    name: ClassVar[str] = "segment"
    metric: ClassVar[str] = "miou"
    ignore: int = 255
    cross_entropy: float = 1.0
    class_weights: tuple[float, ...] = ()
    ohem: float | None = None
    ohem_least: float = 1 / 16
    dice: float = 0.0
    lovasz: float = 0.0
    label_smoothing: Share = 0.0

    def __post_init__(self) -> None:
        parts = (self.cross_entropy, self.dice, self.lovasz)
        if min(parts) < 0 or max(parts) == 0:
            raise UserError(
                f"A segmentation loss needs weights of at least 0, one of them above; given cross_entropy={self.cross_entropy}, "
                f"dice={self.dice}, lovasz={self.lovasz}."
            )
        if (self.ohem is not None and not 0 < self.ohem <= 1) or not 0 < self.ohem_least <= 1:
            raise UserError(
                f"OHEM takes a probability and a share in (0, 1]; given ohem={self.ohem}, ohem_least={self.ohem_least}."
            )
        if self.class_weights and not min(self.class_weights) >= 0 < max(self.class_weights):
            raise UserError(f"Class weights must be at least 0, one of them above; given {self.class_weights}.")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.class_weights and len(self.class_weights) != outputs.shape[1]:
            raise UserError(f"There are {len(self.class_weights)} class weights for {outputs.shape[1]} classes.")
        valid = targets != self.ignore
        terms = []
        if self.cross_entropy:
            terms.append(self.cross_entropy * self._cross_entropy(outputs, targets, valid))
        if self.dice or self.lovasz:
            terms.append(self._regions(outputs, targets, valid))
        return sum(terms[1:], terms[0])

    def confusion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return confusion_matrix(outputs, targets, self.ignore)

    def score(self, confusion: Tensor) -> float:
        return mean_iou(confusion)

    def metrics(self, confusion: Tensor) -> dict[str, float]:
        return {self.metric: self.score(confusion), "pixel_accuracy": accuracy(confusion)}

    def smoothed(self, label_smoothing: float) -> Segment:
        return replace(self, label_smoothing=label_smoothing)

    def _cross_entropy(self, outputs: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
        weight = outputs.new_tensor(self.class_weights) if self.class_weights else None
        losses = F.cross_entropy(
            outputs, targets, weight, ignore_index=self.ignore, reduction="none", label_smoothing=self.label_smoothing
        )
        kept = valid if self.ohem is None else self._hard(outputs.detach(), targets, valid)
        shares = kept.to(losses) if weight is None else weight[targets.where(valid, 0)] * kept
        return (losses * kept).sum() / shares.sum().clamp_min(torch.finfo(losses.dtype).tiny)

    def _hard(self, outputs: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
        """(B, H, W) bool: the valid pixels that OHEM keeps, found without waiting for the device."""
        own = (-F.cross_entropy(outputs, targets, ignore_index=self.ignore, reduction="none")).exp()
        ranked = own.masked_fill(~valid, torch.inf).flatten().sort().values
        least = (valid.sum() * self.ohem_least).ceil().long().clamp_min(1)
        assert self.ohem is not None
        return valid & (own <= ranked[least - 1].clamp_min(self.ohem))

    def _regions(self, outputs: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
        """Dice and Lovasz on the valid pixels as one image, (1, classes, N, 1), so that neither an ignored pixel nor a batch's cut counts.

        The weights make both means run over the classes present: kornia's Dice divides by their sum, its Lovasz by all classes.
        """
        from kornia.losses import dice_loss, lovasz_softmax_loss  # here, for it takes a second to import

        if not bool(valid.any()):
            return outputs.sum() * 0
        classes = outputs.shape[1]
        pixels = outputs.permute(0, 2, 3, 1)[valid].T[None, :, :, None]
        labels = targets[valid][None, :, None]
        present = (torch.bincount(labels.flatten(), minlength=classes) > 0).to(outputs)
        total = outputs.new_zeros(())
        if self.dice:
            total = total + self.dice * dice_loss(pixels, labels, average="macro", weight=present)
        if self.lovasz:
            total = total + self.lovasz * lovasz_softmax_loss(pixels, labels, present * (classes / present.sum()))
        return total


class Vectors(ABC):
    """A task whose images have K targets each, (B, K): `confusion` is a table of sums, and no matrix of classes."""

    @abstractmethod
    def floor(self, counts: Tensor) -> float:
        """The score of the best answer that is the same for all images, by the task's own measure of it."""


@dataclass(frozen=True)
class MultiLabel(Vectors):
    """Any number of K labels an image: logits (B, K), targets (B, K) of 0 and 1.

    loss = mean over images and labels of the binary cross-entropy. A label is predicted where its probability is at least 0.5, that is
    where its logit is at least 0. `confusion` (K + 1, 4) int64 has a label's true positives, false positives, false negatives and true
    negatives by row; the last row has the images with all labels right first, the others last.

    mean_f1 = mean over labels of 2 TP / (2 TP + FP + FN), 0 for a label that is neither there nor predicted (as in scikit-learn and
    torchmetrics); exact_match is the share of images with all labels right.
    """

    name: ClassVar[str] = "multilabel"
    metric: ClassVar[str] = "mean_f1"
    label_smoothing: float = 0.0

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        wanted = targets.to(outputs) * (1 - self.label_smoothing) + self.label_smoothing / 2
        return F.binary_cross_entropy_with_logits(outputs, wanted)

    def confusion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        said, true = outputs >= 0, targets > 0
        labels = torch.stack(
            [(said & true).sum(0), (said & ~true).sum(0), (~said & true).sum(0), (~said & ~true).sum(0)], 1
        )
        right = (said == true).all(1).sum()
        images = torch.stack([right, right * 0, right * 0, len(outputs) - right])
        return torch.cat([labels, images[None]])

    def score(self, confusion: Tensor) -> float:
        return float(label_f1(confusion).mean())

    def metrics(self, confusion: Tensor) -> dict[str, float]:
        exact = confusion[-1, 0] / confusion[-1].sum().clamp_min(1)
        return {self.metric: self.score(confusion), "exact_match": float(exact)}

    def smoothed(self, label_smoothing: float) -> MultiLabel:
        return replace(self, label_smoothing=label_smoothing)

    def floor(self, counts: Tensor) -> float:
        """The score of always giving each label its commoner value."""
        there, absent = counts[:, 0] + counts[:, 2], counts[:, 1] + counts[:, 3]
        zero = torch.zeros_like(there)
        always = torch.stack([there, absent, zero, zero], 1)
        never = torch.stack([zero, zero, there, absent], 1)
        return self.score(torch.where((there >= absent)[:, None], always, never))


@dataclass(frozen=True)
class Regress(Vectors):
    """K numbers an image: outputs (B, K), targets (B, K), standardised where the data were read from files (`Data.target_std`).

    loss = mean over images and numbers of the squared error. `confusion` (K, 5) float64 has by number the sums of 1, y, y^2, e^2 and |e|
    with the error e = output - y.

    r2 = mean over numbers of 1 - sum e^2 / (sum y^2 - (sum y)^2 / N), as in scikit-learn: 1 at best, 0 for the mean of the images that are
    scored, and below 0 for worse. rmse and mae are means over the numbers in their own units: `scale` (K,) is what one of the
    standardised units is; empty, it is 1.
    """

    name: ClassVar[str] = "regress"
    metric: ClassVar[str] = "r2"
    scale: tuple[float, ...] = ()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, targets.to(outputs))

    def confusion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        y = targets.double()
        error = outputs.double() - y
        return torch.stack([torch.ones_like(y), y, y.square(), error.square(), error.abs()], 2).sum(0)

    def score(self, confusion: Tensor) -> float:
        count, total, squares, errors, _ = confusion.double().unbind(1)
        spread = squares - total.square() / count.clamp_min(1)
        there = spread > 1e-12 * squares
        constant = (errors == 0).double()
        return float(torch.where(there, 1 - errors / spread.where(there, 1.0), constant).mean())

    def metrics(self, confusion: Tensor) -> dict[str, float]:
        count, _, _, errors, absolute = confusion.double().unbind(1)
        scale = confusion.new_tensor(self.scale or [1.0] * len(confusion), dtype=torch.float64)
        rmse, mae = (errors / count.clamp_min(1)).sqrt() * scale, absolute / count.clamp_min(1) * scale
        return {self.metric: self.score(confusion), "rmse": float(rmse.mean()), "mae": float(mae.mean())}

    def smoothed(self, label_smoothing: float) -> Regress:
        if label_smoothing:
            raise UserError("Numbers have no labels to smooth: set train.label_smoothing=0.")
        return self

    def floor(self, counts: Tensor) -> float:
        """0: the score of always answering the mean."""
        return 0.0


@dataclass(frozen=True)
class Count(Vectors):
    """How many objects an image shows: outputs and targets (B, K) are their density, a number for each of K places (or for the image, K=1).

    In standardised units, in which one is `scale` objects, and with the error e = output - target of a place:

        loss = mean over images and places of e^2  +  total  mean over images of |sum over places of e| / sqrt(K)

    `confusion` (1, 5) float64 is that of `Regress` for the counts, in objects: an image's count is the sum over its places, less what is
    the same for all images. mae and rmse are in objects (the literature on crowds calls the latter MSE), r2 is 0 for always naming the
    images' mean count.
    """

    name: ClassVar[str] = "count"
    metric: ClassVar[str] = "r2"
    scale: float = 1.0
    total: float = 0.1

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        error = outputs - targets.to(outputs)
        whole: Tensor = error.sum(1).abs().mean() / math.sqrt(error.shape[1])
        return error.square().mean() + self.total * whole

    def confusion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        counts = [t.double().sum(1, keepdim=True) * self.scale for t in (outputs, targets)]
        return Regress().confusion(*counts)

    def score(self, confusion: Tensor) -> float:
        return Regress().score(confusion)

    def metrics(self, confusion: Tensor) -> dict[str, float]:
        return Regress().metrics(confusion)

    def smoothed(self, label_smoothing: float) -> Count:
        if label_smoothing:
            raise UserError("Counts have no labels to smooth: set train.label_smoothing=0.")
        return self

    def floor(self, counts: Tensor) -> float:
        """0: the score of always answering the mean."""
        return 0.0


TASKS: dict[str, type[Task]] = {
    "classify": Classify,
    "segment": Segment,
    "multilabel": MultiLabel,
    "regress": Regress,
    "count": Count,
}
"""By name, for `--task NAME`: what the data have decides which of them fits."""

TASK: Kind[Task] = Kind(
    "task",
    TASKS,
    has("name", "metric", "loss", "confusion", "score", "metrics", "smoothed"),
    "an object with the methods of oche.tasks.Task",
)


# ------------------------------------------------------------------ what a confusion matrix tells


def confusion_matrix(outputs: Tensor, targets: Tensor, ignore: int | None = None) -> Tensor:
    """(classes, classes) int64: how often class i (row) was taken for j. Outputs (B, classes, ...), targets (B, ...).

    Equal to torchmetrics' multiclass_confusion_matrix, which waits for the device where labels are ignored.
    """
    classes = outputs.shape[1]
    answers = outputs.max(1).indices  # argmax takes 1.5 to 4 times as long on the CPU
    pairs = targets.long() * classes + answers
    if ignore is not None:
        pairs = torch.where(targets == ignore, classes * classes, pairs)  # one bin more than there are pairs
    counts = pairs.new_zeros(classes * classes + 1).scatter_add_(0, pairs.flatten(), torch.ones_like(pairs.flatten()))
    return counts[:-1].view(classes, classes)


def accuracy(confusion: Tensor) -> float:
    """The share of right answers, 0 where nothing was asked."""
    return float(confusion.diagonal().sum() / confusion.sum().clamp_min(1))


def class_iou(confusion: Tensor) -> Tensor:
    """(classes,) float64: right / (true + taken for it - right); NaN for a class that is neither there nor predicted."""
    right = confusion.diagonal().double()
    return right / (confusion.sum(0) + confusion.sum(1) - right)


def label_f1(counts: Tensor) -> Tensor:
    """(K,) float64: 2 TP / (2 TP + FP + FN) of each label, from `MultiLabel.confusion`; 0 for one neither there nor predicted."""
    right, extra, missed, _ = counts[:-1].double().unbind(1)
    return 2 * right / (2 * right + extra + missed).clamp_min(1)


def mean_iou(confusion: Tensor) -> float:
    """The mean of `class_iou` over the classes that are there or predicted, so a class only predicted counts as 0; 0 of nothing."""
    iou = class_iou(confusion)
    return float(iou.nanmean().nan_to_num(0.0))


def balanced(counts: Tensor) -> tuple[float, ...]:
    """Class weights from pixel counts (classes,): the median of the counts over each, 0 for a class without pixels.

    Median-frequency balancing (Eigen & Fergus, ICCV 2015) with frequencies over all images, not over those with the class.
    """
    there = counts[counts > 0].double()
    return tuple((there.median() / counts.double()).nan_to_num(posinf=0.0).tolist()) if len(there) else ()


def named(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    """Metrics as a log record has them: `accuracy` -> `val_accuracy`."""
    return {f"{prefix}_{name}": value for name, value in metrics.items()}
