"""Fuzzing of everything that oche parses: damaged and hostile inputs must end in a value or in a UserError, soon and in little memory.

    python tests/fuzz/harness.py --inputs 100000 --seed 0        # or `make fuzz`

Each target has a few valid seeds; an input is a seed after one to eight mutations (flipped bits, cuts, copies, tokens that upset parsers,
bytes at random). What crashes, hangs for over a second or takes over 512 MiB is written to `--out` and counted; the exit code is 1.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from PIL import Image

from oche import config
from oche.base import counted
from oche.data import load
from oche.data.reading.arrays import read_idx_file
from oche.data.reading.files import read_image
from oche.errors import UserError
from oche.genotype import Genotype
from oche.plan.request import requested
from oche.run import Run, damaged, digests, records
from oche.spaces import SPACES
from oche.spaces.sampling import sample
from oche.training.export import CARD, WEIGHTS, load_network, save_network

HANG, MEMORY = 1.0, 512.0
"""Seconds for one input, and MiB above the start for all of them, at most."""

TOKENS = (
    *(b'"', b"'", b"{", b"}", b"[", b"]", b"(", b")", b",", b":", b"=", b"|", b"+", b"~", b"\\", b"#", b"\n", b"\r", b"\0", b"\xff\xfe"),
    *(b"-1", b"0", b"1e999", b"NaN", b"Infinity", b"null", b"true", b"99999999999999999999", b"0x7fffffff", b"1_000", b"--", b"%s%n"),
    *(b"[" * 500, b"(" * 500, b'{"a":' * 300, b"9" * 400, b"__import__('os')", b"../../etc", b"\xe2\x80\xae", b"A" * 5000),
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A parser and valid inputs for it."""

    seeds: tuple[bytes, ...]
    parse: Callable[[bytes], object]


def mutated(seed: bytes, rng: random.Random) -> bytes:
    """The seed after one to eight mutations."""
    data = bytearray(seed)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(7)
        if kind == 0 and data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + rng.randint(1, 64)]
        elif kind == 3:
            data[at:at] = rng.choice(TOKENS)
        elif kind == 4:
            start = rng.randrange(len(data) + 1)
            data[at:at] = data[start : start + rng.randint(1, 256)]
        elif kind == 5:
            data[at : at + 4] = rng.randbytes(4)
        elif data:
            data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
    return bytes(data[:100_000])


# ------------------------------------------------------------------ targets


def targets(folder: Path) -> dict[str, Target]:
    """All parsers by name; files are written below `folder`."""

    def file(name: str, parse: Callable[[Path], object]) -> Callable[[bytes], object]:
        def run(data: bytes) -> object:
            path = folder / name
            path.write_bytes(data)
            return parse(path)

        return run

    def text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
        return lambda data: parse(data.decode(errors="replace"))

    cell = Genotype.parse("DARTS_V2")
    names = ("DARTS_V1", "PC_DARTS_CIFAR", "GDAS_V1", "FairDARTS_a", "NB201_9930")
    forms = (*(str(Genotype.parse(name)).encode() for name in names), str(cell).encode(), b"DARTS_V2", b"nb201:9930")
    toml = b'[request]\nmethod = "darts"\nseed = 3\nsettings = {"space.cells" = 1}\n[data]\nclasses = ["a", "b"]\nsize = [8, 8]\n'
    lines = b"".join(records.seal({"kind": "epoch", "epoch": n, "loss": 0.5}) for n in range(3))
    return {
        "genotype": Target(forms, text(Genotype.parse)),
        "genotype json": Target((cell.to_json().encode(),), text(Genotype.from_json)),
        "toml": Target((toml,), text(lambda t: config.loads(t, "run.toml"))),
        "assignment": Target((b"space.cells=3", b'a.b=[1, "x"]', b"x=1e3"), text(config.assignment)),
        "log": Target((lines,), lambda data: records.parse(records.complete(data, "log.jsonl"), "log.jsonl")),
        "digests": Target(
            (digests.render({"state.pt": ["0" * 64]}),), lambda data: digests.parse(data, "digests.json")
        ),
        "idx": Target((_idx(),), file("train-images-idx3-ubyte", read_idx_file)),
        "idx gz": Target((_gz(_idx()),), file("train-images-idx3-ubyte.gz", read_idx_file)),
        "npz": Target((_npz(),), file("data.npz", lambda path: load(str(path)))),
        "image": Target(tuple(_images()), file("image.png", read_image)),
        "state": Target((_state(),), _load_state),
        "run.toml": Target((toml,), partial(_requested, folder)),
        **_network(folder / "network"),
    }


def _idx() -> bytes:
    return bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (2, 3, 3)) + bytes(18)


