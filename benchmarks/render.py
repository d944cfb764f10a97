"""docs/results/performance.md and its pictures, from the log that `benchmarks/table.py` keeps: rendering again measures nothing.

python benchmarks/render.py

What stands between the two `reading` comments of an existing page is written by hand, and kept.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from goals import GOALS, OTHERS
from matplotlib import pyplot as plt
from results_page import READING

RESULTS = Path(__file__).parents[1] / "docs" / "results"
LOG = "performance.jsonl"
Result = dict[str, Any]


ABOUT = {
    "also/darts-b16": "DARTS space, batch 16",
    "also/nb201-portable": "NAS-Bench-201, batch 64, portable tier (no compiler) against plain cells in channels_last",
    "also/pcdarts-portable": "PC-DARTS, batch 16, portable tier (no compiler) against plain cells in channels_last",
    "also/darts-channels-last": "DARTS space, batch 16, against plain cells in channels_last",
    "also/darts-portable": "DARTS space, batch 16, portable tier (no compiler) against plain cells in channels_last",
    "also/darts-peer": "DARTS space, batch 16, against a literal DARTS without oche",
    "also/pcdarts-nhwc": "PC-DARTS, batch 64, against the published step in channels_last",
    "also/exact-nhwc": "second order, batch 16: exact product against the published finite difference in channels_last",
    "also/darts-bf16": "DARTS space, batch 16, bf16 against fp32 reference",
    "also/darts-recompute": "DARTS space, batch 16, recomputed cells against kept ones",
    "also/portable-recompute": "the same on the portable tier",
    "also/nb201-compile": "NAS-Bench-201, batch 64, portable tier, cells by torch.compile against cells as they are",
    "also/nb201-bf16": "NAS-Bench-201, batch 64, bf16 against fp32 reference",
    "also/nb201-channels-last": "NAS-Bench-201, batch 64, against plain cells in channels_last",
    **{f"also/{s}": f"{s.upper()} of RobustDARTS, batch 8" for s in ("s1", "s2", "s3", "s4")},
}
SCALES = ("batch", "size", "channels", "cells", "edges", "ops", "threads")
BASE = {"batch": "8", "size": "32", "channels": "16", "cells": "4", "edges": "14", "ops": "8"}
"""Where the scaling rows meet: DARTS with 4 cells at batch 8."""


def render(log: Path, folder: Path) -> str:
    """Writes performance.md and its pictures beside the log; says what was written."""
    records = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    latest = {record["row"]: record for record in records if "row" in record}
    if not latest:
        return f"{log} holds no row yet: nothing was rendered"
    rows: dict[str, Result] = {name: record["result"] for name, record in latest.items()}
    pictures = {"stages": stages(rows), "memory": memory(rows), "scaling": scaling(rows)}
    for name, figure in pictures.items():
        if figure is not None:
            figure.savefig(folder / f"performance-{name}.svg", metadata={"Date": None})
            plt.close(figure)
    there = [name for name, figure in pictures.items() if figure is not None]
    written = folder / "performance.md"
    kept = READING.search(written.read_text()) if written.exists() else None
    written.write_text(page(latest, rows, there, kept.group(1) if kept else "Not written yet.\n"))
    return f"{folder / 'performance.md'}: {len(rows)} rows"


# ------------------------------------------------------------------ the page


def page(latest: dict[str, Result], rows: dict[str, Result], pictures: Sequence[str], reading: str) -> str:
    """The page's text, `reading` as it stood there."""
    machines = sorted({f"{r['machine']} ({r['commit']})" for r in latest.values()})
    versions = sorted({str(r["torch"]) for r in rows.values() if "torch" in r})
    peaks = [r["peaks"] for r in rows.values() if r.get("peaks")]
    said = [
        "# Speed and memory of a search iteration",
        "",
        f"Measured by `make bench` on {'; '.join(machines)}, torch {', '.join(versions)}, fp32 unless said; every answer is a line of "
        "[performance.jsonl](performance.jsonl). Ratios are of medians of fresh processes in turn, with few iterations each: "
        "read them to about 15 %. "
        "`reference` is the published step, literally and without oche ([peers](../../benchmarks/peers)), in NCHW; `reference-nhwc` the "
        "same with channels_last put on it; `reference-channels-last` oche's plain cells without gradients that nobody uses.",
    ]
    if peaks:
        gflops, gbytes = (max(p[key] for p in peaks) for key in ("gflops", "gbytes"))
        said[-1] += (
            f" The machine's peaks, measured in the same runs: up to {gflops:.0f} GFLOP/s and {gbytes:.0f} GB/s."
        )
    said += ["", "## Reading", "", f"<!-- reading -->\n{reading}<!-- /reading -->"]
    said += ["", "## Goals", "", *goals(rows), "", "## Every comparison", "", *comparisons(latest)]
    augmented = [r for name in ("also/augment-one-thread", "goal/augment") if (r := rows.get(name))]
    if augmented:
        told = [f"{r['ratio']:.1f}x ({1e3 * r['seconds']:.2f} ms, {r['threads']} threads)" for r in augmented]
        said += ["", f"Augmentation of a batch of 64 against PIL, image by image: {', '.join(told)}."]
    if "start" in {name.rpartition("/")[2] for name in rows}:
        start = rows["goal/start"]
        said += ["", f"`import oche` takes {start['seconds']:.3f} s beyond torch (goal: under 0.2 s), "
                 f"`import oche.api.search`, all that a search needs, another {start['api_seconds']:.2f} s."]  # fmt: skip
    if "goal/busy" in rows:
        said += ["", "## Busy machines", "", *busy(rows["goal/busy"])]
    if "also/retrain" in rows:
        said += ["", "## Training the found network", "", *retraining(rows["also/retrain"])]
    if "also/epoch" in rows:
        said += ["", "## Training, per multiply-add", "", *epochs(rows["also/epoch"])]
    titles = {
        "stages": "Where an iteration's time goes",
        "memory": "Memory",
        "scaling": "Scaling",
    }
    for name in pictures:
        said += ["", f"## {titles[name]}", "", f"![{titles[name]}](performance-{name}.svg)"]
        if name == "stages":
            said += ["", *kernels(rows)]
        if name == "scaling":
            said += ["", "DARTS space with 4 cells at batch 8, one thing changed at a time; fast against reference."]
    return "\n".join(said) + "\n"


