"""The table of latencies of this machine: read from the cache, and measured kernel by kernel as it is asked for."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from oche.base import counted
from oche.errors import UserError
from oche.fast.backends.native import cache
from oche.spaces import Space
from oche.spaces.fit import LEAST, WIDER, with_width
from oche.spaces.kernels import Kernel
from oche.spaces.latency import Latencies, read_table
from oche.spaces.sampling import sample
from oche.training import timing

STEP = 4
"""Between the widths that a table for another machine has."""

COVER = 24
"""Random networks whose kernels a table for another machine has, at each width."""


def this_machine() -> Latencies:
    """The table of this machine, which measures what it lacks and keeps it in the cache. Raises UserError without onnxruntime."""
    if not timing.can_measure():
        raise UserError(
            "--max-latency measures operations by onnxruntime, which is not installed: pip install 'oche[onnx]', or give the table of "
            "another device with --latency-table FILE."
        )
    path = _path()
    try:
        table = read_table(path)
    except UserError:  # there is none yet, or it is damaged
        table = Latencies("", "", timing.of_call(), {})
    table.device, table.runtime, table.source = timing.processor(), timing.runtime(), ""

    def measure(kernel: Kernel) -> float:
        found = table.kernels[str(kernel)] = timing.of_kernel(kernel)
        _keep(table, path)
        return found

    table.measure = measure
    return table


def measured_for(space: Space) -> Latencies:
    """This machine's latencies of what networks of the space need, at every fourth width up to `WIDER` times its own."""
    table = this_machine()
    for wide in _widths(space):
        for i in range(COVER):
            table.of_network(wide, sample(wide, counted(i, "latencies")))
    return table


def _widths(space: Space) -> Iterable[Space]:
    own = getattr(space, "channels", None)
    if own is None:
        return [space]
    return [with_width(space, width) for width in sorted({own, *range(LEAST, WIDER * own + 1, STEP)})]


def _path() -> Path:
    """The cache's file for this processor, this version of onnxruntime and this way of measuring."""
    key = f"{timing.processor()}|{timing.runtime()}|1 thread|{timing.WAY}"
    return cache() / f"latencies-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _keep(table: Latencies, path: Path) -> None:
    """Writes the table, with what another process has measured meanwhile; a cache that cannot be written to is left alone."""
    with suppress(UserError):
        table.kernels = {**read_table(path).kernels, **table.kernels}
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(table.plain(), indent=1), encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
