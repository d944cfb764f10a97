"""Reads TIFF files that Pillow does not: any number of samples per pixel, 8 to 64 bits each, integers or floats.

Baseline TIFF only (TIFF Revision 6.0, 1992): strips or tiles, chunky or planar, uncompressed, Deflate or PackBits, with or without
horizontal differencing, in either byte order. Pages are not read; Pillow reads stacks of grey pages.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIPS, SAMPLES, ROWS, STRIP_BYTES, PLANAR, PREDICTOR = 273, 277, 278, 279, 284, 317
TILE_WIDTH, TILE_HEIGHT, TILES, TILE_BYTES, FORMAT = 322, 323, 324, 325, 339

TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}
"""TIFF field type -> struct letter, of the types that the tags above have."""

NONE, DEFLATE, ADOBE_DEFLATE, PACKBITS = 1, 32946, 8, 32773
PACKED = {DEFLATE: 1100, ADOBE_DEFLATE: 1100, PACKBITS: 128}
"""Compression -> how many bytes one byte can become at most."""

KINDS = {1: "u", 2: "i", 3: "f"}


@dataclass(frozen=True)
class Directory:
    """The first image of a file: its tags, and how its numbers lie."""

    tags: dict[int, tuple[int, ...]]
    order: str

    def one(self, tag: int, default: int) -> int:
        """A tag's first value."""
        return self.tags.get(tag, (default,))[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, samples)."""
        return self.one(HEIGHT, 0), self.one(WIDTH, 0), self.one(SAMPLES, 1)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The type of a sample. Raises ValueError for samples of different or odd widths."""
        bits, formats = set(self.tags.get(BITS, (1,))), set(self.tags.get(FORMAT, (1,)))
        if len(bits) != 1 or len(formats) != 1 or not bits <= {8, 16, 32, 64} or not formats <= KINDS.keys():
            raise ValueError(f"samples of {sorted(bits)} bits in the formats {sorted(formats)} are not supported")
        return np.dtype(f"{self.order}{KINDS[formats.pop()]}{bits.pop() // 8}")


def directory(path: Path) -> Directory:
    """The tags of a file's first image. Raises ValueError or OSError where it is no TIFF file."""
    with path.open("rb") as file:
        head = file.read(8)
        order = {b"II*\0": "<", b"MM\0*": ">"}.get(head[:4])
        if order is None:
            raise ValueError("it is no TIFF file, or a BigTIFF")
        file.seek(struct.unpack(f"{order}I", head[4:])[0])
        entries = file.read(12 * struct.unpack(f"{order}H", _exactly(file.read(2), 2))[0])
        tags = {}
        for start in range(0, len(entries) - 11, 12):
            tag, kind, count = struct.unpack_from(f"{order}HHI", entries, start)
            if kind not in TYPES or count > 1 << 24:
                continue
            length = struct.calcsize(TYPES[kind]) * count
            value = entries[start + 8 : start + 8 + length]
            if length > 4:
                file.seek(struct.unpack_from(f"{order}I", entries, start + 8)[0])
                value = _exactly(file.read(length), length)
            tags[tag] = struct.unpack(f"{order}{count}{TYPES[kind]}", value)
    return Directory(tags, order)


def read_tiff(path: Path) -> NDArray[np.generic]:
    """(H, W, samples), in the type of the file's samples. Raises ValueError or OSError for what is not supported, or damaged."""
    found = directory(path)
    height, width, samples = found.shape
    planar = found.one(PLANAR, 1) == 2
    tiled = TILES in found.tags
    tall = found.one(TILE_HEIGHT, 0) if tiled else min(found.one(ROWS, height), height)
    wide = found.one(TILE_WIDTH, 0) if tiled else width
    if min(height, width, samples, tall, wide) < 1:
        raise ValueError("it has no pixels")
    offsets, lengths = found.tags[TILES if tiled else STRIPS], found.tags[TILE_BYTES if tiled else STRIP_BYTES]
    planes, depth = (samples, 1) if planar else (1, samples)
    down, across = math.ceil(height / tall), math.ceil(width / wide)
    if len(offsets) != planes * down * across or len(lengths) != len(offsets):
        raise ValueError("its strips or tiles do not add up to its size")
    claimed = height * width * samples * found.dtype.itemsize
    if claimed > PACKED.get(found.one(COMPRESSION, NONE), 1) * path.stat().st_size:
        raise ValueError(f"it claims {claimed:,} bytes of pixels, more than the file can hold")
    out = np.zeros((height, width, samples), found.dtype.newbyteorder("="))
    raw = path.read_bytes()
    for i, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        plane, place = divmod(i, down * across)
        top, left = place // across * tall, place % across * wide
        rows = tall if tiled else min(tall, height - top)
        block = _block(_exactly(raw[offset : offset + length], length), (rows, wide, depth), found)
        part = block[: height - top, : width - left]
        at = (slice(top, top + part.shape[0]), slice(left, left + part.shape[1]))
        out[(*at, slice(plane, plane + 1) if planar else slice(None))] = part
    return out


def _block(raw: bytes, shape: tuple[int, int, int], found: Directory) -> NDArray[np.generic]:
    """A strip or a tile as (rows, columns, samples)."""
    size = math.prod(shape) * found.dtype.itemsize
    compression = found.one(COMPRESSION, NONE)
    if compression in (DEFLATE, ADOBE_DEFLATE):
        raw = zlib.decompressobj().decompress(raw, size)
    elif compression == PACKBITS:
        raw = _unpacked(raw, size)
    elif compression != NONE:
        raise ValueError(f"its compression ({compression}) is not supported: write it uncompressed or with Deflate")
    block = np.frombuffer(_exactly(raw[:size], size), found.dtype).reshape(shape)
    predictor = found.one(PREDICTOR, 1)
    if predictor == 2 and found.dtype.kind in "ui":
        return np.cumsum(block, axis=1, dtype=found.dtype.newbyteorder("="))
    if predictor != 1:
        raise ValueError(f"its predictor ({predictor}) is not supported: write it without one")
    return block


def _unpacked(raw: bytes, size: int) -> bytes:
    """PackBits: a byte n < 128 is followed by n + 1 bytes as they are, one n > 128 by a byte to repeat 257 - n times."""
    out, at = bytearray(), 0
    while at < len(raw) and len(out) < size:
        n = raw[at]
        if n < 128:
            out += raw[at + 1 : at + 2 + n]
            at += 2 + n
        else:
            out += raw[at + 1 : at + 2] * (257 - n if n > 128 else 0)
            at += 2 if n > 128 else 1
    return bytes(out)


def _exactly(raw: bytes, size: int) -> bytes:
    if len(raw) < size:
        raise ValueError("it is cut short")
    return raw
