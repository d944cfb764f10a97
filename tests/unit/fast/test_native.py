"""The cache of compiled kernels: a damaged library is compiled again, a folder that others can write to is closed or refused."""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

import pytest

from chaos.dying import attempt
from oche.fast.backends import native


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Compilations, which here write a few bytes."""
    made: list[Path] = []

    def fake(command: object, to: Path) -> None:
        to.write_bytes(b"library" * 100)
        made.append(to)

    monkeypatch.setattr(native, "_compile", fake)
    monkeypatch.setattr(
        native.subprocess, "run", lambda *a, **k: native.subprocess.CompletedProcess(a, 0, b"version 1")
    )
    return made


def test_a_library_is_compiled_once(compiled: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    path = native.build("c++", "DEFAULT", folder)
    assert native.build("c++", "DEFAULT", folder) == path
    assert len(compiled) == 1
    assert path.read_bytes().startswith(b"library" * 100 + native.SEAL)


def test_every_flipped_bit_and_every_cut_compiles_it_again(compiled: list[Path], tmp_path: Path) -> None:
    path = native.build("c++", "DEFAULT", tmp_path)
    data = path.read_bytes()
    damaged = [data[:length] for length in range(0, len(data), 14)]
    for bit in range(0, 8 * len(data), 29):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    assert len(damaged) >= 200 + 50
    for n, content in enumerate([*damaged, b"", data + b"x"], start=2):
        path.write_bytes(content)
        assert native.build("c++", "DEFAULT", tmp_path).read_bytes() == data
        assert len(compiled) == n


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
def test_nobody_else_may_write_to_the_folder(
    compiled: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o777)
    native.build("c++", "DEFAULT", tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    os.chown(tmp_path, 4712, -1) if os.geteuid() == 0 else monkeypatch.setattr(
        os, "getuid", lambda: os.stat(tmp_path).st_uid + 1
    )
    with pytest.raises(OSError, match="belongs to another user"):
        native.build("c++", "DEFAULT", tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
def test_a_library_of_another_user_s_is_compiled_again_whatever_its_seal(compiled: list[Path], tmp_path: Path) -> None:
    """Anyone can seal what he puts into a folder that was open to him: owner and permissions decide, those of a link's target too."""
    path = native.build("c++", "DEFAULT", tmp_path)
    planted = tmp_path / "planted"
    planted.write_bytes(path.read_bytes())

    def open_to_others() -> None:
        path.chmod(0o777)

    def of_another() -> None:
        os.chown(path, 4712, -1)

    def linked() -> None:
        planted.chmod(0o666)
        path.unlink()
        path.symlink_to(planted)

    ways = [open_to_others, linked, *([of_another] if os.geteuid() == 0 else [])]
    for n, plant in enumerate(ways, start=2):
        plant()
        native.build("c++", "DEFAULT", tmp_path)
        assert len(compiled) == n
        assert path.stat().st_mode & 0o777 == 0o755
        assert not path.is_symlink()


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
def test_a_user_whose_files_others_may_write_to_compiles_once(compiled: list[Path], tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        native.build("c++", "DEFAULT", tmp_path / "cache")
        native.build("c++", "DEFAULT", tmp_path / "cache")
    finally:
        os.umask(before)
    assert len(compiled) == 1


# ---------------------------------------------------------------------- memory that runs out in a kernel


@pytest.mark.skipif(native.kernels() is None, reason="needs compiled kernels")
def test_new_that_fails_takes_the_reserve_and_the_call_ends_with_an_error() -> None:
    """As a kernel would by `new`, under a limit that leaves 100 MiB beside the 64 in reserve."""
    found = native.kernels()
    assert found

    def work() -> None:
        found.library.oche_prepare()
        status = Path("/proc/self/status").read_text()
        size = int(status.split("VmSize:")[1].split()[0]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (size + (100 << 20), resource.RLIM_INFINITY))
        new = ctypes.CDLL("libstdc++.so.6")._Znwm
        new.argtypes, new.restype = [ctypes.c_size_t], ctypes.c_void_p
        found.check_memory()
        for _ in range(500):  # what earlier tests have freed comes first
            assert new(8 << 20), "the reserve was not let go"
            if found.short.value:
                break
        with pytest.raises(MemoryError, match="could not allocate"):
            found.check_memory()
        assert found.short.value == 0

    assert attempt(work) == 0
