"""Compiles every Triton kernel for a GPU that need not be here, and prints the name of each.

A program of its own, since the tests' process interprets kernels instead: TRITON_INTERPRET has to be 0 before Triton is imported.
"""

from __future__ import annotations

from typing import Any

WIDE, NARROW = "*fp32", "*bf16"
TWO = (NARROW, WIDE)
TILE = {"R": 64, "C": 16}
ROWS = {"rows": "i32", "channels": "i32"}
LIST = {"values": TWO, "steps": ("i32", "i32"), **ROWS}
SEPARABLE = dict.fromkeys(
    ("step", "height", "width", "out_height", "out_width", "channels", "stride", "dilation", "pad"), "i32"
)

Job = tuple[Any, dict[str, Any], dict[str, Any]]


def jobs() -> list[Job]:
    """Each kernel with its arguments' types and constants; 16-bit tensors among them."""
    from oche.fast.backends import triton_rows, triton_separable

    found: list[Job] = [
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
    import triton.language as tl

    for kind, precision in ((NARROW, "tf32"), (WIDE, "ieee")):
        tensors = {"x": kind, "depth": kind, "dz": kind}
        found += [
            (
                triton_separable._forward,
                {**SEPARABLE, "x": kind, "depth": kind, "point": kind, "y": kind, "means": WIDE, "squares": WIDE}
                | {"pixels": "i32", "outputs": "i32"},
                {**TILE, "OUT": 16, "K": 3, "PRECISION": precision},
            ),
            (
                triton_separable._to_input,
                {**SEPARABLE, **tensors, "dx": kind, "places": "i32"},
                {**TILE, "K": 3, "ACC": tl.float32},
            ),
            (
                triton_separable._to_weights,
                {**SEPARABLE, **tensors, "z": kind, "sums": WIDE, "pixels": "i32"},
                {**TILE, "K": 3},
            ),
        ]
    return found


def main() -> None:
    """Compiles for compute capability 9.0."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    for kernel, types, constants in jobs():
        given = types | dict.fromkeys(constants, "constexpr")
        signature = {name: given[name] for name in kernel.arg_names}
        values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        made = triton.compile(ASTSource(kernel, signature, constexprs=values), target=GPUTarget("cuda", 90, 32))
        assert made.asm["cubin"]
        print(kernel.__name__)  # noqa: T201


if __name__ == "__main__":
    main()
