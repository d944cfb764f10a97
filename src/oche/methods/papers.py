"""Which papers does a method rest on? BibTeX entries by key, for `oche cite` and the methods' pages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from oche.errors import unknown


@cache
def entries() -> dict[str, str]:
    """Every entry of papers.bib by its key, as it stands there."""
    text = files("oche.methods").joinpath("papers.bib").read_text(encoding="utf-8")
    found = re.findall(r"^@\w+\{([^,]+),.*?^\}", text, flags=re.MULTILINE | re.DOTALL)
    whole = re.findall(r"^(@\w+\{.*?^\})", text, flags=re.MULTILINE | re.DOTALL)
    return dict(zip(found, whole, strict=True))


def cite(keys: Sequence[str]) -> str:
    """The entries of these keys as BibTeX. Raises UserError for an unknown key."""
    known = entries()
    for key in keys:
        if key not in known:
            raise unknown("paper", key, known)
    return "\n\n".join(known[key] for key in keys)
