"""Compiles every Triton kernel for a GPU that need not be here, and prints the name of each: a program of its own, since the
tests' process interprets kernels instead."""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "0"

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from oche.fast import triton_rows, triton_separable  # noqa: E402

WIDE, NARROW = "*fp32", "*bf16"
TWO = (NARROW, WIDE)
IMAGE = {name: "i32" for name in ("height", "width", "out_height", "out_width", "channels")}
MOVES = {name: "i32" for name in ("stride", "dilation", "pad")}
TILE = {"R": 64, "C": 16}
ROWS = {"rows": "i32", "channels": "i32"}
LIST = {"values": TWO, "steps": ("i32", "i32"), **ROWS}
SEPARABLE = {"step": "i32", **IMAGE, **MOVES}

JOBS = [
    (triton_rows._tile_moments, {"x": NARROW, "step": "i32", "means": WIDE, "squares": WIDE, **ROWS}, TILE),
    (
        triton_rows._merge_moments,
        {"means": WIDE, "squares": WIDE, "mean": WIDE, "variance": WIDE, "tiles": "i32", **ROWS},
        {**TILE, "P": 64},
    ),
    (triton_rows._weighted, {**LIST, "a": WIDE, "b": WIDE, "out": WIDE}, {**TILE, "N": 2}),
    (triton_rows._tile_dots, {**LIST, "pivot": WIDE, "grad": WIDE, "sums": WIDE}, {**TILE, "N": 2}),
    (
        triton_rows._maps,
        {**LIST, "a": WIDE, "b": WIDE, "e": WIDE, "grad": WIDE, "out": TWO},
        {**TILE, "NEED": 3, "N": 2},
    ),
]
for kind, precision in ((NARROW, "tf32"), (WIDE, "ieee")):
    acc = triton.language.float32
    tensors = {"x": kind, "depth": kind, "dz": kind}
    JOBS += [
        (
            triton_separable._forward,
            {**SEPARABLE, "x": kind, "depth": kind, "point": kind, "y": kind, "means": WIDE, "squares": WIDE}
            | {"pixels": "i32", "outputs": "i32"},
            {**TILE, "O": 16, "K": 3, "PRECISION": precision},
        ),
        (triton_separable._to_input, {**SEPARABLE, **tensors, "dx": kind, "places": "i32"}, {**TILE, "K": 3, "ACC": acc}),
        (triton_separable._to_weights, {**SEPARABLE, **tensors, "z": kind, "sums": WIDE, "pixels": "i32"}, {**TILE, "K": 3}),
    ]

for kernel, types, constants in JOBS:
    given = types | dict.fromkeys(constants, "constexpr")
    signature = {name: given[name] for name in kernel.arg_names}
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    made = triton.compile(ASTSource(kernel, signature, constexprs=values), target=GPUTarget("cuda", 90, 32))
    assert made.asm["cubin"]
    print(kernel.__name__)
