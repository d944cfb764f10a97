"""Writes docs/results/fewer_steps.md: what ends a search earlier at the same cell, judged by searches that were kept.

    python benchmarks/fewer_steps.py --trials runs/methods_nb201/trials      # once: keeps what the margins of alpha say
    python benchmarks/fewer_steps.py --short runs/short                      # once: keeps a bench of shorter searches
    python benchmarks/fewer_steps.py                                         # the page, from the kept files alone

The curves of collapse_nb201.jsonl and methods_nb201.jsonl have the table's accuracy and the skip connections of the cell after each epoch,
which stand for the cell here: two epochs have the same cell where both are equal. Margins need alpha itself, which only the folders of
trials have (alphas.npz), so `--trials` keeps one number per epoch in fewer_steps.jsonl; `--short` keeps the curves of a bench there.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray
from results_page import READING

from oche.bench.render import table_lines
from oche.bench.stats import mean_interval

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
KEPT = RESULTS / "fewer_steps.jsonl"
STUDIES = ("collapse_nb201", "methods_nb201")

OTHER = {
    *("random_sampling", "largest_cell", "random_search", "regularized_evolution", "local_search", "bananas"),
    *("gaussian_process", "dsm_nas", "svge", "oncenas", "dnas", "random_search_ws"),
    *("rlnas", "midas", "ddpnas", "shapley_nas", "swd_nas"),
    *("anr_darts", "rdarts_pick", "darts_plus", "oles", "darts_pt", "gm_nas", "ista_nas"),
    *("pdarts", "drnas_progressive", "progressive_channels"),
}
"""Arms left out: without alpha's gradient, with a cell that is not the last epoch's, or in stages, which the option refuses too."""

HELD = {"pcdarts": 0.3}
"""Share of the epochs in which alpha is held, by a part of the arm's name."""

WINDOW = 3
"""Epochs over which a margin's speed is taken."""

GOAL = 92.75


@dataclass(frozen=True)
class Search:
    """A kept search: its arm, and for each epoch the cell (skips, accuracy) and, where known, the least certainty of a margin."""

    study: str
    arm: str
    seed: int
    cells: tuple[tuple[int, float], ...]
    certain: tuple[float, ...] = ()

    @property
    def held(self) -> int:
        """Epochs before alpha's first step."""
        return next((math.ceil(share * len(self.cells)) for part, share in HELD.items() if part in self.arm), 0)

    def ended(self, epochs: int) -> tuple[float, bool, float]:
        """(share of the epochs that is saved, whether the last epoch's cell is another, accuracy minus the last epoch's)."""
        there, last = self.cells[epochs - 1], self.cells[-1]
        return 1 - epochs / len(self.cells), there != last, there[1] - last[1]


Rule = Callable[[Search], int]
"""How many epochs of a search are run."""


def settled(share: float, least: int = 3) -> Rule:
    """Ends when the cell has not changed for `least` epochs and this share of the epochs."""

    def rule(search: Search) -> int:
        patience, still = max(least, math.ceil(share * len(search.cells))), 0
        for epoch, (before, now) in enumerate(pairwise(search.cells[search.held :]), start=search.held + 2):
            still = still + 1 if now == before else 0
            if still >= patience:
                return epoch
        return len(search.cells)

    return rule


def certain(limit: float) -> Rule:
    """Ends when every edge's margin, at the speed of the last epochs and less `limit` standard deviations, lasts to the end."""
    return lambda search: next((n for n, z in enumerate(search.certain, start=1) if z >= limit), len(search.cells))


def cut(share: float) -> Rule:
    """Ends after this share of the epochs, settled or not."""
    return lambda search: max(search.held + 1, math.ceil(share * len(search.cells)))


# ------------------------------------------------------------------ what is kept


def searches() -> list[Search]:
    """Every kept search of a method of gradients whose cell can be read off after each epoch."""
    margins = {row["name"]: row["certain"] for row in _rows(KEPT) if row["kind"] == "margins"}
    found = []
    for study in STUDIES:
        for row in _rows(RESULTS / f"{study}.jsonl"):
            if row["method"] not in OTHER and len(row["curve"]) > WINDOW:
                cells = tuple((skips, value) for _, skips, value in row["curve"])
                found.append(Search(study, row["method"], row["seed"], cells, tuple(margins.get(row["name"], ()))))
    return found


