"""Inputs that people have, by kind: each is read as it should be or refused with advice; of every kind there are two."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from oche.data import load
from oche.data.reading.files import EMPTY, LARGEST, WIDE, head, read_image
from oche.errors import UserError
from reference.inputs import Array, R, blob, classes, everything, npz, pairs, png16, rgb, save, tiff

# ------------------------------------------------------------------ layouts

SEGMENTED: dict[str, Callable[[Path], object]] = {
    "ade20k": lambda root: [pairs(root, f"images/{p}", f"annotations/{p}") for p in ("training", "validation")],
    "mmsegmentation": lambda root: [pairs(root, f"img_dir/{p}", f"ann_dir/{p}") for p in ("train", "val")],
    "capitals": lambda root: pairs(root, "Images", "Masks"),
    "capitals_by_part": lambda root: [pairs(root, f"{p}/Images", f"{p}/Labels") for p in ("Train", "Val")],
    "trainannot": lambda root: [pairs(root, p, f"{p}annot") for p in ("train", "val", "test")],
    "carvana": lambda root: pairs(root, "train", "train_masks", mark="_mask"),
    "suffixes": lambda root: pairs(root, "images", "masks", mark="_mask"),
    "suffixes_in_one_folder": lambda root: pairs(root, "scans/case", "scans/case", mark="_gt"),
    "ground_truth": lambda root: pairs(root, "img", "Ground Truth", mark="-labels"),
}


@pytest.mark.parametrize("layout", SEGMENTED)
def test_images_and_masks_are_found_under_their_usual_names(tmp_path: Path, layout: str) -> None:
    SEGMENTED[layout](tmp_path)
    data = load(tmp_path)
    assert (data.task, data.classes, data.size) == ("segment", ("0", "1"), (16, 16))
    masks = data.train.take(torch.arange(len(data.train)))[1]
    assert torch.equal(masks, torch.from_numpy(blob().astype(np.uint8)).expand_as(masks))
    assert len(data.val) == (10 if layout in ("ade20k", "mmsegmentation", "capitals_by_part", "trainannot") else 2)
    assert not [fate for fate in data.ledger.fates if fate.became == "skipped"]


def test_pascal_voc(tmp_path: Path) -> None:
    """Most images have no mask; lists say which part the others are in; the palette comes along."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    pairs(root, "JPEGImages", "SegmentationClass", lambda: blob(15))
    for path in (root / "SegmentationClass").iterdir():
        mask = Image.open(path)
        mask.putpalette([n % 256 for n in range(768)])
        mask.save(path)
    for i in range(20, 40):
        save(root / "JPEGImages" / f"{i}.png", rgb())
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(f"{i:02}" for i in range(8)))
    (lists / "val.txt").write_text("08\n09\n")
    data = load(tmp_path, test=0.25)
    assert (len(data.classes), data.classes[15]) == (21, "person")
    assert (len(data.train), len(data.val), len(data.test)) == (6, 2, 2)
    assert data.palette[15] == (45, 46, 47)
    assert sum(fate.count for fate in data.ledger.fates if fate.became == "skipped") == 20 + 2
    (lists / "train.txt").write_text("00\n25\n26\n")
    with pytest.raises(UserError, match=r"2 problems.*names '25', which has no mask.*names '26'"):
        load(tmp_path)


def test_pascal_voc_of_another_year(tmp_path: Path) -> None:
    """Named itself, with a test list beside the two others, and no palette."""
    root = tmp_path / "VOC2007"
    pairs(root, "JPEGImages", "SegmentationClass", lambda: blob(7))
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("".join(f"{i:02}\n" for i in range(5)))
    (lists / "val.txt").write_text("05\n06\n")
    (lists / "test.txt").write_text("07\n08\n09\n")
    data = load(root)
    assert (data.task, data.classes[7]) == ("segment", "car")
    assert (len(data.train), len(data.val), len(data.test)) == (5, 2, 3)


@pytest.mark.parametrize("names", ["Training Testing", "TRAIN Valid test", "train eval", "train dev holdout"])
def test_parts_in_any_case(tmp_path: Path, names: str) -> None:
    for name in names.split():
        classes(tmp_path / name, n=6)
    data = load(tmp_path)
    assert data.classes == ("cat", "dog")
    assert len(data.train) + len(data.val) + len(data.test) == 12 * len([n for n in names.split() if n != "holdout"])
    skipped = [fate.count for fate in data.ledger.fates if fate.became == "skipped"]
    assert skipped == ([12] if "holdout" in names else [])


