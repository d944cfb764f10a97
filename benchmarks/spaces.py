"""Compares what is found in the spaces `stages`, `sase` and `signal` with random networks of the space and with ResNet-8, equally trained.

    python benchmarks/spaces.py spaces.jsonl                       # every case that the file lacks; again: carries on
    python benchmarks/spaces.py spaces.jsonl --page docs/results/spaces.md

A case is a search of one seed, and one training each, with that seed and the same protocol, of the found network, two random ones and
ResNet-8 as wide as the found network's parameters and multiply-adds allow; for `sase` of the same backbone with CBAM's attention, too.
Searches are `darts` for images and `fault_darts` for signals. One JSON line per case. Sets:

- `digits_hard`: built in. `cifar10_16`: 2,500 train and 2,000 test images that OCHE_DATA's sheets have, at 16x16 (see cifar_npz.py).
- `impulses`: made here, no measurement. A shaft's wave and noise, and, in three classes of four, impulses that ring out, at three rates;
  in one their strength follows the shaft. Speed, phase, resonance and strength differ from signal to signal; 4 classes, 256 values.
- `acsf1`: power that appliances take, 10 classes, 100 train and 100 test signals of 1,460 values, as the package `aeon` ships them;
  AEON names the folder of its `datasets/data`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import cifar_npz
import numpy as np
import torch
from numpy.typing import NDArray

from oche.api.problems import problem_of, training_of
from oche.data import none
from oche.genotype import Choice, Genotype
from oche.plan.request import Request
from oche.plan.resolve import resolve
from oche.run import silent
from oche.search.searcher import as_searcher
from oche.spaces.sase import SLOTS
from oche.training.compare import compare, interval
from oche.training.evaluate import evaluate
from oche.training.train import retrain

Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Case:
    """A search: its method, what it is given, and a network of the space that is made by hand, if there is one."""

    space: str
    data: str
    method: str = "darts"
    epochs: int = 5
    protocol: str = "fast_brief"
    settings: Mapping[str, object] = field(default_factory=dict)
    by_hand: Genotype | None = None


CBAM = Genotype(
    "sase",
    {
        "attention": tuple(
            Choice(s, t, op)
            for (s, t), op in zip(
                SLOTS,
                ("pixels_mean", "channels_mlp", "channels_mlp", "channels_mean", "channels_max", "map_conv_7x7"),
                strict=True,
            )
        )
    },
)
"""Channels by their mean and a bottleneck, pixels by mean and maximum and a 7x7 convolution (Woo et al., ECCV 2018), in six slots."""

BRIEFLY = {"train.epochs": 10, "train.steps": 0}
STAGES = {**BRIEFLY, "space.cells": 5, "space.channels": 8, "space.nodes": 2}
SASE = {**BRIEFLY, "space.layers": [1, 1, 1]}
SIGNAL = {
    **{**BRIEFLY, "train.batch": 32},
    **{"space.channels": 8, "space.layers": [1, 2, 2], "space.widths": [1.0, 2.0, 4.0], "space.strides": [2, 2, 2]},
}
CASES = (
    Case("signal", "acsf1", "fault_darts", epochs=20, settings={**SIGNAL, "train.epochs": 30}),
    Case("signal", "impulses", "fault_darts", epochs=8, settings=SIGNAL),
    Case("stages", "digits_hard", settings=STAGES),
    Case("sase", "digits_hard", settings=SASE, by_hand=CBAM),
    Case("stages", "cifar10_16", settings=STAGES),
    Case("sase", "cifar10_16", settings=SASE, by_hand=CBAM),
)
SEEDS = (0, 1, 2)


# ------------------------------------------------------------------ sets


def impulses(count: int, seed: int, length: int = 256) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """x (count, 1, length) and y: 0 without impulses, 1 to 3 with those of a fault."""
    rng = np.random.default_rng(seed)
    y, t = np.arange(count) % 4, np.arange(length)
    x = np.zeros((count, 1, length))
    for i, fault in enumerate(y):
        speed, phase = rng.uniform(0.9, 1.1) / 64, rng.uniform(0, 1)
        shaft = np.sin(2 * np.pi * (speed * t + phase))
        x[i, 0] = rng.uniform(0.5, 1.0) * shaft + rng.normal(0, 0.5, length)
        if fault:
            period = 1 / (speed * (3.1, 4.7, 3.9)[fault - 1])
            at = rng.uniform(0, period)
            tone, strength = rng.uniform(0.25, 0.4), rng.uniform(1.0, 2.0)
            while at < length:
                after = t - at
                ring = np.where(after >= 0, np.exp(-np.maximum(after, 0) / 4) * np.sin(2 * np.pi * tone * after), 0)
                load = 0.5 * (1 + np.sin(2 * np.pi * (speed * at + phase))) if fault == 2 else 1.0
                x[i, 0] += strength * load * ring
                at += period * rng.normal(1, 0.02)
    return x.astype(np.float32), y


def made() -> Arrays:
    """`impulses`: 800 train, 400 validation and 800 test signals."""
    parts = {name: impulses(n, seed) for seed, (name, n) in enumerate({"train": 800, "val": 400, "test": 800}.items())}
    arrays: Arrays = {"classes": np.array(["healthy", "outer ring", "inner ring", "rolling element"])}
    for name, (x, y) in parts.items():
        arrays |= {f"x_{name}": x, f"y_{name}": y}
    return arrays


def acsf1() -> Arrays:
    """The two files of ACSF1 in aeon's own format: a line per signal, its values, a colon, its class."""
    arrays: Arrays = {}
    for part in ("train", "test"):
        text = (Path(os.environ["AEON"]) / "ACSF1" / f"ACSF1_{part.upper()}.ts").read_text(encoding="utf-8")
        lines = text.lower().partition("@data")[2].split()
        series, labels = zip(*(line.rsplit(":", 1) for line in lines), strict=True)
        arrays[f"x_{part}"] = np.array([row.split(",") for row in series], np.float32)[:, None]
        arrays[f"y_{part}"] = np.array(labels)
    return arrays


