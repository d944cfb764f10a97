"""A bench's result for other programs: CSV, a pandas DataFrame, and LaTeX for a paper."""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING

from oche.bench.render import Sheet, by_pair
from oche.bench.result import BenchResult
from oche.errors import UserError

if TYPE_CHECKING:
    import pandas

COLUMNS = (
    "space", "data", "budget", "metric", "method", "seeds", "mean", "std", "best", "low", "high", "picked", "rank", "regret",
    "improvement", "improvement_low", "improvement_high", "difference", "difference_low", "difference_high", "t_p", "holm_p", "rank_p",
    "seconds", "train_seconds", "memory_mib", "device", "over_largest", "over_size",
)  # fmt: skip
PAIRS = (
    "space", "data", "budget", "metric", "method", "other", "seeds", "difference", "low", "high", "t_p", "holm_p", "rank_p", "that_is",
)  # fmt: skip

Value = str | int | float | None


def to_csv(result: BenchResult) -> str:
    """Every row with every number, unrounded; empty where there is none."""
    return _csv(COLUMNS, values(result))


def pairs_csv(result: BenchResult) -> str:
    """Every pair of methods in every place, by the first headline metric."""
    return _csv(PAIRS, pair_values(result))


def values(result: BenchResult) -> list[tuple[Value, ...]]:
    """The rows of the result under COLUMNS."""
    return [
        (
            r.space, r.data, r.budget, r.metric, result.called(r.method), r.summary.n, r.summary.mean, r.summary.std, r.summary.best,
            *(r.summary.interval or (None, None)), r.picked, r.rank, r.regret, r.improvement, *(r.improvement_interval or (None, None)),
            *((d.mean, *(d.interval or (None, None)), d.t_p, d.holm, d.rank_p) if (d := r.difference) else (None,) * 6),
            r.seconds, r.train_seconds, r.memory_mib, r.device, r.over_largest, r.over_size,
        )
        for r in result.rows
    ]  # fmt: skip


def pair_values(result: BenchResult) -> list[tuple[Value, ...]]:
    """The pairs of the result under PAIRS."""
    return [
        (
            *place,
            metric,
            result.called(a),
            result.called(b),
            d.n,
            d.mean,
            *(d.interval or (None, None)),
            d.t_p,
            d.holm,
            d.rank_p,
            d.verdict,
        )
        for place, metric, found in by_pair(result)
        for (a, b), d in found.items()
    ]


def frame(result: BenchResult) -> pandas.DataFrame:
    """The rows as a DataFrame, a column for each of COLUMNS. Raises UserError where pandas is not installed."""
    try:
        import pandas
    except ImportError:
        raise UserError("A DataFrame needs pandas, which is not installed: pip install pandas.") from None
    return pandas.DataFrame.from_records(values(result), columns=COLUMNS)


def latex(sheet: Sheet) -> str:
    """A table in LaTeX (package booktabs), numbers in their columns as they stand, the title as its caption.

    >>> print(latex(("One & all", ["method", "mean"], [["a_b", "1.00 ± 0.50"]])))
    \\begin{table}
      \\centering
      \\caption{One \\& all}
      \\begin{tabular}{ll}
        \\toprule
        method & mean \\\\
        \\midrule
        a\\_b & $1.00 \\pm 0.50$ \\\\
        \\bottomrule
      \\end{tabular}
    \\end{table}
    """
    title, headings, rows = sheet
    lines = [_first(" & ".join(map(_tex, row))) + r" \\" for row in rows]
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{_tex(title)}}}",
            rf"  \begin{{tabular}}{{{'l' * len(headings)}}}",
            r"    \toprule",
            "    " + _first(" & ".join(map(_tex, headings))) + r" \\",
            r"    \midrule",
            *("    " + line for line in lines),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    )


SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$", "−": "$-$", "±": r"$\pm$",
}  # fmt: skip


def _tex(text: str) -> str:
    """The text with what LaTeX reads as commands taken literally; `1.00 ± 0.50` and signed numbers as mathematics."""
    parts = re.split(r"([-+]?\d+(?:\.\d+)? ± \d+(?:\.\d+)?|(?<![\w.])[-+]\d+(?:\.\d+)?)", text)
    return "".join(
        "$" + part.replace("±", r"\pm") + "$" if i % 2 else "".join(SPECIAL.get(letter, letter) for letter in part)
        for i, part in enumerate(parts)
    )


def _first(line: str) -> str:
    """A line of a table, which must not begin as the options of the \\\\ before it do."""
    return "{}" + line if line.startswith(("[", "*")) else line


def _csv(columns: tuple[str, ...], rows: list[tuple[Value, ...]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return file.getvalue()
