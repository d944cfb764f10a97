"""What a search has kept of itself, in memory and on the disk, and what that has cost."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

SHARE = 0.005
"""The share of a search's time that writing checkpoints may take, unless it is told how often to write them. Our choice."""


@dataclass
class Keeping:
    """The last good state as a `table`, and the `files` of the epochs since the last checkpoint on the disk.

    `unsaved`: the table is newer than the checkpoint. `cost` is how many seconds the last checkpoint took, `wrote` when it was written;
    `spent` of `total` seconds of this process went into keeping.
    """

    table: dict[str, Any] | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    unsaved: bool = False
    cost: float = 0.0
    wrote: float | None = None
    spent: float = 0.0
    total: float = 0.0

    @property
    def due(self) -> bool:
        """True if so much time has passed since the last checkpoint that another one takes no more than its `SHARE`."""
        return self.wrote is None or (time.perf_counter() - self.wrote) * SHARE >= self.cost

    @property
    def share(self) -> float:
        """The share of the search's time in this process that went into keeping."""
        return self.spent / self.total if self.total else 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Counts the time within as spent on keeping."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.spent += time.perf_counter() - begun


def copied(tree: Any) -> Any:
    """A nested table with tensors of its own."""
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if isinstance(tree, Mapping):
        return {key: copied(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(copied(value) for value in tree)
    return tree
