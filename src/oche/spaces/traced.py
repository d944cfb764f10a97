"""Follows one forward pass on the meta device: multiply-adds, and the peak memory of activations. Nothing is computed.

The rule for memory, of a network at work (eval mode, one image, float32): while an operation runs, its inputs and its output are alive,
and so is every earlier tensor that is still to be read. Operations run in the order of the forward pass. Weights do not count, the image
does. Views take nothing. Batch norm, and an element-by-element operation with one input, overwrite that input if nothing else reads it
later, as every runtime has them do or folds them into the convolution before them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
FLOAT = 4
"""Bytes of a float32."""

UNREAD = frozenset({"zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_empty", "new_ones"})
"""Operations that look at the shape of their input alone."""


@dataclass(frozen=True)
class Step:
    """One operation: the buffers that it reads and the one that it writes, and whether it may write over what it reads."""

    name: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    over: bool = False


@dataclass
class Traced:
    """The operations of a forward pass in their order, the size in bytes of each buffer, the first the image's, and the results'.

    `calls` counts the operations with those that only look at their input in another way.
    """

    steps: list[Step] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    results: tuple[int, ...] = ()
    multiply_adds: int = 0
    calls: int = 0

    def peak(self) -> int:
        """The largest number of bytes alive at a time."""
        end = len(self.steps)
        born, last = [-1] * len(self.sizes), [-1] * len(self.sizes)
        for i, step in enumerate(self.steps):
            for b in step.reads:
                last[b] = i
            for b in step.writes:
                born[b] = last[b] = i
        for b in self.results:
            last[b] = end
        host = list(range(len(self.sizes)))  # the buffer whose place each one takes
        for i, step in enumerate(self.steps):
            if step.over and len(step.writes) == len(step.reads) == 1:
                (old,), (new,) = step.reads, step.writes
                if last[old] == i and self.sizes[old] == self.sizes[new]:
                    host[new] = host[old]
                    last[host[old]] = max(last[host[old]], last[new])
        change = [0] * (end + 2)
        for b, size in enumerate(self.sizes):
            if host[b] == b and last[b] >= 0:
                change[max(born[b], 0)] += size
                change[min(last[b], end) + 1] -= size
        alive = most = 0
        for step_change in change:
            alive += step_change
            most = max(most, alive)
        return most


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation. Convolutions and batch norms are not run at all: their shapes are known, and torch takes long over them."""

    def __init__(self, weights: Sequence[Tensor], image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = Traced()
        self.numbers: dict[int, int] = {}
        self.alive: list[object] = []  # a storage that dies may leave its address to another
        self.weights = {_key(t) for t in weights}
        self.buffer(image)

    def buffer(self, t: Tensor) -> int:
        """The number of the tensor's buffer, which is new if no tensor had it before."""
        key = _key(t)
        if key not in self.numbers:
            self.numbers[key] = len(self.found.sizes)
            self.alive.append(t)
            self.found.sizes.append(t.untyped_storage().nbytes() // t.element_size() * FLOAT)
        return self.numbers[key]

    def __torch_dispatch__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        name, given = func.overloadpacket.__name__, [*args, *(kwargs or {}).values()]
        reads = [] if name in UNREAD else [t for t in tensors_in(given) if _key(t) not in self.weights]
        known_shape = shaped(func, args)
        out = func(*args, **(kwargs or {})) if known_shape is None else known_shape
        self.found.multiply_adds += _multiply_adds(name, args, out)
        self.found.calls += 1
        known = {_key(t) for t in (*reads, *tensors_in(given))} | self.weights
        made = [t for t in tensors_in(out) if _key(t) not in known]
        if "norm" in name or name.endswith("_with_indices") or name in ("max", "min"):
            made = made[:1]  # what they return beside it is for a backward pass
        if made or reads:
            over = "batch_norm" in name or (torch.Tag.pointwise in func.tags and len(reads) == 1)
            numbers = tuple(dict.fromkeys(self.buffer(t) for t in reads))
            writes = tuple(dict.fromkeys(self.buffer(t) for t in made))
            if writes:  # a view reads nothing yet
                self.found.steps.append(Step(name, numbers, writes, over))
        return out


def traced(network: nn.Module, images: Tensor) -> Traced:
    """The operations of a network's forward pass; network and images are on the meta device, and there is one image for the memory."""
    weights = [*network.parameters(), *network.buffers()]
    trace = Tracer(weights, images)
    with torch.no_grad(), trace:
        out = network(images)
    trace.found.results = tuple(trace.buffer(t) for t in tensors_in(out) if _key(t) not in trace.weights)
    return trace.found


# ------------------------------------------------------------------ helpers


def _key(t: Tensor) -> int:
    return int(t.untyped_storage()._cdata)


def tensors_in(value: object) -> list[Tensor]:
    """The tensors in a value, or in the lists within it."""
    if isinstance(value, Tensor):
        return [value]
    return [t for item in value for t in tensors_in(item)] if isinstance(value, list | tuple) else []


def shaped(func: Callable[..., object], args: Sequence[Any]) -> object:
    """An empty result of a convolution or a batch norm on the meta device; None for all else, which is to be called."""
    if not args or not isinstance(args[0], Tensor) or not args[0].is_meta:
        return None
    if func is aten.native_batch_norm.default:
        return args[0].new_empty(args[0].shape), args[0].new_empty(0), args[0].new_empty(0)
    if func is aten.convolution.default and not args[6]:
        x, weight, _, stride, padding, dilation = args[:6]
        spatial = [
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
        ]
        return x.new_empty((x.shape[0], weight.shape[0], *spatial))
    return None


def _multiply_adds(name: str, args: Sequence[Any], out: object) -> int:
    """Multiply-adds of a convolution or a matrix product, and one add per bias of a linear layer; 0 for all else."""
    if name == "convolution" and isinstance(out, Tensor):
        inputs = args[0] if args[6] else out  # a transposed one: each input value meets the whole kernel
        return int(inputs.numel() * args[1][0].numel())
    if name == "addmm":
        return int(args[1].shape[0] * args[1].shape[1] * args[2].shape[1] + args[1].shape[0] * args[2].shape[1])
    if name in ("mm", "bmm"):
        return int(args[0].numel() * args[1].shape[-1])
    return 0
