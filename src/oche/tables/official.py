"""Reads official NAS-Bench-201 and NATS-Bench downloads without executing the code that their pickles may hold.

Three forms, after the public API of D-X-Y/NATS-Bench and D-X-Y/NAS-Bench-201 (MIT):

    NATS-tss-v1_0-3ffb9-simple/           meta.pickle.pbz2, and a file NNNNNN.pickle.pbz2 for each cell
    NATS-tss-v1_0-3ffb9.pickle.pbz2       the same in one file
    NAS-Bench-201-v1_1-096897.pth         the same, saved by torch; "less" stands for 12 epochs and "full" for 200

A bz2 pickle goes through an unpickler that makes plain containers and numbers and refuses everything else; a .pth through
`torch.load(weights_only=True)`. Verified on synthetic files in these layouts only: the real ones are gigabytes behind a download page.
"""

from __future__ import annotations

import bz2
import pickle
import re
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import IO, cast

import numpy as np
import torch

from oche.data.memory import room
from oche.errors import UserError
from oche.run.folder import UNREADABLE

Node = Mapping[object, object]

SETS = {  # our name -> (valid: data set and part; test: data set and part)
    "cifar10": (("cifar10-valid", "x-valid"), ("cifar10", "ori-test")),
    "cifar100": (("cifar100", "x-valid"), ("cifar100", "x-test")),
    "imagenet16-120": (("ImageNet16-120", "x-valid"), ("ImageNet16-120", "x-test")),
}
EPOCHS = {"200": ("200", "full"), "12": ("12", "less")}


