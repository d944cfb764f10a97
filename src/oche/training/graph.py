"""ONNX graphs of one kernel, repeated in branches side by side, as `timing` measures them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from oche.spaces.kernels import Kernel, Shape

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, Any]

NARROW = 16
"""Channels that the convolution behind a kernel has."""

APART = ("relu", "clip", "sigmoid", "add", "mul", "sub", "div", "bn", "zeros", "copy")
"""Kinds that would be folded into a convolution before them."""


class Graph:
    """An ONNX graph in the making, of branches side by side."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.feed: dict[str, Array] = {}
        self.outputs: list[str] = []
        self.rng = np.random.default_rng(0)
        self.given: dict[object, str] = {}

    # -------------------------------------------------------------- parts

    def branch(self, kernel: Kernel) -> None:
        """One branch with the kernel in it."""
        if kernel.kind == "gemm" or kernel.of_image:
            inputs = [self.input(shape) for shape in kernel.inputs]
        else:
            inputs = [self.before(shape) for shape in kernel.inputs]
            if kernel.kind in APART:
                self.behind(inputs[0], kernel.inputs[0])
        if kernel.kind == "slice":  # they come in pairs, and what turns the layout is shared
            self.behind(self._slices(inputs[0], kernel.inputs[0], kernel.output, 1), kernel.output)
        out = self.kernel(kernel, inputs)
        if len(kernel.output) == 1:
            self.outputs.append(out)
        else:
            self.behind(out, kernel.output)

    def input(self, shape: Shape) -> str:
        """An input of the graph, one of each shape."""
        if shape not in self.given:
            self.given[shape] = name = f"input{len(self.feed)}"
            self.feed[name] = self.rng.random((1, *shape), np.float32)
        return self.given[shape]

    def before(self, shape: Shape) -> str:
        """A tensor of a shape as a convolution leaves it."""
        image = self.input((3, *shape[1:]))
        return self.node("Conv", [image, self.weight(shape[0], 3, 1, 1)])

    def behind(self, x: str, shape: Shape) -> None:
        """What reads a tensor of a shape: a convolution, of which little is left as an output."""
        narrow = self.node("Conv", [x, self.weight(NARROW, shape[0], 1, 1)])
        self.outputs.append(self.node("GlobalAveragePool", [narrow]))

    def kernel(self, kernel: Kernel, inputs: Sequence[str]) -> str:
        """The kernel's nodes, as an exported network has them."""
        out = self._alone(kernel, inputs)
        for then in kernel.then:
            if then == "add":
                key = ("add", kernel.output)
                if key not in self.given:
                    self.given[key] = self.before(kernel.output)
                out = self.node("Add", [out, self.given[key]])
            else:
                out = self._activation(then, out)
        return out

    def _activation(self, kind: str, x: str) -> str:
        if kind == "clip":
            return self.node("Clip", [x, self.constant(0.0), self.constant(6.0)])
        return self.node({"relu": "Relu", "sigmoid": "Sigmoid"}[kind], [x])

    def _alone(self, kernel: Kernel, inputs: Sequence[str]) -> str:
        kind, first, out = kernel.kind, kernel.inputs[0], kernel.output
        if kind == "conv":
            return self._conv(kernel, inputs[0])
        if kind in ("relu", "clip", "sigmoid"):
            return self._activation(kind, inputs[0])
        if kind in ("add", "mul", "sub", "div"):
            others = inputs[1:] or [self.weight(1, first[0], 1, 1)]
            return self.node(kind.capitalize(), [inputs[0], others[0]])
        if kind == "bn":
            numbers = [self.weight(first[0]) for _ in range(4)]
            return self.node("BatchNormalization", [inputs[0], *numbers], epsilon=1e-5)
        if kind in ("max_pool", "avg_pool"):
            up, pads = int("ceil" in kernel.settings), [*kernel.number("p"), *kernel.number("p")]
            sides = {"kernel_shape": kernel.number("k"), "strides": kernel.number("s"), "pads": pads, "ceil_mode": up}
            if kind == "max_pool":
                return self.node("MaxPool", [inputs[0]], **sides)
            return self.node("AveragePool", [inputs[0]], count_include_pad=int("counted" in kernel.settings), **sides)
        if kind == "cat":
            return self.node("Concat", list(inputs), axis=1)
        if kind == "slice":
            return self._slices(inputs[0], first, out, 0)
        if kind == "mean":
            axes = self.integers(2, 3)
            return self.node("ReduceMean", [inputs[0], axes], keepdims=int(len(out) > 1))
        if kind == "gemm":
            return self.node("Gemm", [inputs[0], self.weight(out[0], first[0]), self.weight(out[0])], transB=1)
        if kind == "pad":
            ends = [0, *(new - old for old, new in zip(first, out, strict=True))]
            return self.node("Pad", [inputs[0], self.integers(0, 0, 0, 0, *ends)])
        if kind == "resize":
            scales = [1.0, *(new / old for old, new in zip(first, out, strict=True))]
            return self.node("Resize", [inputs[0], "", self.constant(scales)], mode="linear")
        if kind == "zeros":
            return self.node("Expand", [self.constant(0.0), self.node("Shape", [inputs[0]])])
        return self.node("Neg", [inputs[0]])

    def _conv(self, kernel: Kernel, x: str) -> str:
        groups, sides, steps, spread = kernel.groups, kernel.number("k"), kernel.number("s"), kernel.number("d")
        pads = [d * (k // 2) for k, d in zip(sides, spread, strict=True)]
        weight = self.weight(kernel.output[0], kernel.inputs[0][0] // groups, *sides)
        return self.node(
            "Conv", [x, weight, self.weight(kernel.output[0])],
            kernel_shape=sides, strides=steps, dilations=spread, group=groups, pads=[*pads, *pads],
        )  # fmt: skip

    def _slices(self, x: str, first: Shape, out: Shape, start: int) -> str:
        """One slice for each side that changes: every few from `start` on, where it is a fraction of the whole."""
        for axis, (old, new) in enumerate(zip(first, out, strict=True), start=1):
            if old != new:
                step = max(1, round(old / new)) if axis > 1 else 1
                begin = start if step > 1 else start * (old - new)
                end = old if step > 1 else begin + new
                one = (self.integers(begin), self.integers(end), self.integers(axis), self.integers(step))
                x = self.node("Slice", [x, *one])
        return x

    # -------------------------------------------------------------- pieces

    def node(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        """A node; returns the name of its output."""
        from onnx import helper

        out = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    def weight(self, *shape: int) -> str:
        """Random weights of a shape."""
        return self._constant(self.rng.random(shape, np.float32) + 0.5)

    def constant(self, value: float | Sequence[float]) -> str:
        """Numbers that do not change."""
        return self._constant(np.array(value, np.float32))

    def integers(self, *values: int) -> str:
        """Whole numbers that do not change."""
        return self._constant(np.array(values, np.int64))

    def _constant(self, values: Array) -> str:
        from onnx import numpy_helper

        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def model(self) -> bytes:
        """The model as a file."""
        from onnx import TensorProto, helper

        given = [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", *a.shape[1:]]) for n, a in self.feed.items()
        ]
        made = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in self.outputs]
        graph = helper.make_graph(self.nodes, "kernels", given, made, self.weights)
        opsets = [helper.make_opsetid("", 18)]
        made_model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
        return made_model
