"""How many objects images show, and where: points in a CSV, density maps or counts beside arrays -> a number for each place of a grid."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oche.data.entries import Fate
from oche.data.images import Data, Identity
from oche.data.marks import Mark, label_text
from oche.data.problems import refuse
from oche.data.reading.files import images_below
from oche.data.reading.folders import folder_fates
from oche.data.reading.found import Filled, Pair, Parts, Wish
from oche.data.reading.listing import filled, of_files
from oche.data.reading.naming import part_of
from oche.data.reading.pixels import centre
from oche.data.reading.texts import text_of
from oche.errors import UserError

POINTS = "points.csv"
"""What the table of points is called in a folder of images: file, x, y."""

NAMES = ("count",)
"""What the one number is called that is said of an image."""

FINE, COARSE, LARGE = 4, 32, 128
"""Pixels of a place's side below so many pixels of the image, and from there on: the resolutions of the last cells of DARTS networks."""

Places = Callable[[int, tuple[int, int], tuple[int, int]], NDArray[np.float64]]
"""(image's number, (H, W) that images are brought to, grid) -> the objects of each place, (rows, columns)."""


def grid_of(size: tuple[int, int], wish: Wish) -> tuple[int, int]:
    """Rows and columns of the places that objects are counted in: a contract's, or by the size of the images."""
    if wish.contract is not None and wish.contract.grid is not None:
        return wish.contract.grid
    side = FINE if min(size) < LARGE else COARSE
    return math.ceil(size[0] / side), math.ceil(size[1] / side)


def of_points(
    points: NDArray[np.float64], shape: tuple[int, int], size: tuple[int, int], grid: tuple[int, int]
) -> NDArray[np.float64]:
    """Points (M, 2) of x and y in an image of `shape` -> how many lie in each place of the window that is left at `size`."""
    rows, columns = centre(*shape, size)
    down = np.floor((points[:, 1] - rows.start) / (rows.stop - rows.start) * grid[0])
    right = np.floor((points[:, 0] - columns.start) / (columns.stop - columns.start) * grid[1])
    down[points[:, 1] == rows.stop] = grid[0] - 1  # on the lower and the right border
    right[points[:, 0] == columns.stop] = grid[1] - 1
    inside = (down >= 0) & (down < grid[0]) & (right >= 0) & (right < grid[1])
    found = np.zeros(grid)
    np.add.at(found, (down[inside].astype(int), right[inside].astype(int)), 1.0)
    return found