def _table(header: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *body)]


def goals(rows: dict[str, Result]) -> list[str]:
    """Goal against measured."""
    body = []
    for name, goal in GOALS.items():
        if name not in rows:
            continue
        ratio, kept = rows[name]["ratio"], rows[name].get("memory_ratio")
        verdict = (
            "stretch reached"
            if goal.stretch and ratio >= goal.stretch
            else "reached"
            if ratio >= goal.ratio
            else "missed"
        )
        less = f"{kept:.1f}x less" if kept and goal.memory else ""
        asked = (
            f"{goal.memory:g}x less ({'reached' if kept and kept >= goal.memory else 'missed'})" if goal.memory else ""
        )
        stretch = f"{goal.stretch:g}x" if goal.stretch else ""
        body.append([goal.work, f"{goal.ratio:g}x", stretch, f"**{ratio:.2f}x**", verdict, less, asked])
    for other in OTHERS:
        if other.row not in rows:
            continue
        value = other.of(rows[other.row])
        asked = [f"{'at most ' * other.most}{at:g}{other.unit}" for at in (other.goal, other.stretch)]
        measured = f"**{value:.2f}{other.unit}**" if math.isfinite(value) else "not reached"
        body.append([other.work, *asked, measured, other.verdict(value), "", ""])
    return _table(["work", "goal", "stretch", "measured", "", "memory", "goal"], body)


BUSY = (1.6, 1.4)
"""Goal and stretch: busy seconds over the quiet ones of threads that wait as by default."""


