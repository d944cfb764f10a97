"""What the masks of a set hold, and what becomes of it: which labels are which classes, and masks of class numbers.

Without a word from the user the classes are the labels that occur in the train masks, and 255 is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from oche.data.contract import IGNORED, LabelMap
from oche.data.problems import each
from oche.data.reading.files import GREY, UNREADABLE, misread, opened
from oche.data.reading.labels import IGNORE_NAME, REST, Wanted, mapped
from oche.data.reading.lossy import counted, greys, is_lossy, meant, rounded
from oche.data.reading.tiff import read_pages
from oche.errors import UserError

IGNORE = 255
"""The class number, in memory, of mask pixels that count nowhere."""

COLOUR = 1 << 40
"""Added to the 24 bits of a colour, so that it is no grey value."""

MANY, THIN = 4, 0.05
"""Labels above which it is asked if borders were smoothed, and the share of a label's pixels that begin a block of 2x2 below which it is
a thin line."""

COLOURS = 32
"""Colours that masks may have without a word about what they mean."""

Codes = NDArray[np.int64]


def read_mask(path: Path, colours: bool = False) -> NDArray[np.generic]:
    """A mask file's values, upright: (H, W) of a grey or palette image, (H, W, 3) of a colour one, and with `colours` of a palette image.

    Raises:
        UserError: it cannot be read, or holds several pictures.
    """
    try:
        if path.suffix.lower() == ".npy":
            held = np.asarray(np.load(path, allow_pickle=False))
            return held[..., 0] if held.ndim == 3 and held.shape[-1] == 1 else held
        if misread(path):
            held = read_pages(path)
            return held[..., 0] if held.shape[-1] == 1 else held
        with opened(path) as image:
            if (pictures := int(getattr(image, "n_frames", 1))) > 1:
                raise UserError(
                    f"The mask {path} holds {pictures} pictures; expected one, with a label at every pixel: join them into one."
                )
            return mask_values(ImageOps.exif_transpose(image), colours)
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError(f"The mask {path} cannot be read ({error}); remove or replace it and its image.") from error


def mask_values(image: Image.Image, colours: bool = False) -> NDArray[np.generic]:
    """(H, W) labels of a grey or palette image, (H, W, 3) colours of others, or of a palette too; transparency is dropped."""
    if not (colours and image.mode == "P") and image.mode in ("P", *GREY) and image.mode not in ("LA", "La"):
        return np.asarray(image)
    return np.asarray(image.convert("L" if image.mode in ("LA", "La") else "RGB"))


def palette_of(path: Path) -> tuple[tuple[int, int, int], ...]:
    """The colours of a palette image, by index; () for all else."""
    try:
        with Image.open(path) as image:
            flat = image.getpalette() if image.mode == "P" else None
    except UNREADABLE:
        return ()
    return tuple((r, g, b) for r, g, b in zip(*[iter(flat)] * 3, strict=True)) if flat else ()


def by_colour(paths: Sequence[Path], asked: bool, workers: int) -> tuple[bool, tuple[str, ...]]:
    """True, and why, if palette images are told apart by their colours: where that is `asked`, or one index has several colours."""
    if asked:
        return True, ()
    palettes = [palette_of(path) for path in paths]
    if len({palette for palette in palettes if palette}) < 2:
        return False, ()

    def used(i: int) -> dict[int, tuple[int, int, int]]:
        return {n: palettes[i][n] for n in np.unique(read_mask(paths[i])).tolist() if n < len(palettes[i])}

    meaning: dict[int, tuple[int, int, int]] = {}
    for found in each(used, len(paths), workers):
        for n, colour in found.items():
            if meaning.setdefault(n, colour) != colour:
                one, other = key_of(_colour(meaning[n])), key_of(_colour(colour))
                said = f"(index {n} is {one} in one and {other} in another)"
                return True, (f"The masks' palettes differ {said}, so their colours are the labels.",)
    return False, ()


def codes_of(values: NDArray[np.generic], name: str, grey: bool) -> Codes:
    """(H, W) integers: a label each, or a colour plus `COLOUR`; with `grey`, colours with three equal parts are labels.

    Raises:
        UserError: labels that are not whole, or another shape.
    """
    if values.ndim == 3 and values.shape[-1] in (3, 4):
        red, green, blue = (values[..., i].astype(np.int64) for i in range(3))
        return red if grey else COLOUR | red << 16 | green << 8 | blue
    if values.ndim != 2 or values.dtype.kind not in "buif":
        raise UserError(
            f"The mask {name} has the shape {values.shape}; expected (H, W) labels or (H, W, 3) colours: of a channel per class take the "
            "argmax over them."
        )
    codes = values.astype(np.int64)
    if values.dtype.kind == "f" and not np.array_equal(codes, values):
        raise UserError(f"The mask {name} has labels that are not whole; write class numbers 0, 1, ... into it.")
    return codes


def _colour(parts: tuple[int, int, int]) -> int:
    return COLOUR | parts[0] << 16 | parts[1] << 8 | parts[2]


def key_of(code: int) -> str:
    """A label as text, a colour as #rrggbb."""
    return f"#{code - COLOUR:06x}" if code >= COLOUR else str(code)


