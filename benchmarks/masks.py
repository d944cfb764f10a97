"""Compares single-stage search on masks with a plain network at equal processor time, its parts taken away one at a time.

    OMP_NUM_THREADS=1 python benchmarks/masks.py lines default 0 grid=small                    # SET NET SEED, and what differs
    OMP_NUM_THREADS=1 python benchmarks/masks.py lines default 0 grid=small augment=none
    OMP_NUM_THREADS=1 python benchmarks/masks.py lines fcn 0 seconds=25                        # as long as the default took
    OMP_NUM_THREADS=1 python benchmarks/masks.py lines unet 0 seconds=25 max_params=100k
    OMP_NUM_THREADS=1 python benchmarks/masks.py --queue FILE                                   # such lines, one after the other
    python benchmarks/masks.py --page docs/results/masks.md                                     # writes the page from its .jsonl

Sets for choosing: `lines` (thin lines, 48x48), `shapes` (squares, discs and triangles, 48x48) and `ellipses` (80x80), on a ground of
waves under noise. Sets to be shown, and not chosen by: `rare` (ellipses, one per cent foreground), `camvid` (96x128; OCHE_DATA names
the folder that holds its folder). Made sets have 64 images in each part.

Nets: `default`, what `oche search --data SET` hands out; `fcn`, three 3x3 convolutions at full resolution of 8,500 to 14,000 parameters,
trained by Adam at a constant rate of 0.001 on plain cross-entropy, 8 images at a time, not augmented, for `seconds` of processor time;
`plain_fcn` and `unet`, oche's rivals; `one_op`, the default's grid with one operation (`op`) in every node and all gates open. These three
are trained by the protocol `segment`, last epoch, for as many epochs as fit into `seconds`, by the second of two that are timed.
What differs is a setting as on the command line, or one of: max_params; epochs; batch; grid=small (4 layers, 3 operations: a third of the
time); augment=none (no scaling, cropping, flipping); optimizer=adam. One JSON line per run goes to standard output.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from oche import config
from oche.api.problems import problem_of
from oche.data import Data, ImageSet, Stream, load, none
from oche.data.augmentation.augment_masks import AugmentMasks
from oche.genotype import Choice, Genotype
from oche.optim import Adam
from oche.plan.request import Request
from oche.plan.resolve import resolve
from oche.search.inherit import inherited
from oche.search.searcher import Searcher, around, as_searcher
from oche.search.state import Problem
from oche.spaces import Space
from oche.spaces.fit import widest
from oche.spaces.grid import GATE, GridSpace
from oche.spaces.limits import Limits, limit
from oche.spaces.rivals import RIVALS
from oche.training.compare import interval
from oche.training.evaluate import evaluate
from oche.training.protocols import PROTOCOLS
from oche.training.train import Training, retrain

COUNTS = {"train": 64, "val": 64, "test": 64}
SMALL_OPS = ["mbconv_k3_e3", "mbconv_k5_e3", "skip_connect"]
SMALL = {"space.layers": 4, "space.levels": 3, "space.ops": SMALL_OPS}
SIDES = {"shapes": 48, "lines": 48, "ellipses": 80, "rare": 80}


# ------------------------------------------------------------------ sets


def data_of(name: str) -> Data:
    """One of the sets."""
    if name == "camvid":
        return load(Path(os.environ["OCHE_DATA"]) / "camvid", size=(96, 128))
    if name not in SIDES:
        return load(name)
    rng = np.random.default_rng(sorted(SIDES).index(name))
    parts: dict[str, ImageSet] = {}
    for part, count in COUNTS.items():
        drawn = [picture(name, SIDES[name], rng) for _ in range(count)]
        pixels, masks = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*drawn, strict=True))
        parts[part] = ImageSet.of(pixels, masks)
    share = parts["train"].source.take(torch.arange(COUNTS["train"])).double() / 255
    classes = ("ground", "square", "disc", "triangle") if name == "shapes" else ("ground", "figure")
    middle, spread = tuple(share.mean((0, 1, 2)).tolist()), tuple(share.std((0, 1, 2)).tolist())
    return Data(
        name, **parts, classes=classes, channels=3, size=(SIDES[name],) * 2, mean=middle, std=spread, ignore=255
    )


def picture(name: str, side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 and its mask (H, W): figures of any colour on a ground of waves, noise over all."""
    y, x = np.mgrid[:side, :side].astype(np.float64)
    wave = np.sin(rng.uniform(0.1, 0.5, 2) @ np.stack([x.ravel(), y.ravel()]) + rng.uniform(0, 6)).reshape(side, side)
    image = rng.uniform(0.3, 0.7, 3) + 0.15 * wave[..., None] * rng.uniform(-1, 1, 3)
    mask = np.zeros((side, side), np.uint8)
    for _ in range(1 if name == "rare" else rng.integers(1, 4)):
        inside, label = figure(name, side, x, y, rng)
        colour = rng.uniform(0, 1, 3)
        image[inside], mask[inside] = colour, label
    image += rng.normal(0, 0.12, image.shape)
    return np.rint(255 * image.clip(0, 1)).astype(np.uint8), mask


