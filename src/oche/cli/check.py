"""What `oche check` says: the ledger of a data set, or all that keeps it from being read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from oche.api.terminal import console, data_rows, rows_table
from oche.errors import UserError

if TYPE_CHECKING:
    from oche.data import Data

MOST = 40
"""Classes that the table of counts has a row for."""


def check_data(source: str, settings: Mapping[str, object], as_json: bool) -> None:
    """Reads data as a search would and prints its ledger.

    Raises:
        UserError: it cannot be read; all that is wrong has been printed before, where it is more than one thing.
    """
    from oche import config
    from oche.data import load
    from oche.data.facts import fine_tuning
    from oche.data.problems import problems_of

    if other := [path for path in settings if not path.startswith("data.")]:
        raise UserError(f"`oche check` only reads data, so {other[0]} cannot be set here; expected data.FIELD=VALUE.")
    known = {path.removeprefix("data."): value for path, value in settings.items()}
    try:
        data = config.build(load, {"source": source, **known}, "data")
    except UserError as error:
        found = problems_of(error)
        if as_json:
            print(json.dumps({"source": source, "problems": found}))
        elif len(found) > 1:
            for number, sentence in enumerate(found, 1):
                console.print(f"{number}. {sentence}", soft_wrap=True)
        raise
    if as_json:
        print(json.dumps(plain(data)))
        return
    advice = fine_tuning(data)
    console.print(rows_table([*data_rows(data), *ledger_rows(data), *([("advice", advice)] if advice else [])]))
    console.print(counts_table(data))


def plain(data: Data) -> dict[str, object]:
    """All that is known of a data set, for JSON."""
    from oche.data.facts import fine_tuning

    return {
        "name": data.name,
        "problems": [],
        "parts": {"train": len(data.train), "val": len(data.val), "test": len(data.test)},
        "contract": data.contract.plain(),
        **data.ledger.plain(),
        "notes": list(data.notes),
        "advice": fine_tuning(data),
    }


def ledger_rows(data: Data) -> list[tuple[str, str]]:
    """What became of all that was found, how it lies there, and how it is read."""
    ledger = data.ledger
    rows = [("layout", ledger.layout)] if ledger.layout else []
    rows += [("values", data.contract.pixels.says())]
    shapes = [f"{n} of {shape}" for shape, n in ledger.shapes[:6]]
    rows += [("found", ", ".join(shapes) + (", ..." if len(ledger.shapes) > 6 else ""))] if shapes else []
    if ledger.ranges:
        channels = [f"{low:.3g} to {high:.3g}" for low, high in ledger.ranges[:6]]
        rows += [("range", "in train, by channel: " + ", ".join(channels) + ", ..." * (len(ledger.ranges) > 6))]
    for fate in ledger.fates:
        names = ": " + ", ".join(fate.examples[:3]) + ", ..." * (fate.count > 3) if fate.examples else ""
        rows += [(fate.became, fate.said + (names if fate.became != "used" else ""))]
    return rows


def counts_table(data: Data) -> Table:
    """Images per class or label and part; of masks, the share of the train pixels; of numbers all images, their ranges are in the notes."""
    from oche.data.facts import RARE

    ledger = data.ledger
    rows = ("images",) if data.task in ("regress", "count") else data.classes
    table = Table(box=None, pad_edge=False)
    table.add_column({"multilabel": "label", "regress": "", "count": ""}.get(data.task, "class"))
    if ledger.shares:
        table.add_column("train pixels", justify="right")
        for name, share in list(ledger.shares.items())[:MOST]:
            table.add_row(
                Text(name), f"{share:.2%}" + ("  rare" if 0 < share < RARE else "  none" if share == 0 else "")
            )
    else:
        for part in ledger.counts:
            table.add_column(part, justify="right")
        for name in rows[:MOST]:
            table.add_row(Text(name), *(str(counts.get(name, 0)) for counts in ledger.counts.values()))
    if len(rows) > MOST:
        table.caption = f"and {len(rows) - MOST} classes more: --json lists all"
        table.caption_justify = "left"
    return table
