"""Hooks into the loop, for what is neither a loss nor a part: masks, early stops, perturbed weights.

A callback is a frozen dataclass; what it must remember lives in `state.memory`, where it is checkpointed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from oche.base import Alpha, Batch, Draw, OpWeights, Params
from oche.search.state import SearchState


@dataclass(frozen=True)
class InnerStep:
    """A weight step that was taken: the op weights it used, alpha, the batch, the draw, and d inner / d op weights by cell.

    `weight_grads` has only the cells whose op weights `before_inner_step` returned as leaves that require grad.
    """

    weights: OpWeights
    alpha: Alpha
    batch: Batch
    draw: Draw
    weight_grads: OpWeights


@dataclass(frozen=True)
class OuterStep:
    """An architecture step that was taken: the outer loss, and d outer / d theta where the method's arch_gradient keeps it."""

    loss: Tensor
    theta_grads: Params = field(default_factory=dict)


class Callback:
    """Override what you need; each hook does nothing by default."""

    def on_epoch_start(self, state: SearchState) -> None:
        """Before an epoch's first step. May change `state.mask`, call `state.learn`, or set `state.stop` to end before this epoch."""

    def before_inner_step(self, state: SearchState, weights: OpWeights, alpha: Alpha, batch: Batch) -> OpWeights:
        """Returns the op weights that the coming weight step uses.

        Leaves that require grad get one: `{cell: w.detach().requires_grad_()}` asks for d inner / d w of every cell by itself.
        """
        return weights

    def after_inner_backward(self, state: SearchState, grads: Params, inner: InnerStep) -> Params:
        """Returns the weights' gradients that the optimiser sees, after averaging and before clipping; a weight left out stays."""
        return grads

    def after_outer_backward(self, state: SearchState, grads: Alpha, outer: OuterStep) -> Alpha:
        """Returns alpha's gradients that the optimiser sees, after averaging; an entry left out stays as it is."""
        return grads

    def on_epoch_end(self, state: SearchState, record: dict[str, object]) -> None:
        """After an epoch, with its log record, to which numbers may be added."""


def asked(weights: OpWeights) -> OpWeights:
    """The cells whose op weights `before_inner_step` returned as leaves that require grad."""
    return {cell: w for cell, w in weights.items() if w.is_leaf and w.requires_grad}


def enters(callback: Callback) -> bool:
    """True if it has a hook before an epoch's end, by which it may change what a step does; probes and monitors have none."""
    hooks = ("on_epoch_start", "before_inner_step", "after_inner_backward", "after_outer_backward")
    return any(getattr(type(callback), hook) is not getattr(Callback, hook) for hook in hooks)


def sees_weights(callback: Callback) -> bool:
    """True if it has a hook that is handed gradients of weights, by their names."""
    hooks = ("after_inner_backward", "after_outer_backward")
    return any(getattr(type(callback), hook) is not getattr(Callback, hook) for hook in hooks)
