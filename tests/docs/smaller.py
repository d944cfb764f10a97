"""`oche` as the tests of the pages run it: as it stands, or with options that make a command take seconds.

`python smaller.py WORDS` is `oche WORDS`; with OCHE_PAGES=small the words of `smaller` are added.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

BRIEFLY = ("--set", "train.epochs=1")
TINY = ("--set", "train.cells=2", "--set", "train.channels=4")
ADDED: dict[str, tuple[str, ...]] = {
    "search": ("--budget", "smoke", "--compare-seeds", "1", "--rivals", "none", *BRIEFLY),
    "train": ("--batch", "8"),
    "bench": ("--budget", "smoke", "--seeds", "1", "--epochs", "1", *BRIEFLY),
    "study": ("--budget", "smoke", "--seeds", "1", "--epochs", "5", "--decoding", "op", *BRIEFLY),
}
"""Command -> options that it gets where they are not given."""

KEPT = ("--resume", "--config")
"""Options of a search beside which there are no others."""


def smaller(words: Sequence[str]) -> list[str]:
    """The words of a command with a few epochs of a small network.

    >>> " ".join(smaller(["search", "darts", "--rivals", "resnet8"]))
    'search darts --rivals resnet8 --budget smoke --compare-seeds 1 --set train.epochs=1'
    """
    found = [re.sub(r"^queries=\d+$", "queries=3", word) for word in words]
    if "--seeds" in found:
        found[found.index("--seeds") + 1] = "1"
    command = found[0] if found else ""
    if command == "export" and "int8" in found:
        return [*found, "--allow-loss"]  # of a dozen images one counts many points
    if command not in ADDED or (
        command in ("bench", "study") and len(found) > 1 and found[1] in ("show", "query", "convert")
    ):
        return found
    if command == "search" and any(word in KEPT for word in found):
        return found
    added = list(ADDED[command])
    if command == "train":
        added += TINY if "--protocol" in found else ()
        added += [] if {"--resume", "--more", "--epochs"} & set(found) else ["--epochs", "1"]
    if command == "search" and "--time" in found:
        added += ["--dry-run"]  # it would take the time that it is given
    for option in [
        word for word in added if word.startswith("--") and word not in ("--set", "--dry-run") and word in found
    ]:
        place = added.index(option)
        del added[place : place + 2]
    return [*found, *added]


if __name__ == "__main__":
    from oche.__main__ import main

    if os.environ.pop("OCHE_PAGES", "") == "small":  # once: further processes get these words
        sys.argv[1:] = smaller(sys.argv[1:])
    main()
