"""The shipped script has of every file the values that `oche predict` has, or refuses it as well."""

from __future__ import annotations

import ast
import itertools
import json
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from oche.data.contract import UNIT, Contract, PixelRule, decided
from oche.data.reading.applied import applied
from oche.data.reading.files import head, read_image
from oche.errors import UserError
from oche.training.shipped import predict_script
from oche.training.source import Gathered

Array = NDArray[np.generic]
RNG = np.random.default_rng(3)
SHIPPED = predict_script()
FUNCTIONS = compile(
    SHIPPED.split("\nmodel = ")[0] + SHIPPED[SHIPPED.index("\n\ndef main") : SHIPPED.index("if __name__")],
    "shipped",
    "exec",
)


def shipped(contract: Contract) -> ModuleType:
    """The functions of the script, for a network with that contract; its model is left out."""
    module = ModuleType("shipped_script")
    sys.modules[module.__name__] = module  # where dataclasses look their module up
    exec(FUNCTIONS, module.__dict__)  # noqa: S102  the text that is shipped, as it is
    plain = json.loads(json.dumps(contract.plain()))
    vars(module).update(contract=plain, rule=plain["pixels"], size=plain["size"], channels=plain["channels"])
    return module


def contract(channels: int, pixels: PixelRule, side: tuple[int, int] = (9, 8)) -> Contract:
    return Contract("classify", ("a", "b"), channels, side, pixels, (0.5,) * channels, (0.2,) * channels)


RULES = (PixelRule(), decided(0, 4000, ["uint16"], True), decided(-3.5, 90, ["float32"], False), UNIT)


def compared(path: Path) -> int:
    """Compares what both have of a file, for every rule and numbers of channels that may fit; returns how many had values."""
    seen = 0
    for rule, channels in itertools.product(RULES, (1, 2, 3, 4, 5)):
        asked = contract(channels, rule)
        script = shipped(asked)
        try:
            wanted = applied(path, asked)
        except UserError:
            with pytest.raises(Exception, match=r"[a-z]"):
                script.channelled(script.scaled(script.values(path)))
            continue
        held = script.values(path)
        got = script.resized(script.cropped(script.channelled(script.scaled(held))))
        expected = wanted.cropped(asked.size)[0].numpy()
        assert got.dtype == expected.dtype
        rounding = 0 if got.dtype == np.uint8 else 1e-6 * max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(got, expected, atol=rounding, rtol=1e-5)
        if not script.in_bytes(held):
            assert script.strange(held) == wanted.odd
        seen += 1
    return seen


def grey(kind: str, shape: tuple[int, ...] = (12, 10)) -> NDArray[Any]:
    return (RNG.random(shape) * {"u1": 255, "u2": 60000, "i4": 70000, "f4": 3}[kind]).astype(kind)