def test_two_names_of_one_part(tmp_path: Path) -> None:
    for name in ("train", "val", "validation"):
        classes(tmp_path / name)
    with pytest.raises(UserError, match="has both val and validation for val; which is it"):
        load(tmp_path)


@pytest.mark.parametrize("second", ["segs_of_mine", "clean"])
def test_folders_that_pair_up_are_no_classes(tmp_path: Path, second: str) -> None:
    """Masks under names that none knows, and the same pictures before and after: a network would tell them apart with 100 %."""
    for i in range(10):
        image = rgb() if second == "segs_of_mine" else np.kron(rgb(4), np.ones((4, 4, 1), np.uint8))
        save(tmp_path / "pics" / f"{i}.png", image)
        noisy = (image.astype(int) + R.integers(-9, 9, image.shape)).clip(0, 255).astype(np.uint8)
        save(tmp_path / second / f"{i}.png", blob(200) if second == "segs_of_mine" else noisy)
    with pytest.raises(UserError, match=r"holds the folders .*whose files pair up by name.*they are no classes"):
        load(tmp_path)
    assert len(load(tmp_path, task="classify").classes) == 2


@pytest.mark.parametrize("ext", [".jfif", ".npy", ".JPG"])
def test_other_suffixes_are_read_and_what_is_not_is_named(tmp_path: Path, ext: str) -> None:
    for c in ("a", "b"):
        (tmp_path / c).mkdir()
        for i in range(9):
            if ext == ".npy":
                np.save(tmp_path / c / f"{i}.npy", rgb())
            else:
                save(tmp_path / c / f"{i}{ext}", rgb(), format="JPEG")
    (tmp_path / "a" / "film.mp4").write_bytes(b"film")
    (tmp_path / "a" / "away.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "b" / ".ipynb_checkpoints").mkdir()
    save(tmp_path / "b" / ".ipynb_checkpoints" / "0.png", rgb())
    data = load(tmp_path)
    assert len(data.train) + len(data.val) + len(data.test) == 18
    skipped = {fate.what: fate.examples for fate in data.ledger.fates if fate.became == "skipped"}
    assert set(skipped) == {"no image (.mp4)", "broken link", "hidden folder"}
    assert skipped["no image (.mp4)"][0].endswith("film.mp4")
    assert any(note.startswith("Not used: 1 ") and "1 no image (.mp4)" in note for note in data.notes)


def test_heic_without_its_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes(tmp_path)
    (tmp_path / "cat" / "phone.HEIC").write_bytes(b"x")
    monkeypatch.setattr("oche.data.reading.files._heic", lambda: False)
    assert any(fate.what == ".heic needs the package pillow-heif" for fate in load(tmp_path).ledger.fates)


@pytest.mark.parametrize("absent", ["val", "test"])
def test_a_class_that_a_part_lacks(tmp_path: Path, absent: str) -> None:
    classes(tmp_path / "train", names="a b c")
    classes(tmp_path / absent, names="a b", n=4)
    with pytest.raises(UserError, match=r"holds no image of the class 'c'.*--set data\.missing=true"):
        load(tmp_path)
    data = load(tmp_path, missing=True)
    assert data.classes == ("a", "b", "c")
    assert any("no image of the class 'c'" in note for note in data.notes)


TABLES = {
    "file,label": "file,label\n{rows}",
    "no head": "{rows}",
    "semicolons, BOM": "\ufefffilename;class\n{rows}",
    "part": "image_id,species,split\n{rows}",
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_of_files_and_labels(tmp_path: Path, kind: str) -> None:
    rows = []
    for i in range(20):
        save(tmp_path / "photos" / f"{i}.png", rgb())
        name = f"{i}" if kind == "part" else f"photos/{i}.png"
        part = [("train", "val", "test")[i % 5 % 3]] if kind == "part" else []
        rows.append((";" if "semicolons" in kind else ",").join([name, ["ant", "bee"][i % 2], *part]))
    table = tmp_path / "labels.csv"
    table.write_bytes(TABLES[kind].format(rows="\n".join(rows)).encode())
    for source in (tmp_path, table):
        data = load(source)
        assert data.classes == ("ant", "bee")
        assert len(data.train) + len(data.val) + len(data.test) == 20
    assert len(data.train) == (12 if kind != "part" else 8)
    table.write_text("file,label\nphotos/1.png,ant\nphotos/99.png,bee\nphotos/2.png,\n")
    with pytest.raises(UserError, match=r"2 problems.*line 3: there is no file photos/99\.png.*line 4: .*has no label"):
        load(table)


# ------------------------------------------------------------------ pixels

DEEP: dict[str, tuple[str, Callable[[Array], Array], float]] = {
    "float": (".tif", lambda a: (a[..., 0] / 255).astype("f4"), 1.0),
    "float_of_bytes": (".tif", lambda a: a[..., 0].astype("f4"), 255.0),
    "low_values": (".png", lambda a: a[..., 0].astype("u2"), 255.0),
    "twelve_bits": (".png", lambda a: (a[..., 0] * 16.0).astype("u2"), 4095.0),
    "sixteen_bits": (".tif", lambda a: a[..., 0].astype("u2") * 257, 65535.0),
    "thirty_two_bits": (".tif", lambda a: a[..., 0].astype("i4") * 100_000, 2.0**25 - 1),
}


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("size", [None, 12])
def test_values_stay_as_they_are_from_file_and_array(tmp_path: Path, kind: str, size: int | None) -> None:
    ext, make, scale = DEEP[kind]
    kept: list[Array] = []

    def made(a: Array) -> Array:
        kept.append(make(a))
        return kept[-1]

    if kind == "thirty_two_bits":
        scale = 2.0**28 - 1
    classes(tmp_path / "folder", made, ext)
    order = sorted(range(12), key=str)  # files are sorted by name
    x = np.stack([kept[c * 12 + i] for c in (0, 1) for i in order])
    folder = load(tmp_path / "folder", size=size)
    array = load(npz(tmp_path, x=x, y=np.repeat([0, 1], 12)), size=size)
    for a, b in zip(everything(folder), everything(array), strict=True):
        assert_close(a, b, rtol=0, atol=0)
    assert (folder.mean, folder.std) == (array.mean, array.std)
    assert folder.contract.pixels == array.contract.pixels
    assert folder.contract.pixels.scale == scale
    images = everything(folder)[0].double() / (255 if kind == "low_values" else 1)
    if size is None:
        assert_close(images[..., 0], torch.from_numpy(x / scale).double(), atol=1e-6, rtol=0)


def deep(train_outlier: int | None = None) -> dict[str, Array]:
    """12-bit values in 16 bits, in given parts, and perhaps one train pixel of another value."""
    rng = np.random.default_rng(1)
    y = np.arange(60) % 2
    x = (rng.integers(0, 1200, (60, 8, 8, 1)) + (y * 1500)[:, None, None, None]).astype("u2")
    if train_outlier:
        x[0, 0, 0, 0] = train_outlier
    return {
        "x_train": x[:40],
        "y_train": y[:40],
        "x_val": x[40:50],
        "y_val": y[40:50],
        "x_test": x[50:],
        "y_test": y[50:],
    }


def test_one_rule_for_all_files_decided_on_train(tmp_path: Path) -> None:
    """An outlier among the test images changes nothing; one in train changes all parts alike; a contract takes precedence."""
    data = load(npz(tmp_path, **deep()))
    assert data.contract.pixels.scale == 4095
    arrays = deep()
    arrays["x_test"][0, 0, 0, 0] = 65535
    with_outlier = load(npz(tmp_path, **arrays))
    assert_close(with_outlier.train.take(torch.arange(40))[0], data.train.take(torch.arange(40))[0], rtol=0, atol=0)
    assert any("The test images have values up to 65535" in note for note in with_outlier.notes)
    path = npz(tmp_path, **deep(65535))
    other = load(path)
    assert other.contract.pixels.scale == 65535
    again = load(path, contract=data.contract)
    assert_close(again.test.take(torch.arange(10))[0], data.test.take(torch.arange(10))[0], rtol=0, atol=0)
    assert any("have values up to 65535, where those that the network was trained on" in note for note in again.notes)


def test_what_is_split_off_train_does_not_decide_the_rule(tmp_path: Path) -> None:
    x, y = R.integers(0, 1000, (40, 8, 8, 1)).astype("u2"), np.arange(40) % 2
    first = load(npz(tmp_path, x=x, y=y))
    x[first.test.index[0], 0, 0, 0] = 65535
    second = load(npz(tmp_path, x=x, y=y))
    assert first.contract.pixels == second.contract.pixels
    assert (first.mean, first.std) == (second.mean, second.std)


def test_mixed_depths_are_refused(tmp_path: Path) -> None:
    classes(tmp_path, lambda a: (a[..., 0] * 200.0).astype("u2"))
    save(tmp_path / "cat" / "3.png", rgb()[..., 0])
    with pytest.raises(UserError, match=r"mixes files of the types uint16, uint8, 1 of them uint8 such as .*3\.png"):
        load(tmp_path, seed=0)
    assert load(tmp_path, range=(0, 65535)).contract.pixels.scale == 65535


def test_a_constant_image_or_channel_is_named(tmp_path: Path) -> None:
    y = np.arange(40) % 2
    constant = load(npz(tmp_path, x=np.zeros((40, 16, 16, 3), "u1"), y=y))
    assert any("nothing to learn" in note for note in constant.notes)
    x = R.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    x[..., 1], x[5] = 7, 9
    notes = load(npz(tmp_path, x=x, y=y)).notes
    assert "The channels 1 are the same in all train images." not in notes  # image 5 has another value there
    assert any("single colour" in note for note in notes)
    x[5, ..., 1] = 7
    assert "The channels 1 are the same in all train images." in load(npz(tmp_path, x=x, y=y)).notes


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_any_number_of_channels(tmp_path: Path, layout: str) -> None:
    x = R.random((40, 13, 16, 16)).astype("f4") * np.float32(10.0) ** np.arange(-6, 7, dtype="f4")[:, None, None]
    x[:, 3] = 2.5
    data = load(npz(tmp_path, x=x if layout == "nchw" else np.moveaxis(x, 1, 3), y=np.arange(40) % 2))
    assert (data.channels, data.size) == (13, (16, 16))
    values = everything(data)[0][data.train.index].double().flatten(0, 2)
    assert data.std[3] == 1.0
    spread = values.std(0, correction=0)
    assert_close(torch.tensor(data.std).double()[[0, 1, 12]], spread[[0, 1, 12]], rtol=1e-5, atol=0)
    assert data.std[0] < 1e-6


def test_stacks_and_bands_of_tiff_are_channels(tmp_path: Path) -> None:
    x = R.integers(0, 4096, (24, 12, 16, 5)).astype("u2")
    for i, image in enumerate(x):
        for kind in ("stack", "bands"):
            path = tmp_path / kind / f"c{i % 2}" / f"{i:02}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "stack":
                pages = [Image.fromarray(image[..., c]) for c in range(5)]
                pages[0].save(path, save_all=True, append_images=pages[1:])
            else:
                path.write_bytes(tiff(image, compressed=i % 3 == 0))
    order = [i for c in (0, 1) for i in range(c, 24, 2)]
    array = load(npz(tmp_path, x=x[order], y=np.repeat([0, 1], 12)))
    for kind in ("stack", "bands"):
        data = load(tmp_path / kind)
        assert data.channels == 5
        assert_close(everything(data)[0], everything(array)[0], rtol=0, atol=0)


def test_colour_of_sixteen_bits_keeps_them(tmp_path: Path) -> None:
    x = R.integers(0, 65536, (12, 9, 8, 3)).astype("u2")
    for i, image in enumerate(x):
        path = tmp_path / f"c{i % 2}" / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png16(image))
    data = load(tmp_path, val=0.2, test=0.2)
    order = [i for c in (0, 1) for i in range(c, 12, 2)]
    assert_close(everything(data)[0], torch.from_numpy((x[order] / np.float32(65535)).astype("f4")), atol=1e-7, rtol=0)


def test_transparency_is_dropped_and_said_or_kept(tmp_path: Path) -> None:
    x = R.integers(0, 256, (24, 8, 8, 4), dtype=np.uint8)
    for i, image in enumerate(x):
        save(tmp_path / f"c{i // 12}" / f"{i:02}.png", image)
    dropped, kept = load(tmp_path), load(tmp_path, channels=4)
    assert any("24 images have transparency, which was dropped" in note for note in dropped.notes)
    assert torch.equal(everything(dropped)[0], torch.from_numpy(x[..., :3]))
    assert torch.equal(everything(kept)[0], torch.from_numpy(x))


# ------------------------------------------------------------------ labels and masks


def masks_of(root: Path, *values: int, dtype: str = "u1") -> Path:
    side = np.kron(np.array(values, dtype)[:, None], np.ones((16, 16), dtype))
    return pairs(root, "images", "masks", lambda: np.ascontiguousarray(side[: len(values) * 16 : len(values)]))


@pytest.mark.parametrize(
    ("values", "expected", "ignored"),
    [
        ((0, 128, 255), ("0", "128", "255"), False),
        ((0, 255), ("0", "255"), False),
        ((0, 85, 170, 255), ("0", "85", "170", "255"), False),
        ((0, 1, 255), ("0", "1"), True),
        ((1, 2), ("1", "2"), False),
        ((0, 5), ("0", "5"), False),
    ],
)
def test_classes_are_the_labels_that_occur(
    tmp_path: Path, values: tuple[int, ...], expected: tuple[str, ...], ignored: bool
) -> None:
    data = load(masks_of(tmp_path, *values))
    assert data.classes == expected
    labels = data.train.take(torch.tensor([0]))[1].unique().tolist()
    assert labels == [*range(len(expected)), *([255] if ignored else [])]


@pytest.mark.parametrize("name", ["classes.txt", "class_names.txt"])
def test_names_in_order_are_those_of_labels_from_one(tmp_path: Path, name: str) -> None:
    masks_of(tmp_path, 1, 2)
    (tmp_path / name).write_bytes("\ufeffground\r\ncell\r\n".encode())
    data = load(tmp_path)
    assert data.classes == ("ground", "cell")
    assert data.train.take(torch.tensor([0]))[1].unique().tolist() == [0, 1]


@pytest.mark.parametrize("how", ["setting", "file"])
def test_labels_are_mapped_and_ignored(tmp_path: Path, how: str) -> None:
    masks_of(tmp_path, 0, 1, 2, 7)
    labels = None
    if how == "file":
        (tmp_path / "classes.toml").write_text("ignore = [0]\n[classes]\nground = 1\ncell = [2, 7]\n")
    else:
        labels = "0=ignore,1=ground,*=cell"
    data = load(tmp_path, labels=labels)
    assert data.classes == ("ground", "cell")
    masks = data.train.take(torch.tensor([0]))[1][0]
    assert [int(masks[row, 0]) for row in (1, 5, 9, 13)] == [255, 0, 1, 1]
    again = load(tmp_path, contract=data.contract)
    assert torch.equal(everything(again)[1], everything(data)[1])
    with pytest.raises(UserError, match=r"nothing is said about the labels 2, 7: add 2=NAME"):
        load(tmp_path, labels="0=ignore,1=ground")
    with pytest.raises(UserError, match="the label 1 is given as 'a' and as 'b'"):
        load(tmp_path, labels="1=a,1=b")


def test_masks_in_colours(tmp_path: Path) -> None:
    def coloured() -> Array:
        mask = np.zeros((16, 16, 3), np.uint8)
        mask[4:12, 4:12], mask[0] = (255, 0, 0), (1, 2, 3)
        return mask

    pairs(tmp_path, "images", "masks", coloured)
    assert load(tmp_path).classes == ("#000000", "#010203", "#ff0000")
    data = load(tmp_path, labels="#000000=ground,#FF0000=roof,#010203=ignore")
    assert (data.classes, data.palette) == (("ground", "roof"), ((0, 0, 0), (255, 0, 0)))
    assert data.train.take(torch.tensor([0]))[1][0, [0, 1, 5], 5].tolist() == [255, 0, 1]


def test_grey_saved_as_colour_is_grey(tmp_path: Path) -> None:
    pairs(tmp_path, "images", "masks", lambda: np.repeat(blob()[..., None], 3, -1))
    assert load(tmp_path).classes == ("0", "1")


def test_instances_are_refused_with_advice(tmp_path: Path) -> None:
    pairs(tmp_path / "wide", "images", "masks", lambda: blob(26001, "u2"))
    with pytest.raises(UserError, match=r"label 26001, which is no class number .*instance.*data\.labels=26001=car"):
        load(tmp_path / "wide")
    assert load(tmp_path / "wide", labels="0=ground,26001=car").classes == ("ground", "car")
    counts = iter(range(6, 200))

    def numbered() -> Array:
        return np.arange(256).reshape(16, 16).astype(np.uint8) % (next(counts) + 1)

    pairs(tmp_path / "narrow", "images", "masks", numbered)
    with pytest.raises(UserError, match=r"number their objects 1 to 15.*data\.labels=0=background,\*=object"):
        load(tmp_path / "narrow")
    assert load(tmp_path / "narrow", labels="0=background,*=object").classes == ("background", "object")


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        (np.arange(40) % 2 * 5, ("0", "5")),
        (np.array([0, 1_999_999_999] * 20), ("0", "1999999999")),
        (np.array(["dog", "cat"] * 20), ("cat", "dog")),
        (np.array([b"dog", b"cat"] * 20), ("cat", "dog")),
        (np.arange(40) % 2 + 1, ("1", "2")),
        (np.eye(2)[np.arange(40) % 2], ("0", "1")),
    ],
)
def test_labels_of_arrays_are_what_occurs(tmp_path: Path, y: Array, expected: tuple[str, ...]) -> None:
    data = load(npz(tmp_path, x=R.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8), y=y))
    assert data.classes == expected
    targets = everything(data)[1]
    assert targets.tolist() == ([1, 0] * 20 if y.dtype.kind in "US" else [0, 1] * 20)


