"""A bench's pictures as SVG: every seed's accuracy, accuracy and skips against the epoch of search, and accuracy against cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oche.bench import stats
from oche.bench.result import BenchResult, Finished, by_seed
from oche.bench.trial import BEST
from oche.report.static import GREY, INK, LINE, SERIES, save, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (*SERIES, "#8a6d1f", "#4a9fb8", "#9c3f22", "#6b7a2f", "#55606e")
DASHES = {"dashed": (0, (3, 2)), "dotted": (0, (1, 2))}
MARKERS = ("o", "s", "^", "D")
NAMED = 36
"""Methods that the legend of a picture names; of more only those on the front, so that the axes keep their room."""

Point = tuple[float, float]
Level = tuple[str, float]
"""A line across a picture: its name and its height."""

PROBES = {  # key of the number -> (title, unit)
    "parameter_free": ("Share of operations without weights, of the cell chosen after each epoch", "%"),
    "entropy": ("Entropy of the operation weights", "0 decided, 1 undecided"),
    "weight_accuracy": ("Accuracy of the supernet on the images its weights see", "%"),
    "weight_miou": ("Mean IoU of the supernet on the images its weights see", "%"),
    "arch_accuracy": ("Accuracy of the supernet on the images alpha sees", "%"),
    "arch_miou": ("Mean IoU of the supernet on the images alpha sees", "%"),
    "eigenvalue": ("Largest Hessian eigenvalue of the validation loss in alpha", "eigenvalue"),
    "discretisation_gap": ("Supernet less derived network, un-retrained", "%"),
    "kendall_tau": ("Kendall's tau between supernet and table", "tau"),
    BEST: ("Best validation score so far", "score"),
}


@dataclass(frozen=True)
class Panels:
    """One panel per method, all on one scale: (T, seeds) values against the epoch, a thin line per seed and a thick one for their mean.

    The methods in `queries` have their values against the number of queries instead.
    """

    title: str
    unit: str
    epochs: Mapping[str, Sequence[int]]
    values: Mapping[str, NDArray[np.float64]]
    levels: tuple[Level, ...] = ()
    queries: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Seeds:
    """One row per method, the best mean on top: a dot for each seed, a bar at their mean."""

    title: str
    unit: str
    values: Mapping[str, Sequence[float]]
    levels: tuple[Level, ...] = ()


@dataclass(frozen=True)
class Look:
    """A method's colour, marker and name, the same in every picture of a bench."""

    colour: str
    marker: str
    name: str


@dataclass(frozen=True)
class Pareto:
    """Points (cost, accuracy), one per trial; those that no other beats in both are joined."""

    title: str
    x: str
    y: str
    points: Mapping[str, Sequence[Point]]


@dataclass(frozen=True)
class Ranks:
    """Mean rank of each method over blocks, and the difference that tells two of them apart."""

    title: str
    ranks: Mapping[str, float]
    critical: float
    blocks: int


def pictures(result: BenchResult, form: str = "svg") -> dict[str, bytes]:
    """Name -> picture (`svg` or `pdf`), for each place of the matrix and all that there are numbers for."""
    found: dict[str, bytes] = {}
    several = sum(1 for _ in result.places()) > 1
    run = {trial.method for trial in result.finished}
    look = looks([method for method in result.matrix.searched if method in run], result.names)
    for (space, data, budget), here in result.places():
        suffix = f"_{space}_{data.rpartition('/')[2]}_{budget}" if several else ""
        for name, plot in _plots(result, here):
            found[name + suffix] = drawn(plot, look, form)
    return found