def png16(values: NDArray[np.uint16], how: int) -> bytes:
    """A PNG of 16 bits whose rows are filtered by method `how`, from the specification: 0 none, 1 left, 2 above, 3 mean, 4 Paeth."""
    height, width, channels = values.shape
    step, above, rows = 2 * channels, np.zeros(width * channels * 2, int), b""
    for row in values.astype(">u2").reshape(height, -1):
        now = np.frombuffer(row.tobytes(), np.uint8).astype(int)
        left, corner = (np.concatenate([np.zeros(step, int), line[:-step]]) for line in (now, above))
        near = [abs(left + above - corner - one) for one in (left, above, corner)]
        paeth = np.choose(np.argmin(near, 0), [left, above, corner])
        less = (0 * now, left, above, (left + above) // 2, paeth)[how]
        rows, above = rows + bytes([how]) + ((now - less) % 256).astype(np.uint8).tobytes(), now
    sizes = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    parts = ((b"IHDR", sizes), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )


def pages(path: Path, images: list[Array], **how: Any) -> None:
    first, *others = map(Image.fromarray, images)
    first.save(path, "TIFF", save_all=True, append_images=others, **how)


def as_palette(path: Path) -> None:
    image = Image.fromarray(grey("u1", (12, 10, 3))).quantize(7)
    image.save(path, transparency=2)


FILES: dict[str, Callable[[Path], object]] = {
    "grey.jpg": lambda p: Image.fromarray(grey("u1")).save(p),
    "colour.jpg": lambda p: Image.fromarray(grey("u1", (12, 10, 3))).save(p),
    "cmyk.jpg": lambda p: Image.fromarray(grey("u1", (12, 10, 4)), "CMYK").save(p),
    "turned.jpg": lambda p: Image.fromarray(grey("u1", (12, 10, 3))).save(p, exif=_turned(6)),
    "grey16.png": lambda p: Image.fromarray(grey("u2")).save(p),
    "one bit.png": lambda p: Image.fromarray(grey("u1") > 99).save(p),
    "palette.png": as_palette,
    "grey and alpha.png": lambda p: Image.fromarray(grey("u1", (12, 10, 2)), "LA").save(p),
    "rgba.png": lambda p: Image.fromarray(grey("u1", (12, 10, 4))).save(p),
    "rgb16.png": lambda p: p.write_bytes(png16(grey("u2", (12, 10, 3)), 4)),
    "rgba16.png": lambda p: p.write_bytes(png16(grey("u2", (12, 10, 4)), 3)),
    "colour12.ppm": lambda p: p.write_bytes(b"P6 10 12 4095\n" + (grey("u2", (12, 10, 3)) // 16).astype(">u2").tobytes()),
    "float.tif": lambda p: Image.fromarray(grey("f4")).save(p),
    "turned.tif": lambda p: Image.fromarray(grey("u1")).save(p, tiffinfo={274: 6}),
    "numbers.tif": lambda p: Image.fromarray(grey("i4") - np.int32(9)).save(p),
    "stack.tif": lambda p: pages(p, [grey("u2") for _ in range(5)]),
    "pyramid.tif": lambda p: pages(p, [grey("u1", (12, 10, 3)), grey("u1", (10, 8, 3))]),
    "mask page.tif": lambda p: pages(p, [grey("u1", (12, 10, 3)), grey("u1")]),
    "colours.npy": lambda p: np.save(p, grey("f4", (12, 10, 3))),
    "bands.npy": lambda p: np.save(p, grey("u2", (5, 12, 10))),
    "signed.npy": lambda p: np.save(p, (grey("u1").astype(np.int16) - 100)),
    "small numbers.npy": lambda p: np.save(p, grey("u1").astype(np.int32)),
    "truths.npy": lambda p: np.save(p, grey("u1") > 99),
    "doubles.npy": lambda p: np.save(p, grey("f4").astype(np.float64)),
}  # fmt: skip

REFUSED: dict[str, Callable[[Path], object]] = {
    "empty.png": lambda p: p.write_bytes(b""),
    "text.png": lambda p: p.write_text("no image"),
    "tiny.png": lambda p: Image.fromarray(grey("u1", (7, 30))).save(p),
    "cut.png": lambda p: p.write_bytes(png16(grey("u2", (12, 10, 3)), 0)[:300]),
    "one axis.npy": lambda p: np.save(p, np.arange(90.0)),
    "complex.npy": lambda p: np.save(p, np.ones((9, 9), complex)),
    "gap.npy": lambda p: np.save(p, np.where(np.eye(9) > 0, np.nan, 0.5)),
    "infinite.tif": lambda p: Image.fromarray(np.full((9, 9), np.inf, np.float32)).save(p),
    "pickled.npy": lambda p: np.save(p, np.array([{}, 1], dtype=object)),
}


def _turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


@pytest.mark.filterwarnings("ignore::DeprecationWarning:test_shipped_reading")
@pytest.mark.parametrize("name", FILES)
def test_values_of_a_file_are_those_of_predict(name: str, tmp_path: Path) -> None:
    FILES[name](tmp_path / name)
    assert compared(tmp_path / name) >= 4


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
@pytest.mark.parametrize("name", REFUSED)
def test_what_predict_refuses_the_script_refuses(name: str, tmp_path: Path) -> None:
    REFUSED[name](tmp_path / name)
    assert compared(tmp_path / name) == 0


TIFFS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "colour": ((12, 10, 3), {"photometric": "rgb"}),
    "colour and one more band": ((12, 10, 4), {"photometric": "rgb", "extrasamples": ["unspecified"]}),
    "colour and transparency": ((12, 10, 4), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    "colour and two more bands": ((12, 10, 5), {"photometric": "rgb", "extrasamples": ["unspecified"] * 2}),
    "two bands": ((12, 10, 2), {"photometric": "minisblack", "planarconfig": "contig"}),
    "five planes": ((5, 12, 10), {"photometric": "minisblack", "planarconfig": "separate"}),
    "five bands": ((12, 10, 5), {"photometric": "minisblack", "planarconfig": "contig"}),
    "deflated": ((12, 10), {"compression": "zlib"}),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("form", TIFFS)
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "u4", "f4"])
def test_values_of_tiff_files_are_those_of_predict(form: str, kind: str, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    shape, how = TIFFS[form]
    for order in "<>":
        values = (RNG.random(shape) * 120).astype(order + kind)
        tifffile.imwrite(tmp_path / "a.tif", values, byteorder=order, metadata=None, **how)
        assert compared(tmp_path / "a.tif") >= 4


@pytest.mark.parametrize("how", range(5))
@pytest.mark.parametrize("channels", [3, 4])
def test_colours_of_16_bits_are_those_that_were_written(channels: int, how: int, tmp_path: Path) -> None:
    """However the rows of the PNG are filtered."""
    values = RNG.integers(0, 65536, (9, 13, channels)).astype(np.uint16)
    path = tmp_path / "a.png"
    path.write_bytes(png16(values, how))
    assert np.array_equal(read_image(path, True), values)
    assert np.array_equal(read_image(path), values[..., :3])
    assert (head(path).shape, head(path).depth) == ((9, 13, 3), "uint16")


def test_bitmaps_of_16_bits_per_pixel_are_colours_of_8(tmp_path: Path) -> None:
    """5, 6 and 5 bits: they were taken for colours of 16 bits, and refused."""
    words = RNG.integers(0, 65536, (8, 8)).astype("<u2")
    start = struct.pack("<2sIHHI", b"BM", 66 + words.nbytes, 0, 0, 66)
    masks = struct.pack("<IiiHHIIiiII3I", 40, 8, -8, 1, 16, 3, words.nbytes, 0, 0, 0, 0, 0xF800, 0x07E0, 0x001F)
    (tmp_path / "a.bmp").write_bytes(start + masks + words.tobytes())
    got = read_image(tmp_path / "a.bmp")
    assert got.dtype == np.uint8
    wanted = np.stack([words >> 11, words >> 5 & 63, words & 31], axis=-1) / np.array([31, 63, 31]) * 255
    assert np.abs(got - wanted).max() < 1.5
    assert compared(tmp_path / "a.bmp") >= 4


def test_no_name_of_the_script_stands_for_two_things() -> None:
    tree = ast.parse(SHIPPED)
    names = Counter(
        name
        for node in tree.body
        for name in (
            [node.name]
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            else [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
            if isinstance(node, ast.Assign)
            else []
        )
    )
    assert [name for name, count in names.items() if count > 1] == []
    used = {
        alias.name.split(".")[0] if isinstance(node, ast.Import) else str(node.module).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert used - sys.stdlib_module_names == {"numpy", "onnxruntime", "PIL", "pillow_heif"}


def test_two_definitions_of_one_name_are_not_mixed_up() -> None:
    gathered = Gathered(frozenset())
    gathered.add("oche.data.reading.tiff", "directory")
    with pytest.raises(ValueError, match="has the name of another definition"):
        gathered.add("oche.data.reading.depths", "directory")


def test_masks_of_two_images_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The second is refused: its mask would take the first one's place."""
    asked = replace(contract(1, PixelRule()), task="segment")
    paths = [tmp_path / folder / "a.png" for folder in ("one", "two")]
    for path in paths:
        path.parent.mkdir()
        Image.fromarray(grey("u1")).save(path)
    script = shipped(asked)
    vars(script)["scores"] = lambda pixels: np.stack([pixels[..., 0], 255.0 - pixels[..., 0]])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="1"):
        script.main([str(path) for path in paths])
    said = capsys.readouterr()
    assert said.out.split() == [str(paths[0]), "a_mask.png"]
    assert f"{paths[1]} cannot be read: its mask would have the name of another image's" in said.err
