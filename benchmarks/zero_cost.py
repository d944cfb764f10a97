"""Zero-cost scores against the published ones and against accuracy, on random cells of NAS-Bench-201.

    python benchmarks/cifar_npz.py --per-class 500 --out cifar10.npz
    python benchmarks/zero_cost.py cifar10.npz --cells 300 --page docs/results/zero_cost.md

OCHE_DATA names the folder of the table. Each cell's network has the published size (C=16, N=5), the scores see 64 train images of 32x32.
One JSON line per cell goes to the page's name with `.jsonl`; scores that are there are not computed again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from scipy.stats import kendalltau, spearmanr

from oche.data import for_search, load
from oche.methods.zero_cost import COUNTED, LOWEST, SCORES, ZeroCost
from oche.search.state import Problem
from oche.spaces.nb201 import NB201Space
from oche.tables.nb201 import CELLS, read
from oche.tasks import Classify

PUBLISHED = {"naswot": "naswot", "logsynflow": "logsynflow", "synflow": "log10_synflow"}
"""Ours -> the table's score of the same kind."""


def main() -> None:
    """Scores the cells that are missing, then writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="CIFAR-10 as cifar_npz.py writes it")
    parser.add_argument("--cells", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="draws the cells, the images and the weights")
    parser.add_argument("--page", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    data = load(asked.data)
    space = NB201Space(inputs=data.channels, outputs=len(data.classes), size=data.size)
    problem = Problem(
        space, data, Classify(), for_search(data), 1, 64, asked.seed, fabric=Fabric(accelerator="cpu", devices=1)
    )
    scorers = {name: ZeroCost(name).ready(problem, ()) for name in (*SCORES, *COUNTED)}
    table = read()
    log = asked.page.with_suffix(".jsonl")
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    known = {row["index"]: row for row in rows if row["seed"] == asked.seed}
    drawn = np.random.default_rng(asked.seed).permutation(CELLS)[: asked.cells].tolist()
    for index in drawn:
        row = known.setdefault(index, {"index": index, "seed": asked.seed})
        missing = [name for name in scorers if name not in row]
        for name in missing:
            began = time.process_time()
            row[name] = scorers[name](table.genotype(index))
            row[f"{name}/seconds"] = round(time.process_time() - began, 3)
        if missing:
            lines = [json.dumps(row) + "\n" for row in known.values()]
            log.write_text("".join(lines), encoding="utf-8")
    asked.page.write_text(page([known[index] for index in drawn], table, asked.seed), encoding="utf-8")


def page(rows: list[dict[str, float]], table: object, seed: int) -> str:
    """The correlations as a table."""
    index = [int(row["index"]) for row in rows]

    def column(metric: str) -> np.ndarray:
        return np.asarray(table.column(metric))[index]  # type: ignore[attr-defined]

    accuracy = column("cifar10/test")
    text = [
        "# Zero-cost scores on NAS-Bench-201",
        "",
        "Written by `python benchmarks/zero_cost.py cifar10.npz --cells "
        f"{len(rows)} --seed {seed} --page docs/results/zero_cost.md`; every score of every cell is in `zero_cost.jsonl` beside it.",
        f"{len(rows)} random cells, networks of the published size (C=16, N=5), 64 train images of CIFAR-10, one network each. "
        "Spearman's and Kendall's rank correlations with the",
        "table's CIFAR-10 test accuracy after 200 epochs, over all cells (what is not finite counts as the lowest), and with the",
        "table's score of the same name (NiccoloCavagnero/FreeREA), over the cells in which both are finite. Seconds are processor",
        "time on one thread.",
        "",
        "| score | Spearman, accuracy | Kendall, accuracy | Spearman, table's score | cells | table's, accuracy | not finite | s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in (*SCORES, *COUNTED):
        ours = np.array([row[name] for row in rows])
        cells = [f"{spearmanr(ours, accuracy).statistic:.3f}", f"{kendalltau(ours, accuracy).statistic:.3f}"]
        if name in PUBLISHED:
            theirs = column(f"zerocost/cifar10/{PUBLISHED[name]}")
            both = (ours > LOWEST) & np.isfinite(theirs)
            own = spearmanr(np.where(np.isfinite(theirs), theirs, LOWEST), accuracy).statistic
            cells += [f"{spearmanr(ours[both], theirs[both]).statistic:.3f}", str(int(both.sum())), f"{own:.3f}"]
        else:
            cells += ["", "", ""]
        seconds = float(np.median([row[f"{name}/seconds"] for row in rows]))
        text.append(f"| {name} | {' | '.join(cells)} | {int((ours == LOWEST).sum())} | {seconds:.2f} |")
    text += [
        "",
        "Read the last two rows first: a score that is not above them by much has learned that large cells are better.",
    ]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    main()
