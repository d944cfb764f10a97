"""`oche latency`: a table of this machine's latencies, for searches under a limit on another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from oche.api.terminal import console
from oche.config import assignment
from oche.errors import UserError, unknown


def latency(
    out: Annotated[Path, typer.Argument(help="The table's file; an existing one is never overwritten.")],
    space: Annotated[str, typer.Option(help="As for `oche search`.")] = "nb201",
    data: Annotated[str, typer.Option(help="As for `oche search`: the images' size counts.")] = "digits",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="space.FIELD=VALUE, as for `oche search`.")
    ] = None,
) -> None:
    """Measure this machine's time for each operation of a space: the --latency-table of searches elsewhere."""
    from oche.plan.parts import data_for, space_for
    from oche.plan.settings import by_part
    from oche.spaces import named as spaces
    from oche.training.latencies import measured_for

    if out.exists():
        raise UserError(f"{out} exists already; choose another name.")
    parts = by_part(dict(map(assignment, settings or [])))
    if foreign := sorted(parts.keys() - {"space", "data"}):
        raise unknown("setting", foreign[0], ["space.FIELD", "data.FIELD"])
    found = data_for(data, None, 0, parts.get("data", {}))
    bound, _ = space_for(spaces.space(space), found, parts.get("space", {}))
    size = "x".join(map(str, found.size))
    console.print(f"measuring the operations of {bound.name} for images of {size}: this takes minutes")
    table = measured_for(bound)
    out.write_text(json.dumps(table.plain(), indent=1), encoding="utf-8")
    found_here = f"{len(table.kernels):,} operations on {table.device}, {table.runtime}"
    console.print(f"{out}  {found_here}", soft_wrap=True)
