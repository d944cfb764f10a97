"""Tables as people have them: whatever their columns are called and however they are divided, each image has its own label."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from oche.data import Data, load
from oche.data.problems import problems_of
from oche.errors import UserError

COUNT = 24
LABEL = tuple("ant" if n % 3 else "bee" for n in range(COUNT))
"""What image n, whose only colour is n, shows."""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "pics").mkdir()
    for n in range(COUNT):
        Image.fromarray(np.full((8, 8, 3), n, np.uint8)).save(tmp_path / f"pics/p{n}.png")
    return tmp_path


def part_of(n: int) -> str:
    return "train" if n < 12 else "val" if n < 18 else "test"


def labels_read(data: Data) -> dict[int, str]:
    """Image number, which is its colour -> class."""
    found = {}
    for part in (data.train, data.val, data.test):
        images, targets = part.take(torch.arange(len(part)))
        found |= {int(i[0, 0, 0]): data.classes[int(t)] for i, t in zip(images, targets, strict=True)}
    return found


TABLES: dict[str, tuple[str, Callable[[int], str]]] = {
    "label first": ("breed,image", lambda n: f"{LABEL[n]},pics/p{n}.png"),
    "an unknown name first": ("what it is,picture of it", lambda n: f"{LABEL[n]},p{n}"),
    "numbers beside names": ("id,filename,species", lambda n: f"{n},pics/p{n}.png,{LABEL[n]}"),
    "camel case": ("LabelName,ImageID", lambda n: f"{LABEL[n]},p{n}"),
    "pandas": (",image_file,y", lambda n: f"{n},pics/p{n}.png,{LABEL[n]}"),
    "bars": ("file|label", lambda n: f"pics/p{n}.png|{LABEL[n]}"),
    "semicolons, quotes, Windows": ('"Image Path";"Class-Name"', lambda n: f'"pics\\p{n}.png";"{LABEL[n]}"\r'),
    "remarks": ("# made by a tool, version 2\n\nfile,label", lambda n: f"pics/p{n}.png,{LABEL[n]}"),
    "Excel": ("sep=;\nfile;label", lambda n: f"pics/p{n}.png;{LABEL[n]}"),
    "spaces": ("file, label", lambda n: f'pics/p{n}.png, "{LABEL[n]}"'),
    "no head": (f"{LABEL[0]},pics/p0.png", lambda n: f"{LABEL[n]},pics/p{n}.png"),
    "two columns of labels": ("file,category,label,note", lambda n: f"p{n},{n % 5},{LABEL[n]},{'long ' * 99}"),
    "folds are no parts": ("file,label,fold", lambda n: f"p{n},{LABEL[n]},{n % 5}"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_each_image_has_its_own_label(pictures: Path, kind: str) -> None:
    head, line = TABLES[kind]
    lines = [line(n) for n in range(1 if kind == "no head" else 0, COUNT)]
    (pictures / "t.csv").write_text("\n".join([head, *lines]))
    assert labels_read(load(pictures / "t.csv")) == dict(enumerate(LABEL))


@pytest.mark.parametrize(
    ("head", "part"),
    [
        ("file,split,breed", part_of),
        ("file,is_test,breed", lambda n: str(part_of(n) == "test")),
        ("file,is_valid,breed", lambda n: str(int(part_of(n) == "val"))),
    ],
)
def test_a_column_of_parts_is_never_the_label(pictures: Path, head: str, part: Callable[[int], str]) -> None:
    lines = [f"p{n},{part(n)},{LABEL[n]}" for n in range(COUNT)]
    (pictures / "t.csv").write_text("\n".join([head, *lines]))
    data = load(pictures / "t.csv")
    assert labels_read(data) == dict(enumerate(LABEL))
    named = {"split": ("val", "test"), "is_test": ("test",), "is_valid": ("val",)}[head.split(",")[1]]
    for of in named:
        held = getattr(data, of)
        images, _ = held.take(torch.arange(len(held)))
        assert sorted(images[:, 0, 0, 0].tolist()) == [n for n in range(COUNT) if part_of(n) == of]


def test_a_table_per_part_is_one_set_and_one_without_labels_is_left_out_by_name(pictures: Path) -> None:
    for of in ("train", "val", "test"):
        lines = [f"p{n},{LABEL[n]}" for n in range(COUNT) if part_of(n) == of]
        (pictures / f"{of}.csv").write_text("\n".join(["file,label", *lines]))
    data = load(pictures)
    assert (len(data.train), len(data.val), len(data.test)) == (12, 6, 6)
    assert labels_read(data) == dict(enumerate(LABEL))
    (pictures / "test.csv").write_text("\n".join(["file", *(f"p{n}" for n in range(18, COUNT))]))
    data = load(pictures)
    assert labels_read(data) == {n: LABEL[n] for n in range(18)}
    assert any(fate.what == "a table of images without labels" for fate in data.ledger.fates)
    (pictures / "test.csv").write_text("file,label\np0,bee\n")
    with pytest.raises(UserError, match=r"p0 stands in train\.csv, line 2, already; an image belongs to one part"):
        load(pictures)


def test_columns_that_nothing_reads_are_named(pictures: Path) -> None:
    (pictures / "t.csv").write_text(
        "\n".join(["file,category,label", *(f"p{n},{n % 5},{LABEL[n]}" for n in range(COUNT))])
    )
    ledger = load(pictures / "t.csv").ledger
    assert [fate.examples for fate in ledger.fates if fate.what == "columns of the table"] == [("category",)]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["file,label", 'p0,"ant', "p1,bee", 'p2,b"'], r"t\.csv, line 2: a quote that begins there is not closed"),
        (["file,label", "pics/p0.png,ant", "pics/../pics/p0.png,bee"], "stands in line 2 already"),
        (["file,age", *(f"p{n},{n + 0.25}" for n in range(COUNT))], r"the labels are numbers, such as 0\.25, and no classes"),
        (["file,label", "p0,", "p1,ant", "p2,bee"], "p0 has no label; give it one or remove the line"),
        (["file,label,split", *(f"p{n},ant,{n % 3}" for n in range(9))], "the column split holds 0, 1, 2, and no part"),
        (["file,is_val,is_test,label", "p0,0,1,ant"], "marks parts in the columns is_val, is_test: give one column split"),
        (["file,is_test,label", "p0,maybe,ant"], "p0 is of no part; expected train, val or test, or 0 and 1"),
        (["file,age,weight", "p0,4,5", "p1,4,6"], "none of them is called label, class or the like"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_rightly_is_refused_with_what_to_do(pictures: Path, lines: list[str], said: str) -> None:
    (pictures / "t.csv").write_text("\n".join(lines))
    with pytest.raises(UserError, match=said) as error:
        load(pictures / "t.csv")
    assert len(problems_of(error.value)) == 1


def test_names_that_are_one_but_for_their_spelling_are_told(pictures: Path) -> None:
    def notes(names: tuple[str, ...]) -> str:
        lines = [f"p{n},{names[n % len(names)]}" for n in range(COUNT)]
        (pictures / "t.csv").write_text("\n".join(["file,label", *lines]))
        return " ".join(load(pictures / "t.csv").notes)

    assert "The classes 'ANT' and 'ant' differ in their spelling only" in notes(("ant", "ANT", "bee"))
    assert "The classes '01' and '1' and '1.0' differ" in notes(("1", "01", "1.0", "2"))
    assert "The class 'NaN' looks like a label that is missing" in notes(("NaN", "ant"))
    assert "spelling" not in notes(("ant", "ants", "10", "1e2"))


def test_columns_of_true_and_false_are_labels_and_an_image_may_have_none(pictures: Path) -> None:
    lines = [f"p{n},{bool(n % 2)},{n % 3 == 0}" for n in range(COUNT)]
    (pictures / "t.csv").write_text("\n".join(["file,odd,third", *lines]))
    data = load(pictures / "t.csv")
    assert (data.task, data.classes) == ("multilabel", ("odd", "third"))
    for part in (data.train, data.val, data.test):
        images, targets = part.take(torch.arange(len(part)))
        numbers = images[:, 0, 0, 0].tolist()
        assert targets.tolist() == [[n % 2, int(n % 3 == 0)] for n in numbers]