def test_labels_of_arrays_are_mapped(tmp_path: Path) -> None:
    y = np.array([-1, 0, 1, 2] * 10)
    path = npz(tmp_path, x=R.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8), y=y)
    with pytest.raises(UserError, match=r"run from -1 to 2; .*data\.labels=-1=ignore"):
        load(path)
    data = load(path, labels="-1=ignore,0=a,1=b,2=b")
    assert (data.classes, len(data.train) + len(data.val) + len(data.test)) == (("a", "b"), 30)
    assert any(fate.what == "train images of ignored labels" for fate in data.ledger.fates)


# ------------------------------------------------------------------ damage


@pytest.mark.parametrize("kind", ["classes", "masks"])
def test_all_damaged_files_are_listed_at_once(tmp_path: Path, kind: str) -> None:
    if kind == "classes":
        classes(tmp_path)
        bad = [tmp_path / "cat" / "1.png", tmp_path / "dog" / "2.png", tmp_path / "dog" / "3.png"]
    else:
        pairs(tmp_path, "images", "masks")
        bad = [tmp_path / "images" / "01.png", tmp_path / "images" / "04.png", tmp_path / "images" / "05.png"]
    bad[0].write_bytes(b"no image")
    for path in bad[1:]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="3 problems") as raised:
        load(tmp_path)
    assert all(path.name in str(raised.value) for path in bad)
    assert "\n" not in str(raised.value)


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    classes(tmp_path)
    whole = (tmp_path / "cat" / "1.png").read_bytes()
    head = struct.pack(">II", 60_000, 60_000) + whole[24:29]
    (tmp_path / "cat" / "1.png").write_bytes(
        whole[:16] + head + struct.pack(">I", zlib.crc32(b"IHDR" + head)) + whole[33:]
    )
    with pytest.raises(UserError, match=rf"1\.png cannot be read: it claims more than {LARGEST:,} pixels"):
        load(tmp_path)
    raw = struct.pack(">4B3I", 0, 0, 8, 3, 1 << 20, 1 << 10, 1 << 10) + bytes(100)
    (tmp_path / "idx").mkdir()
    (tmp_path / "idx" / "train-images-idx3-ubyte").write_bytes(raw)
    with pytest.raises(UserError, match=r"claims 1,099,511,627,776 values"):
        load(tmp_path / "idx")


