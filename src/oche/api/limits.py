"""The bounds of a run: its folder to itself, so many CPU threads, gradients, and memory whose end is told in a sentence."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from lightning_fabric import Fabric

from oche.errors import RunFailed, ran_out
from oche.plan.processes import stopped_by_loss, watch
from oche.run import Run


def alone(run: Run, fabric: Fabric) -> AbstractContextManager[None]:
    """Keeps other processes from writing to the run meanwhile; of several processes of one run the first does. Raises UserError."""
    return run.lock() if fabric.is_global_zero else nullcontext()


@contextmanager
def together(run: Run, fabric: Fabric, verb: str) -> Iterator[None]:
    """Turns the loss of another process of the run into one sentence with the command that carries on. Raises RunFailed."""
    watch.carry_on = f"oche {verb} --resume {shlex.quote(str(run.path))}"
    try:
        yield
    except RuntimeError as error:
        lost = stopped_by_loss(error) if fabric.world_size > 1 else None
        if lost is None:
            raise
        raise lost from None


@contextmanager
def cpu_threads(threads: int | None) -> Iterator[None]:
    """Lets torch use that many threads in between."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def gradients() -> Iterator[None]:
    """Lets what learns have gradients, even where the caller is within `torch.no_grad()` or `torch.inference_mode()`."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def out_of_memory(batch: int) -> Iterator[None]:
    """Turns an allocation that failed into one sentence. Raises RunFailed: what was done is kept, and the command line exits with 1."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not ran_out(error):
            raise
        raise RunFailed(
            f"Out of memory with a batch of {batch}: try half of it (--batch {max(2, batch // 2)}); what was done is kept."
        ) from None
