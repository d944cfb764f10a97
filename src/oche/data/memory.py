"""Memory that this process may still take, the machine's within the limits of control groups and `ulimit`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PROC = Path("/proc")
GROUPS = Path("/sys/fs/cgroup")
"""Where control groups are mounted: version 2 itself, or version 1 with a folder per controller."""

_ULIMITS = (("RLIMIT_AS", "VmSize", "`ulimit -v`"), ("RLIMIT_DATA", "VmData", "`ulimit -d`"))


@dataclass(frozen=True)
class Room:
    """Bytes that a new allocation could get, and what bounds them."""

    bytes: float
    bound: str


def room() -> Room:
    """The least of what the machine, each control group and each limit of the process leaves."""
    return min((_machine(), *_groups(), *_limits()), key=lambda one: one.bytes)


def _machine() -> Room:
    """What is available; where the system does not say, all there is."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Room(_kib(PROC / "meminfo").get("MemAvailable", total), "this machine")


def _groups() -> Iterator[Room]:
    """What this process's control groups and those they lie in leave, where they set a limit; pages that only cache files count as free."""
    for line in _text(PROC / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, names = GROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mount, names = GROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        for folder in (mount / inner, *(mount / outer for outer in inner.parents)):
            most, taken = _number(folder / names[0]), _number(folder / names[1])
            if most is not None and most < 1 << 60:  # version 1 says "no limit" with a number of that size
                cached = [words[1] for words in _words(folder / "memory.stat") if words[0] == names[2]]
                yield Room(max(0.0, most - (taken or 0.0) + sum(map(float, cached))), "the control group (cgroup)")


def _limits() -> Iterator[Room]:
    """What the limits of the process leave beside what it has."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    used = _kib(PROC / "self" / "status")
    for name, taken, bound in _ULIMITS:
        soft, _ = resource.getrlimit(getattr(resource, name))
        if soft != resource.RLIM_INFINITY:
            yield Room(max(0.0, soft - used.get(taken, 0.0)), bound)


def _kib(path: Path) -> dict[str, float]:
    """Bytes by name, of a file with lines such as "VmSize:   1234 kB"."""
    return {words[0].rstrip(":"): float(words[1]) * 1024 for words in _words(path) if words[-1] == "kB"}


def _words(path: Path) -> list[list[str]]:
    return [words for line in _text(path).splitlines() if len(words := line.split()) > 1]


def _number(path: Path) -> float | None:
    text = _text(path).strip()
    return float(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # no such file, no such system, or not ours to read
        return ""