def busy(row: Result) -> list[str]:
    """Seconds of an iteration, quiet and with one core taken."""
    first = next(iter(row["waiting"]))
    body = []
    for side, found in row["waiting"].items():
        verdict = next(
            (
                word
                for word, goal in zip(("stretch reached", "reached"), BUSY[::-1], strict=True)
                if found["goal"] <= goal
            ),
            "missed",
        )
        times = f"{found['busy']:.3f} s ({found['busy_least']:.3f} to {found['busy_most']:.3f})"
        body.append(
            [side, f"{found['quiet']:.3f} s", times, f"{found['slowdown']:.2f}x", f"**{found['goal']:.2f}x**", verdict]
        )
    about = (
        f"An iteration ({row['space']}, batch {row['batch']}, {row['threads']} threads) on a quiet machine and beside a process that "
        f"counts on one core, by how threads wait: `{first}` as PyTorch has them, `oche` as the command sets them "
        f"([busy.py](../../benchmarks/busy.py)). Load before: {row['load']:.2f}. Goal: {BUSY[0]:g} times the quiet time of `{first}`, "
        f"stretch {BUSY[1]:g}."
    )
    header = ["waiting", "quiet", "one core taken", "to its own quiet time", f"to that of {first}", ""]
    return [about, "", *_table(header, body)]


def comparisons(latest: dict[str, Result]) -> list[str]:
    """Every supernet row that is no scaling row."""
    body = []
    for name, record in latest.items():
        row = record["result"]
        if "sides" not in row or name.startswith("scaling/"):
            continue
        about = ABOUT.get(name) or (GOALS[name].work if name in GOALS else name)
        slow, fast = row["sides"][row["against"]], row["sides"][row["tier"]]
        cell = [_side(slow), _side(fast)]
        shares = f"{_share(fast, 'compute_share')}, {_share(fast, 'bandwidth_share')}"
        ratios = f"**{row['ratio']:.2f}x**", f"{row['memory_ratio']:.1f}x"
        how = f"{row['repeats']} x {row['iterations']}, {row['threads']} threads, {record['commit']}"
        body.append([about, Path(row["against"]).name, *cell, *ratios, shares, how])
    header = [
        "work",
        "against",
        "its s, img/s, MiB, operators",
        "oche's",
        "ratio",
        "memory",
        "of compute, bandwidth peak",
        "processes x iterations, threads, commit",
    ]
    return _table(header, body)


def _side(side: Result) -> str:
    return f"{side['seconds']:.3f} s, {side['images_per_second']:.1f}, {side['peak_mib']:.0f}, {side['operators']:,}"


def _share(side: Result, name: str) -> str:
    return f"{side[name]:.0%}" if name in side else "?"


def kernels(rows: dict[str, Result]) -> list[str]:
    """Calls and seconds an iteration of the compiled kernels, of the rows with the most of them."""
    body = []
    for name in GOALS:
        row = rows.get(name, {}) if name.startswith("goal/") else {}
        for kernel, (count, seconds) in sorted(
            row.get("sides", {}).get(row.get("tier"), {}).get("kernels", {}).items(), key=lambda item: -item[1][1]
        )[:4]:
            body.append(
                [
                    GOALS[name].work,
                    f"`{kernel}`",
                    f"{count:.0f}",
                    f"{1e3 * seconds:.0f} ms",
                    f"{seconds / row['seconds']:.0%}",
                ]
            )
    return _table(["work", "compiled kernel", "calls", "time", "of the iteration"], body) if body else []


def retraining(row: Result) -> list[str]:
    """A training step in every form."""
    said = f"A step of DARTS_V2 with {row['cells']} cells of {row['channels']} channels, batch {row['batch']}:"
    body = [
        [form, f"{s:.3f} s", f"{row['ratios'][form]:.2f}x", f"{row['first'][form]:.1f} s"]
        for form, s in row["seconds"].items()
    ]
    return [said, "", *_table(["form", "a step", "against NCHW", "first step"], body)]


def epochs(row: Result) -> list[str]:
    """A training step of several networks, beside the first one's per multiply-add; the goal is 2x, the stretch 1.3x."""
    threads = "one thread, processor time" if row["threads"] == 1 else f"{row['threads']} threads"
    body = []
    for name, seconds in row["seconds"].items():
        plain, ours = row["dearer"][name].values()
        verdict = "" if not body else "stretch reached" if ours <= 1.3 else "reached" if ours <= 2 else "missed"
        times = (f"{s:.3f} s" for s in seconds.values())
        gain = f"{row['ratios'][name]:.2f}x"
        body.append([name, f"{row['million'][name]:.1f} M", *times, gain, f"{plain:.2f}x", f"**{ours:.2f}x**", verdict])
    return [
        f"A training step at batch {row['batch']} ({threads}), in plain channels_last and on the kernels; per multiply-add it is "
        "held against ResNet-8's in plain channels_last (goal 2x, stretch 1.3x).",
        "",
        *_table(
            ["network", "multiply-adds", "plain", "kernels", "gain", "per multiply-add, plain", "kernels", ""], body
        ),
    ]