def figure(name: str, side: int, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """The pixels of one figure, and its class."""
    centre, turn = rng.uniform(0.15 * side, 0.85 * side, 2), rng.uniform(0, np.pi)
    u = (x - centre[0]) * np.cos(turn) + (y - centre[1]) * np.sin(turn)
    v = (y - centre[1]) * np.cos(turn) - (x - centre[0]) * np.sin(turn)
    if name == "lines":
        return (np.abs(v) < rng.uniform(0.8, 2.0)) & (np.abs(u) < rng.uniform(0.2, 0.6) * side), 1
    if name in ("ellipses", "rare"):
        low, high = (0.08, 0.25) if name == "ellipses" else (0.04, 0.075)
        a, b = rng.uniform(low * side, high * side, 2)
        return (u / a) ** 2 + (v / b) ** 2 < 1, 1
    radius, kind = rng.uniform(0.1, 0.22) * side, int(rng.integers(3))
    if kind == 0:
        return np.maximum(np.abs(u), np.abs(v)) < 0.85 * radius, 1
    if kind == 1:
        return u**2 + v**2 < radius**2, 2
    return (v > -0.6 * radius) & (np.sqrt(3) * np.abs(u) + v < 1.2 * radius), 3


# ------------------------------------------------------------------ nets


def searched(data: Data, seed: int, given: Mapping[str, str]) -> tuple[nn.Module, float]:
    """What `oche search` hands out, with what differs, and the processor time that it took."""
    small = SMALL if given.get("grid") == "small" else {}
    settings: dict[str, object] = small | {
        key: oche_value(value)
        for key, value in given.items()
        if "." in key or key in ("split", "lr_by_step", "arch_start")
    }
    sizes: dict[str, object] = {key: int(given[key]) for key in ("epochs", "batch") if key in given}
    if "max_params" in given:
        sizes["max_params"] = given["max_params"]
    plan = resolve(Request(data=data, seed=seed, threads=1, device="cpu", settings=settings, **sizes))  # type: ignore[arg-type]
    searcher = as_searcher(plan.searcher)
    if given.get("optimizer") == "adam":
        assert searcher.method
        searcher = as_searcher(around(searcher, replace(searcher.method, weight_optimizer=Adam()), searcher.name))
    problem = problem_of(plan)
    if "seconds" in given:
        problem = replace(problem, epochs=epochs_in(float(given["seconds"]), problem, searcher))
    if given.get("augment") == "none":
        plain = AugmentMasks(data.mean, data.std, data.size, ignore=255, scale=(1.0, 1.0))
        problem = replace(problem, augment=plain)
    began = time.process_time()
    genotype, state = searcher.run(problem)
    assert state
    network = inherited(state, genotype)
    return network, time.process_time() - began


def epochs_in(seconds: float, problem: Problem, searcher: Searcher) -> int:
    """The epochs of a search that fit into so much processor time, by the second of two short ones; each has all the phases."""
    short = 5
    took = 0.0
    for _ in range(2):  # the first warms up
        began = time.process_time()
        searcher.run(replace(problem, epochs=short))
        took = time.process_time() - began
    return max(short, round(seconds * short / took))


def trained(
    data: Data, seed: int, given: Mapping[str, str], space: Space, genotype: Genotype
) -> tuple[nn.Module, float]:
    """A genotype's network as wide as `max_params` allows, trained from scratch for `seconds` of processor time."""
    if "max_params" in given:
        most = limit("parameters", given["max_params"])
        assert most
        wide = widest(space, genotype, Limits(parameters=int(most)))
        assert wide
        space = wide
    protocol = replace(PROTOCOLS["segment"], keep="last", epochs=1)
    for key, value in given.items():
        if key.startswith("train."):
            protocol = config.override(protocol, key.removeprefix("train."), oche_value(value), "train")
    plan = resolve(Request(data=data, seed=seed, threads=1, device="cpu"))
    training = Training(space, genotype, data, protocol, seed, plan.fabric, task=plan.task)
    epochs, took = int(given.get("epochs", 0)), 0.0
    for _ in range(0 if epochs else 2):  # the first warms up
        began = time.process_time()
        retrain(training)
        took = time.process_time() - began
    epochs = epochs or max(1, round(float(given["seconds"]) / took))
    began = time.process_time()
    network = retrain(replace(training, protocol=replace(protocol, epochs=epochs)))
    return network, time.process_time() - began


def rival(name: str, data: Data, seed: int, given: Mapping[str, str]) -> tuple[nn.Module, float]:
    """One of oche's rivals."""
    like = resolve(Request(data=data, threads=1, device="cpu")).space
    return trained(data, seed, given, *RIVALS[name].network(like))


def one_op(data: Data, seed: int, given: Mapping[str, str]) -> tuple[nn.Module, float]:
    """One operation in every node of the default's grid, all gates open."""
    space = resolve(Request(data=data, threads=1, device="cpu")).space
    assert isinstance(space, GridSpace)
    op = given.get("op", SMALL_OPS[0])
    space = replace(space, ops=(op,))
    (group,) = space.groups
    choices = tuple(
        Choice(*edge, "connect" if ops == GATE else op) for edge, ops in zip(group.edges, group.ops, strict=True)
    )
    return trained(data, seed, given, space, Genotype("grid", {"grid": choices}))


def oche_value(text: str) -> object:
    """A setting's value as the command line reads it."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def plain_fcn(data: Data, seed: int, given: Mapping[str, str]) -> tuple[nn.Module, float]:
    """Three convolutions at full resolution, trained for so many seconds of processor time."""
    torch.manual_seed(seed)
    width, outputs = (32 if len(data.classes) < 6 else 28), len(data.classes)
    convolution = partial(nn.Conv2d, kernel_size=3, padding=1)
    network = nn.Sequential(
        convolution(data.channels, width), nn.ReLU(), convolution(width, width), nn.ReLU(), convolution(width, outputs)
    )
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer, stream = (
        torch.optim.Adam(network.parameters(), 1e-3),
        Stream(data.train, 8, seed, "train", none_of(data)),
    )
    began, step = time.process_time(), 0
    while time.process_time() - began < float(given["seconds"]):
        batch = stream.at(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(batch.images), batch.targets, ignore_index=255).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step += 1
    return network.eval(), time.process_time() - began


def none_of(data: Data) -> AugmentMasks:
    """Normalisation of images and masks, nothing else."""
    return AugmentMasks(data.mean, data.std, data.size, ignore=255, scale=(1.0, 1.0))


# ------------------------------------------------------------------ the page


def equal(rows: list[dict[str, Any]]) -> list[str]:
    """The table at equal time: a line for each set and rival, the default's lead paired by seed."""
    by_net = {(row["set"], row["net"], row["seed"]): row for row in rows}
    lines = [
        "| set | rival | seeds | default, validation | rival | default, test | rival | lead on test, by seed | mean [95 %] | s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, net in dict.fromkeys((row["set"], row["net"]) for row in rows if row["net"] != "default"):
        seeds = [s for n, other, s in by_net if (n, other) == (name, net) and (name, "default", s) in by_net]
        mine, theirs = ([by_net[name, each, s] for s in seeds] for each in ("default", net))
        if not seeds:
            continue
        lead = [a["test"] - b["test"] for a, b in zip(mine, theirs, strict=True)]
        low, high = interval(lead)
        said = f"{np.mean(lead):+.1f} [{low:+.1f}, {high:+.1f}]" if len(lead) > 2 else "too few seeds"
        means = [f"{np.mean([r[part] for r in each]):.1f}" for part in ("val", "test") for each in (mine, theirs)]
        times = " and ".join(f"{np.mean([r['cpu'] for r in each]):.0f}" for each in (mine, theirs))
        leads = ", ".join(f"{each:+.1f}" for each in lead)
        lines += [f"| {name} | {net} | {len(seeds)} | {' | '.join(means)} | {leads} | {said} | {times} |"]
    return lines


ABOUT_EQUAL = (
    "## At equal time, under 100,000 parameters",
    "",
    "The default, `single_stage` with `--max-params 100k`, beside oche's rivals as wide as 100,000 parameters allow, trained by the",
    "protocol `segment` (rate 0.05, which had a better validation score on `lines` than 0.1), last epoch. Epochs were set beforehand so",
    "that all take as long, by seconds per epoch measured side by side; the last column has the seconds of the default and the rival.",
)


def page(rows: list[dict[str, Any]]) -> str:
    """docs/results/masks.md: the table at equal time, then a line per run."""
    about = ("set", "net", "seed", "val", "test", "cpu", "parameters", "equal")
    text = [
        "# How networks for masks are found by default",
        "",
        "Written by `python benchmarks/masks.py --page docs/results/masks.md` from `masks.jsonl` beside it; the script tells of sets and",
        "nets. Mean IoU in percent; seconds of processor time, one thread of a busy machine.",
        "",
        *ABOUT_EQUAL,
        "",
        *equal([row for row in rows if "equal" in row]),
        "",
        *FROM_EQUAL,
        "",
        "## What was taken apart",
        "",
        "| set | net | what differs from the default of the time | seed | validation | test | parameters | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        differs = " ".join(f"{key}={value}" for key, value in row.items() if key not in about)
        text += [
            f"| {row['set']} | {row['net']} | {differs or '-'} | {row['seed']} | {row['val']:.1f} | {row['test']:.1f} | "
            f"{row['parameters']:,} | {row['cpu']:.0f} |"
        ]
    return "\n".join([*text, "", *READING]) + "\n"


FROM_EQUAL = (
    "- **What was at fault was the operations.** A step of two inverted bottlenecks and a skip connection in each node takes two to two",
    "  and a half times as long as one of a 3x3 convolution and a skip connection (0.62 against 0.24 s per epoch of `lines`, 0.81 against",
    "  0.40 of `ellipses`). At about equal time, seed 0, by validation: `lines` 73.8 (30 s) instead of 67.9 (25 s), `ellipses` 78.4 (38 s)",
    "  instead of 73.3 (32 s). With the former ones the default lost to `unet` on `ellipses` (73.3 against 77.5). So `quick` has",
    "  `plain_3x3` and `skip_connect` now. They were chosen on validation images of these two sets, which no longer count as unseen.",
    "- **Beside oche's rivals it is a draw on `ellipses` and not told apart on `lines`**, by test images of three seeds (on validation",
    "  images it is ahead in five of six pairs). On CamVid, by which nothing was chosen, it is ahead in all three seeds, by an interval",
    "  that touches 0; there its epochs were set by the first run of each, and it took a ninth longer with seed 0.",
    "- **A network of three 3x3 convolutions at full resolution (`fcn`, 10,722 parameters, Adam) is still ahead on `lines`**, and far",
    "  behind on `ellipses`. Where what is to be found is a few pixels wide, take such a network; the grid works from a quarter of the",
    "  resolution on.",
    "- In these runs the default used half of the limit on the made sets, its budget's 8 channels. On CamVid its mixture had",
    "  137,595 parameters, and two choices, a convolution of 64 channels among them, were dropped at the end until it kept the limit.",
    "  Since a979707 the width is chosen so that all of it fits and nothing is dropped (CamVid: 6 channels, 77,879 parameters);",
    "  that was not measured here.",
    "- Not measured: a limit of 12,000 parameters, the former default on CamVid at this time, a rate for the rivals per set (on CamVid",
    "  they have 0.1), the deeper head below with the new operations. The processor was shared by twenty processes, so that seconds are",
    "  about twice those of a quiet machine.",
)


READING = (
    "What was taken from it; one seed each, so that only large differences count:",
    "",
    "- **The head.** Answers at a quarter of the resolution, enlarged, cannot follow thin things: logits at stride 4 that are",
    "  fitted to the test masks themselves reach 86.9 % on `lines` and 87.1 on CamVid (99.6 on `ellipses`, 98.5 on `rare`), at",
    "  stride 2 99.6 and 98.0. With the head `fine`, which joins them with a convolution of the image at every pixel, `lines` has",
    "  65.8 instead of 56.8 for a quarter more time.",
    "- **The rate.** `quick` began at 0.02. From 0.1 on `lines` has 71.2 instead of 65.8, at equal time.",
    "- **The size.** The grid of 6 layers and six operations that `quick` had takes four times as long per step as 4 layers and",
    "  three: after 30 epochs and 48 s it has 46.2 where the smaller one has 71.2 after 60 epochs and 22 s. `quick` has the",
    "  smaller one now.",
    "- **Steps.** Twice the epochs at the rate of before are worth 2.8 points (68.6); 150 epochs instead of 60 at the new one 2.0",
    "  (73.2). So where images are few, `quick` takes at least 1,200 batches, which 150 epochs of 64 images are; their number was",
    "  not tuned.",
    "- Not at fault: augmentation (without scaling, cropping and flipping 62.5 instead of 65.8), and that alpha gets half of the",
    "  images: all images for both (`split=one_level`) are worth 2.4 points and a third more time at the rate of before, and",
    "  nothing at the new one (70.9 against 71.2).",
    "- Adam at 0.003 in the place of SGD: 72.9 instead of 71.2, for 63 s instead of 22, which was not looked into: at equal time",
    "  SGD has as much (73.2 after 60 s).",
    "- **The plain network is still ahead on `lines`**: at equal time it has 77.9 (test 76.4) where the searched one has 73.2",
    "  (72.6). On `ellipses` the searched one is level by validation (72.4 against 73.2) and ahead by test (76.6 against 72.5), in",
    "  half the time. On `shapes`, where one has to see more than seven pixels at once, it is near the ground alone: 64 images are",
    "  few. There head and rate are worth little (71.8 and 76.1 without them, in the smaller grid). So the default is better than",
    "  it was, and is not shown to beat a plain network.",
    "- **A deeper head** (rows `head=deeper`; not in the code): two 3x3 convolutions of the image in the place of one, twice as wide,",
    "  and the convolution that joins as wide. At about 60 s `lines` has 75.4 (test 74.1) with it, 73.2 (72.6) without, the plain network",
    "  77.9 (76.4); at 22 s 71.8 against 71.2. So what is missing on thin things is work at full resolution. One seed, one set: the",
    "  default was not changed by it.",
    "- **Undecided alpha is not at fault on `lines`.** One inverted bottleneck in every node, all gates open, is all ground after",
    "  13 s from scratch (47.0, at a rate of 0.05): nothing in it leads past the bottlenecks. The mixture, with its skip connections,",
    "  learns sooner.",
    "- **oche's own rivals are behind the default on `lines`** at about equal time, under 100,000 parameters: `unet` 65.9, `plain_fcn`",
    "  63.8, the default 71.2 (89,418 parameters). They work at a quarter of the resolution; the plain network that is ahead",
    "  has 10,722 parameters, all at full resolution. Their rate, 0.05, was not tuned for this.",
    "- **On `rare`, one per cent foreground, the default is all ground after 30 epochs and 23 s** (49.5), with the Dice loss that the",
    "  command adds for rare classes. By default it takes 150 epochs there, which were not run; nor was anything beside it.",
    "- Every search for masks trains a rival beside its network now, and says by an interval over test images which to take",
    "  ([limits](../limits.md#beside-a-network-picked-by-hand)).",
    "- Not measured for want of processor time: more seeds in this part (so there is no interval here), `rare` beside other networks,",
    "  batch norm. Nothing is claimed about these.",
)


Net = Callable[[Data, int, Mapping[str, str]], tuple[nn.Module, float]]

NETS: dict[str, Net] = {
    "default": searched,
    "fcn": plain_fcn,
    "plain_fcn": partial(rival, "plain_fcn"),
    "unet": partial(rival, "unet"),
    "one_op": one_op,
}


def main() -> None:
    """One run, several, or the page."""
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--queue"]:
        for line in Path(sys.argv[2]).read_text(encoding="utf-8").splitlines():
            measured(line.split())
        return
    if sys.argv[1:2] == ["--page"]:
        out = Path(sys.argv[2])
        rows = [json.loads(line) for line in out.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
        out.write_text(page(rows), encoding="utf-8")
        return
    measured(sys.argv[1:])


def measured(words: list[str]) -> None:
    """Trains or searches, and prints the line."""
    name, net, seed, *rest = words
    given, data = dict(pair.split("=", 1) for pair in rest), data_of(name)
    network, seconds = NETS[net](data, int(seed), given)
    fabric = resolve(Request(data=data, threads=1, device="cpu")).fabric
    task = resolve(Request(data=data, threads=1, device="cpu")).task
    found = {"set": name, "net": net, "seed": int(seed), **given}
    for part in ("val", "test"):
        found[part] = round(100 * evaluate(network, getattr(data, part), none(data), fabric, task).value, 2)
    found |= {"cpu": round(seconds, 1), "parameters": sum(p.numel() for p in network.parameters())}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
