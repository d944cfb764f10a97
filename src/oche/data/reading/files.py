"""One image file -> an array of its own values: what can be read, what a head tells, and what is refused.

Nothing is scaled here. 8-bit files give what Pillow gives; deeper ones their values as they are (`contract.PixelRule` maps them).
"""

from __future__ import annotations

import io
import os
import struct
import tokenize
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from oche.data.reading.depths import cut_format, deep_ppm, jpeg_bits, raw_mode, read_ppm
from oche.data.reading.pixels import channels_last
from oche.data.reading.tiff import ORIENTATION, SAMPLES, Directory, pages_of, read_pages, read_tiff
from oche.errors import UserError

SUFFIXES = frozenset((
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm",
    ".pnm", ".jp2", ".avif", ".tga", ".npy",
))  # fmt: skip
HEIC = frozenset((".heic", ".heif"))
GREY = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, OverflowError, TypeError, NotImplementedError),
    *(AttributeError, AssertionError, MemoryError, ZeroDivisionError, Image.DecompressionBombError),
    *(struct.error, zlib.error, tokenize.TokenError),
)
"""What Pillow, numpy and `tiff` raise for files that are damaged or are none."""

LARGEST = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)
"""Pixels (times pages or bands beyond 4) above which a file is refused: a small file may claim to be huge."""


PACKED = 4096
"""Pixels per byte of a file above which a TIFF, BMP or PPM file is refused."""

EMPTY, WIDE = 10_000, 2**26
"""Pixels per byte above which a file of more than so many pixels is refused in any format: a PNG holds 8,256, a WebP millions."""


@dataclass(frozen=True)
class Head:
    """What a file's first bytes say: height, width, channels and number type as `read_image` gives them, and an alpha channel.

    `cut` is the format's name where the file has more bits than are read, else empty. `turned`: an EXIF tag says how to turn it.
    `first`: the file holds several pictures, such as an animation, of which one is read. `converted`: what is read as RGB but is not.
    """

    shape: tuple[int, int, int]
    depth: str = "uint8"
    alpha: bool = False
    cut: str = ""
    turned: bool = False
    first: bool = False
    converted: str = ""


def suffixes() -> frozenset[str]:
    """The suffixes that can be read here: HEIC needs the package pillow-heif."""
    return SUFFIXES | HEIC if _heic() else SUFFIXES


def skipped_for(path: Path) -> str | None:
    """Why a file is not read; None for an image.

    >>> skipped_for(Path("a.mp4")), skipped_for(Path("a.PNG")), skipped_for(Path(".DS_Store"))
    ('no image (.mp4)', None, 'hidden')
    """
    suffix = path.suffix.lower()
    if path.name.startswith("."):
        return "hidden"
    if suffix in HEIC and not _heic():
        return f"{suffix} needs the package pillow-heif"
    return None if suffix in suffixes() else f"no image ({path.suffix or 'no suffix'})"