def code_of(key: str) -> int:
    """The inverse of `key_of`. Raises UserError for a text that is neither."""
    if not re.fullmatch(r"#[0-9a-f]{6}|-?[0-9]{1,18}", key):
        raise UserError(
            f'{key!r} is no label of a mask; expected a number or "#rrggbb" in data.labels or classes.toml.'
        )
    return COLOUR | int(key[1:], 16) if key.startswith("#") else int(key)


def decided(
    read: Callable[[int], NDArray[np.generic]],
    names: Sequence[str],
    wanted: Wanted | None,
    classes: Sequence[str],
    where: str,
    workers: int,
) -> tuple[tuple[str, ...], LabelMap, tuple[str, ...]]:
    """Classes, the map of labels, and notes, from the train masks: `read(i)` gives one's values, `names` are for messages.

    Raises:
        UserError: fewer than two classes, labels that nothing is said about, instance numbers, too many colours.
    """
    smeared = [i for i, name in enumerate(names) if is_lossy(name)]
    exact = [i for i in range(len(names)) if not is_lossy(names[i])]
    notes: tuple[str, ...] = ()
    if smeared:
        counts = each(lambda n: counted(greys(read(smeared[n]), names[smeared[n]])), len(smeared), workers)
        wanted, said_of_them = meant(np.sum(counts, axis=0), wanted, classes, where)
        notes = (said_of_them,)
    names = [names[i] for i in exact]
    found = each(lambda n: _occurring(codes_of(read(exact[n]), names[n], grey=False)), len(names), workers)
    coloured = any(code >= COLOUR and not _is_grey(code) for codes in found for code in codes)
    if not coloured:
        found = [frozenset(code & 255 if code >= COLOUR else code for code in codes) for codes in found]
    occurring = sorted(frozenset().union(*found))
    if wanted is None:
        _check_unmapped(occurring, found, names, classes, where)
        if len(occurring) > MANY and not classes:
            _check_smeared(
                lambda i: codes_of(read(exact[i]), names[i], not coloured), len(exact), occurring, where, workers
            )
        _check_mixed(found, names, where)
        marked, notes = _ignored(occurring, classes)
        keys = [key_of(code) for code in occurring if code not in marked]
    else:
        said = dict(wanted.entries)
        for key in said.keys() - {REST}:
            code_of(key)
        keys = [key_of(code) for code in occurring if code != IGNORE or str(IGNORE) in said or coloured]
        keys = sorted({*keys, *said}) if smeared else keys
    names_of, labels = mapped(keys, wanted, classes, where)
    if len(names_of) < 2:
        raise UserError(
            f"{where}: the train masks know one class only, {names_of[0] if names_of else 'none'!r}; they must hold labels of two "
            f"classes, and {IGNORE} to ignore a pixel: see data.labels where {IGNORE} marks an object."
        )
    if len(names_of) > IGNORE:
        raise UserError(f"{where}: {len(names_of)} classes are more than the {IGNORE} that masks can have.")
    if labels.entries:
        if not labels.colours and not smeared and str(IGNORE) not in labels.table:
            labels = LabelMap((*labels.entries, (str(IGNORE), IGNORED)))
        if wanted is None:
            shown = ", ".join(keys[:12]) + (", ..." if len(keys) > 12 else "")
            notes += (f"The masks hold {shown}, which became classes 0 to {len(names_of) - 1}.",)
    return names_of, labels, notes


