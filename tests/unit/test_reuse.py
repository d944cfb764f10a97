"""`oche.load`: the network of a run folder with its contract, for files and arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import oche
from oche.base import counted
from oche.data import Data
from oche.run import Run
from oche.spaces.sampling import sample
from oche.training.export import CARD, save_network
from reference.tiny import tiny_data, tiny_masks, tiny_space


def run_of(folder: Path, data: Data, space: str = "toy", **settings: Any) -> Run:
    torch.manual_seed(1)
    bound = tiny_space(space, data, **settings)
    genotype = sample(bound, counted(2))
    run = Run.create(folder)
    run.write(Run.CONFIG, b"")
    save_network(run, bound.network(genotype).eval(), bound, genotype, data, {})
    return run


BYTES = replace(tiny_data(12, channels=3), classes=("ant", "bee", "cat"))


def test_what_is_loaded(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", BYTES)
    kept = oche.load(run.path)
    assert kept.classes == ("ant", "bee", "cat")
    assert kept.contract.size == (8, 8)
    assert repr(kept) == f"Kept({str(run.path)!r})"
    images = torch.rand(2, 3, 8, 8)
    assert kept.network()(images).shape == (2, 3)


def test_arrays_are_predicted_as_their_files_are(tmp_path: Path) -> None:
    """One array, a list and a batch, of numpy and of torch, channels last and first, of another size than the network's."""
    run = run_of(tmp_path / "run", BYTES)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (11, 17, 3), dtype=np.uint8) for _ in range(3)]
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    kept = oche.load(run.path)
    wanted = [(p.label, p.probability) for p in kept.predict([tmp_path / f"{i}.png" for i in range(3)])]  # type: ignore[union-attr]

    def said(given: Any) -> list[tuple[str, float]]:
        return [(p.label, p.probability) for p in kept.predict(given)]  # type: ignore[union-attr]

    assert said(images) == wanted
    assert said(np.stack(images)) == wanted
    assert said(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)) == wanted
    assert said(images[1]) == wanted[1:2]
    assert [str(p.path) for p in kept.predict(images)] == ["[0]", "[1]", "[2]"]  # type: ignore[union-attr]


def test_masks_of_arrays(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", tiny_masks(6, (20, 27), 3), "grid", channels=4, layers=2, levels=2)
    image = np.random.default_rng(0).integers(0, 256, (31, 40, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    kept = oche.load(run.path)
    (mask,) = kept.predict(image)
    (files,) = kept.predict(tmp_path / "a.png", out=tmp_path / "out")
    assert np.array_equal(np.asarray(mask), np.asarray(Image.open(files.mask)))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda kept: kept.predict(np.full((9, 9, 3), np.nan)), r"The image \[0\] has NaN"),
        (lambda kept: kept.predict(np.zeros((9, 9, 2), np.uint8)), r"shape \(1, 9, 9, 2\)|2 channels"),
        (lambda kept: kept.predict([np.zeros((9, 9, 3), np.uint8), "a.png"]), "paths and arrays at once"),
        (lambda kept: kept.predict(np.zeros((9, 9, 3), np.uint8), out="x"), "leave it out"),
        (lambda kept: oche.load("nowhere"), "There is no run folder 'nowhere'"),
        (lambda kept: oche.load(BYTES), "oche.load takes a run's folder, not Data"),
    ],
)
def test_what_is_refused(ask: Callable[[oche.Kept], object], said: str, tmp_path: Path) -> None:
    kept = oche.load(run_of(tmp_path / "run", BYTES).path)
    with pytest.raises(oche.UserError, match=said):
        ask(kept)


def test_a_damaged_network_is_told_when_it_is_loaded(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", BYTES)
    run.file(CARD).write_text("{}")
    with pytest.raises(oche.UserError, match=r"card\.json"):
        oche.load(run.path)
