"""A data set pinned to a run: what changed is said exactly, and settings of reading are no change."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from oche.data import load
from oche.data.changes import LEAKS, differences
from oche.data.fingerprint import Fingerprint, fingerprint
from oche.errors import UserError


def write(path: Path, seed: int, mask: bool = False) -> None:
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 2 if mask else 256, (8, 8) if mask else (8, 8, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for n in range(36):
        write(tmp_path / "photos" / "abc"[n % 3] / f"{n:02}.png", n)
    return tmp_path / "photos"


def add(root: Path) -> None:
    write(root / "a" / "new.png", 99)


def change(root: Path) -> None:
    write(root / "b" / "04.png", 98)


def remove(root: Path) -> None:
    (root / "c" / "05.png").unlink()


def shift(root: Path) -> None:
    for path in (root / "a").iterdir():
        path.unlink()
    (root / "a").rmdir()


def relabel(root: Path) -> None:
    (root / "a" / "03.png").rename(root / "b" / "03.png")


def rename(root: Path) -> None:
    (root / "a" / "00.png").rename(root / "a" / "zz.png")


CHANGES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "nothing": (lambda root: None, []),
    "touched": (lambda root: (root / "a" / "00.png").touch(), []),
    "added": (add, ["1 image is new (a/new.png)", "moved from"]),
    "changed": (change, ["1 image changed (b/04.png)"]),
    "removed": (remove, ["1 image is gone (c/05.png)"]),
    "renamed": (rename, ["1 image has another name (a/00.png -> a/zz.png)"]),
    "class": (shift, ["the class 'a' is gone", "12 images are gone (a/00.png, a/03.png"]),
    "other class": (relabel, ["1 image is gone (a/03.png)", "1 image is new (b/03.png)"]),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_changed_is_said(photos: Path, kind: str) -> None:
    before = fingerprint(load(photos))
    make, words = CHANGES[kind]
    make(photos)
    said = differences(before, fingerprint(load(photos)))
    assert bool(said) == bool(words)
    for word in words:
        assert any(word in sentence for sentence in said), said


def test_test_images_that_would_be_trained_on_are_counted(photos: Path) -> None:
    """Every image's part, by a literal comparison of the names."""
    first = load(photos)
    for n in range(6):
        write(photos / "a" / f"a{n}.png", 200 + n)
    second = load(photos)
    was, now = ({name: part for part, i in d.identities.items() for name in i.names} for d in (first, second))
    moved = sum(was[name] == "test" and now[name] == "train" for name in was)
    assert moved
    said = differences(fingerprint(first), fingerprint(second))
    assert f"{moved} image{'s' * (moved > 1)} moved from test to train" in said


def test_settings_and_places_are_no_change(photos: Path) -> None:
    before = fingerprint(load(photos))
    moved = photos.rename(photos.with_name("elsewhere"))
    for data in (load(moved, size=16), load(moved, channels=1)):
        assert differences(before, fingerprint(data)) == ()


def test_a_copy_of_a_test_image_among_the_train_images_is_told(tmp_path: Path) -> None:
    for n in range(24):
        write(tmp_path / ("test" if n > 17 else "train") / "ab"[n % 2] / f"{n:02}.png", n)
    before = fingerprint(load(tmp_path))
    (tmp_path / "train" / "a" / "copy.png").write_bytes((tmp_path / "test" / "a" / "18.png").read_bytes())
    said = differences(before, fingerprint(load(tmp_path)))
    assert "1 image is new (train/a/copy.png)" in said
    copied = [sentence for sentence in said if "1 test image among the train images, too" in sentence]
    assert len(copied) == 1
    assert any(words in copied[0] for words in LEAKS)


def test_what_labels_mean_is_pinned_where_files_and_classes_stay(tmp_path: Path) -> None:
    for n in range(8):
        write(tmp_path / "images" / f"{n}.png", n)
        write(tmp_path / "masks" / f"{n}.png", n, mask=True)
    says = tmp_path / "classes.toml"
    says.write_text("ignore = [9]\n[classes]\nground = 0\ntree = 1\n")
    before = fingerprint(load(tmp_path))
    assert differences(before, fingerprint(load(tmp_path))) == ()
    says.write_text("ignore = [9]\n[classes]\nground = 1\ntree = 0\n")
    now = fingerprint(load(tmp_path))
    (said,) = differences(before, now)
    assert said == "labels mean something else ('0' was 'ground' and is 'tree', '1' was 'tree' and is 'ground')"
    assert differences(replace(before, labels=None), now) == ()  # of a run from before this was recorded
    says.write_text("ignore = [9, 7]\n[classes]\nground = 0\ntree = [1, 5]\n")
    (said,) = differences(before, fingerprint(load(tmp_path)))
    assert said == "labels mean something else ('5' was 'no class' and is 'tree', '7' was 'no class' and is 'ignored')"


