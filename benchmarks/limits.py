"""The study of limits: searched networks against what one would pick by hand, under one limit and one recipe (docs/results/limits.md).

    python benchmarks/cifar_npz.py --out cifar10.npz                    # OCHE_DATA names the folder of the sheets
    python benchmarks/limits.py cifar10.npz runs/limits                  # again: carries on; --minutes 60 stops after that
    python benchmarks/limits.py cifar10.npz runs/limits --known docs/results/limits.jsonl    # what ran on another machine stays run
    python benchmarks/limits.py cifar10.npz runs/limits --page docs/results/limits.md

Every run is the command that a user would type: `oche search METHOD --space SPACE --max-params 80k --max-macs 12.7M`, then
`oche train RUN`; rivals by `oche train NAME` with the same limits. A run that was broken off is resumed. Each finished one is a line of the
page's `.jsonl`. Several processes may share a folder of runs: each takes what no other has begun.

Criteria, written before the first run. CIFAR-10, 45,000 train and 5,000 validation images, the 10,000 test images scored once, after
the last epoch. One recipe for all (`PROTOCOL`, `EPOCHS`), chosen beforehand on other images, on rivals, and left
as it was when ResNet-8 was tried with three changes of it, one seed, validation images alone (`limits_recipe.jsonl` beside the page).
Limit A: 80,000 parameters that learn and 12.7 million multiply-adds. Arms in seeds 0, 1, 2; the found
arm and the rival with the best mean *validation* accuracy of
these three are then run with seeds 10 to 15, searches included, and the verdict is Student's 95 % interval of the differences of their
*test* accuracies in those six seeds alone: above 0, the search wins; below, the rival; else neither. `random_...` draws `QUERIES` cells,
trains each as wide as the limits allow and keeps the best by validation: three trainings take about the processor time of a search.
`best_of_table` and the search in `darts`, of one seed, are shown beside and take no part in that choice.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import IO

from oche.bench import stats
from oche.spaces.rivals import RIVALS

LIMITS = ("--max-params", "80k", "--max-macs", "12.7M")
PROTOCOL, EPOCHS = "fast", 12
SEARCH_EPOCHS = 14
SEEDS, FRESH = (0, 1, 2), (10, 11, 12, 13, 14, 15)
RIVALS_OF_A = ("resnet8", "plain_cnn", "resnet20", "ds_cnn")
"""In the order in which they run; `mobilenetv2` and `shufflenetv2` are wider than the limits at their narrowest useful width."""

SEARCHED = {
    "rf_darts_nb201": ("rf_darts", "nb201"),
    "random_nb201": ("random_search", "nb201"),
    "rf_darts_chain": ("rf_darts", "chain"),
    "darts_nb201": ("darts", "nb201"),
    "random_chain": ("random_search", "chain"),
    "rf_pcdarts_nb201": ("rf_pcdarts", "nb201"),
    "drnas_nb201": ("drnas", "nb201"),
    "darts_chain": ("darts", "chain"),
    "drnas_chain": ("drnas", "chain"),
    "rf_pcdarts_chain": ("rf_pcdarts", "chain"),
    "rf_darts_darts": ("rf_darts", "darts"),
}
ONCE = ("rf_darts_darts",)
"""Arms of the first seed alone, for their length."""

BEST_OF_TABLE = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|"
"""The cell with the best `cifar10/valid` of NAS-Bench-201's table among the 15,618 whose network of 8 channels and a cell a stage keeps
the limits: what 15,618 full trainings would choose. It is no rival, and no search of ours found it."""

QUERIES = 3
"""Cells that `random_...` trains."""

ARMS = tuple(dict.fromkeys((RIVALS_OF_A[0], *list(SEARCHED)[:2], *RIVALS_OF_A, "best_of_table", *SEARCHED)))
"""All of them, in the order in which they run."""


@dataclass(frozen=True)
class Step:
    """One command of the study: an `oche` verb with its arguments, and the folder that it writes."""

    arm: str
    seed: int
    folder: Path
    arguments: tuple[str, ...]

    def run(self) -> float | None:
        """Runs or resumes it; returns the processor seconds that it took, None after a break. Raises CalledProcessError."""
        verb = self.arguments[0]
        begun = (self.folder / "run.toml").is_file()
        given = (verb, "--resume", str(self.folder)) if begun else (*self.arguments, "--out", str(self.folder))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "oche", *given, "--quiet"], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return None if begun else after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Runs what is missing, in the order of the plan, then writes the page where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="CIFAR-10 as cifar_npz.py writes it")
    parser.add_argument("runs", type=Path, help="the folder of all runs")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no further run after so many")
    parser.add_argument(
        "--known", type=Path, help="the .jsonl of runs that have ended elsewhere, for a new folder of runs"
    )
    parser.add_argument("--page", type=Path)
    asked = parser.parse_args()
    log = asked.runs / "limits.jsonl"
    asked.runs.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * asked.minutes
    if asked.known and not log.is_file():
        shutil.copyfile(asked.known, log)
    if asked.page is None:
        while time.monotonic() < until and (claimed := claim(asked.data, asked.runs, log)):
            arm, seed, steps, lock = claimed
            with lock:
                seconds = {step.arguments[0]: step.run() for step in steps}
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(outcome(arm, seed, steps, seconds)) + "\n")
        return
    rows = read(log)
    asked.page.write_text(page(rows), encoding="utf-8")
    asked.page.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(log: Path) -> list[dict[str, object]]:
    """The finished runs."""
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []


def claim(data: Path, runs: Path, log: Path) -> tuple[str, int, list[Step], IO[str]] | None:
    """The next run that has not ended and that no other process is at, with the lock that keeps it so until it is closed."""
    for arm, seed, steps in _missing(data, runs, read(log)):
        lock = (runs / f"{arm}-{seed}.lock").open("w", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        if (arm, seed) not in {
            (row["arm"], row["seed"]) for row in read(log)
        }:  # not ended since the log was read, either
            return arm, seed, steps, lock
        lock.close()
    return None


def _missing(data: Path, runs: Path, rows: list[dict[str, object]]) -> Iterator[tuple[str, int, list[Step]]]:
    """The runs of the plan that have not ended, the next one first."""
    done = {(row["arm"], row["seed"]) for row in rows}
    plan = [(arm, seed) for seed in SEEDS for arm in ARMS if arm not in ONCE] + [(arm, SEEDS[0]) for arm in ONCE]
    if all(each in done for each in plan):
        plan = [(arm, seed) for seed in FRESH for arm in chosen(rows)]
    yield from ((arm, seed, steps_of(arm, seed, data, runs)) for arm, seed in plan if (arm, seed) not in done)


def steps_of(arm: str, seed: int, data: Path, runs: Path) -> list[Step]:
    """The commands of an arm and a seed: a search and the training of what it found, or a rival's training."""
    usual = ("--seed", str(seed), "--threads", "1")
    trained = ("--protocol", PROTOCOL, "--epochs", str(EPOCHS), *usual)
    given = ("--data", str(data), "--set", "data.val=0.1", *LIMITS)
    folder = runs / arm / str(seed)
    if arm in RIVALS:
        return [Step(arm, seed, folder / "trained", ("train", arm, *given, *trained))]
    if arm == "best_of_table":
        return [
            Step(
                arm,
                seed,
                folder / "trained",
                ("train", BEST_OF_TABLE, *given, *trained, "--space", "nb201", "--set", "space.cells=1"),
            )
        ]
    method, space = SEARCHED[arm]
    searching = ["search", method, "--space", space, *given, "--compare", "0", *usual]
    if method == "random_search":
        searching += ["--set", "evaluator=training", "--set", f"method.queries={QUERIES}"]
    else:
        searching += ["--epochs", str(SEARCH_EPOCHS)]
    return [
        Step(arm, seed, folder / "searched", tuple(searching)),
        Step(arm, seed, folder / "trained", ("train", str(folder / "searched"), *trained)),
    ]


