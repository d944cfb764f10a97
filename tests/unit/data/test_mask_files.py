"""Mask files as people have them: labels that a file's form hides or changes are read as they were meant, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from oche.data import Data, load
from oche.errors import UserError

COUNT, RED, BLUE = 12, (255, 0, 0), (0, 0, 255)
Mask = NDArray[np.uint8]


def labels_of(i: int) -> Mask:
    """0, and 1 and 2 in blocks whose place tells the image."""
    found = np.zeros((16, 16), np.uint8)
    found[2:6, 2 + i : 5 + i] = 1
    found[8:12, 1 : 3 + i] = 2
    return found


def painted(labels: Mask) -> Image.Image:
    return Image.fromarray(np.array([(0, 0, 0), RED, BLUE], np.uint8)[labels])


def scenes(root: Path, save: Callable[[int, Path], object], name: str = "{i}.png") -> Path:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i in range(COUNT):
        Image.fromarray(np.full((16, 16, 3), i, np.uint8)).save(root / f"images/{i}.png")
        save(i, root / "masks" / name.format(i=i))
    return root


def masks_read(data: Data) -> dict[int, Mask]:
    """Image number -> its mask as the network is taught it."""
    found = {}
    for part in (data.train, data.val, data.test):
        images, masks = part.take(torch.arange(len(part)))
        found |= {int(image[0, 0, 0]): mask.numpy() for image, mask in zip(images, masks, strict=True)}
    return found


def by_first_use(i: int, path: Path) -> None:
    """A palette in the order in which every other file needs it: index 1 is red in some and blue in others."""
    order = [0, 1, 2] if i % 2 else [0, 2, 1]
    image = Image.fromarray(np.array(order, np.uint8)[labels_of(i)], mode="P")
    image.putpalette([0, 0, 0, *(RED if i % 2 else BLUE), *(BLUE if i % 2 else RED)])
    image.save(path)


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_palettes_that_differ_between_files_are_colours(tmp_path: Path) -> None:
    data = load(scenes(tmp_path / "png", by_first_use))
    assert data.classes == ("#000000", "#0000ff", "#ff0000")
    wanted = {i: np.array([0, 2, 1])[labels_of(i)] for i in range(COUNT)}
    for i, mask in masks_read(data).items():
        assert np.array_equal(mask, wanted[i])
    assert any("palettes differ" in note for note in data.notes)

    def gif(i: int, path: Path) -> None:  # Pillow leaves out of a GIF's palette what the file does not use
        painted(labels_of(i) if i % 3 else np.where(labels_of(i) == 1, 0, labels_of(i))).save(path)

    data = load(scenes(tmp_path / "gif", gif, "{i}.gif"))
    assert data.classes == ("#000000", "#0000ff", "#ff0000")
    assert data.palette == ((0, 0, 0), BLUE, RED)


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_colours_may_be_said_of_palette_images_and_equal_palettes_stay_numbers(tmp_path: Path) -> None:
    def save(i: int, path: Path) -> None:
        image = Image.fromarray(labels_of(i), mode="P")
        image.putpalette([0, 0, 0, *RED, *BLUE])
        image.save(path)

    scenes(tmp_path, save)
    assert load(tmp_path).classes == ("0", "1", "2")
    data = load(tmp_path, labels="#000000=ground,#ff0000=roof,#0000ff=pool")
    assert data.classes == ("ground", "roof", "pool")
    for i, mask in masks_read(data).items():
        assert np.array_equal(mask, labels_of(i))


def smooth(image: Image.Image) -> Image.Image:
    return image.resize((40, 40), Image.Resampling.BICUBIC).resize((16, 16), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("coloured", [False, True])
def test_smoothed_borders_are_refused_and_the_labels_that_were_meant_can_be_named(
    tmp_path: Path, coloured: bool
) -> None:
    def save(i: int, path: Path) -> None:
        one = (labels_of(i) == 2).astype(np.uint8)
        smooth(painted(one) if coloured else Image.fromarray(one * np.uint8(255))).save(path)

    scenes(tmp_path, save)
    with pytest.raises(UserError, match=r"borders were smoothed.*data\.labels=.*\*=ignore"):
        load(tmp_path)
    data = load(tmp_path, labels="#000000=ground,#ff0000=roof,*=ignore" if coloured else "0=ground,255=roof,*=ignore")
    assert data.classes == ("ground", "roof")
    assert any("of the train pixels are ignored" in note for note in data.notes)


def test_many_classes_and_thin_ones_are_no_smoothed_borders(tmp_path: Path) -> None:
    def save(i: int, path: Path) -> None:
        grid = (np.indices((16, 16)) // 4).sum(0).astype(np.uint8)
        grid[:, i] = 7  # a wire
        grid[i, 0] = 8
        Image.fromarray(grid).save(path)

    assert len(load(scenes(tmp_path, save)).classes) == 9


def test_lossy_webp_is_rounded_as_jpeg_is_and_lossless_is_read_as_it_is(tmp_path: Path) -> None:
    def lossy(i: int, path: Path) -> None:
        Image.fromarray(np.repeat((labels_of(i) == 2).astype(np.uint8)[..., None] * 255, 3, -1)).save(path)

    for i, mask in masks_read(load(scenes(tmp_path / "lossy", lossy, "{i}.webp"))).items():
        assert (mask != (labels_of(i) == 2)).mean() < 0.05
    data = load(scenes(tmp_path / "exact", lambda i, p: painted(labels_of(i)).save(p, lossless=True), "{i}.webp"))
    assert len(data.classes) == 3


def test_masks_of_0_and_1_among_masks_of_0_and_255_are_asked_about(tmp_path: Path) -> None:
    def save(i: int, path: Path) -> None:
        one = (labels_of(i) == 1).astype(np.uint8)
        Image.fromarray(one if i % 2 else one * np.uint8(255)).save(path)

    scenes(tmp_path, save)
    with pytest.raises(UserError, match=r"1\.png, and masks of 0 and 255, such as .*0\.png: say what 255 means"):
        load(tmp_path)
    for i, mask in masks_read(load(tmp_path, labels="0=ground,1=cell,255=cell")).items():
        assert np.array_equal(mask, labels_of(i) == 1)


def test_masks_of_several_pictures_or_a_channel_per_class_are_refused_and_one_channel_is_read(tmp_path: Path) -> None:
    def pages(i: int, path: Path) -> None:
        one = Image.fromarray(labels_of(i))
        one.save(path, save_all=True, append_images=[one])

    with pytest.raises(UserError, match=r"0\.tif holds 2 pictures; expected one"):
        load(scenes(tmp_path / "pages", pages, "{i}.tif"))
    with pytest.raises(UserError, match="of a channel per class take the argmax"):
        load(scenes(tmp_path / "one_hot", lambda i, p: np.save(p, np.eye(5)[labels_of(i)]), "{i}.npy"))
    data = load(scenes(tmp_path / "one", lambda i, p: np.save(p, labels_of(i)[..., None]), "{i}.npy"))
    assert np.array_equal(masks_read(data)[5], labels_of(5))


@pytest.mark.parametrize("name", ["mask_{i}.png", "GT_{i}.png", "{i}_L.PNG", "{i}-mask.png"])
def test_masks_are_found_by_prefix_and_suffix_in_any_case(tmp_path: Path, name: str) -> None:
    def save(i: int, path: Path) -> None:
        Image.fromarray(labels_of(i)).save(path)

    for i, mask in masks_read(load(scenes(tmp_path, save, name))).items():
        assert np.array_equal(mask, labels_of(i))


def test_a_folder_of_other_files_in_the_place_of_masks_is_one_sentence(tmp_path: Path) -> None:
    scenes(tmp_path, lambda i, path: path.write_text("0 .5 .5 .2 .2"), "{i}.txt")
    with pytest.raises(UserError, match=rf"^\S*masks holds {COUNT} \.txt files and no masks for the images in"):
        load(tmp_path)


def turned(image: Image.Image, path: Path) -> None:
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)


def test_a_mask_is_turned_as_its_exif_tag_says_and_one_without_is_told(tmp_path: Path) -> None:
    def save(i: int, path: Path) -> None:
        turned(Image.fromarray(labels_of(i)[:, :12]), path)
        turned(Image.fromarray(np.full((16, 12, 3), i, np.uint8)), path.parents[1] / f"images/{i}.png")

    data = load(scenes(tmp_path / "both", save))
    for i, mask in masks_read(data).items():
        assert np.array_equal(mask, np.rot90(labels_of(i)[:, :12], -1))
    assert any("12 images are turned by their EXIF tag" in note for note in data.notes)

    def image_only(i: int, path: Path) -> None:
        Image.fromarray(labels_of(i)[:, :12]).save(path)
        turned(Image.fromarray(np.full((16, 12, 3), i, np.uint8)), path.parents[1] / f"images/{i}.png")

    with pytest.raises(UserError, match="Its image is turned by its EXIF tag: turn the mask likewise"):
        load(scenes(tmp_path / "one", image_only))


def test_names_that_are_no_use_are_said_and_a_name_for_two_classes_is_refused(tmp_path: Path) -> None:
    root = scenes(tmp_path / "colours", lambda i, path: painted(labels_of(i)).save(path))
    (root / "classes.txt").write_text("ground\nroof\npool\n")
    data = load(root)
    assert any("classes.txt are of the labels 0, 1, ... and were not used" in note for note in data.notes)
    assert not any(fate.what == "names of classes" for fate in data.ledger.fates)
    root = scenes(tmp_path / "twice", lambda i, path: Image.fromarray(labels_of(i)).save(path))
    (root / "classes.txt").write_text("ground\nroof\nroof\n")
    with pytest.raises(UserError, match="'roof' names two classes"):
        load(root)


def test_objects_numbered_1_to_6_are_instances(tmp_path: Path) -> None:
    def save(i: int, path: Path) -> None:
        Image.fromarray((np.indices((16, 16))[1] // (16 // (1 + i % 6))).clip(0, 1 + i % 6).astype(np.uint8)).save(path)

    with pytest.raises(UserError, match="the masks number their objects 1 to 6, image by image"):
        load(scenes(tmp_path, save))
