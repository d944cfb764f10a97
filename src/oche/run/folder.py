"""The run folder: the only module that knows what lies where in it, and that replaces files atomically.

    runs/<name>[-2]/   run.toml  log.jsonl  alphas.npz  genotypes/epoch_000.json  genotype.json  state.pt  stages/0.pt ...
                       samples/  network/  report.html  figures/  digests.json

Callers pass bytes. If a process is killed at any moment, every file is whole: the old one or the new one. What is read back is checked
against its digest (`digests`), and each line of the log against its checksum (`records`).
"""

from __future__ import annotations

import errno
import logging
import os
import pickle
import secrets
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from oche.errors import UserError
from oche.run import digests, records
from oche.run.bounded import SUFFIXES, read_bounded
from oche.run.mark import check_own, left, marked

log = logging.getLogger(__name__)

UNREADABLE = (
    *(RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError),
    *(OverflowError, NotImplementedError, pickle.UnpicklingError, struct.error),
)
"""What torch's reader of checkpoints raises for bytes that are none, by fuzzing (`make fuzz`)."""

STALE = 600.0
"""Seconds after which a temporary file is a killed process's: a report may open a run that a search is writing to."""


Checked = TypeVar("Checked")

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
    FRONT: ClassVar[str] = "front.json"
    STATE: ClassVar[str] = "state.pt"
    NETWORK: ClassVar[str] = "network"
    REPORT: ClassVar[str] = "report.html"
    FIGURES: ClassVar[str] = "figures"
    AUGMENTED: ClassVar[str] = "samples/augmented.json"
    MISTAKES: ClassVar[str] = "samples/mistakes.json"
    LOCK: ClassVar[str] = ".lock"
    RUNNING: ClassVar[str] = ".running"

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
        _make(path.parent)
        fresh, n = path, 1
        while True:
            try:
                fresh.mkdir()  # fails where another process was quicker
                return Run(fresh)
            except FileExistsError:
                n += 1
                fresh = path.with_name(f"{path.name}-{n}")
            except OSError as error:
                raise _not_made(fresh, error) from error

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

    @contextmanager
    def lock(self, patience: float = 0.0) -> Iterator[None]:
        """Keeps other processes from writing to the run meanwhile; a killed process lets go of it.

        Raises UserError where one writes for so many seconds more.

        A killed process leaves the file `RUNNING` behind, by which the next one knows and says so.
        """
        from filelock import FileLock, Timeout  # here: the rest of this folder needs the standard library alone

        lock = FileLock(self.file(Run.LOCK))
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            raise UserError(
                f"Another process is writing to the run {str(self.path)!r}: wait until it ends, or stop it, then try again."
            ) from None
        mark = self.file(Run.RUNNING)
        if (before := left(mark)) is not None:
            log.warning(
                "In %r %s was ended abruptly: killed, perhaps for want of memory, or the power failed. This one "
                "goes on from what is there; if it ends so again, it needs more memory, or a new run with a smaller --batch.%s",
                str(self.path),
                before,
                " If it still runs there, end it first." if " on " in before else "",
            )
        try:
            with marked(mark):
                yield
        finally:
            lock.release()

    # ------------------------------------------------------------------ files

    def file(self, name: str) -> Path:
        """The path of `name`, which need not exist."""
        return self.path / name

    def has(self, name: str) -> bool:
        """True if the file or folder exists."""
        return self.file(name).exists()

    def read(self, name: str) -> bytes:
        """A file's content. Raises UserError where it is missing, or is not what was written."""
        if not digests.covered(name):
            return self._bytes(name)
        return self._settled(lambda known: digests.check(name, self._bytes(name), known, str(self.file(name))))

    def changed(self, name: str) -> bool:
        """True if the file is not as oche wrote it. Raises UserError where it is missing."""
        known = self._digests().get(name)
        return bool(known) and digests.digest(self._bytes(name)) not in (known or ())

    def write(self, name: str, data: bytes) -> None:
        """Replaces a file atomically: a reader, and a process killed now, leave or find the old bytes or the new."""
        self.write_all({name: data})

    def write_all(self, files: Mapping[str, bytes], durable: bool = True) -> None:
        """Replaces several files, each atomically, one after the other.

        `durable`: they are on the disk afterwards, even if the power fails.
        """
        new = {name: digests.digest(data) for name, data in files.items() if digests.covered(name)}
        known = self._digests() if new else {}
        if new:
            if self.has(Run.LOG):
                known[Run.LOG] = [str(self.file(Run.LOG).stat().st_size)]
            either = {name: [one, *known.get(name, [])] for name, one in new.items()}
            self._replace(digests.FILE, digests.render(known | either), durable)
        for name, data in files.items():
            self._replace(name, data, durable)
        if new:
            self._replace(
                digests.FILE, digests.render(known | {name: [one] for name, one in new.items()}), durable=False
            )

    def _bytes(self, name: str) -> bytes:
        try:
            path = self.file(name)
            most = SUFFIXES.get(path.suffix)
            return path.read_bytes() if most is None else read_bounded(path, most)
        except FileNotFoundError:
            raise UserError(f"The run {str(self.path)!r} has no {name}; it may not have come that far.") from None

    def _settled(self, checked: Callable[[digests.Digests], Checked]) -> Checked:
        """What is read and checked against the digests; once more for as long as another process replaces these meanwhile."""
        known = self._digests()
        while True:
            try:
                return checked(known)
            except UserError:
                before, known = known, self._digests()
                if known == before:
                    raise

    def _digests(self) -> digests.Digests:
        if not self.has(digests.FILE):
            return {}
        return digests.parse(read_bounded(self.file(digests.FILE), SUFFIXES[".json"]), str(self.file(digests.FILE)))

    def _replace(self, name: str, data: bytes, durable: bool = True) -> None:
        """Replaces a file atomically; `durable`: it is on the disk afterwards, even if the power fails."""
        check_own(self.path, Run.RUNNING)
        target = self.file(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("xb") as stream:
                stream.write(data)
                stream.flush()
                if durable:
                    os.fsync(stream.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        if durable:
            _sync_folder(target.parent)

    # ------------------------------------------------------------------ the log

    def log(self, record: Mapping[str, object]) -> None:
        """Appends one JSON line in a single system call, so that lines of two processes never mix.

        Raises OSError, and leaves the log as it was, where the disk is full, RunFailed where another machine's process writes there now.
        """
        check_own(self.path, Run.RUNNING)
        line = records.seal(record)
        stream = os.open(self.file(Run.LOG), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            before = os.fstat(stream).st_size
            written = os.write(stream, line)
            if written != len(line):
                os.ftruncate(stream, before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.file(Run.LOG)))
        finally:
            os.close(stream)

    def records(self) -> list[dict[str, object]]:
        """The log's complete lines; one that a killed process left torn at the end does not count.

        Raises UserError where a line is damaged, or lines that were there are gone.
        """
        return records.parse(self._complete_lines(), repr(str(self.file(Run.LOG))))

    def lines(self) -> int:
        """The number of complete lines of the log."""
        return len(self._complete_lines())

    def flush(self) -> None:
        """Brings the log to the disk: a state that is saved may rely on its lines."""
        if self.has(Run.LOG):
            with self.file(Run.LOG).open("rb+") as stream:
                os.fsync(stream.fileno())

    def rewind(self, lines: int) -> None:
        """Cuts the log back to its first `lines` lines, atomically. Raises UserError where it has fewer."""
        kept = self._complete_lines()
        if len(kept) < lines:
            raise UserError(f"The log of {str(self.path)!r} was cut: {len(kept)} lines are left of {lines}.")
        if not self.has(Run.LOG):
            return
        known = self._digests()
        if known.pop(Run.LOG, None):  # first: a killed process must not leave a log that looks cut
            self._replace(digests.FILE, digests.render(known))
        self._replace(Run.LOG, b"".join(kept[:lines]))

    def seal(self) -> None:
        """Marks the log as it is as complete: from now on a log that is cut is found out. The last step of whatever wrote the run."""
        if self.has(Run.LOG) and (known := self._digests()):
            known[Run.LOG] = [str(self.file(Run.LOG).stat().st_size)]
            self._replace(digests.FILE, digests.render(known))

    def _complete_lines(self) -> list[bytes]:
        return self._settled(self._lines)

    def _lines(self, known: digests.Digests) -> list[bytes]:
        content = self._bytes(Run.LOG) if self.has(Run.LOG) else b""
        size = known.get(Run.LOG, ["0"])
        least = int(size[0]) if size and size[0].isdigit() else 0
        where = repr(str(self.file(Run.LOG)))
        if len(content) < least:
            raise UserError(
                f"The log {where} was cut: it has {len(content)} bytes of at least {least}. Take it from a backup, or start the run anew."
            )
        return records.complete(content, where)


@contextmanager
def damaged() -> Iterator[None]:
    """Turns an error of `torch.load` into a UserError of one sentence."""
    try:
        yield
    except UNREADABLE as error:
        reason = (str(error).splitlines() or ["end of file"])[0]
        raise UserError(
            f"The checkpoint state.pt is truncated or damaged ({reason}): delete it to start that run anew."
        ) from None


def _make(folder: Path) -> None:
    """Makes a folder and those it lies in. Raises UserError where that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_made(folder, error) from error


def _not_made(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"The folder {str(folder)!r} cannot be made: {error.strerror or error}; choose another place with `--out FOLDER`."
    )


def _sweep(folder: Path) -> None:
    """Removes temporaries that a killed process left; one that may still be in use is left alone."""
    for temporary in folder.glob(".*.tmp"):
        with suppress(OSError):  # another process was quicker, or the disk is read-only
            if time.time() - temporary.stat().st_mtime > STALE:
                temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Brings a renaming to the disk."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        stream = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(stream)
        finally:
            os.close(stream)
