"""Times a training step of a discretised network: NCHW, channels_last, on our kernels, in bf16, by torch.compile.

    python benchmarks/retrain.py --json

The network is DARTS_V2's; a step is that of `oche train`: `train_epoch` over one batch, auxiliary head and drop path on, clip and
optimiser included. Every form runs in this process, in turn (A B C, A B C); `seconds` are medians per step, of processor time on one
thread (other work on the machine disturbs it less), `ratios` are to the first form. Compiling (`oche train --set train.compile=true`)
takes minutes before the first step, so it is measured on request: `--forms`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace

import torch

from oche.base import Batch, counted
from oche.data import Data, ImageSet, Stream, for_training
from oche.fast import ordinary
from oche.genotype import Genotype
from oche.plan.machine import fabric_for
from oche.spaces import SPACES, Space
from oche.training.protocols import PROTOCOLS
from oche.training.train import Training, TrainState, begin, train_epoch

FORMS = {  # name -> (precision, channels_last, our kernels, torch.compile)
    "NCHW": ("32", False, False, False),
    "channels_last": ("32", True, False, False),
    "kernels": ("32", True, True, False),
    "bf16": ("bf16", True, True, False),
    "compile": ("32", True, False, True),
}


class _NCHW(Stream):
    """Batches whose channels lie one behind the other."""

    def at(self, i: int) -> Batch:
        batch = super().at(i)
        return Batch(batch.images.contiguous(), batch.targets)


def state_of(
    form: str, space: Space, genotype: Genotype, batch: int, *, plain: bool = False
) -> tuple[TrainState, Training, Stream]:
    """A training of one batch per epoch; `plain`: without auxiliary head and drop path."""
    precision, last, fast, compiled = FORMS[form]
    pixels = torch.randint(0, 256, (batch, 32, 32, 3), dtype=torch.uint8, generator=counted(0))
    images = ImageSet.of(pixels, torch.arange(batch) % 10)
    data = Data("random", images, images, images, tuple("0123456789"), 3, (32, 32), (0.5,) * 3, (0.25,) * 3, flip=True)
    protocol = replace(PROTOCOLS["darts_cifar"], epochs=1000, batch=batch, compile=compiled)
    if plain:
        protocol = replace(protocol, auxiliary=0.0, drop_path=0.0)
    training = Training(space, genotype, data, protocol, 0, fabric_for("cpu", precision=precision))
    state = begin(training)
    if not fast:
        ordinary(state.network)
    if not last:
        state.network.to(memory_format=torch.contiguous_format)
    stream = (Stream if last else _NCHW)(images, batch, 0, "train", for_training(data, protocol.cutout))
    return state, training, stream


def main() -> None:
    """Prints seconds a step and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--cells", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--forms", nargs="+", default=["NCHW", "channels_last", "kernels", "bf16"], choices=sorted(FORMS)
    )
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    seconds: dict[str, list[float]] = {form: [] for form in a.forms}
    first: dict[str, float] = {}
    space, genotype = SPACES["darts"](cells=a.cells, channels=a.channels), Genotype.parse("DARTS_V2", "darts")
    clock = time.process_time if a.threads == 1 else time.perf_counter
    trained = {form: state_of(form, space, genotype, a.batch) for form in a.forms}
    for i in range(a.repeats + 1):
        for form, (state, training, stream) in trained.items():
            state.epoch = i + 1  # from the second epoch on there is drop path
            started = clock()
            train_epoch(state, training, stream)
            took = clock() - started
            if i:
                seconds[form].append(took)
            else:
                first[form] = took
    medians = {form: statistics.median(values) for form, values in seconds.items()}
    ratios = {form: medians[a.forms[0]] / s for form, s in medians.items()}
    told = {"seconds": medians, "ratios": ratios, "first": first, **vars(a)}
    if a.json:
        print(json.dumps(told))
        return
    for form, s in medians.items():
        print(f"{form:14s} {s:7.3f} s a step, {ratios[form]:5.2f} times {a.forms[0]}, first step {first[form]:.1f} s")


if __name__ == "__main__":
    main()
