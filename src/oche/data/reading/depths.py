"""Files with more than 8 bits per channel of which Pillow gives 8 without a word: which they are, and those that are read here instead."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FIRST = 1 << 20
"""Bytes of a file in which its depth is looked for."""


def cut_format(path: Path, image: Image.Image) -> str:
    """The name of the format where Pillow gives 8 bits of more: HEIC, AVIF, JPEG 2000, PNG of grey with transparency; else empty."""
    if image.format == "HEIF":
        return "HEIC" if image.info.get("bit_depth", 8) > 8 else ""
    if image.format == "PNG":
        return "PNG of grey with transparency" if raw_mode(image) == "LA;16B" else ""
    if image.format == "AVIF":
        return "AVIF" if _avif_bits(_beginning(path)) > 8 else ""
    if image.format == "JPEG2000" and not image.mode.startswith("I"):
        return "JPEG 2000" if _jpeg2000_bits(_beginning(path)) > 8 else ""
    return ""


def raw_mode(image: Image.Image) -> str:
    """Pillow's word for how the pixels lie in the file, such as "RGB;16B"; empty where it has none."""
    tiles = getattr(image, "tile", [])
    raw = tiles[0][3] if tiles else ""
    return raw if isinstance(raw, str) else str(raw[0]) if isinstance(raw, tuple) and raw else ""


def jpeg_bits(path: Path) -> int:
    """The bits per channel that a JPEG file's frame header tells; 0 for a file that is none, or has none in its beginning."""
    try:
        data = _beginning(path)
    except OSError:
        return 0
    at = 2
    while data[:2] == b"\xff\xd8" and at + 5 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # frames; those three are tables
            return data[at + 4]
        at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
    return 0


def deep_ppm(image: Image.Image) -> bool:
    """True for a colour PPM whose largest value does not fit into a byte."""
    tiles = getattr(image, "tile", [])
    arguments = tiles[0][3] if tiles else ()
    return image.format == "PPM" and image.mode == "RGB" and isinstance(arguments, tuple) and arguments[-1] > 255


def read_ppm(path: Path, image: Image.Image) -> NDArray[np.uint16]:
    """(H, W, 3) uint16: the values of a PPM file as they are, in bytes or in digits. Raises ValueError for one that is cut short."""
    (width, height), tile = image.size, getattr(image, "tile")[0]  # noqa: B009  Image itself has none in its types
    count = width * height * 3
    with path.open("rb") as file:
        file.seek(tile[2])
        if tile[0] == "ppm":
            found = np.frombuffer(file.read(2 * count), ">u2")
        else:
            words = re.sub(rb"#[^\r\n]*", b"", file.read()).split()[:count]
            found = np.array([min(int(word), 65535) for word in words])
    if len(found) < count:
        raise ValueError("it is cut short")
    return found.astype(np.uint16).reshape(height, width, 3)


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(FIRST)


def _avif_bits(data: bytes) -> int:
    """From the boxes `av1C`: the third byte's second and third bits are "more than 8" and "12"."""
    third = [data[at.end() + 2] for at in re.finditer(b"av1C", data) if at.end() + 2 < len(data)]
    return max((12 if bits & 0x20 else 10 for bits in third if bits & 0x40), default=8)


def _jpeg2000_bits(data: bytes) -> int:
    """From the codestream's first two markers: 36 bytes after the second are its components' number, then three bytes for each of them."""
    at = data.find(b"\xff\x4f\xff\x51") + 4
    if at < 4 or at + 38 > len(data):
        return 8
    components = int.from_bytes(data[at + 36 : at + 38], "big")
    return max(((bits & 0x7F) + 1 for bits in data[at + 38 : at + 38 + 3 * components : 3]), default=8)
