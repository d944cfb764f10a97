"""How fast is a search iteration, and how much memory does it take: fused cells against the plain supernet.

    python benchmarks/supernet.py --space darts --batch 16 --against reference --json

One iteration is a first-order architecture step and a weight step with their optimisers, on random images. Each tier runs in fresh
processes, in turn (A B A B); the seconds are the median over all iterations but each process's first, the ratio that of the medians.
Peak memory is the process's highest during the iterations less what it held before them.

`reference` is the supernet as the field writes it: NCHW, both steps back-propagating into weights and alpha alike.
`reference-channels-last` is the same supernet in channels_last, each step computing the gradients it uses. `fused` is what oche runs.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from oche.base import Draw
from oche.edges import PartialChannels, WeightedSum
from oche.fast import accelerate, coverage
from oche.spaces import SPACES

TIERS = ("reference", "reference-channels-last", "fused")


def iteration(
    space: str,
    batch: int,
    tier: str,
    partial: int = 1,
    *,
    channels: int = 16,
    size: int = 32,
    bf16: bool = False,
    frozen: bool = False,
) -> tuple[Callable[[], None], str]:
    """One search iteration of a tier, and how its cells run. `partial` is PC-DARTS's K, 1 for none.

    `bf16`: under autocast, which the reference is not; `frozen`: weights in cells do not learn.
    """
    bound = SPACES[space](size=(size, size), channels=channels)
    torch.manual_seed(0)
    supernet = bound.supernet(PartialChannels(partial) if partial > 1 else WeightedSum(), affine=False)
    if tier != "reference":
        supernet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if tier == "fused":
        accelerate(supernet)
    weights = list(supernet.parameters())
    alpha = {g.name: torch.zeros(len(g.edges), g.width).requires_grad_() for g in bound.groups}
    if frozen:
        for name, p in supernet.named_parameters():
            p.requires_grad_(not name.startswith("body.cells"))
    learning = [p for p in weights if p.requires_grad]
    sgd = torch.optim.SGD(learning, 0.025, momentum=0.9, weight_decay=3e-4, foreach=tier == "fused")
    adam = torch.optim.Adam(alpha.values(), 3e-4, betas=(0.5, 0.999), weight_decay=1e-3, foreach=tier == "fused")
    images, targets = torch.randn(batch, 3, size, size), torch.randint(10, (batch,))
    if tier != "reference":
        images = images.contiguous(memory_format=torch.channels_last)

    def loss(by_group: dict[str, Tensor]) -> Tensor:
        op_weights = bound.spread({name: t.softmax(-1) for name, t in by_group.items()})
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16 and tier != "reference"):
            outputs, _ = supernet(images, op_weights, Draw(0))
        return F.cross_entropy(outputs.float(), targets)

    def step(optimizer: torch.optim.Optimizer, tensors: list[Tensor], by_group: dict[str, Tensor]) -> None:
        inputs = [*learning, *alpha.values()] if tier == "reference" else tensors
        for t, grad in zip(inputs, torch.autograd.grad(loss(by_group), inputs, allow_unused=True), strict=True):
            t.grad = grad
        if optimizer is sgd:
            torch.nn.utils.clip_grad_norm_(learning, 5.0, foreach=tier == "fused")
        optimizer.step()

    def both() -> None:
        for p in learning:
            p.requires_grad_(tier == "reference")
        step(adam, list(alpha.values()), alpha)
        for p in learning:
            p.requires_grad_(True)
        step(sgd, learning, alpha if tier == "reference" else {name: t.detach() for name, t in alpha.items()})

    return both, ", ".join(sorted(set(coverage(supernet).values())))


def one(arguments: argparse.Namespace) -> dict[str, object]:
    """Times one tier in this process."""
    torch.set_num_threads(arguments.threads)
    step, how = iteration(
        *(arguments.space, arguments.batch, arguments.one, arguments.partial),
        channels=arguments.channels,
        size=arguments.size,
        bf16=arguments.bf16,
        frozen=arguments.frozen,
    )
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    step()
    seconds = []
    for _ in range(arguments.iterations):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - before
    return {"seconds": seconds, "peak_mib": peak, "cells": how}


def main() -> None:
    """Runs the tiers in turn and prints seconds, images a second, memory and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="darts", choices=sorted(SPACES))
    parser.add_argument("--partial", type=int, default=1, help="PC-DARTS's K; 1 searches all channels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    parser.add_argument("--bf16", action="store_true", help="all but the reference under bfloat16 autocast")
    parser.add_argument("--frozen", action="store_true", help="the weights in cells do not learn (random features)")
    parser.add_argument("--against", default="reference", choices=TIERS[:2])
    parser.add_argument("--repeats", type=int, default=3, help="processes of each tier")
    parser.add_argument("--iterations", type=int, default=3, help="timed iterations a process")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", choices=TIERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments)))
        return
    runs: dict[str, list[dict[str, object]]] = {arguments.against: [], "fused": []}
    for _ in range(arguments.repeats):
        for tier, results in runs.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--one", tier]
            results.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    told: dict[str, dict[str, object]] = {}
    for tier, results in runs.items():
        seconds = statistics.median(s for run in results for s in run["seconds"])  # type: ignore[attr-defined]
        peak = statistics.median(float(str(run["peak_mib"])) for run in results)
        told[tier] = {
            "seconds": seconds,
            "images_per_second": arguments.batch / seconds,
            "peak_mib": peak,
            "cells": results[0]["cells"],
        }
    slow, fast = told[arguments.against], told["fused"]
    answer = {
        "space": arguments.space,
        "partial": arguments.partial,
        "batch": arguments.batch,
        "channels": arguments.channels,
        "size": arguments.size,
        "bf16": arguments.bf16,
        "frozen": arguments.frozen,
        "threads": arguments.threads,
        "against": arguments.against,
        "ratio": float(str(slow["seconds"])) / float(str(fast["seconds"])),
        "memory_ratio": float(str(slow["peak_mib"])) / float(str(fast["peak_mib"])),
        "seconds": fast["seconds"],
        "peak_mib": fast["peak_mib"],
        "tiers": told,
        "runs": runs,
    }
    if arguments.json:
        print(json.dumps(answer))
        return
    for tier, values in told.items():
        speed = f"{values['seconds']:8.3f} s  {values['images_per_second']:8.1f} images/s"
        print(f"{tier:24s} {speed}  {values['peak_mib']:7.0f} MiB  {values['cells']}")
    print(f"ratio {answer['ratio']:.2f}, memory {answer['memory_ratio']:.2f} times less, {arguments.threads} thread(s)")


if __name__ == "__main__":
    main()
