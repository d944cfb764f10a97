"""Errors that the surroundings cause end in one sentence and the right exit code."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import oche as oche_library
from oche.cli import boundary
from oche.cli.boundary import explained, guarded
from oche.errors import UserError
from oche.run import Run


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("Choose another."), 2, "oche: Choose another."),
        (OSError(errno.ENOSPC, "x", "runs/a/state.pt"), 1, "No space left on device: 'runs/a/state.pt': free some space"),
        (OSError(errno.EROFS, "x", "runs"), 1, "Read-only file system: 'runs'"),
        (PermissionError(errno.EACCES, "x", "runs"), 1, "Permission denied: 'runs'"),
        (NotADirectoryError(errno.ENOTDIR, "x", "file/x"), 1, "Not a directory: 'file/x'"),
        (OSError(errno.ESTALE, "x", "/share/a"), 1, "'/share/a': the disk or the shared folder is gone; bring it back and go on"),
        (OSError(errno.ENOTCONN, "x", "/share/a"), 1, "the shared folder is gone"),
        (OSError(errno.ENOLCK, "x", "/share/.lock"), 1, "the file system has no locks; choose a folder on another one"),
        (OSError(errno.ELOOP, "x", "a"), 1, "its links lead in a circle"),
        (MemoryError("std::bad_alloc"), 1, "There is not enough memory (std::bad_alloc)"),
        (RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried\nmore"), 1, "There is not enough memory"),
        (RuntimeError("can't start new thread"), 1, "There is not enough memory (can't start new thread)"),
        (ImportError("libtorch.so: failed to map segment from shared object"), 1, "There is not enough memory (libtorch.so"),
        (KeyboardInterrupt(), 130, "interrupted; what was done is kept"),
    ],
)  # fmt: skip
def test_one_sentence(error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        guarded(raising(error))
    printed = capsys.readouterr().err
    assert (stop.value.code, printed.count("\n")) == (code, 1)
    assert said in printed


def test_a_folder_that_may_not_be_entered_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not a file that was looked for, or was to be made, in it."""
    with pytest.raises(SystemExit):
        guarded(raising(PermissionError(errno.EACCES, "x", str(tmp_path / "ant" / "points.csv"))))
    assert f"Permission denied: {str(tmp_path)!r}:" in capsys.readouterr().err


def test_an_interruption_names_the_command_that_carries_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(boundary, "_running", [])

    def command() -> None:
        boundary.running("search", Path("runs/first"))
        boundary.running("train", Path("runs/two words"))
        raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        guarded(command)
    assert "`oche train --resume 'runs/two words'` carries on" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP here")
@pytest.mark.parametrize(("number", "word"), [("SIGTERM", "143 terminated"), ("SIGHUP", "129 terminated")])
def test_an_end_from_outside_is_told(number: str, word: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SIGHUP, too, which a terminal that is closed sends; under nohup it is ignored."""
    sent = getattr(signal, number)
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)}
    said: list[str] = []
    monkeypatch.setattr(boundary, "_end", lambda sentence, code: said.append(f"{code} {sentence}"))
    for one in before:
        signal.signal(one, lambda number, frame: None)
    try:
        guarded(lambda: os.kill(os.getpid(), sent))
        assert [line[:14] for line in said] == [word]
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        guarded(lambda: os.kill(os.getpid(), signal.SIGHUP))
        assert len(said) == 1
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("expected 3 channels"),
        OSError("no number"),
        ValueError("ours"),
        ImportError("no module of that name"),
    ],
)
def test_faults_of_our_own_keep_their_traceback(error: Exception) -> None:
    assert explained(error) is None
    with pytest.raises(type(error), match=str(error)):
        guarded(raising(error))


def test_a_folder_that_cannot_be_made_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "x", tmp_path / "file" / "deep" / "x", tmp_path / ("n" * 300)):
        with pytest.raises(UserError, match=r"cannot be made: .*choose another place with `--out FOLDER`"):
            Run.create(path)


def test_one_process_at_a_time_writes_to_a_run(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    code = "import sys, pathlib; from oche.run import Run\nwith Run(pathlib.Path(sys.argv[1])).lock(): print('mine')"
    other = [sys.executable, "-c", code, str(run.path)]
    with run.lock():
        refused = subprocess.run(other, capture_output=True, text=True, check=False)
        assert "Another process is writing to the run" in refused.stderr
    assert subprocess.run(other, capture_output=True, text=True, check=True).stdout == "mine\n"


SEARCH = (
    *("search", "darts", "--space", "toy", "--budget", "smoke", "--compare", "0", "--epochs", "400"),
    *("--threads", "1", "--quiet", "--out"),
)


def oche(*arguments: str, limit: int | None = None) -> subprocess.Popen[str]:
    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-c", "from oche.cli.main import main; main()", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=limited)


@pytest.mark.slow
def test_sigterm_is_as_good_as_ctrl_c(tmp_path: Path) -> None:
    process = oche(*SEARCH, str(tmp_path / "run"))
    state = tmp_path / "run" / "state.pt"
    while not state.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert said.splitlines()[-1].startswith("oche: terminated; what was done is kept")
    assert Run.open(tmp_path / "run").records()


@pytest.mark.slow
def test_a_file_that_may_not_grow_ends_a_search_with_a_sentence(tmp_path: Path) -> None:
    process = oche(*SEARCH, str(tmp_path / "run"), limit=20_000)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 1, said
    assert said.splitlines()[-1].startswith("oche: File too large")
    assert "Traceback" not in said
    assert os.listdir(tmp_path / "run")


@pytest.mark.slow
def test_a_run_that_another_process_writes_is_neither_resumed_nor_changed(tmp_path: Path) -> None:
    found = oche_library.search(
        "darts", space="toy", budget="smoke", compare=0, epochs=1, threads=1, out=tmp_path / "run"
    )
    before = found.run.file(Run.LOG).read_bytes()
    with found.run.lock(), pytest.raises(UserError, match="Another process is writing"):
        oche_library.resume(found.run.path)
    assert found.run.file(Run.LOG).read_bytes() == before
