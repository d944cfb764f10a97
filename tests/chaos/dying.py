"""Children that work until something ends them, and what is compared afterwards: two runs, file by file, bit by bit."""

from __future__ import annotations

import io
import itertools
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from oche.run import Run, digests

MEASURED = {"seconds", "images_per_second", "memory_mib", "checkpoint_share"}
SITES = ("before rename", "after rename", "half a log line", "after a log line")

Act = Callable[[], None]
"""What happens to a process at a moment: it dies, or its disk is filled."""


def die() -> None:
    """Ends this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(site: str, n: int) -> None:
    """From now on this process kills itself at the n-th system call of that kind."""
    act_at(site, n, die)


def act_at(site: str, n: int, act: Act) -> None:
    """From now on `act` happens at the n-th system call of that kind."""
    calls, rename, write = itertools.count(1), os.replace, os.write

    def renamed(source: os.PathLike[str], target: os.PathLike[str]) -> None:
        hit = "rename" in site and next(calls) == n
        if hit and site.startswith("before"):
            assert Path(source).exists()
            act()
        rename(source, target)
        if hit and site.startswith("after"):
            act()

    def written(stream: int, data: bytes) -> int:
        hit = "log" in site and next(calls) == n
        if hit and site.startswith("before"):
            act()
        done = write(stream, data[: len(data) // 2] if hit and site.startswith("half") else data)
        if hit:
            act()
        return done

    os.replace, os.write = renamed, written  # type: ignore[assignment]


def die_while_compiling(n: int, seconds: float) -> None:
    """From now on this process and the compilers that it runs are killed so many seconds after its n-th call of one."""
    os.setsid()
    calls = itertools.count(1)

    def group() -> None:
        os.killpg(0, signal.SIGKILL)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "subprocess.Popen" and next(calls) == n:
            timer = threading.Timer(seconds, group)
            timer.daemon = True
            timer.start()

    sys.addaudithook(hook)


def attempt(work: Callable[[], object], arm: Act | None = None, seconds: float | None = None) -> int:
    """Forks a child that works, armed, and kills it after `seconds` if given. Returns the signal that ended it, 0 where it finished."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that other tests left threads idle; a child uses none of theirs
        pid = os.fork()
    if pid == 0:
        code = 3
        try:
            if arm:
                arm()
            work()
            code = 0
        finally:
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed instead of being killed"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


# ---------------------------------------------------------------------- being equal


def log(run: Run) -> list[dict[str, object]]:
    """The log without what was measured."""
    return [{k: v for k, v in record.items() if k not in MEASURED} for record in run.records()]


def flat(tree: object, path: str = "") -> dict[str, object]:
    """A nested checkpoint as path -> bytes of a tensor, or a plain value."""
    if isinstance(tree, torch.Tensor):
        return {path: (str(tree.dtype), tuple(tree.shape), tree.detach().contiguous().numpy().tobytes())}
    if isinstance(tree, dict):
        return {k: v for name, leaf in tree.items() for k, v in flat(leaf, f"{path}/{name}").items()}
    if isinstance(tree, list | tuple):
        return {k: v for n, leaf in enumerate(tree) for k, v in flat(leaf, f"{path}/{n}").items()}
    return {path: tree}


def content(run: Run, name: str) -> object:
    """A file's content: its bytes, or those of its tensors and arrays."""
    data = run.read(name)
    if name.endswith(".pt"):
        return flat(torch.load(io.BytesIO(data), weights_only=True))
    if name.endswith(".npz"):
        with np.load(io.BytesIO(data)) as arrays:
            return {key: (arrays[key].dtype, arrays[key].shape, arrays[key].tobytes()) for key in arrays.files}
    return data


def files(run: Run) -> set[str]:
    """All but logs and their lengths in the digests, which hold times, locks, and temporaries, which a killed process may leave."""
    found = (path for path in run.path.rglob("*") if path.is_file() and path.suffix != ".tmp")
    return {str(path.relative_to(run.path)) for path in found if path.name not in (Run.LOG, Run.LOCK, digests.FILE)}


def logs(run: Run) -> dict[str, list[dict[str, object]]]:
    """The log of the run and of those that lie within it, by folder."""
    return {str(p.parent.relative_to(run.path)): log(Run(p.parent)) for p in sorted(run.path.rglob(Run.LOG))}


def assert_same_run(one: Run, other: Run) -> None:
    """Both folders hold the same files, of the same content, and the same logs."""
    assert logs(one) == logs(other)
    assert files(one) == files(other)
    for name in files(one):
        assert content(one, name) == content(other, name), name


def fresh(path: Path) -> Run:
    """A run's folder in which nothing has happened yet."""
    run = Run.create(path)
    run.write(Run.CONFIG, b"")
    return run
