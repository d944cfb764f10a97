"""`oche.bench(...)`: methods compared over seeds, from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from oche.bench.matrix import Matrix, matrix_from
from oche.bench.result import BenchResult
from oche.bench.runner import run_bench
from oche.run import Listener, silent
from oche.tables import TableLike


def bench(
    matrix: Matrix | str | Path,
    out: str | Path | None = None,
    *,
    workers: int = 1,
    only: Sequence[str] = (),
    table: TableLike | None = None,
    listener: Listener = silent,
) -> BenchResult:
    """Runs what is missing of a bench, and renders its tables, pictures and page. Raises UserError.

    Args:
        matrix: what is compared, `oche.Matrix(methods=("darts", "mine.py:gaea"), seeds=4)`, or a TOML file with its fields.
        out: the bench's folder, runs/bench-NAME by default; one that exists is carried on with.
        workers: processes that work at a time.
        only: methods and arms to run now; the rest stays missing. All where it is empty.
        table: a table as an object, in the place of the matrix's own.
        listener: told as the bench begins, and as each trial ends or fails.
    """
    asked = matrix if isinstance(matrix, Matrix) else matrix_from(Path(matrix))
    folder = Path("runs") / f"bench-{asked.name}" if out is None else out
    return run_bench(asked, folder, workers, listener=listener, only=only, table=table)
