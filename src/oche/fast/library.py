"""How do compiled kernels enter torch? As operators of `torch.library` with their derivatives registered: nothing else has to know.

`define` makes an operator of a function, `invoke` is what such a function calls the library with, and `derivative_of_derivative` serves
operators that have no compiled derivative of that order. Schemas and not `torch.library.custom_op`: its wrapper takes longer a call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from oche.fast.native import kernels

LIBRARY = torch.library.Library("oche", "FRAGMENT")  # type: ignore[no-untyped-call]
NAMES = {torch.float32: "f32", torch.float64: "f64"}
"""What the library's functions are called, by precision."""

R = TypeVar("R")


class Context(Protocol):
    """What autograd hands to `setup` and `backward`."""

    saved_tensors: tuple[Tensor | None, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...
    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...
    def set_materialize_grads(self, value: bool) -> None: ...


def define(
    schema: str,
    run: Callable[..., R],
    fake: Callable[..., R],
    *,
    setup: Callable[..., None] | None = None,
    backward: Callable[..., object] | None = None,
) -> Callable[..., R]:
    """The operator `oche::schema`: `run` on the CPU, `fake` for tensors without values, `backward` what autograd goes by."""
    name = schema.partition("(")[0]
    LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    LIBRARY.impl(name, run, "CPU")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"oche::{name}", fake, lib=LIBRARY)
    if backward is not None:
        torch.library.register_autograd(f"oche::{name}", backward, setup_context=setup, lib=LIBRARY)
    operator: Callable[..., R] = getattr(torch.ops.oche, name).default
    return operator


def invoke(name: str, dtype: torch.dtype, *arguments: object) -> None:
    """Calls `oche_NAME_f32` or `_f64`: integers as int64, tensors, lists of them and structures by address, the rest as it is.

    Every tensor whose address is passed lives until the call returns.
    """
    compiled = kernels()
    assert compiled is not None
    function = getattr(compiled.library, f"oche_{name}_{NAMES[dtype]}")
    function.restype = None
    function(*map(_passed, arguments))


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
    """Whether this backward pass wants the weights' gradient: `needs_input_grad` only says that some pass may.

    The question torch.utils.checkpoint and FSDP ask of the engine; packed weights that learn are no leaves, as it demands.
    """
    return weights.grad_fn is not None and torch._C._will_engine_execute_node(weights.grad_fn)


def derivative_of_derivative(
    plain: Callable[..., Tensor],
    tensors: Sequence[Tensor | None],
    grad: Tensor,
    directions: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of <d <plain(*tensors), grad> / d tensors, directions> in (grad, *tensors), as far as `needs` says.

    They carry a graph where gradients are enabled: at aliases of the arguments, so that none is upstream of another.
    """
    again = torch.is_grad_enabled()
    grads: list[Tensor | None] = [None] * (1 + len(tensors))
    if all(d is None for d in directions):
        return grads
    with torch.enable_grad():
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
