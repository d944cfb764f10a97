"""Marks a forward pass as that of a deployed network: it is exported, or its operations are listed to foretell its latency.

Modules may then take a way that a runtime likes better, with the same result: a stride in a 1x1 convolution instead of a slice before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_LISTED: ContextVar[bool] = ContextVar("listed", default=False)


def deployed() -> bool:
    """True while a network is exported, or within `as_deployed`."""
    if torch.compiler.is_exporting():
        return True
    return not torch.compiler.is_compiling() and _LISTED.get()  # torch.compile cannot trace a context variable


@contextmanager
def as_deployed() -> Iterator[None]:
    """Lets networks take the ways of deployed ones in between."""
    token = _LISTED.set(True)
    try:
        yield
    finally:
        _LISTED.reset(token)
