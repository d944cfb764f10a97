"""The study of limits: searched networks against what one would pick by hand, under one limit and one recipe (docs/results/limits.md).

    python benchmarks/cifar_npz.py --out cifar10.npz                    # OCHE_DATA names the folder of the sheets
    python benchmarks/limits.py cifar10.npz runs/limits                  # again: carries on; --minutes 60 stops after that
    python benchmarks/limits.py cifar10.npz runs/limits --known docs/results    # what ran on another machine stays run
    python benchmarks/limits.py cifar10.npz runs/limits --page docs/results/limits.md
    python benchmarks/limits.py cifar100.npz runs/limits --part cifar100

Every run is the command that a user would type: `oche search METHOD --space SPACE --max-params 80k --max-macs 12.7M`, then
`oche train RUN`, then `oche export RUN --format int8`; rivals by `oche train NAME` with the same limits. A run that was broken off is
resumed. Each finished one is a line of the part's `.jsonl`. Several processes may share a folder of runs.

Criteria, written before the first run. CIFAR-10, 45,000 train and 5,000 validation images, the 10,000 test images scored once, after
the last epoch. One recipe for all (`PROTOCOL`, `Part.epochs`), chosen beforehand on other images, on rivals, and left
as it was when ResNet-8 was tried with three changes of it, one seed, validation images alone (`limits_recipe.jsonl` beside the page).

- Part A, 80,000 parameters that learn and 12.7 million multiply-adds. Arms in seeds 0, 1, 2; the found
  arm and the rival with the best mean *validation* accuracy of
  these three are then run with seeds 10 to 15, searches included, and the verdict is Student's 95 % interval of the differences of their
  *test* accuracies in those six seeds alone: above 0, the search wins; below, the rival; else neither. After them the random search of
  the found arm's space runs with the same six seeds, and the same interval says whether the search beats it. `random_...` draws
  `QUERIES` cells, trains each as wide as the limits allow and keeps the best by validation: three trainings take about the processor
  time of a search.
  `best_of_table` and the search in `darts`, of one seed, are shown beside and take no part in that choice.
- Part C, 273,000 parameters and 41 million multiply-adds (ResNet-20 fits): fewer arms, one seed, no verdict.
- Part cifar100, the second data set: the 10,000 test images of CIFAR-100, of which 6,000 train, under limit A, five seeds. The arms are
  named beforehand (`rf_darts_chain` against `resnet8` and against `random_chain`), and the verdicts are the intervals over the five.
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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import IO

from oche.bench import stats
from oche.spaces.rivals import RIVALS

PROTOCOL = "fast"
FRESH = (10, 11, 12, 13, 14, 15)
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


@dataclass(frozen=True)
class Part:
    """A limit with the arms that run under it, in their order; how the data is split; epochs of a training, and of a search by its space.

    The latter make a search take about a quarter of an hour of one thread in each space, by steps timed before the first run.
    """

    title: str
    limits: tuple[str, ...]
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    most: tuple[int, int]
    epochs: int = 12
    search_epochs: Mapping[str, int] = field(default_factory=lambda: {"nb201": 14, "chain": 4, "darts": 3})
    split: tuple[str, ...] = ("--set", "data.val=0.1")
    fresh: tuple[int, ...] = ()

    def seeds_of(self, arm: str) -> tuple[int, ...]:
        """The first seeds that an arm runs with."""
        return self.seeds[:1] if arm in ONCE else self.seeds


LIMIT_A = ("--max-params", "80k", "--max-macs", "12.7M")
PARTS = {
    "A": Part(
        "CIFAR-10, limit A: at most 80,000 parameters and 12.7 million multiply-adds",
        LIMIT_A,
        tuple(dict.fromkeys((RIVALS_OF_A[0], *list(SEARCHED)[:2], *RIVALS_OF_A, "best_of_table", *SEARCHED))),
        (0, 1, 2),
        (80_000, 12_700_000),
        fresh=FRESH,
    ),
    "C": Part(
        "CIFAR-10, limit C: at most 273,000 parameters and 41 million multiply-adds",
        ("--max-params", "273k", "--max-macs", "41M"),
        ("resnet20", "rf_darts_chain", "resnet8", "random_chain", "rf_darts_nb201"),
        (0,),
        (273_000, 41_000_000),
    ),
    "cifar100": Part(
        "6,000 images of CIFAR-100, limit A",
        LIMIT_A,
        ("resnet8", "rf_darts_chain", "random_chain", "rf_darts_nb201", "plain_cnn"),
        (0, 1, 2, 3, 4),
        (80_000, 12_700_000),
        epochs=30,
        search_epochs={"nb201": 30, "chain": 20},
        split=(),
    ),
}


def log_of(part: str) -> str:
    """The name of the file of a part's finished runs."""
    return "limits.jsonl" if part == "A" else f"limits_{part.lower()}.jsonl"


