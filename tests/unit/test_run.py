"""The run directory: whole files at whatever moment a process dies, and a log that can be cut back."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from oche.errors import UserError
from oche.run import Run
from oche.run.folder import STALE

SOURCE = Path(__file__).parents[2] / "src"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.create(tmp_path / "first")
    run.write(Run.CONFIG, b"")
    return run


def temporaries(run: Run) -> list[Path]:
    return list(run.path.rglob("*.tmp"))


# ---------------------------------------------------------------------- folders


def test_create_never_reuses_a_folder(tmp_path: Path) -> None:
    names = [Run.create(tmp_path / "deep" / "run").path.name for _ in range(3)]
    assert names == ["run", "run-2", "run-3"]


def test_create_gives_every_thread_its_own_folder(tmp_path: Path) -> None:
    made: list[Path] = []
    threads = [threading.Thread(target=lambda: made.append(Run.create(tmp_path / "run").path)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 16


def test_create_wants_a_name() -> None:
    with pytest.raises(UserError, match="cannot name a run"):
        Run.create(Path("/"))


def test_open_takes_a_run_and_nothing_else(run: Run, tmp_path: Path) -> None:
    assert Run.open(run.path) == run
    with pytest.raises(UserError, match="There is no run folder"):
        Run.open(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"holds no run\.toml"):
        Run.open(tmp_path)


# ---------------------------------------------------------------------- files


def test_write_replaces_and_makes_folders(run: Run) -> None:
    name = "genotypes/epoch_000.json"
    assert not run.has(name)
    run.write(name, b"old")
    run.write(name, b"new")
    assert run.has(name)
    assert run.read(name) == run.file(name).read_bytes() == b"new"
    assert not temporaries(run)


def test_read_of_a_missing_file_is_a_sentence(run: Run) -> None:
    with pytest.raises(UserError, match=r"has no state\.pt"):
        run.read(Run.STATE)


def test_a_failed_write_leaves_the_old_file_and_no_temporary(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write(Run.STATE, b"old")

    def full(stream: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        run.write(Run.STATE, b"new")
    assert run.read(Run.STATE) == b"old"
    assert not temporaries(run)


def test_a_written_file_has_the_usual_permissions(run: Run) -> None:
    run.file("plain").write_bytes(b"")
    run.write("atomic", b"")
    assert run.file("atomic").stat().st_mode == run.file("plain").stat().st_mode


@pytest.mark.parametrize("sweeps", [lambda run: Run.open(run.path), lambda run: run.write("genotypes/a.json", b"")])
def test_stale_temporaries_go_and_fresh_ones_stay(run: Run, sweeps: object) -> None:
    run.write(Run.genotype(0), b"")
    stale, fresh = (run.file(f"genotypes/.epoch_001.json.{name}.tmp") for name in ("stale", "fresh"))
    stale.write_bytes(b"half")
    fresh.write_bytes(b"half")  # a search may be writing it while a report opens the run
    long_ago = time.time() - 2 * STALE
    os.utime(stale, (long_ago, long_ago))
    assert callable(sweeps)
    sweeps(run)
    assert temporaries(run) == [fresh]


WRITER = """
import itertools, sys
from pathlib import Path
from oche.run import Run

run = Run(Path(sys.argv[1]))
print("ready", flush=True)
for n in itertools.count():
    run.log({"n": n})
    run.write("state.pt", bytes([n % 256]) * 2_000_000)
"""


def test_a_killed_process_leaves_whole_files(run: Run) -> None:
    """SIGKILL at 20 random moments: the state is one byte repeated, as written, and the log loses no complete line."""
    whole = bytes([0]) * 2_000_000
    run.write(Run.STATE, whole)
    moments = random.Random(0)
    torn = 0
    for _ in range(20):
        lines = run.lines()
        command = [sys.executable, "-S", "-c", WRITER, str(run.path)]
        environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(moments.uniform(0.0, 0.03))
            process.send_signal(signal.SIGKILL)
        state = run.read(Run.STATE)
        assert len(state) == 2_000_000
        assert state == state[:1] * len(state)
        assert run.lines() >= lines
        assert len(run.records()) == run.lines()
        torn += bool(temporaries(run))
        for left in temporaries(run):
            left.unlink()
    assert torn > 0, "no kill met a write: the test proves nothing"
    assert Run.open(run.path).lines() > 0


# ---------------------------------------------------------------------- the log


def test_records_come_back_in_order(run: Run) -> None:
    assert run.records() == []
    written: list[dict[str, object]] = [{"epoch": n, "loss": 0.1 * n, "text": "two\nlines \u00df"} for n in range(3)]
    for record in written:
        run.log(record)
    assert run.records() == written
    assert run.lines() == 3


def test_a_torn_last_line_does_not_count(run: Run) -> None:
    run.log({"epoch": 0})
    with run.file(Run.LOG).open("ab") as stream:
        stream.write(b'{"epoch": 1, "lo')
    assert run.records() == [{"epoch": 0}]
    assert run.lines() == 1


def test_rewind_cuts_torn_and_later_lines(run: Run) -> None:
    for n in range(4):
        run.log({"epoch": n})
    with run.file(Run.LOG).open("ab") as stream:
        stream.write(b'{"epoch": 4')
    run.rewind(2)
    run.log({"epoch": 2, "again": True})
    assert run.records() == [
        {"epoch": 0},
        {"epoch": 1},
        {"epoch": 2, "again": True},
    ]


def test_rewind_refuses_a_log_that_is_too_short(run: Run) -> None:
    run.rewind(0)
    with pytest.raises(UserError, match="0 lines are left of 1"):
        run.rewind(1)


def test_damage_in_the_middle_is_told(run: Run) -> None:
    run.file(Run.LOG).write_bytes(b'{"epoch": 0}\n{"epo\n{"epoch": 2}\n')
    with pytest.raises(UserError, match="Line 2"):
        run.records()


def test_two_processes_never_mix_their_lines(run: Run) -> None:
    def write(name: int) -> None:
        for n in range(100):
            run.log({"name": name, "n": n, "padding": "x" * 500})

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(run.records()) == 400


def test_a_process_that_was_killed_is_told_to_the_next_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And to no other: not after an end in good order, an error or Ctrl-C, nor a second time."""
    run = Run.create(tmp_path / "run")
    with run.lock():
        assert run.has(Run.RUNNING)
    with pytest.raises(KeyboardInterrupt), run.lock():
        raise KeyboardInterrupt
    assert not run.has(Run.RUNNING)
    told = f"import os\nfrom pathlib import Path\nfrom oche.run import Run\nwith Run(Path({str(run.path)!r})).lock():\n    os._exit(9)"
    assert subprocess.run([sys.executable, "-c", told], check=False).returncode == 9
    for killed in (True, False):
        caplog.clear()
        with run.lock():
            assert ("was ended abruptly: killed, perhaps for want of memory" in caplog.text) == killed
