"""Damages files of real runs, one bit or one cut at a time, and reads each by the command that would: none may pass unseen.

    python tests/chaos/damage.py --flips 200 --cuts 50 --out runs/damage

Each damaged file must end its command in one sentence, or change nothing that the command makes. A cached library of kernels must be
compiled again. Each outcome becomes a line of `damage.jsonl`; the exit code is 1 where one was silently different or a traceback.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import oche
import oche.api.inference
import oche.api.resume
import oche.cli.predict
import oche.cli.report
import oche.report.draw  # here: else each child would load it anew
from chaos.cases import MATRIX, _quick_compiler
from chaos.dying import assert_same_run, attempt
from oche.api import expected, search, train
from oche.bench import run_bench
from oche.bench.result import BenchFolder
from oche.cli.boundary import guarded
from oche.cli.main import app
from oche.fast.backends import native
from oche.run import Run, digests
from oche.training.export import CARD, WEIGHTS

CELL = "|skip_connect~0|+|nor_conv_3x3~0|nor_conv_3x3~1|"
GOOD = ("refused", "refused later", "equal", "compiled again")
"""Ends that are right; "refused later": the run goes on, and what is damaged is refused by whatever reads it."""

TRACEBACK = 3
"""The exit code that stands for one."""

SMALL = {"epochs": 3, "batch": 8, "threads": 1, "progress": False, "device": "cpu"}


@dataclass(frozen=True)
class Target:
    """A file of a run, and the command that reads it: `{}` stands for the run. `ends`: it goes on with a run, which is compared."""

    run: str
    file: str
    command: tuple[str, ...]
    ends: bool = False


RESUMED = ("search", "--resume", "{}", "--quiet")
PREDICTED = ("predict", "{}", "image.png", "--json")
TARGETS = {
    "search state": Target("stopped search", Run.STATE, RESUMED, ends=True),
    "train state": Target("stopped training", Run.STATE, ("train", "--resume", "{}", "--quiet"), ends=True),
    "stage": Target("stopped stages", Run.stage(0), RESUMED, ends=True),
    "weights": Target("training", WEIGHTS, PREDICTED),
    "last weights": Target(
        "training", "checkpoints/last.safetensors", ("eval", "{}", "--checkpoint", "last", "--json")
    ),
    "card": Target("training", CARD, PREDICTED),
    "run.toml": Target("stopped search", Run.CONFIG, RESUMED, ends=True),
    "log": Target("stopped search", Run.LOG, RESUMED, ends=True),
    "log of an ended run": Target("training", Run.LOG, ("report", "{}")),
    "genotype": Target("training", Run.GENOTYPE, ("draw", "{}")),
    "alphas": Target("search", Run.ALPHAS, ("report", "{}")),
    "digests": Target("stopped search", digests.FILE, RESUMED, ends=True),
    "mark of a killed process": Target("stopped search", Run.RUNNING, RESUMED, ends=True),
    "trials of a bench": Target("bench", BenchFolder.TRIALS, ("bench", "show", "{}")),
}
KERNEL = "cached kernel"
MARK = b'{"machine": "node3", "process": 77, "word": "0123456789abcdef"}'
"""What a killed process leaves behind; a run that was stopped in good order has none."""


def changes(data: bytes, flips: int, cuts: int, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """The content with one bit flipped, and cut, so many times each at random places."""
    for bit in rng.sample(range(8 * len(data)), min(flips, 8 * len(data))):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit}", bytes(changed)
    for length in rng.sample(range(len(data)), min(cuts, len(data))):
        yield f"cut to {length}", data[:length]


# ---------------------------------------------------------------------- the runs


def make(folder: Path, kinds: set[str]) -> None:
    """Makes the runs of these kinds, and for each that was stopped one that was not, from the same bytes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    np.savez(folder / "noise.npz", images=images, labels=np.arange(40) % 3)
    Image.fromarray(images[0, :, :, 0]).save(folder / "image.png")
    searching = partial(oche.search, space="toy", data=str(folder / "noise.npz"), budget="smoke", compare=0, **SMALL)
    makers: dict[str, Callable[[Path, Callable[..., None]], object]] = {
        "search": lambda out, listen: searching("darts", out=out, listener=listen),
        "stages": lambda out, listen: searching("drnas_progressive", out=out, listener=listen, epochs=6),
        "bench": lambda out, listen: run_bench(MATRIX, out, render=lambda result: None),
        "training": lambda out, listen: oche.train(
            CELL, space="toy", data=str(folder / "noise.npz"), protocol="smoke", out=out, listener=listen, **SMALL
        ),
    }
    for kind in kinds:
        name = kind.removeprefix("stopped ")
        if not kind.startswith("stopped"):
            makers[name](folder / kind, lambda event, record: None)
            continue
        try:
            makers[name](folder / kind, partial(_stopping, folder / kind, name))
        except KeyboardInterrupt:
            whole = folder / f"whole {name}"
            shutil.copytree(folder / kind, whole)
            assert read(folder, RESUMED if name != "training" else TARGETS["train state"].command, whole)[0] == 0


def _stopping(run: Path, name: str, event: str, record: dict[str, object]) -> None:
    """Stops a search or training in its second epoch, one in stages after an epoch of its second stage."""
    far = run.joinpath(Run.stage(0)).exists() if name == "stages" else record.get("epoch") == 1
    if "epoch" in event and far:
        raise KeyboardInterrupt


# ---------------------------------------------------------------------- one damage


