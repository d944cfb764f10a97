"""A short sample of `make fuzz`, and the harness itself on parsers that go wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fuzz.harness import FORGET, Target, fuzz, targets, tried
from oche.errors import UserError

NAMES = (
    *("genotype", "genotype json", "toml", "assignment", "log", "digests", "idx", "idx gz", "npz", "image", "state", "run.toml"),
    *("card.json", "weights.safetensors"),
)  # fmt: skip


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return targets(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_crashes_or_hangs(name: str, known: dict[str, Target]) -> None:
    outcomes = fuzz(name, known[name], 40, seed=1)
    assert outcomes.keys() <= {"value", "refused"}


def test_every_target_is_sampled(known: dict[str, Target]) -> None:
    assert set(NAMES) == known.keys()


def crash(data: bytes) -> object:
    return data[10_000]


def hang(data: bytes) -> object:
    while True:
        pass


def silent(data: bytes) -> object:
    raise UserError(" ")


@pytest.mark.parametrize(
    ("parse", "outcome"), [(crash, "crash: IndexError"), (silent, "crash: an empty"), (bytes, "value")]
)
def test_the_harness_sees_what_goes_wrong(parse: Callable[[bytes], object], outcome: str) -> None:
    assert tried(parse, b"x").startswith(outcome)


def test_the_harness_ends_what_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz.harness.HANG", 0.05)
    assert tried(hang, b"x").startswith("hang")


@pytest.mark.skipif(not FORGET.exists(), reason="the peak of memory cannot be forgotten here")
def test_what_takes_memory_step_by_step_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each input by what it takes above the start, not above the largest one before it."""
    monkeypatch.setattr("fuzz.harness.MEMORY", 60.0)
    sizes = iter((0, *(40 + 10 * n for n in range(6))))
    outcomes = fuzz("x", Target((b"seed",), lambda data: b"x" * (next(sizes) << 20)), 6, 0)
    assert outcomes["memory: over 60 MiB above the start"] >= 3
    assert outcomes["value"] >= 2


def test_an_input_that_goes_wrong_is_kept(tmp_path: Path) -> None:
    outcomes = fuzz(
        "x", Target((b"seed",), lambda data: data if data == b"seed" else crash(data)), 50, 0, tmp_path / "out"
    )
    assert any(kind.startswith("crash") for kind in outcomes)
    assert len(list((tmp_path / "out").iterdir())) == 1
