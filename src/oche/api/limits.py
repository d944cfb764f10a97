"""What a run is carried out within: so many CPU threads, and memory whose end is told in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from oche.errors import UserError


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
def out_of_memory(batch: int) -> Iterator[None]:
    """Turns an allocation that failed into one sentence."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in str(error):
            raise  # the CPU's allocator has no error of its own
        raise UserError(
            f"Out of memory with a batch of {batch}: try half of it (--batch {max(2, batch // 2)}); what was done is kept."
        ) from None
