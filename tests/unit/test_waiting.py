"""The `oche` command has threads that wait sleep soon; other programs and users' own settings are left alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from oche.cli.waiting import BRIEF, CHOSEN, wait_briefly


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CHOSEN:
        monkeypatch.setenv(name, "")  # so that what a test sets is taken back
        monkeypatch.delenv(name)


def test_waiting_is_set_where_nothing_is_said() -> None:
    wait_briefly()
    assert {name: os.environ[name] for name in BRIEF} == BRIEF
    assert "OMP_WAIT_POLICY" not in os.environ


@pytest.mark.parametrize("name", CHOSEN)
def test_what_a_user_sets_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "7")
    wait_briefly()
    assert {other: os.environ.get(other) for other in CHOSEN} == dict.fromkeys(CHOSEN) | {name: "7"}


def test_the_command_sets_it_before_torch_is_there_and_an_import_never() -> None:
    """The command is one that fails at once; what it leaves in the environment is printed when it ends."""
    said = "import atexit, os, sys; atexit.register(lambda: print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules))\n"
    command = "from oche.cli.main import main; sys.argv = ['oche', '--no-such-option']; main()"
    imported = "import oche, oche.cli.main; import oche.cli.waiting"
    for code, wanted in ((command, "10000 False"), (imported, "None False")):
        done = subprocess.run([sys.executable, "-c", said + code], capture_output=True, text=True, check=False)
        assert done.stdout.splitlines()[-1] == wanted