@dataclass(frozen=True)
class Step:
    """One command of the study: an `oche` verb with its arguments, and the folder that it writes or, for an export, adds to."""

    folder: Path
    arguments: tuple[str, ...]

    def run(self) -> float | None:
        """Runs or resumes it; returns the processor seconds that it took, None after a break. Raises CalledProcessError."""
        verb = self.arguments[0]
        begun = verb != "export" and (self.folder / "run.toml").is_file()
        given = [verb, "--resume", str(self.folder)] if begun else [*self.arguments]
        if verb != "export":
            given += ["--quiet"] if begun else ["--out", str(self.folder), "--quiet"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "oche", *given], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return None if begun else after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@dataclass(frozen=True)
class Claimed:
    """A run that this process has taken: its arm, seed and commands, and the lock that keeps others from it until it is closed."""

    arm: str
    seed: int
    steps: list[Step]
    lock: IO[str]


def main() -> None:
    """Runs what is missing of a part, in the order of the plan, or writes the page of all parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the images as cifar_npz.py writes them")
    parser.add_argument("runs", type=Path, help="the folder of all runs")
    parser.add_argument("--part", choices=PARTS, default="A")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no further run after so many")
    parser.add_argument(
        "--known", type=Path, help="a folder with the .jsonl of what ended elsewhere, for a new folder of runs"
    )
    parser.add_argument("--page", type=Path)
    asked = parser.parse_args()
    asked.runs.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * asked.minutes
    for part in PARTS:
        known = asked.known / log_of(part) if asked.known else None
        if known and known.is_file() and not (asked.runs / log_of(part)).is_file():
            shutil.copyfile(known, asked.runs / log_of(part))
    if asked.page is not None:
        write(asked.page, {part: read(asked.runs / log_of(part)) for part in PARTS})
        return
    log = asked.runs / log_of(asked.part)
    while time.monotonic() < until and (claimed := claim(asked.part, asked.data, asked.runs)):
        with claimed.lock:
            seconds = {step.arguments[0]: step.run() for step in claimed.steps}
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(outcome(claimed, seconds)) + "\n")


# ------------------------------------------------------------------ runs


def read(log: Path) -> list[dict[str, object]]:
    """The finished runs."""
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []


def claim(part: str, data: Path, runs: Path) -> Claimed | None:
    """The next run of the part that has not ended and that no other process is at."""
    for arm, seed in missing(part, read(runs / log_of(part))):
        lock = (runs / f"{part}-{arm}-{seed}.lock").open("w", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        if (arm, seed) in ended(read(runs / log_of(part))):  # since the log was read
            lock.close()
            continue
        return Claimed(arm, seed, steps_of(PARTS[part], arm, seed, data, runs / part / arm / str(seed)), lock)
    return None


def ended(rows: list[dict[str, object]]) -> set[tuple[object, object]]:
    """The arms and seeds that these rows have."""
    return {(row["arm"], row["seed"]) for row in rows}


def missing(part: str, rows: list[dict[str, object]]) -> Iterator[tuple[str, int]]:
    """The arms and seeds of the plan that have not ended, the next one first."""
    of = PARTS[part]
    plan = [(arm, seed) for seed in of.seeds for arm in of.arms if arm not in ONCE]
    plan += [(arm, of.seeds[0]) for arm in of.arms if arm in ONCE]
    if of.fresh and ended(rows).issuperset(plan):
        found, rival = chosen(rows)
        plan += [(arm, seed) for seed in of.fresh for arm in (found, rival)]
        plan += [(random_of(found), seed) for seed in of.fresh]
    yield from (each for each in plan if each not in ended(rows))


def steps_of(part: Part, arm: str, seed: int, data: Path, folder: Path) -> list[Step]:
    """The commands of an arm and a seed: a search and the training of what it found, or a rival's training; then the int8 file."""
    usual = ("--seed", str(seed), "--threads", "1")
    trained = ("--protocol", PROTOCOL, "--epochs", str(part.epochs), *usual)
    given = ("--data", str(data), *part.split, *part.limits)
    last = folder / "trained"
    export = Step(last, ("export", str(last), "--format", "int8", "--allow-loss"))
    if arm in RIVALS:
        return [Step(last, ("train", arm, *given, *trained)), export]
    if arm == "best_of_table":
        cell = (BEST_OF_TABLE, *given, *trained, "--space", "nb201", "--set", "space.cells=1")
        return [Step(last, ("train", *cell)), export]
    method, space = SEARCHED[arm]
    searching = ["search", method, "--space", space, *given, "--compare", "0", *usual]
    if method == "random_search":
        searching += ["--set", "evaluator=training", "--set", f"method.queries={QUERIES}"]
    else:
        searching += ["--epochs", str(part.search_epochs[space])]
    searched = folder / "searched"
    return [Step(searched, tuple(searching)), Step(last, ("train", str(searched), *trained)), export]


