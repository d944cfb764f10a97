"""Lists the operations that a runtime executes for a deployed network, each with its shapes: what a table of latencies has entries for.

One forward pass is followed on the meta device. A batch norm, a sum and an activation behind a convolution are folded into it where nothing
else reads what lies between, as runtimes fold them; views cost nothing. The list begins with the normalisation of the image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from oche.spaces.deployed import as_deployed
from oche.spaces.traced import shaped, tensors_in

Shape = tuple[int, ...]
"""Without the batch: (C, H, W), or (C,)."""

ACTIVATIONS = {"relu": "relu", "hardtanh": "clip", "sigmoid": "sigmoid"}
VIEWS = frozenset(
    {"alias", "detach", "view", "_unsafe_view", "unsqueeze", "squeeze", "expand", "t", "clone", "flatten"}
)
SILENT = frozenset({"empty", "zeros", "arange", "new_empty"})
NAMES = {
    **ACTIVATIONS,
    "native_batch_norm": "bn",
    "max_pool2d_with_indices": "max_pool",
    "avg_pool2d": "avg_pool",
    "constant_pad_nd": "pad",
    "upsample_bilinear2d": "resize",
    "zeros_like": "zeros",
    "stack": "cat",
    "addmm": "gemm",
    "convolution": "conv",
    **{name: name for name in ("add", "mul", "sub", "div", "cat", "slice", "mean")},
}
"""Operation of torch -> kind; every other operation is a `copy`."""


@dataclass(frozen=True)
class Kernel:
    """An operation as a runtime executes it. `settings` are kernel, stride, dilation and groups; `then` what is folded into it.

    >>> str(Kernel("conv", ((16, 32, 32),), (32, 16, 16), ("k3x3", "s2x2", "d1x1", "g1"), ("relu",)))
    'conv 16x32x32 32x16x16 k3x3 s2x2 d1x1 g1 relu'
    """

    kind: str
    inputs: tuple[Shape, ...]
    output: Shape
    settings: tuple[str, ...] = ()
    then: tuple[str, ...] = ()
    of_image: bool = False

    def __str__(self) -> str:
        inputs = "+".join("x".join(map(str, shape)) for shape in self.inputs)
        return " ".join([self.kind, inputs, "x".join(map(str, self.output)), *self.settings, *self.then])

    @classmethod
    def parse(cls, text: str) -> Kernel:
        """The kernel that a text stands for. Raises ValueError."""
        kind, inputs, output, *rest = text.split(" ")
        shapes = tuple(_shape(part) for part in inputs.split("+"))
        then = tuple(word for word in rest if word in (*ACTIVATIONS.values(), "add"))
        settings = tuple(word for word in rest if word not in then)
        return cls(kind, shapes, _shape(output), settings, then)

    def number(self, letter: str) -> tuple[int, int]:
        """A setting by its letter, for rows and columns: `k3x3` is (3, 3); 1 where it is missing."""
        found = next((word[1:] for word in self.settings if word[0] == letter), "1x1")
        first, _, second = found.partition("x")
        return int(first), int(second or first)

    @property
    def groups(self) -> int:
        """Groups of a convolution."""
        return self.inputs[0][0] if "depthwise" in self.settings else self.number("g")[0]

    @property
    def sort(self) -> tuple[object, ...]:
        """What kernels have in common whose latencies can be told from one another: all but the shapes."""
        return self.kind, self.settings, self.then

    def work(self) -> float:
        """Multiply-adds of a convolution or a matrix product, values read and written of all else."""
        values = _numel(self.output) + sum(map(_numel, self.inputs))
        if self.kind == "conv":
            down, right = self.number("k")
            return _numel(self.output) * (self.inputs[0][0] / self.groups) * down * right + values
        return float(_numel(self.inputs[0]) * _numel(self.output) if self.kind == "gemm" else values)


def _shape(text: str) -> Shape:
    return tuple(int(number) for number in text.split("x"))


def _numel(shape: Shape) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def kernels(network: nn.Module, inputs: int, size: tuple[int, int]) -> list[Kernel]:
    """The kernels of a network on the meta device, for an image of so many channels and that size, normalisation included."""
    image, one = torch.zeros(1, inputs, *size, device="meta"), torch.zeros(1, inputs, 1, 1, device="meta")
    calls = _Calls([one, *network.parameters(), *network.buffers()])
    with torch.no_grad(), as_deployed(), calls:
        out = network.eval()((image - one) / one)
    return calls.folded(image, out)


def of_operation(module: nn.Module, shape: Shape) -> list[Kernel]:
    """The kernels of a module alone, on the meta device, where its input (C, H, W) is there already."""
    x = torch.zeros(1, *shape, device="meta")
    calls = _Calls([*module.parameters(), *module.buffers()])
    with torch.no_grad(), as_deployed(), calls:
        out = module.eval()(x)
    return calls.folded(None, out)


@dataclass
class _Call:
    """One operation: the tensors that it reads, none of them weights, and the one that it makes."""

    kernel: Kernel
    reads: tuple[int, ...]
    makes: int


class _Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation with shapes, and which of its inputs comes from which other."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_Call] = []
        self.alive: list[object] = [*weights]  # the id of a tensor that dies may go to another
        self.weights = {id(t) for t in weights}
        self.same: dict[int, int] = {}
        self.done: dict[object, int] = {}

    def number(self, t: Tensor) -> int:
        """The number of the tensor that `t` is a view of."""
        self.alive.append(t)
        return self.same.get(id(t), id(t))

    def __torch_dispatch__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        name, known = func.overloadpacket.__name__, shaped(func, args)
        out = func(*args, **(kwargs or {})) if known is None else known
        given, made = tensors_in([*args, *(kwargs or {}).values()]), tensors_in(out)[:1]
        reads = [t for t in given if id(t) not in self.weights]
        self.alive += [*given, *made]
        if not made or name in SILENT:
            return out
        if not reads:
            self.weights.add(id(made[0]))
        elif name in VIEWS:
            self.same[id(made[0])] = self.number(reads[0])
        else:
            numbers = tuple(dict.fromkeys(map(self.number, reads)))
            again = (
                (name, numbers, str([a for a in args if not tensors_in(a)])) if len(reads) == len(given) else id(out)
            )
            if again in self.done:  # a runtime computes it once
                self.same[id(made[0])] = self.done[again]
            else:
                self.done[again] = self.number(made[0])
                self.calls.append(_Call(_kernel(name, args, reads, made[0]), numbers, self.number(made[0])))
        return out

    def needed(self, out: Tensor) -> list[_Call]:
        """The calls that the result depends on."""
        wanted, found = {self.number(out)}, list[_Call]()
        for call in reversed(self.calls):
            if call.makes in wanted:
                wanted |= set(call.reads)
                found.append(call)
        return found[::-1]

    def folded(self, image: Tensor | None, out: Tensor) -> list[Kernel]:
        """The kernels after folding; those that read the image are marked."""
        needed, calls = self.needed(out), list[_Call]()
        uses = Counter(number for call in needed for number in call.reads)
        maker: dict[int, _Call] = {}
        for call in needed:
            host = next((h for n in call.reads if uses[n] == 1 and (h := maker.get(n)) and _takes(h, call)), None)
            if host is None:
                calls.append(call)
                maker[call.makes] = call
                continue
            kind = call.kernel.kind
            if kind == "slice":
                host.kernel = replace(host.kernel, output=call.kernel.output)
            elif kind != "bn":
                host.kernel = replace(host.kernel, then=(*host.kernel.then, kind))
            maker[call.makes] = host
        first = None if image is None else self.number(image)
        return [replace(call.kernel, of_image=first in call.reads) for call in calls]


def _takes(host: _Call, call: _Call) -> bool:
    """True if a runtime folds the call into the operation before it."""
    kind, then = call.kernel.kind, host.kernel.then
    if host.kernel.kind == "slice":
        return kind == "slice"
    if kind in ("relu", "clip"):
        return host.kernel.kind in ("conv", "bn") and then in ((), ("add",))
    if host.kernel.kind != "conv" or then:
        return False
    return kind == "bn" or (kind == "add" and len(call.reads) == 2 and len(set(call.kernel.inputs)) == 1)


def _kernel(name: str, args: Sequence[Any], reads: Sequence[Tensor], made: Tensor) -> Kernel:
    """The kernel of one call, before anything is folded into it."""
    kind, output = NAMES.get(name, "copy"), tuple(made.shape[1:])
    inputs = tuple(tuple(t.shape[1:]) for t in reads)
    if kind == "conv":
        groups = args[8]
        whole = groups == reads[0].shape[1] and groups > 1
        settings = (
            _pair("k", args[1].shape[2:]),
            _pair("s", args[3]),
            _pair("d", args[5]),
            "depthwise" if whole else f"g{groups}",
        )
        return Kernel(kind, inputs[:1], output, settings)
    if kind in ("max_pool", "avg_pool"):
        sides = (_pair("k", args[1]), _pair("s", args[2] or args[1]), _pair("p", args[3]))
        given = dict(enumerate(args))
        flags = {"ceil": given.get(4 if kind == "avg_pool" else 5, False)}
        if kind == "avg_pool":
            flags["counted"] = given.get(5, True)  # what lies beyond the border counts
        return Kernel(kind, inputs, output, (*sides, *(flag for flag, on in flags.items() if on)))
    return Kernel(kind, inputs, output)


def _pair(letter: str, numbers: Sequence[int]) -> str:
    return letter + "x".join(map(str, numbers))
