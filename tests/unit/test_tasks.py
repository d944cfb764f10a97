"""Losses and scores against literal ones, in float64: ignored pixels, absent classes, batches of nothing."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, r2_score, root_mean_squared_error
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.functional.classification import multiclass_confusion_matrix, multilabel_f1_score

from oche.errors import UserError
from oche.tasks import Classify, MultiLabel, Regress, Segment, balanced, class_iou, confusion_matrix, mean_iou

CLASSES, IGNORE = 5, 255


def maps(seed: int, *, absent: tuple[int, ...] = (), size: tuple[int, int, int] = (3, 7, 6)) -> tuple[Tensor, Tensor]:
    """Logits (B, 5, H, W), and labels (B, H, W) with a fifth of the pixels ignored and without the absent classes."""
    rng = torch.Generator().manual_seed(seed)
    batch, *extent = size
    logits = torch.randn(batch, CLASSES, *extent, generator=rng, dtype=torch.float64)
    there = torch.tensor([c for c in range(CLASSES) if c not in absent])
    labels = there[torch.randint(len(there), size, generator=rng)]
    return logits, labels.masked_fill(torch.rand(size, generator=rng) < 0.2, IGNORE)


def pixels(logits: Tensor, labels: Tensor) -> list[tuple[list[float], int]]:
    """(probabilities, class) of every valid pixel."""
    p = logits.softmax(1).movedim(1, -1).flatten(0, 2).tolist()
    return [(row, label) for row, label in zip(p, labels.flatten().tolist(), strict=True) if label != IGNORE]


def literal_iou(guesses: list[Tensor], truths: list[Tensor]) -> list[float | None]:
    """Sets of pixel addresses, one class at a time, over all images; None for a class in neither."""
    found: list[float | None] = []
    for c in range(CLASSES):
        true, guessed = set(), set()
        for n, (guess, truth) in enumerate(zip(guesses, truths, strict=True)):
            for i, (g, t) in enumerate(zip(guess.flatten().tolist(), truth.flatten().tolist(), strict=True)):
                if t != IGNORE:
                    true |= {(n, i)} if t == c else set()
                    guessed |= {(n, i)} if g == c else set()
        found.append(len(true & guessed) / len(true | guessed) if true | guessed else None)
    return found


@pytest.mark.parametrize("absent", [(), (2,), (0, 4)])
@pytest.mark.parametrize("seed", range(4))
def test_mean_iou_is_that_of_sets_of_pixels(seed: int, absent: tuple[int, ...]) -> None:
    """Absent classes that are predicted count as 0; those not even predicted do not count."""
    task, batches = Segment(), [maps(10 * seed + i, absent=absent) for i in range(3)]
    if absent:  # the last absent class is not predicted either
        batches = [(logits.index_fill(1, torch.tensor(absent[-1]), -9.0), labels) for logits, labels in batches]
    total = sum((task.confusion(*batch) for batch in batches), torch.zeros(CLASSES, CLASSES, dtype=torch.int64))
    wanted = literal_iou([logits.argmax(1) for logits, _ in batches], [labels for _, labels in batches])
    assert (wanted[absent[-1]] is None) if absent else None not in wanted
    counted = [iou for iou in wanted if iou is not None]
    assert task.score(total) == pytest.approx(sum(counted) / len(counted), abs=1e-12)
    for got, iou in zip(class_iou(total).tolist(), wanted, strict=True):
        assert math.isnan(got) if iou is None else got == pytest.approx(iou, abs=1e-12)
    right = sum(int((x.argmax(1) == y)[y != IGNORE].sum()) for x, y in batches)
    assert task.metrics(total)["pixel_accuracy"] == pytest.approx(right / int(total.sum()))
    jaccard = MulticlassJaccardIndex(CLASSES, ignore_index=IGNORE)
    for logits, labels in batches:
        jaccard.update(logits.argmax(1), labels)
    assert task.score(total) == pytest.approx(float(jaccard.compute()), abs=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_of_equal_scores_the_first_class_is_the_answer_as_argmax_has_it(layout: torch.memory_format) -> None:
    scores = torch.randint(3, (2, 5, 7, 9)).float().contiguous(memory_format=layout)
    scores[0, 1:4:2, 2, 3] = torch.nan
    targets = torch.randint(5, (2, 7, 9))
    pairs = (targets * 5 + scores.argmax(1)).flatten()
    assert torch.equal(confusion_matrix(scores, targets), torch.bincount(pairs, minlength=25).view(5, 5))


def test_the_confusion_matrix_is_torchmetrics() -> None:
    logits, labels = maps(1)
    wanted = multiclass_confusion_matrix(logits.argmax(1), labels, CLASSES, ignore_index=IGNORE)
    assert torch.equal(confusion_matrix(logits, labels, IGNORE), wanted)
    scores, classes = torch.randn(20, 4), torch.arange(20) % 4
    assert torch.equal(Classify().confusion(scores, classes), multiclass_confusion_matrix(scores, classes, 4))
    assert Classify().score(Classify().confusion(scores, classes)) == pytest.approx(
        float((scores.argmax(1) == classes).float().mean())
    )


def test_scores_of_nothing_are_zero() -> None:
    empty = torch.zeros(3, 3, dtype=torch.int64)
    assert (mean_iou(empty), Classify().score(empty)) == (0.0, 0.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [(), (1.0, 0.5, 2.0, 0.0, 3.0)])
def test_cross_entropy_is_torch_s(weights: tuple[float, ...], smoothing: float) -> None:
    logits, labels = maps(2)
    weight = torch.tensor(weights, dtype=torch.float64) if weights else None
    wanted = F.cross_entropy(logits, labels, weight, ignore_index=IGNORE, label_smoothing=smoothing)
    got = Segment(class_weights=weights).smoothed(smoothing).loss(logits, labels)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("task", [Segment(), Segment(ohem=0.7), Segment(dice=1.0, lovasz=1.0)])
def test_a_batch_without_a_valid_pixel_has_no_loss_and_a_finite_gradient(task: Segment) -> None:
    logits = torch.randn(2, CLASSES, 4, 4, requires_grad=True)
    loss = task.loss(logits, torch.full((2, 4, 4), IGNORE))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float(loss.detach()) == 0
    assert not gradient.any()


@pytest.mark.parametrize("task", [Segment(), Segment(ohem=0.7), Segment(dice=1.0), Segment(lovasz=1.0)])
def test_ignored_pixels_change_neither_loss_nor_gradient(task: Segment) -> None:
    logits, labels = maps(3)
    other = torch.where((labels == IGNORE)[:, None], 5 * torch.randn_like(logits), logits)
    a, b = logits.requires_grad_(), other.requires_grad_()
    torch.testing.assert_close(task.loss(a, labels), task.loss(b, labels))
    ga, gb = torch.autograd.grad(task.loss(a, labels), a)[0], torch.autograd.grad(task.loss(b, labels), b)[0]
    torch.testing.assert_close(ga, gb)
    assert not ga.movedim(1, -1)[labels == IGNORE].any()


@pytest.mark.parametrize(("threshold", "least"), [(0.7, 1 / 16), (0.02, 0.25), (1e-9, 1 / 200), (1.0, 0.5)])
@pytest.mark.parametrize("weights", [(), (1.0, 0.5, 2.0, 0.1, 3.0)])
def test_ohem_is_the_mean_over_the_hard_pixels(threshold: float, least: float, weights: tuple[float, ...]) -> None:
    logits, labels = maps(4)
    hardest = sorted((p[c], c) for p, c in pixels(logits, labels))
    always = max(1, math.ceil(least * len(hardest)))
    limit = max(threshold, hardest[always - 1][0])
    kept = [(p, c) for p, c in hardest if p <= limit]
    weight = weights or (1.0,) * CLASSES
    wanted = sum(-weight[c] * math.log(p) for p, c in kept) / sum(weight[c] for _, c in kept)
    got = Segment(ohem=threshold, ohem_least=least, class_weights=weights).loss(logits, labels)
    assert float(got) == pytest.approx(wanted, rel=1e-12)
    if threshold == 1e-9:
        assert len(kept) == 1


@pytest.mark.parametrize("absent", [(), (1, 3)])
def test_dice_is_the_mean_over_the_classes_present(absent: tuple[int, ...]) -> None:
    logits, labels = maps(5, absent=absent)
    seen = pixels(logits, labels)
    scores = []
    for c in set(range(CLASSES)) - set(absent):
        both = sum(p[c] for p, label in seen if label == c)
        scores.append(2 * both / (sum(p[c] for p, _ in seen) + sum(label == c for _, label in seen)))
    got = Segment(cross_entropy=0.0, dice=2.0).loss(logits, labels)
    assert float(got) == pytest.approx(2 * (1 - sum(scores) / len(scores)), abs=1e-7)  # kornia adds 1e-8 below


@pytest.mark.parametrize("absent", [(), (1, 3)])
def test_lovasz_is_the_extension_of_the_jaccard_loss(absent: tuple[int, ...]) -> None:
    """Definition 3 of the paper: errors in falling order, each times what its pixel adds to the Jaccard loss of the set so far."""
    logits, labels = maps(6, absent=absent, size=(2, 4, 4))
    seen, losses = pixels(logits, labels), []
    for c in set(range(CLASSES)) - set(absent):
        errors = [(1 - p[c] if label == c else p[c], label == c) for p, label in seen]
        true, wrong, before, total = sum(label == c for _, label in seen), [], 0.0, 0.0
        for error, is_true in sorted(errors, reverse=True):
            wrong.append(is_true)
            missed, added = sum(wrong), len(wrong) - sum(wrong)
            jaccard = 1 - (true - missed) / (true + added)
            total, before = total + error * (jaccard - before), jaccard
        losses.append(total)
    got = Segment(cross_entropy=0.0, lovasz=1.0).loss(logits, labels)
    assert float(got) == pytest.approx(sum(losses) / len(losses), rel=1e-10)


def test_terms_add_up() -> None:
    logits, labels = maps(7)
    one = {name: Segment(**{"cross_entropy": 0.0, name: 1.0}).loss(logits, labels) for name in ("dice", "lovasz")}  # type: ignore[arg-type]
    both = Segment(cross_entropy=0.5, dice=2.0, lovasz=3.0).loss(logits, labels)
    torch.testing.assert_close(both, 0.5 * Segment().loss(logits, labels) + 2 * one["dice"] + 3 * one["lovasz"])


def test_balanced_weights_are_median_over_count() -> None:
    assert balanced(torch.tensor([10, 40, 0, 20])) == (2.0, 0.5, 0.0, 1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"cross_entropy": 0.0},
        {"dice": -1.0},
        {"ohem": 0.0},
        {"ohem": 1.5},
        {"ohem_least": 0.0},
        {"class_weights": (0.0, 0.0)},
    ],
)
def test_impossible_losses_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError):
        Segment(**wrong)  # type: ignore[arg-type]


def test_class_weights_must_fit_the_classes() -> None:
    logits, labels = maps(8)
    with pytest.raises(UserError, match="2 class weights for 5"):
        Segment(class_weights=(1.0, 2.0)).loss(logits, labels)


def labelled(seed: int, count: int = 40, labels: int = 5) -> tuple[Tensor, Tensor]:
    """Logits (B, K), and labels (B, K), of which the last is never there and never predicted."""
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, labels, generator=rng, dtype=torch.float64)
    true = (torch.rand(count, labels, generator=rng) < 0.4).long()
    logits[:, -1], true[:, -1] = -1.0, 0
    return logits, true


def test_several_labels_are_scored_as_by_scikit_learn_and_torchmetrics() -> None:
    task, batches = MultiLabel(), [labelled(seed) for seed in range(3)]
    total = sum((task.confusion(*batch) for batch in batches), torch.zeros(1, 1, dtype=torch.int64))
    logits, true = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    said = (logits.sigmoid() >= 0.5).long()
    wanted = f1_score(true.numpy(), said.numpy(), average="macro", zero_division=0)
    assert task.score(total) == pytest.approx(wanted, abs=1e-12)
    assert task.score(total) == pytest.approx(float(multilabel_f1_score(said, true, 5)), abs=1e-6)
    assert task.metrics(total)["exact_match"] == pytest.approx(accuracy_score(true.numpy(), said.numpy()))
    common = (true.double().mean(0) >= 0.5).long().expand_as(true)
    assert task.floor(total) == pytest.approx(
        f1_score(true.numpy(), common.numpy(), average="macro", zero_division=0), abs=1e-12
    )
    flipped = task.confusion(-logits, 1 - true)
    always = torch.where(((1 - true).double().mean(0) >= 0.5), 1, 0).expand_as(true)
    wanted = f1_score((1 - true).numpy(), always.numpy(), average="macro", zero_division=0)
    assert wanted > 0.5
    assert task.floor(flipped) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_several_labels_is_the_mean_over_images_and_labels(smoothing: float) -> None:
    logits, true = labelled(1)
    p, y = logits.sigmoid(), true.double() * (1 - smoothing) + smoothing / 2
    wanted = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    assert float(MultiLabel().smoothed(smoothing).loss(logits, true)) == pytest.approx(float(wanted), abs=1e-12)


def test_numbers_are_scored_as_by_scikit_learn() -> None:
    rng = torch.Generator().manual_seed(2)
    y = torch.randn(60, 3, generator=rng, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5]) + 3
    out = y + torch.randn(60, 3, generator=rng, dtype=torch.float64)
    scale = (2.0, 10.0, 0.1)
    task = Regress(scale)
    total = sum((task.confusion(out[i : i + 25], y[i : i + 25]) for i in (0, 25, 50)), torch.zeros(1, 1).long())
    given, truth = (out * torch.tensor(scale)).numpy(), (y * torch.tensor(scale)).numpy()
    metrics = task.metrics(total)
    assert metrics["r2"] == pytest.approx(r2_score(truth, given), abs=1e-9)
    assert metrics["mae"] == pytest.approx(mean_absolute_error(truth, given), rel=1e-6)
    assert metrics["rmse"] == pytest.approx(root_mean_squared_error(truth, given), rel=1e-6)
    assert float(task.loss(out, y)) == pytest.approx(float(((out - y) ** 2).mean()), abs=1e-12)
    mean = y.mean(0).expand_as(y)
    assert task.score(task.confusion(mean, y)) == pytest.approx(task.floor(total), abs=1e-9)
    constant = torch.full((4, 1), 2.0)
    assert task.score(Regress().confusion(constant, constant)) == 1.0
    assert task.score(Regress().confusion(constant + 1, constant)) == 0.0
    with pytest.raises(UserError, match="label_smoothing=0"):
        task.smoothed(0.1)
