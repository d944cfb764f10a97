"""Times a search iteration and measures its memory: oche's supernet against one as the field writes it.

    python benchmarks/supernet.py --space darts --batch 16 --against reference --json
    python benchmarks/supernet.py --method pcdarts --against reference-channels-last --set channels=24
    python benchmarks/supernet.py --method rf_darts --against all-weights
    python benchmarks/supernet.py --against official.py

An iteration is an architecture step and a weight step with their optimisers, on random images. Of oche it is one step of
`oche.search.loop.search` itself, augmentation included. Each side runs in fresh processes, in turn (A B A B); seconds are medians over all
iterations but each process's first, memory is the process's highest during the iterations less what it held when the model stood.

Sides, for `--tier` (what is measured) and `--against` (what it is compared with):

    fast                      what oche runs on this machine
    portable                  the same without compiled kernels (OCHE_KERNELS=off)
    reference-channels-last   plain cells in channels_last, no gradient that nobody uses (OCHE_FAST=off)
    reference                 the published step, literally, without oche (benchmarks/peers), in NCHW
    reference-nhwc            the same with channels_last put on it
    all-weights               like --tier, but every weight learns: what random features save
    kept                      like --tier, without --recompute
    eager                     like --tier, without --compile
    fp32                      like --tier, without --precision bf16
    PATH.py                   a peer of your own: a file with `build(batch, size)` and `step(built)`, see docs/performance.md

`--json` prints one object: `ratio` and `memory_ratio` (against by tier), `seconds` and `peak_mib` of the tier, `peaks` of the machine,
`useful` work of an iteration, and for each side under `sides`: operators that torch launched, calls and seconds of compiled
kernels, seconds by stage, and the share of the machine's compute and bandwidth peak. Useful work is that of the plain cells without unused
gradients: `gflop` of convolutions and matrix products, `gbyte` through convolutions and pools, each tensor moved once an operator.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from counting import Operators, calls, peaks

from oche import config
from oche.base import counted
from oche.data import Data, ImageSet, Stream, for_search
from oche.fast import coverage
from oche.methods import method_named
from oche.plan.machine import fabric_for
from oche.search.bilevel import ArchGradient, FiniteDifference, FirstOrder, Unrolled
from oche.search.callbacks import Callback
from oche.search.loop import search
from oche.search.method import Method
from oche.search.record import memory_mib
from oche.search.state import Problem, SearchState
from oche.spaces import SPACES, Space
from oche.tasks import Classify

ENVIRONMENTS: dict[str, dict[str, str]] = {
    "fast": {},
    "portable": {"OCHE_KERNELS": "off"},
    "reference-channels-last": {"OCHE_FAST": "off"},
}
"""What oche's own sides need in a process's environment."""

ORDERS: dict[str, ArchGradient] = {"first": FirstOrder(), "finite": FiniteDifference(), "exact": Unrolled()}
"""Architecture gradients by the name of `--order`."""

PEERS = Path(__file__).parent / "peers"
PUBLISHED = {("darts", "darts"): "darts.py", ("darts", "pcdarts"): "pcdarts.py", ("nb201", "darts"): "nb201.py"}
"""The peer of a space and a method."""

LAYOUTS = {"reference": "nchw", "reference-nhwc": "channels_last"}
PUBLISHED_ORDERS = {"first": "first", "finite": "second", "exact": "second"}
"""What an order is compared with: no published code computes the exact product."""


@dataclass(frozen=True)
class Work:
    """The work that is timed: a method on a space, and the number of repetitions."""

    space: str = "darts"
    method: str = "darts"
    order: str = "first"
    batch: int = 16
    size: int = 32
    settings: tuple[str, ...] = ()
    device: str = "cpu"
    precision: str = "32"
    recompute: bool = False
    compile: bool = False
    threads: int = 1
    iterations: int = 3

    def parts(self) -> tuple[Space, Method]:
        """The space and the method; alpha steps from the first epoch on."""
        space = SPACES[self.space](size=(self.size, self.size))
        for path, value in map(config.assignment, self.settings):
            space = config.override(space, path, value, f"space {self.space}")
        method = method_named(self.method)
        if not isinstance(method, Method):
            raise SystemExit(f"{self.method} takes no steps: choose a method with a supernet")
        return space, replace(method, arch_gradient=ORDERS[self.order], arch_start=0.0, arch_every=1)


WITHOUT: dict[str, Callable[[Work], Work]] = {
    "all-weights": lambda work: replace(work, method=work.method.removeprefix("rf_")),
    "kept": lambda work: replace(work, recompute=False),
    "eager": lambda work: replace(work, compile=False),
    "fp32": lambda work: replace(work, precision="32"),
}
"""Sides that are the tier itself, less one thing."""


# ------------------------------------------------------------------ in a process of its own


class _Enough(Exception):
    """Ends a search that has been timed."""


class _Watch(Callback):
    """Stands in a search: sees the state before the first step, and where its time goes."""

    def __init__(self) -> None:
        self.state: SearchState | None = None
        self.before = 0.0
        self.stages: dict[str, float] = {}

    def on_epoch_start(self, state: SearchState) -> None:
        if self.state is None:
            self.state = state
            begun: list[float] = []
            state.supernet.register_forward_pre_hook(lambda *_: begun.append(time.perf_counter()))
            state.supernet.register_forward_hook(lambda *_: self._add("forward", begun.pop()))
            for name, optimizer in (("weights", state.weight_optimizer), ("alpha", state.arch_optimizer)):
                optimizer.register_step_pre_hook(lambda *_: begun.append(time.perf_counter()))
                optimizer.register_step_post_hook(lambda *_, of=name: self._add(f"optimiser of {of}", begun.pop()))
            self.before = resident(next(state.supernet.parameters()).device)

    def _add(self, stage: str, started: float) -> None:
        self.stages[stage] = self.stages.get(stage, 0.0) + time.perf_counter() - started

    @contextmanager
    def timers(self) -> Iterator[None]:
        """Times the functions of TIMED while inside."""
        plain = [(owner, name, getattr(owner, name)) for owner, name in TIMED]
        for owner, name, function in plain:
            setattr(owner, name, self._timed(TIMED[owner, name], function))
        try:
            yield
        finally:
            for owner, name, function in plain:
                setattr(owner, name, function)

    def _timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self._add(stage, started)

        return timed


TIMED: dict[tuple[Any, str], str] = {
    (torch.autograd, "grad"): "backward",
    (torch.nn.utils, "clip_grad_norm_"): "clip",
    (Stream, "at"): "batches",
}
"""What the loop calls, and the stage it belongs to; forward passes and optimisers have hooks of their own."""


def of_oche(work: Work) -> dict[str, Any]:
    """Times `search` in this process, as its environment says; then counts one more iteration."""
    space, method = work.parts()
    watch, operators, fabric = _Watch(), Operators(), fabric_for(work.device, precision=work.precision)
    seconds: list[float] = []
    last = 0.0
    stages: dict[str, float] = {}
    compiled: dict[str, tuple[float, float]] = {}
    peak = 0.0

    def listen(event: str, record: Mapping[str, object]) -> None:
        nonlocal last, stages, compiled, peak
        if event != "step":
            return
        if fabric.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if record["step"] == 1:
            watch.stages.clear()
            kernels.clear()
            gc.freeze()  # on both sides: a rare walk of Python's collector over all of torch's modules is as long as a step
        else:
            seconds.append(now - last)
        if len(seconds) == work.iterations:
            stages = {name: s / work.iterations for name, s in watch.stages.items()}
            compiled = {name: (n / work.iterations, s / work.iterations) for name, (n, s) in kernels.items()}
            peak = memory_mib(fabric.device)
            torch.compiler.set_stance("force_eager")  # of a program torch's dispatcher would see nothing
            operators.__enter__()
        elif len(seconds) > work.iterations:
            operators.__exit__(None, None, None)
            torch.compiler.set_stance("default")
            raise _Enough
        last = time.perf_counter()

    pixels = (2 * work.batch * (work.iterations + 2), *space.size, space.inputs)
    images = ImageSet.of(
        torch.randint(0, 256, pixels, dtype=torch.uint8, generator=counted(0)), torch.arange(pixels[0]) % 2
    )
    names, centre = tuple(map(str, range(space.outputs))), (0.5,) * space.inputs
    data = Data("random", images, images, images, names, space.inputs, space.size, centre, centre, flip=True)
    problem = Problem(
        space,
        data.to(fabric.device),
        Classify(),
        for_search(data),
        epochs=1,
        batch=work.batch,
        fabric=fabric,
        listener=listen,
        recompute=work.recompute,
        compile=work.compile,
    )
    with calls() as kernels, watch.timers(), unfrozen_after(), suppress(_Enough):
        search(problem, replace(method, callbacks=(*method.callbacks, watch)))
    assert watch.state is not None
    stages["the rest"] = statistics.fmean(seconds[:-1]) - sum(stages.values())
    return {
        "seconds": seconds[:-1],
        "peak_mib": peak - watch.before,
        "operators": operators.total,
        "kernels": compiled,
        "stages": stages if fabric.device.type == "cpu" else {},
        "cells": sorted(set(coverage(watch.state.supernet).values())),
        "parameters": sum(p.numel() for p in watch.state.supernet.parameters()),
        "useful": {"gflop": operators.flop / 1e9, "gbyte": operators.byte / 1e9},
    }


def of_published(layout: str, work: Work) -> dict[str, Any]:
    """Times the published form of the same search."""
    space, _ = work.parts()
    told = {name: getattr(space, name) for name in ("channels", "cells", "nodes")}
    peer = loaded(PEERS / PUBLISHED[work.space, work.method])
    sizes = {**told, "ops": space.groups[0].ops[0], "order": PUBLISHED_ORDERS[work.order], "layout": layout}

    def built(batch: int) -> Callable[[], None]:
        return partial(peer.step, peer.build(batch, work.size, **sizes))

    parameters = sum(p.numel() for p in peer.build(2, work.size, **sizes).network.parameters())
    return {**stepped(built, work, torch.device("cpu")), "cells": ["plain: as published"], "parameters": parameters}


def of_peer(path: str, work: Work) -> dict[str, Any]:
    """Times a peer's `step(build(batch, size))`."""
    peer = loaded(Path(path))

    def built(batch: int) -> Callable[[], None]:
        return partial(peer.step, peer.build(batch, work.size))

    return {**stepped(built, work, fabric_for(work.device).device), "cells": [f"peer: {Path(path).name}"]}


