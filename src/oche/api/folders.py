"""Runs' folders: where a new one goes, what it begins with, and how a genotype is read from one, or from a file or a text.

Importing this loads no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from oche import config, own
from oche.errors import UserError
from oche.genotype import Genotype
from oche.run import Run
from oche.run.bounded import read_bounded

if TYPE_CHECKING:
    from lightning_fabric import Fabric

RUNS = Path("runs")
"""Where runs go unless `out` says otherwise."""


def begun(fabric: Fabric, path: Path, table: Mapping[str, object], files: own.Files) -> Run:
    """A new run with its run.toml; of several processes one makes the folder, and all get to know its name."""
    made = ""
    if fabric.is_global_zero:
        run = Run.create(path)
        write_table(run, table, files)
        made = str(run.path)
    return Run(Path(str(fabric.broadcast(made))))


def write_table(run: Run, table: Mapping[str, object], files: own.Files) -> None:
    """Writes run.toml, and copies of the user's own files that the run uses."""
    code = _copied(run, files)
    run.write(Run.CONFIG, config.dumps({**table, own.CODE: code} if code else table).encode())


def _copied(run: Run, files: own.Files) -> dict[str, object]:
    """Copies the files into the run's folder; returns the table [code] of run.toml."""
    table: dict[str, object] = {}
    stems: list[str] = []
    for path, used in sorted(files.items()):
        content, stem = used.file.read_bytes(), Path(path).stem
        stems.append(stem)
        copy = f"{own.CODE}/{stem}{f'_{stems.count(stem)}' if stems.count(stem) > 1 else ''}.py"
        run.write(copy, content)
        table[path] = {"copy": copy, "sha256": own.digest(content), "names": sorted(used.names)}
    return table


def fitted(run: Run) -> Mapping[str, object]:
    """What was done to a search's genotype to keep its limits, as genotype.json has it: `channels` is the width; empty without limits."""
    table = json.loads(run.read(Run.GENOTYPE)) if run.has(Run.GENOTYPE) else {}
    found = table.get("fitted") if isinstance(table, dict) else None
    return found if isinstance(found, dict) else {}


def path_of(text: str | Path) -> Path | None:
    """The file or folder of that name; None where there is none, as for a genotype's own text."""
    path = Path(text)
    return (
        path if len(str(text)) < 250 and path.exists() else None
    )  # asking the file system for a longer one would fail


def genotype_of(text: str | Path, space: str | None = None) -> tuple[Genotype, Run | None]:
    """A genotype from a run's folder, a JSON file, a published string or a published cell's name; and the run if it was one."""
    path = path_of(text)
    run = Run.open(path) if path and path.is_dir() else None
    if run:
        genotype = Genotype.from_json(run.read(Run.GENOTYPE).decode(errors="replace"))
    else:
        genotype = Genotype.parse(
            read_bounded(path).decode(errors="replace") if path and path.is_file() else str(text), space
        )
    if space and genotype.space != space:
        raise UserError(f"The genotype is of the space {genotype.space!r}, not of {space!r}: leave `--space` out.")
    return genotype, run
