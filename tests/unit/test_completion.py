"""The shell is offered the names that there are, at once; a value that is nearly right is told which one is meant."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from typing import Literal

import pytest

from oche.cli.completion import OFFERED, names, values
from oche.cli.lists import LISTS
from oche.config import build
from oche.data import SETS
from oche.errors import UserError
from oche.methods import METHODS
from oche.methods.budgets import NAMES
from oche.spaces import SPACES
from oche.spaces.rivals import RIVALS
from oche.tasks import TASKS
from oche.training.export import FORMATS
from oche.training.protocols import PROTOCOLS
from oche.watch.named import PROBES
from oche.watch.trackers import TRACKERS


@pytest.mark.parametrize(
    ("kind", "registry"),
    [
        ("methods", METHODS), ("spaces", SPACES), ("tasks", TASKS), ("protocols", PROTOCOLS), ("probes", PROBES), ("trackers", TRACKERS),
        ("rivals", RIVALS), ("data", SETS), ("budgets", NAMES),
    ],
)  # fmt: skip
def test_names_are_those_of_the_registry(kind: str, registry: Iterable[str]) -> None:
    assert names(kind) == tuple(registry)


def test_other_values_are_those_of_their_lists() -> None:
    assert set(OFFERED["formats"][1]) >= set(FORMATS)
    assert set(OFFERED["kind"][1]) == set(LISTS)


def offered(option: str, beginning: str) -> list[str]:
    complete = values(option)
    assert complete
    return complete(beginning)


def test_a_beginning_is_completed() -> None:
    assert offered("method", "darts_m") == ["darts_minus"]
    assert "rf_gdas" in offered("method", "rf_g")
    assert offered("rivals", "resnet8,ds") == ["resnet8,ds_cnn"]
    assert offered("precision", "b") == ["bf16"]
    assert values("epochs") is None


@pytest.mark.slow
def test_the_shell_is_answered_without_torch() -> None:
    asked = {"_OCHE_COMPLETE": "complete_bash", "COMP_WORDS": "oche search --space nb", "COMP_CWORD": "3"}
    code = (
        "import sys, atexit; from oche.cli.main import app\n"
        "try: app(prog_name='oche')\nfinally: assert 'torch' not in sys.modules"
    )
    ended = subprocess.run([sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True)
    assert ended.stdout.split() == ["nb201"], ended.stderr


def test_the_nearest_literal_is_named() -> None:
    def make(mode: Literal["halving", "best"] | None = None) -> None: ...

    with pytest.raises(UserError, match="must be 'halving' or 'best' or none, not 'halvin'; did you mean 'halving'"):
        build(make, {"mode": "halvin"}, "method")
    with pytest.raises(UserError, match=r"not 'zzz'\.$"):
        build(make, {"mode": "zzz"}, "method")
