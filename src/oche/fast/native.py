"""Where do the compiled kernels come from? `kernels()` compiles them once per machine, and says once where that is impossible.

The system's C++ compiler ($CXX, c++, g++ or clang++) builds `kernels.cpp` at first use for the instruction set that this
processor has; the result is kept in $OCHE_CACHE or the user's cache folder under a name made of the source, the compiler and the
instruction set, so that a home shared by several machines never runs a foreign instruction. OCHE_KERNELS=off does without.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
SOURCES = sorted(FOLDER.glob("*.cpp"))  # they include the headers beside them
COMMON = ("-O3", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=fast")
SETS: dict[str, tuple[str, ...]] = {  # torch's name of the processor's capability -> flags
    "AVX512": (
        "-DVECTOR_BYTES=64",
        *("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma", "-mprefer-vector-width=512"),
    ),
    "AVX2": ("-DVECTOR_BYTES=32", "-mavx2", "-mfma"),
    "DEFAULT": ("-DVECTOR_BYTES=16",),
}


@dataclass(frozen=True)
class Kernels:
    """The loaded library, and the instruction set it was built for."""

    library: ctypes.CDLL
    instructions: str


@functools.cache
def kernels() -> Kernels | None:
    """The compiled kernels, or None where there are none; the reason is logged once."""
    if os.environ.get("OCHE_KERNELS", "").lower() in ("off", "0", "no"):
        log.info("compiled kernels are switched off (OCHE_KERNELS): cells run in plain torch")
        return None
    capability = torch.backends.cpu.get_cpu_capability()
    instructions = capability if capability in SETS else "DEFAULT"
    compiler = _compiler()
    if compiler is None:
        log.warning("no C++ compiler found: cells run in plain torch, several times slower; install g++ or set CXX")
        return None
    try:
        return Kernels(ctypes.CDLL(str(build(compiler, instructions, cache()))), instructions)
    except (OSError, subprocess.SubprocessError) as error:
        said = error.stderr.decode(errors="replace")[-500:] if isinstance(error, subprocess.CalledProcessError) else ""
        log.warning("the kernels could not be compiled, cells run in plain torch: %s %s", error, said)
        return None


def build(compiler: str, instructions: str, folder: Path) -> Path:
    """Path of the library for one instruction set, compiled if it is not there yet. Raises OSError or CalledProcessError."""
    flags = (*COMMON, *SETS[instructions])
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, timeout=60).stdout
    read = [path.read_bytes() for path in (*SOURCES, *sorted(FOLDER.glob("*.h")))]
    key = hashlib.sha256(b"\0".join([*read, version, " ".join(flags).encode()])).hexdigest()[:16]
    path = folder / f"kernels-{platform.machine()}-{instructions.lower()}-{key}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / "kernels.so"
            _compile([compiler, *flags, *map(str, SOURCES), "-o", str(made)])
            os.replace(made, path)  # two processes may both get here: the last one wins, both files are whole
    return path


def _compile(command: list[str]) -> None:
    """With OpenMP, or on one thread where the compiler has none."""
    try:
        subprocess.run([*command, "-fopenmp"], check=True, capture_output=True, timeout=600)
    except subprocess.CalledProcessError:
        subprocess.run(command, check=True, capture_output=True, timeout=600)


def cache() -> Path:
    """Folder of the compiled libraries."""
    if "OCHE_CACHE" in os.environ:
        return Path(os.environ["OCHE_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "oche"


def _compiler() -> str | None:
    wanted = os.environ.get("CXX")
    return next((found for name in (wanted, "c++", "g++", "clang++") if name and (found := shutil.which(name))), None)