def _gz(data: bytes) -> bytes:
    import gzip

    return gzip.compress(data, mtime=0)


def _npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, x=(np.arange(2560) % 251).astype(np.uint8).reshape(40, 8, 8, 1), y=np.arange(40) % 2)
    return buffer.getvalue()


def _images() -> Iterator[bytes]:
    pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    for form in ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, form)
        yield buffer.getvalue()


def _state() -> bytes:
    buffer = io.BytesIO()
    torch.save({"alpha": {"cell/alpha": torch.zeros(3, 3)}, "counters": [1, 2, 3, 0]}, buffer)
    return buffer.getvalue()


def _load_state(data: bytes) -> object:
    with damaged():
        return torch.load(io.BytesIO(data), weights_only=True)


def _network(folder: Path) -> dict[str, Target]:
    """The card and the weights of a small trained network."""
    space = SPACES["toy"](inputs=1, outputs=2, size=(8, 8), channels=2)
    genotype, run = sample(space, counted(0, "fuzz")), Run(folder)
    data = load("digits")
    save_network(run, space.network(genotype), space, genotype, data, {"test_accuracy": 0.5})

    def among(name: str, content: bytes) -> object:
        run.file(name).write_bytes(content)
        run.file(digests.FILE).unlink(missing_ok=True)
        try:
            return load_network(run)
        finally:
            run.file(name).write_bytes(whole[name])

    whole = {name: run.read(name) for name in (CARD, WEIGHTS)}
    return {Path(name).name: Target((content,), partial(among, name)) for name, content in whole.items()}


def _requested(folder: Path, data: bytes) -> object:
    run = Run(folder / "run")
    run.path.mkdir(exist_ok=True)
    run.file(Run.CONFIG).write_bytes(data)
    return requested(run)


# ------------------------------------------------------------------ the harness


class Hung(BaseException):
    """An input took too long."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises Hung in the main thread after so many seconds of processor time."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hung

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_mib() -> float:
    """The process's peak memory since `forget_peak`; where that is impossible, since it was started."""
    if STATUS.exists():
        return int(STATUS.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget_peak() -> None:
    """Makes what the process holds now its peak, on Linux."""
    with suppress(OSError):
        FORGET.write_text("5")


def tried(parse: Callable[[bytes], object], data: bytes) -> str:
    """ "value", "refused", or what went wrong."""
    try:
        with limited(HANG), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's of odd metadata
            parse(data)
        return "value"
    except UserError as error:
        return "refused" if str(error).strip() else "crash: an empty sentence"
    except Hung:
        return f"hang: over {HANG} s"
    except BaseException as error:  # noqa: BLE001  (whatever gets through is what this looks for)
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"crash: {type(error).__name__}: {str(error)[:80]} ({Path(place.filename).name}:{place.lineno})"


def fuzz(name: str, target: Target, inputs: int, seed: int, out: Path | None = None) -> Counter[str]:
    """Outcomes of so many inputs; those that went wrong are kept in `out`, one of each kind."""
    forget_peak()
    rng, outcomes, start = random.Random(f"{seed} {name}"), Counter[str](), peak_mib()
    for original in target.seeds:
        assert tried(target.parse, original) == "value", f"{name}: a seed is refused: {tried(target.parse, original)}"
    for _ in range(inputs):
        data = mutated(rng.choice(target.seeds), rng)
        outcome = tried(target.parse, data)
        if peak_mib() - start > MEMORY:
            outcome = f"memory: over {MEMORY:.0f} MiB above the start"
            forget_peak()
        if outcome not in ("value", "refused") and outcome not in outcomes and out:
            out.mkdir(parents=True, exist_ok=True)
            (out / f"{name.replace(' ', '_')}-{len(list(out.iterdir()))}").write_bytes(data)
        outcomes[outcome] += 1
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--inputs", type=int, default=100_000, help="over all targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one target")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    asked = parser.parse_args()
    wrong, most = 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        found = targets(Path(folder))
        chosen = {asked.only: found[asked.only]} if asked.only else found
        for name, target in chosen.items():
            started = time.perf_counter()
            outcomes = fuzz(name, target, -(-asked.inputs // len(chosen)), asked.seed, asked.out)
            bad = {kind: n for kind, n in outcomes.items() if kind not in ("value", "refused")}
            wrong += sum(bad.values())
            seconds = round(time.perf_counter() - started, 1)
            most = max(most, peak_mib())
            line = {"target": name, **outcomes, "seconds": seconds, "peak_mib": round(peak_mib())}
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
    sys.stdout.write(f"{wrong} inputs went wrong; peak {most:.0f} MiB\n")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