def below(folder: Path, denied: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """All files below a folder, links followed once, and none to a folder around it; hidden folders are given, and not entered.

    `denied` is told about folders that cannot be read, which are left out; without it, the first raises its OSError.
    """
    yield from _below(folder, frozenset(map(str, Path(os.path.realpath(folder)).parents)), denied)


def images_below(folder: Path) -> list[Path]:
    """The image files below a folder at any depth, sorted; those that cannot be opened, broken links, are left out."""
    return sorted(path for path in below(folder) if skipped_for(path) is None and path.is_file())


def holds_images(folder: Path) -> bool:
    """True if there is an image file below a folder."""
    return any(skipped_for(path) is None for path in below(folder))


def folders_in(root: Path) -> list[Path]:
    """Folders right below `root` that are not hidden, sorted by name."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not hidden(path.name))


def hidden(name: str) -> bool:
    """True for what programs leave behind: names that begin with a dot, macOS' and Synology's own folders."""
    return name.startswith(".") or name in ("__MACOSX", "@eaDir", "__pycache__")


def head(path: Path, alpha: bool = False) -> Head:
    """A file's shape and number type, without its pixels; `alpha` keeps a fourth channel where there is one.

    Raises:
        UserError: the file is not an image, or claims too many pixels.
    """
    try:
        if path.suffix.lower() == ".npy":
            held = np.load(path, mmap_mode="r", allow_pickle=False)
            height, width, channels = _last(held, path).shape
            return Head((height, width, channels), held.dtype.name)
        if (own := misread(path)) is not None:
            return _plain_head(own, alpha)
        with opened(path) as image:
            width, height = image.size
            depth, cut = _depth(image), cut_format(path, image)  # before anything below loads the pixels
            channels = 1 if image.mode in GREY else 4 if alpha and _transparent(image) else 3
            orientation = image.getexif().get(ORIENTATION, 1)
            swapped = orientation >= 5 and image.format != "TIFF"  # of which Pillow tells the size upright
            shape = (width, height) if swapped else (height, width)
            pages = _pages(image)
            first = pages == 1 and int(getattr(image, "n_frames", 1)) > 1
            converted = image.mode if image.mode in ("CMYK", "LAB", "HSV") else ""
            turned = orientation != 1
            return Head((*shape, channels * pages), depth, _transparent(image), cut, turned, first, converted)
    except UNREADABLE as error:
        if found := _plain_tiff(path):
            return _plain_head(found, alpha)
        raise unreadable(path, error) from error


def read_image(path: Path, alpha: bool = False) -> NDArray[np.generic]:
    """The values of a file, (H, W, C) upright: see `values_of`; `.npy` files hold (H, W), (H, W, C) or (C, H, W).

    Raises:
        UserError: the file is not an image, is damaged, or claims too many pixels.
    """
    try:
        if path.suffix.lower() == ".npy":
            return np.asarray(_last(np.load(path, allow_pickle=False), path))
        if misread(path) is not None:
            return read_pages(path, alpha)
        with opened(path) as image:
            if _depth(image) == "uint16" and image.mode not in GREY:
                return _deep_colour(path, image, alpha and _transparent(image))
            return np.concatenate([values_of(page, alpha) for page in _frames(image)], axis=-1)
    except UNREADABLE as error:
        if _plain_tiff(path):
            try:
                return read_pages(path, alpha)
            except UNREADABLE as other:
                raise unreadable(path, other) from other
        raise unreadable(path, error) from error


def values_of(image: Image.Image, alpha: bool = False) -> NDArray[np.generic]:
    """(H, W, 1) for grey images, (H, W, 3) for others, upright: uint8, or the file's own type where it is deeper.

    Transparency is dropped, unless `alpha` asks for (H, W, 4) of images that have it.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        pixels = np.asarray(image).astype(np.uint16)
    elif image.mode in ("I", "F"):
        pixels = np.array(image)
    elif image.mode in GREY:
        pixels = np.array(image.convert("L"))
    else:
        pixels = np.array(image.convert("RGBA" if alpha and _transparent(image) else "RGB"))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def unreadable(path: Path | str, error: Exception) -> UserError:
    """The sentence for a file that cannot be read."""
    if isinstance(error, UserError):
        return error
    reason = "it is not an image" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError) and (bits := jpeg_bits(Path(path))) > 8:
        reason = f"it is a JPEG of {bits} bits per channel, and of such 8 can be read; save it as a 16-bit PNG or TIFF"
    if isinstance(error, Image.DecompressionBombError):
        reason = f"it claims more than {LARGEST:,} pixels, or more than its bytes can hold"
    return UserError(f"The image {path} cannot be read: {' '.join(reason.split()).strip('.')}; remove or replace it.")


def opened(path: Path) -> Image.Image:
    """A file as Pillow opens it. Raises what Pillow does for one that claims more pixels than it can have, or is none."""
    if path.suffix.lower() in HEIC:
        _heic()
    image = Image.open(path)
    if image.format == "TIFF" and image.getexif().get(ORIENTATION, 1) != 1:
        image.close()
        image = Image.open(
            io.BytesIO(path.read_bytes())
        )  # mapped into memory, Pillow swaps the sides of turned files wrongly
    width, height = image.size
    bare = image.format in ("TIFF", "BMP", "PPM") and image.mode != "1"  # formats that cannot pack much into little
    pixels, held = width * height, path.stat().st_size
    hollow = pixels > (PACKED * held if bare else max(WIDE, EMPTY * held))
    if pixels * _pages(image) > LARGEST or hollow:
        image.close()
        raise Image.DecompressionBombError
    return image


def _pages(image: Image.Image) -> int:
    """How many pages of a TIFF stack are channels of one image; 1 for all else (of a GIF the first picture is read)."""
    pages = int(getattr(image, "n_frames", 1)) if image.format == "TIFF" else 1
    return pages if pages == 1 or _is_stack(image, pages) else 1


