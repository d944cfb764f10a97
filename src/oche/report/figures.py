"""The numbers behind a run's pictures, from its log and its alphas; `static` and `interactive` draw them."""

from __future__ import annotations

import io
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from oche.errors import UserError
from oche.report.claims import FEWEST

Record = Mapping[str, object]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Curves:
    """Lines against the epoch: name -> (epoch, value) points. `marks` are epochs at which the genotype changed."""

    title: str
    unit: str
    lines: Mapping[str, Points]
    marks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Strip:
    """One edge's weights over time: `weights` is (O, T), a row for each of the names in `ops`."""

    edge: str
    ops: tuple[str, ...]
    weights: NDArray[np.float64]


@dataclass(frozen=True)
class Strips:
    """The weights of all edges of a group over the epochs (T,)."""

    title: str
    epochs: tuple[float, ...]
    strips: tuple[Strip, ...]


@dataclass(frozen=True)
class Comparison:
    """Test scores in percent: kind of cell -> one point a trained network; and (mean, low, high) where known."""

    title: str
    points: Mapping[str, tuple[float, ...]]
    intervals: Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Confusion:
    """The confusion matrix: how often an image of a class (row) was taken for another (column)."""

    title: str
    classes: tuple[str, ...]
    matrix: NDArray[np.float64]


Plot = Curves | Strips | Comparison | Confusion

CURVES = {  # figure: (title, unit, kind of record, key -> name of the line)
    "losses": ("Loss of the supernet", "", "epoch", {"weight_loss": "weights", "arch_loss": "architecture"}),
    "accuracies": (
        "Accuracy of the supernet",
        "%",
        "epoch",
        {"weight_accuracy": "weights", "arch_accuracy": "architecture"},
    ),
    "mious": ("Mean IoU of the supernet", "%", "epoch", {"weight_miou": "weights", "arch_miou": "architecture"}),
    "f1s": ("F1 of the supernet", "%", "epoch", {"weight_mean_f1": "weights", "arch_mean_f1": "architecture"}),
    "r2s": ("R2 of the supernet", "", "epoch", {"weight_r2": "weights", "arch_r2": "architecture"}),
    "entropy": ("Entropy of the operation weights", "0 decided, 1 undecided", "epoch", {"entropy": "entropy"}),
    "parameter_free": ("Share of operations without weights", "%", "epoch", {"parameter_free": "chosen cells"}),
    "anytime": (
        "Table's accuracy of the cell chosen after each epoch",
        "percent",
        "epoch",
        {"table_accuracy": "table"},
    ),
    "gap": ("Supernet less derived network, un-retrained", "%", "epoch", {"discretisation_gap": "gap"}),
    "eigenvalue": (
        "Largest Hessian eigenvalue of the validation loss in alpha",
        "",
        "epoch",
        {"eigenvalue": "eigenvalue"},
    ),
    "tau": ("Kendall's tau between supernet and table", "", "epoch", {"kendall_tau": "tau"}),
    "train_losses": ("Loss", "", "train_epoch", {"loss": "training", "val_loss": "validation"}),
    "train_accuracies": ("Accuracy", "%", "train_epoch", {"accuracy": "training", "val_accuracy": "validation"}),
    "train_mious": ("Mean IoU", "%", "train_epoch", {"miou": "training", "val_miou": "validation"}),
    "train_f1s": ("F1", "%", "train_epoch", {"mean_f1": "training", "val_mean_f1": "validation"}),
    "train_r2s": ("R2", "", "train_epoch", {"r2": "training", "val_r2": "validation"}),
    "memory": ("Peak memory", "MiB", "epoch", {"memory_mib": "memory"}),
    "speed": ("Speed", "images/s", "epoch", {"images_per_second": "speed"}),
}


SCORES = {"test_miou": "mIoU", "test_accuracy": "accuracy", "test_mean_f1": "F1", "test_r2": "R2"}
"""Key of a trained network's score -> its name; R2 is shown in per cent, too, of the variance."""


def plots(records: Sequence[Record], alphas: bytes | None = None) -> dict[str, Plot]:
    """Name -> plot, for all that there are numbers for, in the order in which they are best looked at.

    Args:
        records: the run's log.
        alphas: the content of its alphas.npz. Raises UserError where that is damaged.

    An alpha that nothing trains is not shown (`untrained`).
    """
    found: dict[str, Plot] = {}
    if comparison := _comparison(records):
        found["comparison"] = comparison
    if confusion := _confusion(records):
        found["confusion"] = confusion
    idle = untrained(records)
    changes = tuple(x for x, changed in _series(records, "epoch", "changed") if changed)
    for name, (title, unit, kind, keys) in CURVES.items():
        scale = 100.0 if unit == "%" else 1.0
        lines = {label: [(x, scale * y) for x, y in _series(records, kind, key)] for key, label in keys.items()}
        lines = {label: points for label, points in lines.items() if points}
        if lines and not (idle and name == "entropy"):
            found[name] = Curves(title, unit, lines, changes if name == "entropy" else ())
        if name == "entropy" and (skips := _skips(records)):
            found["skips"] = Curves("Skip connections that would be chosen", "", skips)
    if alphas is not None and not idle:
        try:
            found |= _alphas(alphas)
        except (OSError, ValueError, EOFError, RuntimeError, LookupError, BadZipFile, zlib.error) as error:
            raise UserError(
                f"The run's alphas are damaged ({error}); remove alphas.npz to report on the rest."
            ) from None
    return found