def outcome(arm: str, seed: int, steps: list[Step], seconds: dict[str, float | None]) -> dict[str, object]:
    """The line of a finished run: scores in percent, costs as the card has them, processor seconds of each unbroken verb."""
    folder = steps[-1].folder
    card = json.loads((folder / "network" / "card.json").read_text(encoding="utf-8"))
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    (test,) = (r for r in records if r.get("kind") == "test")
    last = [r for r in records if r.get("kind") == "train_epoch"][-1]
    return {
        "arm": arm,
        "seed": seed,
        "val": 100 * last["val_accuracy"],
        "test": 100 * test["accuracy"],
        "parameters": card["parameters"],
        "multiply_adds": card["multiply_adds"],
        "genotype": card["genotype"],
        **{f"{verb}_seconds": round(value, 1) for verb, value in seconds.items() if value is not None},
    }


def by_seed(rows: list[dict[str, object]], arm: str, key: str, seeds: tuple[int, ...]) -> dict[int, float]:
    """An arm's numbers by seed."""
    return {int(str(r["seed"])): float(str(r[key])) for r in rows if r["arm"] == arm and r["seed"] in seeds}


def seeds_of(arm: str) -> tuple[int, ...]:
    """The first seeds that an arm runs with."""
    return SEEDS[:1] if arm in ONCE else SEEDS


