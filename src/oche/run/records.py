"""Lines of a run's log: one JSON object each, with a checksum, so that a damaged line is found and a torn one is told apart."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence

from oche.errors import UserError

_SEALED = re.compile(rb'^(?P<record>\{.*)(?:, )?"crc": "(?P<crc>[0-9a-f]{8})"\}$', re.DOTALL)
_ALMOST = re.compile(rb'"[0-9a-f]{8}".{0,3}$', re.DOTALL)


def seal(record: Mapping[str, object]) -> bytes:
    r"""A record as a line: JSON with the CRC-32 of the rest as its last entry.

    Numbers that are not finite become null: JSON has no word for them.

    >>> seal({"kind": "epoch", "loss": float("nan")})
    b'{"kind": "epoch", "loss": null, "crc": "05c1a0ce"}\n'
    """
    text = json.dumps(_finite(dict(record)), allow_nan=False).encode()
    body = text[:-1] + (b", " if len(text) > 2 else b"")
    return body + f'"crc": "{zlib.crc32(text):08x}"}}\n'.encode()


def unseal(line: bytes) -> dict[str, object] | None:
    """The record of a line (without its newline), or None where it is damaged. A line without a checksum is from before there were any."""
    match = _SEALED.match(line)
    if match is None and _ALMOST.search(line):  # the checksum is there, its name is not
        return None
    text = line
    if match:
        body = match["record"].removesuffix(b", ")
        text = body + b"}"
        if f"{zlib.crc32(text):08x}".encode() != match["crc"]:
            return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and "crc" not in record else None


def other_processes(before: int, now: int, batch: int, sync: bool) -> dict[str, object]:
    """The record of a run that goes on in another number of processes: what stays, and why its bits are no longer the unbroken run's."""
    why = "sums over processes round differently"
    if not sync:
        why += f", and batch norm sees {batch // now} images at a time in place of {batch // before}"
    note = (
        f"goes on with {now} process(es), begun with {before}: still {batch} images per step, but other bits, for {why}"
    )
    return {"kind": "processes", "processes": now, "before": before, "batch": batch, "note": note}


def complete(content: bytes, where: str) -> list[bytes]:
    """The complete lines of a log, with their newlines. A last one that a killed process left torn does not count.

    Raises UserError where the last line was whole and has lost its newline to damage.
    """
    lines = content.split(b"\n")
    tail = lines.pop()
    if tail and _SEALED.match(tail[:-1]) and not _SEALED.match(tail):
        raise UserError(
            f"The last line of {where} is damaged; take the file from a backup, or remove that line to go on."
        )
    return [line + b"\n" for line in lines]


def parse(lines: Sequence[bytes], where: str) -> list[dict[str, object]]:
    """The records of complete lines. Raises UserError for a damaged one."""
    records = []
    for n, line in enumerate(lines, start=1):
        record = unseal(line.removesuffix(b"\n"))
        if record is None:
            raise UserError(f"Line {n} of {where} is damaged; remove that line to go on.")
        records.append(record)
    return records


def _finite(value: object) -> object:
    """The value with null for numbers that JSON cannot hold."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