def untrained(records: Sequence[Record]) -> bool:
    """True if all epochs so far trained a supernet's weights alone: none stepped alpha, and no strength of an operation has changed.

    >>> one = {"kind": "epoch", "phase": "weights", "entropy": 1.0}
    >>> untrained([one, one]), untrained([one, one | {"entropy": 0.9}]), untrained([one, one | {"phase": "search"}])
    (True, False, False)
    """
    epochs = [r for r in records if r.get("kind") == "epoch"]
    moved = any(number(r.get("strengths_moved")) for r in records if r.get("kind") == "supernet")
    still = all(
        r.get("phase") in ("weights", "warm-up") and r.get("entropy") == epochs[0].get("entropy") for r in epochs
    )
    return bool(epochs) and still and not moved


def number(value: object) -> float | None:
    """A finite number as float (False is 0), None for anything else."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _series(records: Sequence[Record], kind: str, key: str) -> Points:
    pairs = [(number(r.get("epoch")), number(r.get(key))) for r in records if r.get("kind") == kind]
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def _skips(records: Sequence[Record]) -> dict[str, Points]:
    lines: dict[str, Points] = {}
    for record in records:
        epoch, skips = number(record.get("epoch")), record.get("skips")
        if record.get("kind") == "epoch" and epoch is not None and isinstance(skips, dict):
            for group, value in skips.items():
                if (count := number(value)) is not None:
                    lines.setdefault(str(group), []).append((epoch, count))
    return lines


def _comparison(records: Sequence[Record]) -> Comparison | None:
    points: dict[str, tuple[float, ...]] = {}
    for record in records:
        score = number(next((record[key] for key in SCORES if key in record), None))
        if record.get("kind") == "trained" and score is not None:
            kind = str(record.get("cell", "found")).partition(" ")[0]
            points[kind] = (*points.get(kind, ()), 100 * score)
    intervals = {}
    for record in records:
        if record.get("kind") == "comparison" and (number(record.get("seeds")) or FEWEST) >= FEWEST:
            rivals = record.get("rivals")
            beside: Record = rivals if isinstance(rivals, dict) else {}
            for kind in points:
                own = beside.get(kind)
                told = {f"{kind}_{key}": value for key, value in own.items()} if isinstance(own, dict) else record
                mean, bounds = number(told.get(f"{kind}_mean")), told.get(f"{kind}_interval")
                ends = [number(end) for end in bounds] if isinstance(bounds, list) else []
                if mean is not None and len(ends) == 2 and ends[0] is not None and ends[1] is not None:
                    intervals[kind] = (100 * mean, 100 * ends[0], 100 * ends[1])
    metric = next((said for key, said in SCORES.items() if any(key in record for record in records)), "accuracy")
    return Comparison(f"Test {metric}, a point for each trained network", points, intervals) if points else None


def _confusion(records: Sequence[Record]) -> Confusion | None:
    for record in reversed(records):
        rows = record.get("matrix")
        if record.get("kind") == "confusion" and isinstance(rows, list) and rows:
            matrix = np.array(rows, dtype=np.float64)
            classes = record.get("classes")
            names = classes if isinstance(classes, list) and len(classes) == len(rows) else range(len(rows))
            return Confusion("Confusion", tuple(map(str, names)), matrix)
    return None


# ---------------------------------------------------------------------- alphas


def _alphas(data: bytes) -> dict[str, Plot]:
    """A plot for each array (T, E, O), softmax-ed over O; operations that an edge does not have are left out."""
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    found: dict[str, Plot] = {}
    for name, alpha in arrays.items():
        if alpha.ndim != 3 or alpha.dtype.kind != "f" or 0 in alpha.shape:
            continue
        group, _, leaf = name.partition("/")
        ops = _ops(arrays.get(f"ops/{group}"), alpha.shape[1], alpha.shape[2])
        edges = _edges(arrays.get(f"edges/{group}"), alpha.shape[1])
        epochs = arrays.get("epoch", np.arange(len(alpha)))
        strips = [
            Strip(edge, own, _softmax(alpha[:, e, : len(own)]).T)
            for e, (edge, own) in enumerate(zip(edges, ops, strict=True))
        ]
        title = "Softmax of alpha" + (f", {group} cell" if group != "cell" else "")
        plain = leaf in ("", "alpha")
        found[f"alpha_{group}" if plain else f"alpha_{group}_{leaf}"] = Strips(
            title if plain else f"{title} ({leaf})",
            tuple(map(float, epochs)),
            tuple(strip for strip in strips if strip.ops),
        )
    return found


def _ops(names: NDArray[np.str_] | None, edges: int, count: int) -> list[tuple[str, ...]]:
    """Each edge's operations: from JSON lists, one for each edge or one for all, or from one list of lists."""
    rows = [json.loads(str(text)) for text in np.ravel(names)] if names is not None else []
    if len(rows) == 1 and rows[0] and isinstance(rows[0][0], list):
        rows = rows[0]
    if len(rows) == 1:
        rows *= edges
    if len(rows) != edges:
        return [tuple(f"op {i}" for i in range(count))] * edges
    return [tuple(map(str, row)) for row in rows]


def _edges(ends: NDArray[np.int64] | None, count: int) -> list[str]:
    if ends is None or ends.shape != (count, 2):
        return [f"edge {i}" for i in range(count)]
    return [f"{source} → {target}" for source, target in ends]


def _softmax(alpha: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the last axis; what is not finite counts as absent."""
    alpha = np.where(np.isfinite(alpha), alpha, -np.inf).astype(np.float64)
    top = np.max(alpha, axis=-1, keepdims=True)
    weights = np.exp(alpha - np.where(np.isfinite(top), top, 0.0))
    return np.asarray(weights / np.maximum(weights.sum(axis=-1, keepdims=True), 1e-300))