def test_masks_are_pinned_too(tmp_path: Path) -> None:
    for n in range(8):
        write(tmp_path / "images" / f"{n}.png", n)
        write(tmp_path / "masks" / f"{n}.png", n, mask=True)
    before = fingerprint(load(tmp_path))
    write(tmp_path / "masks" / "3.png", 77, mask=True)
    assert differences(before, fingerprint(load(tmp_path))) == ("1 mask changed (3.png)",)


def test_of_masks_and_images_is_said_which_changed(tmp_path: Path) -> None:
    for n in range(8):
        write(tmp_path / "images" / f"{n}.png", n)
        write(tmp_path / "masks" / f"{n}.png", n, mask=True)
    before = fingerprint(load(tmp_path))
    write(tmp_path / "images" / "2.png", 78)
    assert differences(before, fingerprint(load(tmp_path))) == ("1 image changed (2.png)",)
    write(tmp_path / "masks" / "3.png", 77, mask=True)
    write(tmp_path / "masks" / "2.png", 76, mask=True)
    assert set(differences(kept(before), fingerprint(load(tmp_path)))) == {
        "2 masks changed (2.png, 3.png)",
        "1 image changed (2.png)",
    }


def kept(print_: Fingerprint) -> Fingerprint:
    """As it comes back from data.json."""
    return Fingerprint.loads(print_.dumps(), "data.json")


def as_before(print_: Fingerprint) -> Fingerprint:
    """As a data.json from before images and labels were told apart has it."""
    table = json.loads(print_.dumps())
    for name in ("images", "targets", "texts", "thing"):
        del table[name]
    return Fingerprint.loads(json.dumps(table).encode(), "data.json")


def listed(root: Path, labels: dict[str, str]) -> Path:
    """A table of images that are in parts, so that a label divides them no other way."""
    lines = [f"{name},{label},{('train', 'val', 'test')[n % 3]}" for n, (name, label) in enumerate(labels.items())]
    (root / "labels.csv").write_text("\n".join(["file,label,split", *lines]))
    return root / "labels.csv"