def translated(values: NDArray[np.generic], name: str, labels: LabelMap, classes: int) -> NDArray[np.uint8]:
    """A mask's values -> (H, W) class numbers and `IGNORE`. Raises UserError for a label that is no class."""
    lossy = is_lossy(name) and not labels.colours and bool(labels.entries)
    codes = greys(values, name) if lossy else codes_of(values, name, grey=not labels.colours)
    if not labels.entries:
        strange = codes[(codes != IGNORE) & ((codes < 0) | (codes >= classes))]
        if strange.size:
            raise UserError(
                f"The mask {name} has the label {int(strange.flat[0])}; the {classes} classes are 0 to {classes - 1}, "
                f"and {IGNORE} ignores a pixel."
            )
        return codes.astype(np.uint8)
    known = sorted((code_of(key), IGNORE if n == IGNORED else n) for key, n in labels.entries if _is_label(key))
    froms, tos = np.array([code for code, _ in known]), np.array([n for _, n in known], np.uint8)
    codes = rounded(codes, froms) if lossy else codes
    at = np.searchsorted(froms, codes).clip(max=len(froms) - 1)
    strange = codes[froms[at] != codes]
    if strange.size:
        raise UserError(
            f"The mask {name} has the label {key_of(int(strange.flat[0]))}, which the train masks do not have: "
            "say what it means with data.labels."
        )
    found: NDArray[np.uint8] = tos[at]
    return found


def _occurring(codes: Codes) -> frozenset[int]:
    small = codes.size > 0 and codes.min() >= 0 and codes.max() < 1 << 16  # counting is faster than sorting
    return frozenset((np.flatnonzero(np.bincount(codes.ravel())) if small else np.unique(codes)).tolist())


def _is_grey(code: int) -> bool:
    red, green, blue = code >> 16 & 255, code >> 8 & 255, code & 255
    return red == green == blue


def _is_label(key: str) -> bool:
    return key not in (REST, IGNORE_NAME)


def _ignored(occurring: Sequence[int], classes: Sequence[str]) -> tuple[frozenset[int], tuple[str, ...]]:
    """Labels that count nowhere: 255, unless it must be a class, for what else occurs is 0 or evenly spaced grey."""
    levels = len(occurring)
    if IGNORE in occurring and not classes and levels > 1:
        spaced = [[int(255 * n / (levels - 1) + up) for n in range(levels)] for up in (0.0, 0.5)]
        if list(occurring) in spaced:
            said = "0 and 255 alone" if levels == 2 else f"{levels} evenly spaced greys"
            return frozenset(), (
                f"255 was read as a class, for the masks hold {said}: 255=ignore in data.labels changes that.",
            )
    return frozenset((IGNORE,)), ()


def _check_mixed(found: Sequence[frozenset[int]], names: Sequence[str], where: str) -> None:
    """Raises UserError where 255 marks an object in some masks and 1 in others, so that ignoring 255 would lose objects."""
    labels = frozenset().union(*found)
    if labels != {0, 1, IGNORE} or any({1, IGNORE} <= codes for codes in found):
        return
    ones, full = (next((n for n, codes in zip(names, found, strict=True) if code in codes)) for code in (1, IGNORE))
    raise UserError(
        f"{where} has masks of 0 and 1, such as {ones}, and masks of 0 and 255, such as {full}: say what 255 means, "
        "`--set data.labels=0=ground,1=cell,255=cell` or `255=ignore`."
    )


