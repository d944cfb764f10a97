"""Hooks into the loop, for what is neither a loss nor a part: masks, early stops, perturbed weights.

A callback is a frozen dataclass; what it must remember lives in `state.memory`, where it is checkpointed.
"""

from __future__ import annotations

from torch import Tensor

from oche.base import Alpha, Batch, OpWeights, Params
from oche.state import SearchState


class Callback:
    """Override what you need; each hook does nothing by default."""

    def on_epoch_start(self, state: SearchState) -> None:
        """Before an epoch's first step. May change `state.mask`, or set `state.stop` to end the search before this epoch."""

    def before_inner_step(self, state: SearchState, weights: OpWeights, alpha: Alpha, batch: Batch) -> OpWeights:
        """Returns the op weights that the coming weight step uses."""
        return weights

    def after_inner_backward(self, state: SearchState, grads: Params) -> dict[str, Tensor]:
        """Returns the weights' gradients that the optimiser sees, after averaging and before clipping."""
        return grads

    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        """After an epoch, with its log record, to which numbers may be added."""
