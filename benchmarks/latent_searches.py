"""Compares searches in learned spaces with random search and evolution on NAS-Bench-201, and writes docs/results/latent.md.

    OCHE_DATA=FOLDER python benchmarks/latent_searches.py run svge      # a line per seed in docs/results/latent_searches.jsonl; goes on
    OCHE_DATA=FOLDER python benchmarks/latent_searches.py page

Fixed before the runs on the page (what was tried before is told there): 100 queries of the table's CIFAR-10 validation accuracy, every
method at its defaults (OnceNAS with the latencies of the Raspberry Pi 4), seeds 0 to 19. Regret is the table's best validation accuracy
less the best so far. Compared is the CIFAR-10 test accuracy of the cell with the best one, which no search sees, paired by seed; a method
is better or worse where the t-based 95 % interval of the difference leaves out 0. `svge` has one embedding for all seeds, as in the
authors' runs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t as student

from oche.methods import METHODS
from oche.methods.ask_tell import AskTell, Told
from oche.methods.oncenas import front, oncenas
from oche.spaces import SPACES
from oche.tables import Table, table_named

RESULTS = Path(__file__).parents[1] / "docs" / "results"
LINES, EMBEDDING, PAGE = (RESULTS / name for name in ("latent_searches.jsonl", "latent_svge.jsonl", "latent.md"))
ORDER = (
    "random_search",
    "regularized_evolution",
    "gaussian_process",
    "bananas",
    "dsm_nas",
    "svge",
    "oncenas",
    "dnas",
)
AT = (10, 25, 50, 100)
VALID, TEST, LATENCY, SIZE = "cifar10/valid", "cifar10/test", "latency/raspi4", "cifar10/parameters"
Found = dict[str, dict[int, list[int]]]
"""Method -> seed -> the numbers of the cells that were asked for."""


def table() -> Table:
    """NAS-Bench-201's."""
    found = table_named("nb201")
    assert isinstance(found, Table)
    return found


def read(path: Path = LINES) -> Found:
    """What has been run."""
    found: Found = defaultdict(dict)
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        record = json.loads(line)
        found[record["method"]][record["seed"]] = record["cells"]
    return found


def run(name: str, seeds: range, path: Path) -> None:
    """Runs the seeds that the file lacks, each as `AskTell` does."""
    torch.set_num_threads(1)
    known, space = table(), SPACES["nb201"]()
    searcher = oncenas(device="raspi4") if name == "oncenas" else METHODS[name]()
    assert isinstance(searcher, AskTell)
    for seed in seeds:
        if seed in read(path)[name]:
            continue
        told, began = list[Told](), time.process_time()
        while len(told) < searcher.queries and (cell := searcher.strategy.ask(space, told, seed)) is not None:
            told.append(Told(cell, known.value(cell, VALID)))
        cells = [known.index(t.genotype) for t in told]
        record = {"method": name, "seed": seed, "cpu_seconds": round(time.process_time() - began, 1), "cells": cells}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(name, seed, max(t.score for t in told), record["cpu_seconds"], flush=True)


# ------------------------------------------------------------------ the page


def interval(values: np.ndarray, digits: int = 2) -> str:
    """Mean and t-based 95 % interval."""
    mean, half = values.mean(), student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{mean:.{digits}f} [{mean - half:.{digits}f}, {mean + half:.{digits}f}]"


def verdict(values: np.ndarray) -> str:
    """The interval of a difference, in a word."""
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    word = "better" if values.mean() > half else "worse" if values.mean() < -half else "not told apart"
    return f"{interval(values)}: {word}"


def searches(found: Found, known: Table) -> list[str]:
    """The tables of regret, of the cells found, and of fronts."""
    valid, test = known.column(VALID), known.column(TEST)
    best: dict[str, dict[int, float]] = {
        name: {seed: float(test[cells[int(np.argmax(valid[cells]))]]) for seed, cells in found[name].items()}
        for name in found
    }
    head = "| method | seeds | " + " | ".join(f"regret after {n}" for n in AT) + " |"
    lines = ["## Anytime regret in CIFAR-10 validation accuracy, points", "", head, "|---" * (2 + len(AT)) + "|"]
    for name in ORDER:
        rows = list(found[name].values())
        cells = [interval(np.array([known.best(VALID) - valid[row[:n]].max() for row in rows])) for n in AT]
        lines.append(f"| `{name}` | {len(rows)} | " + " | ".join(cells) + " |")
    lines += ["", "## CIFAR-10 test accuracy of the cell with the best validation accuracy", ""]
    lines += ["| method | test accuracy | less random search | less evolution |", "|---|---|---|---|"]
    for name in ORDER:
        beside = []
        for other in ORDER[:2]:
            both = sorted(best[name].keys() & best[other].keys())
            beside.append("" if other == name else verdict(np.array([best[name][s] - best[other][s] for s in both])))
        lines.append(f"| `{name}` | {interval(np.array(list(best[name].values())))} | " + " | ".join(beside) + " |")
    return lines