def of_map(density: NDArray[np.generic], size: tuple[int, int], grid: tuple[int, int]) -> NDArray[np.float64]:
    """A density map (H, W) -> its sum over each place of the window that is left at `size`; a pixel belongs to the place of its centre."""
    rows, columns = centre(density.shape[0], density.shape[1], size)
    window = density[rows, columns].astype(np.float64)
    found = np.zeros(grid)
    down, right = ((np.arange(n) + 0.5) * g // n for n, g in zip(window.shape, grid, strict=True))
    np.add.at(found, (down.astype(int)[:, None], right.astype(int)[None]), window)
    return found


def placed(found: Filled, places: Mapping[str, Places], size: tuple[int, int], grid: tuple[int, int]) -> Filled:
    """The images that were read, with targets (N, rows columns) in the place of theirs, which their digests tell of."""
    sets, identities = {}, {}
    for part, one in found.sets.items():
        rows = [places[part](i, size, grid).ravel() for i in range(len(one))]
        targets = torch.from_numpy(np.stack(rows).astype(np.float32))
        sets[part] = replace(one, targets=targets)
        if part in found.identities:
            identities[part] = _with_targets(found.identities[part], targets)
    return replace(found, sets=sets, identities=identities, grid=grid)


def _with_targets(identity: Identity, targets: Tensor) -> Identity:
    def mark(i: int) -> Mark:
        own, target = identity.mark(i), targets[i]
        whole = blake2b(own.whole.encode() + target.numpy().tobytes(), digest_size=6).hexdigest()
        return Mark(whole, own.image, label_text(target, ()))

    return Identity(identity.names, mark)


# ------------------------------------------------------------------ arrays


def array_places(
    name: str, arrays: Mapping[str, Pair], images: Mapping[str, NDArray[np.generic]], wish: Wish
) -> tuple[dict[str, Places], dict[str, Tensor], bool]:
    """From counts (N,) or density maps (N, H, W) beside images: what places objects, the counts (N, 1), and True for maps.

    Raises:
        UserError: other shapes, numbers below 0 or not finite, counts alone where a network was trained to tell places.
    """
    places, counts, kinds = dict[str, Places](), dict[str, Tensor](), set[bool]()
    for part, (_, given) in arrays.items():
        y, shape = np.squeeze(given) if given.ndim == 4 else given, images[part].shape[:3]
        mapped = y.shape == shape
        if y.dtype.kind not in "buif" or not (mapped or y.size == len(y) == shape[0]):
            raise UserError(
                f"{name} ({part} labels) have shape {given.shape} and type {given.dtype}; to count takes counts (N,), or density maps "
                f"(N, H, W) of the images' size {shape}."
            )
        if not np.isfinite(y.astype(np.float64)).all() or y.min() < 0:
            raise UserError(f"{name} ({part} labels) hold numbers below 0, NaN or infinity; a count is 0 or more.")
        y = y if mapped else y.reshape(-1, 1, 1)
        kinds.add(mapped)
        counts[part] = torch.from_numpy(y.sum((1, 2), dtype=np.float64).astype(np.float32))[:, None]
        places[part] = _mapped(y) if mapped else _counted(y)
    grid = wish.contract.grid if wish.contract else None
    if len(kinds) > 1 or (grid not in (None, (1, 1)) and kinds == {False}):
        raise UserError(f"{name} has counts where density maps are needed: give maps (N, H, W) for all parts.")
    return places, counts, kinds == {True} and grid != (1, 1)


def _mapped(maps: NDArray[np.generic]) -> Places:
    return lambda i, size, grid: of_map(maps[i], size, grid)


def _counted(counts: NDArray[np.generic]) -> Places:
    return lambda i, size, grid: counts[i].astype(np.float64)


# ------------------------------------------------------------------ folders


def read_points(root: Path, wish: Wish) -> Parts:
    """Images below a folder and the objects in them, one line of `points.csv` each: file (relative to the folder), x and y in pixels.

    An image without a line shows none. Folders train, val and test in it are the parts.

    Raises:
        UserError: all at once, lines of no file or of no number, points outside of their image.
    """
    by_part: dict[str, list[Path]] = {}
    for path in images_below(root):
        first = path.relative_to(root).parts[0] if len(path.relative_to(root).parts) > 1 else ""
        by_part.setdefault(part_of(first) or "train", []).append(path)
    if "train" not in by_part:
        raise UserError(f"{root} holds {POINTS} but no train images; put images beside it, or into a folder train.")
    points = _points(root, {path for paths in by_part.values() for path in paths})
    listings = {part: of_files(paths, alpha=wish.channels == 4) for part, paths in by_part.items()}
    places: dict[str, Places] = {}
    for part, paths in by_part.items():

        def place(
            i: int, size: tuple[int, int], grid: tuple[int, int], paths: list[Path] = paths, part: str = part
        ) -> NDArray[np.float64]:
            height, width, _ = listings[part].head(i).shape
            own = points.get(paths[i], np.zeros((0, 2)))
            if ((own < 0) | (own > (width, height))).any():
                raise UserError(
                    f"{root / POINTS} has a point of {paths[i]} that lies outside of its {width} x {height} pixels."
                )
            return of_points(own, (height, width), size, grid)

        places[part] = place

    def fill(train: Tensor) -> Filled:
        found = filled(listings, root.name, wish, train=train)
        height, width = found.sets["train"].take(torch.zeros(1, dtype=torch.int64))[0].shape[1:3]
        grid = grid_of((height, width), wish)
        return placed(found, places, (height, width), grid)

    counts = {
        part: torch.tensor([[float(len(points.get(path, ())))] for path in paths]) for part, paths in by_part.items()
    }
    told: tuple[Fate, ...] = folder_fates(
        root, {f"{part} images": paths for part, paths in by_part.items()} | {"points": [root / POINTS]}
    )
    return Parts(root.resolve().name, counts, fill, NAMES, fates=told, layout=f"images and {POINTS}")


def _points(root: Path, images: set[Path]) -> dict[Path, NDArray[np.float64]]:
    """File -> its points (M, 2) of x and y."""
    path, found, wrong = root / POINTS, dict[Path, list[tuple[float, float]]](), list[str]()
    lines = list(csv.reader(text_of(path).splitlines()))
    head = [name.strip().lower() for name in lines[0]] if lines else []
    if not {"file", "x", "y"} <= set(head):
        raise UserError(f"{path} has the columns {', '.join(head) or '(none)'}; expected file, x and y.")
    file, x, y = (head.index(name) for name in ("file", "x", "y"))
    for number, row in enumerate(lines[1:], 2):
        if not any(row):
            continue
        try:
            place, point = root / row[file].strip().replace("\\", "/"), (float(row[x]), float(row[y]))
        except (IndexError, ValueError):
            wrong.append(f"{path}, line {number}: expected a file and two numbers, given {','.join(row)}.")
            continue
        if place not in images:
            wrong.append(f"{path}, line {number}: there is no image {row[file]} in {root}.")
        elif not all(map(math.isfinite, point)):
            wrong.append(f"{path}, line {number}: the point {point} is not finite.")
        else:
            found.setdefault(place, []).append(point)
    refuse(wrong)
    return {place: np.array(points) for place, points in found.items()}


# ------------------------------------------------------------------ what becomes of them


def standardised_counts(data: Data, wish: Wish) -> Data:
    """The places' numbers less the mean of all of them in train, over their standard deviation, or by what a network was trained with."""
    if wish.contract is not None and wish.contract.target_mean is not None and wish.contract.target_std is not None:
        return data.standardised(wish.contract.target_mean, wish.contract.target_std)
    y, places = data.train.targets.double(), data.outputs
    std = float(y.std(correction=0))
    return data.standardised((float(y.mean()),) * places, (std or 1.0,) * places)


def notes_on_counts(data: Data) -> tuple[str, ...]:
    """A sentence about the counts of the train images, before they are standardised."""
    counts = data.train.targets.sum(1).double()
    low, high, mean = (float(f(counts)) for f in (torch.amin, torch.amax, torch.mean))
    assert data.grid is not None
    where = f", in {data.grid[0]}x{data.grid[1]} places" if data.outputs > 1 else ""
    return (f"{low:.4g} to {high:.4g} objects per train image, {mean:.4g} on average{where}.",)
