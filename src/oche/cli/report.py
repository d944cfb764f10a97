"""What `oche report` does with one run, several, or one that is still going."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from oche.api.terminal import console
from oche.errors import UserError
from oche.run import Run


def show_reports(paths: Sequence[Path], watch: bool, port: int, out: Path | None) -> None:
    """Writes a run's page, one page of several runs, or serves that of a run until it is interrupted. Raises UserError."""
    from oche.report import render

    runs = [Run.open(path) for path in paths]
    if watch:
        if len(runs) > 1 or out is not None:
            raise UserError("--watch shows one run and writes no file: give one run, and leave --out out.")
        _serve(runs[0], port)
        return
    if port:
        raise UserError("--port is for --watch: give both, or leave it out.")
    if len(runs) == 1:
        if out is not None:
            raise UserError(
                f"--out is for several runs; the page of one lies in its folder, {runs[0].path}: leave it out."
            )
        written = render(runs[0])
    else:
        from oche.report.side_by_side import write_compared

        written = write_compared(runs, out or Path("side_by_side.html"))
    console.print(str(written), soft_wrap=True)


def _serve(run: Run, port: int) -> None:
    from oche.report.watch import server

    with server(run, port) as made:
        address = f"http://127.0.0.1:{made.server_port}/"
        console.print(f"{address} shows {run.path} until Ctrl-C", soft_wrap=True)
        try:
            made.serve_forever()
        except KeyboardInterrupt:
            return