def _is_stack(image: Image.Image, pages: int) -> bool:
    """True if all pages have the first one's size and mode: thumbnails and pyramids have not."""
    size, mode = image.size, image.mode
    try:
        for page in range(1, pages):
            image.seek(page)
            if (image.size, image.mode) != (size, mode):
                return False
    finally:
        image.seek(0)
    return True


def _frames(image: Image.Image) -> Iterator[Image.Image]:
    for page in range(_pages(image)):
        image.seek(page)
        yield image


def _transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "PA", "RGBa", "LA", "La") or (
        image.mode in ("P", "RGB") and "transparency" in image.info
    )


def _depth(image: Image.Image) -> str:
    """The number type of the file's values."""
    if image.mode.startswith("I;16"):
        return "uint16"
    if image.mode in ("I", "F"):
        return "int32" if image.mode == "I" else "float32"
    raw = raw_mode(image)
    deep = (raw.startswith("RGB") and ";16" in raw) or deep_ppm(image)
    return "uint16" if deep else "uint8"


def _deep_colour(path: Path, image: Image.Image, alpha: bool) -> NDArray[np.generic]:
    """(H, W, 3) uint16, with `alpha` (H, W, 4), of which Pillow itself keeps the upper 8 bits."""
    if image.format == "TIFF":
        return read_tiff(path)[..., : 4 if alpha else 3]
    if image.format == "PPM":
        return read_ppm(path, image)
    pixels = _bytes_of(path, "B") * np.uint16(256) + _bytes_of(path, "L")
    return pixels[..., : 4 if alpha else 3]


def _bytes_of(path: Path, order: str) -> NDArray[np.uint8]:
    """One byte of each value of a PNG of 16 bits: the first, "B", as if that were the upper one, or the second, "L"."""
    with opened(path) as image:
        tile = getattr(image, "tile")[0]  # noqa: B009  Image itself has none in its types
        setattr(image, "tile", [(*tile[:3], f"{image.mode};16{order}")])  # noqa: B010
        return np.array(image)


def _last(held: NDArray[np.generic], path: Path) -> NDArray[np.generic]:
    """(H, W, C) of an array file's values. Raises UserError for another shape or type."""
    if held.dtype.kind not in "buif":
        raise UserError(f"The image {path} has values of the type {held.dtype}; expected integers or floats.")
    if held.ndim not in (2, 3):
        raise UserError(f"The image {path} has the shape {held.shape}; expected (H, W), (H, W, C) or (C, H, W).")
    last: NDArray[np.generic] = channels_last(held[None], str(path))[0]
    return last


def _plain_tiff(path: Path) -> list[Directory]:
    """The pages of a TIFF file that `tiff` reads; none for another file."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return []
    try:
        found = pages_of(path)
        fits = SAMPLES in found[0].tags and np.prod(found[0].shape) * len(found) <= 4 * LARGEST
        return found if fits and found[0].dtype.itemsize else []
    except UNREADABLE:
        return []


def misread(path: Path) -> list[Directory] | None:
    """The pages of a TIFF file of which Pillow gives other values than the file's; None for all else."""
    found = _plain_tiff(path)
    return found if found and found[0].misread else None


def _plain_head(pages: Sequence[Directory], alpha: bool) -> Head:
    height, width, samples = pages[0].shape
    kept, orientation = samples - (pages[0].alpha and not alpha), pages[0].orientation
    sides = (width, height) if orientation in (5, 6, 7, 8) else (height, width)
    return Head((*sides, kept * len(pages)), pages[0].dtype.name, pages[0].alpha, turned=orientation != 1)


@cache
def _heic() -> bool:
    """True once pillow-heif, where it is installed, has taught Pillow to read HEIC."""
    if find_spec("pillow_heif") is None:
        return False
    from pillow_heif import register_heif_opener

    register_heif_opener()
    return True


def _below(folder: Path, seen: frozenset[str], denied: Callable[[OSError], None] | None) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in seen:
        return
    try:
        entries = [(path, path.is_dir()) for path in sorted(folder.iterdir())]
    except OSError as error:
        if denied is None:
            raise
        denied(error)
        return
    for path, is_folder in entries:
        if is_folder and not hidden(path.name):
            yield from _below(path, seen | {real}, denied)
        else:
            yield path
