"""A study's pictures: what decoding costs against its threshold and on the way there, error against entropy, degeneration by epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from oche.bench.matrix import TRAINED_TEST
from oche.bench.pictures import Look, Point, looks, over_epochs
from oche.bench.result import BenchResult, Finished
from oche.report.static import INK, save, style
from oche.study import degeneration
from oche.study.decode import graded
from oche.study.measure import ANEW, CONTINUOUS, RAW
from oche.study.tables import decodings, error, numbers, value

FAMILIES = {  # a family of decodings -> (title, axis)
    "edge": ("Gates below tau closed", "tau"),
    "op+edge": ("Strongest operations, and gates below tau closed", "tau"),
    "ramp": ("On the way from the continuous coefficients to one-hot ones", "kappa"),
}
SERIES = {
    degeneration.FREE_SHARE: ("Share of derived operations without weights", ""),
    degeneration.GATES: ("Share of gates below 0.1", ""),
    degeneration.DEPTH: ("Depth of the derived network", "operations with weights"),
    degeneration.PARAMETERS: ("Weights of the derived network", ""),
    degeneration.GAP: ("Loss on alpha's images less that on the weights'", ""),
}
EPOCH, ROWS, SHADED = "epoch of search", 24, 4
"""An axis; how many names a column of a legend has; lines up to which the spread over seeds is shaded: more shades only make mud."""
PENALISED = {"operations": "entropy", "gates": "gate_entropy"}
"""The penalised quantity -> the option of `single_stage` with its weight."""
WEIGHED = {  # name -> (title, unit, number) of what is drawn against a penalty's weight
    "supernet": ("Continuous network", "%", value(f"{CONTINUOUS}/{ANEW}")),
    "error": ("Discretisation error of op", "points", error(f"op/{ANEW}")),
    "final": ("Network that the arm ends with, test images", "%", value(TRAINED_TEST)),
}
ERRORS = ("op", "op+edge@0.50", "op+best2")


@dataclass(frozen=True)
class Lines:
    """(T, seeds) values against the quantity named by `axis`, one line per label: the mean, within a band from the least to the greatest.

    `linear`: up to where the axis is linear, beyond which it is logarithmic; 0 for all of it.
    """

    title: str
    unit: str
    at: Mapping[str, Sequence[float]]
    values: Mapping[str, NDArray[np.float64]]
    axis: str
    linear: float = 0.0


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
    from matplotlib.ticker import MaxNLocator

    columns = -(-len(look) // ROWS)
    with style():
        size = (5.0 + 1.8 * columns, max(3.4, 0.7 + 0.18 * -(-len(look) // columns)))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(plot.title)
        if isinstance(plot, Lines):
            shaded = len(plot.values) <= SHADED
            for label, values in plot.values.items():
                at, colour = plot.at[label], look[label].colour
                if shaded:
                    axes.fill_between(at, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.12, linewidth=0)
                axes.plot(at, values.mean(axis=1), look[label].marker, color=colour, ls="-", ms=3, label=label)
            if plot.axis == EPOCH:
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if plot.linear:
                axes.set_xscale("symlog", linthresh=plot.linear)
            axes.set_xlabel(f"{plot.axis}; lines: mean over seeds" + ", shaded: least to greatest" * shaded)
            axes.set_ylabel(plot.unit)
        else:
            for label, points in plot.points.items():
                axes.plot(*zip(*points, strict=True), look[label].marker, color=look[label].colour, ms=4.5, label=label)
            axes.set_xlabel(plot.axes[0])
            axes.set_ylabel(plot.axes[1])
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        figure.legend(loc="outside right center", labelcolor=INK, ncols=columns)
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
            at, scores = ({label: line[i] for label, line in lines.items()} for i in (0, 1))
            yield family.replace("+", "_"), Lines(title, "%", at, scores, axis)  # type: ignore[arg-type]
    yield from penalties(arms)
    yield from clouds(arms)
    for key, (title, unit) in SERIES.items():
        if bands := over_epochs(here, partial(Finished.probe, key=key)):
            yield key.replace(" ", "_"), Lines(title, unit, *bands, EPOCH)


def against(trials: Sequence[Finished], family: str, statistics: str) -> tuple[list[float], NDArray[np.float64]] | None:
    """(rising values of tau or kappa, scores (T, seeds)) of a family of decodings, as far as all trials have them."""
    own = {grade[1]: name for name in decodings(trials) if (grade := graded(name)) and grade[0] == family}
    shared = [x for x in sorted(own) if all(t.values.get(f"{own[x]}/{statistics}") is not None for t in trials)]
    if not shared:
        return None
    scores = [[t.values[f"{own[x]}/{statistics}"] for t in trials] for x in shared]
    return shared, np.array(scores, dtype=np.float64)


def penalties(arms: Mapping[str, Sequence[Finished]]) -> Iterator[tuple[str, Lines]]:
    """Costs and savings of an entropy penalty against its weight: arms that differ in the weight alone are a line, from none on."""
    lines: dict[str, dict[float, Sequence[Finished]]] = {}
    for trials in arms.values():
        kind, weight = penalty(trials[0])
        lines.setdefault(kind, {})[weight] = trials
    none = lines.pop("", {})
    for name, (title, unit, number) in WEIGHED.items():
        at: dict[str, list[float]] = {}
        values: dict[str, NDArray[np.float64]] = {}
        for kind, by_weight in lines.items():
            rows = {w: list(numbers(trials, number)) for w, trials in sorted({**none, **by_weight}.items())}
            seeds = min(map(len, rows.values()))
            if seeds and len(rows) > 1:
                at[kind], values[kind] = list(rows), np.array([row[:seeds] for row in rows.values()])
        if at:
            least = min(w for weights in at.values() for w in weights if w)
            yield f"penalty_{name}", Lines(title, unit, at, values, "weight of the penalty", least)


def penalty(trial: Finished) -> tuple[str, float]:
    """The quantity that was penalised and how, "" for nothing, and the penalty's weight."""
    settings = trial.asked.get("settings")
    set_ = settings if isinstance(settings, Mapping) else {}
    weights = {on: float(set_.get(f"method.{key}", 0.0)) for on, key in PENALISED.items()}
    on = "+".join(name for name, weight in weights.items() if weight)
    how = [str(set_[key]) for key in ("method.entropy_schedule", "method.entropy_form") if key in set_]
    return ", ".join([on, *how]) if on else "", max(weights.values())


def clouds(arms: Mapping[str, Sequence[Finished]]) -> Iterator[tuple[str, Cloud]]:
    """Error against entropy, of every search at its end and, where the gap was probed, after each epoch."""
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
