"""Scalars that a method adds to a loss. Every term reaches every architecture gradient, for both losses are plain functions."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from oche.base import Alpha, Batch, Params
from oche.state import SearchState


class Term(Protocol):
    """A scalar, differentiable in theta and alpha, added to the inner or outer loss."""

    def __call__(self, state: SearchState, theta: Params, alpha: Alpha, batch: Batch) -> Tensor: ...
