"""Times a search iteration on a quiet machine and on one that does something else on one of its cores.

    python benchmarks/busy.py                          # NAS-Bench-201, batch 64: about four minutes on two quiet cores
    python benchmarks/busy.py --space darts --batch 16
    python benchmarks/busy.py --spin 0 1000 10000 100000 --repeats 3

The other work is a process that counts without end, pinned to one core. The iteration is that of `supernet.py`, in fresh processes, in
turn: each side quiet, then busy, `--repeats` times. Sides:

    python        threads wait as PyTorch lets them by default: what `import oche` in your own program gives
    oche          threads wait as the `oche` command has them (`oche.cli.waiting`)
    N             threads look N times before they sleep (`--spin N`)

`goal` is a side's busy time over the quiet time of `python`, as the first column of the goals counts it. The row cannot be judged where
something else runs: `load` is what the machine did in the minute before, other processes' included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from supernet import Work, apart

from oche.cli.waiting import BRIEF

LOAD = """
import os, sys
core, parent = map(int, sys.argv[1:])
os.sched_setaffinity(0, {core})
while os.getppid() == parent:  # ends with the benchmark, however that ends
    for _ in range(10**6):
        pass
"""


@contextmanager
def loaded(core: int) -> Iterator[None]:
    """A process that counts on a core while inside."""
    child = subprocess.Popen([sys.executable, "-c", LOAD, str(core), str(os.getpid())])
    try:
        yield
    finally:
        child.kill()
        child.wait()


@contextmanager
def waiting(side: str) -> Iterator[None]:
    """The environment of a side while inside."""
    given = {"python": {}, "oche": dict(BRIEF)}.get(side, {"GOMP_SPINCOUNT": side})
    before = {name: os.environ.pop(name, None) for name in (*BRIEF, "OMP_WAIT_POLICY")}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def measured(work: Work, sides: list[str], repeats: int, core: int) -> dict[str, dict[str, float]]:
    """Seconds of an iteration by side, quiet and busy: medians over all processes, and their extremes."""
    seconds: dict[tuple[str, str], list[float]] = {(side, how): [] for side in sides for how in ("quiet", "busy")}
    for _ in range(repeats):
        for side in sides:
            with waiting(side):
                seconds[side, "quiet"] += apart("fast", work)["seconds"]
                with loaded(core):
                    seconds[side, "busy"] += apart("fast", work)["seconds"]
    told: dict[str, dict[str, float]] = {}
    for side in sides:
        quiet, busy = (statistics.median(seconds[side, how]) for how in ("quiet", "busy"))
        told[side] = {
            "quiet": quiet,
            "busy": busy,
            "slowdown": busy / quiet,
            "quiet_least": min(seconds[side, "quiet"]),
            "busy_least": min(seconds[side, "busy"]),
            "busy_most": max(seconds[side, "busy"]),
        }
    for of_side in told.values():
        of_side["goal"] = of_side["busy"] / told[sides[0]]["quiet"]
    return told


def main() -> None:
    """Prints a line per side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="nb201")
    parser.add_argument("--method", default="darts")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of the space")
    parser.add_argument(
        "--spin", nargs="*", default=[], metavar="N", help="further sides: looks before a thread sleeps"
    )
    parser.add_argument("--repeats", type=int, default=4, help="processes of each side, quiet and busy")
    parser.add_argument("--iterations", type=int, default=6, help="timed iterations per process")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    if not hasattr(os, "sched_getaffinity"):
        parser.error("the other work is pinned to a core, which this system does not offer")
    core, load = max(os.sched_getaffinity(0)), os.getloadavg()[0]
    work = Work(
        a.space, a.method, batch=a.batch, size=a.size, settings=tuple(a.set), threads=a.threads, iterations=a.iterations
    )
    told = measured(work, ["python", "oche", *a.spin], a.repeats, core)
    if a.json:
        print(json.dumps({"waiting": told, "load": load, **asdict(work)}))
        return
    print(f"{a.space}, batch {a.batch}, {a.threads} threads, load before: {load:.2f}")
    for side, found in told.items():
        print(
            f"{side:8s} quiet {found['quiet']:.3f} s (least {found['quiet_least']:.3f}), busy {found['busy']:.3f} s"
            f" ({found['busy_least']:.3f} to {found['busy_most']:.3f}): {found['slowdown']:.2f} times its own quiet time,"
            f" {found['goal']:.2f} times that of {next(iter(told))}"
        )


if __name__ == "__main__":
    main()
