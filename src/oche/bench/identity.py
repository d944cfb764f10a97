"""What makes two trials comparable: the same settings, the same files of the user's own, and the same version of oche."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from oche import config, own
from oche.bench.matrix import Matrix, Trial
from oche.bench.result import Finished
from oche.run import Run


def checksums(run: Run) -> dict[str, object]:
    """Path -> checksum of the user's own files that a run used, after its run.toml."""
    code = _table(run).get(own.CODE, {})
    return {path: entry["sha256"] for path, entry in code.items()} if isinstance(code, dict) else {}


def changed_files(run: Run) -> list[str]:
    """Those of the user's own files that have another content now than when the run began."""
    return own.changed(_table(run))


def table_code(matrix: Matrix) -> dict[str, object]:
    """Path -> checksum of the file that the bench's table is from, where that is one of the user's own."""
    if matrix.table is None or not own.is_own(matrix.table):
        return {}
    path = Path(matrix.table.rpartition(":")[0]).resolve()
    return {str(path): own.digest(path.read_bytes())}


def changed(done: Finished, trial: Trial) -> str:
    """How a finished trial was run otherwise than it would be now, in words that follow "was run"; empty if it was not."""
    if done.asked != trial.asked():
        return "with other settings"
    for path, checksum in done.code.items():
        if Path(path).is_file() and own.digest(Path(path).read_bytes()) != checksum:
            return f"with {path} as it was before it changed"
    if done.version and done.version != version("oche"):
        return f"by oche {done.version}, not {version('oche')},"
    return ""


def _table(run: Run) -> dict[str, object]:
    """A run's run.toml; empty where a trial has none."""
    return config.loads(run.read(Run.CONFIG).decode(), str(run.file(Run.CONFIG))) if run.has(Run.CONFIG) else {}
