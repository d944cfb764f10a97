"""NAS-Bench-201: all 15,625 cells of the space `nb201`, trained on three data sets (Dong & Yang, ICLR 2020; NATS-Bench).

    DATA/test, DATA/valid          accuracy in percent after 200 epochs, mean over seeds; DATA/test/12 and DATA/valid/12 after 12
    DATA/parameters, DATA/multiply_adds      of the network, in ones, counted as `oche.spaces.cost` counts
    latency/DEVICE                 milliseconds on 27 devices (HW-NAS-Bench, HELP)
    zerocost/DATA/SCORE            naswot, logsynflow, log10_synflow, nregions: scores without training (FreeREA)

with DATA one of cifar10, cifar100, imagenet16-120. `test` is what papers report: CIFAR-10 trained on all 50,000 images and scored on
its test set, the others on `x-test`; `valid` is `x-valid`, for CIFAR-10 after training on 25,000 images. The three compact files are
plain CSV; latency and zero-cost scores are read when first asked for.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oche.errors import UserError
from oche.genotype import Genotype
from oche.run import Run
from oche.run.bounded import parts_of
from oche.spaces.nb201 import NB201_OPS
from oche.tables.official import cells
from oche.tables.tabular import Column, Table

CELLS = len(NB201_OPS) ** 6
LARGEST = 2**28
"""Bytes that a compact file may unpack to."""
MAIN, LATENCY, ZEROCOST = "nb201.csv.gz", "nb201_latency.csv.gz", "nb201_zerocost.csv.gz"
DATA = {"cifar10": "c10", "cifar100": "c100", "imagenet16-120": "in16"}
MEASURES = {  # metric of a data set -> (column, what one unit of it is)
    "valid": ("{}_valid_200_v11", 1.0),
    "test": ("{}_test_200", 1.0),
    "valid/12": ("{}_valid_12", 1.0),
    "test/12": ("{}_test_12", 1.0),
    "parameters": ("{}_params_m", 1e6),
    "multiply_adds": ("{}_flops_m", 1e6),
}
GPUS = tuple(f"{g}_{b}" for g in ("1080ti", "2080ti", "titan_rtx", "titanx", "titanxp") for b in (1, 32, 256))
CPUS = ("gold_6226", "gold_6240", "silver_4114", "silver_4210r")
SMALL = ("essential_ph_1", "eyeriss", "fpga", "pixel2", "pixel3", "raspi4", "samsung_a50", "samsung_s7")
DEVICES = tuple(sorted(GPUS + CPUS + SMALL))
SCORES = {"cifar10": 4, "cifar100": 4, "imagenet16-120": 3}
SCORE_NAMES = ("naswot", "logsynflow", "log10_synflow", "nregions")


def read(folder: Path | None = None) -> Table:
    """The table in `folder`, or in the environment's OCHE_DATA: the folder itself or its `nasbench201`.

    Raises UserError for a file that is missing, truncated, or not of this table.
    """
    place = _place(folder)
    sources = {f"{d}/{m}": (c.format(p), u) for d, p in DATA.items() for m, (c, u) in MEASURES.items()}
    scores = {f"zerocost/{d}/{s}": f"{DATA[d]}_{s}" for d, n in SCORES.items() for s in SCORE_NAMES[:n]}
    latencies = {f"latency/{device}": f"lat_ms_{device}" for device in DEVICES}
    main = Sheet(place / MAIN, ("index", "iso_first_index", *(name for name, _ in sources.values())), named=True)
    latency = Sheet(place / LATENCY, ("index", *latencies.values()))
    zerocost = Sheet(place / ZEROCOST, ("index", *scores.values()))
    columns: dict[str, Column] = {m: partial(main.column, name, unit) for m, (name, unit) in sources.items()}
    columns |= {metric: partial(latency.column, name) for metric, name in latencies.items()}
    columns |= {metric: partial(zerocost.column, name) for metric, name in scores.items()}
    smaller = {metric for metric in columns if metric.endswith(("/parameters", "/multiply_adds"))} | latencies.keys()
    first = main.column("iso_first_index").astype(np.int64)
    return Table("nb201", "nb201", main.strings, columns, tuple(sources), frozenset(smaller), first)


def convert(path: Path, out: Path) -> Path:
    """Writes `out`/nb201.csv.gz from an official download (see `official`), and returns its path.

    The columns `*_valid_200_v11` then hold the download's own version. Isomorphic cells are found by `unique`. Checked on the shipped
    table (the groups) and on synthetic downloads (the rest), for want of a real one. Raises UserError for anything but such a download.
    """
    rows: list[dict[str, str]] = []
    groups: dict[str, int] = {}
    for index, (cell, found) in enumerate(cells(path)):
        values = {"arch_str": cell, "index": str(index), "ops": _digits(cell)}
        values["iso_first_index"] = str(groups.setdefault(unique(cell), index))
        for name, prefix in DATA.items():
            for metric, (column, _) in MEASURES.items():
                values[column.format(prefix)] = f"{found[f'{name}/{metric}']:.6f}"
        rows.append(values)
    if len(rows) != CELLS:
        raise UserError(f"{path} holds {len(rows)} cells, not the {CELLS} of NAS-Bench-201: fetch it again.")
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    Run(out).write(MAIN, gzip.compress("\n".join(lines).encode() + b"\n", mtime=0))
    return out / MAIN


def unique(cell: str) -> str:
    """The function that a cell's last node computes, as text: equal for the cells that the paper calls isomorphic, 6,466 classes.

    The input is 0, `none` is #, a skip connection is its own input, and the terms of a sum are sorted. The paper's classes are finer
    than equality of functions: sums of zeros stay, and sums within sums are sorted as one word, so this spelling is part of the rule.

    >>> unique("|nor_conv_1x1~0|+|none~0|skip_connect~1|") == unique("|skip_connect~0|+|none~0|nor_conv_1x1~1|")
    True
    """
    terms = {0: ["0"]}
    for c in Genotype.parse(cell).groups["cell"]:
        source = "+".join(sorted(terms[c.source]))
        zero, same = c.op == "none" or source == "#", c.op == "skip_connect"
        terms.setdefault(c.target, []).append("#" if zero else source if same else f"({source})@{c.op}")
    return "+".join(sorted(terms[max(terms)]))


# ------------------------------------------------------------------ files


@dataclass(frozen=True, eq=False)
class Sheet:
    """A gzipped CSV file with one row per cell, read when first needed; `named` where its first column is the cell's string."""

    path: Path
    needed: tuple[str, ...]
    named: bool = False

    @property
    def strings(self) -> tuple[str, ...]:
        """The cells' strings."""
        return self._content[0]

    def column(self, name: str, unit: float = 1.0) -> NDArray[np.float64]:
        """(N,) values times `unit`; integers come out as integers where a unit of a million was rounded to ones."""
        values = self._content[1][name]
        return values if unit == 1.0 else np.round(values * unit)

    @cached_property
    def _content(self) -> tuple[tuple[str, ...], Mapping[str, NDArray[np.float64]]]:
        lines = _text(self.path).splitlines()
        header = lines[0].split(",") if lines else []
        missing = [name for name in (*["arch_str"][: self.named], *self.needed) if name not in header]
        if missing:
            raise UserError(
                f"{self.path} has no column {missing[0]!r}: it is not the file of that name, or another version."
            )
        if len(lines) - 1 != CELLS:
            raise UserError(f"{self.path} has {len(lines) - 1} rows; NAS-Bench-201 has {CELLS} cells: fetch it again.")
        try:
            numbers = np.loadtxt(lines[1:], delimiter=",", usecols=[header.index(name) for name in self.needed])
        except ValueError as error:
            raise UserError(f"{self.path} holds something that is no number ({error}): fetch it again.") from None
        if not np.array_equal(numbers[:, 0], np.arange(CELLS)):
            raise UserError(f"{self.path} is not sorted by the column 'index', 0 to {CELLS - 1}: fetch it again.")
        numbers.setflags(write=False)
        at = header.index("arch_str") if self.named else 0
        strings = tuple(line.split(",", at + 1)[at] for line in lines[1:]) if self.named else ()
        if self.named and len(set(strings)) != CELLS:
            raise UserError(f"{self.path} lists a cell twice: fetch it again.")
        return strings, dict(zip(self.needed, numbers.T, strict=True))


def _text(path: Path) -> str:
    try:
        with gzip.open(path) as stream:
            data = b"".join(parts_of(stream, LARGEST))
        if len(data) > LARGEST:
            raise UserError(
                f"{path} unpacks to more than {LARGEST:,} bytes, which this table does not: fetch it again."
            )
        return data.decode("ascii")
    except FileNotFoundError:
        raise UserError(f"There is no file {path}; the table needs it for this metric.") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is truncated or damaged ({error}): fetch it again.") from None


def _place(folder: Path | None) -> Path:
    root = folder or (Path(os.environ["OCHE_DATA"]) if os.environ.get("OCHE_DATA") else None)
    if root is None:
        raise UserError(f"Where is {MAIN}? Give its folder, or name it in the environment's OCHE_DATA.")
    for place in (root, root / "nasbench201"):
        if (place / MAIN).is_file():
            return place
    raise UserError(
        f"There is no {MAIN} in {root} nor in its nasbench201; give the folder that holds it, "
        "or make it with `oche bench convert nb201` from an official download."
    )


def _digits(cell: str) -> str:
    return "".join(str(NB201_OPS.index(c.op)) for c in Genotype.parse(cell).groups["cell"])
