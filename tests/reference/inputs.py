"""Builds inputs that people have, in folders and archives."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from oche.data import Data

R = np.random.default_rng(0)
Array = NDArray[np.generic]


def save(path: Path, array: Array, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)  # type: ignore[arg-type]


def rgb(side: int = 16) -> Array:
    return R.integers(0, 256, (side, side, 3), dtype=np.uint8)


def blob(value: int = 1, dtype: str = "u1") -> Array:
    mask = np.zeros((16, 16), dtype)
    mask[4:12, 4:12] = value
    return mask


def pairs(root: Path, images: str, masks: str, make: Callable[[], Array] = blob, mark: str = "", n: int = 10) -> Path:
    for i in range(n):
        save(root / images / f"{i:02}.png", rgb())
        save(root / masks / f"{i:02}{mark}.png", make())
    return root


def classes(
    root: Path, make: Callable[[Array], Array] = lambda a: a, ext: str = ".png", names: str = "cat dog", n: int = 12
) -> Path:
    for c, name in enumerate(names.split()):
        for i in range(n):
            save(root / name / f"{i}{ext}", make(rgb() // 2 + np.uint8(100 * c)))
    return root


def npz(root: Path, **arrays: Array) -> Path:
    np.savez(root / "a.npz", **arrays)  # type: ignore[arg-type]
    return root / "a.npz"


def everything(data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and targets of all parts, in the order of their numbers in the source."""
    order = torch.cat([part.index for part in (data.train, data.val, data.test)]).argsort()
    taken = [part.take(torch.arange(len(part))) for part in (data.train, data.val, data.test)]
    images, targets = (torch.cat(both)[order] for both in zip(*taken, strict=True))
    return images, targets


def tiff(image: Array, compressed: bool) -> bytes:
    """A TIFF of interleaved samples in one strip, written by hand: little-endian, Deflate or none."""
    height, width, samples = image.shape
    pixels = zlib.compress(image.tobytes()) if compressed else image.tobytes()
    bits = 8 * image.itemsize
    at = 8 + len(pixels)
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, samples, at), (259, 3, 1, 8 if compressed else 1), (262, 3, 1, 1),
        (273, 4, 1, 8), (277, 3, 1, samples), (278, 4, 1, height), (279, 4, 1, len(pixels)), (339, 3, samples, at + 2 * samples),
    ]  # fmt: skip
    extra = struct.pack(f"<{samples}H", *[bits] * samples) + struct.pack(f"<{samples}H", *[1] * samples)
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *e) for e in entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", at + len(extra)) + pixels + extra + table


def png16(image: Array) -> bytes:
    height, width, _ = image.shape
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in image)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def checkpoint_cut_in_a_number() -> bytes:
    """A torch file whose pickled part ends within a whole number, as bytes that fuzzing made did."""
    whole, cut = io.BytesIO(), io.BytesIO()
    torch.save({"a": 1_000_000}, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(cut, "w") as target:
        for name in source.namelist():
            target.writestr(name, b"\x80\x02J\x01" if name.endswith("data.pkl") else source.read(name))
    return cut.getvalue()
