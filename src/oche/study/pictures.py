"""A study's pictures: what decoding costs against its threshold and on the way there, error against entropy, degeneration by epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from oche.bench.pictures import Look, Point, looks, over_epochs
from oche.bench.result import BenchResult, Finished
from oche.report.static import INK, save, style
from oche.study import degeneration
from oche.study.measure import ANEW, RAW
from oche.study.tables import decodings, error

FAMILIES = {  # what a decoding's name begins with -> (title, axis)
    "edge@": ("Gates below tau closed", "tau"),
    "op+edge@": ("Strongest operations, and gates below tau closed", "tau"),
    "ramp@": ("On the way from the continuous coefficients to one-hot ones", "kappa"),
}
SERIES = {
    degeneration.FREE_SHARE: ("Share of derived operations without weights", ""),
    degeneration.GATES: ("Share of gates below 0.1", ""),
    degeneration.DEPTH: ("Depth of the derived network", "operations with weights"),
    degeneration.PARAMETERS: ("Weights of the derived network", ""),
    degeneration.GAP: ("Loss on alpha's images less that on the weights'", ""),
}
ERRORS = ("op", "op+edge@0.50", "op+best2")


@dataclass(frozen=True)
class Lines:
    """(T, seeds) values against what `axis` says, one line a label: the mean, between the least and the greatest."""

    title: str
    unit: str
    at: Mapping[str, Sequence[float]]
    values: Mapping[str, NDArray[np.float64]]
    axis: str


@dataclass(frozen=True)
class Cloud:
    """Points (x, y) of each label; `axes` names both."""

    title: str
    axes: tuple[str, str]
    points: Mapping[str, Sequence[Point]]


def figures(result: BenchResult) -> dict[str, bytes]:
    """Name -> SVG, for each place of the matrix and all that there are numbers for."""
    found: dict[str, bytes] = {}
    several = sum(1 for _ in result.places()) > 1
    for place, here in result.places():
        suffix = f"_{'_'.join(part.rpartition('/')[2] for part in place)}" if several else ""
        for name, plot in plots(here):
            labels = [*(plot.values if isinstance(plot, Lines) else plot.points)]
            found[f"study_{name}{suffix}"] = svg(plot, looks(labels))
    return found


def svg(plot: Lines | Cloud, look: Mapping[str, Look]) -> bytes:
    """The plot as SVG; the same plot gives the same bytes."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(plot.title)
        if isinstance(plot, Lines):
            for label, values in plot.values.items():
                at, colour = plot.at[label], look[label].colour
                axes.fill_between(at, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.12, linewidth=0)
                axes.plot(at, values.mean(axis=1), look[label].marker, color=colour, ls="-", ms=3, label=label)
            axes.set_xlabel(f"{plot.axis}; lines: mean over seeds, shaded: least to greatest")
            axes.set_ylabel(plot.unit)
        else:
            for label, points in plot.points.items():
                axes.plot(*zip(*points, strict=True), look[label].marker, color=look[label].colour, ms=4.5, label=label)
            axes.set_xlabel(plot.axes[0])
            axes.set_ylabel(plot.axes[1])
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        figure.legend(loc="outside right center", labelcolor=INK)
        return save(figure, "svg")


def plots(here: Sequence[Finished]) -> Iterator[tuple[str, Lines | Cloud]]:
    """(name, picture) of the trials in one place."""
    arms: dict[str, list[Finished]] = {}
    for trial in here:
        arms.setdefault(trial.method, []).append(trial)
    for family, (title, axis) in FAMILIES.items():
        lines = {
            f"{arm}, {statistics}": line
            for arm, trials in arms.items()
            for statistics in (RAW, ANEW)
            if (line := against(trials, family, statistics))
        }
        if lines:
            name = family.rstrip("@").replace("+", "_")
            epochs, values = ({label: line[i] for label, line in lines.items()} for i in (0, 1))
            yield name, Lines(title, "%", epochs, values, axis)  # type: ignore[arg-type]
    yield from clouds(arms)
    for key, (title, unit) in SERIES.items():
        if bands := over_epochs(here, partial(Finished.probe, key=key)):
            yield key.replace(" ", "_"), Lines(title, unit, *bands, "epoch of search")


def against(trials: Sequence[Finished], family: str, statistics: str) -> tuple[list[float], NDArray[np.float64]] | None:
    """(values of tau or kappa, scores (T, seeds)) of a family of decodings, as far as all trials have them."""
    names = [n for n in decodings(trials) if n.startswith(family)]
    shared = [n for n in names if all(t.values.get(f"{n}/{statistics}") is not None for t in trials)]
    if not shared:
        return None
    scores = [[t.values[f"{n}/{statistics}"] for t in trials] for n in shared]
    return [float(n.rpartition("@")[2]) for n in shared], np.array(scores, dtype=np.float64)


def clouds(arms: Mapping[str, Sequence[Finished]]) -> Iterator[tuple[str, Cloud]]:
    """Error against entropy: of every search at its end, and where the gap was probed, after each epoch."""
    for name in ERRORS:
        ends: dict[str, list[Point]] = {}
        for arm, trials in arms.items():
            for t in trials:
                x, y = t.values.get("entropy"), error(f"{name}/{ANEW}")(t)
                if x is not None and y is not None:
                    ends.setdefault(arm, []).append((x, y))
        if ends:
            title = f"Discretisation error of {name} against entropy"
            yield (
                f"error_{name.replace('+', '_').replace('@', '_')}",
                Cloud(title, ("entropy, %", "error, points"), ends),
            )
    way: dict[str, list[Point]] = {}
    for arm, trials in arms.items():
        for t in trials:
            entropy, gap = t.probe("entropy"), t.probe("discretisation_gap")
            way.setdefault(arm, []).extend(
                (100 * entropy[e], 100 * gap[e]) for e in sorted(gap.keys() & entropy.keys())
            )
    way = {arm: points for arm, points in way.items() if points}
    if way:
        title = "Supernet less derived network against entropy, after epochs of search"
        yield "checkpoints", Cloud(title, ("entropy, %", "gap, points"), way)