# ------------------------------------------------------------------ pictures


def stages(rows: dict[str, Result]) -> plt.Figure | None:
    """Seconds an iteration by stage, as a share of the whole."""
    shown = {n: r["sides"][r["tier"]] for n, r in rows.items() if n.startswith("goal/") and "sides" in r}
    shown = {n: side for n, side in shown.items() if side["stages"]}
    if not shown:
        return None
    names = ["forward", "backward", "clip", "optimiser of weights", "optimiser of alpha", "batches", "the rest"]
    figure, axis = plt.subplots(figsize=(7, 0.6 + 0.45 * len(shown)), layout="constrained")
    left = [0.0] * len(shown)
    for stage in names:
        part = [max(side["stages"].get(stage, 0.0), 0.0) / side["seconds"] for side in shown.values()]
        axis.barh(list(map(_short, shown)), part, left=left, label=stage)
        left = [a + b for a, b in zip(left, part, strict=True)]
    axis.invert_yaxis()
    axis.set_xlabel("share of an iteration")
    axis.legend(fontsize=7, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return figure


def memory(rows: dict[str, Result]) -> plt.Figure | None:
    """Peak memory of both sides."""
    shown = {n: r for n, r in rows.items() if n.startswith("goal/") and "sides" in r}
    if not shown:
        return None
    figure, axis = plt.subplots(figsize=(7, 0.6 + 0.55 * len(shown)), layout="constrained")
    for offset, (label, key) in enumerate((("compared with", "against"), ("oche", "tier"))):
        axis.barh(
            [i + 0.4 * offset for i in range(len(shown))],
            [r["sides"][r[key]]["peak_mib"] for r in shown.values()],
            height=0.38,
            label=label,
        )
    axis.set_yticks([i + 0.2 for i in range(len(shown))], list(map(_short, shown)))
    axis.invert_yaxis()
    axis.set_xlabel("peak MiB over the model")
    axis.legend(fontsize=8, frameon=False)
    return figure


def scaling(rows: dict[str, Result]) -> plt.Figure | None:
    """Seconds of both sides, and their ratio, against each thing that grows."""
    found: dict[str, list[tuple[float, Result]]] = {}
    base = rows.get(f"scaling/batch={BASE['batch']}")
    for what in SCALES:
        own = {n.rpartition("=")[2]: r for n, r in rows.items() if n.startswith(f"scaling/{what}=")}
        if base and own:
            own.setdefault(BASE.get(what, str(base["threads"])), base)
        if len(own) > 1:
            found[what] = sorted(((float(value), row) for value, row in own.items()), key=lambda pair: pair[0])
    if not found:
        return None
    figure, axes = plt.subplots(2, -(-len(found) // 2), figsize=(9, 4.5), layout="constrained", squeeze=False)
    for axis in axes.flat[len(found) :]:
        axis.axis("off")
    for axis, (what, points) in zip(axes.flat, found.items(), strict=False):
        x = [value for value, _ in points]
        for key, label in (("against", "reference"), ("tier", "oche")):
            axis.plot(x, [r["sides"][r[key]]["seconds"] for _, r in points], marker="o", ms=3, label=label)
        for value, row in points:
            axis.annotate(
                f"{row['ratio']:.1f}x", (value, row["seconds"]), (0, -9), textcoords="offset points", fontsize=7
            )
        axis.set_yscale("log")
        axis.set_title(what, fontsize=9)
        axis.tick_params(labelsize=7)
    axes.flat[0].set_ylabel("seconds an iteration")
    axes.flat[0].legend(fontsize=7, frameon=False)
    return figure


def _short(name: str) -> str:
    return name.rpartition("/")[2]


def main() -> None:
    """Renders the log that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, default=RESULTS / LOG)
    a = parser.parse_args()
    print(render(a.log, a.log.parent))


if __name__ == "__main__":
    main()