def chosen(rows: list[dict[str, object]]) -> tuple[str, str]:
    """The found arm and the rival with the best mean validation accuracy over the first seeds."""
    means = {arm: mean(by_seed(rows, arm, "val", SEEDS).values()) for arm in (*SEARCHED, *RIVALS_OF_A)}
    found = [arm for arm in SEARCHED if not arm.startswith("random_") and arm not in ONCE]
    return max(found, key=means.__getitem__), max(RIVALS_OF_A, key=means.__getitem__)


def page(rows: list[dict[str, object]]) -> str:
    """docs/results/limits.md: how far the study came, its table, and the verdict where the fresh seeds have run."""
    arms = (*RIVALS_OF_A, "best_of_table", *SEARCHED)
    planned = sum(len(seeds_of(arm)) for arm in arms)
    first = [row for row in rows if row["seed"] in SEEDS]
    text = [
        "# Limits: searched networks against what one would pick by hand",
        "",
        "Written by `python benchmarks/limits.py cifar10.npz runs/limits --page docs/results/limits.md`.",
        "Its first lines hold the criteria; every run is a line of `limits.jsonl` beside this page.",
        "",
        "CIFAR-10, limit A: at most 80,000 parameters and 12.7 million multiply-adds. "
        f"{EPOCHS} epochs of the protocol `{PROTOCOL}`, one thread.",
        f"**{len(first)} of {planned} runs of the first three seeds have ended"
        + (".**" if len(first) < planned else "; all of them.**"),
        "",
        "| arm | seeds | validation % | test % | 95 % interval | parameters | multiply-adds M | search min | training min |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    text += [line(rows, arm) for arm in arms if by_seed(rows, arm, "test", SEEDS)]
    text += ["", *verdict(rows, len(first) == planned)]
    return "\n".join(text) + "\n"


def line(rows: list[dict[str, object]], arm: str) -> str:
    """An arm's row: means over the seeds that ran; minutes of processor time."""
    test = list(by_seed(rows, arm, "test", SEEDS).values())
    interval = stats.mean_interval(test)
    of = [row for row in rows if row["arm"] == arm and row["seed"] in SEEDS]

    def average(key: str, unit: float, digits: int) -> str:
        known = [float(str(row[key])) / unit for row in of if key in row]
        return f"{mean(known):,.{digits}f}" if known else "-"

    cells = [
        arm,
        str(len(test)),
        average("val", 1, 2),
        f"{mean(test):.2f}",
        f"[{interval[0]:.2f}, {interval[1]:.2f}]" if interval else f"none: {len(test)} seed{'s' * (len(test) != 1)}",
        average("parameters", 1, 0),
        average("multiply_adds", 1e6, 2),
        average("search_seconds", 60, 1),
        average("train_seconds", 60, 1),
    ]
    return f"| {' | '.join(cells)} |"


def verdict(rows: list[dict[str, object]], complete: bool) -> list[str]:
    """What the fresh seeds say of the arm and the rival that validation chose, or that they have not run."""
    if not complete:
        return [
            "No verdict yet: the arm and the rival that are compared on fresh seeds are chosen when all of these have ended."
        ]
    found, rival = chosen(rows)
    ours, theirs = by_seed(rows, found, "test", FRESH), by_seed(rows, rival, "test", FRESH)
    gap = stats.difference(ours, theirs)
    if gap is None or gap.interval is None:
        return [f"Chosen by validation: {found} against {rival}. {len(ours)} of {len(FRESH)} fresh seeds have ended."]
    low, high = gap.interval
    says = "the search wins" if low > 0 else "take the rival" if high < 0 else "not told apart"
    return [f"{found} less {rival}, {gap.n} fresh seeds: {gap.mean:+.2f} points [{low:+.2f}, {high:+.2f}]: {says}."]


if __name__ == "__main__":
    main()