def cifar10_16() -> Arrays:
    """A part of what `cifar_npz.py` reads, made smaller by it."""
    arrays = cifar_npz.reduced(cifar_npz.cifar10(Path(os.environ["OCHE_DATA"]) / "cifar10", "a"), 250, 16, 0)
    return {name: array[:2000] if name.endswith("_test") else array for name, array in arrays.items()}


MADE: dict[str, Callable[[], Arrays]] = {"impulses": made, "acsf1": acsf1, "cifar10_16": cifar10_16}


# ------------------------------------------------------------------ a case


def outcome(case: Case, seed: int, folder: Path) -> dict[str, object]:
    """One line: test accuracies in percent, parameters, and processor time of the search and of all."""
    source = case.data
    if case.data in MADE:
        source = str(folder / f"{case.data}.npz")
        if not Path(source).exists():
            np.savez(source, **MADE[case.data]())  # type: ignore[arg-type]  # numpy's stub takes the names for options
    plan = resolve(
        Request(
            case.method,
            space=case.space,
            data=source,
            epochs=case.epochs,
            seed=seed,
            device="cpu",
            threads=1,
            protocol=case.protocol,
            settings=case.settings,
        )
    )
    began = time.process_time()
    genotype, _ = as_searcher(plan.searcher).run(problem_of(plan))
    searched = time.process_time() - began
    sizes: dict[str, object] = {}

    def told(event: str, record: Mapping[str, object]) -> None:
        if event == "trained":
            sizes[str(record["cell"])] = record["parameters"]

    training = training_of(plan, plan.space, genotype, None, told)
    compared = compare(training, cells=2, seeds=1, keep=lambda network, score: None, rivals=("resnet8",))
    score = {name: round(100 * value, 2) for name, (value,) in compared.accuracies.items()}
    by_hand = {}
    if case.by_hand:
        network = retrain(replace(training, genotype=case.by_hand, listener=silent))
        test = evaluate(network, training.data.test, none(training.data), training.fabric, training.task)
        by_hand = {"by_hand": round(100 * test.value, 2)}
    return {
        "space": case.space, "set": case.data, "method": case.method, "seed": seed, "found": score["found"],
        "random": [score["random 1"], score["random 2"]], "resnet8": score["resnet8"], **by_hand,
        "commonest": round(100 * (compared.floor or 0), 2), "parameters": sizes["found"],
        "random_parameters": [sizes["random 1"], sizes["random 2"]], "resnet8_parameters": sizes["resnet8"],
        "search_seconds": round(searched, 1), "seconds": round(time.process_time() - began, 1),
        "genotype": str(genotype),
    }  # fmt: skip


