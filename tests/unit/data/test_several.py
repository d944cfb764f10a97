"""A table with several labels per image: when it is one, its targets, and what is asked where it cannot be told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.preprocessing import MultiLabelBinarizer

from oche.data import load
from oche.data.changes import differences
from oche.data.fingerprint import fingerprint
from oche.errors import UserError


def table(root: Path, labels: Sequence[str], parts: Sequence[str] = ()) -> Path:
    """Images 0.png, 1.png, ... whose only colour is their number, and a CSV that gives each its labels."""
    root.mkdir(exist_ok=True)
    lines = ["file,label" + ",split" * bool(parts)]
    for i, label in enumerate(labels):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(root / f"{i}.png")
        lines.append(f'{i}.png,"{label}"' + (f",{parts[i]}" if parts else ""))
    (root / "labels.csv").write_text("\n".join(lines))
    return root / "labels.csv"


SETS = [["cat"], ["cat", "dog"], ["bird"], ["dog", "bird", "cat"], ["dog"]] * 6


@pytest.mark.parametrize("sign", ["|", ";", "; "])
def test_each_image_has_its_own_labels_as_scikit_learn_has_them(tmp_path: Path, sign: str) -> None:
    data = load(table(tmp_path, [sign.join(one) for one in SETS]))
    assert (data.task, data.classes) == ("multilabel", ("bird", "cat", "dog"))
    wanted = torch.from_numpy(MultiLabelBinarizer(classes=data.classes).fit_transform(SETS))
    seen = []
    for part in (data.train, data.val, data.test):
        images, targets = part.take(torch.arange(len(part)))
        numbers = images[:, 0, 0, 0].long()
        assert torch.equal(targets, wanted[numbers])
        seen += numbers.tolist()
    assert sorted(seen) == list(range(30))


def test_a_label_that_is_changed_is_another_data_set(tmp_path: Path) -> None:
    before = fingerprint(load(table(tmp_path, ["|".join(one) for one in SETS])))
    other = [*SETS[:-1], ["dog", "cat"]]
    after = fingerprint(load(table(tmp_path, ["|".join(one) for one in other])))
    assert differences(before, before) == ()
    assert len(differences(before, after)) == 1


def test_parts_are_as_the_table_gives_them_and_take_the_labels_of_train(tmp_path: Path) -> None:
    parts = ["train"] * 20 + ["val"] * 5 + ["test"] * 5
    data = load(table(tmp_path, ["|".join(one) for one in SETS], parts))
    assert (len(data.train), len(data.val), len(data.test)) == (20, 5, 5)
    strange = ["|".join(one) for one in SETS[:-1]] + ["fish|cat"]
    with pytest.raises(UserError, match="no train image has the label 'fish'"):
        load(table(tmp_path, strange, parts))


@pytest.mark.parametrize(
    ("labels", "sign"),
    [
        (["black;white", "red;blue"], ";"),  # no piece stands elsewhere: may be a name
        (["dog house", "dog", "house"], " "),
        (["red, round", "red", "round"], ","),
    ],
)
def test_what_may_be_one_class_is_asked(tmp_path: Path, labels: list[str], sign: str) -> None:
    path = table(tmp_path, labels * 10)
    with pytest.raises(UserError, match=rf"may be one class or several labels, divided by '{sign}': say which"):
        load(path)
    assert load(path, task="classify").classes == tuple(sorted(labels))
    several = load(path, task="multilabel")
    assert several.task == "multilabel"
    assert several.classes == tuple(sorted({p.strip() for label in labels for p in label.split(sign)}))


def test_names_of_several_words_stay_classes(tmp_path: Path) -> None:
    names = ["golden retriever", "labrador retriever", "tench, Tinca tinca"]
    assert load(table(tmp_path, names * 10)).classes == tuple(names)


def test_an_image_without_a_label_is_one_where_several_were_asked_for(tmp_path: Path) -> None:
    labels = ["cat|dog", "dog", ""] * 10
    path = table(tmp_path, labels)
    with pytest.raises(UserError, match="has no label"):
        load(path)
    data = load(path, task="multilabel")
    assert sum(int((part.targets.sum(1) == 0).sum()) for part in (data.train, data.val, data.test)) == 10
    single = load(table(tmp_path / "one", ["cat", "dog"] * 10), task="multilabel")
    assert (single.task, single.classes) == ("multilabel", ("cat", "dog"))
