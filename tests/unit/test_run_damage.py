"""Damage to a run's files is found when they are read: flipped bits, cut files, edits; a killed write is no damage."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from oche.errors import UserError
from oche.run import Run
from oche.run.digests import FILE
from oche.run.records import seal, unseal

CONTENT = {
    Run.CONFIG: b'[request]\nmethod = "darts"\nseed = 0\nspace = "toy"\nbudget = "smoke"\n',
    Run.STATE: bytes(range(256)) * 4,
    Run.stage(0): b"stage" * 50,
    Run.ALPHAS: b"alphas" * 50,
    "network/weights.safetensors": b"weights" * 50,
    "checkpoints/last.safetensors": b"training" * 50,  # beside state.pt, which holds a training too
    "network/card.json": b'{"genotype": "|x~0|", "classes": ["cat", "dog"], "seed": 0}',
    Run.genotype(3): b'{"space": "toy", "epoch": 3, "cell": [[0, 1, "none"]]}',
}
RECORDS = [{"kind": "epoch", "epoch": n, "loss": 1.5 / (n + 1), "genotype": "|a~0|"} for n in range(4)]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.create(tmp_path / "run")
    for name, data in CONTENT.items():
        run.write(name, data)
    for record in RECORDS:
        run.log(record)
    run.seal()
    return run


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("name", CONTENT)
def test_every_flipped_bit_and_every_cut_is_refused(run: Run, name: str) -> None:
    data, rng = CONTENT[name], random.Random(0)
    for bit in rng.sample(range(8 * len(data)), 200):
        run.file(name).write_bytes(flipped(data, bit))
        assert run.changed(name)
        with pytest.raises(UserError, match="damaged or edited"):
            run.read(name)
    for length in rng.sample(range(len(data)), 50):
        run.file(name).write_bytes(data[:length])
        with pytest.raises(UserError, match="damaged or edited"):
            run.read(name)
    run.file(name).write_bytes(data)
    assert run.read(name) == data
    assert not run.changed(name)


def test_a_log_with_any_bit_flipped_or_any_byte_cut_is_refused(run: Run) -> None:
    data = run.file(Run.LOG).read_bytes()
    for bit in range(0, 8 * len(data), 7):  # every line, every byte, every place in a byte
        run.file(Run.LOG).write_bytes(flipped(data, bit))
        with pytest.raises(UserError, match=r"damaged|was cut"):
            run.records()
    for length in range(0, len(data), 5):
        run.file(Run.LOG).write_bytes(data[:length])
        with pytest.raises(UserError, match="was cut"):
            run.records()


def test_a_damaged_table_of_digests_gives_a_sentence_or_changes_nothing(run: Run) -> None:
    data = run.file(FILE).read_bytes()
    for bit in random.Random(1).sample(range(8 * len(data)), 400):
        run.file(FILE).write_bytes(flipped(data, bit))
        for name, content in CONTENT.items():
            assert outcome(lambda name=name: run.read(name)) in (content, "refused")
        assert outcome(run.records) in (RECORDS, "refused")


def outcome(read: Callable[[], object]) -> object:
    """Returns what is read, or "refused" where one sentence says why not."""
    try:
        return read()
    except UserError as error:
        return "refused" if "\n" not in str(error) else str(error)


@pytest.mark.parametrize("writes", [1, 3])
def test_a_file_that_is_written_while_it_is_read_is_read_again(
    run: Run, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """A report beside a search, or the further processes of one: each time a digest was read, the file is another one."""
    read, left = Run._bytes, [*range(writes)]

    def late(self: Run, name: str) -> bytes:
        if left:
            self.write(name, b"new %d" % left.pop())
        return read(self, name)

    monkeypatch.setattr(Run, "_bytes", late)
    assert run.read(Run.STATE) == b"new 0"
    run.file(Run.STATE).write_bytes(b"other")
    with pytest.raises(UserError, match="damaged or edited"):
        run.read(Run.STATE)


def test_a_log_that_grows_while_it_is_read_was_not_cut(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    read, grown = Run._bytes, []

    def then_grows(self: Run, name: str) -> bytes:
        found = read(self, name)
        if not grown:
            grown.append(True)
            self.log({"kind": "late"})
            self.seal()
        return found

    monkeypatch.setattr(Run, "_bytes", then_grows)
    assert run.records() == RECORDS
    assert run.records() == [*RECORDS, {"kind": "late"}]


@pytest.mark.parametrize("stop", range(3))
def test_a_write_that_is_killed_leaves_a_readable_file(run: Run, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    replaced = Run._replace
    done: list[str] = []

    def killed(self: Run, name: str, data: bytes, durable: bool = True) -> None:
        if len(done) == stop:
            raise KeyboardInterrupt
        done.append(name)
        replaced(self, name, data, durable)

    for _ in range(3):  # killed three times in a row at the same place
        done.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Run, "_replace", killed)
            with pytest.raises(KeyboardInterrupt):
                run.write(Run.STATE, b"new")
        assert run.read(Run.STATE) == (b"new" if stop == 2 else CONTENT[Run.STATE])
    run.write(Run.STATE, b"newer")
    assert run.read(Run.STATE) == b"newer"


def test_a_rewind_that_is_killed_leaves_a_readable_log(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = Run._replace

    def killed(self: Run, name: str, data: bytes, durable: bool = True) -> None:
        replaced(self, name, data, durable)
        if name == FILE:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_replace", killed)
        with pytest.raises(KeyboardInterrupt):
            run.rewind(2)
    assert run.records() == RECORDS
    run.rewind(2)
    assert run.records() == RECORDS[:2]


def test_runs_from_before_digests_are_read(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "old")
    run.file(Run.CONFIG).write_bytes(b"old")
    run.file(Run.LOG).write_text(json.dumps(RECORDS[0]) + "\n" + '{"kind": "to')
    assert (run.read(Run.CONFIG), run.records()) == (b"old", RECORDS[:1])
    run.log(RECORDS[1] | {"kind": "new"})  # the torn line is cut off by `rewind` before anything is appended


def test_pictures_and_exported_models_are_not_covered(run: Run) -> None:
    for name in (Run.REPORT, "figures/a.json", "network/model.onnx"):
        run.write(name, b"one")
        run.file(name).write_bytes(b"two")
        assert run.read(name) == b"two"


def test_a_full_disk_leaves_the_log_as_it_was(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    write = os.write
    monkeypatch.setattr(os, "write", lambda stream, line: write(stream, line[:7]))
    with pytest.raises(OSError, match="No space left"):
        run.log({"kind": "late"})
    monkeypatch.undo()
    assert run.records() == RECORDS


def test_numbers_that_are_not_finite_become_null() -> None:
    line = seal({"a": float("nan"), "b": [1.0, float("inf")], "c": {"d": -float("inf")}})
    json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert unseal(line.removesuffix(b"\n")) == {"a": None, "b": [1.0, None], "c": {"d": None}}


@pytest.mark.parametrize("record", [{}, {"x": "}"}, {"text": '", "crc": "00000000"}'}, {"ü": "\u202e ☃"}])
def test_lines_say_what_they_were_given(record: dict[str, object]) -> None:
    assert unseal(seal(record).removesuffix(b"\n")) == record
