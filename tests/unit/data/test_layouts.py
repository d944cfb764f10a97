"""Layouts that no network may be trained on by mistake, and tables and texts as people write them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from oche.data import load
from oche.errors import UserError
from reference.inputs import Array, blob, classes, everything, npz, pairs, rgb, save

# ------------------------------------------------------------------ folders


def of_samples(root: Path, folders: bool) -> None:
    """A folder per sample, with an image and masks, in folders of their own or not."""
    for i in range(8):
        save(root / f"id{i}" / ("images/a.png" if folders else "image.png"), rgb())
        for n in range(2 if folders else 1):
            save(root / f"id{i}" / (f"masks/{n}.png" if folders else "mask.png"), blob(255))


def many_pairs(root: Path) -> None:
    for n in range(4):
        pairs(root, f"film{n}", f"film{n}_mask", n=4)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "folders of samples": (
        lambda root: of_samples(root, True),
        "holds a folder per sample, each with images and masks",
    ),
    "files of samples": (lambda root: of_samples(root, False), "holds a folder per sample, each with images and masks"),
    "more pairs than are looked into": (many_pairs, "film0 and film0_mask, whose files pair up by name"),
    "names with an ending": (
        lambda root: [
            (save(root / "Stills" / f"{i}.png", rgb()), save(root / "Approved" / f"{i}_Q.png", blob(64)))
            for i in range(10)
        ],
        "Approved and Stills, whose files pair up by name and look like images and masks",
    ),
    "one by one": (
        lambda root: [
            (save(root / "raw" / f"s/{i}.png", rgb()), save(root / "done" / f"s/{i}-out.png", blob(9)))
            for i in range(9)
        ],
        "done and raw, whose files pair up by name and look like images and masks",
    ),
    "by one folder's name": (lambda root: pairs(root, "rgb", "depth", lambda: rgb()[..., 0]), "rgb and depth, whose"),
    "by the other's": (lambda root: pairs(root, "A", "label", rgb), "label and A, whose files pair up"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_images_and_masks_never_become_classes(tmp_path: Path, kind: str) -> None:
    make, said = REFUSED[kind]
    make(tmp_path)
    with pytest.raises(UserError, match=said):
        load(tmp_path)


def test_pairs_of_names_are_classes_where_that_is_said_or_their_files_do_not_pair_up(tmp_path: Path) -> None:
    pairs(tmp_path / "said", "rgb", "depth", lambda: rgb()[..., 0])
    assert load(tmp_path / "said", task="classify").classes == ("depth", "rgb")
    for name, start in (("photo", 0), ("sketch", 100)):
        for i in range(9):
            save(tmp_path / "numbered" / name / f"{start + i}.png", rgb())
    assert load(tmp_path / "numbered").classes == ("photo", "sketch")


@pytest.mark.parametrize(
    "names", ["seg_train seg_test", "asl_train asl_val asl_test", "train2017 val2017", "TrainX TestX"]
)
@pytest.mark.parametrize("twice", [False, True])
def test_names_that_hold_a_part_are_parts(tmp_path: Path, names: str, twice: bool) -> None:
    """Also where each folder holds one of its own name, as unpacked archives do."""
    parts = names.replace("TrainX", "train-x").replace("TestX", "test-x").split()
    for name in parts:
        classes(tmp_path / name / name if twice else tmp_path / name, n=6)
    data = load(tmp_path)
    assert data.classes == ("cat", "dog")
    assert len(data.train) + len(data.val) + len(data.test) == 12 * len(parts)
    assert not [fate for fate in data.ledger.fates if fate.became == "skipped"]


@pytest.mark.parametrize("numbers", [((0, 2, 4, 6, 8, 10), (1, 3, 5, 7, 9, 11)), (range(9), range(10, 100, 10))])
def test_numbered_files_of_two_classes_are_no_pairs(tmp_path: Path, numbers: tuple[Iterable[int], ...]) -> None:
    """Among them names that begin or end with one another, as 1 and 10, and 0 and 10."""
    for name, own in zip("ab", numbers, strict=True):
        for i in own:
            save(tmp_path / name / f"{i}.png", rgb())
    assert load(tmp_path).classes == ("a", "b")


def test_names_that_only_sound_like_parts_are_classes(tmp_path: Path) -> None:
    classes(tmp_path / "a", names="freight_train passenger_train test_tube")
    assert load(tmp_path / "a").classes == ("freight_train", "passenger_train", "test_tube")
    for name in ("red_train", "red_val", "blue_train", "blue_val"):
        classes(tmp_path / "b" / name)
    with pytest.raises(UserError, match=r"several folders of train images, blue_train and red_train; which is it\?"):
        load(tmp_path / "b")


def test_a_folder_around_the_data_is_named(tmp_path: Path) -> None:
    for part in ("train", "test"):
        classes(tmp_path / "archive" / part)
    with pytest.raises(UserError, match=r"holds one folder only, .*give .*archive if the folders in it are"):
        load(tmp_path)
    assert load(tmp_path / "archive").classes == ("cat", "dog")


def test_medical_names_of_folders_and_files(tmp_path: Path) -> None:
    for i in range(10):
        save(tmp_path / "imagesTr" / f"case_{i:03}_0000.png", rgb())
        save(tmp_path / "labelsTr" / f"case_{i:03}.png", blob())
    for i in range(10, 14):
        save(tmp_path / "imagesTs" / f"case_{i:03}_0000.png", rgb())
        save(tmp_path / "labelsTs" / f"case_{i:03}.png", blob())
    data = load(tmp_path)
    assert (data.task, len(data.train), len(data.val), len(data.test)) == ("segment", 8, 2, 4)


# ------------------------------------------------------------------ tables


def table(root: Path, name: str, head: str, row: Callable[[int], str], n: int = 20) -> Path:
    for i in range(n):
        save(root / "pictures" / f"{i}.png", rgb())
    (root / name).write_text("\n".join([head, *map(row, range(n))]))
    return root / name


def test_columns_of_one_and_zero_are_classes_or_labels(tmp_path: Path) -> None:
    table(tmp_path / "one", "train.csv", "image_id,Ant,Bee", lambda i: f"{i},{i % 2},{1 - i % 2}")
    data = load(tmp_path / "one")
    assert (data.task, data.classes) == ("classify", ("Ant", "Bee"))
    assert sorted(everything(data)[1].tolist()) == [0] * 10 + [1] * 10
    table(tmp_path / "more", "a.csv", "file,Ant,Bee,Cow,split", lambda i: f"{i}.png,{i % 2},{i % 3 % 2}.0,,train")
    data = load(tmp_path / "more")
    assert (data.task, data.classes) == ("multilabel", ("Ant", "Bee"))  # no image has a Cow
    found = {tuple(row) for row in everything(data)[1].tolist()}
    assert found == {(0, 0), (0, 1), (1, 0), (1, 1)}
    table(tmp_path / "odd", "a.csv", "file,age,weight", lambda i: f"{i}.png,{i},{2 * i}")
    with pytest.raises(UserError, match="has the columns file, age, weight, and none of them is called label"):
        load(tmp_path / "odd")


def test_the_labels_of_columns_are_those_of_their_lines(tmp_path: Path) -> None:
    """Grey pictures whose value is their line's number, so that each target can be told from its picture."""
    for i in range(24):
        save(tmp_path / f"{i}.png", np.full((8, 8), i, np.uint8))
    (tmp_path / "a.csv").write_text(
        "file,b,a\n" + "\n".join(f"{i}.png,{int(i < 12)},{int(i % 2 == 0)}" for i in range(24))
    )
    data = load(tmp_path)
    images, targets = everything(data)
    for image, target in zip(images, targets, strict=True):
        i = int(image[0, 0, 0])
        assert target.tolist() == [int(i % 2 == 0), int(i < 12)]  # a, b


