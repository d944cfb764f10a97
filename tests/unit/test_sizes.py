"""Every reader of a file from outside has a limit on its size: the list of them all, and each refused in a sentence."""

from __future__ import annotations

import ast
import bz2
import gzip
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import oche
from oche.api.folders import genotype_of
from oche.bench.matrix import matrix_from
from oche.data.memory import Room
from oche.data.reading import arrays
from oche.data.reading.found import Wish
from oche.data.reading.standards import read_camvid_archives
from oche.data.reading.texts import text_of
from oche.errors import UserError
from oche.plan.request import recorded_request
from oche.run import Run, bounded
from oche.run.bounded import LOG, TABLE, TEXT, read_bounded
from oche.spaces import latency
from oche.study.runner import study_from
from oche.tables import nb201, official

SOURCE = Path(oche.__file__).parent

BOUNDED = {
    "run/bounded.py": "is the limit",
    "run/folder.py": "by suffix; tensors are what the file's size says",
    "data/reading/texts.py": "tables and lists of labels: LARGEST",
    "data/reading/depths.py": "FIRST bytes, and a PPM's as many as it has pixels",
    "data/reading/standards.py": "archives: BOMB_BYTES and BOMB_RATIO of arrays.py",
    "data/reading/files.py": "pixels: LARGEST, and PACKED per byte; .npy files are mapped",
    "data/reading/masks.py": "pixels: Pillow's own limit, LARGEST of files.py",
    "data/reading/lossy.py": "the first 4,096 bytes of a WebP file",
    "data/reading/tiff.py": "values: LARGEST of files.py",
    "data/reading/arrays.py": ".npz: BOMB_BYTES and BOMB_RATIO; idx: MOST values",
    "data/reading/signals.py": ".npy, as long as the file",
    "data/reading/listing.py": "hashes, of what was read before",
    "spaces/latency.py": "LARGEST bytes, MOST names",
    "tables/nb201.py": "LARGEST bytes unpacked",
    "tables/official.py": "as much as there is memory for, unpacked; .pth by weights_only",
    "training/export.py": "weights, after `plausible` has compared the card's claims with them, and files that it wrote",
    "report/side_by_side.py": "2,000 bytes",
    "report/figures.py": "trajectories that the run's digests cover",
}
"""Module -> how what it reads is bounded."""

OWN = {
    *(
        "own.py",
        "api/folders.py",
        "bench/identity.py",
        "bench/spawning.py",
    ),  # code of the user's own
    *("cli/started.py", "data/memory.py", "search/record.py", "training/timing.py"),  # what the system says of itself
    *(
        "genotype/zoo.py",
        "methods/papers.py",
        "report/page.py",
        "report/sections.py",
        "bench/page.py",
        "cli/completion.py",
    ),
    "training/source.py",  # code that is shipped
    *("api/int8.py", "api/pick.py", "methods/svge.py"),  # files that they wrote
}
"""Modules that read nothing from outside but code that is run anyway."""


def opens(path: Path) -> bool:
    """True if the module reads a file by itself, not through `Run`, `read_bounded` or `text_of`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name.endswith((".read_bytes", ".read_text")) or name in (
            "open",
            "gzip.open",
            "bz2.open",
            "np.load",
            "load_file",
        ):
            return True
        if name.endswith(".open") and not name.startswith(("Run", "os", "webbrowser", "cls")):
            return True
    return False


def test_the_list_of_readers_is_whole() -> None:
    fast = ("fast/", "testing/")  # the compiler's own files
    found = {path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py") if opens(path)}
    found = {name for name in found if not name.startswith(fast)}
    assert not found - BOUNDED.keys() - OWN, "say how what they read is bounded, or read it by `read_bounded`"
    assert not (BOUNDED.keys() | OWN) - found, "these read nothing any more"


def large(path: Path, size: int) -> Path:
    """A file of so many bytes that takes no room on the disk."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


READERS: dict[str, tuple[Callable[[Path], object], int]] = {
    "genotype": (genotype_of, TEXT),
    "run.toml": (recorded_request, TEXT),
    "bench": (matrix_from, TEXT),
    "study": (lambda path: study_from("discretisation", path), TEXT),
    "labels": (text_of, 2**28),
    "latencies": (latency.read_table, latency.LARGEST),
}


@pytest.mark.parametrize("what", READERS)
def test_a_file_that_is_too_large_is_one_sentence(what: str, tmp_path: Path) -> None:
    read, most = READERS[what]
    with pytest.raises(UserError, match=r"too\.large\b.*(bytes|MiB)"):
        read(large(tmp_path / "too.large", most + 1))


@pytest.mark.parametrize(
    ("name", "most"), [("network/card.json", TABLE), ("genotype.json", TABLE), ("run.toml", TEXT), ("log.jsonl", LOG)]
)
def test_a_runs_files_are_bounded(name: str, most: int, tmp_path: Path) -> None:
    (tmp_path / "network").mkdir()
    large(tmp_path / name, most + 1)
    with pytest.raises(UserError, match=r"has [\d,]+ bytes, and such a file has at most"):
        Run(tmp_path).read(name)


def test_what_tells_no_size_is_read_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="/dev/zero goes on, and such a file has at most 10"):
        read_bounded(Path("/dev/zero"), 10)
    assert bounded.TEXT == TEXT


def test_as_many_bytes_as_are_allowed(tmp_path: Path) -> None:
    assert read_bounded(large(tmp_path / "a", 10), 10) == bytes(10)


def test_tables_that_unpack_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nb201, "LARGEST", 1000)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"0" * 1000))
    assert len(nb201._text(tmp_path / "a.csv.gz")) == 1000
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"0" * 1001))
    with pytest.raises(UserError, match=r"a\.csv\.gz unpacks to more than 1,000 bytes"):
        nb201._text(tmp_path / "a.csv.gz")

    monkeypatch.setattr(official, "room", lambda: Room(5e5, "this machine"))
    path = tmp_path / "a.pickle.pbz2"
    path.write_bytes(bz2.compress(pickle.dumps({"a": "b" * 400_000})))
    assert len(str(official._pickled(path)["a"])) == 400_000
    for table in ({"a": "b" * 600_000}, {i: f"{i:0100}" for i in range(10_000)}):
        path.write_bytes(bz2.compress(pickle.dumps(table)))
        with pytest.raises(UserError, match=r"a\.pickle\.pbz2 unpacks to more than there is memory for"):
            official._pickled(path)


def test_an_archive_of_images_that_unpacks_to_far_more_than_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "BOMB_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "camvid_train.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image/a_1.webp", bytes(10**6))
    with pytest.raises(UserError, match=r"camvid_train\.zip holds .* as a decompression bomb does"):
        read_camvid_archives(tmp_path, Wish())


def test_reading_takes_the_memory_of_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(b"x" * 1000)
    tracemalloc.start()
    read_bounded(tmp_path / "log.jsonl", LOG)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * bounded.PART
