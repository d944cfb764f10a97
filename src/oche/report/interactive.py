"""The plots one can point at: plotly.js figures as plain dictionaries; the page gives them fonts and colours."""

from __future__ import annotations

from oche.report.figures import Curves, Strips
from oche.report.static import LINE, SERIES, columns_of, zero_based

RAMP = [[0, "rgba(47,111,208,0)"], [1, "rgba(47,111,208,1)"]]


def spec(plot: Curves | Strips) -> dict[str, object]:
    """`data` and `layout` for `Plotly.newPlot`."""
    return _curves(plot) if isinstance(plot, Curves) else _strips(plot)


def _curves(plot: Curves) -> dict[str, object]:
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers" if len(points) < 12 else "lines",
            "name": name,
            "x": [x for x, _ in points],
            "y": [round(y, 5) for _, y in points],
            "line": {"color": colour, "width": 2},
            "hovertemplate": "%{y:.4~g}",
        }
        for (name, points), colour in zip(plot.lines.items(), SERIES * len(plot.lines), strict=False)
    ]
    stroke = {"color": LINE, "width": 1, "dash": "dot"}
    shapes = [
        {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "layer": "below", "line": stroke}
        for x in plot.marks
    ]
    layout = {
        "height": 280,
        "margin": {"l": 52, "r": 12, "t": 34, "b": 40},
        "hovermode": "x unified",
        "showlegend": len(plot.lines) > 1,
        "legend": {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        "xaxis": {
            "title": {"text": "epoch" + ("; dotted: the genotype changed" if plot.marks else "")},
            "tickformat": "d",
            "showgrid": False,
            "zeroline": False,
        },
        "yaxis": {
            "title": {"text": plot.unit},
            "zeroline": False,
            "rangemode": "tozero" if zero_based(plot) else "normal",
        },
        "shapes": shapes,
    }
    return {"data": data, "layout": layout}


def _strips(plot: Strips) -> dict[str, object]:
    columns = min(columns_of(plot), len(plot.strips))
    rows = -(-len(plot.strips) // columns)
    shared = len({strip.ops for strip in plot.strips}) == 1
    most = max(len(strip.ops) for strip in plot.strips)
    data: list[dict[str, object]] = []
    notes: list[dict[str, object]] = []
    layout: dict[str, object] = {
        "height": 60 + rows * (40 + 15 * most),
        "margin": {"l": 12, "r": 12, "t": 26, "b": 34},
        "grid": {
            "rows": rows,
            "columns": columns,
            "pattern": "independent",
            "xgap": 0.06 if shared else 0.4,
            "ygap": 40 / (40 + 15 * most),
        },
        "annotations": notes,
    }
    for i, strip in enumerate(plot.strips):
        n = "" if i == 0 else str(i + 1)
        data.append(
            {
                "type": "heatmap",
                "x": plot.epochs,
                "y": strip.ops,
                "z": [[round(w, 4) for w in row] for row in strip.weights.tolist()],
                "xaxis": f"x{n}",
                "yaxis": f"y{n}",
                "zmin": 0,
                "zmax": 1,
                "colorscale": RAMP,
                "showscale": False,
                "hovertemplate": f"{strip.edge}, epoch %{{x}}<br>%{{y}}: %{{z:.3f}}<extra></extra>",
            }
        )
        layout[f"xaxis{n}"] = {
            "showticklabels": i + columns >= len(plot.strips),
            "tickformat": "d",
            "showgrid": False,
            "zeroline": False,
        }
        labels = not shared or i % columns == 0
        layout[f"yaxis{n}"] = {
            "autorange": "reversed",
            "showticklabels": labels,
            "automargin": True,
            "showgrid": False,
            "ticksuffix": " ",
        }
        corner = {"x": 0, "y": 1, "xanchor": "left", "yanchor": "bottom", "showarrow": False}
        notes.append({"text": strip.edge, "xref": f"x{n} domain", "yref": f"y{n} domain", **corner})
    return {"data": data, "layout": layout}