def test_paths_as_windows_writes_them(tmp_path: Path) -> None:
    classes(tmp_path / "p", n=9)
    lines = [f"p\\{name}\\{i}.png,{name[0]}" for name in ("cat", "dog") for i in range(9)]
    (tmp_path / "l.csv").write_text("\n".join(["file,label", *lines]))
    data = load(tmp_path / "l.csv")
    assert data.classes == ("c", "d")
    assert len(data.train) + len(data.val) + len(data.test) == 18


def test_a_file_named_twice_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path, "labels.csv", "file,label", lambda i: f"pictures/{i % 18}.png,{'ab'[i % 2]}")
    with pytest.raises(UserError, match=r"2 problems.*line 20: pictures/0\.png stands in line 2 already.*line 21:"):
        load(path)


def test_tabs_and_utf_16_as_spreadsheets_write_them(tmp_path: Path) -> None:
    path = table(tmp_path, "labels.tsv", "file\tlabel", lambda i: f"{i}.png\t{['Bär', 'Fuß'][i % 2]}")
    assert load(tmp_path).classes == ("Bär", "Fuß")
    text = path.read_text()
    path.write_text(text, encoding="utf-16")
    assert load(tmp_path).classes == ("Bär", "Fuß")
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"labels\.tsv is not UTF-8 \(byte \d+ is 0xe4\): save it as UTF-8"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["classes.txt", "class_names.txt", "classes.toml"])
def test_names_of_classes_in_another_encoding(tmp_path: Path, name: str) -> None:
    pairs(tmp_path, "images", "masks")
    text = '[classes]\n"Grün" = 0\n"Zelle" = 1\n' if name.endswith("toml") else "Grün\nZelle\n"
    for encoding in ("utf-8-sig", "utf-16", "utf-16-be"):
        mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
        (tmp_path / name).write_bytes(mark + text.encode(encoding))
        assert load(tmp_path).classes == ("Grün", "Zelle")
    (tmp_path / name).write_bytes(text.encode("utf-16-le"))  # without a mark it is no text
    with pytest.raises(UserError, match=r"is not UTF-8|is no text"):
        load(tmp_path)


