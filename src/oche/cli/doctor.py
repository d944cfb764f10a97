"""examine(): what this machine can do for a search, and why not more. `oche doctor` prints it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TypedDict

import torch

from oche.cli.waiting import CHOSEN
from oche.fast.backends.native import cache, compiler_path, load, switched_off

TIERS = {
    "kernels": "cells run in compiled kernels where there are any for them; the table before a search says which",
    "portable": "cells share their work in plain PyTorch",
    "plain": "every candidate runs by itself",
}


HALF = {
    "kernels": "cells in compiled kernels compute in single precision, which is faster; those with depthwise operations keep in bf16 "
    "what their backward pass reads; all others share their work in plain PyTorch",
    "portable": "cells share their work in plain PyTorch",
    "plain": "every candidate runs by itself",
}
"""By tier: how cells run on the CPU with `--precision bf16`. Alpha, op weights and batch-norm statistics are in single precision."""


class Examined(TypedDict):
    """`tier` is a key of TIERS, `why` what settled it, `half` how bf16 is served; `compiler`, `cuda` are empty where there is none.

    `extras` has the version of each optional package, or None; `settings` the environment variables that oche reads and that are set.
    """

    tier: str
    why: str
    half: str
    instructions: str
    compiler: str
    cache: str
    threads: int
    cores: int
    processor: str
    cuda: list[str]
    versions: dict[str, str]
    extras: dict[str, dict[str, str | None]]
    settings: dict[str, str]


def examine() -> Examined:
    """Looks at this machine. The kernels are compiled, if they were not, so that the answer is what a search would meet."""
    tier, why = _tier()
    return {
        "tier": tier,
        "why": why,
        "half": HALF[tier],
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "compiler": _compiler(),
        "cache": str(cache()),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 1,
        "processor": platform.machine(),
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": {
            "oche": version("oche"),
            "torch": version("torch"),
            "python": platform.python_version(),
        },
        "extras": _extras(),
        "settings": {name: value for name, value in sorted(os.environ.items()) if name in READ},
    }


READ = ("CXX", "OCHE_CACHE", "OCHE_DATA", "OCHE_FAST", "OCHE_KERNELS", "OMP_NUM_THREADS", "XDG_CACHE_HOME", *CHOSEN)
"""Environment variables that change what oche does."""


def rows(found: Examined) -> list[tuple[str, str]]:
    """Name and line, as they are printed."""
    told = [
        ("tier", f"{found['tier']}: {TIERS[found['tier']]}"),
        ("why", found["why"]),
        ("in bf16", found["half"]),
        ("compiler", found["compiler"] or "none"),
        ("kernels' cache", found["cache"]),
        (
            "processor",
            f"{found['processor']}, {found['instructions']}, {found['cores']} core(s), {found['threads']} thread(s)",
        ),
        ("accelerator", ", ".join(found["cuda"]) or "none that PyTorch sees"),
        ("versions", ", ".join(f"{name} {number}" for name, number in found["versions"].items())),
    ]
    for extra, packages in found["extras"].items():
        missing = [name for name, number in packages.items() if number is None]
        there = ", ".join(f"{name} {number}" for name, number in packages.items() if number is not None)
        absent = f"{', '.join(missing)} not installed: pip install 'oche[{extra}]'"
        told.append((f"extra {extra}", "; ".join(part for part in (there, absent if missing else "") if part)))
    return told + [("environment", f"{name}={value}") for name, value in found["settings"].items()]


def _tier() -> tuple[str, str]:
    if switched_off("OCHE_FAST"):
        return "plain", "fused cells are switched off (OCHE_FAST)"
    kernels = load()
    if isinstance(kernels, str):
        return "portable", kernels
    return "kernels", f"compiled for {kernels.instructions}, loaded from {kernels.library._name}"


def _compiler() -> str:
    """Path and version of the compiler, or what it said."""
    path = compiler_path()
    if path is None:
        return ""
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"{path}, which does not run: {error}"
    return f"{path}: {said.splitlines()[0] if said else 'no version'}"


def _extras() -> dict[str, dict[str, str | None]]:
    """Optional group of packages -> package -> installed version, as this installation's metadata lists them."""
    found: dict[str, dict[str, str | None]] = {}
    for line in requires("oche") or []:
        name, _, marker = line.partition(";")
        extra = re.search(r"extra == ['\"](\w+)['\"]", marker)
        package = re.split(r"[\s<>=!~\[]", name.strip())[0]
        if extra and extra[1] != "dev" and package != "oche":
            found.setdefault(extra[1], {})[package] = _installed(package)
    return found


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