# ------------------------------------------------------------------ the page


def page(rows: list[dict[str, Any]], reading: str) -> str:
    """docs/results/spaces.md: a row per space and set, means over seeds with Student's 95 % intervals."""
    text = [
        "# Results of the spaces `stages`, `sase` and `signal`",
        "",
        "<!-- reading -->",
        reading,
        "<!-- /reading -->",
        "",
        "Written by `python benchmarks/spaces.py docs/results/spaces.jsonl --page docs/results/spaces.md`; the script tells of sets, sizes",
        "and searches. Test accuracy in percent, mean of the seeds and its 95 % interval; leads are paired by seed; seconds of processor",
        "time, one thread of a busy machine, of one seed's search and of all that one seed takes.",
        "",
        "| space | set | seeds | found | random | ResNet-8 | by hand | commonest class | search s | all s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["space"], row["set"]), []).append(row)
    for (space, name), runs in groups.items():
        scores = [_span([_of(run, what) for run in runs]) for what in ("found", "random", "resnet8", "by_hand")]
        seconds = (f"{mean(run[what] for run in runs):.0f}" for what in ("search_seconds", "seconds"))
        cells = [f"`{space}`", f"`{name}`", len(runs), *scores, f"{runs[0]['commonest']:.1f}", *seconds]
        text.append(f"| {' | '.join(map(str, cells))} |")
    text += [
        "",
        "| space | set | lead on random | lead on ResNet-8 | lead on by hand | parameters: found | random | ResNet-8 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (space, name), runs in groups.items():
        leads = [_verdict(runs, what) for what in ("random", "resnet8", "by_hand")]
        sizes = (f"{mean(_of(run, f'{of}parameters') or 0 for run in runs):,.0f}" for of in ("", "random_", "resnet8_"))
        text.append(f"| {' | '.join([f'`{space}`', f'`{name}`', *leads, *sizes])} |")
    return "\n".join(text) + "\n"


def _of(run: dict[str, Any], what: str) -> float | None:
    """A case's number, the mean of several; None where it has none."""
    value = run.get(what)
    return mean(value) if isinstance(value, list) else value


def _span(values: list[float | None], sign: str = "") -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    if len(known) < len(SEEDS):
        return " ".join(f"{value:{sign}.1f}" for value in known)
    low, high = interval(known)
    return f"{mean(known):{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def _verdict(runs: list[dict[str, Any]], what: str) -> str:
    """The lead on something, and what is told apart by it; of fewer than three seeds each lead, and no verdict."""
    leads = [run["found"] - other for run in runs if (other := _of(run, what)) is not None]
    if not leads:
        return ""
    if len(leads) < len(SEEDS):
        return " ".join(f"{lead:+.1f}" for lead in leads)
    low, high = interval(leads)
    return f"{_span([*leads], '+')}: {'better' if low > 0 else 'worse' if high < 0 else 'not told apart'}"


def main() -> None:
    """The cases that are not in the file yet, or the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path, help="the file of JSON lines")
    parser.add_argument("--page", type=Path, help="write this page of it, keeping its reading")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = (
        [json.loads(line) for line in given.log.read_text(encoding="utf-8").splitlines()] if given.log.exists() else []
    )
    if given.page:
        old = given.page.read_text(encoding="utf-8") if given.page.exists() else ""
        reading = old.partition("<!-- reading -->\n")[2].partition("\n<!-- /reading -->")[0]
        given.page.write_text(page(rows, reading), encoding="utf-8")
        return
    done = {(row["space"], row["set"], row["seed"]) for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            for case in CASES:
                if (case.space, case.data, seed) not in done:
                    line = json.dumps(outcome(case, seed, Path(folder)))
                    with given.log.open("a", encoding="utf-8") as log:
                        log.write(line + "\n")
                    print(line, flush=True)


if __name__ == "__main__":
    main()
