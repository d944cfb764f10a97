"""HEIC, read by pillow-heif where it is installed: as its own decoder has it, upright, and with what is lost said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from oche.data import load
from oche.data.reading.files import head, read_image
from reference.inputs import everything, rgb

heif = pytest.importorskip("pillow_heif", reason="pip install 'oche[heic]'")


def picture(height: int = 48, width: int = 64) -> Image.Image:
    blocks = np.random.default_rng(3).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(np.kron(blocks, np.ones((8, 8, 1), np.uint8)))


def write(path: Path, image: Image.Image, turned: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = heif.from_pillow(image)
    if turned is not None:
        exif = Image.Exif()
        exif[0x0112] = turned
        file.info["exif"] = exif.tobytes()
    file.save(path, quality=80)
    return path


@pytest.mark.parametrize("suffix", [".heic", ".HEIC", ".heif"])
def test_pixels_are_the_decoders(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", picture())
    wanted = np.asarray(heif.open_heif(path, convert_hdr_to_8bit=True))
    assert head(path).shape == wanted.shape == (48, 64, 3)
    np.testing.assert_array_equal(read_image(path), wanted)
    assert np.abs(wanted.astype(int) - np.asarray(picture())).mean() < 12  # it is that picture


def test_grey_and_transparent_ones(tmp_path: Path) -> None:
    grey, clear = picture().convert("L"), picture()
    clear.putalpha(77)
    assert read_image(write(tmp_path / "grey.heic", grey)).shape == (48, 64, 1)
    path = write(tmp_path / "clear.heic", clear)
    assert head(path).alpha
    assert read_image(path).shape == (48, 64, 3)
    assert np.abs(read_image(path, alpha=True)[..., 3].astype(int) - 77).max() <= 1


def test_a_folder_from_telephones(tmp_path: Path) -> None:
    """Upright and turned ones of two classes, some with a JPEG beside them."""
    for c, name in enumerate(("cat", "dog")):
        for i in range(8):
            shade = Image.fromarray((rgb(64) // 2 + np.uint8(100 * c)).astype(np.uint8)).crop((0, 0, 64, 48))
            write(tmp_path / name / f"IMG_{i}.HEIC", shade, turned=6 if i == 3 else None)
        picture().save(tmp_path / name / "other.jpg")
    data = load(tmp_path, size=32)
    images, targets = everything(data)
    assert (len(images), data.classes, data.channels) == (18, ("cat", "dog"), 3)
    assert dict(data.ledger.shapes)["64x48x3 uint8"] == 2  # those that were turned
    assert not [fate for fate in data.ledger.fates if fate.became == "skipped"]
    assert float(images[targets == 1].float().mean()) > float(images[targets == 0].float().mean()) + 50


def test_deep_ones_are_said_to_be_cut(tmp_path: Path) -> None:
    for i in range(12):
        values = np.random.default_rng(i).integers(0, 1 << 16, (48, 64, 3), dtype=np.uint16)
        path = tmp_path / "ab"[i % 2] / f"{i}.heic"
        path.parent.mkdir(exist_ok=True)
        if i < 2:
            heif.from_bytes(mode="RGB;16", size=(64, 48), data=values.tobytes()).save(path, quality=90)
        else:
            write(path, picture())
    data = load(tmp_path, val=0.2, test=0.2)
    assert "2 HEIC images have more than 8 bits, of which 8 were read; as TIFF all would be." in data.notes
    assert everything(data)[0].dtype == torch.uint8


def test_a_damaged_one_is_a_sentence(tmp_path: Path) -> None:
    from oche.errors import UserError

    path = write(tmp_path / "a.heic", picture())
    whole = path.read_bytes()
    for raw in (b"", whole[:40], whole[: len(whole) // 2], b"x" * 100):
        path.write_bytes(raw)
        with pytest.raises(UserError, match=r"The image .*a\.heic cannot be read: .*; remove or replace it"):
            read_image(path)
