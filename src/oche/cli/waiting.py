"""How threads wait for each other in the `oche` command: they look for some microseconds, then sleep.

By default PyTorch's threads look for work for milliseconds before they sleep. On a machine that does something else, too, they take the
time that others need to finish what they wait for. The number of looks is read once, when PyTorch is loaded, and is the process's: the
command sets it before that, and a program that imports oche keeps its own.
"""

from __future__ import annotations

import os

BRIEF = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}
"""Looks before a thread sleeps, 15 to 40 ns each (GCC's OpenMP, PyTorch's on Linux); milliseconds (LLVM's and Intel's)."""

CHOSEN = ("OMP_WAIT_POLICY", *BRIEF)
"""Variables by which users say how threads wait."""


def wait_briefly() -> None:
    """Sets `BRIEF` in the environment, unless one of `CHOSEN` is there already."""
    if not any(name in os.environ for name in CHOSEN):
        os.environ.update(BRIEF)