# ------------------------------------------------------------------ arrays


def test_keys_in_capitals(tmp_path: Path) -> None:
    x = np.arange(40 * 64).reshape(40, 8, 8, 1).astype("u1")
    assert load(npz(tmp_path, X=x, Y=np.array(["cat", "dog"] * 20))).classes == ("cat", "dog")
    y = np.arange(40) % 2
    assert len(load(npz(tmp_path, X_train=x, Y_train=y, X_test=x[:8], Y_test=y[:8])).test) == 8
    with pytest.raises(UserError, match=r"Object arrays cannot be loaded.*write texts as `y.astype"):
        load(npz(tmp_path, x=x, y=np.array(["cat", "dog"] * 20, dtype=object)))


def test_shapes_are_counted_over_all_parts(tmp_path: Path) -> None:
    x = np.arange(60 * 64).reshape(60, 8, 8, 1).astype("u1")
    y = np.arange(60) % 2
    data = load(npz(tmp_path, x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:]))
    assert data.ledger.shapes == (("8x8x1 uint8", 60),)


# ------------------------------------------------------------------ masks that JPEG has changed


def jpegs(root: Path, mask: Array, n: int = 10) -> Path:
    for i in range(n):
        save(root / "images" / f"{i}.jpg", rgb(32))
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(root / "masks" / f"{i}.jpg", quality=75)
    return root


def test_black_and_white_masks_of_jpeg_are_rounded(tmp_path: Path) -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[5:23, 9:30] = 255
    stored = np.asarray(Image.open(jpegs(tmp_path / "grey", mask) / "masks" / "0.jpg"))
    assert len(np.unique(stored)) > 2
    colour = jpegs(tmp_path / "colour", np.repeat(mask[..., None], 3, -1))
    for root in (tmp_path / "grey", colour):
        data = load(root)
        assert data.classes == ("0", "255")
        assert any("rounded to the nearest of 0, 255" in note for note in data.notes)
        assert torch.equal(data.train.take(torch.tensor([0]))[1][0], torch.from_numpy((mask > 0).astype(np.uint8)))
        again = load(root, contract=data.contract)
        assert torch.equal(everything(again)[1], everything(data)[1])
    (tmp_path / "grey" / "classes.txt").write_text("ground\npolyp\n")
    assert load(tmp_path / "grey").classes == ("ground", "polyp")


def test_other_values_of_jpeg_have_to_be_named(tmp_path: Path) -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[5:23, 9:30], mask[26:] = 120, 240
    jpegs(tmp_path, mask)
    with pytest.raises(
        UserError, match=r"in a format that changes labels, such as JPEG.*name the values that were meant"
    ):
        load(tmp_path)
    data = load(tmp_path, labels="0=ground,120=cell,240=nucleus")
    held = data.train.take(torch.tensor([0]))[1][0]
    stored = np.asarray(Image.open(tmp_path / "masks" / "0.jpg")).astype(int)
    nearest = np.abs(stored[..., None] - np.array([0, 120, 240])).argmin(-1)
    assert torch.equal(held, torch.from_numpy(nearest.astype(np.uint8)))
    assert data.classes == ("ground", "cell", "nucleus")
    with pytest.raises(UserError, match=r"\* in data\.labels cannot be told"):
        load(tmp_path, labels="0=ground,*=cell")
    jpegs(tmp_path / "colours", np.stack([mask, mask * 0, 255 - mask], -1))
    with pytest.raises(UserError, match=r"is in colours, in a format that changes them"):
        load(tmp_path / "colours")
