"""What a run takes of the machine: device, processes, precision, threads; and the versions that it was made with."""

from __future__ import annotations

import os
import platform
from datetime import timedelta
from importlib.metadata import version
from typing import Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy

from oche.data import Data
from oche.errors import UserError, unknown
from oche.plan.processes import launched, watch

PRECISIONS: dict[str, Literal["32-true", "bf16-mixed"]] = {"32": "32-true", "bf16": "bf16-mixed"}

WAIT = timedelta(minutes=10)
"""How long a process waits for another that stands still without having ended, before it ends the run with a sentence. Our choice."""

SMALL = 16 * 16
"""Pixels up to which one thread is as fast as several, and steadier on a busy machine."""


def threads_for(asked: int | None, data: Data) -> int:
    """How many threads torch's CPU operations use: as asked, else one for images up to 16x16, where more only wait for each other.

    It is settled before the run and kept with it, for sums round differently with another number. Raises UserError below 1.
    """
    if asked is not None and asked < 1:
        raise UserError(f"--threads must be at least 1; given {asked}.")
    return asked or (1 if data.size[0] * data.size[1] <= SMALL else torch.get_num_threads())


def fabric_for(device: str, devices: int = 1, precision: str = "32") -> Fabric:
    """lightning-fabric for "auto", "cpu", "cuda", "cuda:1" or "mps", with `devices` processes, started here unless torchrun has.

    Raises UserError where there is no such device.
    """
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    kind, _, number = device.partition(":")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind not in ("cpu", "cuda", "mps"):
        if kind == "gpu":  # the nearest name would be cpu
            raise UserError(f"There is no device {device!r}; did you mean 'cuda' (NVIDIA, AMD) or 'mps' (Apple)?")
        raise unknown("device", device, ["auto", "cpu", "cuda", "cuda:0", "mps"])
    if devices < 1:
        raise UserError(f"At least one process is needed; given {devices}.")
    here = min(devices, int(os.environ["LOCAL_WORLD_SIZE"])) if launched() else devices
    there = {"cpu": 1 << 16, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[kind]
    if (number and not number.isdigit()) or int(number or 0) + here > there:
        raise UserError(
            f"There is no device {device!r} here for {here} process(es); `--device auto` takes what there is."
        )
    ids: list[int] | int = [int(number)] if number and kind == "cuda" else here
    fabric = Fabric(
        accelerator=kind,
        devices=ids,
        num_nodes=devices // here,
        strategy=DDPStrategy(timeout=WAIT) if devices > 1 else "auto",
        precision=PRECISIONS[precision],
    )
    watch.start(devices)
    fabric.launch()
    return fabric


def versions() -> dict[str, str]:
    """Returns the versions of oche and of what its numbers depend on."""
    return {name: version(name) for name in ("oche", "torch", "lightning-fabric", "numpy")} | {
        "python": platform.python_version()
    }
