"""Kills runs of each kind over and over, fills their disk, forbids them to write; each must end as an unbroken run, bit for bit.

    python tests/chaos/harness.py --kills 200 --disks 30 --out runs/chaos

A seed decides what happens when. Each fault becomes a line of `faults.jsonl` in the folder `--out` once the run that it hit has been
carried on to its end and compared. Started again, the harness goes on behind the last line. It exits with 1 where an end differed.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import torch

from chaos.cases import Case, cases
from chaos.disks import Disk, struck
from chaos.dying import attempt, die_at, die_while_compiling

MOST = 6
"""Faults that hit one run before it is carried on to its end."""

AT_IMPORT = """
import itertools, os, signal, sys
calls, last = itertools.count(1), int(sys.argv.pop(1))
def hook(event, arguments):
    if event == "import" and next(calls) == last:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
from oche.cli.main import main
main()
"""

Fault = dict[str, object]
"""A line of the log: the kind of run, its number, the fault, where it struck, and whether the end was equal."""


def killed(case: Case, folder: Path, site: str, n: int, rng: random.Random) -> bool:
    """Works in the folder until the n-th call of that kind kills it; True if it came to that."""
    if case.command:
        command = [sys.executable, "-c", AT_IMPORT, str(n), "search", "--resume", str(folder), "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode != 0
    compiling = partial(die_while_compiling, n, rng.choice((0.0, rng.uniform(0, 3))))
    arm = compiling if site == "compiler call" else partial(die_at, site, n)
    return attempt(partial(case.work, folder), arm) == signal.SIGKILL


def broken(case: Case, whole: Path, folder: Path, rng: random.Random, most: int) -> list[Fault]:
    """Makes a run, kills it up to `most` times, carries it on to its end and compares it with the whole one."""
    faults: list[Fault] = []
    shutil.rmtree(folder, ignore_errors=True)
    case.prepare(folder)
    outcome = "equal"
    try:
        for _ in range(rng.randint(1, most)):
            site, last = rng.choice(list(case.sites.items()))
            n, before = rng.randint(1, last), written(folder)
            if not killed(case, folder, site, n, rng):
                break
            faults.append({"fault": "kill", "at": site, "call": n, "files": before})
        assert attempt(partial(case.work, folder)) == 0
        case.equal(whole, folder)
    except AssertionError as error:
        outcome = f"different: {str(error)[:300]}"
        faults = faults or [{"fault": "kill", "at": "nowhere", "call": 0, "files": written(folder)}]
    return [{**fault, "end": outcome} for fault in faults]


def starved(case: Case, whole: Path, disk: Disk, rng: random.Random, fault: str) -> list[Fault]:
    """Makes a run on a small disk, fills the disk at a random moment or forbids writing, mends that, and carries on to the end."""
    folder = disk.path / "broken"
    shutil.rmtree(folder, ignore_errors=True)
    case.prepare(folder)
    site, last = rng.choice([(site, n) for site, n in case.sites.items() if not site.startswith("half")])
    line: Fault = {"fault": fault, "at": site, "call": rng.randint(1, last), "files": 0}
    outcome = "equal"
    try:
        said = struck(
            partial(case.work, folder),
            disk,
            fault,
            site,
            int(str(line["call"])),
            rng.choice((0, rng.randint(0, 1 << 15))),
        )
        if said is None:
            return []
        line["said"], line["files"] = said.replace(str(disk.path), "DISK"), written(folder)
        assert attempt(partial(case.work, folder)) == 0
        case.equal(whole, folder)
    except AssertionError as error:
        outcome = f"different: {str(error)[:300]}"
    return [{**line, "end": outcome}]


def written(folder: Path) -> int:
    """Files that are there."""
    return sum(path.is_file() for path in folder.rglob("*")) if folder.exists() else 0


# ---------------------------------------------------------------------- the whole


class Log:
    """`faults.jsonl`: what has been done, and what still is to do."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.faults = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def of(self, name: str, what: str) -> list[Fault]:
        """The faults of a kind of run so far: kills, or those of the disk."""
        return [f for f in self.faults if f["run"] == name and (f["fault"] == "kill") == (what == "kills")]

    def add(self, faults: list[Fault]) -> None:
        """Appends them."""
        self.faults += faults
        with self.path.open("a") as stream:
            stream.writelines(json.dumps(fault) + "\n" for fault in faults)


def campaign(out: Path, kills: int, disks: int, seed: int, only: str | None = None) -> list[Fault]:
    """Carries out what is missing of so many kills and faults of the disk; returns all faults."""
    out.mkdir(parents=True, exist_ok=True)
    log = Log(out / "faults.jsonl")
    with tempfile.TemporaryDirectory() as scratch:
        found = cases(Path(scratch))
        total = sum(case.share for case in found.values())
        for name, case in found.items():
            if only is None or name.startswith(only):
                whole = Path(scratch) / name.replace(" ", "_")
                case.prepare(whole)
                assert attempt(partial(case.work, whole)) == 0
                _kills(log, name, case, whole, -int(-kills * case.share // total), seed)
                if disks and case.on_disks:
                    _disks(
                        log,
                        name,
                        case,
                        whole,
                        Path(scratch),
                        -(-disks // sum(c.on_disks for c in found.values())),
                        seed,
                    )
    return log.faults


def _kills(log: Log, name: str, case: Case, whole: Path, kills: int, seed: int) -> None:
    number = 0
    while len(log.of(name, "kills")) < kills:
        if any(fault["number"] == number for fault in log.of(name, "kills")):
            number += 1
            continue
        most = min(MOST, kills - len(log.of(name, "kills")))
        faults = broken(case, whole, whole.with_name("broken"), random.Random(f"{seed} {name} {number}"), most)
        log.add([{"run": name, "number": number, **fault} for fault in faults])
        number += 1


def _disks(log: Log, name: str, case: Case, whole: Path, scratch: Path, faults: int, seed: int) -> None:
    number = 0
    with Disk.mounted(scratch / "disk") as disk:
        while len(log.of(name, "disks")) < faults:
            if any(fault["number"] == number for fault in log.of(name, "disks")):
                number += 1
                continue
            rng = random.Random(f"{seed} disk {name} {number}")
            found = starved(case, whole, disk, rng, "read-only" if number % 3 == 2 else "full disk")
            log.add([{"run": name, "number": number, **fault} for fault in found])
            number += 1


def table(faults: list[Fault]) -> str:
    """The faults by run and place, and how many ended as the unbroken run."""
    rows = Counter((str(f["run"]), str(f["fault"]), str(f["at"])) for f in faults)
    good = Counter((str(f["run"]), str(f["fault"]), str(f["at"])) for f in faults if f["end"] == "equal")
    lines = ["| run | fault | at | faults | ended equal |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(key)} | {count} | {good[key]} |" for key, count in sorted(rows.items())]
    return "\n".join([*lines, f"| all | | | {len(faults)} | {good.total()} |"])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="over all kinds of runs")
    parser.add_argument("--disks", type=int, default=30, help="full disks and read-only ones; needs the right to mount")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="kinds of runs that begin so")
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    disks = asked.disks
    if disks and not Disk.possible():
        sys.stdout.write("No file system can be mounted here: full disks are left out.\n")
        disks = 0
    faults = campaign(asked.out, asked.kills, disks, asked.seed, asked.only)
    sys.stdout.write(table(faults) + "\n")
    return int(any(fault["end"] != "equal" for fault in faults))


if __name__ == "__main__":
    sys.exit(main())
