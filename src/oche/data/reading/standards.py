"""Data sets with masks in a layout of their own: Cityscapes, CamVid's archives, Pascal VOC."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oche.data.problems import refuse
from oche.data.reading.arrays import refuse_bomb
from oche.data.reading.files import Head, folders_in, images_below, values_of
from oche.data.reading.folders import folder_fates
from oche.data.reading.found import ALIASES, Parts, Wish
from oche.data.reading.labels import beside
from oche.data.reading.listing import WORKERS, Listing
from oche.data.reading.masks import IGNORE, by_colour, mask_values, palette_of
from oche.data.reading.masksets import colours_asked, of_listings, of_pairs
from oche.data.reading.naming import part_of
from oche.data.reading.official import CAMVID, CAMVID_VOID
from oche.data.reading.texts import text_of
from oche.data.reading.torchsets import data_root
from oche.errors import UserError

CITYSCAPES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain", "sky",
    "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
"""Class names by trainId (cityscapesScripts)."""

CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""The id of each class in the files labelIds; pixels of other ids count nowhere."""

VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""Class names of Pascal VOC's masks; 255 is the border of an object."""


# ------------------------------------------------------------------ Cityscapes


def has_cityscapes(root: Path) -> bool:
    """True if the folder holds leftImg8bit/ and gtFine/, by itself or in folders of their own, as archives are unpacked."""
    return _unpacked(root, "leftImg8bit") is not None and _unpacked(root, "gtFine") is not None


def _unpacked(root: Path, name: str) -> Path | None:
    """The folder of that name in this one, or in a folder of it that begins with the name, such as gtFine_trainvaltest."""
    places = (root, *(folder for folder in folders_in(root) if folder.name.startswith(f"{name}_")))
    return next((place / name for place in places if (place / name).is_dir()), None)


def read_cityscapes(root: Path, wish: Wish) -> Parts:
    """leftImg8bit/PART/CITY/*_leftImg8bit.png with gtFine/PART/CITY/*_gtFine_labelTrainIds.png: 19 classes, each city a group.

    Where there are no such masks those called *_gtFine_labelIds.png are taken, whose ids are mapped. Its `val` is what papers report on and
    becomes the test part; its `test` has no public labels and is left alone. Images to validate on are split off train.

    Raises:
        UserError: no train images, masks that are missing, or that do not fit.
    """
    listings: dict[str, Listing] = {}
    used: dict[str, Sequence[Path]] = {}
    left, fine = _unpacked(root, "leftImg8bit"), _unpacked(root, "gtFine")
    assert left is not None
    assert fine is not None
    mapped = not next(fine.glob("*/*/*_gtFine_labelTrainIds.png"), None)
    ending = "_gtFine_labelIds.png" if mapped else "_gtFine_labelTrainIds.png"
    for part, folder in (("train", "train"), ("test", "val")):
        images = sorted((left / folder).glob("*/*_leftImg8bit.png"))
        if not images and part == "train":
            raise UserError(f"{left / folder} holds no CITY/*_leftImg8bit.png; unpack Cityscapes there.")
        stems = [(path.parent.name, path.name.removesuffix("_leftImg8bit.png")) for path in images]
        masks = [fine / folder / city / f"{stem}{ending}" for city, stem in stems]
        refuse(
            f"The image {image} has no mask {mask}; "
            + ("unpack gtFine again." if mapped else "cityscapesscripts' createTrainIdLabelImgs writes these files.")
            for image, mask in zip(images, masks, strict=True)
            if not mask.is_file()
        )
        if images:
            listing = of_pairs(images, masks, tuple(city for city, _ in stems))
            listings[part] = _by_train_id(listing) if mapped else listing
            used |= {f"{part} images": images, f"{part} masks": masks}
    told = folder_fates(root, used)
    parts = of_listings("cityscapes", listings, wish, CITYSCAPES, settled=True, told=told, layout="Cityscapes")
    note = f"There are no labelTrainIds, so the ids of labelIds were mapped to Cityscapes' {len(CITYSCAPES)} classes."
    return replace(parts, notes=(note, *parts.notes)) if mapped else parts


def _by_train_id(listing: Listing) -> Listing:
    """The listing with ids in its masks as class numbers. Raises UserError, where one is read, for a mask of other types."""
    table = np.full(256, IGNORE, np.uint8)
    table[list(CITYSCAPES_IDS)] = range(len(CITYSCAPES_IDS))

    def mask(i: int) -> NDArray[np.generic]:
        assert listing.mask is not None
        ids = listing.mask(i)
        if ids.dtype != np.uint8 or ids.ndim != 2:
            raise UserError(f"The mask {listing.mask_names[i]} does not hold ids of 8 bits; unpack gtFine again.")
        classes: NDArray[np.generic] = table[ids]
        return classes

    return replace(listing, mask=mask)


# ------------------------------------------------------------------ CamVid


def has_camvid(root: Path) -> bool:
    """True if the folder holds camvid_train.zip."""
    return (root / "camvid_train.zip").is_file()


