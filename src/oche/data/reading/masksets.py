"""Where images and masks lie: a folder of `images/` and `masks/`, Cityscapes' own folders, CamVid's archives."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oche.data.reading.folders import SUFFIXES, UNREADABLE, image_shape, pixels_of, read_image
from oche.data.reading.masks import IGNORE, Pairs, from_pairs, mask_array
from oche.data.reading.parts import ALIASES, Parts
from oche.data.reading.pixels import Size
from oche.data.reading.torchsets import data_root
from oche.errors import UserError

IMAGES, MASKS, CLASSES = "images", "masks", "classes.txt"

CITYSCAPES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain", "sky",
    "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
"""Class names by trainId (cityscapesScripts)."""

CAMVID = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
CAMVID_VOID = 11
"""Class names of the 11-class split of SegNet, and the label of pixels without one."""


# ------------------------------------------------------------------ images/ and masks/


def has_masks(root: Path) -> bool:
    """Whether the folder, or its part train, holds images/ and masks/, or has the layout of Cityscapes or CamVid's archives."""
    parts = [root, *(root / alias for alias in ALIASES["train"])]
    folders = any((part / IMAGES).is_dir() and (part / MASKS).is_dir() for part in parts)
    return folders or has_cityscapes(root) or has_camvid(root)


def read_masks(root: Path, size: Size | None, channels: int | None) -> Parts:
    """A folder as `has_masks` knows it.

    `images/` and `masks/` pair by file name without suffix, at any depth. Parts are folders train, val and test that hold the two,
    or that lie in both. `classes.txt` may name the classes, one a line; without it they are numbered as far as the train masks go.

    Raises:
        UserError: an image without mask or a mask without image, an unreadable file, masks that do not fit (`from_pairs`).
    """
    if has_cityscapes(root):
        return read_cityscapes(root, size, channels)
    if has_camvid(root):
        return _camvid(root, size, channels)
    named = root / CLASSES
    lines = named.read_text(errors="replace").splitlines() if named.is_file() else []
    classes = tuple(line.strip() for line in lines if line.strip())
    parts = {part: _paired(images, masks) for part, (images, masks) in _part_folders(root).items()}
    if "train" not in parts:
        raise UserError(f"{root} has a folder for {min(parts)} but none called train; add train beside it.")
    return from_pairs(root.resolve().name, parts, classes, size, channels)


def _part_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Part -> its images and masks; {"train": ...} where there are no parts."""
    found = {}
    for part, aliases in ALIASES.items():
        for alias in aliases:
            for images, masks in (
                (root / alias / IMAGES, root / alias / MASKS),
                (root / IMAGES / alias, root / MASKS / alias),
            ):
                if images.is_dir() or masks.is_dir():
                    found[part] = images, masks
    return found or {"train": (root / IMAGES, root / MASKS)}


def _paired(images: Path, masks: Path) -> Pairs:
    """All images below one folder, each with the mask of its name below the other."""
    own, other = _by_name(images), _by_name(masks)
    if not own:
        raise UserError(
            f"{images} holds no images; expected files such as a.png, and a mask of the same name in {masks}."
        )
    for name in sorted(own.keys() ^ other.keys()):
        if name in own:
            raise UserError(f"The image {own[name]} has no mask; expected {masks / name} with a suffix such as .png.")
        raise UserError(f"The mask {other[name]} has no image; expected {images / name} with a suffix such as .png.")
    names = sorted(own)
    return _files([own[name] for name in names], [other[name] for name in names])


def _by_name(folder: Path) -> dict[str, Path]:
    """Path below the folder without suffix -> file. Raises UserError for two files of one name."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("[!.]*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                raise UserError(f"{found[name]} and {path} have one name; which is it? Rename one.")
            found[name] = path
    return found


def _files(images: Sequence[Path], masks: Sequence[Path], groups: tuple[str, ...] = ()) -> Pairs:
    return Pairs(
        tuple(map(str, masks)),
        lambda i: image_shape(images[i]),
        lambda i: read_image(images[i]),
        lambda i: _read_mask(masks[i]),
        groups,
    )


