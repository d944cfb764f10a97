"""Times the GPU tier: kernels against plain torch, replayed against launched steps, and whole searches. Prints JSON lines.

    PYTHONPATH=src python benchmarks/gpu.py kernels
    PYTHONPATH=src python benchmarks/gpu.py steps --space darts --precision bf16-mixed
    PYTHONPATH=src python benchmarks/gpu.py search --space nb201 --epochs 50 --run runs/gpu-nb201 --seconds 500

Needs torch, numpy, lightning-fabric (or pytorch-lightning, which brings it), torchmetrics, scikit-learn, scipy, Pillow; Triton for the
kernels. Images are random: 50,000 of 32 x 32 pixels, half for the weights, half for alpha, a batch of 64: the published search's 391 steps
an epoch. `search` with `--run` stops after `--seconds` and, called again, carries on from its checkpoint; each line tells what the
whole search takes at the median epoch so far. On the CPU (`--device cpu`) it shows that it works, nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from oche.data import Data, ImageSet, for_search
from oche.fast import coverage
from oche.fast.backends.device import accelerator
from oche.fast.portable.combine import Moments, Term, combine, plain_combine
from oche.fast.portable.separable import plain_separable, separable
from oche.optim import SGD
from oche.run import Run
from oche.search.begin import StepBatches, begin, bilevel, streams
from oche.search.loop import both_steps, search, set_learning_rate, steps
from oche.search.method import Method
from oche.search.replay import replayed
from oche.search.state import Problem
from oche.search.trainable import AllWeights, BatchNormOnly
from oche.spaces import SPACES
from oche.tasks import Classify


class EnoughForNow(Exception):
    """The time is used up."""


def main() -> None:
    """Reads the command line and prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kernels", "steps", "search"))
    parser.add_argument("--space", choices=("nb201", "darts"), default="nb201")
    parser.add_argument(
        "--frozen", action=argparse.BooleanOptionalAction, default=None, help="random features (nb201: yes)"
    )
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--run", type=Path, help="folder of the search's checkpoint")
    parser.add_argument("--seconds", type=float, default=500.0, help="of a call; the search carries on at the next")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    given = parser.parse_args()
    device = torch.device(given.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    say(device=name, torch=torch.__version__, triton=accelerator(device) is not None, what=given.what)
    {"kernels": kernels, "steps": measure_steps, "search": whole_search}[given.what](given, device)


def kernels(given: argparse.Namespace, device: torch.device) -> None:
    """Forward and backward of a node's sum and of a separable convolution, at the sizes of a search, against plain torch."""
    triton = accelerator(device)
    dtype = torch.bfloat16 if given.precision == "bf16-mixed" else torch.float32
    for channels, size in ((16, 32), (32, 16), (64, 8)):
        shape = (given.batch, channels, size, size)
        values = [_noise(shape, device, dtype) for _ in range(12)]
        weights = torch.full((12,), 1 / 12, device=device, requires_grad=True)
        norm = nn.BatchNorm2d(channels).to(device)
        spec, ones = [(True, norm.eps)] * 12, [norm.weight] * 12
        leaves = [*values, weights, norm.weight, norm.bias]
        terms = [Term(value, weights[t], norm) for t, value in enumerate(values)]
        forms: dict[str, Callable[[], Tensor]] = {
            "plain": lambda a=(spec, weights, values, ones, [norm.bias] * 12): plain_combine(*a),
            "portable": lambda terms=terms: combine(terms, Moments()),
        }
        if triton:
            forms["triton"] = lambda terms=terms: combine(terms, Moments(triton))
        compare("combine of 12", shape, dtype, forms, leaves, given.repeats, device)
        for k, dilation in ((3, 1), (5, 2)):
            x = _noise(shape, device, dtype)
            depth, point = _noise((channels, 1, k, k), device, dtype), _noise((channels, channels, 1, 1), device, dtype)
            forms = {"plain": lambda x=x, d=depth, p=point, n=dilation: plain_separable(x, d, p, 1, n)}
            if triton:
                forms["triton"] = lambda x=x, d=depth, p=point, n=dilation: separable(x, d, p, 1, n)[0]
            compare(f"separable {k} dilated {dilation}", shape, dtype, forms, [x, depth, point], given.repeats, device)


def compare(
    what: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    forms: Mapping[str, Callable[[], Tensor]],
    leaves: list[Tensor],
    repeats: int,
    device: torch.device,
) -> None:
    """Median seconds of each form in turn (A B A B), and how far its gradients are from the first form's."""
    grad = _noise(tuple(forms["plain"]().shape), device, dtype).detach()
    found: dict[str, list[Tensor]] = {}
    taken: dict[str, list[float]] = {name: [] for name in forms}
    for i in range(repeats + 3):
        for name, form in forms.items():
            started = now(device)
            out = form()
            found[name] = [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]
            if i >= 3:
                taken[name].append(now(device) - started)
    off = {
        name: max(
            float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in zip(t, found["plain"], strict=True)
        )
        for name, t in found.items()
    }
    seconds = {name: statistics.median(t) for name, t in taken.items()}
    say(kernel=what, shape=list(shape), dtype=str(dtype), seconds=seconds, off=off)


def measure_steps(given: argparse.Namespace, device: torch.device) -> None:
    """Seconds of one iteration (architecture step and weight step, batches included), launched and replayed."""
    problem, method = problem_of(given, device), method_of(given)
    for way in ("launched", "replayed") if device.type == "cuda" else ("launched",):
        state = begin(problem, method)
        weights, arch = streams(problem, method)
        losses = bilevel(state, method)
        pair = both_steps(state, method, losses)
        pair = replayed(pair, state, method) if way == "replayed" else pair
        seconds = []
        for i in range(given.repeats + 8):
            started = now(device)
            set_learning_rate(state, method, weights.steps_per_epoch)
            steps(state, method, losses, StepBatches(weights, arch, state.step), True, pair)
            state.step += 1
            if i >= 8:
                seconds.append(now(device) - started)
        peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None
        cells = sorted(set(coverage(state.supernet).values()))
        say(steps=way, space=given.space, precision=given.precision, frozen=frozen(given), cells=cells,
            seconds=statistics.median(seconds), fastest=min(seconds), slowest=max(seconds), peak_mib=peak)  # fmt: skip


def whole_search(given: argparse.Namespace, device: torch.device) -> None:
    """The published search, or as much of it as the time allows."""
    started, taken = time.perf_counter(), []

    def listen(event: str, record: Mapping[str, object]) -> None:
        if event == "epoch":
            taken.append(float(str(record["seconds"])))
            say(space=given.space, precision=given.precision, frozen=frozen(given), epoch=record["epoch"],
                seconds=taken[-1], whole_search=statistics.median(taken) * given.epochs,
                weight_loss=record["weight_loss"], memory_mib=record["memory_mib"])  # fmt: skip
            if time.perf_counter() - started > given.seconds:
                raise EnoughForNow

    run = None
    if given.run is not None:
        given.run.mkdir(parents=True, exist_ok=True)
        run = Run(given.run)
    try:
        found = search(replace(problem_of(given, device), run=run, listener=listen), method_of(given))
    except EnoughForNow:
        say(finished=False, seconds=time.perf_counter() - started)
        return
    said = (
        [float(str(record["seconds"])) for record in run.records() if record.get("kind") == "epoch"] if run else taken
    )
    say(finished=True, epochs=len(said), seconds=sum(said), genotype=str(found.genotype))


def problem_of(given: argparse.Namespace, device: torch.device) -> Problem:
    """Random images in the published sizes."""
    draws = torch.Generator().manual_seed(0)

    def part(count: int) -> ImageSet:
        pixels = torch.randint(256, (count, 32, 32, 3), generator=draws, dtype=torch.uint8)
        return ImageSet.of(pixels, torch.arange(count) % 10)

    names = tuple(map(str, range(10)))
    data = Data("random", part(given.images), part(1000), part(1000), names, 3, (32, 32), (0.5,) * 3, (0.25,) * 3)
    fabric = Fabric(accelerator=given.device, devices=1, precision=given.precision)
    space = SPACES[given.space](size=(32, 32))
    return Problem(space, data.to(device), Classify(), for_search(data), given.epochs, given.batch, fabric=fabric)


def method_of(given: argparse.Namespace) -> Method:
    """DARTS with the published settings of the space, over random features where asked."""
    trainable = BatchNormOnly() if frozen(given) else AllWeights()
    if given.space == "darts":
        return Method(trainable=trainable)
    optimizer = SGD(nesterov=True, weight_decay=5e-4)
    return Method(trainable=trainable, arch_first=False, lr_by_step=True, weight_optimizer=optimizer)


def frozen(given: argparse.Namespace) -> bool:
    """True if convolutions stay as drawn: by default in NAS-Bench-201, as in RF-DARTS."""
    return given.space == "nb201" if given.frozen is None else bool(given.frozen)


def now(device: torch.device) -> float:
    """Seconds, after all that was launched is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def say(**record: object) -> None:
    """One JSON line."""
    print(json.dumps(record), flush=True)


def _noise(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    t = torch.randn(shape, device=device).to(dtype)
    return (t.contiguous(memory_format=torch.channels_last) if t.shape[1] > 1 else t).requires_grad_()


if __name__ == "__main__":
    main()
