"""A disk of a few MiB that can be filled, freed and made read-only while something writes to it."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from chaos.dying import act_at
from oche.cli.boundary import guarded

MIB = 16
SAYS = {"full disk": "oche: No space left on device", "read-only": "oche: Read-only file system"}


@dataclass(frozen=True)
class Disk:
    """A mounted file system in memory."""

    path: Path

    @staticmethod
    def possible() -> bool:
        """True if this process may mount one."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                with Disk.mounted(Path(folder) / "disk"):
                    return True
            except (OSError, subprocess.CalledProcessError):
                return False

    @staticmethod
    @contextmanager
    def mounted(path: Path) -> Iterator[Disk]:
        """An empty disk at that place, which is unmounted afterwards."""
        path.mkdir(exist_ok=True)
        _run("mount", "-t", "tmpfs", "-o", f"size={MIB}m", "tmpfs", str(path))
        try:
            yield Disk(path)
        finally:
            _run("umount", str(path))

    def spoil(self, fault: str, leave: int) -> None:
        """Fills the disk up to so many free bytes, or forbids writing to it."""
        if (
            fault == "read-only"
        ):  # a mount of its own, since files that are open for writing keep the first one writable
            _run("mount", "--bind", str(self.path), str(self.path))
            _run("mount", "-o", "remount,bind,ro", str(self.path))
            return
        filler = os.open(self._filler, os.O_WRONLY | os.O_CREAT)
        with contextlib.suppress(OSError):
            while os.write(filler, bytes(4096)):
                pass
        os.ftruncate(filler, max(0, os.fstat(filler).st_size - leave))
        os.close(filler)

    def mend(self, fault: str) -> None:
        """Undoes `spoil`."""
        if fault == "read-only":
            _run("umount", str(self.path))
        else:
            self._filler.unlink()

    def spoilt(self, fault: str) -> bool:
        """True if the fault has come."""
        return self._filler.exists() if fault == "full disk" else not os.access(self.path, os.W_OK)

    @property
    def _filler(self) -> Path:
        return self.path / "filler"


def struck(work: Callable[[], object], disk: Disk, fault: str, site: str, n: int, leave: int) -> str | None:
    """Works in a child whose disk is spoilt at the n-th call of that kind, and mends the disk.

    Returns the sentence that the command line would end with, or None where the work was done without needing the disk again.
    Raises AssertionError where it ended in another way.
    """
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that other tests left threads idle; a child uses none of theirs
        pid = os.fork()
    if pid == 0:
        said, code = io.StringIO(), 3
        try:
            act_at(site, n, lambda: disk.spoil(fault, leave))
            with contextlib.redirect_stderr(said):
                guarded(lambda: _done(work))
            code = 0
        except SystemExit as stop:
            code = int(str(stop.code))
        finally:
            os.write(write, said.getvalue().encode()[:60_000])
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as stream:
        said_there = stream.read().strip()
    code = os.WEXITSTATUS(os.waitpid(pid, 0)[1])
    if disk.spoilt(fault):
        disk.mend(fault)
    if code == 0:
        return None
    assert code == 1, f"exit code {code}: {said_there[-300:]}"
    assert said_there.startswith(SAYS[fault]), said_there[-300:]
    assert "\n" not in said_there, said_there[-300:]
    return said_there


def _done(work: Callable[[], object]) -> None:
    work()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
