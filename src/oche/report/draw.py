"""A genotype as a picture and as text, without Graphviz."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from oche.errors import UserError
from oche.genotype import Choice, Genotype
from oche.report.layout import PORT, Box, Layout, concatenates, lay_out
from oche.report.static import BRIGHT, GREY, INK, LINE, PAPER, SOFT, save, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAMILIES = {"convolution": "#2f6fd0", "dilated": "#7d4fd1", "pool": "#0f8577", "skip": "#c4560f", "none": GREY}
TITLES = {"normal": "Normal cell", "reduce": "Reduction cell", "cell": "Cell"}
MARGIN, HEADING, FONT = 0.15, 0.3, 8.5
CHAR = 0.62 * FONT / 72
"""Width of a character in inches; a little more than DejaVu Sans needs on average, so that other fonts fit too."""


def draw(genotype: Genotype, fmt: str = "svg") -> bytes:
    """The cells as a picture (`svg` or `png`), one below the other; the same genotype gives the same bytes.

    >>> draw(Genotype.parse("DARTS_V2")).count(b"sep_conv_3x3</text>")
    5
    """
    from matplotlib.figure import Figure

    if fmt not in ("svg", "png"):
        raise UserError(f"A drawing can be 'svg' or 'png', not {fmt!r}.")
    cells = {
        name: lay_out(choices, CHAR, genotype.concat.get(name)) for name, choices in genotype.groups.items() if choices
    }
    width = max((cell.width for cell in cells.values()), default=2.0) + 2 * MARGIN
    height = sum(cell.height + HEADING + 2 * MARGIN for cell in cells.values()) or HEADING
    with style():
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
        axes.axis("off")
        top = height
        for name, cell in cells.items():
            axes.text(MARGIN, top - MARGIN, TITLES.get(name, name), size=10.5, weight="bold", color=INK, va="top")
            top -= HEADING + MARGIN + cell.height
            _draw_cell(axes, cell, MARGIN, top)
            top -= MARGIN
        return save(figure, fmt)


def draw_text(genotype: Genotype) -> str:
    """The cells as text, one line per node with its inputs: `2 <- sep_conv_3x3(0), skip_connect(1)`.

    >>> print(draw_text(Genotype.parse("|nor_conv_3x3~0|+|none~0|skip_connect~1|")))
    cell
      1 <- nor_conv_3x3(0)
      2 <- none(0), skip_connect(1)
    """
    lines = []
    for name, choices in genotype.groups.items():
        lines.append(name)
        nodes = sorted({c.target for c in choices})
        for node in nodes:
            lines.append(f"  {node} <- " + ", ".join(_term(c) for c in choices if c.target == node))
        if choices and concatenates(choices):
            lines.append(f"  output <- concat({', '.join(map(str, genotype.concat.get(name, nodes)))})")
    return "\n".join(lines)


def family(op: str) -> str:
    """The family of an operation, a key of FAMILIES."""
    for sign, name in (("none", "none"), ("noise", "none"), ("skip", "skip"), ("pool", "pool"), ("dil", "dilated")):
        if sign in op:
            return name
    return "convolution"


def _term(choice: Choice) -> str:
    factor = "" if choice.coefficient == 1 else f"{choice.coefficient:.3g} "
    return f"{factor}{choice.op}({choice.source})"


def _draw_cell(axes: Axes, cell: Layout, x: float, y: float) -> None:
    for chain in cell.chains:
        _draw_chain(axes, cell, chain, x, y)
    for box in cell.boxes:
        if box.text:
            _draw_box(axes, box, x, y)


def _draw_chain(axes: Axes, cell: Layout, chain: Sequence[Box], x: float, y: float) -> None:
    """A line through the chain's boxes: level across each layer, an S between layers; an arrow head at its end."""
    from matplotlib.patches import PathPatch, Polygon
    from matplotlib.path import Path

    op = next((box.choice.op for box in chain if box.choice), None)
    colour = LINE if op is None else FAMILIES[family(op)]
    dashed = op is not None and family(op) == "none"
    start, end = chain[0], chain[-1]
    tip_x, tip_y = x + end.x - end.width / 2, y + end.y + _port(end, chain[-2])
    at = (x + start.x + start.width / 2, y + start.y)
    points, codes = [at], [Path.MOVETO]
    for box in chain[1:]:
        left, right = (x + side for side in cell.spans[box.layer])
        to_y = tip_y if box is end else y + box.y
        middle = (at[0] + left) / 2
        points += [(middle, at[1]), (middle, to_y), (left, to_y)]
        at = (tip_x - 0.05 if box is end else right, to_y)
        points.append(at)
        codes += [Path.CURVE4] * 3 + [Path.LINETO]
    stroke = (0, (3, 2)) if dashed else "solid"
    axes.add_patch(PathPatch(Path(points, codes), fill=False, edgecolor=colour, linewidth=1.3, linestyle=stroke))
    head = [(tip_x, tip_y), (tip_x - 0.08, tip_y + 0.037), (tip_x - 0.08, tip_y - 0.037)]
    axes.add_patch(Polygon(head, facecolor=colour, edgecolor="none"))


def _port(node: Box, source: Box) -> float:
    """The height, from a node's centre, at which a line reaches its left side: lines keep their order and a distance."""
    order = sorted(node.before, key=lambda box: -box.y)
    i = next(i for i, box in enumerate(order) if box is source)
    return ((len(order) - 1) / 2 - i) * PORT


def _draw_box(axes: Axes, box: Box, x: float, y: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    if box.choice:
        face, edge, ink, radius = FAMILIES[family(box.choice.op)], "none", BRIGHT, box.height / 2
    elif box.role == "node":
        face, edge, ink, radius = PAPER, INK, INK, 0.08
    else:
        face, edge, ink, radius = SOFT, INK, INK, 0.08
    corner = (x + box.x - box.width / 2, y + box.y - box.height / 2)
    shape = f"round,pad=0,rounding_size={radius}"
    axes.add_patch(FancyBboxPatch(corner, box.width, box.height, shape, facecolor=face, edgecolor=edge, linewidth=1))
    axes.text(x + box.x, y + box.y - 0.32 * FONT / 72, box.text, size=FONT, color=ink, ha="center", va="baseline")