def _check_unmapped(
    occurring: Sequence[int], found: Sequence[frozenset[int]], names: Sequence[str], classes: Sequence[str], where: str
) -> None:
    """Raises UserError for labels that cannot be class numbers and that nothing was said about."""
    coloured = [code for code in occurring if code >= COLOUR]
    if coloured and (len(coloured) > COLOURS or len(coloured) < len(occurring)):
        name = next(name for name, codes in zip(names, found, strict=True) if any(code >= COLOUR for code in codes))
        raise UserError(
            f"The mask {name} is a colour image, and {where} has masks of {len(coloured)} colours: a mask holds one class number per "
            f"pixel, grey or by palette, or colours that data.labels or classes.toml name (`{key_of(coloured[0])}=road`)."
        )
    if not coloured and occurring and (occurring[0] < 0 or occurring[-1] > IGNORE):
        odd = occurring[0] if occurring[0] < 0 else occurring[-1]
        name = next(name for name, codes in zip(names, found, strict=True) if odd in codes)
        raise UserError(
            f"The mask {name} has the label {odd}, which is no class number but looks like that of an instance (class x 1000 + number) or "
            f"an id: give masks of classes 0, 1, ..., {IGNORE} to ignore, or say what it means (`--set data.labels={odd}=car,...`)."
        )
    if not coloured and not classes and _look_like_instances(found):
        raise UserError(
            f"{where}: the masks number their objects 1 to {occurring[-1] if occurring[-1] != IGNORE else occurring[-2]}, image by image, "
            "as instance masks do: give masks of classes, name the classes in classes.txt if they are such, or merge the objects "
            "(`--set data.labels=0=background,*=object`)."
        )


def _check_smeared(
    mask: Callable[[int], Codes], count: int, occurring: Sequence[int], where: str, workers: int
) -> None:
    """Raises UserError where most labels lie in thin lines only, as the mixed values of a smoothed border do."""

    def counted_in(i: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        codes = np.searchsorted(occurring, mask(i))
        corner = codes[:-1, :-1]
        block = (corner == codes[1:, 1:]) & (corner == codes[1:, :-1]) & (corner == codes[:-1, 1:])
        return (
            np.bincount(codes.ravel(), minlength=len(occurring)),
            np.bincount(corner[block], minlength=len(occurring)),
        )

    pixels, blocks = (np.sum(found, axis=0) for found in zip(*each(counted_in, count, workers), strict=True))
    thin = blocks < THIN * pixels
    if thin.sum() > len(occurring) / 2 and pixels[thin].sum() < pixels.sum() / 2:
        kept = [key_of(code) for code, one in zip(occurring, thin.tolist(), strict=True) if not one]
        shown = ",".join(f"{key}={name}" for key, name in zip(kept, ("ground", "cell", "nucleus"), strict=False))
        raise UserError(
            f"{where}: the masks hold {len(occurring)} labels, of which {int(thin.sum())} are nowhere more than a thin line: their borders "
            f"were smoothed, or are drawn in mixed colours. Save masks without smoothing (by the nearest pixel), or name the labels that "
            f"were meant and leave the others out (`--set data.labels={shown or '0=ground,255=cell'},*=ignore`)."
        )


def _look_like_instances(found: Sequence[frozenset[int]]) -> bool:
    """True if nearly every mask holds 1 to n without a gap, of many different n."""
    counts = [max(codes - {IGNORE}, default=0) for codes in found]
    gapless = [set(range(1, n + 1)) <= codes for n, codes in zip(counts, found, strict=True)]
    different = len(set(counts))
    many = different >= 5 or (different >= 4 and max(counts) >= 8)
    return len(found) >= 5 and sum(gapless) >= 0.9 * len(found) and many