def cells(path: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Each cell's string and `DATA/METRIC` values (means over seeds, costs in millions), in the official order.

    Raises UserError for a path that is none of the three forms, is damaged, or holds more than plain values.
    """
    if path.is_dir():
        names = _strings(_pickled(path / "meta.pickle.pbz2"), path)
        for index, cell in enumerate(names):
            files = (path / f"{index:06d}.pickle.pbz2", path / f"{index}.pickle.pbz2")
            yield cell, _values(_pickled(files[0] if files[0].exists() else files[1]), f"{path}: cell {index}")
        return
    table = _saved(path) if path.suffix == ".pth" else _pickled(path)
    infos = _child(table, "arch2infos", str(path))
    for index, cell in enumerate(_strings(table, path)):
        yield cell, _values(_child(infos, index, str(path)), f"{path}: cell {index}")


# ------------------------------------------------------------------ what the files hold


def _values(info: Node, where: str) -> dict[str, float]:
    """One cell: {"12" | "less": results, "200" | "full": results} -> metric -> value."""
    values: dict[str, float] = {}
    for name, (valid, test) in SETS.items():
        for epochs, keys in EPOCHS.items():
            results = _child(info, next((key for key in keys if key in info), keys[0]), where)
            suffix = "" if epochs == "200" else "/12"
            values[f"{name}/valid{suffix}"] = fmean(
                _accuracy(run, valid[1], where) for run in _runs(results, valid[0], where)
            )
            runs = _runs(results, test[0], where)
            values[f"{name}/test{suffix}"] = fmean(_accuracy(run, test[1], where) for run in runs)
            if epochs == "200":
                values[f"{name}/parameters"] = fmean(_number(run, "params", where) for run in runs)
                values[f"{name}/multiply_adds"] = fmean(_number(run, "flop", where) for run in runs)
    return values


def _runs(results: Node, data: str, where: str) -> list[Node]:
    """The trainings on a data set, one per seed."""
    seeds = _child(results, "dataset_seed", where).get(data)
    if not isinstance(seeds, Sequence) or not seeds:
        raise UserError(f"{where} has no training on {data}; the table needs one for every cell.")
    runs = _child(results, "all_results", where)
    return [_child(runs, (data, seed), where) for seed in seeds]


def _accuracy(run: Node, part: str, where: str) -> float:
    """Accuracy in percent after the last epoch."""
    return _number(_child(run, "eval_acc1es", where), f"{part}@{int(_number(run, 'epochs', where)) - 1}", where)


def _number(node: Node, key: str, where: str) -> float:
    value = node.get(key)
    if not isinstance(value, int | float | np.floating | np.integer):
        raise UserError(f"{where} has no number {key!r}: it is no NAS-Bench-201 download, or of another version.")
    return float(value)


def _child(node: object, key: object, where: str) -> Node:
    child = node.get(key) if isinstance(node, Mapping) else None
    if not isinstance(child, Mapping):
        raise UserError(f"{where} has no table {key!r}: it is no NAS-Bench-201 download, or of another version.")
    return cast(Node, child)


def _strings(table: object, path: Path) -> list[str]:
    names = table.get("meta_archs") if isinstance(table, Mapping) else None
    if not isinstance(names, Sequence) or not all(isinstance(name, str) and name.startswith("|") for name in names):
        raise UserError(
            f"{path} has no list `meta_archs` of cells: it is no NAS-Bench-201 download (the size space is none)."
        )
    return list(names)


# ------------------------------------------------------------------ files


def _saved(path: Path) -> object:
    multiarray = np._core.multiarray  # type: ignore[attr-defined]
    plain: list[Callable[..., object] | tuple[Callable[..., object], str]]
    plain = [np.dtype, *(type(np.dtype(code)) for code in ("?", "i4", "i8", "f4", "f8"))]
    plain += [multiarray.scalar, (multiarray.scalar, "numpy.core.multiarray.scalar")]
    try:
        with torch.serialization.safe_globals(plain):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except UNREADABLE as error:
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{path} asks for {asked[1]}, which is no plain value: it is not read, for safety."
            ) from None
        reason = (str(error).splitlines() or ["end of file"])[0]
        raise UserError(f"{path} is truncated or damaged ({reason}): fetch it again.") from None


def _pickled(path: Path) -> Node:
    try:
        with bz2.open(path) as stream:
            table = Plain(Within(stream, room().bytes, path)).load()
    except FileNotFoundError:
        raise UserError(f"There is no file {path}; expected a NATS-Bench topology download.") from None
    except UNREADABLE as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is truncated or damaged ({error}): fetch it again.") from None
    if not isinstance(table, Mapping):
        raise UserError(f"{path} holds no table: it is no NATS-Bench download.")
    return cast(Node, table)


class Within:
    """A packed stream that is read up to `most` bytes, as many as there is memory for."""

    def __init__(self, stream: IO[bytes], most: float, path: Path) -> None:
        self.stream, self.left, self.path = stream, most, path

    def read(self, size: int = -1) -> bytes:
        return self._counted(self.stream.read(size) if 0 <= size <= self.left else self.stream.read(int(self.left) + 1))

    def readline(self) -> bytes:
        return self._counted(self.stream.readline(int(self.left) + 1))

    def _counted(self, data: bytes) -> bytes:
        self.left -= len(data)
        if self.left < 0:
            raise UserError(f"{self.path} unpacks to more than there is memory for: convert it on a larger machine.")
        return data


class Plain(pickle.Unpickler):
    """An unpickler that knows containers, and numpy's numbers through stand-ins below; any other name is refused unseen."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in ALLOWED:
            raise UserError(
                f"The pickle asks for {module}.{name}, which is no plain value: it is not read, for safety."
            )
        return ALLOWED[module, name]


@dataclass
class Kind:
    """Stands in for numpy.dtype: a letter of b, f, i, u and a size in bytes."""

    code: str
    align: bool = False
    copy: bool = False

    def __setstate__(self, state: tuple[object, ...]) -> None:
        if state[1] == ">":
            raise ValueError("a big-endian number")


class Ignored:
    """Stands in for an array, whose content no metric needs."""

    def __setstate__(self, state: object) -> None:
        pass


def scalar(kind: Kind, raw: bytes) -> float:
    """Stands in for numpy's function of that name: the number in some bytes."""
    if not re.fullmatch(r"[fiu][248]|[iub]1", kind.code) or len(raw) != int(kind.code[1]):
        raise ValueError(f"{kind.code!r} is no number of {len(raw)} bytes")
    return float(np.frombuffer(raw, "<" + kind.code)[0])


def ignored(*arguments: object) -> Ignored:
    """Stands in for numpy's `_reconstruct`."""
    return Ignored()


ALLOWED: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    **{("builtins", kind.__name__): kind for kind in (dict, list, tuple, set, frozenset, int, float, bool, str)},
    ("numpy", "dtype"): Kind,
    ("numpy", "ndarray"): Ignored,
    **{(f"numpy.{core}.multiarray", "scalar"): scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): ignored for core in ("core", "_core")},
}
"""(module, name) in a pickle -> what it may become."""