def outcome(run: Claimed, seconds: dict[str, float | None]) -> dict[str, object]:
    """The line of a finished run: scores in percent, costs as the card has them, processor seconds of each unbroken verb."""
    folder = run.steps[-1].folder
    card = json.loads((folder / "network" / "card.json").read_text(encoding="utf-8"))
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    (test,) = (r for r in records if r.get("kind") == "test")
    last = [r for r in records if r.get("kind") == "train_epoch"][-1]
    return {
        "arm": run.arm,
        "seed": run.seed,
        "val": 100 * last["val_accuracy"],
        "test": 100 * test["accuracy"],
        "parameters": card["parameters"],
        "multiply_adds": card["multiply_adds"],
        "int8_lost": card["int8"]["lost_points"],
        "int8_size": card["int8"]["size"]["after"],
        "genotype": card["genotype"],
        **{f"{verb}_seconds": round(value, 1) for verb, value in seconds.items() if value is not None},
    }


def chosen(rows: list[dict[str, object]]) -> tuple[str, str]:
    """The found arm and the rival of part A with the best mean validation accuracy over the first seeds."""
    seeds = PARTS["A"].seeds
    means = {arm: mean(by_seed(rows, arm, "val", seeds).values()) for arm in (*SEARCHED, *RIVALS_OF_A)}
    found = [arm for arm in SEARCHED if not arm.startswith("random_") and arm not in ONCE]
    return max(found, key=means.__getitem__), max(RIVALS_OF_A, key=means.__getitem__)


def random_of(found: str) -> str:
    """The arm of the random search in the space of a found arm."""
    return f"random_{SEARCHED[found][1]}"


# ------------------------------------------------------------------ the page


def write(path: Path, rows: dict[str, list[dict[str, object]]]) -> None:
    """The page, and beside it the rows of each part that has some."""
    path.write_text(page(rows), encoding="utf-8")
    for part, of in rows.items():
        if of:
            (path.parent / log_of(part)).write_text("".join(json.dumps(row) + "\n" for row in of), encoding="utf-8")


def page(rows: dict[str, list[dict[str, object]]]) -> str:
    """docs/results/limits.md: how far each part came, its table, and the verdict where all of it has run."""
    text = [
        "# Limits: searched networks against what one would pick by hand",
        "",
        "Written by `python benchmarks/limits.py cifar10.npz runs/limits --page docs/results/limits.md`.",
        "Its first lines hold the criteria; every run is a line of `limits.jsonl`, `limits_c.jsonl` or `limits_cifar100.jsonl`.",
    ]
    for part, of in rows.items():
        text += ["", *section(part, of)]
    return "\n".join(text) + "\n"