def whole_front(points: list[tuple[float, float, float]], among: list[int]) -> set[int]:
    """As `front`, of many points: the most accurate first, so that only cells before can beat a cell, and only those of the front."""
    kept: list[int] = []
    for i in sorted(among, key=lambda i: (-points[i][0], points[i][1], points[i][2])):
        if not kept or not np.any([points[k][1] <= points[i][1] and points[k][2] <= points[i][2] for k in kept]):
            kept.append(i)
    return set(kept)


def fronts(found: Found, known: Table) -> list[str]:
    """What of the table's own front the searches asked for, and the front of OnceNAS's first seed."""
    points = list(zip(*(known.column(m).tolist() for m in (VALID, LATENCY, SIZE)), strict=True))
    path = known.column(VALID) > 11  # cells that no image passes have hardly a latency
    candidates = [i for i in range(len(points)) if path[i]]
    own = whole_front(points, candidates)
    lines = ["", "## Accuracy, latency on a Raspberry Pi 4, parameters", ""]
    said = f"The table's own front in these three has {len(own)} of the {len(candidates):,} cells that learn anything."
    lines += [f"{said} Of a search's 100 cells on it:", "", "| method | cells of the table's front |", "|---|---|"]
    lines += [
        f"| `{name}` | {interval(np.array([float(len(own & set(cells))) for cells in found[name].values()]), 1)} |"
        for name in ORDER
    ]
    cells = sorted(i for i in set(found["oncenas"][0]) if path[i])
    kept = sorted((cells[n] for n in front([points[i] for i in cells])), key=lambda i: -points[i][0])
    lines += ["", f"The front of OnceNAS's seed 0, {len(kept)} cells, from the most accurate on:", ""]
    lines += ["| cell | validation accuracy | latency (ms) | parameters |", "|---|---|---|---|"]
    for i in kept[:: max(1, len(kept) // 8)]:
        accuracy, latency, size = points[i]
        lines.append(f"| {i} | {accuracy:.2f} | {latency:.2f} | {size / 1e6:.3f} M |")
    return lines


def embedding() -> list[str]:
    """The table of what latent.py measured."""
    records = [json.loads(line) for line in EMBEDDING.read_text(encoding="utf-8").splitlines()]
    lines = ["", "## SVGe's embedding, without a search", "", "| what | values |", "|---|---|"]
    for record in records:
        values = ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in record.items() if k != "what")
        lines.append(f"| {record['what']} | {values} |")
    return lines


def page() -> None:
    """Writes the page; what stands between its `reading` comments is kept."""
    old = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    begin, end = "<!-- reading -->", "<!-- /reading -->"
    reading = old.partition(begin)[2].partition(end)[0].strip()
    found, known = read(), table()
    lines = ["# Searches in learned spaces on NAS-Bench-201", "", begin, *([reading] if reading else []), end, ""]
    lines += [*searches(found, known), *fronts(found, known), *embedding(), ""]
    lines += [
        "How each of these is defined: the first lines of `benchmarks/latent_searches.py` and `benchmarks/latent.py`.",
        "The numbers behind them: [latent_searches.jsonl](latent_searches.jsonl), a line per search with the cells that it asked for, and",
        "[latent_svge.jsonl](latent_svge.jsonl).",
    ]
    PAGE.write_text("\n".join([*lines, ""]), encoding="utf-8")


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["run", "page"])
    parser.add_argument("method", nargs="?", choices=ORDER)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--out", type=Path, default=LINES)
    asked = parser.parse_args()
    if asked.what == "run":
        run(asked.method, range(asked.first, asked.seeds), asked.out)
    else:
        page()


if __name__ == "__main__":
    main()
