"""Reads TIFF files that Pillow does not: any number of samples per pixel, 8 to 64 bits each, integers or floats.

Baseline TIFF (TIFF Revision 6.0, 1992) and BigTIFF: strips or tiles, chunky or planar, uncompressed, Deflate or PackBits, with or without
horizontal differencing, in either byte order; pages of one size and type are channels.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIPS, SAMPLES, ROWS, STRIP_BYTES, PLANAR, PREDICTOR = 273, 277, 278, 279, 284, 317
ORIENTATION = 274  # EXIF's, too: from 5 on, rows and columns are swapped
TILE_WIDTH, TILE_HEIGHT, TILES, TILE_BYTES, EXTRA, FORMAT = 322, 323, 324, 325, 338, 339

MOST_PAGES = 4096
RGB, PLANES = 2, 2
"""The photometric interpretation of colours, and the planar configuration in which each sample has a plane of its own."""

TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}
"""TIFF field type -> struct letter, of the types that the tags above have."""

NONE, DEFLATE, ADOBE_DEFLATE, PACKBITS = 1, 32946, 8, 32773
GROWTH = {DEFLATE: 1100, ADOBE_DEFLATE: 1100, PACKBITS: 128}
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

    @property
    def orientation(self) -> int:
        """How rows and columns lie, 1 to 8: 1 is upright, from 5 on they are swapped."""
        return self.one(ORIENTATION, 1)

    @property
    def alpha(self) -> bool:
        """True if the last sample is transparency, which the file says, and not one more band."""
        return self.tags.get(EXTRA, (0,))[-1] in (1, 2) and self.one(SAMPLES, 1) in (2, 4)

    @property
    def misread(self) -> bool:
        """True if Pillow gives other values than the file's, or fewer samples, without a word."""
        kind, size, samples = self.dtype.kind, self.dtype.itemsize, self.one(SAMPLES, 1)
        if f"{kind}{size}" in ("u4", "i1", "u8", "i8"):
            return True
        swapped = self.order == ">" and self.one(COMPRESSION, NONE) != NONE and f"{kind}{size}" in ("i2", "i4", "f4")
        extra = samples == 4 and self.one(PHOTOMETRIC, 1) == RGB and not self.alpha
        colours = samples in (3, 4) and self.one(PHOTOMETRIC, 1) == RGB
        planes = self.one(PLANAR, 1) == PLANES and samples > 1 and not colours
        return swapped or extra or planes or samples == 2 or samples > 4


def directory(path: Path) -> Directory:
    """The tags of a file's first image. Raises ValueError or OSError where it is no TIFF file."""
    return pages_of(path, 1)[0]


def pages_of(path: Path, most: int = MOST_PAGES) -> list[Directory]:
    """The tags of the pages; of the first alone where they differ in size or type. Raises ValueError or OSError for another file."""
    found: list[Directory] = []
    with path.open("rb") as file:
        head = file.read(16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        if order is None or len(head) < 8:
            raise ValueError("it is no TIFF file")
        version = struct.unpack(f"{order}H", head[2:4])[0]
        if version not in (42, 43):
            raise ValueError("it is no TIFF file")
        big = version == 43
        at = struct.unpack(f"{order}Q", _exactly(head[8:16], 8))[0] if big else struct.unpack(f"{order}I", head[4:8])[0]
        seen: set[int] = set()
        while at and at not in seen and len(found) < most:
            seen.add(at)
            tags, at = _tags(file, at, order, big)
            page = Directory(tags, order)
            if found and (page.shape, page.tags.get(BITS), page.tags.get(FORMAT)) != (
                found[0].shape,
                found[0].tags.get(BITS),
                found[0].tags.get(FORMAT),
            ):
                return found[:1]
            found.append(page)
    if not found:
        raise ValueError("it has no image")
    return found


def _tags(file: BinaryIO, at: int, order: str, big: bool) -> tuple[dict[int, tuple[int, ...]], int]:
    """The tags of the directory at a place in the file, and where the next one is; 0 for none."""
    number, wide, offset = ("Q", 20, "Q") if big else ("H", 12, "I")
    inline = struct.calcsize(f"={offset}")
    file.seek(at)
    size = struct.calcsize(f"={number}")
    count = struct.unpack(f"{order}{number}", _exactly(file.read(size), size))[0]
    if count > 1 << 16:
        raise ValueError("its directory is damaged")
    entries, after = file.read(wide * count), file.read(inline)
    tags = {}
    for start in range(0, len(entries) - wide + 1, wide):
        tag, kind, values = struct.unpack_from(f"{order}HH{offset}", entries, start)
        if kind not in TYPES or values > 1 << 24:
            continue
        length = struct.calcsize(f"={TYPES[kind]}") * values
        first = start + 4 + inline
        value = entries[first : first + length]
        if length > inline:
            file.seek(struct.unpack_from(f"{order}{offset}", entries, first)[0])
            value = _exactly(file.read(length), length)
        tags[tag] = struct.unpack(f"{order}{values}{TYPES[kind]}", value)
    return tags, struct.unpack(f"{order}{offset}", after)[0] if len(after) == inline else 0


def read_pages(path: Path, alpha: bool = False) -> NDArray[np.generic]:
    """(H, W, samples of all pages), in the file's own type; transparency is dropped unless `alpha`. Raises ValueError or OSError."""
    pages = pages_of(path)
    raw = path.read_bytes()
    read = [_page(raw, page) for page in pages]
    if pages[0].alpha and not alpha:
        read = [values[..., :-1] for values in read]
    return upright(np.concatenate(read, axis=-1), pages[0].orientation)


def upright(values: NDArray[np.generic], orientation: int) -> NDArray[np.generic]:
    """(H, W, C) as it is to be seen."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(values[rows, columns])


def read_tiff(path: Path) -> NDArray[np.generic]:
    """(H, W, samples) of the first page, in the file's own type. Raises ValueError or OSError for what is not supported, or damaged."""
    found = directory(path)
    return upright(_page(path.read_bytes(), found), found.orientation)


def _page(raw: bytes, found: Directory) -> NDArray[np.generic]:
    height, width, samples = found.shape
    planar = found.one(PLANAR, 1) == PLANES
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
    if claimed > GROWTH.get(found.one(COMPRESSION, NONE), 1) * len(raw):
        raise ValueError(f"it claims {claimed:,} bytes of pixels, more than the file can hold")
    out = np.zeros((height, width, samples), found.dtype.newbyteorder("="))
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
