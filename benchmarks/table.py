"""`make bench`: measures every row of docs/results/performance.md that the log does not hold yet, then renders the page.

    python benchmarks/table.py                      # all rows, the goals first: 65 to 75 minutes on two quiet cores; OCHE_DATA for one
    python benchmarks/table.py --only scaling       # rows whose name begins with it
    python benchmarks/table.py --list

A row is a command; its answer goes to docs/results/performance.jsonl as soon as it is there, with the machine and the commit that last
touched src/ or benchmarks/. Rows that the log has of this machine, commit and command are skipped, so an interrupted run carries on;
with uncommitted changes in either folder nothing is skipped. A row that fails, or takes over half an hour, is told and does not
stop the others; an interrupted run renders what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import render
from supernet import machine

HERE = Path(__file__).parent
LOG = HERE.parent / "docs" / "results" / "performance.jsonl"
FEW = ("--repeats", "2", "--iterations", "2")
ONE = ("--repeats", "2", "--iterations", "1")
ONCE = ("--repeats", "1", "--iterations", "1")
SMALL = ("--batch", "8", "--set", "cells=4", "--repeats", "1", "--iterations", "2")
PLAIN = ("--against", "reference-channels-last")
CHANNELS_LAST = ("--tier", "portable", "--against", "reference-channels-last")
COMPILED = ("--tier", "portable", "--compile", "--against", "eager")
LARGE = (
    *("--channels", "36", "--cells", "20", "--batch", "32", "--repeats", "3", "--threads", "1"),
    *("--forms", "NCHW", "channels_last", "kernels"),
)
LONGEST = 1800
NHWC = ("--against", "reference-nhwc")


ALONE = ("start.py", "fewer_steps.py")
"""Scripts that take no number of threads."""


@dataclass(frozen=True)
class Row:
    """A row's name, `part/what`, and the command behind it: a script of this folder and its arguments, --json left out."""

    name: str
    script: str
    arguments: tuple[str, ...] = ()

    def of(self, threads: int) -> list[str]:
        """The command with its number of threads, where the row does not settle that itself."""
        given = () if "--threads" in self.arguments or self.script in ALONE else ("--threads", str(threads))
        return [self.script, *self.arguments, *given]


def _supernet(name: str, *arguments: str) -> Row:
    return Row(name, "supernet.py", arguments)


def _scaling(what: str, *choices: tuple[str, tuple[str, ...]]) -> list[Row]:
    return [_supernet(f"scaling/{what}={value}", *SMALL, *arguments) for value, arguments in choices]


OPS = ("skip_connect", "sep_conv_3x3", "max_pool_3x3", "dil_conv_3x3", "sep_conv_5x5", "dil_conv_5x5", "avg_pool_3x3")


def _ops(count: int) -> tuple[str, ...]:
    """The settings of a DARTS space with that many candidates an edge."""
    chosen = json.dumps([["none", *OPS[: count - 1]]])
    return ("--set", f"normal={chosen}", "--set", f"reduce={chosen}")


