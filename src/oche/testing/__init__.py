"""Contract tests for parts of your own: each check raises AssertionError with a sentence, and needs no test framework.

    from oche.testing import check_method
    check_method(gaea())

The project holds its own parts to the same checks. They search noise images in small spaces, so they say nothing about accuracy.
"""

from __future__ import annotations

from oche.testing.noise import noise_problem
from oche.testing.parts import check_arch_gradient, check_relaxation
from oche.testing.searching import check_method, check_searcher
from oche.testing.spaces import check_space
from oche.testing.tables import check_table

__all__ = [
    "check_arch_gradient",
    "check_method",
    "check_relaxation",
    "check_searcher",
    "check_space",
    "check_table",
    "noise_problem",
]
