"""Folders and arrays that could be read wrongly without a word: they are refused, or what was done is said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oche.data import load
from oche.data.contract import PixelRule
from oche.data.reading.extremes import alone, ends, joined
from oche.errors import UserError

COUNT = 10


def noise(i: int, channels: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(i).integers(0, 256, (16, 16, channels)).astype(np.uint8)


def classes(
    root: Path, names: Sequence[str] = ("ant", "bee"), write: Callable[[Path, int], object] | None = None
) -> Path:
    for place, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(COUNT):
            number = 100 * place + i
            if write is None:
                Image.fromarray(noise(number)).save(root / name / f"{name}{i}.png")
            else:
                write(root / name / f"{name}{i}", number)
    return root


@pytest.mark.parametrize(
    ("outer", "said"),
    [
        (("fold_0", "fold_1", "fold_2"), "called like parts of a set, not like classes"),
        (("train-full", "train-small"), "called like parts of a set"),
        (("labeled", "unlabeled"), "called like parts of a set"),
        (("amazon", "webcam"), "each of them the same folders ant, bee: which are the classes"),
        (("训练集", "测试集"), "each of them the same folders ant, bee"),
    ],
)
def test_pieces_of_a_set_are_never_classes(tmp_path: Path, outer: Sequence[str], said: str) -> None:
    for name in outer:
        classes(tmp_path / name)
    with pytest.raises(UserError, match=f"{said}.*--task classify"):
        load(tmp_path)
    assert load(tmp_path, task="classify").classes == tuple(sorted(outer))


def test_classes_with_folders_of_their_own_stay_classes(tmp_path: Path) -> None:
    for name, inner in (("ant", ("day", "night")), ("bee", ("day", "dusk")), ("contest", ("a", "b"))):
        classes(tmp_path / name, inner)
    assert load(tmp_path).classes == ("ant", "bee", "contest")


def test_trainA_and_testA_are_parts(tmp_path: Path) -> None:
    for name in ("trainA", "testA"):
        classes(tmp_path / "one" / name)
    data = load(tmp_path / "one")
    assert (data.classes, len(data.test)) == (("ant", "bee"), 2 * COUNT)
    classes(tmp_path / "two", ("trainA", "trainB", "testA", "testB"))
    with pytest.raises(UserError, match="several folders of train images, trainA and trainB"):
        load(tmp_path / "two")


def test_classes_toml_maps_folders_and_tables_and_classes_txt_is_said_to_be_no_use(tmp_path: Path) -> None:
    root = classes(tmp_path / "a", ("ant", "bee", "cow", "dog"))
    (root / "classes.toml").write_text('ignore = ["dog"]\n[classes]\ninsect = ["ant", "bee"]\ncattle = "cow"\n')
    data = load(root)
    assert (data.classes, len(data.train) + len(data.val) + len(data.test)) == (("insect", "cattle"), 3 * COUNT)
    lines = [f"{name}/{name}{i}.png,{name}" for name in ("ant", "bee", "cow", "dog") for i in range(COUNT)]
    (root / "t.csv").write_text("\n".join(["file,label", *lines]))
    assert load(root / "t.csv").classes == ("insect", "cattle")
    root = classes(tmp_path / "b")
    (root / "classes.txt").write_text("Ameise\nBiene\n")
    data = load(root)
    assert "The names in classes.txt were not used: classes are called as their folders are." in data.notes
    assert not any(fate.what == "names of classes" for fate in data.ledger.fates)


def test_a_class_folder_of_other_files_says_what_it_holds(tmp_path: Path) -> None:
    classes(tmp_path, write=lambda path, i: path.with_suffix(".dcm" if i < 100 else "").write_bytes(b"DICM"))
    with pytest.raises(UserError, match=rf"but files \({COUNT} of \.dcm\).*but files \({COUNT} without suffix\)"):
        load(tmp_path)


def several(path: Path, i: int, suffix: str) -> None:
    Image.fromarray(noise(i)).save(
        path.with_suffix(suffix), save_all=True, append_images=[Image.fromarray(noise(i + 50)[:12])]
    )


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_files_of_several_pictures_are_told(tmp_path: Path, suffix: str) -> None:
    if suffix != ".tif":
        classes(tmp_path, write=lambda path, i: Image.fromarray(noise(i)).save(
            path.with_suffix(suffix), save_all=True, append_images=[Image.fromarray(noise(i + 50))]
        ))  # fmt: skip
    else:
        classes(tmp_path, write=lambda path, i: several(path, i, suffix))
    assert f"{2 * COUNT} files hold several pictures, of which the first was read." in load(tmp_path).notes


def test_colours_that_are_converted_and_transparency_of_grey_are_told(tmp_path: Path) -> None:
    classes(
        tmp_path / "a", write=lambda path, i: Image.fromarray(noise(i)).convert("CMYK").save(path.with_suffix(".jpg"))
    )
    assert f"{2 * COUNT} images are in CMYK and were read as RGB." in load(tmp_path / "a").notes

    def grey(path: Path, i: int) -> None:
        Image.merge("LA", [Image.fromarray(noise(i)[..., n]) for n in (0, 1)]).save(path.with_suffix(".png"))

    classes(tmp_path / "b", write=grey)
    assert any(
        f"{2 * COUNT} images have transparency, which was dropped" in note for note in load(tmp_path / "b").notes
    )


def test_an_image_that_is_too_small_is_named(tmp_path: Path) -> None:
    classes(tmp_path)
    Image.fromarray(noise(0)[:4, :5]).save(tmp_path / "ant/ant3.png")
    with pytest.raises(UserError, match=r"ant3\.png has 4 x 5 pixels, too small; 8 x 8 is the least"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["files", "array"])
def test_values_that_training_never_saw_are_told_of_every_part(tmp_path: Path, kind: str) -> None:
    seed = np.random.default_rng(0)
    train = (seed.random((40, 16, 16)) * 255).astype(np.float32)
    test = seed.random((40, 16, 16)).astype(np.float32)  # another scale
    train[:, 0, 0], test[:, 0, 0], test[:, 1, 1] = 0, 0, 1
    if kind == "array":
        y = np.arange(40) % 2
        np.savez(tmp_path / "a.npz", x_train=train, y_train=y, x_test=test, y_test=y)
        source = tmp_path / "a.npz"
    else:
        source = tmp_path / "a"
        for part, images in (("train", train), ("test", test)):
            for i, image in enumerate(images):
                (source / part / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
                np.save(source / part / "ab"[i % 2] / f"{i}.npy", image)
    assert any(
        "The test images have values up to 1 only, where the train images reach 25" in n for n in load(source).notes
    )


@pytest.mark.parametrize("kind", ["files", "array"])
def test_a_number_for_missing_data_is_told_wherever_it_falls(tmp_path: Path, kind: str) -> None:
    seed = np.random.default_rng(0)
    images = seed.random((40, 16, 16)).astype(np.float32)
    seen = set()
    for n in range(0, 40, 3):
        odd = images.copy()
        odd[n, 3, 4] = -9999
        source = tmp_path / f"{n}.npz"
        if kind == "array":
            np.savez(source, x=odd, y=np.arange(40) % 2)
        else:
            source = tmp_path / f"{n}"
            for i, image in enumerate(odd):
                (source / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
                np.save(source / "ab"[i % 2] / f"{i:02}.npy", image)
        said = [n for n in load(source).notes if "-9999" in n and "Pixels" not in n]
        assert len(said) == 1
        seen.add(said[0].split()[0])
    assert seen == {"No", "The"}  # in train, where it stretches the range, and in a part that was split off


def test_the_ends_of_values_are_those_of_a_sorted_list() -> None:
    seed = np.random.default_rng(0)
    for _ in range(50):
        arrays = [seed.integers(-5, 6, seed.integers(1, 6)) * seed.choice([1, 1000]) for _ in range(3)]
        found, every = joined([ends(array) for array in arrays]), sorted(set(np.concatenate(arrays).tolist()))
        assert (found.low, found.high) == (every[0], every[-1])
        assert (found.next_low, found.next_high) == ((every[1], every[-2]) if len(every) > 1 else (every[0], every[0]))
    assert alone(ends(np.array([0, 1, 2, 65535]))) == (
        "No value lies between 2 and 65535: if 65535 stands for missing data, write another value there, for it stretches the range of "
        "all.",
    )
    assert alone(ends(np.array([0.0, 255.0]))) == alone(ends(np.arange(9))) == alone(ends(np.ones(3))) == ()


def test_values_as_they_were_trained_on_are_not_odd() -> None:
    rule = PixelRule(scale=65535, high=60000, depth="uint16")
    assert rule.strange(0, 1500, "uint16") is None
    assert rule.strange(0, 250, "uint16") == "values up to 250 only, where the train images reach 60000"
    assert PixelRule().strange(0, 5, "uint8") is None


X = np.stack([noise(i) for i in range(24)])
Y = np.arange(24) % 3
NPZ: dict[str, tuple[dict[str, Any], str]] = {
    "texts that are bytes of another encoding": ({"y": np.array([b"cat", b"dog", b"caf\xe9"])[Y]}, "holds bytes that are not UTF-8"),
    "labels beyond int64": ({"y": np.array([1, 2, 2**63 + 5], np.uint64)[Y]}, r"go up to 9\.22337e\+18, which is no class number"),
    "infinite labels": ({"y": np.array([np.inf, 2, 3])[Y]}, "go up to inf, which is no class number"),
    "empty labels": ({"y": np.array(["", "dog", "cat"])[Y]}, "image 0 has no label; give it one, or remove the image"),
    "masks": ({"y": np.zeros((24, 16, 16), int)}, "Masks are read from folders called images and masks"),
    "a name twice": ({"y": Y, "classes": np.array(["a", "a", "b"])}, "'a' names two classes; give each a name of its own"),
    "objects": ({"y": np.array(["a", "b", None] * 8, dtype=object)}, r"write texts as `y\.astype\(str\)`, and images of one size"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NPZ)
def test_arrays_that_cannot_be_read_rightly_are_refused_with_what_to_do(tmp_path: Path, kind: str) -> None:
    arrays, said = NPZ[kind]
    np.savez(tmp_path / "a.npz", x=X, **arrays)
    with pytest.raises(UserError, match=said):
        load(tmp_path / "a.npz")


def test_one_array_and_text_under_the_name_of_an_archive_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X)
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(UserError, match=r"holds one array, as an \.npy file does"):
        load(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_text("hello")
    with pytest.raises(UserError, match=r"cannot be read as an \.npz file: it is none; write it with numpy\.savez"):
        load(tmp_path / "b.npz")


def test_names_of_classes_under_other_keys_and_as_bytes_are_used(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=Y, class_names=np.array(["Käfer".encode(), b"ant", b"bee"]))
    assert load(tmp_path / "a.npz").classes == ("Käfer", "ant", "bee")


def test_numbers_that_never_vary_are_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=np.full(24, 0.5))
    assert any(
        "All train images have the same number target: there is nothing to learn" in n
        for n in load(tmp_path / "a.npz").notes
    )


def test_a_link_to_a_folder_around_it_takes_no_other_class_in(tmp_path: Path) -> None:
    root = classes(tmp_path / "a")
    (root / "bee/self").symlink_to(root)
    (root / "bee/up").symlink_to(tmp_path)
    counts = load(root).ledger.counts
    assert {name: sum(part[name] for part in counts.values()) for name in ("ant", "bee")} == {
        "ant": COUNT,
        "bee": COUNT,
    }