ROWS: list[Row] = [
    _supernet("goal/darts", "--batch", "64", *FEW),
    _supernet("goal/exact", "--order", "exact", "--batch", "16", *FEW),
    _supernet("goal/finite", "--order", "finite", "--batch", "16", *FEW),
    _supernet("goal/pcdarts", "--method", "pcdarts", "--batch", "64", *FEW),
    _supernet("goal/nb201", "--space", "nb201", "--batch", "64", *FEW),
    _supernet("goal/rf", "--method", "rf_darts", "--against", "all-weights", "--batch", "64", *FEW),
    _supernet("also/darts-nhwc", "--batch", "64", *NHWC, *FEW),
    _supernet("also/pcdarts-nhwc", "--method", "pcdarts", "--batch", "64", *NHWC, *FEW),
    _supernet("also/nb201-nhwc", "--space", "nb201", "--batch", "64", *NHWC, *FEW),
    _supernet("also/exact-nhwc", "--order", "exact", "--batch", "16", *NHWC, *ONCE),
    Row("goal/busy", "busy.py"),
    Row("goal/train36", "retrain.py", LARGE),
    Row("goal/ninety", "ninety.py"),
    Row("goal/search", "fewer_steps.py"),
    Row("goal/augment", "augment.py"),
    Row("also/augment-one-thread", "augment.py", ("--threads", "1")),
    Row("goal/start", "start.py"),
    _supernet("also/darts-portable", "--batch", "16", *CHANNELS_LAST, *FEW),
    _supernet("also/nb201-portable", "--space", "nb201", "--batch", "64", *CHANNELS_LAST, *FEW),
    _supernet("also/pcdarts-portable", "--method", "pcdarts", "--batch", "16", *CHANNELS_LAST, *ONCE),
    _supernet("also/darts-channels-last", "--batch", "16", "--against", "reference-channels-last", *FEW),
    _supernet(
        "also/nb201-channels-last", "--space", "nb201", "--batch", "64", "--against", "reference-channels-last", *ONCE
    ),
    _supernet("also/nb201-bf16", "--space", "nb201", "--batch", "64", "--precision", "bf16", *ONCE),
    _supernet("also/darts-bf16", "--batch", "16", "--precision", "bf16", *ONCE),
    Row("also/retrain", "retrain.py", ("--repeats", "3")),
    Row("also/epoch", "epoch.py", ("--repeats", "3", "--threads", "1")),
    _supernet("scaling/batch=8", *SMALL),
    *_scaling("batch", *[(b, ("--batch", b)) for b in ("2", "32")]),
    *_scaling("size", *[(s, ("--size", s)) for s in ("16", "48")]),
    *_scaling("channels", *[(c, ("--set", f"channels={c}")) for c in ("8", "32")]),
    *_scaling("cells", *[(c, ("--set", f"cells={c}")) for c in ("3", "8")]),
    *_scaling("edges", *[(e, ("--set", f"nodes={n}")) for e, n in (("5", "2"), ("9", "3"))]),
    *_scaling("ops", *[(str(n), _ops(n)) for n in (3, 5)]),
    *_scaling("threads", ("1", ("--threads", "1"))),
    _supernet("also/darts-b16", "--batch", "16", *FEW),
    _supernet("also/darts-recompute", "--batch", "16", "--recompute", "--against", "kept", *ONCE),
    _supernet(
        "also/portable-recompute", "--batch", "16", "--tier", "portable", "--recompute", "--against", "kept", *ONCE
    ),
    _supernet("also/nb201-compile", "--space", "nb201", "--batch", "64", *COMPILED, *ONE),
    *[_supernet(f"also/{s}", "--space", s, "--batch", "8", *PLAIN, *ONCE) for s in ("s1", "s2", "s3", "s4")],
]
"""By value: what has a goal, what each tier gains, how it grows, the rest."""


def commit() -> str:
    """The commit that last touched what is measured, with a mark where files have changed since; "" outside a repository."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(HERE.parent), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    measured = ("--", "src", "benchmarks")
    return git("log", "-1", "--format=%h", *measured) + ("+changes" if git("status", "--porcelain", *measured) else "")


def records(log: Path) -> list[dict[str, object]]:
    """The log's lines; one cut off by a crash is left out."""
    found = []
    for line in log.read_text().splitlines() if log.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "row" in record:
            found.append(record)
    return found


def measured(row: Row, threads: int, log: Path) -> str:
    """Runs a row and logs its answer; what there is to say about it."""
    command = row.of(threads)
    key = {"row": row.name, "command": command, "machine": machine(), "commit": commit()}
    if "+changes" not in key["commit"] and any(all(r[k] == v for k, v in key.items()) for r in records(log)):
        return "already measured"
    started = time.perf_counter()
    full = [sys.executable, str(HERE / command[0]), *command[1:], "--json"]
    try:
        done = subprocess.run(full, capture_output=True, text=True, check=False, cwd=HERE.parent, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return f"FAILED: not done after {LONGEST} s"
    if done.returncode:
        return f"FAILED: {(done.stderr.strip().splitlines() or ['no word'])[-1]}"
    answer = json.loads(done.stdout.splitlines()[-1])
    log.parent.mkdir(parents=True, exist_ok=True)
    cut = log.exists() and not log.read_text().endswith("\n") and log.stat().st_size > 0
    with log.open("a") as file:
        file.write("\n" * cut + json.dumps({**key, "when": time.strftime("%Y-%m-%d"), "result": answer}) + "\n")
    ratio = f"ratio {answer['ratio']:.2f}, " if "ratio" in answer else ""
    return f"{ratio}{time.perf_counter() - started:.0f} s"


def main() -> None:
    """Measures what is missing, then renders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="NAME", help="rows whose name begins with NAME")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--log", type=Path, default=LOG)
    parser.add_argument("--list", action="store_true", help="say the rows and stop")
    a = parser.parse_args()
    rows = [row for row in ROWS if row.name.startswith(a.only)]
    if a.list:
        for row in rows:
            print(f"{row.name:28s} {' '.join(row.of(a.threads))}")
        sys.exit(0 if rows else 1)
    failed, began = 0, time.perf_counter()
    try:
        for row in rows:
            said = measured(row, a.threads, a.log)
            failed += said.startswith("FAILED")
            print(f"{row.name:28s} {said}, {(time.perf_counter() - began) / 60:.1f} min in all", flush=True)
    except KeyboardInterrupt:
        print("interrupted: the page is of what is there")
    print(render.render(a.log, a.log.parent))
    sys.exit(1 if failed or not rows else 0)


if __name__ == "__main__":
    main()
