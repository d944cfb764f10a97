"""Formats with more than 8 bits per channel: read as they are, cut and said to be, or refused with the reason."""

from __future__ import annotations

import struct
import zlib
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from oche.data import load
from oche.data.reading.files import head, read_image
from oche.errors import UserError
from reference.inputs import rgb

# 16x16 pixels of ours in formats that Pillow does not write: written by imagecodecs 2026.3.6
AVIF_10 = (
    "AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUEAAADrbWV0YQAAAAAAAAAhaGRscgAAAAAAAAAAcGljdAAAAAAAAAAAAAAAAAAAAAAOcGl0"
    "bQAAAAAAAQAAAB5pbG9jAAAAAEQAAAEAAQAAAAEAAAETAAAANwAAAChpaW5mAAAAAAABAAAAGmluZmUCAAAAAAEAAGF2MDFDb2xvcgAAAABqaXBy"
    "cAAAAEtpcGNvAAAAFGlzcGUAAAAAAAAAEAAAABAAAAAQcGl4aQAAAAADCgoKAAAADGF2MUOBIEAAAAAAE2NvbHJuY2x4AAIAAgAGgAAAABdpcG1h"
    "AAAAAAAAAAEAAQQBAoMEAAAAP21kYXQSAAoIOAz/2sCAgaQyKReCYwTDDDDPIAAAdX+id0U9A8AkDRF/mbNqI7U0YjgealdcHtl8A6ug"
)
JPEG_2000_16 = (
    "/0//UQAvAAAAAAAQAAAAEAAAAAAAAAAAAAAAEAAAABAAAAAAAAAAAAADDwEBDwEBDwEB/1IADAAAAAEBAQQEAAH/XAAHQICIiJD/ZAAlAAFDcmVh"
    "dGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAAD2AAH/k8/8MSARHfCg+VDeYcS51sZJHIUzl4drQ3No00wTmbGA9lbj7JbERbyw"
    "9/ufnmFsNBRX/z9sxPKBagM9FC3qUqInE4oFqCSLvgMJCX/f+JHwPmKE+915D+sLH/Kpxp2Ylzybs7Bl/JxyeltBMnB7Z1Ryt6jbbJOwDLG5PS2h"
    "bAfcwZq4uJCW57IAMJCX/3/f+JFAJ3Vmip8cpb26jzqvWzP8l0KQdPeib1EuYd72SMu4UcNYduwH/3//f8B/ILA/wCg2oZnTfz2mNGDPoP9gAKA+"
    "YqKwZ8H/QAFg/2AAoDahmdOfPmKisGf/2Q=="
)
JPEG_12 = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAIBAQEBAQIBAQECAgICAgQDAgICAgUEBAMEBgUGBgYFBgYGBwkIBgcJBwYGCAsICQoKCgoKBggLDAsK"
    "DAkKCgr/2wBDAQICAgICAgUDAwUKBwYHCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgr/wQARDAAQABAD"
    "ASIAAhEBAxEB/8QAFQABAQAAAAAAAAAAAAAAAAAADA3/xAAcEAAABgMAAAAAAAAAAAAAAAAACwwpN0ZUYnL/xAAVAQEBAAAAAAAAAAAAAAAAAAAI"
    "C//EACARAAAEBgMAAAAAAAAAAAAAAAALJ0QKDDY3U2JUcXP/2gAMAwEAAhEDEQA/AJ2MVGJU2Nm4cSqc6BMiVGJUyNm4MSqc6BJwVGJU2Nm4MSqc"
    "6BMiVGJU2Nm4cSqc6CbPGJnBNQqDldd7Bfy3EfRWdVLgPPPcf//Z"
)


def values(seed: int = 0, most: int = 65536) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(0, most, (16, 16, 3)).astype(np.uint16)


