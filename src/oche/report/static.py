"""The still pictures: matplotlib in one style and few colours, with bytes that depend on nothing but the content."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from oche.report.figures import Comparison, Confusion, Curves, Plot, Strips

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

INK, GREY, LINE, SOFT, PAPER = "#1f2430", "#818a98", "#b9c0ca", "#eceff3", "#ffffff"
"""Text, secondary text, thin lines, shaded and plain ground; a page may swap them for its dark ones."""
BRIGHT = "#fefefe"
"""Text on colour; not PAPER, because it must stay bright on a dark page."""
WIDEST, MANY = 40, 24
"""Classes up to which a confusion matrix grows and all are named; and of more classes those that are, so that their names can be read."""
SERIES = ("#2f6fd0", "#d9730d", "#0f8577", "#7d4fd1", "#c2336b")


def svg(plot: Plot) -> bytes:
    """The plot as SVG; the same plot gives the same bytes."""
    with style():
        match plot:
            case Curves():
                figure = _curves(plot)
            case Strips():
                figure = _strips(plot)
            case Comparison():
                figure = _comparison(plot)
            case Confusion():
                figure = _confusion(plot)
        return save(figure, "svg")


def save(figure: Figure, fmt: str) -> bytes:
    """The figure's bytes, `svg`, `pdf` or `png`, without date and version."""
    file, without = (
        io.BytesIO(),
        {"svg": ("Date",), "pdf": ("CreationDate", "Creator", "Producer"), "png": ("Software",)},
    )
    figure.savefig(file, format=fmt, dpi=200, metadata=dict.fromkeys(without[fmt]))
    return file.getvalue()


@contextmanager
def style() -> Iterator[None]:
    """Inside, matplotlib draws the report's way; letters that its font lacks are no warning, since the viewer's fonts draw them."""
    import matplotlib

    drawn = matplotlib.rc_context(
        {
            "text.parse_math": False,  # names are literal, "US$_{ A$" too
            "svg.hashsalt": "oche",
            "svg.fonttype": "none",
            "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
            "font.size": 8,
            "figure.facecolor": PAPER,
            "axes.facecolor": "none",
            "axes.edgecolor": LINE,
            "axes.labelcolor": GREY,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 9.5,
            "axes.titleweight": "bold",
            "axes.titlecolor": INK,
            "axes.titlelocation": "left",
            "text.color": INK,
            "xtick.color": LINE,
            "ytick.color": LINE,
            "xtick.labelcolor": GREY,
            "ytick.labelcolor": GREY,
            "grid.color": SOFT,
            "legend.frameon": False,
        }
    )
    with drawn, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _curves(plot: Curves) -> Figure:
    figure = _figure(5.2, 2.9)
    axes = figure.add_subplot()
    axes.set_title(plot.title, pad=10 if len(plot.lines) == 1 else 22)
    for (name, points), colour in zip(plot.lines.items(), SERIES * len(plot.lines), strict=False):
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=colour, linewidth=1.7, label=name, marker="o", markersize=3 if len(points) < 12 else 0)
    for epoch in plot.marks:
        axes.axvline(epoch, color=LINE, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
    axes.set_xlabel("epoch" + ("; dashed: the genotype changed" if plot.marks else ""))
    axes.set_ylabel(plot.unit)
    if zero_based(plot):
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.0), max(high, 0.0))
    _whole_numbers(axes)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    if len(plot.lines) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=min(len(plot.lines), 5), labelcolor=INK)
    return figure


def zero_based(plot: Curves) -> bool:
    """True if the axis begins at 0: every axis but percentages, where the last few count."""
    return plot.unit != "%"


