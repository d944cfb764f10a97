"""The command line in several processes: started by --devices or torchrun, resumed in another number, and with one of them killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oche import config
from oche.run import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # every command starts Python and torch, twice

SEARCH = ["search", "darts", "--space", "toy", "--budget", "smoke", "--device", "cpu", "--compare", "0"]
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
STOPPED = """
import oche
def stop(event, record):
    if event == "epoch" and record["epoch"] == 1:
        raise KeyboardInterrupt
try:
    options = {"budget": "smoke", "compare": 0, "epochs": 4, "sync_batch_norm": True}
    oche.search("darts", space="toy", device="cpu", out="cut", listener=stop, **options)
except KeyboardInterrupt:
    pass
"""
KEYS = ("weight_loss", "arch_loss", "weight_accuracy", "genotype")


def started(folder: Path, *command: str, **environment: str) -> subprocess.Popen[str]:
    """A Python command in the folder, in a session of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *command], cwd=folder, env=env, stdout=pipe, stderr=pipe, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, list[str]]:
    """(exit code, what was printed, oche's sentences)."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, [line for line in err.splitlines() if line.startswith("oche: ")]


def ran(folder: Path, *command: str) -> tuple[int, str, list[str]]:
    return ended(started(folder, *command))


def epochs(folder: Path) -> list[dict[str, object]]:
    return [{key: r[key] for key in KEYS} for r in Run.open(folder).records() if r["kind"] == "epoch"]


def begun(
    folder: Path, name: str, *more: str, oche: tuple[str, ...] = ("-m", "oche")
) -> tuple[subprocess.Popen[str], list[int]]:
    """A long search in two processes that has written a checkpoint, and the numbers of its processes, the first one first."""
    process = started(folder, *oche, *SEARCH, "--epochs", "2000", "--devices", "2", "--out", name, *more)
    until = time.monotonic() + 300
    while not (folder / name / Run.STATE).exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, "there is no checkpoint"
        time.sleep(0.1)
    further = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return process, [process.pid, *map(int, further)]


def gone(pid: int) -> bool:
    """True if the process ends within seconds; one that is dead and not yet asked about is gone."""
    stat = Path(f"/proc/{pid}/stat")
    for _ in range(300):
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.1)
    return False


def test_devices_and_torchrun_make_the_same_search(tmp_path: Path) -> None:
    """One folder and one voice each, `python -m oche` included; the same numbers, and another batch norm than one process."""
    two = ran(tmp_path, "-m", "oche", *SEARCH, "--devices", "2", "--out", "two")
    torchrun = ran(tmp_path, *TORCHRUN, "-m", "oche", *SEARCH, "--out", "torchrun")
    one = ran(tmp_path, "-m", "oche", *SEARCH, "--out", "one")
    for code, out, said in (two, torchrun, one):
        assert (code, said) == (0, [])
        assert out.count("Everything lies in") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "torchrun", "two"]
    assert epochs(tmp_path / "two") == epochs(tmp_path / "torchrun") != epochs(tmp_path / "one")
    table = config.loads((tmp_path / "torchrun" / Run.CONFIG).read_text(), "run.toml")
    assert table["request"]["devices"] == table["resolved"]["processes"] == 2  # type: ignore[index]


def test_torchrun_and_devices_that_differ_are_refused(tmp_path: Path) -> None:
    code, _, said = ran(tmp_path, *TORCHRUN, "-m", "oche", *SEARCH, "--devices", "3", "--out", "run")
    assert code
    assert set(said) == {
        "oche: torchrun started 2 processes and --devices asks for 3: leave --devices out, or start without torchrun."
    }
    assert not (tmp_path / "run").exists()


def test_a_mistake_is_told_once_and_leaves_no_folder(tmp_path: Path) -> None:
    code, _, said = ran(tmp_path, "-m", "oche", *SEARCH, "--devices", "3", "--out", "run")
    assert code == 2
    assert len(said) == 1
    assert "A batch of 16 images cannot be shared evenly by 3 processes" in said[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_run_with_a_sentence(victim: int, tmp_path: Path) -> None:
    """And the run goes on from its checkpoint, in one process: nothing but the epoch that ran is lost."""
    process, pids = begun(tmp_path, "run")
    assert len(pids) == 2
    os.kill(pids[victim], signal.SIGKILL)
    code, _, said = ended(process)  # both have ended, for both hold the pipe
    assert code == (1 if victim else -signal.SIGKILL)
    lost = "process 1 was killed (signal 9)" if victim else "process 0 ended"
    advice = "what was done up to the last checkpoint is kept, `oche search --resume run` carries on."
    assert said == [f"oche: The run stopped, because {lost}: {advice}"]
    assert gone(pids[1 - victim])
    before = epochs(tmp_path / "run")
    on = started(tmp_path, "-m", "oche", "search", "--resume", "run", "--devices", "1")
    while len(epochs(tmp_path / "run")) <= len(before):
        assert on.poll() is None, on.communicate()[1]
        time.sleep(0.1)
    on.terminate()
    assert ended(on)[0] == 143
    records = list(Run.open(tmp_path / "run").records())
    (told,) = [r for r in records if r["kind"] == "processes"]
    assert (told["before"], told["processes"], told["batch"]) == (2, 1, 16)
    assert "other bits" in str(told["note"])
    assert epochs(tmp_path / "run")[: len(before) - 1] == before[:-1]


def test_a_process_that_stands_still_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    """Stopped, not ended: nothing but the time that passes tells."""
    impatient = tmp_path / "impatient.py"
    impatient.write_text(
        "from datetime import timedelta\nfrom oche.cli.main import main\nfrom oche.plan import machine\n"
        "machine.WAIT = timedelta(seconds=40)\nmain()\n"
    )
    process, pids = begun(tmp_path, "run", oche=(str(impatient),))
    os.kill(pids[1], signal.SIGSTOP)
    code, _, said = ended(process)
    assert code == 1
    assert len(said) == 1
    assert "`oche search --resume run` carries on" in said[0]
    assert all(map(gone, pids))


def test_terminated_processes_leave_none_behind(tmp_path: Path) -> None:
    process, pids = begun(tmp_path, "run")
    process.terminate()
    code, _, said = ended(process)
    assert code == 143
    assert said == ["oche: terminated; what was done is kept, `oche search --resume run` carries on."]
    assert all(map(gone, pids))


def test_resumed_in_another_number_of_processes(tmp_path: Path) -> None:
    """Begun in one process and stopped, ended in two with batch norm over both: the same batches, so the same losses but for rounding."""
    options = ["--epochs", "4", "--sync-batch-norm"]
    assert ran(tmp_path, "-m", "oche", *SEARCH, *options, "--out", "whole")[0] == 0
    cut = tmp_path / "stop.py"
    cut.write_text(STOPPED)
    assert ran(tmp_path, str(cut))[0] == 0
    code, out, _ = ran(tmp_path, "-m", "oche", "search", "--resume", "cut", "--devices", "2")
    assert code == 0
    assert "goes on with 2 process(es), begun with 1: still 16 images per step, but other bits" in " ".join(out.split())
    for here, there in zip(epochs(tmp_path / "cut"), epochs(tmp_path / "whole"), strict=True):
        assert here["weight_loss"] == pytest.approx(there["weight_loss"], rel=1e-3)
    assert epochs(tmp_path / "cut")[:2] == epochs(tmp_path / "whole")[:2]
    assert "NaN" not in json.dumps(epochs(tmp_path / "cut"))


def test_several_processes_need_a_script(tmp_path: Path) -> None:
    code, _, said = ran(
        tmp_path,
        "-c",
        "import sys, oche\n"
        "try: oche.search('darts', space='toy', budget='smoke', device='cpu', devices=2)\n"
        "except oche.UserError as error: print('oche:', error, file=sys.stderr)",
    )
    assert code == 0
    assert "not from a notebook or a prompt" in said[0]
