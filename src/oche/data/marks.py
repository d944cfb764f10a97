"""The mark of an image in a data set: a digest of it with its label, one of it alone, and what the label says."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

from torch import Tensor

SHORT = 5
"""Characters of 6 bits in a digest that is only compared among images whose whole digest has changed."""


class Mark(NamedTuple):
    """The digest of an image with its label, a short one of the image alone ("" where it has none), and its label as text.

    The text for a mask is a digest of it.
    """

    whole: str
    image: str = ""
    label: str = ""


def short(digest: bytes) -> str:
    """The first `SHORT` characters of a digest in base 64."""
    return urlsafe_b64encode(digest)[:SHORT].decode()


def short_of(text: str) -> str:
    """A short digest of a text."""
    return short(blake2b(text.encode("utf-8", "surrogateescape"), digest_size=6).digest())


def label_text(target: Tensor, classes: Sequence[str]) -> str:
    """A target as text: a class's name, labels divided by |, numbers, or a digest of a mask.

    >>> import torch
    >>> label_text(torch.tensor(1), ["cat", "dog"]), label_text(torch.tensor([1, 1]), ["cat", "dog"])
    ('dog', 'cat|dog')
    >>> label_text(torch.tensor([0.5, 2.0]), ["x", "y"])
    '0.5, 2'
    """
    if target.ndim > 1:
        return blake2b(target.contiguous().numpy().tobytes(), digest_size=6).hexdigest()
    if target.is_floating_point():
        return ", ".join(f"{value:.9g}" for value in target.flatten().tolist())
    if target.ndim == 0:
        return classes[int(target)]
    return "|".join(classes[n] for n in target.nonzero().flatten().tolist())
