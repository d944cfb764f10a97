"""The mark of the process that writes to a run: what a killed one leaves behind, and two machines whose locks do not hold."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from oche.api.int8 import export
from oche.errors import RunFailed, UserError
from oche.run import Run

OTHER = """
import fcntl, os, socket
from pathlib import Path
from oche.run import Run
fcntl.flock = lambda stream, how: None
socket.gethostname = lambda: "other"
with Run(Path({path!r})).lock():
    {then}
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run")


def other_machine(run: Run, then: str) -> int:
    """Has a process take the run's lock as if it were on a machine of its own, which knows nothing of the locks held here."""
    return subprocess.run([sys.executable, "-c", OTHER.format(path=str(run.path), then=then)], check=False).returncode


def left_by(process: int, machine: str) -> str:
    return json.dumps({"machine": machine, "process": process, "word": "0"})


@pytest.mark.parametrize(
    "mark",
    [
        left_by(os.getpid(), socket.gethostname()),  # a number that belongs to another program by now
        left_by(1, socket.gethostname()),
        *("", "{", "[]", '{"process": "x", "machine": 3}', "\ufffd" * 9000, "1" * 5000),
    ],
    ids=[
        "this process",
        "another program",
        "empty",
        "cut",
        "list",
        "wrong types",
        "no text",
        "long",
    ],  # the same in every worker
)
def test_a_mark_that_was_left_is_told_and_hinders_no_one(mark: str, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run.file(Run.RUNNING).write_text(mark)
    with run.lock():
        run.log({"kind": "epoch"})
        run.write("a.json", b"{}")
    assert "was ended abruptly" in caplog.text
    assert "on '" not in caplog.text
    assert not run.has(Run.RUNNING)


def test_a_folder_in_the_place_of_the_mark_hinders_no_one(run: Run) -> None:
    run.file(Run.RUNNING).mkdir()
    with run.lock():
        run.log({"kind": "epoch"})


def test_another_machine_is_named(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run.file(Run.RUNNING).write_text(left_by(77, "node3"))
    with run.lock():
        pass
    assert "process 77 on 'node3' was ended abruptly" in caplog.text
    assert "If it still runs there, end it first" in caplog.text


@pytest.mark.parametrize(
    ("then", "who"),
    [("run = 1", "Another process"), ("print(flush=True); os._exit(0)", r"Process \d+ on 'other'")],
    ids=["ended", "still there"],
)
def test_two_machines_whose_locks_do_not_hold(run: Run, then: str, who: str) -> None:
    """The first one stops at its next write, of whichever kind, and leaves the mark to the other."""
    with run.lock():
        run.log({"n": 0})
        assert other_machine(run, then) == 0
        kept = run.file(Run.RUNNING).read_bytes() if run.has(Run.RUNNING) else None
        for write in (lambda: run.log({"n": 1}), lambda: run.write("a.json", b"{}"), lambda: run.rewind(0)):
            with pytest.raises(RunFailed, match=f"{who} has written to .* one machine at a time"):
                write()
        own = Run(run.file("trained"))
        own.path.mkdir()
        with pytest.raises(RunFailed, match="one machine at a time"):
            own.write("state.pt", b"x")
    assert (run.file(Run.RUNNING).read_bytes() if run.has(Run.RUNNING) else None) == kept
    assert run.records() == [{"n": 0}]


def test_locks_that_hold_keep_the_other_out(run: Run) -> None:
    with run.lock(), pytest.raises(UserError, match="Another process is writing"), Run(run.path).lock():
        pass


def test_marks_within_marks(tmp_path: Path) -> None:
    """A bench marks its folder and each trial's; what is written elsewhere is none of theirs."""
    bench, trial, elsewhere = (Run.create(tmp_path / name) for name in ("bench", "bench/trial", "elsewhere"))
    with bench.lock(), trial.lock():
        bench.file(Run.RUNNING).unlink()
        with pytest.raises(RunFailed):
            trial.log({})
        elsewhere.log({})
    trial.log({})


def test_an_export_waits_for_no_one_and_writes_beside_no_one(run: Run) -> None:
    """It reads and writes the card, which a search that still compares writes too."""
    with run.lock(), pytest.raises(UserError, match="Another process is writing"):
        export(run, ("onnx",))


def test_a_disk_that_is_read_only_is_read_whatever_lies_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary that a killed process left there long ago cannot be removed, and that is no reason not to read."""
    run.write(Run.CONFIG, b"")
    temporary = run.file(".state.pt.0.tmp")
    temporary.touch()
    os.utime(temporary, (0, 0))

    def refused(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "unlink", refused)
    assert Run.open(run.path).read(Run.CONFIG) == b""
    monkeypatch.undo()
    Run.open(run.path)
    assert not temporary.exists()
