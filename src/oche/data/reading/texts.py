"""Text files that people keep beside images, in the encodings that say what they are."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from oche.errors import UserError

MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
LARGEST = 2**28
"""Bytes of a table or list, above which it is refused."""


def text_of(path: Path) -> str:
    """A file's text: UTF-8, with or without a mark, or UTF-16 with one.

    Raises:
        UserError: it cannot be read, is in another encoding, or is no text.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes; a list of labels has at most {LARGEST:,}.")
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    encoding = next((name for mark, name in MARKS if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f'{path} is not UTF-8 (byte {error.start + 1:,} is {raw[error.start]:#04x}): save it as UTF-8, in Excel as "CSV UTF-8".'
        ) from None
    if "\0" in text:
        raise UserError(f"{path} is no text: it holds zero bytes; save it as UTF-8.")
    return text


def spelled(name: str) -> str:
    r"""A text with names of files in it, as it can be written down: bytes of a name that are no UTF-8 are taken for Latin-1.

    >>> spelled("caf\udce9"), spelled("ant")
    ('caf\xe9', 'ant')
    """
    return re.sub("[\udc80-\udcff]", lambda found: chr(ord(found[0]) - 0xDC00), name)
