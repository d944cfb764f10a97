"""How much memory may still be taken: each limit by itself, read from an account of the system that is made up, and the real one."""

from __future__ import annotations

import errno
import os
import resource
import warnings
from pathlib import Path

import pytest

from oche.data import memory
from oche.data.memory import room
from oche.errors import ran_out

GIB = 2**30


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system with 8 GiB available, a process of 1 GiB and no limits; returns the folder with `proc` and `cgroup`."""
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    write(tmp_path / "proc/meminfo", f"MemTotal: {16 * 2**20} kB\nMemAvailable: {8 * 2**20} kB\nHugePages_Total: 0\n")
    write(tmp_path / "proc/self/status", f"Name:\tpython\nVmSize:\t{2**20} kB\nVmData:\t{2**19} kB\n")
    write(tmp_path / "proc/self/cgroup", "")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def said() -> tuple[float, str]:
    return room().bytes / GIB, room().bound


def test_what_the_machine_has(system: Path) -> None:
    assert said() == (8.0, "this machine")
    (system / "proc/meminfo").unlink()  # not Linux: all there is
    assert room().bytes == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def group(folder: Path, most: str, taken: float, cached: float, *, version: int) -> None:
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")}
    limit, usage, stat = names.get(version, ("memory.max", "memory.current", "inactive_file"))
    write(folder / limit, f"{most}\n")
    write(folder / usage, f"{int(taken * GIB)}\n")
    write(folder / "memory.stat", f"cache 7\n{stat} {int(cached * GIB)}\n")


def test_a_control_group_of_version_2_and_those_it_lies_in(system: Path) -> None:
    write(system / "proc/self/cgroup", "0::/user/job\n")
    group(system / "cgroup/user/job", "max", 1, 0, version=2)
    assert said() == (8.0, "this machine")
    group(system / "cgroup/user", str(5 * GIB), 2.0, 0.5, version=2)
    assert said() == (3.5, "the control group (cgroup)")
    group(system / "cgroup/user/job", str(2 * GIB), 1.5, 0.25, version=2)
    assert said() == (0.75, "the control group (cgroup)")
    group(system / "cgroup/user/job", str(GIB), 1.5, 0.0, version=2)
    assert said() == (0.0, "the control group (cgroup)")


def test_a_control_group_of_version_1_seen_from_inside_a_container(system: Path) -> None:
    """The path is the host's, which the container does not show: its own group is the root of the mount."""
    write(system / "proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/docker/0123\n0::/\n")
    group(system / "cgroup/memory", "9223372036854771712", 3, 0, version=1)
    assert said() == (8.0, "this machine")
    group(system / "cgroup/memory", str(4 * GIB), 3, 1, version=1)
    assert said() == (2.0, "the control group (cgroup)")


@pytest.mark.parametrize(("name", "left", "bound"), [("AS", 2.0, "`ulimit -v`"), ("DATA", 2.5, "`ulimit -d`")])
def test_limits_of_the_process(
    system: Path, monkeypatch: pytest.MonkeyPatch, name: str, left: float, bound: str
) -> None:
    limit = getattr(resource, f"RLIMIT_{name}")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (3 * GIB if which == limit else -1, -1))
    assert said() == (left, bound)


def test_the_real_ones() -> None:
    """A process under `ulimit -v` is told less, and can allocate what it is told: nearly all of it fits, more does not."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 2**20 < room().bytes <= total
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that other tests left threads idle; the child uses none of theirs
        child = os.fork()
    if child == 0:
        os._exit(_allocating())
    _, status = os.waitpid(child, 0)
    assert os.WEXITSTATUS(status) == 0


def _allocating() -> int:
    """0 where half a GiB that a limit leaves is what `room` says and what can be had."""
    try:
        allowed = int(memory._kib(Path("/proc/self/status"))["VmSize"]) + GIB // 2
        resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
        left = room()
        if left.bound != "`ulimit -v`" or not 0.4 * GIB < left.bytes <= GIB // 2:
            return 2
        bytearray(int(0.9 * left.bytes))
    except MemoryError:
        return 3
    try:
        bytearray(int(1.2 * left.bytes))
    except MemoryError as error:
        return 0 if ran_out(error) else 4
    return 5


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
            True,
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("a bug"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_for_want_of_memory(error: Exception, expected: bool) -> None:
    assert ran_out(error) is expected
