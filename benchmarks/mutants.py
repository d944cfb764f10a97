"""Breaks the methods one constant or rule at a time and tells which breaks no test notices: `make mutants [METHODS="gdas drnas"]`.

Mutants of a method's file: every number in its functions, classes and published rows is doubled (0 becomes 1, a switch is turned), every
comparison turned round, every + and - exchanged; and the rules listed by hand in tests/mutants/rules.toml, which also says which tests
answer for a file. Each mutant is one fork of this process that runs those tests in a copy of the repository, and stops at the first
failure. What was tried is kept in build/mutants/, so that a stopped run goes on where it was, and a changed file is tried anew.

A survivor needs a written reason in tests/mutants/survivors.toml. The exit code is 1 where one has none, or more than 3 % survive.
"""

from __future__ import annotations

import argparse
import ast
import atexit
import compileall
import copy
import gc
import hashlib
import json
import os
import py_compile
import shutil
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "build" / "mutants"
TREE = KEPT / "tree"
METHODS = Path("src/oche/methods")
RULES = ROOT / "tests" / "mutants" / "rules.toml"
REASONS = ROOT / "tests" / "mutants" / "survivors.toml"
LARGEST = 0.03
"""Share of mutants that may survive."""

OURS = {"SMOKE", "QUICK"}
"""Rows of our own choice, of which nothing is published."""

PUBLISHED = "tests/methods/test_published.py"
"""The tests of budgets, which alone answer for a constant in a row."""

SLOW_PLUGINS = ("cacheprovider", "xdist", "unraisableexception", "threadexception")
"""Of pytest, left out of the forks: two thirds of a fork's time were their collections of garbage."""

OTHERS = "was_published or has_a_source or in_the_table"
"""Tests of published.toml that concern one method each: of those only the method's own are run."""

