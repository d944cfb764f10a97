"""Several labels per image in one column of a table: whether they are several, and their targets (N, K)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from oche.data.entries import Fate
from oche.data.reading.found import Filled, Parts, Wish
from oche.data.reading.listing import filled, of_files
from oche.errors import UserError

SURE, DOUBTFUL = ("|", ";"), (",", " ")
"""What may stand between the labels of one image: signs that names seldom have, and such as many names have."""


def separator(labels: Sequence[str], wish: Wish, where: Path) -> str | None:
    """What divides several labels per image; None where each image has one label, "" where several were asked for and none has more.

    A sign that names seldom have divides if a piece of a label is a label, or a piece of another one, too. In all doubt it is asked what is
    meant: where no piece is, and where a sign that many names have leaves pieces that are labels.

    Raises:
        UserError: it cannot be told if the sign divides labels, and `data.task` does not say it.
    """
    if wish.contract is not None and wish.task is None:
        wanted: str | None = wish.contract.task
    else:
        wanted = wish.task
    if wanted not in (None, "multilabel"):
        return None
    different = sorted(set(labels))
    for sign in (*SURE, *DOUBTFUL):
        several = [label for label in different if sign in label]
        if not several:
            continue
        if sign in SURE:
            pieces = Counter(piece for label in different for piece in pieces_of(label, sign))
            shared = any(count > 1 for count in pieces.values())
        else:
            shared = bool({piece for label in several for piece in pieces_of(label, sign)} & set(different))
        if wanted == "multilabel" or (shared and sign in SURE):
            return sign
        if shared or sign in SURE:
            raise UserError(
                f"{where}: {several[0]!r} may be one class or several labels, divided by {sign!r}: say which, "
                "`--set data.task=classify` or `--set data.task=multilabel`."
            )
    return "" if wanted == "multilabel" else None


def pieces_of(label: str, sign: str) -> list[str]:
    """The labels in a text, each once.

    >>> pieces_of("cat; dog;cat;", ";")
    ['cat', 'dog']
    """
    found = label.split(sign) if sign else [label]
    return list(dict.fromkeys(piece.strip() for piece in found if piece.strip()))


def of_several(
    name: str,
    files: Mapping[str, tuple[Sequence[Path], Sequence[str]]],
    sign: str,
    wish: Wish,
    told: tuple[Fate, ...] = (),
    layout: str = "",
) -> Parts:
    """Parts from part -> (files, labels divided by a sign): targets (N, K), the K labels being those of the train images, sorted.

    Raises:
        UserError: fewer than two labels, an image of another part with a label that no train image has.
    """
    if wish.labels is not None:
        raise UserError(
            f"{name}: data.labels maps classes; of several labels per image there are none, so leave it out."
        )
    sets = {part: [pieces_of(text, sign) for text in texts] for part, (_, texts) in files.items()}
    names = wish.contract.classes if wish.contract else tuple(sorted({piece for one in sets["train"] for piece in one}))
    if len(names) < 2:
        raise UserError(f"{name} has one label only, {', '.join(names)!r}; several labels per image need at least two.")
    number = {label: n for n, label in enumerate(names)}
    targets, listings = {}, {}
    texts = sorted({"|".join(sorted(one)) for part in sets.values() for one in part})
    for part, (paths, _) in files.items():
        if strange := sorted({piece for one in sets[part] for piece in one} - set(names)):
            raise UserError(
                f"{name} ({part}): no train image has the label {strange[0]!r}; all parts need labels of train."
            )
        targets[part] = torch.zeros(len(paths), len(names), dtype=torch.int64)
        for row, one in zip(targets[part], sets[part], strict=True):
            row[[number[piece] for piece in one]] = 1
        which = [texts.index("|".join(sorted(one))) for one in sets[part]]
        listings[part] = of_files(paths, which, alpha=wish.channels == 4)

    def fill(train: Tensor) -> Filled:
        found = filled(listings, name, wish, classes=texts, train=train)  # so that an image's digest has its labels
        return replace(found, sets={part: replace(one, targets=targets[part]) for part, one in found.sets.items()})

    return Parts(name, targets, fill, names, fates=told, layout=layout)
