"""From labels as they lie to class numbers: which classes there are, and which number a label has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oche.data.contract import Contract, LabelMap
from oche.data.reading.found import Wish
from oche.data.reading.labels import bounded, mapped
from oche.errors import UserError


def label_keys(labels: NDArray[np.generic], count: int, name: str) -> NDArray[np.generic]:
    """(N,) labels, int64 or text, from (N,), (N, 1) or one-hot (N, K) ones.

    Raises:
        UserError: another shape, another number than `count`, numbers that are not whole.
    """
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if (
        flat.ndim == 2
        and flat.dtype.kind in "buif"
        and len(flat)
        and np.isin(flat, (0, 1)).all()
        and (flat.sum(1) == 1).all()
    ):
        flat = flat.argmax(1)
    if flat.ndim != 1:
        masks = " Masks are read from folders called images and masks." if labels.ndim > 2 else ""
        raise UserError(f"{name} have shape {labels.shape}; expected one class number or name per image, (N,).{masks}")
    if len(flat) != count:
        raise UserError(f"{name}: there are {len(flat)} labels for {count} images; each image needs one.")
    if flat.dtype.kind in "US":
        texts = np.char.strip(texts_of(flat, name))
        if len(empty := np.flatnonzero(texts == "")):
            raise UserError(f"{name}: image {empty[0]} has no label; give it one, or remove the image.")
        return texts
    if flat.dtype.kind not in "bui" and not (flat.dtype.kind == "f" and np.array_equal(flat, np.round(flat))):
        raise UserError(
            f"{name} have type {flat.dtype} and are not whole; expected class numbers 0, 1, 2, ... or names."
        )
    if len(flat) and flat.dtype.kind in "uf" and not float(np.abs(flat).max()) < 2.0**63:
        raise UserError(
            f"{name} go up to {float(np.abs(flat).max()):g}, which is no class number; give class numbers or names."
        )
    return flat.astype(np.int64)


def texts_of(texts: NDArray[np.generic], name: str) -> NDArray[np.str_]:
    """Names as text; bytes are UTF-8. Raises UserError for other bytes."""
    try:
        return np.char.decode(texts.astype(np.bytes_), "utf-8") if texts.dtype.kind == "S" else texts.astype(np.str_)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name} holds bytes that are not UTF-8 ({error.object!r}); decode them and write text."
        ) from None


def classes_of(
    keys: Mapping[str, NDArray[np.generic]], wish: Wish, names: tuple[str, ...], where: str
) -> tuple[tuple[str, ...], LabelMap, tuple[str, ...]]:
    """Class names, the map of labels and notes, from the train labels that occur; a contract has settled both already."""
    if wish.contract is not None:
        return wish.contract.classes, _by_contract(wish.contract, keys), ()
    if keys["train"].dtype.kind == "U" and names:
        raise UserError(f"{where} has names as labels and a list of classes too; leave one of them out.")
    different = np.unique(keys["train"])
    occurring = [str(key) for key in different.tolist()]
    bounded(occurring, len(keys["train"]), f"{where} (train labels)")
    if wish.labels is None and keys["train"].dtype.kind != "U" and different[0] < 0:
        raise UserError(
            f"{where}: the train labels run from {occurring[0]} to {occurring[-1]}; classes are counted from 0: map the others, such as "
            f"`--set data.labels={occurring[0]}=ignore`."
        )
    found, labels = mapped(occurring, wish.labels, names, f"{where} (train labels)")
    if names and wish.labels is None and not labels.entries and int(different[-1]) >= len(names):
        raise UserError(
            f"{where}: the train labels run from {occurring[0]} to {occurring[-1]}, but the {len(names)} classes are 0 to {len(names) - 1}."
        )
    named = keys["train"].dtype.kind == "U" or wish.labels is not None
    shown = ", ".join(occurring[:8]) + (", ..." if len(occurring) > 8 else "")
    notes = (f"The labels {shown} became classes 0 to {len(found) - 1}.",) if labels.entries and not named else ()
    return found, labels, notes


def numbered(keys: NDArray[np.generic], classes: Sequence[str], labels: LabelMap, where: str) -> Tensor:
    """(N,) class numbers, `IGNORED` for labels that do not count. Raises UserError for labels that train does not have."""
    known = "the classes are those of the train labels: map others with data.labels"
    if not labels.entries and keys.dtype.kind != "U":
        low, high = int(keys.min()), int(keys.max())
        if low < 0 or high >= len(classes):
            raise UserError(
                f"{where} run from {low} to {high}, but the {len(classes)} classes are 0 to {len(classes) - 1}."
            )
        return torch.from_numpy(keys.astype(np.int64))
    table = labels.table or {name: n for n, name in enumerate(classes)}
    different, inverse = np.unique(keys, return_inverse=True)
    if strange := [str(key) for key in different.tolist() if str(key) not in table]:
        raise UserError(f"{where} have {', '.join(map(repr, strange[:8]))}, which no class is; {known}.")
    return torch.tensor([table[str(key)] for key in different.tolist()], dtype=torch.int64)[torch.from_numpy(inverse)]


def _by_contract(contract: Contract, keys: Mapping[str, NDArray[np.generic]]) -> LabelMap:
    """The contract's map; labels that are names, or class numbers, are known by the classes as well."""
    if contract.labels.entries or keys["train"].dtype.kind != "U":
        return contract.labels
    return LabelMap(tuple((name, n) for n, name in enumerate(contract.classes)))
