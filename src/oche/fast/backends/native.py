"""Compiles the kernels once per machine and loads them: `kernels()`. Where that is impossible, a warning says so once.

The system's C++ compiler ($CXX, c++, g++ or clang++) builds the files of `SOURCES` at first use for the instruction set that
this processor has; the result is kept in $OCHE_CACHE or the user's cache folder under a name made of the source, the compiler and the
instruction set, so that a home shared by several machines never runs a foreign instruction, with its digest: a damaged file is
compiled again. OCHE_KERNELS=off does without.
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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

log = logging.getLogger(__name__)

CSRC = Path(__file__).parents[1] / "csrc"
SOURCES = tuple(sorted(CSRC.rglob("*.cpp")))
HEADERS = tuple(sorted(CSRC.rglob("*.h")))
SEAL = b"oche sha256"
"""Stands behind a cached library, before the digest of all that precedes it; the loader ignores what lies behind the sections."""

COMMON = ("-O3", "-std=c++17", "-fPIC", "-ffp-contract=fast")
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

    @staticmethod
    def of(path: Path, instructions: str) -> Kernels:
        """The library at `path`, loaded, with memory in reserve for the time when there is none."""
        library = ctypes.CDLL(str(path))
        library.oche_prepare()
        return Kernels(library, instructions)

    @cached_property
    def short(self) -> ctypes.c_int:
        """Not 0 once memory has run out in a call."""
        return ctypes.c_int.in_dll(self.library, "oche_short")

    def check_memory(self) -> None:
        """Raises MemoryError if memory ran out in the last call, whose results are of no use then."""
        if self.short.value:
            self.library.oche_prepare()
            raise MemoryError("the compiled kernels could not allocate what they need")


@functools.cache
def kernels() -> Kernels | None:
    """The compiled kernels, or None where there are none; the reason is logged once."""
    found = load()
    if isinstance(found, Kernels):
        return found
    log.log(logging.INFO if switched_off("OCHE_KERNELS") else logging.WARNING, "%s: cells run in plain torch", found)
    return None


def load() -> Kernels | str:
    """The kernels, compiled now if they are not in the cache, or why there are none."""
    if switched_off("OCHE_KERNELS"):
        return "compiled kernels are switched off (OCHE_KERNELS)"
    compiler = compiler_path()
    if compiler is None:
        return "no C++ compiler was found, so a search takes several times longer (install g++, or set CXX)"
    capability = torch.backends.cpu.get_cpu_capability()
    instructions = capability if capability in SETS else "DEFAULT"
    try:
        return Kernels.of(build(compiler, instructions, cache()), instructions)
    except (OSError, subprocess.SubprocessError) as error:
        said = error.stderr.decode(errors="replace")[-500:] if isinstance(error, subprocess.CalledProcessError) else ""
        return f"the kernels could not be compiled ({error}) {said}".rstrip()


def switched_off(variable: str) -> bool:
    """True if an environment variable says "off"."""
    return os.environ.get(variable, "").lower() in ("off", "0", "no")


def build(compiler: str, instructions: str, folder: Path) -> Path:
    """Path of the library for one instruction set, compiled if it is not there yet. Raises OSError or CalledProcessError."""
    flags = (*COMMON, *SETS[instructions])
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, timeout=60).stdout
    texts = [path.read_bytes() for path in (*SOURCES, *HEADERS)]
    key = hashlib.sha256(b"\0".join([*texts, version, " ".join(flags).encode()])).hexdigest()[:16]
    path = folder / f"kernels-{platform.machine()}-{instructions.lower()}-{key}.so"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _guard(folder)
    if not _whole(path):
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / "kernels.so"
            _compile([compiler, *flags], made)
            with made.open("ab") as stream:
                stream.write(SEAL + hashlib.sha256(made.read_bytes()).digest())
                stream.flush()
                os.fsync(stream.fileno())
            made.chmod(0o755)
            os.replace(made, path)  # two processes may both get here: the last one wins, both files are whole
    return path


def _guard(folder: Path) -> None:
    """Takes the right to write to the folder away from everyone but its owner. Raises OSError where that is another user."""
    if os.name != "posix":
        return
    found = folder.stat()
    if found.st_uid not in (os.getuid(), 0):
        raise OSError(f"the folder {folder} belongs to another user: set OCHE_CACHE to one of your own")
    if found.st_mode & 0o022:
        folder.chmod(found.st_mode & ~0o022)


def _whole(path: Path) -> bool:
    """True if the library is there and is what was compiled: damaged and foreign files are compiled anew.

    Anyone can make a seal, so a file that others own or may write to is foreign: the folder may have been open to them before.
    """
    if not path.is_file():
        return False
    if os.name == "posix" and ((found := path.stat()).st_uid not in (os.getuid(), 0) or found.st_mode & 0o022):
        return False
    data = path.read_bytes()
    body, seal, sealed = data[: -len(SEAL) - 32], data[-len(SEAL) - 32 : -32], data[-32:]
    return seal == SEAL and hashlib.sha256(body).digest() == sealed


def _compile(command: Sequence[str], made: Path) -> None:
    """The library `made` of all sources, each compiled by itself; with OpenMP, or on one thread where the compiler has none."""

    def run(*arguments: str) -> None:
        subprocess.run([*command, *arguments], check=True, capture_output=True, timeout=600)

    def both(*openmp: str) -> None:
        objects = [str(made.with_name(f"{number}.o")) for number, _ in enumerate(SOURCES)]
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda source, to: run("-c", *openmp, str(source), "-o", to), SOURCES, objects))
        run("-shared", *openmp, *objects, "-o", str(made))

    try:
        both("-fopenmp")
    except subprocess.CalledProcessError:
        both()


def cache() -> Path:
    """Folder of the compiled libraries."""
    if "OCHE_CACHE" in os.environ:
        return Path(os.environ["OCHE_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "oche"


def compiler_path() -> str | None:
    """The first of $CXX, c++, g++ and clang++ that is there."""
    wanted = os.environ.get("CXX")
    return next((found for name in (wanted, "c++", "g++", "clang++") if name and (found := shutil.which(name))), None)
