"""How fast is a search iteration, and how much memory does it take: fused cells against the plain supernet.

    python benchmarks/supernet.py --space darts --batch 16 --against reference --json
    python benchmarks/supernet.py --space darts --batch 16 --order exact

One iteration is an architecture step and a weight step with their optimisers, on random images. Each tier runs in fresh
processes, in turn (A B A B); the seconds are the median over all iterations but each process's first, the ratio that of the medians.
Peak memory is the process's highest during the iterations less what it held before them.

`reference` is the supernet as the field writes it: NCHW, both steps back-propagating into weights and alpha alike.
`reference-channels-last` is the same supernet in channels_last, each step computing the gradients it uses. `fused` is what oche runs.

`--order finite` and `exact` are second order: `fused` takes the product by `bilevel.FiniteDifference` or `bilevel.Unrolled`, the others
always by finite difference and as the official code does: a copy of the network takes the look-ahead step and is differentiated in
weights and alpha, then the weights themselves move to either side.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from oche.base import Alpha, Batch, Draw, Params
from oche.bilevel import ArchGradient, Bilevel, FiniteDifference, FirstOrder, Unrolled
from oche.edges import PartialChannels, WeightedSum
from oche.fast import accelerate, coverage
from oche.optim import SGD
from oche.spaces import SPACES
from oche.spaces.base import Supernet

TIERS = ("reference", "reference-channels-last", "fused")
ORDERS: dict[str, ArchGradient] = {"first": FirstOrder(), "finite": FiniteDifference(), "exact": Unrolled()}


@dataclass(frozen=True)
class Batches:
    """The same two batches at every step."""

    weights: Batch
    arch: Batch

    def inner(self) -> Batch:
        return self.weights

    def outer(self) -> Batch:
        return self.arch


def iteration(space: str, batch: int, tier: str, partial: int, order: str) -> tuple[Callable[[], None], str]:
    """One search iteration of a tier, and how its cells run. `partial` is PC-DARTS's K, 1 for none."""
    bound = SPACES[space](size=(32, 32))
    torch.manual_seed(0)
    supernet = bound.supernet(PartialChannels(partial) if partial > 1 else WeightedSum(), affine=False)
    if tier != "reference":
        supernet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if tier == "fused":
        accelerate(supernet)
    theta = dict(supernet.named_parameters())
    weights = list(theta.values())
    alpha = {g.name: torch.zeros(len(g.edges), g.width).requires_grad_() for g in bound.groups}
    sgd = torch.optim.SGD(weights, 0.025, momentum=0.9, weight_decay=3e-4)
    adam = torch.optim.Adam(alpha.values(), 3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
    both = [Batch(torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))) for _ in range(2)]
    if tier != "reference":
        both = [Batch(b.images.contiguous(memory_format=torch.channels_last), b.targets) for b in both]
    batches = Batches(*both)

    def loss(net: Supernet, theta: Params | None, by_group: Alpha, batch: Batch) -> Tensor:
        op_weights = bound.spread({name: t.softmax(-1) for name, t in by_group.items()})
        arguments = (batch.images, op_weights, Draw(0))
        outputs, _ = (
            net(*arguments) if theta is None else torch.func.functional_call(net, theta, arguments, tie_weights=False)
        )
        return F.cross_entropy(outputs, batch.targets)

    def by_official_code() -> list[Tensor]:
        if order == "first":
            inputs = [*alpha.values(), *(weights if tier == "reference" else [])]
            return list(torch.autograd.grad(loss(supernet, None, alpha, batches.arch), inputs, allow_unused=True))[
                : len(alpha)
            ]
        grads = torch.autograd.grad(loss(supernet, None, alpha, batches.weights), weights, allow_unused=True)
        ahead = copy.deepcopy(supernet)
        for p, own, g in zip(ahead.parameters(), weights, grads, strict=True):
            velocity = 0.9 * sgd.state[own]["momentum_buffer"] if own in sgd.state else 0.0
            p.data.sub_(0.025 * (velocity + (0 if g is None else g) + 3e-4 * own.data))
        loss(ahead, None, alpha, batches.arch).backward()
        direct = [torch.zeros_like(t) if t.grad is None else t.grad.clone() for t in alpha.values()]
        u = [torch.zeros_like(p) if p.grad is None else p.grad for p in ahead.parameters()]
        radius = 0.01 / float(torch.cat([t.flatten() for t in u]).norm())
        found = []
        for move in (radius, -2 * radius):
            for p, t in zip(weights, u, strict=True):
                p.data.add_(t, alpha=move)
            found.append(torch.autograd.grad(loss(supernet, None, alpha, batches.weights), list(alpha.values())))
        for p, t in zip(weights, u, strict=True):
            p.data.add_(t, alpha=radius)
        return [d - 0.025 * (plus - minus) / (2 * radius) for d, plus, minus in zip(direct, *found, strict=True)]

    problem = Bilevel(
        lambda theta, a, b: loss(supernet, theta, a, b),
        lambda theta, a, b: loss(supernet, theta, a, b),
        lambda theta, g: SGD().look_ahead(theta, g, sgd),
    )

    def step() -> None:
        for p in weights:
            p.requires_grad_(tier == "reference" or order != "first")
        fused = tier == "fused"
        grads = [*ORDERS[order](problem, theta, alpha, batches)[1].values()] if fused else by_official_code()
        for t, grad in zip(alpha.values(), grads, strict=True):
            t.grad = grad
        adam.step()
        for p in weights:
            p.requires_grad_(True)
        shown = alpha if tier == "reference" else {name: t.detach() for name, t in alpha.items()}
        inputs = [*weights, *(alpha.values() if tier == "reference" else [])]
        found = torch.autograd.grad(loss(supernet, None, shown, batches.weights), inputs, allow_unused=True)
        for p, g in zip(weights, found, strict=False):
            p.grad = g
        torch.nn.utils.clip_grad_norm_(weights, 5.0)
        sgd.step()

    return step, ", ".join(sorted(set(coverage(supernet).values())))


def one(arguments: argparse.Namespace) -> dict[str, object]:
    """Times one tier in this process."""
    torch.set_num_threads(arguments.threads)
    step, how = iteration(arguments.space, arguments.batch, arguments.one, arguments.partial, arguments.order)
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
    parser.add_argument("--order", default="first", choices=ORDERS, help="of the architecture step")
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
        "order": arguments.order,
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
