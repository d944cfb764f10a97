"""What several processes cost a step: seconds, processor seconds, and what they exchange. `python benchmarks/processes.py` prints a table.

The processes of one machine share its cores, so their wall time says little where there are fewer cores than processes; processor seconds
and the exchange are what docs/scale.md computes with.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning_fabric import Fabric

from oche.data import Augment, Data, ImageSet
from oche.methods import method_named
from oche.search import loop
from oche.search.method import Method
from oche.search.state import Problem
from oche.spaces import SPACES
from oche.tasks import Classify


@dataclass
class Exchange:
    """Counts the messages and bytes of a fabric's reductions."""

    messages: int = 0
    size: int = 0

    def watch(self, fabric: Fabric) -> None:
        """Counts from now on."""
        reduce = fabric.all_reduce

        def counted(data: torch.Tensor, **options: object) -> object:
            self.messages += 1
            self.size += data.numel() * data.element_size()
            return reduce(data, **options)  # type: ignore[arg-type]

        fabric.all_reduce = counted  # type: ignore[method-assign, assignment]


def noise(count: int, pixels: int) -> Data:
    """Images without content, for a step's time does not depend on it."""
    part = ImageSet.of(torch.rand(count, pixels, pixels, 3), torch.arange(count) % 10)
    names = tuple(map(str, range(10)))
    return Data("noise", part, part, part, names, 3, (pixels, pixels), (0.5,) * 3, (0.3,) * 3, flip=True)


def measure(fabric: Fabric, folder: str, name: str, space: str, batch: int, steps: int, sync: bool) -> None:
    """Writes what `steps` steps took in this process, after two that are not counted."""
    torch.set_num_threads(1)
    data = noise(4 * batch, 32)
    bound = SPACES[space](inputs=3, outputs=10, size=data.size)
    bound = replace(bound, channels=8, cells=1 if space == "nb201" else 3) if space != "toy" else bound  # type: ignore[call-arg]
    augment = Augment(data.mean, data.std, pad=4, flip=True)
    problem = Problem(bound, data, Classify(), augment, epochs=1000, batch=batch, fabric=fabric, sync=sync)
    method = method_named(name, {})
    assert isinstance(method, Method)
    state = loop.begin(problem, method)
    losses, (weights, arch), exchange = loop.bilevel(state, method), loop.streams(problem, method), Exchange()
    for number in range(steps + 2):
        if number == 2:
            exchange.watch(fabric)
            began, processor = time.perf_counter(), time.process_time()
        loop.set_learning_rate(state, method, 10)
        loop.steps(state, method, losses, loop.StepBatches(weights, arch, number), True)
        state.step += 1
    found = {
        "method": name,
        "space": space,
        "batch": batch,
        "processes": fabric.world_size,
        "sync": sync,
        "seconds": (time.perf_counter() - began) / steps,
        "processor_seconds": (time.process_time() - processor) / steps,
        "messages": exchange.messages / steps,
        "kib": exchange.size / 1024 / steps,
        "weights": sum(t.numel() for t in state.theta.values()),
    }
    if fabric.is_global_zero:
        Path(folder, "found.json").write_text(json.dumps(found))


def main() -> None:
    """Measures one and two processes, with batch norm in each and over both."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--space", default="nb201", choices=["toy", "nb201", "darts"])
    asked.add_argument("--methods", nargs="+", default=["darts", "darts_2nd"])
    asked.add_argument("--batch", type=int, default=32)
    asked.add_argument("--steps", type=int, default=8)
    given = asked.parse_args()
    for name in given.methods:
        for processes, sync in ((1, False), (2, False), (2, True)):
            fabric = Fabric(accelerator="cpu", devices=processes, strategy="ddp_fork" if processes > 1 else "auto")
            with tempfile.TemporaryDirectory() as folder:
                fabric.launch(measure, folder, name, given.space, given.batch, given.steps, sync)
                print(Path(folder, "found.json").read_text(), flush=True)


if __name__ == "__main__":
    main()
