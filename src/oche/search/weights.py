"""The supernet's weights and their optimiser: by name for everything outside, in few tensors for a step.

Compiled cells keep their weights in packs (`oche.fast.packs`): one tensor per kind, of which the weights are views. Then a step
differentiates and moves the packs, which `tensors` holds in the place of the weights inside. Nothing else has to know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from oche.base import Draw, OpWeights, Params
from oche.fast import Pack, leaves_out, packs
from oche.optim import OptimizerFactory, check_finite, set_rate
from oche.spaces import Supernet

Fit = Callable[[str, Tensor, torch.Size], Tensor | None]
"""How a tensor of one stage becomes that of the next: (weight's name, its value or momentum, new shape) -> tensor, or None."""


def same_shape(name: str, t: Tensor, shape: torch.Size) -> Tensor | None:
    """Takes over what has kept its shape."""
    return t if t.shape == shape else None


@dataclass
class SupernetWeights:
    """The weights of `supernet`; those named in `learns` are stepped by `optimizer`."""

    supernet: Supernet
    learns: frozenset[str]
    optimizer: torch.optim.Optimizer
    packs: tuple[Pack, ...] = ()

    # ------------------------------------------------------------------ what there is

    @property
    def theta(self) -> Params:
        """The weights that learn, by name, in the supernet's order: the parameters themselves, not copies."""
        return {name: p for name, p in self._named if name in self.learns}

    @cached_property
    def tensors(self) -> Params:
        """The tensors that a step differentiates and the optimiser holds: `theta`, or packs in the place of the weights inside."""
        inside = {name for pack in self.packs for name in pack.weights}
        packed = {pack.name: pack.values for pack in self.packs if pack.values.requires_grad}
        return packed | {name: p for name, p in self.theta.items() if name not in inside}

    @cached_property
    def _named(self) -> list[tuple[str, Tensor]]:
        """All weights by name; looked up once, since the modules are many and never exchanged."""
        return list(self.supernet.named_parameters())

    @property
    def rate(self) -> float:
        """The present learning rate."""
        return float(self.optimizer.param_groups[0]["lr"])

    # ------------------------------------------------------------------ a step

    def outputs(self, images: Tensor, op_weights: OpWeights, draw: Draw, theta: Params | None = None) -> Tensor:
        """The supernet's outputs. `theta` replaces weights by tensors of their names, or all `tensors`; None leaves them."""
        if theta is None or (theta is self.tensors and not self.packs):
            outputs: Tensor = self.supernet(images, op_weights, draw)[0]
            return outputs
        if self.packs and theta.keys() == self.tensors.keys():
            theta = {pack.name: pack.values for pack in self.packs} | theta
        outputs, _ = torch.func.functional_call(self.supernet, theta, (images, op_weights, draw), tie_weights=False)
        return outputs

    def taking_part(self, op_weights: OpWeights) -> Params:
        """`tensors` for a step under these op weights.

        Where a cell leaves candidates out, each weight is a tensor of its own, so that theirs stay as they are.
        """
        if self.packs and leaves_out(self.supernet, op_weights):
            self.unpack()
        return self.tensors

    def gradients_of(self, loss: Tensor, *others: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """d loss / d `tensors`, then d loss / d tensors of each further dict, from one backward pass.

        Entries that the loss does not depend on are missing.
        """
        trees = (self.tensors, *others)
        grads = iter(torch.autograd.grad(loss, [t for tree in trees for t in tree.values()], allow_unused=True))
        for tree in trees:
            yield {name: grad for name, grad in zip(tree, grads, strict=False) if grad is not None}

    def step(self, grads: Params, clip: float | None) -> None:
        """Moves the weights along their gradients, whose norm is at most `clip`; a weight without a gradient stays."""
        for name, t in self.tensors.items():
            t.grad = grads.get(name)
        if clip is not None:
            norm = torch.nn.utils.clip_grad_norm_(self.tensors.values(), clip, foreach=True)
        else:
            norm = torch.nn.utils.get_total_norm(grads.values(), foreach=True)
        check_finite("the weights' gradient", norm)
        self.optimizer.step()
        self.optimizer.zero_grad()  # as large as the weights, and of no more use

    def look_ahead(self, rule: OptimizerFactory, theta: Params, grads: Params) -> Params:
        """theta after the next step from these gradients, without taking it; differentiable in both."""
        if theta.keys() != self.tensors.keys():  # given one by one
            self.unpack()
        return rule.look_ahead(theta, grads, self.optimizer)

    # ------------------------------------------------------------------ packs

    def pack(self) -> None:
        """Moves the weights of compiled cells into `packs`, if the optimiser treats all entries of a tensor alike."""
        if not isinstance(self.optimizer, torch.optim.SGD):
            return
        self.packs = packs(self.supernet)
        state = self.optimizer.state
        for pack in self.packs:
            moving = {name: state.pop(p, {}).get("momentum_buffer") for name, p in pack.weights.items()}
            there = {name: t for name, t in moving.items() if t is not None}
            if there:
                state[pack.values]["momentum_buffer"] = pack.join(there)
        self._hold()

    def unpack(self) -> None:
        """Makes every weight a tensor of its own again, its momentum with it."""
        state = self.optimizer.state
        for pack in self.packs:
            momentum = state.pop(pack.values, {}).get("momentum_buffer")
            if momentum is not None:
                for name, part in pack.split(momentum).items():
                    state[pack.weights[name]]["momentum_buffer"] = part
            pack.lift()
        self.packs = ()
        self._hold()

    def settle(self) -> None:
        """Packs anew if weights were moved out of their packs, to another precision for example."""
        if not all(pack.intact for pack in self.packs):
            self.unpack()
            self.pack()

    def _hold(self) -> None:
        """Has the optimiser step the present tensors."""
        self.__dict__.pop("tensors", None)
        (group,) = self.optimizer.param_groups
        group["params"] = list(self.tensors.values())

    # ------------------------------------------------------------------ changes in mid-search

    def learn(self, names: Iterable[str]) -> None:
        """Lets these weights learn and no others. One that is frozen loses its momentum; the others' goes on."""
        own = dict(self.supernet.named_parameters())
        self.learns = frozenset(names)
        if not self.learns or self.learns - own.keys():
            raise ValueError(f"expected names of the supernet's weights; given {sorted(self.learns - own.keys())}.")
        self.unpack()
        for name, p in own.items():
            p.requires_grad_(name in self.learns)
            if name not in self.learns:
                p.grad = None  # else torch would go on stepping it
                self.optimizer.state.pop(p, None)
        self._hold()

    @torch.no_grad()
    def take_over(self, earlier: SupernetWeights, fit: Fit) -> None:
        """Copies weights and their optimiser's state from an earlier stage, by name, each as `fit(name, tensor, shape)` makes it.

        What `fit` returns None for, and what the earlier stage did not have, stays as it was drawn.
        """
        packed = bool(self.packs)
        self.unpack()
        earlier.unpack()
        own, old = dict(self.supernet.named_parameters()), dict(earlier.supernet.named_parameters())
        for name, p in own.items():
            weight = fit(name, old[name].detach(), p.shape) if name in old else None
            if weight is None:
                continue
            p.copy_(weight)
            if name not in self.learns:
                continue
            for key, t in earlier.optimizer.state.get(old[name], {}).items():
                like = isinstance(t, Tensor) and t.shape == old[name].shape
                moved = fit(name, t, p.shape) if like else t
                self.optimizer.state[p][key] = moved.clone() if isinstance(moved, Tensor) else moved
        if packed:
            self.pack()

    # ------------------------------------------------------------------ checkpoints

    def optimizer_table(self) -> dict[str, Any]:
        """The optimiser's state by the weights' names, as if there were no packs."""
        table = by_name(self.optimizer, self.tensors)
        state = dict(table["state"])
        for pack in self.packs:
            for key, t in state.pop(pack.name, {}).items():
                for name, part in pack.split(t).items() if isinstance(t, Tensor) else ():
                    state.setdefault(name, {})[key] = part
        groups = [{**group, "params": list(range(len(self.theta)))} for group in table["groups"]]
        return {"groups": groups, "state": state}


def by_name(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """An optimiser's state dict, its tensors' numbers replaced by their names."""
    table, names = optimizer.state_dict(), list(tensors)
    return {"groups": table["param_groups"], "state": {names[n]: own for n, own in table["state"].items()}}


def restore(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], table: Mapping[str, Any]) -> None:
    """Takes over a state that `by_name` made of an optimiser of the same tensors."""
    numbers = {name: n for n, name in enumerate(tensors)}
    state = {numbers[name]: own for name, own in table["state"].items()}
    (group,) = optimizer.param_groups
    device: dict[str, object] = {key: group[key] for key in ("foreach", "fused", "capturable") if key in group}
    optimizer.load_state_dict({"param_groups": table["groups"], "state": state})
    optimizer.param_groups[0].update(device)  # how this device steps; what a step is, the checkpoint says
    set_rate(optimizer, float(table["groups"][0]["lr"]))
