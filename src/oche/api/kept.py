"""What can be done with the network that a search or a training keeps, from Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from oche.api.inference import Prediction, Segmented, predict, segment
from oche.errors import UserError
from oche.run import Run
from oche.training.export import FORMATS, Deployed, export_network, load_network


@dataclass(frozen=True, repr=False)
class Kept:
    """A run and the network in its folder. Without one, all of this raises UserError, which says how to train one."""

    run: Run

    def network(self) -> torch.nn.Module:
        """The trained network, a plain module: images (B, C, H, W) in [0, 1] -> scores (B, classes), or (B, classes, H, W)."""
        loaded = load_network(self.run)
        return Deployed(loaded.network, loaded.augment.mean, loaded.augment.std).eval()

    def predict(
        self, images: str | Path | Sequence[str | Path], out: str | Path | None = None, *, device: str = "auto"
    ) -> list[Prediction] | list[Segmented]:
        """Predictions for image files and folders, one for each image; of masks overlays and masks are written to `out`.

        `out` is the folder `predictions` of the run by default, and for masks alone. See `oche.predict` and `oche.segment`.
        """
        given = [images] if isinstance(images, str | Path) else images
        if load_network(self.run).space.task == "segment":
            where = self.run.file("predictions") if out is None else out
            return list(segment(self.run.path, given, where, device=device))
        if out is not None:
            raise UserError("`out` is for pictures of masks; this network gives a class for each image: leave it out.")
        return predict(self.run.path, given, device=device)

    def export(self, formats: Sequence[str] = FORMATS) -> list[Path]:
        """Writes `.pt2` and ONNX files of the network."""
        return export_network(self.run, formats)