def looks(methods: Sequence[str], names: Mapping[str, str] | None = None) -> dict[str, Look]:
    """A colour and a marker for each, by their order; no two of forty look alike.

    >>> found = looks([str(n) for n in range(40)])
    >>> len({(look.colour, look.marker) for look in found.values()})
    40
    """
    count = len(COLOURS)
    called = names or {}
    return {
        m: Look(COLOURS[i % count], MARKERS[i // count % len(MARKERS)], called.get(m, m)) for i, m in enumerate(methods)
    }


def drawn(plot: Panels | Seeds | Pareto | Ranks, look: Mapping[str, Look], form: str = "svg") -> bytes:
    """The plot as `svg` or `pdf`; the same plot gives the same bytes."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(layout="constrained")
        match plot:
            case Panels():
                _panels(figure, plot, look)
            case Seeds():
                _seeds(figure, plot, look)
            case Pareto():
                _pareto(figure, plot, look)
            case Ranks():
                _ranks(figure, plot, look)
        return save(figure, form)


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


def _plots(result: BenchResult, here: Sequence[Finished]) -> Iterator[tuple[str, Panels | Seeds | Pareto | Ranks]]:
    metric = result.matrix.reported[0]
    optimum = result.facts.optimum.get(metric)
    levels: list[Level] = [("optimum of the table", optimum)] if optimum is not None else []
    queries = frozenset(trial.method for trial in here if BEST in trial.probes)
    after = " or query" if queries else ""
    final: dict[str, list[float]] = {}
    for trial in here:
        if (value := trial.values.get(metric)) is not None:
            final.setdefault(trial.method, []).append(value)
    if base := final.get(result.matrix.baseline):
        levels.append((f"{result.called(result.matrix.baseline)}, mean", float(np.mean(base))))
    if final:
        yield "seeds", Seeds(f"{metric} of each seed's cell", f"{metric}, %", final, tuple(levels))
    if ranked := stats.mean_ranks(by_seed(here, metric)):
        ranks, critical, blocks = ranked
        yield "ranks", Ranks(f"Mean rank by {metric} over {blocks} seeds", ranks, critical, blocks)
    if bands := over_epochs(here, lambda trial: {p[0]: p[2] for p in trial.curve if p[2] is not None}):
        title = f"{metric} of the cell chosen after each epoch{after}"
        yield "anytime", Panels(title, "%", *bands, tuple(levels), queries)
    if bands := over_epochs(here, lambda trial: {p[0]: float(p[1]) for p in trial.curve}):
        title = f"Skip connections of the cell chosen after each epoch{after}"
        yield "skips", Panels(title, "skip connections", *bands, queries=queries)
    for key, (title, unit) in PROBES.items():
        if bands := over_epochs(here, partial(Finished.probe, key=key)):
            factor = 100.0 if unit == "%" else 1.0
            epochs, values = bands
            yield key, Panels(title, unit, epochs, {m: factor * v for m, v in values.items()}, queries=queries)
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
) -> tuple[dict[str, Sequence[int]], dict[str, NDArray[np.float64]]] | None:
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


def _panels(figure: Figure, plot: Panels, look: Mapping[str, Look]) -> None:
    from matplotlib.ticker import MaxNLocator

    across = min(4, len(plot.values))
    down = -(-len(plot.values) // across)
    figure.set_size_inches(6.4, 0.8 + 1.35 * down)
    figure.suptitle(plot.title, x=0.01, ha="left", fontweight="bold", fontsize=9.5, color=INK)
    asked = plot.queries & plot.values.keys()
    mixed = bool(asked) and asked != plot.values.keys()  # epochs and queries have no common scale
    panels = figure.subplots(down, across, sharex=not mixed, sharey=True, squeeze=False).ravel()
    for axes in panels[len(plot.values) :]:
        axes.set_axis_off()
    for i, (axes, (method, values)) in enumerate(zip(panels, plot.values.items(), strict=False)):
        epochs, colour = plot.epochs[method], look[method].colour
        axes.set_title(look[method].name + ", queries" * (mixed and method in asked), fontsize=7.5, fontweight="normal")
        axes.plot(epochs, values, color=colour, linewidth=0.8, alpha=0.55)
        axes.plot(epochs, values.mean(axis=1), color=colour, linewidth=1.9)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
        axes.tick_params(labelbottom=mixed or i + across >= len(plot.values))
        for (_, value), line in zip(plot.levels, DASHES.values(), strict=False):
            axes.axhline(value, color=GREY, linewidth=0.9, linestyle=line)
    against = "epoch of search, or query" if mixed else "query" if asked else "epoch of search"
    lines = [f"{how}: {name}" for how, (name, _) in zip(DASHES, plot.levels, strict=False)]
    figure.supylabel(plot.unit, fontsize=8, color=GREY)
    figure.supxlabel(", ".join([f"{against}; thin: one seed", "thick: their mean", *lines]), fontsize=8, color=GREY)


def _seeds(figure: Figure, plot: Seeds, look: Mapping[str, Look]) -> None:
    order = sorted(plot.values, key=lambda method: float(np.mean(plot.values[method])))
    figure.set_size_inches(6.4, 1.2 + 0.22 * len(order))
    axes = figure.add_subplot()
    axes.set_title(plot.title)
    for y, method in enumerate(order):
        values, colour = plot.values[method], look[method].colour
        axes.plot([np.mean(values)] * 2, [y - 0.32, y + 0.32], color=colour, linewidth=2.2)
        axes.plot(values, [y] * len(values), "o", color=colour, markersize=5, alpha=0.6, markeredgewidth=0)
    for (name, value), line in zip(plot.levels, DASHES.values(), strict=False):
        axes.axvline(value, color=GREY, linewidth=0.9, linestyle=line, label=name)
    axes.set_yticks(range(len(order)), [look[method].name for method in order])
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.set_xlabel(f"{plot.unit}; dots: seeds, bar: their mean")
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    if plot.levels:
        figure.legend(loc="outside lower center", ncols=len(plot.levels), labelcolor=INK)


def _pareto(figure: Figure, plot: Pareto, look: Mapping[str, Look]) -> None:
    figure.set_size_inches(6.4, 3.4)
    axes = figure.add_subplot()
    axes.set_title(plot.title)
    best = front([point for points in plot.points.values() for point in points])
    axes.plot(*zip(*best, strict=True), color=LINE, linewidth=1.2, drawstyle="steps-post", zorder=1)
    named = [method for method, points in plot.points.items() if len(plot.points) <= NAMED or set(points) & set(best)]
    for method, points in plot.points.items():
        of = look[method]
        label = of.name if method in named else None
        axes.plot(*zip(*points, strict=True), of.marker, color=of.colour, markersize=4.5, alpha=0.8, label=label)
    axes.set_xlabel(plot.x)
    axes.set_ylabel(plot.y)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    title = None if len(named) == len(plot.points) else f"on the front,\nof {len(plot.points)}"
    figure.legend(loc="outside right center", labelcolor=INK, ncols=1 + len(named) // 18, title=title)


def _ranks(figure: Figure, plot: Ranks, look: Mapping[str, Look]) -> None:
    """The methods by their mean rank; a bar joins those that Nemenyi's test does not tell apart (Demsar 2006)."""
    order = sorted(plot.ranks, key=lambda method: -plot.ranks[method])
    figure.set_size_inches(6.4, 1.2 + 0.22 * len(order))
    axes = figure.add_subplot()
    axes.set_title(plot.title)
    for y, method in enumerate(order):
        axes.plot(plot.ranks[method], y, "o", color=look[method].colour, markersize=5)
        axes.plot([plot.ranks[method], plot.ranks[method] + plot.critical], [y, y], color=LINE, linewidth=2.2, zorder=0)
    axes.set_yticks(range(len(order)), [look[method].name for method in order])
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.set_xlim(0.8, len(order) + 0.2)
    axes.set_xlabel(
        f"mean rank, 1 is best; methods within a bar's length ({plot.critical:.2f}) are not told apart (Nemenyi, 5 %)"
    )
    axes.grid(axis="x")
    axes.set_axisbelow(True)
