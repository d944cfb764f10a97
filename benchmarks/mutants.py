"""Breaks the methods one constant or rule at a time and tells which breaks no test notices: `make mutants [METHODS="gdas drnas"]`.

Mutants of a method's file (`mutations.py`): every number in its functions, classes and published rows is doubled (0 becomes 1, a switch is
turned), every comparison turned round, every + and - exchanged; and the rules listed by hand in tests/mutants/rules.toml, which also says
which tests answer for a file. Each mutant is one fork that runs, in a copy of the repository, those of the tests that reach its lines, and
stops at the first failure (`mutant_tests.py`). What was tried is kept in build/mutants/, so that a stopped run goes on where it was, and a
changed file is tried anew.

A survivor needs a written reason in tests/mutants/survivors.toml. The exit code is 1 where one has none, or more than 3 % survive.
`--page FILE` writes it as a page; what was not tried this time stands there as it did, and the page says which files have changed since.
"""

from __future__ import annotations

import argparse
import atexit
import compileall
import gc
import hashlib
import json
import os
import py_compile
import random
import re
import shutil
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mutant_tests import KILLED, SURVIVED, TIMEOUT, UNSURE, WORDS, Found, Server, forked
from mutations import Mutant, bare, mutants

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "build" / "mutants"
TREE = KEPT / f"tree-{os.getpid()}"
METHODS = Path("src/oche/methods")
RULES = ROOT / "tests" / "mutants" / "rules.toml"
REASONS = ROOT / "tests" / "mutants" / "survivors.toml"
LARGEST = 0.03
"""Share of mutants that may survive."""


@dataclass(frozen=True)
class Tried:
    """(mutant, survived) of those that were tried, of so many that a file has."""

    rows: list[tuple[Mutant, bool]]
    of: int


Row = dict[str, object]
Reasons = Sequence[dict[str, str]]


def prepare() -> None:
    """A copy of what the tests need, compiled; it goes when this process does."""
    KEPT.mkdir(parents=True, exist_ok=True)
    for folder in ("src", "tests", "docs", "benchmarks"):
        shutil.copytree(ROOT / folder, TREE / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "CHANGELOG.md", "README.md"):
        shutil.copy(ROOT / file, TREE / file)
    compileall.compile_dir(TREE / "src", quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    atexit.register(shutil.rmtree, TREE, ignore_errors=True)


def preload() -> None:
    """Imports what takes long and does not change, so that a fork need not: of oche what knows no method."""
    sys.path[:0] = [str(TREE / "src"), str(TREE / "tests")]
    os.environ.setdefault("TRITON_INTERPRET", "1")
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # both as tests/conftest.py has them
    import hypothesis.extra  # noqa: F401
    import pytest_timeout  # noqa: F401
    import torch

    import oche.search.stages
    import oche.watch.probes  # noqa: F401

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # else the compiler's library reports what it leaks
    assert "oche.methods" not in sys.modules


def in_pytest(tests: Sequence[str], *plugins: object) -> int:
    """In a fork: pytest in the copied tree, whose words go to build/mutants/last.txt."""
    import pytest

    silent = os.open(KEPT / "last.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    os.chdir(TREE)
    sys.dont_write_bytecode = True
    return int(pytest.main([*WORDS, *tests], plugins=list(plugins)))


def passes_from_the_start(mutant: Mutant, tests: Sequence[str], seconds: float) -> bool:
    """True if the tests pass with the mutant in the place of the method's file."""
    target = TREE / METHODS / f"{mutant.method}.py"
    before = target.read_text(encoding="utf-8")
    for compiled in (target.parent / "__pycache__").glob(f"{target.stem}.*.pyc"):
        compiled.unlink()
    target.write_text(mutant.text, encoding="utf-8")
    try:
        return forked(lambda: in_pytest(tests), seconds) == 0
    finally:
        target.write_text(before, encoding="utf-8")


def run(method: str, table: Mapping[str, object], ends: float, sure: bool, grown: bool, most: int) -> Tried | None:
    """What became of a method's mutants; None where the time is over before the last. Raises SystemExit if it fails whole.

    Unless `sure`, a mutant counts as a survivor where only a trial from the start would tell. If `grown`, one that an earlier state of the
    tests killed counts as killed. Of the mutants that are left to try, `most` are drawn at most, with the file's name as the seed.
    """
    source = (TREE / METHODS / f"{method}.py").read_text(encoding="utf-8")
    tests: list[str] = table["tests"]  # type: ignore[assignment]
    stamp = state(TREE, method, tests)
    kept = KEPT / f"{method}.jsonl"
    everything = list(mutants(method, source, table.get("rules", [])))  # type: ignore[arg-type]

    def known() -> dict[str, Row]:
        rows = map(json.loads, kept.read_text(encoding="utf-8").splitlines() if kept.exists() else [])
        return {r["key"]: r for r in rows if r["stamp"] == stamp or (grown and r["outcome"] in (KILLED, TIMEOUT))}

    def keep(mutant: Mutant, outcome: str, found: Found) -> None:
        row = {"stamp": stamp, "key": mutant.key, "outcome": outcome, "seconds": round(found.seconds, 2)}
        with kept.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row | {"tests": found.tests if outcome == UNSURE else []}) + "\n")

    of = len(everything)
    left = [mutant for mutant in everything if mutant.key not in known()]
    if len(left) > most:
        drawn = set(random.Random(method).sample(range(len(left)), most))
        gone = {mutant.key for n, mutant in enumerate(left) if n not in drawn}
        everything, left = ([m for m in some if m.key not in gone] for some in (everything, left))
    if left and time.monotonic() < ends:
        file = TREE / METHODS / f"{method}.py"
        server = Server(method, file, KEPT, left, ends, lambda found: keep(left[found.number], found.outcome, found))
        if forked(lambda: in_pytest(tests, server), 6 * 3600):
            raise SystemExit(f"{method}: {(KEPT / 'last.txt').read_text(encoding='utf-8')[-3000:]}")
    rows = known()
    for mutant in everything if sure else ():
        row = rows.get(mutant.key, {})
        if row.get("outcome") == UNSURE and time.monotonic() < ends:
            began, own = time.monotonic(), row["tests"]
            assert isinstance(own, list)
            survived = passes_from_the_start(mutant, own, 300) if own else True
            keep(mutant, SURVIVED if survived else KILLED, Found(0, "", own, time.monotonic() - began))
    rows = known()
    undone = sum(mutant.key not in rows or (sure and rows[mutant.key]["outcome"] == UNSURE) for mutant in everything)
    if undone or not everything:
        print(f"{method}: {undone} of {len(everything)} mutants are left for another run.", flush=True)
        return None
    return Tried([(mutant, rows[mutant.key]["outcome"] in (SURVIVED, UNSURE)) for mutant in everything], of)


