"""Whether a test notices a mutant: one pytest, which collects a method's tests once and then forks for every mutant (`mutants.py`).

A first fork runs all tests and notes how long each takes and which lines of the method's file it runs. A mutant then meets only those
tests that run its lines, the quick ones first, up to the first failure. In its fork the functions and classes that are loaded get the
mutant's code and values (`graft`). That can miss a value that was made when the file was loaded: a mutant outside of functions that
survives is tried again from the start, with the file on disk changed (`mutants.py`).
"""

from __future__ import annotations

import ast
import dataclasses
import gc
import hashlib
import json
import math
import os
import resource
import sys
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mutations import Mutant, place

PUBLISHED = "test_published.py"
"""The tests of budgets, which alone answer for a constant in a row."""

OTHERS = ("was_published", "has_a_source", "in_the_table")
"""Tests of published.toml that concern one method each: of those only the method's own are run."""

SLOW_PLUGINS = ("cacheprovider", "xdist", "unraisableexception", "threadexception")
"""Of pytest, left out: two thirds of a fork's time were their collections of garbage."""

QUICK = 1.0
"""Seconds that a quick test takes at most."""

WORDS = ["-x", "-q", "-m", "not slow", "--assert=plain", *(w for p in SLOW_PLUGINS for w in ("-p", f"no:{p}"))]

KILLED, SURVIVED, UNSURE, TIMEOUT = "killed", "survived", "unsure", "timeout"


@dataclass(frozen=True)
class Found:
    """What became of a mutant, and the tests that it met."""

    number: int
    outcome: str
    tests: list[str]
    seconds: float


Run = tuple[float, dict[str, list[int]]]
"""A test's seconds, and the lines that it runs of each method's file."""

Runs = dict[str, tuple[float, set[int]]]
"""Test -> its seconds, and the lines that it runs of one file."""


