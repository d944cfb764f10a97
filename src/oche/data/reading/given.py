"""The images that a prediction is asked for: files named one by one, and all below folders; what is out of reach is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from oche.data.problems import refuse
from oche.data.reading.files import HEIC, SUFFIXES, below, skipped_for


def image_files(given: Sequence[str | Path], failed: Callable[[str], None] | None = None) -> list[Path]:
    """The files named, and the images below the folders named, sorted.

    Names that are missing, folders without images, links that lead nowhere, folders that may not be read and HEIC files without their
    package are told to `failed`, a sentence each. Raises UserError for them, all at once, without `failed` or where nothing is left.
    """
    found: list[Path] = []
    wrong: list[str] = []
    for path in map(Path, given):
        try:
            if path.is_dir():
                found += _in_folder(path, wrong)
            elif path.is_file():
                found.append(path)
            else:
                wrong.append(
                    f"There is no file or folder {str(path)!r} to predict; name image files or folders of them."
                )
        except OSError as error:
            wrong.append(_denied(error, path))
    if failed is None or not found:
        refuse(wrong)
    for sentence in wrong:
        assert failed is not None
        failed(sentence)
    return found


def _in_folder(folder: Path, wrong: list[str]) -> list[Path]:
    found, before = [], len(wrong)
    for path in below(folder, lambda error: wrong.append(_denied(error, folder))):
        reason = skipped_for(path)
        if path.suffix.lower() in HEIC and reason and not path.name.startswith("."):
            wrong.append(f"The image {path} cannot be read: {reason}; `pip install 'oche[heic]'`.")
        elif reason is None and not path.exists():
            wrong.append(f"The link {path} leads nowhere; remove it.")
        elif reason is None:
            found.append(path)
    if not found and len(wrong) == before:
        wrong.append(f"{folder} holds no images; expected files such as {', '.join(sorted(SUFFIXES)[:4])}.")
    return sorted(found)


def _denied(error: OSError, path: Path) -> str:
    return (
        f"{error.filename or path} cannot be read: {error.strerror or error}; change its permissions, or leave it out."
    )
