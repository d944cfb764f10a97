"""Compares ways to train a small network, on validation images: what the protocols `fast` and `fast_brief` were chosen by.

    python benchmarks/recipes.py B resnet8:32 0 epochs=100 lr=0.2 batch=128 sched=tri      # OCHE_DATA names the folder of the sheets
    python benchmarks/recipes.py --page docs/results/recipes.md                             # writes the page from its .jsonl

Sets: A, the first ten of CIFAR-100's coarse classes, 4,000 train and 1,000 validation images; B, the other ten, 1,000 and 4,000; D, digits.
Nets: a rival, NAME:CHANNELS for one of another width, or `cell`, RF-DARTS's cell of the first look (C=8, N=1). What is not given is the
former default: batch 64, cosine per epoch from 0.1, clip 5, cutout 16, weight decay 5e-4, auxiliary head where there is one. One JSON line
per run goes to standard output.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from PIL import Image

from oche.base import Draw
from oche.data import Data, ImageSet, Stream, load, none
from oche.data.augmentation.augment import Augment
from oche.genotype import Genotype
from oche.optim import SGD, set_rate
from oche.plan.machine import fabric_for
from oche.schedule import Constant, Cosine, Triangle
from oche.spaces.base import Space
from oche.spaces.nb201 import NB201Space
from oche.spaces.rivals import RIVALS
from oche.tasks import Classify
from oche.training.evaluate import evaluate
from oche.training.protocols import Protocol
from oche.training.train import Training, begin

CELL = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_1x1~1|+|nor_conv_1x1~0|nor_conv_1x1~1|nor_conv_3x3~2|"
USUAL: dict[str, Any] = {
    "epochs": 30, "batch": 64, "lr": 0.1, "sched": "epoch", "wd": 5e-4, "ls": 0.0, "ema": 0.0, "clip": 5.0, "cut": 16, "aux": 0.4,
}  # fmt: skip
"""`sched`: epoch (cosine, once per epoch), cosine (by step, a fifth of warm-up) or tri. `ema`: decay of averaged weights per step."""


def data_of(name: str) -> Data:
    """One of the three sets."""
    if name == "D":
        return load("digits")
    folder = Path(os.environ["OCHE_DATA"]) / "cifar100"
    sheet = np.asarray(Image.open(folder / "test.webp"))
    rows, columns = sheet.shape[0] // 32, sheet.shape[1] // 32
    tiles = sheet.reshape(rows, 32, columns, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)
    coarse, first, count = (
        np.load(folder / "index.npz")["test_coarse"],
        10 * (name == "B"),
        1000 if name == "B" else 4000,
    )
    chosen = np.flatnonzero((coarse >= first) & (coarse < first + 10))
    chosen = chosen[np.random.default_rng(0).permutation(len(chosen))]
    images, labels = tiles[chosen], coarse[chosen].astype(np.int64) - first
    train, val = (
        ImageSet.of(torch.tensor(images[s]), torch.tensor(labels[s])) for s in (slice(count), slice(count, None))
    )
    share = images[:count].astype(np.float64) / 255
    middle, spread = tuple(share.mean((0, 1, 2))), tuple(share.std((0, 1, 2)))
    return Data(name, train, val, val, tuple("0123456789"), 3, (32, 32), middle, spread, flip=True)


def network_of(name: str, data: Data) -> tuple[Space, Genotype]:
    """The space and the genotype of a net's name."""
    like = NB201Space(cells=1, channels=8, inputs=data.channels, outputs=len(data.classes), size=data.size)
    if name == "cell":
        return like, Genotype.parse(CELL, "nb201")
    rival, _, channels = name.partition(":")
    return RIVALS[rival].network(like, int(channels) if channels else None)