def loaded(path: Path) -> Any:
    """The module in a peer's file, which may import from its own folder."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    peer = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = peer
    sys.path.insert(0, str(path.parent.resolve()))
    spec.loader.exec_module(peer)
    return peer


@contextmanager
def unfrozen_after() -> Iterator[None]:
    """Takes `gc.freeze()` back: what is frozen when Python ends counts as leaked, and Triton's bindings print a page about it."""
    try:
        yield
    finally:
        gc.unfreeze()


def stepped(build: Callable[[int], Callable[[], None]], work: Work, device: torch.device) -> dict[str, Any]:
    """Times what `build(batch)` returns, a function that takes a step. Operators are counted on two images: the batch adds none."""
    step = build(work.batch)
    before = resident(device)
    step()
    seconds = []
    with unfrozen_after():
        gc.freeze()  # as above
        for _ in range(work.iterations):
            started = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
    peak = memory_mib(device) - before
    small = build(2)
    small()
    with Operators() as operators:
        small()
    return {"seconds": seconds, "peak_mib": peak, "operators": operators.total, "kernels": {}, "stages": {}}


def resident(device: torch.device) -> float:
    """MiB held now: by this process, or by the accelerator's allocator."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def here(what: str, work: Work) -> dict[str, Any]:
    """One side's numbers, measured in this process, whose environment is the side's."""
    torch.set_num_threads(work.threads)
    if what in LAYOUTS:
        return of_published(LAYOUTS[what], work)
    return of_peer(what, work) if what.endswith(".py") else of_oche(work)


def useful_work(work: Work) -> dict[str, float]:
    """The least work of an iteration: counted on plain cells and two images, for it grows with the batch."""
    plain = ENVIRONMENTS["reference-channels-last"]
    os.environ.update(plain)
    try:
        found = of_oche(
            replace(work, batch=2, iterations=1, device="cpu", precision="32", recompute=False, compile=False)
        )["useful"]
    finally:
        for name in plain:
            del os.environ[name]
    return {name: value * work.batch / 2 for name, value in found.items()}


# ------------------------------------------------------------------ processes in turn


def apart(what: str, work: Work) -> dict[str, Any]:
    """`here` in a fresh process."""
    environment = {**os.environ, **ENVIRONMENTS.get(what, {})}
    environment |= {"OMP_NUM_THREADS": str(work.threads), "MKL_NUM_THREADS": str(work.threads)}
    command = [sys.executable, __file__, "--here", what, "--work", json.dumps(asdict(work))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{what} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(work: Work, tier: str, against: str, repeats: int) -> dict[str, Any]:
    """Both sides in turn, `repeats` times; see the module's docstring for what comes back."""
    sides = {against: WITHOUT[against](work) if against in WITHOUT else work, tier: work}
    torch.set_num_threads(work.threads)
    needed = {side: useful_work(side) for side in set(sides.values())}
    useful = {name: needed[side] for name, side in sides.items()}
    peak = peaks() if work.device == "cpu" else {}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            runs[name].append(apart(tier if name in WITHOUT else name, side))
    told = {name: summary(found, work.batch, useful[name], peak) for name, found in runs.items()}
    slow, fast = told[against], told[tier]
    return {
        **asdict(work),
        "tier": tier,
        "against": against,
        "repeats": repeats,
        "ratio": slow["seconds"] / fast["seconds"],
        "memory_ratio": slow["peak_mib"] / fast["peak_mib"],
        "seconds": fast["seconds"],
        "peak_mib": fast["peak_mib"],
        "peaks": peak,
        "useful": useful[tier],
        "sides": told,
        "torch": torch.__version__,
        "machine": machine(),
    }