HOLLOW = "524946463600000057454250565038202a000000b001009d012ac2ef8a2f01402625a4000200e770af67c8007ffd6f0026017f79048237c2dc24c69660000200"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # Pillow's, from half of the limit on
def test_a_few_bytes_that_claim_half_the_allowed_pixels_are_a_bomb(tmp_path: Path) -> None:
    """62 bytes of WebP for 12,226x12,170 pixels: found by fuzzing, when it took 570 MiB. Empty pictures of a PNG's kind stay readable."""
    (tmp_path / "x.webp").write_bytes(bytes.fromhex(HOLLOW))
    for read in (read_image, head):
        with pytest.raises(UserError, match="or more than its bytes can hold"):
            read(tmp_path / "x.webp")
    Image.new("1", (9_000, 7_500)).save(
        tmp_path / "empty.png", optimize=True
    )  # 8,000 pixels per byte, as much as a PNG can
    assert max(WIDE, 7_500 * (tmp_path / "empty.png").stat().st_size) < 9_000 * 7_500
    assert head(tmp_path / "empty.png").shape == (7_500, 9_000, 1)
    Image.new("L", (4_000, 4_000)).save(tmp_path / "empty.webp", lossless=True)
    assert EMPTY * (tmp_path / "empty.webp").stat().st_size < 4_000 * 4_000
    assert head(tmp_path / "empty.webp").shape[:2] == (4_000, 4_000)