@dataclass
class Server:
    """A pytest plugin that runs the collected tests on mutant after mutant, and calls `tell` with what it found."""

    method: str
    file: Path
    kept: Path
    mutants: Sequence[Mutant]
    ends: float
    tell: Callable[[Found], None]
    early: set[tuple[str, int]] = field(default_factory=set)
    """(file, line) of methods that ran while the tests were loaded."""

    def pytest_sessionstart(self) -> None:
        """Watches the loading."""
        sys.settrace(tracer(str(self.file.parent), self.early))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Instead of running the tests once."""
        sys.settrace(None)
        if session.testsfailed:
            raise SystemExit(f"{self.method}: its tests cannot be loaded.")
        items = [item for item in session.items if self.concerns(item.nodeid)]
        gc.collect()
        gc.freeze()
        runs = self.measured(session, items)
        items.sort(key=lambda item: runs[item.nodeid][0])
        tree = ast.parse(self.file.read_text(encoding="utf-8"))
        for number, mutant in enumerate(self.mutants):
            if time.monotonic() > self.ends:
                break
            found = place(tree, mutant)
            loading = bool(self.early & {(str(self.file), line) for line in found.lines})
            own = audience(items, runs, "module" if loading else found.kind, found.lines, mutant.row)
            began = time.monotonic()
            allowed = 10 + 3 * sum(runs[item.nodeid][0] for item in own)
            code = forked(lambda m=mutant, o=own: self.child(session, o, m), allowed) if own else 0  # type: ignore[misc]
            sure = found.kind == "body" and not loading
            outcome = {0: SURVIVED if sure else UNSURE, 5: UNSURE, -9: TIMEOUT}.get(code, KILLED)
            self.tell(Found(number, outcome, [item.nodeid for item in own], time.monotonic() - began))
        return True

    def concerns(self, name: str) -> bool:
        """True if it is not a row of another method in published.toml."""
        return self.method in name.partition("::")[2] or not any(other in name for other in OTHERS)

    def measured(self, session: pytest.Session, items: Sequence[pytest.Item]) -> Runs:
        """How long each test takes and which lines of methods it runs, from a fork. Raises SystemExit if a test fails.

        What was measured is kept for other methods and later runs, until the test's file or any method changes.
        """
        folder = self.file.parent
        kept = {
            file: self.kept / f"{digest([Path(file), *sorted(folder.glob('*.py'))])}.json"
            for file in {str(i.path) for i in items}
        }
        known: dict[str, dict[str, Run]] = {f: json.loads(k.read_text()) if k.exists() else {} for f, k in kept.items()}
        new = [item for item in items if item.nodeid not in known[str(item.path)]]

        def child() -> int:
            for item, following in zip(new, [*new[1:], None], strict=True):
                lines = set[tuple[str, int]]()
                began = time.monotonic()
                sys.settrace(tracer(str(folder), lines))
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                sys.settrace(None)
                run: dict[str, list[int]] = {}
                for file, line in sorted(lines):
                    run.setdefault(Path(file).name, []).append(line)
                known[str(item.path)][item.nodeid] = (time.monotonic() - began, run)
                if session.testsfailed:
                    print(f"{self.method}: {item.nodeid} fails before anything is broken.", flush=True)
                    return 1
            for file, found in known.items():
                kept[file].write_text(json.dumps(found), encoding="utf-8")
            return 0

        if new and forked(child, 900):
            raise SystemExit(f"{self.method}: its tests fail, or take over fifteen minutes, before anything is broken.")
        found = {
            name: run for file in kept.values() for name, run in json.loads(file.read_text(encoding="utf-8")).items()
        }
        return {name: (seconds, set(run.get(self.file.name, []))) for name, (seconds, run) in found.items()}

    def child(self, session: pytest.Session, items: Sequence[pytest.Item], mutant: Mutant) -> int:
        """1 where a test fails; 5 where all pass and no code was changed, so that nothing is known."""
        changes = graft(sys.modules[f"oche.methods.{self.method}".removesuffix(".__init__")], mutant.text)
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.testsfailed:
                return 1
        return 0 if changes else 5


def audience(items: Sequence[pytest.Item], runs: Runs, kind: str, lines: range, row: bool) -> list[pytest.Item]:
    """The tests that may notice a mutant: those that run it, and for a class's fields also all quick ones, which may compare them."""
    touched = [item for item in items if runs[item.nodeid][1] & set(lines)]
    if kind in ("body", "signature"):
        return touched or list(
            items
        )  # a trace is lost where torch calls back into Python: then any test may run the line
    if row and (rows := [item for item in items if PUBLISHED in item.nodeid]):
        return rows
    others = [item for item in items if item not in touched]
    return touched + [item for item in others if not touched or runs[item.nodeid][0] < QUICK]


def tracer(folder: str, lines: set[tuple[str, int]]) -> Callable[[types.FrameType, str, object], object]:
    """A trace function that notes (file, line) for all that is run of a folder's files."""

    def local(frame: types.FrameType, event: str, _: object) -> object:
        lines.add((frame.f_code.co_filename, frame.f_lineno))
        return local

    def called(frame: types.FrameType, event: str, _: object) -> object:
        return local(frame, event, None) if frame.f_code.co_filename.startswith(folder) else None

    return called


