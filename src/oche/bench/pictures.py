"""A bench's pictures as SVG: accuracy and skips against the epoch of search, and accuracy against cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oche.bench.result import BenchResult, Finished
from oche.report.static import GREY, INK, LINE, SERIES, save, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (*SERIES, "#8a6d1f", "#4a9fb8", "#9c3f22", "#6b7a2f", "#55606e")
Point = tuple[float, float]

PROBES = {  # key of the number -> (title, unit)
    "parameter_free": ("Share of operations without weights, of the cell chosen after each epoch", "%"),
    "entropy": ("Entropy of the operation weights", "0 decided, 1 undecided"),
    "weight_accuracy": ("Accuracy of the supernet on the images its weights see", "%"),
    "weight_miou": ("Mean IoU of the supernet on the images its weights see", "%"),
    "eigenvalue": ("Largest Hessian eigenvalue of the validation loss in alpha", ""),
    "discretisation_gap": ("Supernet less derived network, un-retrained", "%"),
    "kendall_tau": ("Kendall's tau between supernet and table", ""),
}


@dataclass(frozen=True)
class Bands:
    """Lines against the epoch, or what `axis` says, one a method: (T, seeds) values, drawn as their mean between least and greatest."""

    title: str
    unit: str
    epochs: Mapping[str, Sequence[float]]
    values: Mapping[str, NDArray[np.float64]]
    level: tuple[str, float] | None = None
    axis: str = "epoch of search"


@dataclass(frozen=True)
class Pareto:
    """Points (cost, accuracy), one a trial; those that no other beats in both are joined, unless they are no prices (`joined`)."""

    title: str
    x: str
    y: str
    points: Mapping[str, Sequence[Point]]
    joined: bool = True


def pictures(result: BenchResult) -> dict[str, bytes]:
    """Name -> SVG, for each place of the matrix and all that there are numbers for."""
    found: dict[str, bytes] = {}
    several = sum(1 for _ in result.places()) > 1
    for (space, data, budget), here in result.places():
        suffix = f"_{space}_{data.rpartition('/')[2]}_{budget}" if several else ""
        for name, plot in _plots(result, here):
            found[name + suffix] = svg(plot, [*result.matrix.searched])
    return found


def svg(plot: Bands | Pareto, methods: Sequence[str]) -> bytes:
    """The plot as SVG; the same plot gives the same bytes. A method's colour is its place among `methods`."""
    from matplotlib.figure import Figure

    colours = {method: COLOURS[i % len(COLOURS)] for i, method in enumerate(methods)}
    with style():
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(plot.title)
        _bands(axes, plot, colours) if isinstance(plot, Bands) else _pareto(axes, plot, colours)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        figure.legend(loc="outside right center", labelcolor=INK)
        return save(figure, "svg")


def front(points: Sequence[Point]) -> list[Point]:
    """The points (cost, accuracy) that no other beats in both, by rising cost.

    >>> front([(1.0, 90.0), (2.0, 89.0), (3.0, 94.0), (1.0, 88.0)])
    [(1.0, 90.0), (3.0, 94.0)]
    """
    kept: list[Point] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or accuracy > kept[-1][1]:
            kept.append((cost, accuracy))
    return kept


# ------------------------------------------------------------------ what is drawn


def _plots(result: BenchResult, here: Sequence[Finished]) -> Iterator[tuple[str, Bands | Pareto]]:
    metric = result.matrix.reported[0]
    optimum = result.facts.optimum.get(metric)
    level = ("optimum", optimum) if optimum is not None else None
    if bands := over_epochs(here, lambda trial: {p[0]: p[2] for p in trial.curve if p[2] is not None}):
        yield "anytime", Bands(f"{metric} of the cell chosen after each epoch", "%", *bands, level)
    if bands := over_epochs(here, lambda trial: {p[0]: float(p[1]) for p in trial.curve}):
        yield "skips", Bands("Skip connections of the cell chosen after each epoch", "", *bands)
    for key, (title, unit) in PROBES.items():
        if bands := over_epochs(here, partial(Finished.probe, key=key)):
            factor = 100.0 if unit == "%" else 1.0
            epochs, values = bands
            yield key, Bands(title, unit, epochs, {method: factor * v for method, v in values.items()})
    costs: dict[str, tuple[str, Callable[[Finished], float]]] = {
        "pareto_network": (
            "million multiply-adds, at the size searched or trained",
            lambda trial: trial.multiply_adds / 1e6,
        ),
        "pareto_search": ("seconds of search", lambda trial: trial.seconds),
    }
    for name, (label, cost) in costs.items():
        points: dict[str, list[Point]] = {}
        for trial in here:
            if (value := trial.values.get(metric)) is not None:
                points.setdefault(trial.method, []).append((cost(trial), value))
        if points:
            yield name, Pareto(f"{metric} against cost", label, f"{metric}, %", points)


def over_epochs(
    here: Sequence[Finished], values: Callable[[Finished], dict[int, float]]
) -> tuple[dict[str, Sequence[float]], dict[str, NDArray[np.float64]]] | None:
    """(epochs, values (T, seeds)) by method, over the epochs that all of its seeds have."""
    curves: dict[str, list[dict[int, float]]] = {}
    for trial in here:
        if points := values(trial):
            curves.setdefault(trial.method, []).append(points)
    if not curves:
        return None
    shared = {method: sorted(set.intersection(*(set(run) for run in runs))) for method, runs in curves.items()}
    shared = {method: epochs for method, epochs in shared.items() if epochs}
    matrices = {m: np.array([[run[epoch] for run in curves[m]] for epoch in epochs]) for m, epochs in shared.items()}
    return dict(shared), matrices


def _bands(axes: Axes, plot: Bands, colours: Mapping[str, str]) -> None:
    from matplotlib.ticker import MaxNLocator

    for method, values in plot.values.items():
        epochs, colour = plot.epochs[method], colours[method]
        marker = "o" if len(epochs) < 12 else ""
        axes.fill_between(epochs, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.12, linewidth=0)
        axes.plot(epochs, values.mean(axis=1), color=colour, linewidth=1.7, label=method, marker=marker, markersize=3)
    if plot.level:
        axes.axhline(plot.level[1], color=GREY, linewidth=0.9, linestyle=(0, (3, 2)), label=plot.level[0])
    axes.set_xlabel(f"{plot.axis}; lines: mean over seeds, shaded: least to greatest")
    axes.set_ylabel(plot.unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=plot.axis == Bands.axis, nbins=8))


def _pareto(axes: Axes, plot: Pareto, colours: Mapping[str, str]) -> None:
    if plot.joined:
        best = front([point for points in plot.points.values() for point in points])
        axes.plot(*zip(*best, strict=True), color=LINE, linewidth=1.2, drawstyle="steps-post", zorder=1)
    for method, points in plot.points.items():
        axes.plot(*zip(*points, strict=True), "o", color=colours[method], markersize=4.5, label=method)
    axes.set_xlabel(plot.x)
    axes.set_ylabel(plot.y)