def test_large_images_are_said_to_be(tmp_path: Path) -> None:
    for c in ("a", "b"):
        for i in range(5):
            save(tmp_path / c / f"{i}.png", np.zeros((700, 800), np.uint8) + np.uint8(i))
    assert any("Images of 700x800 take much memory" in note for note in load(tmp_path).notes)
    assert not any("take much memory" in note for note in load(tmp_path, size=64).notes)


def cut(raw: bytes) -> bytes:
    return raw[: len(raw) * 2 // 3]


def scribbled(raw: bytes) -> bytes:
    middle = len(raw) // 2
    return raw[:middle] + bytes(b ^ 255 for b in raw[middle : middle + 9]) + raw[middle + 9 :]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("damage", [cut, scribbled])
@pytest.mark.parametrize("kind", ["deep.png", "deflate.tif", "plain.tif", "array.npy"])
def test_damaged_files_of_every_reader_are_a_sentence(
    tmp_path: Path, kind: str, damage: Callable[[bytes], bytes]
) -> None:
    """Cut, or with other bytes in the middle; uncompressed values cannot tell the latter."""
    image = R.integers(0, 60_000, (24, 16, 3)).astype("u2")
    np.save(tmp_path / "a.npy", image[..., :1])
    wholes = {
        "deep.png": png16(image), "deflate.tif": tiff(image, True), "plain.tif": tiff(image, False),
        "array.npy": (tmp_path / "a.npy").read_bytes(),
    }  # fmt: skip
    path = tmp_path / kind
    path.write_bytes(damage(wholes[kind]))
    if damage is scribbled and kind in ("plain.tif", "array.npy"):
        assert read_image(path).shape[:2] == (24, 16)
        return
    with pytest.raises(UserError, match=f"The image .*{kind} cannot be read: .*; remove or replace it"):
        read_image(path)


def test_a_tiff_that_claims_more_than_it_holds(tmp_path: Path) -> None:
    raw = bytearray(tiff(R.integers(0, 4096, (24, 16, 5)).astype("u2"), False))
    for tag in (257, 278):  # height, and rows of a strip
        at = raw.index(struct.pack("<HHII", tag, 4, 1, 24))
        raw[at : at + 12] = struct.pack("<HHII", tag, 4, 1, 4_000_000)
    (tmp_path / "a.tif").write_bytes(raw)
    with pytest.raises(
        UserError, match=r"cannot be read: it claims 640,000,000 bytes of pixels, more than the file can hold"
    ):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("labels", ["ci,*", "#f#0000=a,*=b", "*a=e,*", "1=a,#00000=b"])
def test_labels_that_no_mask_can_have(tmp_path: Path, labels: str) -> None:
    with pytest.raises(UserError, match=r'is no label of a mask; expected a number or "#rrggbb"'):
        load(masks_of(tmp_path, 0, 1), labels=labels)
