"""Times a training step of networks of several kinds, per multiply-add, beside ResNet-8's.

    python benchmarks/epoch.py --threads 1 --json

A step is that of `oche train`: `train_epoch` over one batch, clip and optimiser included, without auxiliary head and drop path, on
random images of 32x32 pixels. Each network trains on our kernels and in plain channels_last (`oche.fast.ordinary`); all of them run in
this process, in turn (A B C, A B C). `seconds` are medians per step, of processor time on one thread (other work on the machine disturbs
it less). `ratios` are those of plain to ours; `dearer` are seconds per multiply-add over those of the first network in plain
channels_last: ResNet-8, all dense 3x3 convolutions, is what the others are held against.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from retrain import state_of

from oche.genotype import Genotype
from oche.spaces import SPACES, Space
from oche.spaces.cost import cost
from oche.spaces.rivals import RIVALS
from oche.training.train import train_epoch

FORMS = ("channels_last", "kernels")


def networks() -> dict[str, tuple[Space, Genotype]]:
    """Name -> space and genotype; ResNet-8 first."""
    like = SPACES["darts"]()
    best = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
    return {
        "ResNet-8": RIVALS["resnet8"].network(like),
        "NAS-Bench-201's best cell, C=8 N=1": (SPACES["nb201"](channels=8, cells=1), Genotype.parse(best, "nb201")),
        "NAS-Bench-201's best cell, C=16 N=1": (SPACES["nb201"](cells=1), Genotype.parse(best, "nb201")),
        "MobileNetV2, 0.4 as wide": RIVALS["mobilenetv2"].network(like, 128),
        "DARTS_V2, C=8 L=8": (SPACES["darts"](channels=8, cells=8), Genotype.parse("DARTS_V2", "darts")),
    }


def main() -> None:
    """Prints seconds per step, ratios, and what a multiply-add costs beside ResNet-8's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    clock = time.process_time if a.threads == 1 else time.perf_counter
    chosen = networks()
    trained = {
        (name, form): state_of(form, *network, a.batch, plain=True)
        for name, network in chosen.items()
        for form in FORMS
    }
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in trained}
    for i in range(a.repeats + 2):  # the first two steps make the buffers that later ones use again
        for key, (state, training, stream) in trained.items():
            started = clock()
            train_epoch(state, training, stream)
            if i > 1:
                seconds[key].append(clock() - started)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    million = {name: cost(*network).multiply_adds / 1e6 for name, network in chosen.items()}
    first = next(iter(chosen))
    unit = medians[first, "channels_last"] / million[first]
    told = {
        "million": million,
        "seconds": {name: {form: medians[name, form] for form in FORMS} for name in chosen},
        "ratios": {name: medians[name, "channels_last"] / medians[name, "kernels"] for name in chosen},
        "dearer": {name: {form: medians[name, form] / million[name] / unit for form in FORMS} for name in chosen},
        **vars(a),
    }
    if a.json:
        print(json.dumps(told))
        return
    for name, (plain, ours) in ((name, told["seconds"][name].values()) for name in chosen):
        dearer = medians[name, "kernels"] / million[name] / unit
        print(
            f"{name:36s} {million[name]:6.2f} M, {plain:6.3f} -> {ours:6.3f} s per step, {dearer:5.2f} of ResNet-8's per multiply-add"
        )


if __name__ == "__main__":
    main()
