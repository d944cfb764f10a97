"""Reads folders of image files: one folder a class, or train/, val/ and test/ with one folder a class each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from oche.data.images import ArraySource, ImageSet, LazySource, in_parallel
from oche.data.reading.parts import ALIASES, Parts
from oche.data.reading.pixels import Size, common_size, extent, resized, with_channels
from oche.errors import UserError

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"))
GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N")
MEMORY_LIMIT = 4 * 2**30
"""Bytes of decoded pixels above which images are decoded anew each time they are needed."""

WORKERS = 8
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)  # what Pillow raises
ORIENTATION = 0x0112  # the EXIF tag; from 5 on, width and height are swapped


@dataclass(frozen=True)
class Listing:
    """Images of one part with their classes: `read(i)` gives (H, W, C) uint8, `shape(i)` its shape at less cost."""

    read: Callable[[int], Tensor]
    shape: Callable[[int], tuple[int, int, int]]
    labels: tuple[int, ...]
    workers: int = WORKERS

    def shapes(self) -> list[tuple[int, int, int]]:
        """(H, W, C) of every image."""
        return in_parallel(self.shape, range(len(self.labels)), self.workers)


def read_folder(root: Path, size: Size | None, channels: int | None) -> Parts:
    """Images below `root`; classes are named by their folders and numbered in the order of the sorted names.

    Folders train, val (or valid, validation) and test are parts; otherwise every folder is a class. Below a class
    folder, images may lie at any depth. Files that are no images, and hidden ones, are skipped. Grey files stay grey
    unless colour ones are among them. Images are turned as their EXIF tag says, then brought to one size (`pixels`).

    Raises:
        UserError: no class folders, a class without images, parts with different classes, an unreadable image.
    """
    folders = _part_folders(root)
    classes = _class_names(folders["train"])
    for folder in folders.values():
        if different := set(classes) ^ set(_class_names(folder)):
            odd = min(different)
            raise UserError(f"{folder} and {folders['train']} differ in the class {odd!r}; all parts need the same.")
    listings = {part: file_listing(_files(folder, classes)) for part, folder in folders.items()}
    sets, notes = gather(listings, root.name, size, channels)
    return Parts(root.resolve().name, sets, classes, notes=notes)


def file_listing(files: list[tuple[Path, int]]) -> Listing:
    """A `Listing` of image files, each with its class number."""
    paths = [path for path, _ in files]
    return Listing(lambda i: read_image(paths[i]), lambda i: image_shape(paths[i]), tuple(label for _, label in files))


def gather(
    listings: Mapping[str, Listing], name: str, size: Size | None, channels: int | None
) -> tuple[dict[str, ImageSet], tuple[str, ...]]:
    """Part -> its images, all of one size and number of channels; and notes about what was changed.

    They are decoded once and kept, or decoded on demand where they would take more than `MEMORY_LIMIT`. Shapes are
    not looked at when `size` and `channels` are both given.
    """
    notes: tuple[str, ...] = ()
    if size is None or channels is None:
        shapes = [found for one in listings.values() for found in one.shapes()]
        shape, notes = common_size([(height, width) for height, width, _ in shapes], size)
        if channels is None:
            kinds = {depth for _, _, depth in shapes}
            channels = kinds.pop() if len(kinds) == 1 else 3
            notes += ("Grey and colour images are mixed; grey ones were repeated into 3 channels.",) if kinds else ()
    else:
        shape, _ = common_size([extent(size)], size)
    count = sum(len(one.labels) for one in listings.values())
    lazy = count * shape[0] * shape[1] * channels > MEMORY_LIMIT
    if lazy:
        notes += ("The decoded images exceed 4 GiB, so they are decoded on demand and not searched for duplicates.",)
    return {part: _image_set(one, shape, channels, name, lazy) for part, one in listings.items()}, notes


def read_image(path: Path) -> Tensor:
    """The pixels of a file, as `pixels_of` gives them.

    Raises:
        UserError: the file is not an image, or broken.
    """
    try:
        with Image.open(path) as image:
            return pixels_of(image)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def pixels_of(image: Image.Image) -> Tensor:
    """(H, W, 1) for grey images, (H, W, 3) for others, uint8, upright; transparency is dropped, 16 bits become 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return torch.from_numpy((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))[..., None]
    pixels = np.array(image.convert("L" if image.mode in GREY else "RGB"))
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None])


def image_shape(path: Path) -> tuple[int, int, int]:
    """(H, W, C) as `read_image` will give, from the head of the file alone.

    Raises:
        UserError: the file is not an image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            channels = 1 if image.mode in GREY else 3
            turned = image.getexif().get(ORIENTATION, 1) >= 5
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    return (width, height, channels) if turned else (height, width, channels)


def _image_set(listing: Listing, size: tuple[int, int], channels: int, name: str, lazy: bool) -> ImageSet:
    decode = partial(_decode, listing, size, channels, name)
    targets = torch.tensor(listing.labels, dtype=torch.int64)
    if lazy:
        return ImageSet(LazySource(decode, listing.workers), targets, torch.arange(len(targets)))
    images = torch.empty(len(targets), *size, channels, dtype=torch.uint8)

    def fill(i: int) -> None:
        images[i] = decode(i)

    in_parallel(fill, range(len(targets)), listing.workers)
    return ImageSet(ArraySource(images), targets, torch.arange(len(targets)))


def _decode(listing: Listing, size: tuple[int, int], channels: int, name: str, i: int) -> Tensor:
    return resized(with_channels(listing.read(i), channels, name)[None], size)[0]


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = "it is not an image" if isinstance(error, UnidentifiedImageError) else str(error)
    return UserError(f"The image {path} cannot be read: {reason}; remove or replace it.")


def _part_folders(root: Path) -> dict[str, Path]:
    """Part -> folder; {"train": root} where there are class folders only."""
    below = {folder.name.lower(): folder for folder in _folders(root)}
    found = {part: below[alias] for part, aliases in ALIASES.items() for alias in aliases if alias in below}
    if not found:
        return {"train": root}
    if "train" not in found:
        raise UserError(f"{root} has a folder for {min(found)} but none called train; add train/ beside it.")
    return found


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(below.name for below in _folders(folder))
    if not names:
        raise UserError(f"{folder} holds no folders; expected one folder of images for each class.")
    return names


def _files(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    files = []
    for label, name in enumerate(classes):
        below = (folder / name).rglob("[!.]*")
        paths = sorted(path for path in below if path.suffix.lower() in SUFFIXES and path.is_file())
        if not paths:
            raise UserError(f"The class folder {folder / name} holds no images; add some, or remove the folder.")
        files += [(path, label) for path in paths]
    return files


def _folders(root: Path) -> list[Path]:
    """Folders right below `root` that are not hidden, sorted by name."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
