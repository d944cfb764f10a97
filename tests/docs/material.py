"""What the commands on the pages name: images, masks, arrays, a table and parts of one's own, all small, made where a page names them."""

from __future__ import annotations

import contextlib
import gzip
import re
import runpy
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from docs.snippets import NAMED, ROOT, blocks
from oche.spaces.nb201 import NB201_OPS
from oche.tables.nb201 import DATA, DEVICES, LATENCY, MAIN, MEASURES, SCORE_NAMES, SCORES, ZEROCOST

SHAPES = ("circle", "cross", "square")
LEVELS = (0, 1, 2, 3)
COLOURS = ((0, 0, 0), (255, 0, 0))


def lay(page: Path, folder: Path) -> None:
    """Makes what the page names in the folder."""
    text = page.read_text(encoding="utf-8")
    for name, make in MADE.items():
        if re.search(rf"(?<![\w.]){re.escape(name)}(?!\.?\w)", text):  # a word of its own
            make(folder / name)
    if re.search(r"--table nb201|^table = \"nb201\"", text, re.MULTILINE) and not (folder / "nasbench201").exists():
        table(folder / "nasbench201")
    for file in sorted((ROOT / "tests" / "fixtures" / "own").glob("*.py")):
        if f"{file.name}:" in text:
            shutil.copy(file, folder)
    if page.stem == "bench":  # which takes the table of another page
        files_of(ROOT / "docs" / "add_a_table.md", folder)
    files_of(page, folder)
    if (folder / "make_cells.py").exists():  # which makes what a table reads
        with contextlib.chdir(folder):
            runpy.run_path("make_cells.py")


def files_of(page: Path, folder: Path) -> None:
    """Writes the blocks of a page that are files."""
    for block in blocks(page):
        if block.file:
            path = folder / block.file
            path.parent.mkdir(exist_ok=True)
            path.write_text(NAMED.sub("", block.text, count=1), encoding="utf-8")


def photos(folder: Path) -> None:
    """Three classes that shapes tell apart."""
    rng = np.random.default_rng(0)
    for n, name in enumerate(SHAPES):
        (folder / name).mkdir(parents=True)
        for i in range(20):
            image = rng.integers(0, 60, (24, 24, 3), dtype=np.uint8)
            image[4 + 4 * n : 10 + 4 * n, 5:19, n] += 150
            Image.fromarray(image).save(folder / name / f"{i:02d}.png")


def new(folder: Path) -> None:
    """Images without labels."""
    folder.mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 255, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def masked(folder: Path, paint: Callable[[np.ndarray], np.ndarray], count: int = 12) -> None:
    """Images of four quarters in four greys, in an order of their own, and the masks that say which."""
    rng = np.random.default_rng(1)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        labels = np.repeat(np.repeat(rng.permutation(LEVELS).reshape(2, 2), 16, 0), 16, 1)
        image = (50 * labels[..., None] + rng.integers(0, 30, (32, 32, 3))).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{i}.png")
        Image.fromarray(paint(labels).astype(np.uint8)).save(folder / "masks" / f"{i}.png")


def greys(folder: Path) -> None:
    """Masks whose values are the labels."""
    masked(folder, lambda labels: labels)


def coloured(folder: Path) -> None:
    """Masks in two colours."""
    masked(folder, lambda labels: np.array(COLOURS)[labels % 2])


def arrays(file: Path) -> None:
    """Images with several labels each, or with a number."""
    rng = np.random.default_rng(2)
    x = rng.integers(0, 255, (60, 12, 12, 1), dtype=np.uint8)
    several = file.stem == "scenes"
    y = rng.integers(0, 2, (60, 3)) if several else rng.integers(20, 60, 60)
    named = {"classes": np.array(["sea", "sky", "sand"])} if several else {}
    np.savez(file, x=x, y=y, **named)


def cifar(file: Path) -> None:
    """Images of 32x32 pixels in ten classes."""
    rng = np.random.default_rng(3)
    y = np.repeat(np.arange(10), 8)
    np.savez(file, x=rng.integers(0, 255, (80, 32, 32, 3), dtype=np.uint8), y=y)


def signals(file: Path) -> None:
    """Noise of two channels in two classes."""
    rng = np.random.default_rng(4)
    np.savez(file, x=rng.normal(size=(60, 2, 96)), y=np.arange(60) % 2)


def table(folder: Path) -> None:
    """NAS-Bench-201's three files, in which a cell is worth its convolutions."""
    folder.mkdir(parents=True)
    edges = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    rows = []
    for ops in product(NB201_OPS, repeat=len(edges)):
        nodes = [[f"{op}~{s}" for (s, t), op in zip(edges, ops, strict=True) if t == n] for n in (1, 2, 3)]
        rows.append(("+".join("|" + "|".join(node) + "|" for node in nodes), sum("conv" in op for op in ops)))

    def write(name: str, columns: list[str], *, named: bool) -> None:
        head = [*(["arch_str"] if named else []), "index", *(["iso_first_index"] if named else []), *columns]
        lines = [",".join(head)]
        for i, (cell, worth) in enumerate(rows):
            first = [cell, str(i), str(i)] if named else [str(i)]
            lines.append(",".join([*first, *[f"{worth + 1 + i / 1e5:.5f}"] * len(columns)]))
        (folder / name).write_bytes(gzip.compress("\n".join(lines).encode(), compresslevel=1))

    write(MAIN, [column.format(p) for p in DATA.values() for column, _ in MEASURES.values()], named=True)
    write(LATENCY, [f"lat_ms_{device}" for device in DEVICES], named=False)
    write(ZEROCOST, [f"{DATA[d]}_{s}" for d, n in SCORES.items() for s in SCORE_NAMES[:n]], named=False)


MADE: dict[str, Callable[[Path], None]] = {
    "photos": photos,
    "new_photos": new,
    "scenes": greys,
    "street": greys,
    "roofs": coloured,
    "new_scenes": new,
    "scenes.npz": arrays,
    "ages.npz": arrays,
    "cifar10.npz": cifar,
    "nasbench201": table,
    "benchmarks": lambda link: link.symlink_to(ROOT / "benchmarks"),
}
"""Name -> what makes it."""
