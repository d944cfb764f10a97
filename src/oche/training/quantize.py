"""int8 networks: an ONNX file quantised statically by onnxruntime, weights by channel, activations by calibration images (QDQ format)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from oche.base import counted
from oche.data import Augmentation, Data, none
from oche.training.shipped import add_to_onnx

IMAGES, BATCH = 512, 32
"""Calibration images of the train part, and how many of them are run at a time."""

RULES = {"minmax": {}, "percentile": {"CalibPercentile": 99.99}}
"""How the range of an activation is read off the calibration images: all of it, or all but its rarest values. The second is tried where
the first loses on validation images."""


def calibration(data: Data) -> Iterator[Tensor]:
    """Batches (B, C, H, W) in [0, 1] of train images, drawn once and for all.

    All are of one size, as onnxruntime's percentiles ask for: where a last one would be smaller, it has images of the one before, too.
    """
    order = torch.randperm(len(data.train), generator=counted(0, "calibration"))[:IMAGES]
    for start in range(0, len(order), BATCH):
        start = max(0, min(start, len(order) - BATCH))
        pixels, _ = data.train.take(order[start : start + BATCH])
        yield unnormalised(data).normalise(pixels)


def unnormalised(data: Data) -> Augmentation:
    """Turns images into floats (B, C, H, W) as they are; an exported file normalises them itself."""
    return none(replace(data, mean=(0.0,) * data.channels, std=(1.0,) * data.channels))


def quantised(model: Path, data: Data, rule: str, out: Path, says: Mapping[str, str]) -> None:
    """Writes the ONNX file `model` as an int8 one."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime tells no types
        """Hands the calibration images out."""

        def __init__(self) -> None:
            self.batches = calibration(data)

        def get_next(self) -> dict[str, object] | None:
            images = next(self.batches, None)
            return None if images is None else {"images": images.numpy()}

    methods = {"minmax": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile}
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(None):  # onnxruntime prints how it calibrates
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(model, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            out,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=methods[rule],
            extra_options=RULES[rule],
        )
    shortened(out, says)


def shortened(path: Path, says: Mapping[str, str]) -> None:
    """Gives the tensors of an ONNX file short names, much of a small network's file otherwise, and writes the metadata into it."""
    import onnx

    model = onnx.load(path)
    graph = model.graph
    kept = {part.name for part in (*graph.input, *graph.output)} | {""}
    names: dict[str, str] = {}

    def short(name: str) -> str:
        return name if name in kept else names.setdefault(name, f"t{len(names)}")

    for weight in graph.initializer:
        weight.name = short(weight.name)
    for node in graph.node:
        node.name = ""
        node.input[:] = [short(name) for name in node.input]
        node.output[:] = [short(name) for name in node.output]
    onnx.save(model, path)
    add_to_onnx(path, says)
