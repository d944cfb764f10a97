"""Pins data to a run: `data.json` says what every image was, `ledger.json` what was found. What goes on with the run compares."""

from __future__ import annotations

import json
from collections.abc import Mapping

from oche.data import Data
from oche.data.changes import LEAKS, differences
from oche.data.fingerprint import Fingerprint, fingerprint
from oche.errors import UserError
from oche.plan.request import requested
from oche.run import Run

PRINT, LEDGER = "data.json", "ledger.json"

UNRECORDED = "{run} did not record what its data were (it is older), so it cannot be told whether they are the same."

MEANINGS = "{run} has no record of what the labels in its masks stand for (it is older), so it cannot be told whether they mean the same."


def pin(run: Run, data: Data) -> None:
    """Writes what the data are into a new run."""
    run.write(PRINT, fingerprint(data).dumps())
    run.write(LEDGER, json.dumps({**data.ledger.plain(), "notes": list(data.notes)}, indent=1).encode())


def unrecorded(run: Run) -> str | None:
    """A sentence where a run did not record what its data were."""
    facts = requested(run)[1].get("data", {})
    there = run.has(PRINT) or (isinstance(facts, Mapping) and "fingerprint" in facts)
    return None if there else UNRECORDED.format(run=run.path)


def meanings_unrecorded(run: Run, data: Data) -> tuple[str, ...]:
    """A sentence where masks are read by what their labels stand for, and a run recorded its data without that."""
    before = _print_of(run)
    told = before is not None and before.labels is not None
    return () if told or data.ignore is None or not data.labels.entries else (MEANINGS.format(run=run.path),)


def changes(run: Run, data: Data) -> tuple[str, ...] | None:
    """What has changed since the run began, in sentences; None where it did not record what its data were."""
    if (before := _print_of(run)) is not None:
        return differences(before, fingerprint(data))
    facts = requested(run)[1].get("data", {})
    recorded = facts.get("fingerprint") if isinstance(facts, Mapping) else None
    if recorded is None:
        return None
    return () if recorded == fingerprint(data).digest else ("their fingerprint is another",)


def compared(run: Run, data: Data, *, split: bool = True) -> tuple[str, ...]:
    """Notes about what cannot be told, or has changed: with `split` false all may be other, as long as no test image is trained on.

    Raises:
        UserError: the data are not those that the run began with; it says what changed.
    """
    found = changes(run, data)
    if found is None:
        return (UNRECORDED.format(run=run.path),)
    wrong = [said for said in found if split or any(words in said for words in LEAKS)]
    if wrong:
        raise UserError(
            f"The data of {run.path} are not what they were: {'; '.join(wrong)}. Put them back, or begin a new run with `--data`."
        )
    other = (f"The data are not read as for {run.path}: {'; '.join(found)}.",) if found else ()
    return (*other, *meanings_unrecorded(run, data))


def _print_of(run: Run) -> Fingerprint | None:
    return Fingerprint.loads(run.read(PRINT), str(run.file(PRINT))) if run.has(PRINT) else None
