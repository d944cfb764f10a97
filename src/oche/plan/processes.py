"""The processes of one run: how many there are, how they are started, and what is said when one of them is lost.

`--devices 2` starts the command once more for each further process, as lightning-fabric would, and watches them: its own watch ends all
with SIGKILL, so nothing could be said. Under torchrun the processes are there already, and torchrun watches them.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from oche.errors import RunFailed, UserError

GRACE = 10.0
"""Seconds in which a process may end by itself after another was lost; on a GPU it may wait for the lost one for ever."""

FOLLOWS = "OCHE_FOLLOWS"
"""Set, to the number of the first process, in the environment of those that it started."""

_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Socket closed",
    "gloo/transport",
    "NCCL",
    "ProcessGroup",
    "Timed out waiting",
    "wait timeout",
)


def launched() -> int:
    """How many processes torchrun has started; 0 without it."""
    return int(os.environ.get("WORLD_SIZE", "0")) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def rank() -> int:
    """The number of this process among those of the run, as far as the environment tells."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


def processes(asked: int | None, recorded: bool = False) -> int:
    """How many processes a run has: as asked, or torchrun's, or one. A `recorded` number gives way to torchrun's. Raises UserError."""
    world = launched()
    if world and asked not in (None, world) and not recorded:
        raise UserError(
            f"torchrun started {world} processes and --devices asks for {asked}: leave --devices out, or start without torchrun."
        )
    found = world or (1 if asked is None else asked)
    if found < 1:
        raise UserError(f"At least one process is needed; given {found}.")
    return found


def shared_out(batch: int, count: int) -> int:
    """Images of a batch for each of `count` processes. Raises UserError where they are not as many for each, or less than two."""
    if count > 1 and (batch % count or batch < 2 * count):
        near = max(2, round(batch / count)) * count
        raise UserError(
            f"A batch of {batch} images cannot be shared evenly by {count} processes, at least two for each: take a batch of {near}, or "
            "another number of processes."
        )
    return batch // count


# ------------------------------------------------------------------ the processes that this one starts


class Watch:
    """The processes started by this one, or the one that started it; and the command that carries on with their run."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[bytes]] = []
        self.carry_on = ""
        self.ending = self.following = False

    def start(self, count: int) -> None:
        """Starts the processes 1 .. count - 1 as copies of this command; does nothing in those, or where they are there already."""
        if os.environ.get(FOLLOWS) and not self.following:
            self.following = True
            threading.Thread(target=self._follow, args=(int(os.environ[FOLLOWS]),), daemon=True).start()
        if count == 1 or "LOCAL_RANK" in os.environ:
            return
        command = _this_command()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(count),
            "NODE_RANK": "0",
            "LOCAL_RANK": "0",
        }
        for number in range(1, count):
            own = {**os.environ, "LOCAL_RANK": str(number), FOLLOWS: str(os.getpid())}
            self.started.append(subprocess.Popen(command, env=own, stdin=subprocess.DEVNULL))
        atexit.register(self.end, GRACE)
        threading.Thread(target=self._lead, daemon=True).start()

    def end(self, wait: float = 0.0) -> None:
        """Ends the processes that this one started, after they had so many seconds to end by themselves."""
        self.ending = True
        for patience, signalled in ((wait, signal.SIGTERM), (3.0, signal.SIGKILL)):
            until = time.monotonic() + patience
            while time.monotonic() < until and any(p.poll() is None for p in self.started):
                time.sleep(0.02)
            for p in self.started:
                if p.poll() is None:
                    p.send_signal(signalled)

    def lost(self) -> str:
        """Which process was lost, in words. Its connection may be gone a moment before it is."""
        until = time.monotonic() + 1.0
        while self.started and not any(p.poll() for p in self.started) and time.monotonic() < until:
            time.sleep(0.02)
        for number, p in enumerate(self.started, 1):
            if p.returncode:
                return _ended(number, p.returncode)
        return (
            "process 0 ended" if os.environ.get(FOLLOWS) else "another process of this run ended or cannot be reached"
        )

    def sentence(self) -> str:
        """What a lost process means, and what to do."""
        said = f"The run stopped, because {self.lost()}: what was done up to the last checkpoint is kept"
        return f"{said}, `{self.carry_on}` carries on." if self.carry_on else f"{said}."

    def _lead(self) -> None:
        """Waits for a process to be lost; ends this one where it does not end by itself."""
        while not self.ending and not any(p.poll() for p in self.started):
            if all(p.poll() == 0 for p in self.started):
                return
            time.sleep(0.2)
        time.sleep(GRACE)
        if not self.ending:
            self._give_up()

    def _follow(self, first: int) -> None:
        while os.getppid() == first:
            time.sleep(0.2)
        time.sleep(GRACE)
        self._give_up()

    def _give_up(self) -> None:
        sys.stderr.write(f"oche: {self.sentence()}\n")
        sys.stderr.flush()
        self.end()
        os._exit(1)


watch = Watch()
"""This process's own: what it has started is a fact about the process, not about a run."""


def stopped_by_loss(error: BaseException) -> RunFailed | None:
    """The error of a run whose exchange between processes failed, or None for any other error."""
    text = str(error)
    return RunFailed(watch.sentence()) if any(sign in text for sign in _LOST) else None


def _ended(number: int, code: int) -> str:
    how = f"was killed (signal {-code})" if code < 0 else f"ended with exit code {code}"
    return f"process {number} {how}"


def _this_command() -> list[str]:
    import __main__

    spec = getattr(__main__, "__spec__", None)
    if spec is not None:
        return [sys.executable, "-m", spec.name, *sys.argv[1:]]
    if not sys.argv[0] or not Path(sys.argv[0]).is_file():
        raise UserError(
            "Several processes are started from a script or from the command line, not from a notebook or a prompt: "
            "leave `devices` out here, or put the call into a file."
        )
    return [sys.executable, str(Path(sys.argv[0]).absolute()), *sys.argv[1:]]
