"""Registers compiled kernels as operators of `torch.library`, with their derivatives.

`define` makes an operator of a function, `invoke` is what such a function calls the library with, and `derivative_of_derivative` serves
operators that have no compiled derivative of that order.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor

from oche.fast.backends.native import kernels

LIBRARY = torch.library.Library("oche", "FRAGMENT")  # type: ignore[no-untyped-call]
NAMES = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16"}
"""What the library's functions are called, by the type of what they keep; those of bf16 compute in fp32."""

R = TypeVar("R")
Lengths = tuple[int, ...]


class Context(Protocol):
    """The context that autograd hands to `setup` and `backward`; `needs` has a flag per argument or list entry: needs a gradient."""

    saved_tensors: tuple[Tensor | None, ...]
    needs_input_grad: tuple[bool, ...]
    needs: tuple[object, ...]
    lengths: tuple[Lengths, Lengths]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...
    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...
    def set_materialize_grads(self, value: bool) -> None: ...


def define(
    schema: str,
    run: Callable[..., R],
    fake: Callable[..., R],
    *,
    setup: Callable[..., None] | None = None,
    backward: Callable[..., tuple[object, ...]] | None = None,
) -> Callable[..., R]:
    """The operator `oche::schema`: `run` on the CPU, `fake` for tensors without values.

    With `setup(ctx, arguments, results)` and `backward(ctx, *grads)` autograd goes by those; gradients that are not there are None.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    LIBRARY.impl(name, run, "CPU")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"oche::{name}", fake, lib=LIBRARY)
    operator: torch._ops.OpOverload = getattr(torch.ops.oche, name).default
    if setup is not None and backward is not None:
        kernel = _derived(operator, setup, backward)
        LIBRARY.impl(name, kernel, "Autograd", with_keyset=True)  # type: ignore[no-untyped-call]
    return operator


# ------------------------------------------------------------------ autograd


def _derived(
    operator: torch._ops.OpOverload, setup: Callable[..., None], backward: Callable[..., tuple[object, ...]]
) -> Callable[..., object]:
    """The autograd function that the dispatcher calls above the operator.

    As `torch.library.register_autograd` does it, which flattens lists of tensors by a general tool and takes 0.2 to 0.4 ms a call.
    """

    def below(keyset: object, *arguments: object) -> object:
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)  # type: ignore[operator]

    class Derived(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Context, keyset: object, lengths: Lengths, made: list[Lengths], *flat: object
        ) -> tuple[object, ...]:
            arguments = _nested(flat, lengths)
            results = below(keyset, *arguments)
            ctx.set_materialize_grads(False)
            setup(ctx, arguments, results)
            several = results if isinstance(results, tuple) else (results,)
            made.append(_lengths(several))
            ctx.lengths = lengths, made[0]
            return _flat(several, made[0])

        @staticmethod
        def backward(ctx: Context, *grads: Tensor | None) -> tuple[object, ...]:
            lengths, made = ctx.lengths
            ctx.needs = _nested(ctx.needs_input_grad[3:], lengths)
            return None, None, None, *_flat(backward(ctx, *_nested(grads, made)), lengths)

    def kernel(keyset: object, *arguments: object) -> object:
        if not torch.is_grad_enabled() or not torch._C._any_requires_grad(*arguments):
            return below(keyset, *arguments)
        lengths, made = _lengths(arguments), list[Lengths]()
        flat: tuple[object, ...] = Derived.apply(keyset, lengths, made, *_flat(arguments, lengths))  # type: ignore[no-untyped-call]
        results = _nested(flat, made[0])
        return results if len(results) > 1 else results[0]

    return kernel


def _lengths(values: Sequence[object]) -> Lengths:
    """For each value, the number of tensors in a list of tensors; -1 for anything else."""
    return tuple(len(v) if isinstance(v, list) and all(isinstance(t, Tensor) for t in v) else -1 for v in values)


def _flat(values: Sequence[object], lengths: Lengths) -> tuple[object, ...]:
    """All values in a row, those of lists too."""
    return tuple(one for v, n in zip(values, lengths, strict=True) for one in ([v] if n < 0 else cast(list[object], v)))


def _nested(flat: Sequence[object], lengths: Lengths) -> tuple[object, ...]:
    """`_flat` undone."""
    found, at = [], 0
    for n in lengths:
        found.append(flat[at] if n < 0 else list(flat[at : at + n]))
        at += max(n, 1) if n else 0
    return tuple(found)


# ------------------------------------------------------------------ calls of the library


def invoke(name: str, dtype: torch.dtype, *arguments: object) -> None:
    """Calls `oche_NAME_f32`, `_f64` or `_bf16`: integers as int64, tensors, lists of them and structures by address, the rest as it is.

    Every tensor whose address is passed lives until the call returns.
    """
    compiled = kernels()
    assert compiled is not None
    function = getattr(compiled.library, f"oche_{name}_{NAMES[dtype]}")
    function.restype = None
    function(*map(_passed, arguments))
    compiled.check_memory()


def _passed(argument: object) -> object:
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, int):
        return ctypes.c_int64(argument)
    if isinstance(argument, ctypes.Structure):
        return ctypes.byref(argument)
    if isinstance(argument, list):
        return (ctypes.c_void_p * max(len(argument), 1))(*[None if t is None else t.data_ptr() for t in argument])
    return argument


def asked(weights: Tensor) -> bool:
    """True if this backward pass needs the weights' gradient: `needs_input_grad` only says that some pass may.

    The question torch.utils.checkpoint and FSDP ask of the engine, which knows no answer for leaves.
    """
    if weights.grad_fn is None:
        return weights.requires_grad
    return torch._C._will_engine_execute_node(weights.grad_fn)


def derivative_of_derivative(
    plain: Callable[..., Tensor],
    tensors: Sequence[Tensor | None],
    grad: Tensor,
    directions: Sequence[Tensor | None],
    needs: Sequence[object],
) -> list[Tensor | None]:
    """Gradients of <d <plain(*tensors), grad> / d tensors, directions> in (grad, *tensors), as far as `needs` says.

    They carry a graph where gradients are enabled: at aliases of the arguments, so that none is upstream of another. In the precision of
    the arguments, also where a backward pass is run under autocast.
    """
    again = torch.is_grad_enabled()
    grads: list[Tensor | None] = [None] * (1 + len(tensors))
    if all(d is None for d in directions):
        return grads
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        inner = []
        for t in (grad, *tensors):
            alias = None if t is None else t.view_as(t) if again else t.detach()
            inner.append(alias if alias is None or alias.requires_grad else alias.detach().requires_grad_())
        out = plain(*inner[1:])
        along = [(t, d) for t, d in zip(inner[1:], directions, strict=True) if t is not None and d is not None]
        first = torch.autograd.grad(out, [t for t, _ in along], inner[0], create_graph=True, materialize_grads=True)
        wanted = [(i, t) for i, (t, need) in enumerate(zip(inner, needs, strict=True)) if need and t is not None]
        found = torch.autograd.grad(
            first, [t for _, t in wanted], [d for _, d in along], create_graph=again, materialize_grads=True
        )
    for (i, _), g in zip(wanted, found, strict=True):
        grads[i] = g
    return grads
