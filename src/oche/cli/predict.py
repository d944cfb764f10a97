"""What `oche predict` says: a line per image, on stderr what is odd about some, and exit code 1 where some cannot be read."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from math import isnan
from pathlib import Path

import typer

from oche.api.terminal import console
from oche.errors import UserError
from oche.run import Run


def predict_images(run: Path, images: Sequence[Path], out: Path | None, device: str, as_json: bool) -> None:
    """Classifies or segments images with a run's network and prints a line for each, as text or JSON.

    Images that cannot be read are listed on stderr after the others, and the exit code is then 1. Raises UserError for all else.
    """
    from oche.training.export import load_network

    failed: list[str] = []
    segments = load_network(Run.open(run)).space.task == "segment"
    if out is not None and not segments:
        raise UserError("--out is for pictures of masks; this network gives a class for each image, printed here.")
    lines = _segmented(run, images, out, device, failed) if segments else _classified(run, images, device, failed)
    for record, line, odd in lines:
        if as_json:
            print(json.dumps({**record, **({"odd": odd} if odd else {})}))
        else:
            console.print(line, soft_wrap=True)
        if odd:
            print(f"oche: {record['path']} has {odd}.", file=sys.stderr)
    for sentence in failed:
        print(f"oche: {sentence}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


Line = tuple[dict[str, object], str, str]
"""A record for JSON, a line of text, and what is odd about the image."""


def _classified(run: Path, images: Sequence[Path], device: str, failed: list[str]) -> Iterator[Line]:
    from oche.api import inference

    for p in inference.predict(run, images, device=device, failed=failed.append):
        record: dict[str, object] = {"path": str(p.path), "label": p.label, "probability": p.probability}
        if p.values:
            record["values"] = dict(p.values)
        if isnan(p.probability):
            del record["probability"]
            yield record, f"{p.path}  {p.label}", p.odd
        else:
            yield record, f"{p.path}  {p.label}  {p.probability:.1%}", p.odd


def _segmented(run: Path, images: Sequence[Path], out: Path | None, device: str, failed: list[str]) -> Iterator[Line]:
    from oche.api import inference

    for s in inference.segment(run, images, out or run / "predictions", device=device, failed=failed.append):
        record: dict[str, object] = {
            "path": str(s.path),
            "overlay": str(s.overlay),
            "mask": str(s.mask),
            "shares": s.shares,
        }
        said = ", ".join(f"{name} {share:.0%}" for name, share in list(s.shares.items())[:4])
        yield record, f"{s.path}  {said}  {s.overlay}", s.odd
