"""The run directory: the only module that knows what lies where in it, and that replaces files atomically.

    runs/<name>[-2]/   run.toml  log.jsonl  alphas.npz  genotypes/epoch_000.json  genotype.json  state.pt  stages/0.pt ...
                       network/  report.html  figures/

Callers pass bytes. If a process is killed at any moment, a file is whole: the old one or the new one.
"""

from __future__ import annotations

import json
import os
import pickle
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from oche.errors import UserError

STALE = 600.0
"""Seconds after which a temporary file belongs to nobody: a report may open a run that a search is writing to."""


Listener = Callable[[str, Mapping[str, object]], None]
"""Called with ("step", {...}) after every step, ("epoch", record) after every epoch, and so on."""


def silent(event: str, record: Mapping[str, object]) -> None:
    """Ignores every event (the default)."""


@dataclass(frozen=True)
class Run:
    """One run's folder. Names are relative to it and may be nested: `run.write(Run.genotype(0), data)`."""

    path: Path

    CONFIG: ClassVar[str] = "run.toml"
    LOG: ClassVar[str] = "log.jsonl"
    ALPHAS: ClassVar[str] = "alphas.npz"
    GENOTYPE: ClassVar[str] = "genotype.json"
    STATE: ClassVar[str] = "state.pt"
    NETWORK: ClassVar[str] = "network"
    REPORT: ClassVar[str] = "report.html"
    FIGURES: ClassVar[str] = "figures"

    @staticmethod
    def genotype(epoch: int) -> str:
        """Name of the genotype that the search would have chosen after an epoch.

        >>> Run.genotype(7)
        'genotypes/epoch_007.json'
        """
        return f"genotypes/epoch_{epoch:03d}.json"

    @staticmethod
    def stage(number: int) -> str:
        """Name of the checkpoint that a stage of a staged search ended with."""
        return f"stages/{number}.pt"

    # ------------------------------------------------------------------ folders

    @staticmethod
    def create(path: Path) -> Run:
        """Makes `path`, or where that exists `path-2`, `path-3`, ...: no run is ever overwritten."""
        if not path.name:
            raise UserError(f"{str(path)!r} cannot name a run; give a folder to create, such as 'runs/first'.")
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh, n = path, 1
        while True:
            try:
                fresh.mkdir()  # fails where another process was quicker
                return Run(fresh)
            except FileExistsError:
                n += 1
                fresh = path.with_name(f"{path.name}-{n}")

    @staticmethod
    def open(path: Path) -> Run:
        """The run in an existing folder. Raises UserError where there is none."""
        if not path.is_dir():
            raise UserError(f"There is no run folder {str(path)!r}; expected one that `oche search` made.")
        run = Run(path)
        if not run.has(Run.CONFIG):
            raise UserError(f"{str(path)!r} is no run folder, because it holds no {Run.CONFIG}.")
        for folder in {path, *(entry for entry in path.iterdir() if entry.is_dir())}:
            _sweep(folder)
        return run

    # ------------------------------------------------------------------ files

    def file(self, name: str) -> Path:
        """The path of `name`, which need not exist."""
        return self.path / name

    def has(self, name: str) -> bool:
        """True where the file or folder exists."""
        return self.file(name).exists()

    def read(self, name: str) -> bytes:
        """A file's content. Raises UserError where it is missing."""
        try:
            return self.file(name).read_bytes()
        except FileNotFoundError:
            raise UserError(f"The run {str(self.path)!r} has no {name}; it may not have come that far.") from None

    def write(self, name: str, data: bytes) -> None:
        """Replaces a file atomically: a reader, and a process killed now, leave or find the old bytes or the new."""
        target = self.file(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)

    # ------------------------------------------------------------------ the log

    def log(self, record: Mapping[str, object]) -> None:
        """Appends one JSON line in a single system call, so that lines of two processes never mix."""
        line = json.dumps(dict(record)).encode() + b"\n"
        stream = os.open(self.file(Run.LOG), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            if os.write(stream, line) != len(line):
                raise OSError(f"could not append to {self.file(Run.LOG)}: the disk may be full")
        finally:
            os.close(stream)

    def records(self) -> list[dict[str, object]]:
        """The log's complete lines; one that a killed process left torn at the end does not count."""
        records = []
        for n, line in enumerate(self._complete_lines(), start=1):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict):
                raise UserError(f"Line {n} of {str(self.file(Run.LOG))!r} is damaged; remove that line to go on.")
            records.append(record)
        return records

    def lines(self) -> int:
        """The number of complete lines of the log, flushed to disk first: a saved state may rely on it."""
        if self.has(Run.LOG):
            with self.file(Run.LOG).open("rb+") as stream:
                os.fsync(stream.fileno())
        return len(self._complete_lines())

    def rewind(self, lines: int) -> None:
        """Cuts the log back to its first `lines` lines, atomically. Raises UserError where it has fewer."""
        kept = self._complete_lines()
        if len(kept) < lines:
            raise UserError(f"The log of {str(self.path)!r} was cut: {len(kept)} lines are left of {lines}.")
        if self.has(Run.LOG):
            self.write(Run.LOG, b"".join(kept[:lines]))

    def _complete_lines(self) -> list[bytes]:
        content = self.read(Run.LOG) if self.has(Run.LOG) else b""
        return [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]


@contextmanager
def damaged() -> Iterator[None]:
    """Turns an error of `torch.load` into a UserError of one sentence."""
    try:
        yield
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or ["end of file"])[0]
        raise UserError(
            f"The checkpoint state.pt is truncated or damaged ({reason}): delete it to start that run anew."
        ) from None


def _sweep(folder: Path) -> None:
    """Removes temporaries that a killed process left; one that may still be in use is left alone."""
    for temporary in folder.glob(".*.tmp"):
        try:
            if time.time() - temporary.stat().st_mtime > STALE:
                temporary.unlink()
        except FileNotFoundError:  # another process was quicker
            continue


def _sync_folder(folder: Path) -> None:
    """Brings a renaming to the disk."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        stream = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(stream)
        finally:
            os.close(stream)