def read_camvid(wish: Wish) -> Parts:
    """CamVid, 11 classes, the split of SegNet, from camvid_{train,val,test}.zip in OCHE_DATA/camvid (or ./data/camvid)."""
    root = data_root() / "camvid"
    if not has_camvid(root):
        raise UserError(
            f"There is no {root / 'camvid_train.zip'}; set OCHE_DATA to the folder that has camvid/, or name that folder by --data."
        )
    return read_camvid_archives(root, wish)


def read_camvid_archives(root: Path, wish: Wish) -> Parts:
    """CamVid from a folder of its archives."""
    files = {part: root / f"camvid_{part}.zip" for part in ALIASES}
    there = {part: path for part, path in files.items() if path.is_file()}
    told = folder_fates(root, {f"{part} archive": [path] for part, path in there.items()})
    listings = {part: _archive(path) for part, path in there.items()}
    return of_listings("camvid", listings, wish, CAMVID, settled=True, told=told, layout="CamVid's archives")


def _archive(path: Path) -> Listing:
    """image/NAME.webp with label/NAME.png; a name is SEQUENCE_FRAME, and a sequence is a group."""
    try:
        refuse_bomb(path)
        with zipfile.ZipFile(path) as archive:
            held = {name: archive.read(name) for name in archive.namelist()}
    except (OSError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}; fetch it again.") from error
    names = sorted(Path(name).stem for name in held if name.startswith("image/"))
    for name in names:
        if f"label/{name}.png" not in held:
            raise UserError(f"{path} has image/{name}.webp but no label/{name}.png; fetch it again.")

    def opened(i: int) -> Image.Image:
        return Image.open(io.BytesIO(held[f"image/{names[i]}.webp"]))

    def head(i: int) -> Head:
        width, height = opened(i).size
        return Head((height, width, 3))

    def mask(i: int) -> NDArray[np.generic]:
        labels = mask_values(Image.open(io.BytesIO(held[f"label/{names[i]}.png"])))
        return np.where(labels == CAMVID_VOID, IGNORE, labels)

    return Listing(
        tuple(f"{path}:image/{name}.webp" for name in names),
        head,
        lambda i: values_of(opened(i).convert("RGB")),
        mask=mask,
        mask_names=tuple(f"{path}:label/{name}.png" for name in names),
        groups=tuple(name.partition("_")[0] for name in names),
    )


# ------------------------------------------------------------------ Pascal VOC


def voc_root(root: Path) -> Path | None:
    """The folder that holds JPEGImages/ and SegmentationClass/: this one, or one of VOCdevkit/VOC2012 below it."""
    below = [root, *folders_in(root)]
    for folder in (*below, *(inner for outer in below[1:] if outer.name == "VOCdevkit" for inner in folders_in(outer))):
        if (folder / "JPEGImages").is_dir() and (folder / "SegmentationClass").is_dir():
            return folder
    return None


def read_voc(root: Path, wish: Wish) -> Parts:
    """JPEGImages/NAME.jpg with SegmentationClass/NAME.png, in the parts that ImageSets/Segmentation/PART.txt lists.

    Without lists, all masks are of train images. Images without a mask, the greater part of VOC's, are counted and left. The classes are
    VOC's where the folder is called VOC2012 or the like, else those of class_names.txt, classes.txt, classes.toml or the masks.

    Raises:
        UserError: lists that name what is not there, masks that do not fit.
    """
    images = {path.stem: path for path in images_below(root / "JPEGImages")}
    masks = {path.stem: path for path in images_below(root / "SegmentationClass")}
    lists = root / "ImageSets" / "Segmentation"
    named = {part_of(path.stem): _names(path) for path in sorted(lists.glob("*.txt"))} if lists.is_dir() else {}
    parts = {part: named[part] for part in ALIASES if part in named} or {"train": sorted(masks)}
    parts = {part: names for part, names in parts.items() if part != "test" or any(name in masks for name in names)}
    if "train" not in parts:
        raise UserError(f"{lists} has no train.txt; expected a list of the train images' names.")
    refuse(
        f"{lists / part}.txt names {name!r}, which has no {'image' if name not in images else 'mask'} in {root}."
        for part, names in parts.items()
        for name in names
        if name not in images or name not in masks
    )
    wanted, names_here = beside(root)
    official = root.name.upper().startswith("VOC20")
    if wish.labels is None and wanted is not None:
        wish = replace(wish, labels=wanted)
    every = [masks[n] for names in parts.values() for n in names]
    colours, notes = by_colour(every, colours_asked(wish), WORKERS)
    listings = {
        part: of_pairs([images[n] for n in names], [masks[n] for n in names], colours=colours)
        for part, names in parts.items()
    }
    used = {f"{part} images": [images[n] for n in names] for part, names in parts.items()}
    used |= {f"{part} masks": [masks[n] for n in names] for part, names in parts.items()}
    found = of_listings(
        root.resolve().name,
        listings,
        wish,
        VOC if official else names_here,
        settled=official and not colours,
        palette=() if colours else palette_of(masks[parts["train"][0]]),
        told=folder_fates(root, used),
        layout="Pascal VOC",
    )
    return replace(found, notes=(*notes, *found.notes))


def _names(path: Path) -> list[str]:
    """The names in a list, one a line."""
    lines = text_of(path).splitlines()
    return [line.split()[0] for line in lines if line.strip()]