def read(folder: Path, command: tuple[str, ...], run: Path) -> tuple[int, str, str]:
    """Carries a command out in a child process. Returns its exit code, what it printed and what it said on stderr."""
    said = folder / "said.json"

    def work() -> None:
        os.chdir(folder)
        out, err, code = io.StringIO(), io.StringIO(), 0
        if command[0] in ("search", "train"):
            search.render = train.render = lambda run: None  # type: ignore[assignment]  # pictures are not compared
            expected.timed = lambda plan, *asked, **more: (
                plan,
                expected.Expected(),
            )  # nor is it told how long it will take
        try:
            with redirect_stdout(out), redirect_stderr(err):
                guarded(lambda: app([part.replace("{}", str(run)) for part in command]))
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException as error:  # noqa: BLE001
            code, err = TRACEBACK, io.StringIO(f"Traceback: {type(error).__name__}: {error}")
        said.write_text(json.dumps([code, out.getvalue(), err.getvalue()]))

    assert attempt(work) == 0
    code, out, err = json.loads(said.read_text())
    return code, out, err


def outcome(folder: Path, target: Target, run: Path, expected: str) -> str:
    """The end of a command that reads a damaged run: one of `GOOD`, or what is wrong."""
    code, out, err = read(folder, target.command, run)
    if code in (1, 2):
        sentence = err.strip()
        return "refused" if sentence.startswith("oche: ") and "\n" not in sentence else f"said badly: {sentence[-300:]}"
    if code:
        return f"exit code {code}: {err[-300:]}"
    if not target.ends:
        return "equal" if out == expected else f"silently different: {out[-300:]}"
    try:
        assert_same_run(Run(folder / target.run.replace("stopped", "whole")), Run(run))
    except oche.UserError:
        return "refused later"
    except AssertionError as error:
        return f"silently different: {str(error)[:300]}"
    return "equal"


def damaged(folder: Path, name: str, flips: int, cuts: int, seed: int) -> Iterator[dict[str, object]]:
    """Damages one kind of file so many times; yields each with its end."""
    target = TARGETS[name]
    whole = folder / target.run
    rng, data = (
        random.Random(f"{seed} {name}"),
        MARK if target.file == Run.RUNNING else (whole / target.file).read_bytes(),
    )
    printed = "" if target.ends else read(folder, target.command, whole)[1]
    for what, content in changes(data, flips, cuts, rng):
        run = folder / "damaged"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(whole, run)
        (run / target.file).write_bytes(content)
        shown = printed.replace(str(whole), str(run))
        yield {"file": name, "damage": what, "end": outcome(folder, target, run, shown)}


def kernels_damaged(folder: Path, flips: int, cuts: int, seed: int, compiled: int = 4) -> Iterator[dict[str, object]]:
    """Damages a real cached library. The first few are compiled again, the others replaced by what the compiler had made."""
    compiler = _quick_compiler(folder)
    if compiler is None:
        return
    cache = folder / "cache"
    os.environ["CXX"], os.environ["OCHE_CACHE"] = str(compiler), str(cache)
    (cache / "x").parent.mkdir(exist_ok=True)
    instructions = torch.backends.cpu.get_cpu_capability()
    path = native.build(str(compiler), instructions if instructions in native.SETS else "DEFAULT", cache)
    data, rng = path.read_bytes(), random.Random(f"{seed} kernel")
    compile_ = native._compile

    def copied(command: object, made: Path) -> None:
        made.write_bytes(data[: -len(native.SEAL) - 32])

    def load(again: bool) -> None:
        native._compile = compile_ if again else copied  # in a child of its own
        native.kernels.cache_clear()
        found = native.kernels()
        assert found is not None
        assert found.short.value == 0

    found = list(changes(data, flips, cuts, rng))
    again = set(rng.sample(range(len(found)), min(compiled, len(found))))
    for number, (what, content) in enumerate(found):
        path.write_bytes(content)
        end = "compiled again"
        try:
            assert attempt(partial(load, number in again)) == 0
            assert native._whole(path), "a damaged library was kept"
            assert number in again or path.read_bytes() == data, "another library"
        except AssertionError as error:
            end = f"silently different: {error}"
        yield {"file": KERNEL, "damage": what, "end": end}


# ---------------------------------------------------------------------- the whole


def campaign(out: Path, flips: int, cuts: int, seed: int, names: list[str]) -> list[dict[str, object]]:
    """Damages files of these kinds; returns all outcomes, which are in `damage.jsonl` too."""
    out.mkdir(parents=True, exist_ok=True)
    ends: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as scratch, (out / "damage.jsonl").open("a") as stream:
        folder = Path(scratch)
        make(folder, {TARGETS[name].run for name in names if name in TARGETS})
        for name in names:
            found = kernels_damaged if name == KERNEL else partial(damaged, name=name)
            for line in found(folder, flips=flips, cuts=cuts, seed=seed):
                ends.append(line)
                stream.write(json.dumps(line) + "\n")
                stream.flush()
    return ends


def table(ends: list[dict[str, object]]) -> str:
    """The outcomes by file, and those that are wrong one by one."""
    rows = Counter((str(e["file"]), str(e["end"]) if e["end"] in GOOD else "WRONG") for e in ends)
    lines = ["| file | end | times |", "|---|---|---|"]
    lines += [f"| {file} | {end} | {count} |" for (file, end), count in sorted(rows.items())]
    return "\n".join([*lines, *(json.dumps(e) for e in ends if e["end"] not in GOOD)])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--flips", type=int, default=200, help="flipped bits of each file")
    parser.add_argument("--cuts", type=int, default=50, help="cuts of each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[*TARGETS, KERNEL], help="kinds of files")
    parser.add_argument("--out", type=Path, default=Path("runs/damage"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    ends = campaign(asked.out, asked.flips, asked.cuts, asked.seed, asked.only)
    sys.stdout.write(table(ends) + "\n")
    return int(any(end["end"] not in GOOD for end in ends))


if __name__ == "__main__":
    sys.exit(main())
