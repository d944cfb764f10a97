"""The study of limits reads its rows from what a training leaves behind."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from oche.api.train import train
from oche.run import Run
from oche.training.export import add_to_card
from reference.tiny import tiny_data

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "limits.py"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("limits_study", SCRIPT)
    assert spec
    assert spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_a_row_holds_what_the_training_reached_and_its_costs(script: ModuleType, tmp_path: Path) -> None:
    trained = train(
        "resnet8", data=tiny_data(12), out=tmp_path / "run", protocol="smoke", epochs=1, batch=6, threads=1,
        settings={"space.channels": 8},
    )  # fmt: skip
    add_to_card(Run(tmp_path / "run"), {"int8": {"lost_points": 0.25, "size": {"before": 9, "after": 5}}})
    step = script.Step(tmp_path / "run", ("train",))
    with (tmp_path / "lock").open("w") as lock:
        row = script.outcome(script.Claimed("resnet8", 0, [step], lock), {"search": None, "train": 12.34})
    assert row["test"] == pytest.approx(100 * trained.test.value)
    assert 0 <= row["val"] <= 100
    parameters = sum(p.numel() for p in trained.network().parameters())
    assert row["parameters"] == parameters
    assert row["train_seconds"] == 12.3
    assert (row["int8_lost"], row["int8_size"]) == (0.25, 5)
    assert "search_seconds" not in row


def test_two_processes_take_different_runs_and_none_that_has_ended(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "limits.jsonl").write_text('{"arm": "resnet8", "seed": 0}\n', encoding="utf-8")
    plan = [(arm, 0) for arm in script.PARTS["A"].arms if arm != "resnet8"]

    def claim() -> tuple[tuple[str, int], object]:
        claimed = script.claim("A", tmp_path / "data.npz", tmp_path)
        return (claimed.arm, claimed.seed), claimed.lock

    (first, lock), (second, other) = claim(), claim()
    assert [first, second] == plan[:2]
    lock.close()  # broken off: another process may go on with it
    again, lock = claim()
    assert again == plan[0]
    lock.close()
    other.close()


def test_a_run_that_ended_between_reading_and_locking_is_not_run_twice(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm, other = script.PARTS["A"].arms[:2]
    (tmp_path / "limits.jsonl").write_text(f'{{"arm": "{arm}", "seed": 0}}\n', encoding="utf-8")
    missing = script.missing
    monkeypatch.setattr(script, "missing", lambda part, rows: missing(part, []))
    claimed = script.claim("A", tmp_path / "data.npz", tmp_path)
    assert (claimed.arm, claimed.seed) == (other, 0)
    claimed.lock.close()


def rows_of(script: ModuleType, part: str, seeds: tuple[int, ...], **test: float) -> list[dict[str, object]]:
    """Rows of a part's arms: `test` has the accuracy of some arms, the others have 50; validation is the same."""
    of = script.PARTS[part]
    costs = {"parameters": 70_000, "multiply_adds": 12_000_000, "int8_lost": 0.5}
    return [
        {
            "arm": arm,
            "seed": seed,
            "val": test.get(arm, 50.0) + seed % 3,
            "test": test.get(arm, 50.0) + seed % 3,
            **costs,
        }
        for arm in of.arms
        for seed in seeds
        if arm not in script.ONCE or seed == of.seeds[0]
    ]


def test_validation_chooses_and_fresh_seeds_decide(script: ModuleType) -> None:
    first = rows_of(script, "A", (0, 1, 2), darts_chain=60.0, plain_cnn=58.0)
    assert "0 of 6 seeds" in "".join(script.section("A", first))
    next_ones = list(script.missing("A", first))
    assert next_ones[:3] == [("darts_chain", 10), ("plain_cnn", 10), ("darts_chain", 11)]
    assert next_ones[-1] == ("random_chain", 15)
    assert len(next_ones) == 18
    fresh = [
        row | {"test": row["test"] + 0.01 * row["seed"] * (row["arm"] == "darts_chain")}
        for row in rows_of(script, "A", script.FRESH, darts_chain=60.0, plain_cnn=61.0)
    ]
    assert not list(script.missing("A", first + fresh))
    says = "\n".join(script.section("A", first + fresh))
    assert "darts_chain less plain_cnn, 6 seeds: -0.88 points" in says
    assert "take plain_cnn" in says
    assert "darts_chain less random_chain, 6 seeds: +10.12 points" in says
    assert "the search wins" in says


def test_a_network_over_its_limit_is_said(script: ModuleType) -> None:
    rows = rows_of(script, "cifar100", (0,))
    assert "keeps the limits: True" in "".join(script.section("cifar100", rows))
    rows[0]["parameters"] = 80_001
    assert "keeps the limits: False" in "".join(script.section("cifar100", rows))


def test_runs_that_ended_elsewhere_are_not_run_again(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = tmp_path / "known"
    known.mkdir()
    rows = rows_of(script, "C", (0,))
    (known / "limits_c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.setattr(script.Step, "run", lambda self: pytest.fail("ran"))
    given = ["limits.py", "data.npz", str(tmp_path / "runs"), "--part", "C", "--known", str(known)]
    monkeypatch.setattr(sys, "argv", given)
    script.main()
    assert script.read(tmp_path / "runs" / "limits_c.jsonl") == rows