def summary(runs: list[dict[str, Any]], batch: int, useful: Mapping[str, float], peak: Mapping[str, float]) -> Any:
    """Medians over one side's processes; counts are the same in all of them."""
    every = [s for run in runs for s in run["seconds"]]
    seconds = statistics.median(every)
    told = {
        "seconds": seconds,
        "spread": [min(every), max(every)],
        "images_per_second": batch / seconds,
        "peak_mib": statistics.median(run["peak_mib"] for run in runs),
        **{name: runs[0][name] for name in ("operators", "cells")},
        "parameters": runs[0].get("parameters"),
        **{name: {k: medians(name, k, runs) for k in runs[0][name]} for name in ("stages", "kernels")},
    }
    if peak:
        told["compute_share"] = useful["gflop"] / seconds / peak["gflops"]
        told["bandwidth_share"] = useful["gbyte"] / seconds / peak["gbytes"]
    return told


def medians(name: str, key: str, runs: list[dict[str, Any]]) -> Any:
    """Seconds of a stage, or calls and seconds of a kernel."""
    values = [run[name][key] for run in runs]
    return (
        [statistics.median(column) for column in zip(*values, strict=True)]
        if name == "kernels"
        else statistics.median(values)
    )


def machine() -> str:
    """The processor and how many cores of it there are."""
    known = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in known.read_text().splitlines() if line.startswith("model name")]
        if known.exists()
        else []
    )
    return f"{(names or [platform.processor() or platform.machine()])[0]}, {os.cpu_count()} cores"