def png(path: Path, kind: int, pixels: NDArray[np.uint16]) -> Path:
    """A 16-bit PNG by hand; `kind` is its colour type."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    size = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, kind, 0, 0, 0)
    chunks = [(b"IHDR", size), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    told = [struct.pack(">I", len(b)) + name + b + struct.pack(">I", zlib.crc32(name + b)) for name, b in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(told))
    return path


def deep(folder: Path) -> dict[str, Path]:
    """A file of each format that Pillow cuts to 8 bits, by the format's name."""
    found = {
        "AVIF": folder / "ten.avif",
        "JPEG 2000": folder / "sixteen.jp2",
        "PNG of grey with transparency": png(folder / "grey.png", 4, values()[..., :2]),
    }
    found["AVIF"].write_bytes(b64decode(AVIF_10))
    found["JPEG 2000"].write_bytes(b64decode(JPEG_2000_16))
    return found


def test_what_is_cut_is_told_by_its_head(tmp_path: Path) -> None:
    for kind, path in deep(tmp_path).items():
        told = head(path)
        assert (told.cut, told.depth, told.shape) == (kind, "uint8", (16, 16, 3))
        assert read_image(path).dtype == np.uint8


@pytest.mark.parametrize("suffix", ["avif", "jp2", "png", "jpg", "webp"])
def test_eight_bits_are_not_said_to_be_cut(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(rgb(16)).save(tmp_path / f"a.{suffix}")
    assert head(tmp_path / f"a.{suffix}").cut == ""


def test_deep_jpeg_2000_of_grey_is_whole(tmp_path: Path) -> None:
    Image.fromarray(values()[..., 0]).save(tmp_path / "grey.jp2", irreversible=False)
    assert head(tmp_path / "grey.jp2").cut == ""
    np.testing.assert_array_equal(read_image(tmp_path / "grey.jp2")[..., 0], values()[..., 0])


def test_the_ledger_says_what_was_cut(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    files = deep(tmp_path / "deep")
    for i in range(24):
        folder = tmp_path / "data" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        if i < 4:
            (folder / f"{i}.avif").write_bytes(files["AVIF"].read_bytes()[:-1] + bytes([i]))
        elif i == 4:
            (folder / "4.jp2").write_bytes(files["JPEG 2000"].read_bytes())
        else:
            Image.fromarray(values(i).astype(np.uint8)).save(folder / f"{i}.png")
    notes = load(tmp_path / "data", val=0.2, test=0.2).notes
    assert "4 AVIF images have more than 8 bits, of which 8 were read; as TIFF all would be." in notes
    assert "1 JPEG 2000 image has more than 8 bits, of which 8 were read; as TIFF all would be." in notes


@pytest.mark.parametrize("largest", [65535, 1023])
@pytest.mark.parametrize("digits", [False, True])
def test_deep_ppm_is_read_as_it_is(tmp_path: Path, largest: int, digits: bool) -> None:
    """In bytes and in digits, with a comment; Pillow makes 8 bits of both."""
    wanted = values(1, largest + 1)
    body = b"# ours\n" + " ".join(map(str, wanted.ravel())).encode() if digits else wanted.astype(">u2").tobytes()
    path = tmp_path / "a.ppm"
    path.write_bytes(f"P{3 if digits else 6}\n16 16\n{largest}\n".encode() + body)
    assert (head(path).depth, head(path).shape) == ("uint16", (16, 16, 3))
    np.testing.assert_array_equal(read_image(path), wanted)
    path.write_bytes(path.read_bytes()[: -len(body) // 2])
    with pytest.raises(UserError, match=r"a\.ppm cannot be read: it is cut short"):
        read_image(path)


def test_ppm_of_few_bits_is_pillows(tmp_path: Path) -> None:
    path = tmp_path / "a.ppm"
    path.write_bytes(b"P6\n16 16\n15\n" + (values() % 16).astype(np.uint8).tobytes())
    assert head(path).depth == "uint8"
    np.testing.assert_array_equal(read_image(path), (values() % 16) * 17)


def test_a_jpeg_of_twelve_bits_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b64decode(JPEG_12))
    with pytest.raises(UserError, match=r"a\.jpg cannot be read: it is a JPEG of 12 bits per channel"):
        read_image(path)
    path.write_bytes(b64decode(JPEG_12)[:40])
    with pytest.raises(UserError, match=r"a\.jpg cannot be read"):
        read_image(path)