def trained(name: str, net: str, seed: int, given: Mapping[str, str]) -> dict[str, object]:
    """Trains one network by one recipe: its validation accuracy in percent, with the last and with averaged weights."""
    asked = {**USUAL, **{key: type(USUAL[key])(value) for key, value in given.items()}}
    data = data_of(name)
    space, genotype = network_of(net, data)
    optimizer = SGD(nesterov=True, weight_decay=asked["wd"])
    protocol = Protocol(asked["epochs"], asked["batch"], Constant(0.0), optimizer, auxiliary=asked["aux"])
    training = Training(space, genotype, data, protocol, seed, fabric_for("cpu"))
    state = begin(training)
    shrink = data.size[0] / 32
    augment = Augment(
        data.mean, data.std, pad=max(1, round(4 * shrink)), flip=data.flip, cutout=round(asked["cut"] * shrink)
    )
    stream, task = Stream(data.train, asked["batch"], seed, "train", augment), Classify().smoothed(asked["ls"])
    steps, began, averaged = asked["epochs"] * stream.steps_per_epoch, time.process_time(), None
    lr = Triangle(asked["lr"]) if asked["sched"] == "tri" else Cosine(asked["lr"])
    for i in range(steps):
        share = (i // stream.steps_per_epoch) / asked["epochs"] if asked["sched"] == "epoch" else i / steps
        rate = lr(share)
        if asked["sched"] == "cosine":
            warm = 0.2
            later = asked["lr"] * (1 + math.cos(math.pi * (share - warm) / (1 - warm))) / 2
            rate = asked["lr"] * min(1.0, (share + 1e-3) / warm) if share < warm else later
        set_rate(state.optimizer, rate)
        batch = stream.at(i)
        outputs, auxiliary = state.trunk(batch.images, Draw(seed, i, "train"), {})
        loss = task.loss(outputs, batch.targets)
        if auxiliary is not None:
            loss = loss + protocol.auxiliary * task.loss(auxiliary, batch.targets)
        state.optimizer.zero_grad()
        loss.backward()
        if asked["clip"]:
            torch.nn.utils.clip_grad_norm_([p for p in state.network.parameters() if p.grad is not None], asked["clip"])
        state.optimizer.step()
        if asked["ema"]:
            now = [t for t in state.network.state_dict().values() if t.is_floating_point()]
            averaged = averaged or [t.clone() for t in now]
            torch._foreach_lerp_(averaged, now, 1 - min(asked["ema"], (1 + i) / (10 + i)))
    seconds = time.process_time() - began

    def score() -> float:
        return round(100 * evaluate(state.network, data.val, none(data), training.fabric).value, 2)

    found: dict[str, object] = {"set": name, "net": net, "seed": seed, "val": score(), "cpu": round(seconds, 1)}
    if averaged:
        for t, kept in zip(
            (t for t in state.network.state_dict().values() if t.is_floating_point()), averaged, strict=True
        ):
            t.copy_(kept)
        found["val_ema"] = score()
    return found | {key: asked[key] for key in given}


def page(rows: list[dict[str, Any]]) -> str:
    """docs/results/recipes.md: means over seeds of each recipe on each set."""
    about = ("set", "net", "seed", "val", "cpu", "val_ema")
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        recipe = " ".join(
            f"{key}={row[key]:g}" if key != "sched" else f"sched={row[key]}" for key in row if key not in about
        )
        groups.setdefault((row["set"], row["net"], recipe), []).append(row)
    text = [
        "# How networks are trained by default",
        "",
        "Written by `python benchmarks/recipes.py --page docs/results/recipes.md` from `recipes.jsonl` beside it; the script tells of",
        "sets, nets and recipes. Validation accuracy, last epoch; seconds of processor time on a busy machine.",
        "",
        "| set | net | recipe, where it differs from the former default | seeds | validation % by seed | mean | s |",
        "|---|---|---|---|---|---|---|",
    ]
    for (name, net, recipe), runs in groups.items():
        values = " ".join(f"{run['val']:.1f}" for run in runs)
        middle, seconds = mean(run["val"] for run in runs), mean(run["cpu"] for run in runs)
        text += [f"| {name} | {net} | {recipe or '-'} | {len(runs)} | {values} | {middle:.1f} | {seconds:.0f} |"]
    return "\n".join([*text, "", *READING]) + "\n"


READING = (
    "What was taken from it, with two seeds at most, so that only large differences count:",
    "",
    "- With few images it is steps that are missing: 100 epochs instead of 30 give 44.7 instead of 39.0 % on 1,000 images, and",
    "  half as many steps of twice the batch give the same. So `fast` takes at least 800 steps and `fast_brief` at least 240.",
    "- With few epochs a triangle by step to 0.2 with batch 128 is better than a cosine per epoch from 0.1 with batch 64 for ResNet-8 on",
    "  set A, and a little worse for the cell (two seeds each). Without clipping the same rate lost 3 points.",
    "- Label smoothing, cutout, weight decay and averaged weights made no difference that two seeds could tell, and stay as they were; a",
    "  rate of 0.4 was no better. Whitening, dirac initialisation and alternating flips were not tried, nor any set of 50,000 images.",
)


def main() -> None:
    """One run, or the page."""
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--page"]:
        out = Path(sys.argv[2])
        rows = [json.loads(line) for line in out.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
        out.write_text(page(rows), encoding="utf-8")
        return
    name, net, seed, *given = sys.argv[1:]
    print(json.dumps(trained(name, net, int(seed), dict(pair.split("=", 1) for pair in given))))


if __name__ == "__main__":
    main()
