"""The identity of a trial: its settings, the user's own files that it used, and the version of oche. Others are not comparable."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from oche import config, own
from oche.bench.matrix import Matrix
from oche.bench.planned import Trial
from oche.run import Run


def checksums(run: Run) -> dict[str, object]:
    """Path -> checksum of the user's own files that a run used, according to its run.toml."""
    code = _table(run).get(own.CODE, {})
    return {path: entry["sha256"] for path, entry in code.items()} if isinstance(code, dict) else {}


def changed_files(run: Run) -> list[str]:
    """The user's own files whose content has changed since the run began."""
    return own.changed(_table(run))


def table_code(matrix: Matrix) -> dict[str, object]:
    """Path -> checksum of the file that holds the bench's table; empty for a table of oche's."""
    if matrix.table is None or not own.is_own(matrix.table):
        return {}
    path = Path(matrix.table.rpartition(":")[0]).resolve()
    return {str(path): own.digest(path.read_bytes())}


def changed(trial: Trial, asked: Mapping[str, object], code: Mapping[str, object], by: str) -> str:
    """The difference between a trial that was done with these settings and files, `by` this version, and the one to run now.

    The words follow "was run"; empty if it does not.
    """
    if asked != trial.asked():
        return "with other settings"
    for path, checksum in code.items():
        if Path(path).is_file() and own.digest(Path(path).read_bytes()) != checksum:
            return f"with {path} as it was before it changed"
    if by and by != version("oche"):
        return f"by oche {by}, not {version('oche')},"
    return ""


def _table(run: Run) -> dict[str, object]:
    """A run's run.toml; empty where a trial has none."""
    return config.loads(run.read(Run.CONFIG).decode(), str(run.file(Run.CONFIG))) if run.has(Run.CONFIG) else {}
