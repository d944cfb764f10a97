"""Measures a step of a single-stage search on larger masks: processor time, and memory.

    OMP_NUM_THREADS=1 python benchmarks/larger.py 256 256                 # height and width; OCHE_FAST=off: plain cells
    OMP_NUM_THREADS=1 python benchmarks/larger.py 256 256 --profile       # and where the time goes

The search is what `oche search` takes for masks by default (single_stage in the grid, budget quick), on noise of that size with twelve
classes, with a step of alpha in every step. One JSON line: seconds per step (median of processor time, the first step left out), by how
much memory grew over what the process had before, and the estimate of that, each in MiB.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median

import torch

from oche.api.problems import problem_of
from oche.data import Data, ImageSet
from oche.fast import coverage
from oche.plan.request import Request
from oche.plan.resolve import resolve
from oche.search.begin import StepBatches, begin, bilevel, streams
from oche.search.loop import steps
from oche.search.preflight import memory_bytes
from oche.search.record import memory_mib
from oche.search.searcher import as_searcher
from oche.spaces.grid import MBCONVS

CLASSES = 12
SIX = {"space.layers": 6, "space.ops": list(MBCONVS), "space.head": "topdown"}


def noise(height: int, width: int, count: int = 24) -> Data:
    """Images of noise with masks of blocks."""
    rng = torch.Generator().manual_seed(0)

    def part() -> ImageSet:
        images = torch.randint(256, (count, height, width, 3), generator=rng, dtype=torch.uint8)
        small = torch.randint(CLASSES, (count, -(-height // 16), -(-width // 16)), generator=rng, dtype=torch.uint8)
        masks = small.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :height, :width].contiguous()
        return ImageSet.of(images, masks)

    names = tuple(map(str, range(CLASSES)))
    return Data("noise", part(), part(), part(), names, 3, (height, width), (0.5,) * 3, (0.25,) * 3, ignore=255)


def main() -> None:
    """Reads the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("height", type=int)
    parser.add_argument("width", type=int)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="measured steps, one more runs before them")
    parser.add_argument(
        "--six", action="store_true", help="the grid of issue 18: 6 layers, six operations, no fine head"
    )
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    data = noise(given.height, given.width)
    options = {"data": data, "batch": given.batch, "device": "cpu", "threads": torch.get_num_threads()}
    plan = resolve(Request("single_stage", settings=SIX if given.six else {}, **options))
    method, problem = as_searcher(plan.searcher).method, problem_of(plan)
    assert method is not None
    state = begin(problem, method)
    base = memory_mib(problem.fabric.device)
    kept = memory_bytes(state, problem, method)
    weights, arch = streams(problem, method)
    losses = bilevel(state, method)
    taken = []
    for number in range(given.steps + 1):
        started = time.process_time()
        steps(state, method, losses, StepBatches(weights, arch, number), True)
        taken.append(time.process_time() - started)
    found = {
        "size": [given.height, given.width],
        "batch": given.batch,
        "cells": sorted(set(coverage(state.supernet).values())),
        "seconds": median(taken[1:]),
        "peak": memory_mib(problem.fabric.device) - base,
        "estimate": kept / 2**20,
    }
    print(json.dumps(found), flush=True)
    if given.profile:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            steps(state, method, losses, StepBatches(weights, arch, given.steps + 1), True)
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=50))


if __name__ == "__main__":
    main()
