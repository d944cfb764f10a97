"""A supernet's operations on one tensor, as parts of a sum that the compiled kernels make: `known` finds them, `parts` runs them.

What the kernels do not know runs in torch, and its result is summed with the others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from oche.base import Draw
from oche.fast.kernels.chains import Chain, segments
from oche.fast.kernels.entry import single
from oche.fast.kernels.mixture import Part, takes, weighted_sum
from oche.fast.portable.mixed import of_batch
from oche.spaces.blocks import MBConv, Residual
from oche.spaces.edges import _Sum
from oche.spaces.networks import Cell
from oche.spaces.ops import Zero, run


@dataclass(frozen=True)
class Operation:
    """An operation, and the chain that it is, or none; `passes` if its input is added.

    With a `relu` behind it, the chain's input is added before, through the chain `short`, if that is not None.
    """

    module: nn.Module
    chain: Chain = ()
    passes: bool = False
    relu: bool = False
    short: Chain | None = None

    @property
    def by_torch(self) -> bool:
        """True if it computes something that the kernels do not know."""
        return not self.chain and not isinstance(self.module, nn.Identity | Zero)


def known(ops: Mapping[str, nn.Module]) -> dict[str, Operation]:
    """The operations by name."""
    return {name: _operation(module) for name, module in ops.items()}


def told(operations: Mapping[str, Operation]) -> str:
    """How they run, in words."""
    others = [name for name, op in operations.items() if op.by_torch]
    return f"nodes: {', '.join(others)} by PyTorch" if others else "kernels"


def parts(
    operations: Sequence[Operation], x: Tensor, weights: Tensor, draw: Draw, zero: Collection[int] = ()
) -> list[Part]:
    """What is to be summed: each operation on x (B, C, H, W) in channels last, times its weight; those numbered in `zero` are left out."""
    found, passed = [], []
    for o, (op, weight) in enumerate(zip(operations, weights, strict=False)):
        if o in zero or isinstance(op.module, Zero):
            continue
        if isinstance(op.module, nn.Identity):
            passed.append(weight)
        elif not op.chain or not takes(op.chain, x) or (op.short and not takes(op.short, x)):
            found.append(Part(single(run(op.module, x, draw)), weight))
        elif op.relu:
            found.append(Part(single(_rectified(op, x, weight.new_ones(()))), weight))
        else:
            found.append(Part(x, weight, op.chain))
            passed += [weight] * op.passes
    return [*found, Part(x, sum(passed[1:], passed[0]))] if passed else found


def _rectified(op: Operation, x: Tensor, one: Tensor) -> Tensor:
    terms = [Part(x, one, op.chain)] + ([] if op.short is None else [Part(x, one, op.short)])
    return weighted_sum(terms).relu()


def chain_of(modules: Sequence[nn.Module]) -> Chain:
    """The chain that all of the modules make up in a supernet, or none."""
    made = segments(modules, of_batch)
    whole = made[0] if len(made) == 1 else ()
    return whole if isinstance(whole, tuple) and all(stage.bias is None for stage in whole) else ()


def _operation(module: nn.Module) -> Operation:
    if type(module) is MBConv:
        return Operation(module, chain_of(list(module.layers.children())), module.residual)
    if type(module) is Residual:
        deep, same = chain_of(list(module.deep.children())), isinstance(module.short, nn.Identity)
        short = () if same else chain_of(list(module.short.children()))
        return Operation(module, deep, relu=True, short=short) if deep and (same or short) else Operation(module)
    if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
        return Operation(module)
    modules = list(module.children())
    if len(modules) > 1 and type(modules[-1]) is nn.ReLU:
        chain = chain_of(modules[:-1])
        # one dense convolution and a ReLU are quicker in torch (docs/results/performance.md, larger images)
        return Operation(module, chain, relu=True) if any(stage.depthwise for stage in chain) else Operation(module)
    return Operation(module, chain_of(modules))


# ------------------------------------------------------------------ a layer of a chain


def layer_layout(cell: Cell) -> dict[str, Operation] | str:
    """The operations of a cell with one edge, or why the kernels know none of them."""
    if len(cell.entries) != 1 or len(cell.edges) != 1 or cell.concat:
        return "more than one edge"
    (edge,) = cell.edges.values()
    if type(edge) is not _Sum:
        return "an edge that is no weighted sum"
    found = known(dict(edge.ops.items()))
    return found if any(op.chain for op in found.values()) else "no operation that the kernels know"