def certainty(alpha: NDArray[np.float64]) -> list[float]:
    """For each epoch the least (margin + speed x epochs left) / (deviation x root of epochs left) over edges and rivals.

    `alpha` is (epochs + 1, E, O). A margin is the leading op's alpha less another's; its speed, where it shrinks, and its deviation are
    those of the last `WINDOW` epochs. -inf before there are as many.
    """
    found = []
    for n in range(1, len(alpha)):
        left, lead = len(alpha) - 1 - n, alpha[n].argmax(-1)
        if n < WINDOW or left == 0:
            found.append(-math.inf)
            continue
        seen = alpha[n - WINDOW : n + 1]
        margin = np.take_along_axis(seen, np.broadcast_to(lead[None, :, None], (WINDOW + 1, len(lead), 1)), -1) - seen
        steps = np.diff(margin, axis=0)
        ahead = margin[-1] + np.minimum(steps.mean(0), 0) * left
        others = np.arange(alpha.shape[-1]) != lead[:, None]
        found.append(float((ahead / np.maximum(steps.std(0, ddof=1) * math.sqrt(left), 1e-12))[others].min()))
    return found


def keep(trials: Path | None, short: Path | None) -> None:
    """Writes what the folders of trials and the bench of shorter searches say into the kept file."""
    rows = list(_rows(KEPT))
    if trials:
        rows = [row for row in rows if row["kind"] != "margins"]
        for path in sorted(trials.glob("*/alphas.npz")):
            alpha = np.load(path).get("cell/alpha")
            log = _rows(path.with_name("log.jsonl"))
            if alpha is not None and len(alpha) - 1 == sum(record["kind"] == "epoch" for record in log):
                values = [round(z, 3) if math.isfinite(z) else -1e9 for z in certainty(alpha.astype(np.float64))]
                rows.append({"kind": "margins", "name": path.parent.name, "certain": values})
    if short:
        rows = [row for row in rows if row["kind"] != "short"]
        for row in filter(lambda row: row["curve"], _rows(short / "trials.jsonl")):  # cells drawn at random have none
            asked = {k: row["asked"][k] for k in ("method", "epochs", "batch", "settings")}
            keys = ("method", "seed", "genotype", "values", "curve", "seconds")
            rows.append({"kind": "short", **{key: row[key] for key in keys}, "asked": asked})
    KEPT.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _rows(path: Path) -> Iterable[dict]:  # type: ignore[type-arg]
    return map(json.loads, path.read_text().splitlines()) if path.is_file() else ()


# ------------------------------------------------------------------ the page


def judged(rule: Rule, among: Sequence[Search]) -> list[str]:
    """One line of a table: what the rule saves, how often another cell was to come, and what that costs."""
    ended = [search.ended(rule(search)) for search in among]
    by_arm = defaultdict(list)
    for search, (_, _, difference) in zip(among, ended, strict=True):
        by_arm[search.study, search.arm].append(difference)
    means = [fmean(values) for values in by_arm.values()]
    return [
        f"{100 * fmean(saved for saved, _, _ in ended):.0f} %",
        f"{sum(saved > 0 for saved, _, _ in ended)} of {len(ended)}",
        f"{100 * fmean(other for _, other, _ in ended):.0f} %",
        spread(means),
        f"{min(difference for _, _, difference in ended):+.1f}",
    ]


def spread(values: Sequence[float]) -> str:
    """Mean and 95 % interval of differences."""
    found = mean_interval(values)
    return f"{fmean(values):+.2f}" + (f" [{found[0]:+.2f}, {found[1]:+.2f}]" if found else "")


HEADINGS = ["rule", "searches", "epochs saved", "ended early", "another cell", "accuracy, by arm", "worst"]


def page(reading: str) -> str:
    """The page as Markdown."""
    found = searches()
    features = [s for s in found if s.arm.startswith("rf_")]
    alone = [s for s in found if not s.arm.startswith("rf_")]
    reduced = [s for s in found if s.study == "collapse_nb201"]
    usual = [s for s in reduced if s.arm == "rf_darts_fast"]
    sets = (
        ("random features", features),
        ("without", alone),
        ("all of the collapse study", reduced),
        ("all of the table of methods", [s for s in found if s.study == "methods_nb201"]),
        ("rf_darts_fast, 8 + 3 seeds", [s for s in features if s.arm == "rf_darts_fast"]),
    )
    lines = ["# Fewer steps: what ends a search earlier", "", f"<!-- reading -->\n{reading}<!-- /reading -->", ""]
    lines += ["## A search ends when its cell has settled", ""]
    body = []
    for share in (0.0, 0.1, 0.2, 0.3):
        title = f"3 epochs and {100 * share:.0f} %" if share else "3 epochs"
        body += [[title, name, *judged(settled(share), among)] for name, among in sets]
    lines += [*table_lines(HEADINGS, body), ""]
    lines += ["## The same epochs cut off, settled or not", ""]
    body = [
        [f"{100 * s:.0f} % of the epochs", name, *judged(cut(s), among)] for s in (0.5, 0.7) for name, among in sets
    ]
    lines += [*table_lines(HEADINGS, body), ""]
    known = [s for s in found if s.certain and not s.held]
    lines += ["## Margins of alpha", ""]
    body = [[f"{z} deviations", "table of methods", *judged(certain(z), known)] for z in (0.5, 1, 2)]
    lines += [*table_lines(HEADINGS, body), ""]
    lines += [f"## The time to {GOAL} %", "", *curve(usual), ""]
    return "\n".join(lines)