def main() -> None:
    """Runs both sides in turn and prints seconds, images a second, memory and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="darts", choices=sorted(SPACES))
    parser.add_argument(
        "--method", default="darts", help="any of `oche list methods` with a supernet, rf_ before it or not"
    )
    parser.add_argument("--order", default="first", choices=sorted(ORDERS), help="of the architecture gradient")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of the space: cells=20"
    )
    parser.add_argument("--tier", default="fast", choices=sorted(ENVIRONMENTS))
    parser.add_argument("--against", default="reference", help="a side, or a peer's PATH.py; see above")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each side")
    parser.add_argument("--iterations", type=int, default=3, help="timed iterations a process")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--precision", default="32", choices=["32", "bf16"], help="of oche's sides; the others stay at 32"
    )
    parser.add_argument(
        "--recompute", action="store_true", help="of oche's sides: cells run again in the backward pass"
    )
    parser.add_argument(
        "--compile", action="store_true", help="of oche's sides: torch.compile of the cells that no kernels compute"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.here:
        given = json.loads(a.work)
        print(json.dumps(here(a.here, Work(**{**given, "settings": tuple(given["settings"])}))))
        return
    if a.against not in (*ENVIRONMENTS, *WITHOUT, *LAYOUTS) and not Path(a.against).is_file():
        known = ", ".join((*LAYOUTS, *ENVIRONMENTS, *WITHOUT))
        parser.error(f"--against {a.against}: expected {known}, or a peer's file")
    if a.against in LAYOUTS and ((a.space, a.method) not in PUBLISHED or a.device != "cpu"):
        known = ", ".join(f"--space {space} --method {method}" for space, method in PUBLISHED)
        parser.error(f"--against {a.against} is there for {known}, on the CPU: use --against reference-channels-last")
    work = Work(
        a.space,
        a.method,
        a.order,
        a.batch,
        a.size,
        tuple(a.set),
        a.device,
        a.precision,
        a.recompute,
        a.compile,
        a.threads,
        a.iterations,
    )
    if a.against == a.tier or (a.against in WITHOUT and WITHOUT[a.against](work) == work):
        parser.error(f"--against {a.against} has nothing to compare with: give --tier {a.tier} something that it lacks")
    answer = compare(work, a.tier, a.against, a.repeats)
    if a.json:
        print(json.dumps(answer))
        return
    for name, s in answer["sides"].items():
        speed = f"{s['seconds']:8.3f} s  {s['images_per_second']:8.1f} images/s  {s['peak_mib']:7.0f} MiB"
        share = f"{s['compute_share']:5.1%} of compute" if "compute_share" in s else ""
        print(f"{name:24s} {speed}  {s['operators']:6d} operators  {share}  {'; '.join(s['cells'])}")
    print(f"ratio {answer['ratio']:.2f}, memory {answer['memory_ratio']:.2f} times less, {a.threads} thread(s)")


if __name__ == "__main__":
    main()
