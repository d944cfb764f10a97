"""What can be done with the network that a search or a training keeps, from Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oche.api.inference import Prediction, Segmented, predict, predict_arrays, segment, segment_arrays
from oche.api.int8 import export
from oche.data import Data
from oche.data.contract import Contract
from oche.data.reading.pixels import channels_last
from oche.data.reading.signals import one_signal
from oche.errors import UserError
from oche.run import Run
from oche.training.export import FORMATS, Deployed, load_network

Array = NDArray[np.generic] | Tensor
"""Images as numbers: (H, W), (H, W, C) or (C, H, W), or several of one size with an axis in front of these, (N, H, W, C).

Signals are (C, L), (L,) of one channel, or (N, C, L)."""


@dataclass(frozen=True, repr=False)
class Kept:
    """A run and the network in its folder. Without one, all of this raises UserError, which says how to train one."""

    run: Run

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.run.path)!r})"

    @property
    def contract(self) -> Contract:
        """What the network must be told with every image: size, channels, the rule for values, class names."""
        return load_network(self.run).contract

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, labels or numbers, in the order of the outputs."""
        return load_network(self.run).classes

    def network(self) -> torch.nn.Module:
        """The trained network, a plain module: images (B, C, H, W) in [0, 1] -> scores (B, classes), or (B, classes, H, W).

        Signals are (B, C, 1, L), as they are.
        """
        loaded = load_network(self.run)
        return Deployed(loaded.network, loaded.augment.mean, loaded.augment.std).eval()

    def predict(
        self,
        images: str | Path | Array | Sequence[str | Path] | Sequence[Array],
        out: str | Path | None = None,
        *,
        device: str = "auto",
    ) -> list[Prediction] | list[Segmented] | list[Tensor]:
        """Predictions for image files and folders, or for arrays, one for each image; see `oche.predict` and `oche.segment`.

        Arrays hold the values that image files have, such as 0 to 255, and meet the same rule. A network for masks writes overlays and
        masks of files to `out`, the folder `predictions` of the run by default; of arrays it returns the masks, (H, W) class numbers.
        """
        loaded, given = load_network(self.run), _listed(images)
        arrays = [one for one in given if not isinstance(one, str | Path)]
        paths = [one for one in given if isinstance(one, str | Path)]
        if arrays and paths:
            raise UserError("These images are paths and arrays at once; predict the ones after the others.")
        segments = loaded.space.task == "segment"
        if out is not None and (arrays or not segments):
            raise UserError("`out` is for pictures of masks of image files: leave it out.")
        if arrays:
            values = [image for one in arrays for image in _images(one, loaded.contract)]
            if segments:
                return segment_arrays(loaded, values, device=device)
            return predict_arrays(loaded, values, device=device)
        if segments:
            where = self.run.file("predictions") if out is None else out
            return list(segment(self.run.path, paths, where, device=device))
        return predict(self.run.path, paths, device=device)

    def export(
        self, formats: Sequence[str] = FORMATS, *, allow_loss: bool = False, data: Data | None = None
    ) -> list[Path]:
        """Writes `.pt2` and ONNX files of the network, and with "int8" among the formats a quantised ONNX file; see `oche.api.int8`.

        `data` are those of the run, where they were handed over as an object.
        """
        return export(self.run, formats, allow_loss=allow_loss, data=data)


def load(run: str | Path) -> Kept:
    """The trained network in a run's folder, with its contract: `oche.load("runs/x").predict("photos/")`. Raises UserError."""
    if not isinstance(run, str | Path):
        raise UserError(f"oche.load takes a run's folder, not {type(run).__name__}; data are read by oche.data.load.")
    found = Kept(Run.open(Path(run)))
    load_network(found.run)  # so that what is damaged is told here
    return found


def _listed(images: object) -> list[str | Path | Array]:
    if isinstance(images, str | Path | np.ndarray | Tensor):
        return [images]
    assert isinstance(images, Sequence)
    return list(images)


def _images(given: Array, contract: Contract) -> list[NDArray[np.generic]]:
    """The images (H, W, C) in an array, of signals (1, L, C)."""
    values = given.detach().cpu().numpy() if isinstance(given, Tensor) else given
    if contract.signal:
        return [one_signal(one, contract, "The array") for one in (values if values.ndim == 3 else values[None])]
    return list(channels_last(values if values.ndim == 4 else values[None], "the array"))
