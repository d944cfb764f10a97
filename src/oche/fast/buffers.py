"""Where does a cell keep what its backward needs? In buffers that the next step uses again.

Fresh memory of this size costs a page fault every four kilobytes, a noticeable part of a step; so a buffer goes back to its pool when
nothing refers to it any more, which is as soon as autograd has let go of it.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import torch
from torch import Tensor

_PATIENCE = 1024
"""A size that was not asked for in so many requests is given back to the system."""

_Key = tuple[int, torch.dtype]


@dataclass
class Buffers:
    """A pool of flat tensors by size and dtype."""

    free: dict[_Key, list[Tensor]] = field(default_factory=dict)
    asked: dict[_Key, int] = field(default_factory=dict)
    requests: int = 0

    def take(self, size: int, dtype: torch.dtype) -> Tensor:
        """`size` elements with any content, lent for as long as the returned tensor lives."""
        key = (size, dtype)
        self.requests += 1
        self.asked[key] = self.requests
        for old in [k for k, last in self.asked.items() if last < self.requests - _PATIENCE]:
            self.free.pop(old, None)
            del self.asked[old]
        kept = self.free.get(key)
        own = kept.pop() if kept else torch.empty(size, dtype=dtype)
        lent = own.detach()
        weakref.finalize(lent, self._back, key, own).atexit = False
        return lent

    def _back(self, key: _Key, own: Tensor) -> None:
        if key in self.asked:
            self.free.setdefault(key, []).append(own)
