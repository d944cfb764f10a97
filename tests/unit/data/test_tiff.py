"""TIFF files of every type of number: values as another library wrote them, upright, or a refusal; never other values without a word."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oche.data.reading.files import head, read_image
from oche.data.reading.masks import read_mask
from oche.data.reading.tiff import upright
from oche.errors import UserError

tifffile = pytest.importorskip("tifffile")

FORMS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "grey": ((6, 9), {}),
    "colour": ((6, 9, 3), {"photometric": "rgb"}),
    "colour and transparency": ((6, 9, 4), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    "colour and one more band": ((6, 9, 4), {"photometric": "rgb", "extrasamples": ["unspecified"]}),
    "colour and two more bands": ((6, 9, 5), {"photometric": "rgb", "extrasamples": ["unspecified"] * 2}),
    "two bands": ((6, 9, 2), {"photometric": "minisblack", "planarconfig": "contig"}),
    "five bands": ((6, 9, 5), {"photometric": "minisblack", "planarconfig": "contig"}),
    "five planes": ((5, 6, 9), {"photometric": "minisblack", "planarconfig": "separate"}),
    "three pages": ((3, 6, 9), {"photometric": "minisblack"}),
    "Deflate": ((6, 9), {"compression": "zlib"}),
    "Deflate of differences": ((6, 9), {"compression": "zlib", "predictor": True}),
    "tiles": ((32, 32), {"tile": (16, 16)}),
    "BigTIFF": ((6, 9), {"bigtiff": True}),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"])
def test_values_are_those_that_were_written_and_the_head_says_their_shape(tmp_path: Path, kind: str) -> None:
    seed, path = np.random.default_rng(0), tmp_path / "a.tif"
    seen = 0
    for order, (form, (shape, how)) in itertools.product("<>", FORMS.items()):
        dtype = np.dtype(order + kind)
        if dtype.kind == "f":
            values = (seed.normal(size=shape) * 100).astype(dtype)
        else:
            info = np.iinfo(dtype)
            values = seed.integers(info.min, info.max, shape, dtype.newbyteorder("="), endpoint=True).astype(dtype)
        try:
            tifffile.imwrite(path, values, byteorder=order, metadata=None, **how)
        except (ValueError, KeyError):
            continue  # a form that the library does not write
        wanted = np.moveaxis(values, 0, -1) if form in ("five planes", "three pages") else values
        wanted = wanted[..., None] if wanted.ndim == 2 else wanted[..., :3] if "transparency" in form else wanted
        try:
            got = read_image(path)
        except UserError:
            assert how.get("predictor"), form
            continue
        assert np.array_equal(got.astype(np.float64), wanted.astype(np.float64)), (form, order)
        said = head(path)
        assert (said.shape, said.depth) == (got.shape, got.dtype.name), (form, order)
        seen += 1
    assert seen >= 20


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("values", [np.arange(54, dtype=t).reshape(6, 9) for t in (np.uint8, np.uint16, np.float32)])
def test_turned_files_are_read_upright(tmp_path: Path, values: np.ndarray[Any, Any], compression: str | None) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(values).save(path, tiffinfo={274: 6}, compression=compression)
    assert np.array_equal(read_image(path)[..., 0], np.rot90(values, -1))
    assert head(path).shape == (9, 6, 1)
    if values.dtype == np.uint8:
        assert np.array_equal(read_mask(path), np.rot90(values, -1))


TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip


@pytest.mark.parametrize("orientation", TRANSPOSES)
def test_each_orientation_is_pillows(orientation: int) -> None:
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    wanted = np.asarray(Image.fromarray(values).transpose(TRANSPOSES[orientation]))
    assert np.array_equal(upright(values[..., None], orientation)[..., 0], wanted)


def test_transparency_of_16_bits_is_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (8, 9, 4)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(read_image(tmp_path / "a.tif", True), values)
    assert head(tmp_path / "a.tif", True).shape == (8, 9, 4)
    assert head(tmp_path / "a.tif").shape == read_image(tmp_path / "a.tif").shape == (8, 9, 3)


def test_arrays_that_are_no_images_are_refused_by_their_own_shape_and_type(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1, 3, 8, 8)))
    with pytest.raises(UserError, match=r"has the shape \(1, 3, 8, 8\); expected \(H, W\)"):
        head(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.zeros((8, 8), complex))
    with pytest.raises(UserError, match="values of the type complex128; expected integers or floats"):
        head(tmp_path / "b.npy")
