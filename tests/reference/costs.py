"""Costs counted in another way: multiply-adds by hooks on layers, peak memory by a run that allocates and frees one buffer at a time."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from oche.spaces.ops import FactorizedReduce


def hooked_multiply_adds(network: nn.Module, image: Tensor) -> int:
    """Output values times the weights behind each, summed over the layers; a bias counts in linear layers alone."""
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, FactorizedReduce):  # its two convolutions are called as functions
            total += output.numel() * layer.even.in_channels
        elif isinstance(layer, nn.Conv2d):
            total += output.numel() * layer.in_channels // layer.groups * layer.kernel_size[0] * layer.kernel_size[1]
        elif isinstance(layer, nn.Linear):
            total += output.numel() * (layer.in_features + (layer.bias is not None))

    hooks = [layer.register_forward_hook(count) for layer in network.modules()]
    with torch.no_grad():
        network(image)
    for hook in hooks:
        hook.remove()
    return total


def literal_peak(network: nn.Module, image: Tensor) -> int:
    """The most bytes allocated at a time: each operation allocates its output, then what nothing reads any more is freed."""
    with torch.no_grad():
        program = make_fx(network)(image)
    weights = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}
    operations = _recorded(program, image, weights)
    live, most = {image.untyped_storage().data_ptr(): _bytes(image)}, _bytes(image)
    for i, (over, reads, made) in enumerate(operations):
        later = {key for _, others, _ in operations[i + 1 :] for key in others}
        for key, size in made.items():
            dying = [old for old in reads if old not in later and live.get(old) == size]
            if over and len(reads) == 1 and dying:
                live.pop(dying[0])  # overwritten
            live[key] = size
        most = max(most, sum(live.values()))
        live = {key: size for key, size in live.items() if key in later}
    return most


def _recorded(program: fx.GraphModule, image: Tensor, weights: set[int]) -> list[tuple[bool, set[int], dict[int, int]]]:
    """(may overwrite, buffers read, buffers made with their bytes) of each operation of a real run, then one that reads the result."""
    found: list[tuple[bool, set[int], dict[int, int]]] = []
    kept = []

    class Record(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            out = super().run_node(n)
            if n.op == "output":
                found.append((False, {_place(t) for t in _tensors(out)}, {}))
            if n.op != "call_function":
                return out
            kept.append(out)
            name = str(n.target)
            shapes = "zeros_like" in name
            given = [] if shapes else [t for a in n.all_input_nodes for t in _tensors(self.env[a])]
            reads = {_place(t) for t in given} - weights
            first = _tensors(out)[:1] if "indices" in name or "norm" in name or "max.dim" in name else _tensors(out)
            made = {_place(t): _bytes(t) for t in first if _place(t) not in reads | weights}
            simple = (
                "batch_norm",
                "relu",
                "hardtanh",
                "sigmoid",
                "clone",
                "div",
                "mul",
                "clamp",
                "leaky",
                "pow",
                "sqrt",
                "add",
            )
            if made:
                found.append((any(word in name for word in simple), reads, made))
            return out

    interpreter = Record(program, garbage_collect_values=False)
    with torch.no_grad():
        interpreter.run(image)
    return found


def _place(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


def _bytes(t: Tensor) -> int:
    return t.untyped_storage().nbytes()


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for item in value for t in _tensors(item)] if isinstance(value, list | tuple) else []