def _strips(plot: Strips) -> Figure:
    shared = len({strip.ops for strip in plot.strips}) == 1
    columns = min(columns_of(plot), len(plot.strips))
    rows = -(-len(plot.strips) // columns)
    most = max(len(strip.ops) for strip in plot.strips)
    figure = _figure(1.1 + 2.0 * columns, 0.8 + rows * (0.45 + 0.135 * most))
    figure.suptitle(plot.title, x=0.01, ha="left", size=9.5, weight="bold")
    first, last = plot.epochs[0], max(plot.epochs[-1], plot.epochs[0] + 1)
    for i, strip in enumerate(plot.strips):
        axes = figure.add_subplot(rows, columns, i + 1)
        extent = (first - 0.5, last + 0.5, len(strip.ops) - 0.5, -0.5)
        axes.imshow(strip.weights, aspect="auto", cmap=_ramp(), vmin=0, vmax=1, interpolation="nearest", extent=extent)
        axes.set_title(strip.edge, size=8, weight="normal", pad=3)
        axes.set_yticks(range(len(strip.ops)), strip.ops if not shared or i % columns == 0 else [""] * len(strip.ops))
        axes.tick_params(length=0, labelsize=7)
        axes.spines[:].set_visible(True)
        axes.spines[:].set_color(SOFT)
        _whole_numbers(axes)
        if i + columns < len(plot.strips):
            axes.set_xticklabels([])
        else:
            axes.set_xlabel("epoch", size=7)
    return figure


def columns_of(plot: Strips) -> int:
    """The number of edges side by side: fewer where each needs the names of its own operations."""
    return 4 if len({strip.ops for strip in plot.strips}) == 1 else 2


def _comparison(plot: Comparison) -> Figure:
    figure = _figure(6.4, 0.9 + 0.5 * len(plot.points))
    axes = figure.add_subplot()
    axes.set_title(plot.title)
    for row, (kind, points) in enumerate(plot.points.items()):
        colour = SERIES[0] if kind == "found" else GREY
        if kind in plot.intervals:
            mean, low, high = plot.intervals[kind]
            axes.barh(row, high - low, left=low, height=0.5, color=colour, alpha=0.22, linewidth=0)
            axes.plot([mean, mean], [row - 0.25, row + 0.25], color=colour, linewidth=2)
        heights = row + 0.14 * (np.arange(len(points)) % 3 - 1) if len(points) > 1 else [row]
        axes.plot(points, heights, "o", color=colour, markersize=4.5, markeredgecolor=PAPER, markeredgewidth=0.7)
    axes.set_yticks(
        range(len(plot.points)), [f"{kind} ({len(points)})" for kind, points in plot.points.items()], color=INK
    )
    axes.set_ylim(len(plot.points) - 0.5, -0.5)
    axes.margins(x=0.06)
    axes.set_xlabel(f"{plot.title.partition(',')[0]}, %" + ("; bars: mean and interval" if plot.intervals else ""))
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    return figure


def _confusion(plot: Confusion) -> Figure:
    n = len(plot.classes)
    shown = n if n <= WIDEST else MANY
    side = 0.4 * shown
    figure = _figure(1.6 + side, 1.3 + side)
    axes = figure.add_subplot()
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    share = plot.matrix / np.maximum(plot.matrix.sum(axis=1, keepdims=True), 1e-300)
    axes.imshow(
        share, cmap=_ramp(), vmin=0, vmax=1, interpolation="none"
    )  # as it is: resampled, it takes hundreds of MiB
    named = range(0, n, -(-n // shown))  # of very many classes as many as there is room for
    names = [plot.classes[i] for i in named]
    axes.set_xticks(named, names, rotation=45, ha="right", color=INK)
    axes.set_yticks(named, names, color=INK)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for (i, j), count in np.ndenumerate(plot.matrix) if n <= 20 else ():
        if count:
            axes.text(j, i, f"{count:g}", ha="center", va="center", size=7, color=BRIGHT if share[i, j] > 0.55 else INK)
    return figure


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _ramp() -> Colormap:
    """Nothing to full colour: the ground shines through where a value is small, be it bright or dark."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("ramp", [(0.184, 0.435, 0.816, 0.0), (0.184, 0.435, 0.816, 1.0)])