def _read_mask(path: Path) -> NDArray[np.generic]:
    try:
        with Image.open(path) as image:
            return mask_array(image, str(path))
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError(f"The mask {path} cannot be read ({error}); remove or replace it and its image.") from error


# ------------------------------------------------------------------ Cityscapes


def has_cityscapes(root: Path) -> bool:
    """Whether the folder holds leftImg8bit/ and gtFine/."""
    return (root / "leftImg8bit").is_dir() and (root / "gtFine").is_dir()


def read_cityscapes(root: Path, size: Size | None, channels: int | None) -> Parts:
    """leftImg8bit/PART/CITY/*_leftImg8bit.png with gtFine/PART/CITY/*_gtFine_labelTrainIds.png: 19 classes, each city a group.

    Its `val` is what papers report on and becomes the test part; its `test` has no public labels and is left alone. Images to
    validate on are split off train.

    Raises:
        UserError: no train images, a labelTrainIds file that is missing, masks that do not fit (`from_pairs`).
    """
    parts = {}
    for part, folder in (("train", "train"), ("test", "val")):
        images = sorted((root / "leftImg8bit" / folder).glob("*/*_leftImg8bit.png"))
        if not images and part == "train":
            raise UserError(
                f"{root / 'leftImg8bit' / folder} holds no CITY/*_leftImg8bit.png; unpack Cityscapes there."
            )
        stems = [(path.parent.name, path.name.removesuffix("_leftImg8bit.png")) for path in images]
        masks = [root / "gtFine" / folder / city / f"{stem}_gtFine_labelTrainIds.png" for city, stem in stems]
        for image, mask in zip(images, masks, strict=True):
            if not mask.is_file():
                raise UserError(
                    f"The image {image} has no mask {mask}; cityscapesscripts' createTrainIdLabelImgs writes these files."
                )
        if images:
            parts[part] = _files(images, masks, tuple(city for city, _ in stems))
    return from_pairs("cityscapes", parts, CITYSCAPES, size, channels)


# ------------------------------------------------------------------ CamVid


def has_camvid(root: Path) -> bool:
    """Whether the folder holds camvid_train.zip."""
    return (root / "camvid_train.zip").is_file()


def read_camvid(size: Size | None, channels: int | None) -> Parts:
    """CamVid, 11 classes, the split of SegNet, from camvid_{train,val,test}.zip in OCHE_DATA/camvid (or ./data/camvid)."""
    root = data_root() / "camvid"
    if not has_camvid(root):
        raise UserError(
            f"There is no {root / 'camvid_train.zip'}; set OCHE_DATA to the folder that has camvid/, or name that folder by --data."
        )
    return _camvid(root, size, channels)


def _camvid(root: Path, size: Size | None, channels: int | None) -> Parts:
    parts = {p: _archive(root / f"camvid_{p}.zip") for p in ALIASES if (root / f"camvid_{p}.zip").is_file()}
    return from_pairs("camvid", parts, CAMVID, size, channels)


def _archive(path: Path) -> Pairs:
    """image/NAME.webp with label/NAME.png; a name is SEQUENCE_FRAME, and a sequence is a group."""
    try:
        with zipfile.ZipFile(path) as archive:
            held = {name: archive.read(name) for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read: {error}; fetch it again.") from error
    names = sorted(Path(name).stem for name in held if name.startswith("image/"))
    for name in names:
        if f"label/{name}.png" not in held:
            raise UserError(f"{path} has image/{name}.webp but no label/{name}.png; fetch it again.")

    def opened(i: int) -> Image.Image:
        return Image.open(io.BytesIO(held[f"image/{names[i]}.webp"]))

    def shape(i: int) -> tuple[int, int, int]:
        width, height = opened(i).size
        return height, width, 3

    def mask(i: int) -> NDArray[np.generic]:
        name = f"label/{names[i]}.png"
        labels = mask_array(Image.open(io.BytesIO(held[name])), f"{path}:{name}")
        return np.where(labels == CAMVID_VOID, IGNORE, labels)

    labels = tuple(f"{path}:label/{name}.png" for name in names)
    groups = tuple(name.partition("_")[0] for name in names)
    return Pairs(labels, shape, lambda i: pixels_of(opened(i).convert("RGB")), mask, groups)
