"""When the command began: Python and what it imports take seconds on a busy machine, which `--time` has to count."""

from __future__ import annotations

import os
import time
from pathlib import Path

LONGEST = 120.0
"""A process that is older has done something else before: it is not the command's own."""


def age() -> float:
    """Seconds since this process was started; 0 where the system does not tell, and for a process that is not the command's own."""
    try:
        after_name = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
        started = int(after_name.split()[19]) / os.sysconf("SC_CLK_TCK")
        seconds = time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, ValueError, IndexError, AttributeError):  # only Linux has them
        return 0.0
    return seconds if 0 <= seconds <= LONGEST else 0.0