SIGN = {ast.Add: "-", ast.Sub: "+"}
TURNED = {
    ast.Lt: ">=", ast.LtE: ">", ast.Gt: "<=", ast.GtE: "<", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A change of one file: `text` is the file after it, `line` and `change` say what it is; `row` is true for a constant of a budget."""

    method: str
    line: str
    change: str
    text: str
    row: bool = False

    @property
    def key(self) -> str:
        """Changes with the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


# ------------------------------------------------------------------ what is broken


def mutants(method: str, source: str, rules: Sequence[dict[str, str]]) -> Iterator[Mutant]:
    """All of a method's file, the rules by hand first."""
    for rule in rules:
        if source.count(rule["from"]) != 1:
            raise SystemExit(
                f"{RULES}: {method}: {rule['from']!r} stands {source.count(rule['from'])} times in its file."
            )
        line = next(row for row in source.split("\n") if rule["from"].split("\n")[0] in row)
        yield Mutant(method, line.strip(), f"{rule['from']} -> {rule['to']}", source.replace(rule["from"], rule["to"]))
    seen = set[str]()
    for node, fresh, row in changed(ast.parse(source)):
        mutant = _replaced(method, source, node, fresh, row)
        if mutant.key not in seen and mutant.text != source:
            seen.add(mutant.key)
            yield mutant


def changed(tree: ast.Module) -> Iterator[tuple[ast.expr, str, bool]]:
    """(expression, what stands in its place, is it a budget's) of every automatic mutant, in the order of the file."""
    for statement in tree.body:
        targets = [t.id for t in getattr(statement, "targets", []) if isinstance(t, ast.Name)]
        if not isinstance(statement, ast.Import | ast.ImportFrom) and not OURS & set(targets):
            row = "Budget(" in ast.unparse(statement) or any(t.startswith("_") for t in targets)
            yield from ((node, fresh, row) for node, fresh in _within(statement))


def _within(node: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """Not in annotations, in what an error says, nor in the `strict` of a zip, which guards what cannot happen."""
    if isinstance(node, ast.Raise | ast.JoinedStr) or (isinstance(node, ast.keyword) and node.arg == "strict"):
        return
    if isinstance(node, ast.Constant) and (fresh := _constant(node.value)) is not None:
        yield node, fresh
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        turned = f"{ast.unparse(node.left)} {TURNED[type(node.ops[0])]} {ast.unparse(node.comparators[0])}"
        yield node, f"({turned})"
    if isinstance(node, ast.BinOp) and type(node.op) in SIGN:
        yield node, f"({ast.unparse(node.left)} {SIGN[type(node.op)]} {ast.unparse(node.right)})"
    axis = (
        isinstance(node, ast.UnaryOp) and ast.unparse(node) == "-1"
    )  # the last of two: 1 says the same, 2 is tried below
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not) and not axis:
        yield node, f"({ast.unparse(node.operand)})"
    for name, child in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for part in child if isinstance(child, list) else [child]:
            if isinstance(part, ast.AST):
                yield from _within(part)


def _constant(value: object) -> str | None:
    """What a literal becomes."""
    if isinstance(value, bool):
        return str(not value)
    if isinstance(value, int | float):
        return repr(2 * value) if value else repr(type(value)(1))
    return None


def _replaced(method: str, source: str, node: ast.expr, fresh: str, row: bool) -> Mutant:
    lines = source.encode().split(b"\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    begin, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
    whole = source.encode()
    old = " ".join(whole[begin:end].decode().split())
    text = (whole[:begin] + fresh.encode() + whole[end:]).decode()
    return Mutant(method, lines[node.lineno - 1].decode().strip(), f"{old} -> {fresh}", text, row)


# ------------------------------------------------------------------ whether a test notices


def prepare() -> None:
    """A copy of what the tests need, compiled."""
    for folder in ("src", "tests", "docs", "benchmarks"):
        shutil.rmtree(TREE / folder, ignore_errors=True)
        shutil.copytree(ROOT / folder, TREE / folder, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for file in ("pyproject.toml", "CHANGELOG.md", "README.md"):
        shutil.copy(ROOT / file, TREE / file)
    compileall.compile_dir(TREE / "src", quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)


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
    assert "oche.methods" not in sys.modules


def passes(method: str, text: str, tests: Sequence[str], seconds: float) -> bool:
    """True if the tests pass with this text in the place of the method's file; a fork that takes too long has not passed."""
    target = TREE / METHODS / f"{method}.py"
    before = target.read_text(encoding="utf-8")
    for compiled in (target.parent / "__pycache__").glob(f"{target.stem}.*.pyc"):
        compiled.unlink()
    target.write_text(text, encoding="utf-8")
    try:
        return _forked([*tests, "-k", f"{method} or not ({OTHERS})"], seconds) == 0
    finally:
        target.write_text(before, encoding="utf-8")


def _forked(tests: Sequence[str], seconds: float) -> int:
    child = os.fork()
    if child == 0:
        _run(tests)
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return -9


def _run(tests: Sequence[str]) -> None:
    """In the fork: the tests, whose words go to build/mutants/last.txt. Does not return."""
    code = 3
    try:
        import pytest

        silent = os.open(KEPT / "last.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        os.chdir(TREE)
        sys.dont_write_bytecode = True
        without = [word for plugin in SLOW_PLUGINS for word in ("-p", f"no:{plugin}")]
        code = int(pytest.main(["-x", "-q", "-m", "not slow", "--assert=plain", *without, *tests]))
    finally:
        os._exit(code)


# ------------------------------------------------------------------ all of them


def run(method: str, table: dict[str, object], budget: float) -> list[tuple[Mutant, bool]] | None:
    """(mutant, survived) of each mutant of a method; None where the time is over before the last. Raises SystemExit if it fails whole."""
    source = (ROOT / METHODS / f"{method}.py").read_text(encoding="utf-8")
    tests = [str(test) for test in copy.copy(table["tests"])]  # type: ignore[call-overload]
    stamp = hashlib.sha256(source.encode())
    for test in sorted({test.split("::")[0] for test in tests if test.startswith("tests/")}):
        stamp.update((ROOT / test).read_bytes())
    kept = KEPT / f"{method}.jsonl"
    known = {}
    if kept.exists():
        rows = [json.loads(row) for row in kept.read_text(encoding="utf-8").splitlines()]
        known = {row["key"]: row["survived"] for row in rows if row["stamp"] == stamp.hexdigest()}
    started = time.monotonic()
    everything = list(mutants(method, source, table.get("rules", [])))  # type: ignore[arg-type]
    left = [mutant for mutant in everything if mutant.key not in known]
    if left:
        if not passes(method, source, tests, 600):
            raise SystemExit(f"{method}: its tests fail, or take over ten minutes, before anything is broken.")
        whole = time.monotonic() - started
    for number, mutant in enumerate(left):
        if time.monotonic() - started > budget:
            print(f"{method}: {len(left) - number} of {len(everything)} mutants are left for another run.", flush=True)
            return None
        own = [test for test in tests if (test == PUBLISHED) or not mutant.row]
        survived = passes(method, mutant.text, own, 10 + 3 * whole)
        known[mutant.key] = survived
        row = {"stamp": stamp.hexdigest(), "key": mutant.key, "survived": survived}
        with kept.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
        if survived:
            print(f"{method}: survives: {mutant.change}   in: {mutant.line}", flush=True)
    return [(mutant, known[mutant.key]) for mutant in everything]


def reason(mutant: Mutant, reasons: Sequence[dict[str, str]]) -> str | None:
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
    asked = parser.parse_args()
    rules = tomllib.loads(RULES.read_text(encoding="utf-8"))
    reasons = tomllib.loads(REASONS.read_text(encoding="utf-8"))["survivor"]
    KEPT.mkdir(parents=True, exist_ok=True)
    prepare()
    preload()
    atexit.register(gc.unfreeze)  # else the compiler's library reports what it leaks
    ends = time.monotonic() + 60 * asked.minutes
    counts, unexplained, whole = Counter[str](), 0, True
    print("| method | mutants | survive | without a reason |\n|---|---|---|---|")
    for method in asked.methods or rules:
        found = run(method, rules[method], ends - time.monotonic())
        if found is None:
            whole = False
            break
        lost = [mutant for mutant, survived in found if survived]
        bare = [mutant for mutant in lost if reason(mutant, reasons) is None]
        counts.update(mutants=len(found), survivors=len(lost))
        unexplained += len(bare)
        print(f"| {method} | {len(found)} | {len(lost)} | {len(bare)} |", flush=True)
        for mutant in bare:
            print(f"    no reason: {mutant.change}   in: {mutant.line}")
    share = counts["survivors"] / max(counts["mutants"], 1)
    print(
        f"\n{counts['mutants']} mutants, {counts['survivors']} survive ({share:.1%}), {unexplained} of them without a reason."
    )
    return int(not whole or unexplained > 0 or share > LARGEST)


if __name__ == "__main__":
    sys.exit(main())