def curve(usual: Sequence[Search]) -> list[str]:
    """Mean accuracy of the reduced study's rf_darts_fast after each epoch, and of the shorter searches."""
    means = [fmean(s.cells[epoch][1] for s in usual) for epoch in range(len(usual[0].cells))]
    reached = [epoch for epoch, mean in enumerate(means, start=1) if mean >= GOAL - 0.005]
    lines = [
        f"Mean table accuracy of `rf_darts_fast` over its {len(usual)} seeds after each of its {len(means)} epochs: "
        + ", ".join(f"{mean:.2f}" for mean in means)
        + f". At or above {GOAL} after the epochs {', '.join(map(str, reached))}.",
    ]
    short = [row for row in _rows(KEPT) if row["kind"] == "short"]
    for arm in dict.fromkeys(row["method"] for row in short):
        rows = [row for row in short if row["method"] == arm]
        values = [float(row["values"]["cifar10/test"]) for row in rows]
        paired = [s.cells[-1][1] for row in rows for s in usual if s.seed == row["seed"]]
        difference = spread([a - b for a, b in zip(values, paired, strict=True)])
        lines += [
            "",
            f"`{arm}`, {rows[0]['asked']['epochs']} epochs at alpha's rate {rows[0]['asked']['settings']['arch_optimizer.lr']}, "
            f"{len(rows)} seeds, {median(row['seconds'] for row in rows):.0f} s a search: {fmean(values):.2f} "
            f"({', '.join(f'{v:.2f}' for v in values)}); minus the study's, paired by seed: {difference}.",
        ]
    return lines


ALLOWED = 1.0
"""Points that an arm may not be shown to lose against the study, by the criterion of shorter_nb201.toml."""


def quicker() -> dict[str, object]:
    """The arm of the kept bench that is as good as the study at the least seconds, and how many times less than the study's own.

    `times` is 1 where there is none.
    """
    usual = [s for s in searches() if s.study == "collapse_nb201" and s.arm == "rf_darts_fast"]
    short = [row for row in _rows(KEPT) if row["kind"] == "short"]
    arms = {name: [row for row in short if row["method"] == name] for name in dict.fromkeys(r["method"] for r in short)}
    seconds = {name: median(row["seconds"] for row in rows) for name, rows in arms.items()}
    told: dict[str, object] = {"times": 1.0, "arm": None, "seconds": seconds}
    for name in sorted(set(arms) - {"rf_darts_fast"}, key=seconds.__getitem__, reverse=True):
        values = {int(row["seed"]): float(row["values"]["cifar10/test"]) for row in arms[name]}
        found = mean_interval([values[s.seed] - s.cells[-1][1] for s in usual if s.seed in values])
        if found and found[0] > -ALLOWED and fmean(values.values()) >= GOAL - 0.005:
            told |= {"times": seconds["rf_darts_fast"] / seconds[name], "arm": name, "mean": fmean(values.values())}
    return told


def main() -> None:
    """Reads the command line, keeps what it is given, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=Path, help="the folder `trials` of the bench of all methods")
    parser.add_argument("--short", type=Path, help="a bench of rf_darts_fast with fewer epochs")
    parser.add_argument("--out", type=Path, default=RESULTS / "fewer_steps.md")
    parser.add_argument("--json", action="store_true", help="say which arm is quicker, and write nothing")
    given = parser.parse_args()
    if given.json:
        print(json.dumps(quicker()))
        return
    if given.trials or given.short:
        keep(given.trials, given.short)
    earlier = READING.search(given.out.read_text()) if given.out.is_file() else None
    given.out.write_text(page(earlier.group(1) if earlier else "Not written yet.\n"))


if __name__ == "__main__":
    main()
