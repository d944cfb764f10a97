"""Names of files and folders in bytes that are no UTF-8, as old archives hold them, from the folder to what is written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oche import config
from oche.data import Data, load
from oche.data.changes import differences
from oche.data.fingerprint import fingerprint
from oche.data.reading.texts import spelled
from oche.errors import UserError
from oche.plan.parts import data_facts, path_of


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Classes and files named in Latin-1."""
    for n in range(24):
        folder = os.path.join(os.fsencode(tmp_path), b"photos", (b"caf\xe9", b"th\xe9")[n % 2])
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError:
            pytest.skip("this file system takes UTF-8 alone")
        pixels = np.random.default_rng(n // 23 * 21 + n).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(os.path.join(folder, b"\xfc%02d.png" % n))
    return tmp_path / "photos"


def written(data: Data) -> None:
    """All that a run writes of its data, as bytes."""
    config.dumps({"data": data_facts(data)}).encode()
    json.dumps(data.contract.plain()).encode()
    json.dumps(data.ledger.plain()).encode()
    fingerprint(data).dumps()


def test_classes_have_the_names_that_their_bytes_mean(photos: Path) -> None:
    data = load(photos)
    assert data.classes == ("café", "thé")
    written(data)
    again = load(photos, contract=data.contract)
    assert (again.classes, differences(fingerprint(data), fingerprint(again))) == (data.classes, ())
    (photos / "café").mkdir()
    Image.new("RGB", (8, 8)).save(photos / "café" / "1.png")
    with pytest.raises(UserError, match="two folders called 'café'"):
        load(photos)


def test_a_folder_of_such_a_name_is_checked_and_not_searched(photos: Path) -> None:
    odd = photos.rename(photos.with_name(os.fsdecode(b"\xe4")))
    data = load(odd)
    assert data.name == "ä"
    written(data)
    with pytest.raises(UserError, match=r"no UTF-8, which run\.toml cannot"):
        path_of(odd, data)


def test_other_letters_stay() -> None:
    assert spelled("北京/caf\udce9 [x]\n") == "北京/café [x]\n"


def test_a_network_whose_classes_hold_several_folders_is_scored(tmp_path: Path) -> None:
    for n in range(30):
        path = tmp_path / "set" / ("ant", "bee", "cat")[n % 3] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    (tmp_path / "set" / "classes.toml").write_text('[classes]\ninsect = ["ant", "bee"]\ncat = "cat"\n')
    data = load(tmp_path / "set")
    again = load(tmp_path / "set", contract=data.contract)
    assert data.classes == again.classes == ("insect", "cat")
    assert again.test.targets.tolist() == data.test.targets.tolist()
    (tmp_path / "set" / "dog").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "set" / "dog" / "1.png")
    with pytest.raises(UserError, match="has the class 'dog', which the network was not trained on"):
        load(tmp_path / "set", contract=data.contract)