def section(part: str, rows: list[dict[str, object]]) -> list[str]:
    """A part's heading, its table and what is to be read from it."""
    of = PARTS[part]
    planned = sum(len(of.seeds_of(arm)) for arm in of.arms)
    first = [row for row in rows if row["seed"] in of.seeds]
    text = [
        f"## {of.title}",
        "",
        f"{of.epochs} epochs of the protocol `{PROTOCOL}`, one thread; searches of "
        + ", ".join(f"{epochs} epochs in {space}" for space, epochs in of.search_epochs.items())
        + ".",
        f"**{len(first)} of {planned} runs of the first {len(of.seeds)} seeds have ended.**",
    ]
    if not first:
        return text
    over = [row for row in rows if not kept(of, row)]
    text += [
        f"Every network keeps the limits: {not over}. " + int8_said(rows),
        "",
        "| arm | seeds | validation % | test % | 95 % interval | parameters | multiply-adds M | search min | training min |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    text += [line(of, rows, arm) for arm in of.arms if by_seed(rows, arm, "test", of.seeds)]
    return [*text, "", *(verdicts_of_a(rows) if part == "A" else verdicts(of, rows))]


def kept(part: Part, row: dict[str, object]) -> bool:
    """Whether a run's network keeps the part's limits, by its card."""
    counts = int(str(row["parameters"])), int(str(row["multiply_adds"]))
    return all(count <= most for count, most in zip(counts, part.most, strict=True))


def int8_said(rows: list[dict[str, object]]) -> str:
    """What int8 costs the runs that were exported so."""
    lost = [float(str(row["int8_lost"])) for row in rows if "int8_lost" in row]
    if not lost:
        return ""
    return f"In int8 {len(lost)} exported networks lose {mean(lost):.2f} points of test accuracy on average, {max(lost):.2f} at most."


def by_seed(rows: list[dict[str, object]], arm: str, key: str, seeds: tuple[int, ...]) -> dict[int, float]:
    """An arm's numbers by seed."""
    return {int(str(r["seed"])): float(str(r[key])) for r in rows if r["arm"] == arm and r["seed"] in seeds}


def line(part: Part, rows: list[dict[str, object]], arm: str) -> str:
    """An arm's row: means over the seeds that ran; minutes of processor time."""
    test = list(by_seed(rows, arm, "test", part.seeds).values())
    interval = stats.mean_interval(test)
    of = [row for row in rows if row["arm"] == arm and row["seed"] in part.seeds]

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


def verdicts_of_a(rows: list[dict[str, object]]) -> list[str]:
    """What the fresh seeds say of the arm and the rival that validation chose, or that they have not run."""
    of = PARTS["A"]
    if not ended(rows).issuperset((arm, seed) for arm in of.arms for seed in of.seeds_of(arm)):
        return [
            "No verdict yet: the arm and the rival that are compared on fresh seeds are chosen when all of these have ended."
        ]
    found, rival = chosen(rows)
    return [f"Chosen by validation: {found} and {rival}.", *said(rows, found, (rival, random_of(found)), of.fresh)]


def verdicts(part: Part, rows: list[dict[str, object]]) -> list[str]:
    """The search in `chain` against the first rival and against random search, over the part's seeds."""
    if len(part.seeds) < 2:
        return ["One seed: no verdict."]
    return said(rows, "rf_darts_chain", (part.arms[0], "random_chain"), part.seeds)


def said(rows: list[dict[str, object]], found: str, others: tuple[str, ...], seeds: tuple[int, ...]) -> list[str]:
    """A sentence for each other arm: the paired difference of test accuracies with its interval, or how many seeds have run."""
    text = []
    for other in others:
        gap = stats.difference(by_seed(rows, found, "test", seeds), by_seed(rows, other, "test", seeds))
        if gap is None or gap.interval is None or gap.n < len(seeds):
            text.append(f"{found} against {other}: {gap.n if gap else 0} of {len(seeds)} seeds have ended.")
            continue
        low, high = gap.interval
        says = "the search wins" if low > 0 else f"take {other}" if high < 0 else "not told apart"
        text.append(f"{found} less {other}, {gap.n} seeds: {gap.mean:+.2f} points [{low:+.2f}, {high:+.2f}]: {says}.")
    return text


if __name__ == "__main__":
    main()