@pytest.fixture
def labels(tmp_path: Path) -> dict[str, str]:
    for n in range(24):
        write(tmp_path / f"photo_{n}.png", n)
    return {f"photo_{n}.png": ("cat", "dog")[n // 3 % 2] for n in range(24)}


def test_a_relabelled_row_of_a_table_is_said_apart_from_changed_images(tmp_path: Path, labels: dict[str, str]) -> None:
    before = fingerprint(load(listed(tmp_path, labels)))
    other = {**labels, "photo_3.png": "cat"}
    now = fingerprint(load(listed(tmp_path, other)))
    relabelled = "1 label changed (photo_3.png: 'dog' was, 'cat' is now)"
    assert differences(kept(before), kept(now)) == (relabelled,)
    write(tmp_path / "photo_5.png", 55)
    now = fingerprint(load(tmp_path / "labels.csv"))
    assert differences(before, now) == (relabelled, "1 image changed (photo_5.png)")
    write(tmp_path / "photo_3.png", 53)
    now = fingerprint(load(tmp_path / "labels.csv"))
    assert differences(before, now) == (relabelled, "2 images changed (photo_3.png, photo_5.png)")
    assert differences(as_before(before), now) == ("2 images or their labels changed (photo_3.png, photo_5.png)",)
    assert as_before(before).digest == before.digest
    for n in range(6, 12):
        other[f"photo_{n}.png"] = "cat" if labels[f"photo_{n}.png"] == "dog" else "dog"
    said = differences(before, fingerprint(load(listed(tmp_path, other))))[0]
    assert said.startswith("7 labels changed (photo_10.png: 'dog' was, 'cat' is now, photo_11.png: ")
    assert said.endswith(", ...)")


def test_without_names_labels_are_told_apart_too(
    tmp_path: Path, labels: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oche.data.fingerprint.NAMED", 0)
    before = fingerprint(load(listed(tmp_path, labels)))
    assert not any(before.names.values())
    now = fingerprint(load(listed(tmp_path, {**labels, "photo_3.png": "cat"})))
    assert differences(before, now) == ("1 label changed ('dog' was, 'cat' is now)",)
    write(tmp_path / "photo_5.png", 55)
    now = fingerprint(load(tmp_path / "labels.csv"))
    assert differences(before, now)[1:] == ("1 image is gone", "1 image is new")


def test_a_test_image_with_another_label_among_the_train_images_is_told(tmp_path: Path, labels: dict[str, str]) -> None:
    before = fingerprint(load(listed(tmp_path, labels)))
    path = listed(tmp_path, {**labels, "photo_2.png": "dog"})
    path.write_text(path.read_text().replace("photo_2.png,dog,test", "photo_2.png,dog,train"))
    said = differences(before, fingerprint(load(path)))
    assert said == ("1 label changed (photo_2.png: 'cat' was, 'dog' is now)", "1 image moved from test to train")


def test_more_labels_than_are_kept_as_texts_are_told_by_digests(
    tmp_path: Path, labels: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprint(load(listed(tmp_path, labels)))
    monkeypatch.setattr("oche.data.fingerprint.LONGEST", 2)
    now = fingerprint(load(listed(tmp_path, {**labels, "photo_3.png": "cat"})))
    assert (before.plain, now.plain) == (True, False)
    for some in (before, kept(now)):
        assert not differences(some, some)
    assert differences(before, kept(now)) == ("1 label changed (photo_3.png)",)


def test_arrays_are_pinned_by_their_rows(tmp_path: Path) -> None:
    x: NDArray[np.generic] = np.random.default_rng(0).integers(0, 4000, (30, 8, 8, 1)).astype("u2")
    y = np.arange(30) % 2
    parts = {f"{name}_{part}": some for part in ("val", "test") for name, some in (("x", x + 1), ("y", y.copy()))}

    def again() -> Fingerprint:
        np.savez(tmp_path / "a.npz", x_train=x, y_train=y, **parts)
        return fingerprint(load(tmp_path / "a.npz"))

    before = again()
    assert differences(before, again()) == ()
    y[7] = 0
    assert differences(before, again()) == ("1 label changed (train 7: '1' was, '0' is now)",)
    y[7] = 1
    x[4, 0, 0, 0] += 1  # type: ignore[index]
    assert differences(before, again()) == ("1 image changed (train 4)",)
    assert differences(as_before(before), again()) == ("1 image or its label changed (train 4)",)


def test_numbers_and_several_labels_are_said(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    numbers, several = np.arange(30) / 8, np.eye(3, dtype=int)[np.arange(30) % 3]
    several[::4, 0] = 1
    for y, value, said in ((numbers, 0.5, "'0.875' was, '0.5' is now"), (several, [0, 1, 1], "'1' was, '1|2' is now")):
        np.savez(tmp_path / "a.npz", x=x, y=y)
        before = fingerprint(load(tmp_path / "a.npz"))
        y[7] = value
        np.savez(tmp_path / "a.npz", x=x, y=y)
        assert f"1 label changed (train 7: {said})" in differences(before, fingerprint(load(tmp_path / "a.npz")))


def test_what_is_kept_of_images_and_labels_is_small() -> None:
    before = fingerprint(load("digits"))
    images = sum(map(len, before.digests.values()))
    assert len(before.dumps()) - len(as_before(before).dumps()) < 9 * images


def test_it_is_kept_as_json_and_damage_is_a_sentence() -> None:
    before = fingerprint(load("digits"))
    again = Fingerprint.loads(before.dumps(), "data.json")
    assert again == before
    assert again.labels == {}
    old = json.loads(before.dumps())
    del old["labels"]
    assert Fingerprint.loads(json.dumps(old).encode(), "data.json") == replace(before, labels=None)
    assert again.digest == before.digest
    assert set(before.summary()) == {"fingerprint", "parts"}
    fewer = json.dumps({**old, "images": {**old["images"], "train": "abcde"}}).encode()
    for text in (
        fewer,
        b"",
        b"{}",
        b"[]",
        b'{"classes": 3, "digests": {"train": 5}, "names": {}}',
        before.dumps()[:-9],
    ):
        with pytest.raises(UserError, match=r"data\.json is damaged"):
            Fingerprint.loads(text, "data.json")


def test_of_very_many_files_names_and_sizes_count(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oche.data.reading.listing.MANY", 10)
    monkeypatch.setattr("oche.data.reading.listing.SAMPLED", 2)
    before = fingerprint(load(photos))
    (photos / "b" / "04.png").write_bytes((photos / "b" / "04.png").read_bytes() + b"end")
    assert differences(before, fingerprint(load(photos))) == ("1 image changed (b/04.png)",)
