"""`oche doctor` describes a machine: the tier that serves, and why not a faster one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from oche.cli import doctor
from oche.cli import main as cli
from oche.cli.doctor import HALF, TIERS, examine, rows
from oche.fast.backends import native


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OCHE_FAST", "OCHE_KERNELS"):
        monkeypatch.delenv(name, raising=False)


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_the_tier_is_what_the_kernels_are() -> None:
    found = examine()
    compiled = native.kernels()
    assert found["tier"] == ("portable" if compiled is None else "kernels")
    if compiled is not None:
        assert compiled.instructions in found["why"]
        assert str(native.cache()) in found["why"]
        assert found["compiler"].startswith(native.compiler_path() or "?")


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    found = examine()
    assert (found["tier"], found["compiler"]) == ("portable", "")
    assert "no C++ compiler" in found["why"]
    assert ("compiler", "none") in rows(found)


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = 'test "$1" = --version && echo "brokenc++ 1.0" && exit 0\necho "out of order" >&2\nexit 1'
    monkeypatch.setenv("CXX", str(script(tmp_path / "brokenc++", said)))
    monkeypatch.setenv("OCHE_CACHE", str(tmp_path / "cache"))
    found = examine()
    assert found["tier"] == "portable"
    assert "out of order" in found["why"]
    assert found["compiler"].endswith("brokenc++: brokenc++ 1.0")
    assert found["settings"]["OCHE_CACHE"] == str(tmp_path / "cache")


@pytest.mark.parametrize(("variable", "tier"), [("OCHE_KERNELS", "portable"), ("OCHE_FAST", "plain")])
def test_what_is_switched_off(variable: str, tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "off")
    found = examine()
    assert found["tier"] == tier
    assert ("in bf16", HALF[tier]) in rows(found)
    assert variable in found["why"]


def test_extras_are_those_of_the_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "torch>=2",
        "onnx>=1.18 ; extra == 'onnx'",
        'nosuch-package[x]>=2; extra == "ray"',
        "pytest; extra == 'dev'",
    ]
    monkeypatch.setattr(doctor, "requires", lambda _: lines)
    found = examine()
    assert set(found["extras"]) == {"onnx", "ray"}
    assert found["extras"]["ray"] == {"nosuch-package": None}
    told = dict(rows(found))
    assert "pip install 'oche[ray]'" in told["extra ray"]


def test_on_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OCHE_KERNELS", "off")
    monkeypatch.setattr(sys, "argv", ["oche", "doctor", "--json"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert json.loads(capsys.readouterr().out)["tier"] == "portable"
    monkeypatch.setattr(sys, "argv", ["oche", "doctor"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    text = " ".join(capsys.readouterr().out.split())
    assert f"portable: {TIERS['portable']}" in text
    assert "OCHE_KERNELS=off" in text


@pytest.mark.slow
def test_a_search_without_a_compiler_says_so_once_and_works(tmp_path: Path) -> None:
    """A process of its own, whose PATH is empty."""
    out = tmp_path / "run"
    asked = [
        "search",
        "darts",
        "--space",
        "toy",
        "--budget",
        "smoke",
        "--epochs",
        "1",
        "--compare",
        "0",
        "--out",
        str(out),
    ]
    environment = {**os.environ, "PATH": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("CXX", None)
    done = subprocess.run(
        [sys.executable, "-m", "oche.cli.main", *asked], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no C++ compiler was found") == 1
    assert "portable" in done.stdout
    assert (out / "genotype.json").exists()