def digest(files: Sequence[Path]) -> str:
    """Changes with the content of the files."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def forked(work: Callable[[], int], seconds: float) -> int:
    """Returns what the work returns in a fork of this process; 3 where it raises, -9 where it takes too long.

    Too long is more than so many seconds of processor time, so that a busy machine kills no mutant; a fork that only waits ends after
    twenty times as many by the clock.
    """
    child = os.fork()
    if child == 0:
        code = 3
        try:
            most = math.ceil(seconds)
            resource.setrlimit(resource.RLIMIT_CPU, (most, most))
            code = work()
        finally:
            os._exit(code)
    ends = time.monotonic() + 20 * seconds
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return -9


# ------------------------------------------------------------------ a mutant in the loaded module


def graft(module: types.ModuleType, text: str) -> int:
    """Gives the module's functions, classes and tables the code and values of another text of its file; returns how many changed."""
    fresh: dict[str, object] = {"__name__": module.__name__, "__file__": module.__file__}
    exec(compile(text, str(module.__file__), "exec"), fresh)  # noqa: S102  the file itself, changed in one place
    merge = Merge(module.__name__)
    for name, new in fresh.items():
        old = vars(module).get(name)
        if not name.startswith("__") and (kept := merge(old, new)) is not old:
            for other in list(sys.modules.values()):
                if getattr(other, "__dict__", {}).get(name) is old:
                    setattr(other, name, kept)
    return merge.changes


@dataclass
class Merge:
    """`merge(old, new)` changes the old object in place where it can, and returns what to use: the old one, or the new."""

    module: str
    changes: int = 0
    seen: dict[int, object] = field(default_factory=dict)

    def __call__(self, old: object, new: object) -> object:
        if old is new:
            return old
        if not isinstance(new, int | float | str | tuple | frozenset):  # each place of those has its own before
            if id(new) in self.seen:
                return old
            self.seen[id(new)] = new
        if isinstance(old, types.FunctionType) and isinstance(new, types.FunctionType):
            return self.function(old, new)
        if isinstance(old, type) and isinstance(new, type) and new.__module__ == self.module:
            return self.members(old, {k: v for k, v in vars(new).items() if k not in ("__dict__", "__weakref__")})
        if isinstance(old, property) and isinstance(new, property):
            return self.part(old, new, "fget")
        if isinstance(new, dict) and isinstance(old, dict):
            for key in [key for key in old if key not in new]:
                del old[key]
                self.changes += 1
            for key, value in new.items():
                old[key] = self(old.get(key), value)
            return old
        if isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new) and type(old) is tuple:
            merged = tuple(map(self, old, new))
            return old if all(a is b for a, b in zip(old, merged, strict=True)) else merged
        if isinstance(old, dataclasses.Field) and isinstance(new, dataclasses.Field):
            return self.part(old, new, "default")
        if dataclasses.is_dataclass(old) and type(old).__qualname__ == type(new).__qualname__:
            for name, value in vars(new).items():
                object.__setattr__(old, name, self(vars(old).get(name), value))
            return old
        if hasattr(old, "__wrapped__") and hasattr(new, "__wrapped__"):
            return self.part(old, new, "__wrapped__")
        if type(old) is type(new) and isinstance(old, int | float | str | frozenset | type(None)) and old == new:
            return old
        self.changes += 1
        return new

    def function(self, old: types.FunctionType, new: types.FunctionType) -> object:
        """The old function with the new code and defaults; a wrapper keeps its own and passes on."""
        if len(old.__code__.co_freevars) != len(new.__code__.co_freevars):
            self.changes += 1
            return new
        self.changes += old.__code__ != new.__code__
        old.__code__ = new.__code__
        old.__defaults__ = self(old.__defaults__, new.__defaults__)  # type: ignore[assignment]
        old.__kwdefaults__ = self(old.__kwdefaults__, new.__kwdefaults__)  # type: ignore[assignment]
        if hasattr(old, "__wrapped__") and hasattr(new, "__wrapped__"):
            self(old.__wrapped__, new.__wrapped__)
        return old

    def members(self, old: type, fresh: dict[str, object]) -> object:
        """The class, its members changed."""
        for name, value in fresh.items():
            before = vars(old).get(name)
            if (kept := self(before, value)) is not before:
                setattr(old, name, kept)
        return old

    def part(self, old: object, new: object, name: str) -> object:
        """Either object, by whether one part of it could be changed in place."""
        before = getattr(old, name)
        return old if self(before, getattr(new, name)) is before else new
