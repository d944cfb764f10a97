"""Foretold against measured latency of random networks: `python benchmarks/latency.py FOLDER [COUNT]`, with OMP_NUM_THREADS=1.

Networks of each space are exported to FOLDER as `oche export` does, and the table of operations is measured, in FOLDER too. Then all
files are measured in turns, `PASSES` times, and of each the least median counts: on a busy machine the quietest moment of each. What
FOLDER has already, files, operations and passes (measured.json), is not done again, so a run that was stopped goes on; another folder
begins anew. `--export` as the last word stops after the export, which needs no quiet machine. Writes FOLDER/latency.jsonl, a line per
network, and prints the table of docs/results/latency.md.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from oche.base import counted
from oche.spaces import SPACES, Space
from oche.spaces.cost import cost
from oche.spaces.sampling import sample
from oche.training import timing
from oche.training.export import Deployed, to_onnx
from oche.training.latencies import this_machine

SIZES: dict[str, dict[str, int]] = {"chain": {}, "nb201": {"cells": 2}, "darts": {"channels": 16, "cells": 5}}
PASSES = 5


def networks(name: str, space: Space, count: int, folder: Path) -> list[dict[str, object]]:
    """Random connected networks with their files."""
    found = []
    for i in range(count):
        rng = counted(i, "latency benchmark")
        genotype = sample(space, rng)
        while not genotype.connected:
            genotype = sample(space, rng)
        path = folder / f"{name}_{i}.onnx"
        if not path.exists():
            torch.manual_seed(i)
            network = Deployed(space.network(genotype), [0.5] * space.inputs, [0.25] * space.inputs).eval()
            to_onnx(network, (space.inputs, *space.size), None, path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)
            print(path.name, flush=True)
        adds = cost(space, genotype).multiply_adds
        found.append({"space": name, "number": i, "genotype": str(genotype), "multiply_adds": adds, "file": path})
    return found


def main(folder: Path, count: int, export: bool) -> None:
    """Measures, writes, prints."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["OCHE_CACHE"] = str(folder / "cache")
    torch.set_num_threads(1)
    if export:
        for name, sizes in SIZES.items():
            networks(name, SPACES[name](**sizes), count, folder)
        return
    rows: list[dict[str, object]] = []
    kept = folder / "measured.json"
    measured: dict[str, list[float]] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for name, sizes in SIZES.items():
        space = SPACES[name](**sizes)
        table, found = this_machine(), networks(name, space, count, folder)
        for row in found:
            rng = counted(int(str(row["number"])), "latency benchmark")
            genotype = sample(space, rng)
            while not genotype.connected:
                genotype = sample(space, rng)
            row["foretold_ms"] = table.of_network(space, genotype)
        for n in range(PASSES):
            for row in found:
                passes = measured.setdefault(Path(str(row["file"])).name, [])
                if len(passes) <= n:
                    model = Path(str(row["file"])).read_bytes()
                    passes.append(timing.latency_of(model, (space.inputs, *space.size)).median)
                    kept.write_text(json.dumps(measured), encoding="utf-8")
                row["measured_ms"] = min(passes)
        rows += found
        told, true = (np.array([row[key] for row in found], float) for key in ("foretold_ms", "measured_ms"))
        adds = np.array([row["multiply_adds"] for row in found], float)
        error = 100 * np.abs(told / true - 1)
        cells = (
            name, len(found), f"{true.min():.3f} to {true.max():.3f}", f"{stats.spearmanr(told, true)[0]:.3f}",
            f"{stats.kendalltau(told, true)[0]:.3f}", f"{np.median(error):.1f} %", f"{error.max():.1f} %",
            f"{100 * np.median(told / true - 1):+.1f} %", f"{stats.spearmanr(adds, true)[0]:.3f}",
        )  # fmt: skip
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    lines = [{k: v for k, v in row.items() if k != "file"} for row in rows]
    (folder / "latency.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    print(timing.processor(), timing.runtime())


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--export"]
    main(Path(words[0]), int(words[1]) if len(words) > 1 else 50, "--export" in sys.argv)