def state(tree: Path, method: str, tests: Sequence[str]) -> str:
    """Changes with the code of a method's file, docstrings left out, and with the files of its tests."""
    stamp = hashlib.sha256(bare((tree / METHODS / f"{method}.py").read_text(encoding="utf-8")).encode())
    for test in sorted({test.split("::")[0] for test in tests}):
        stamp.update((tree / test).read_bytes())
    return stamp.hexdigest()[:8]


def reason(mutant: Mutant, reasons: Reasons) -> str | None:
    """The written reason of a survivor, by method, line and change; a row without a change answers for its whole line."""
    for row in reasons:
        if (
            row["method"] == mutant.method
            and row["line"] in mutant.line
            and row.get("change", mutant.change) == mutant.change
        ):
            return row["reason"]
    return None


def main() -> int:
    """Prints a table of methods with the number of mutants, survivors and unexplained survivors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", help="files in src/oche/methods, without .py; all by default")
    parser.add_argument("--minutes", type=float, default=90.0, help="how long at most; the next run goes on")
    parser.add_argument(
        "--rough", action="store_true", help="try no survivor again from the start: quicker, some too many"
    )
    parser.add_argument(
        "--grown", action="store_true", help="tests were only added since the last run: try its survivors alone"
    )
    several = "draw so many at most of a file's mutants that are left to try; 0 shows what was tried"
    parser.add_argument("--sample", type=int, default=sys.maxsize, help=several)
    parser.add_argument("--page", type=Path, help="where to write the whole as a page")
    asked = parser.parse_args()
    rules = tomllib.loads(RULES.read_text(encoding="utf-8"))
    reasons = tomllib.loads(REASONS.read_text(encoding="utf-8"))["survivor"]
    prepare()
    preload()
    ends = time.monotonic() + 60 * asked.minutes
    results, whole = dict[str, Tried](), True
    print("| method | mutants | survive | without a reason |\n|---|---|---|---|")
    for method in asked.methods or rules:
        found = run(method, rules[method], ends, not asked.rough, asked.grown, asked.sample)
        if found is None:
            whole = False
            continue
        results[method] = found
        lost = [mutant for mutant, survived in found.rows if survived]
        unexplained = [mutant for mutant in lost if reason(mutant, reasons) is None]
        print(f"| {method} | {len(found.rows)} | {len(lost)} | {len(unexplained)} |", flush=True)
        for mutant in unexplained:
            print(f"    no reason: {mutant.change}   in {mutant.first}: {mutant.line}", flush=True)
    lost = [mutant for found in results.values() for mutant, survived in found.rows if survived]
    tried = sum(len(found.rows) for found in results.values())
    without = sum(reason(mutant, reasons) is None for mutant in lost)
    share = len(lost) / max(tried, 1)
    print(f"\n{tried} mutants, {len(lost)} survive ({share:.1%}), {without} of them without a reason.")
    if asked.page:
        states = {method: state(TREE, method, table["tests"]) for method, table in rules.items()}
        before = earlier(asked.page.read_text(encoding="utf-8")) if asked.page.exists() else {}
        shown = before | {method: shown_as(found, reasons, states[method]) for method, found in results.items()}
        asked.page.write_text(page({m: shown[m] for m in rules if m in shown}, states), encoding="utf-8")
    return int(not whole or without > 0 or share > LARGEST)


# ------------------------------------------------------------------ the page


@dataclass(frozen=True)
class Shown:
    """A file's row of the page: of how many mutants so many were tried and survive, in what state of it, and the survivors' rows."""

    tried: int
    of: int
    survive: int
    state: str
    survivors: tuple[str, ...] = ()


def shown_as(found: Tried, reasons: Reasons, state: str) -> Shown:
    """What was tried now."""
    lost = [mutant for mutant, survived in found.rows if survived]
    survivors = []
    for mutant in lost:
        cells = [f"`{mutant.line}`", f"`{mutant.change}`", reason(mutant, reasons) or "none is known"]
        survivors.append("| " + " | ".join([mutant.method, *(cell.replace("|", "\\|") for cell in cells)]) + " |")
    return Shown(len(found.rows), found.of, len(lost), state, tuple(survivors))


def earlier(page: str) -> dict[str, Shown]:
    """File -> its row on a page that is there."""
    found = {}
    above, _, below = page.partition("## Survivors")
    for name, tried, of, survive, state in re.findall(
        r"^\| (\w+) \| (\d+)(?: of (\d+))? \| \d+ \| (\d+) \|(?: (\w*) \|)?$", above, re.MULTILINE
    ):
        rows = tuple(line for line in below.splitlines() if line.startswith(f"| {name} |"))
        found[name] = Shown(int(tried), int(of or tried), int(survive), state, rows)
    return found


def page(shown: Mapping[str, Shown], states: Mapping[str, str]) -> str:
    """A table of files and all survivors with their reasons; `states` are those of today."""
    tried, of, lost = (sum(row) for row in zip(*((r.tried, r.of, r.survive) for r in shown.values()), strict=True))
    drawn = (
        f" Where the table has two numbers, the rest awaits a trial (drawn files, or survivors of earlier tests): {of - tried} mutants."
        if of > tried
        else ""
    )
    text = [
        "# Which breaks of a method no test notices",
        "",
        "Written by `make mutants PAGE=docs/results/mutants.md`. Every number in a method's file was doubled, every comparison turned",
        "round, every + and - exchanged, and rules were broken by hand (tests/mutants/rules.toml), one at a time; a mutant is killed",
        f"if one of the method's tests fails. Of {tried} mutants {tried - lost} were killed, {lost} survive "
        f"({lost / tried:.1%}). A mutant that an earlier, smaller set of the tests killed was not tried again (`--grown`).{drawn}",
        "A state is that of a file's code and of its tests when its mutants were tried.",
        "",
        "| file | tried | killed | survive | state |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, row in shown.items():
        count = f"{row.tried}" if row.tried == row.of else f"{row.tried} of {row.of}"
        text.append(f"| {name} | {count} | {row.tried - row.survive} | {row.survive} | {row.state} |")
    if changed := [name for name, state in states.items() if name in shown and shown[name].state != state]:
        text += ["", f"The code or its tests have changed since, or their state was not noted: {', '.join(changed)}."]
    if missing := [name for name in states if name not in shown]:
        text += ["", f"Not tried to the end: {', '.join(missing)}."]
    text += ["", "## Survivors", "", "| file | line | change | why no test need notice |", "| --- | --- | --- | --- |"]
    text += [line for row in shown.values() for line in row.survivors]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    sys.exit(main())
