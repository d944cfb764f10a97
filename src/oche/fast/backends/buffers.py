"""Buffers in which a cell keeps what its backward pass needs, and which the next step uses again.

Fresh memory of this size costs a page fault every four kilobytes, a noticeable part of a step; so a buffer goes back to its pool when
nothing refers to it any more, which is as soon as autograd has let go of it.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_PATIENCE = 1024
"""A size that was not asked for in so many requests is given back to the system."""

_Key = tuple[int, torch.dtype]


@dataclass
class Buffers:
    """A pool of flat tensors by size and dtype. What is `held` is kept until its memory is needed."""

    free: dict[_Key, list[Tensor]] = field(default_factory=dict)
    held: MutableMapping[Tensor, Tensor] = field(default_factory=WeakTensorKeyDictionary)
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
        return self._lend(key, size)

    def lasting(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor with any content that may be handed out: its memory is lent for as long as any tensor lies in it."""
        size = math.prod(shape)
        if not size:
            return torch.empty(shape, dtype=dtype)
        lent = self.take(size, dtype)
        array = lent.numpy().view()  # lives as long as a storage refers to it
        weakref.finalize(array, _let, lent).atexit = False
        return torch.from_numpy(array).view(shape)

    def scratch(self, size: int, dtype: torch.dtype) -> Tensor:
        """A buffer for one call: the first elements of a larger buffer if one is free and none of this size is."""

        def larger(keys: Iterable[_Key]) -> list[_Key]:
            return [key for key in keys if key[1] == dtype and key[0] >= size]

        free = larger(key for key, kept in self.free.items() if kept) or larger(map(_key, self.held.values()))
        return self._lend(min(free), size) if free else self.take(size, dtype)

    def hold(self, lent: Tensor, of: Tensor) -> None:
        """Keeps what `take` has lent until it is claimed by the same tensor `of`, that one dies, or the memory is needed."""
        self.held[of] = lent

    def claim(self, of: Tensor) -> Tensor | None:
        """Returns what is held under the key, and lets go of it."""
        return self.held.pop(of, None)

    def _lend(self, key: _Key, size: int) -> Tensor:
        if not self.free.get(key):
            self._let_go(key)
        kept = self.free.get(key)
        own = kept.pop() if kept else torch.empty(key[0], dtype=key[1])
        lent = own.detach()[:size]
        weakref.finalize(lent, self._back, key, own).atexit = False
        return lent

    def _let_go(self, key: _Key) -> None:
        of = next((of for of, lent in self.held.items() if _key(lent) == key), None)
        if of is not None:
            del self.held[of]

    def _back(self, key: _Key, own: Tensor) -> None:
        if key in self.asked:
            self.free.setdefault(key, []).append(own)


def _let(lent: Tensor) -> None:
    """Keeps what is lent alive until it is called."""


def _key(lent: Tensor) -> _Key:
    return lent.numel(), lent.dtype


_pools: weakref.WeakValueDictionary[str, Buffers] = weakref.WeakValueDictionary()


def shared() -> Buffers:
    """The pool of all compiled cells: it lives as long as any fused cell, each of which keeps it."""
    pool = _pools.get("cells")
    if pool is None:
        pool = _pools["cells"] = Buffers()
    return pool
