"""`oche export --format int8`: the network as an int8 ONNX file, if it keeps its accuracy."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from oche.api.own_data import data_of
from oche.data import Data
from oche.errors import UserError, unknown
from oche.report.claims import TITLES
from oche.run import Run
from oche.training.evaluate import evaluate
from oche.training.export import FORMATS, OnnxModule, add_to_card, export_network, load_network, says_of, within
from oche.training.quantize import IMAGES, RULES, quantised, unnormalised
from oche.training.timing import latency_of

INT8 = "int8"
MODEL = f"{Run.NETWORK}/model_int8.onnx"

MOST = 1.0
"""Points that an int8 network may lose on test images."""

TRIED = 0.5
"""Points lost on validation images above which the next way to calibrate is tried."""


def export(
    run: Run, formats: Sequence[str] = FORMATS, *, allow_loss: bool = False, data: Data | None = None
) -> list[Path]:
    """Writes the network in these formats, "pt2", "onnx" and "int8". Raises UserError; see `export_network` and `export_int8`."""
    if allow_loss and INT8 not in formats:
        raise UserError("--allow-loss is for --format int8: leave it out.")
    for name in formats:
        if name not in (*FORMATS, INT8):
            raise unknown("export format", name, (*FORMATS, INT8))
    plain = [name for name in formats if name != INT8]
    if INT8 in formats and "onnx" not in plain:
        plain.append("onnx")  # which it is made from
    with run.lock():  # the card is read and written, perhaps beside a search that still compares
        written = export_network(run, plain)
        return [*written, export_int8(run, allow_loss, data)] if INT8 in formats else written


def export_int8(run: Run, allow_loss: bool = False, given: Data | None = None) -> Path:
    """Writes the run's ONNX file, which is there already, as an int8 one, and what that changes into the card.

    `given` are its data where they were handed over as an object. Ranges of activations come from train images; of the ways to read them
    the one that keeps most on validation images is taken. Raises UserError where more than `MOST` points of the metric are lost on test
    images, unless `allow_loss`, or where the file is too large.
    """
    loaded = load_network(run)
    data, fabric, task = data_of(run, loaded, given, "cpu")
    whole = run.file(f"{Run.NETWORK}/model.onnx")
    shape, says = (data.channels, *data.size), says_of(loaded)

    def scored(path: Path, test: bool) -> float:
        return evaluate(OnnxModule(path), data.test if test else data.val, unnormalised(data), fabric, task).value

    with tempfile.TemporaryDirectory() as folder:
        wanted, found = scored(whole, False), dict[str, float]()
        for rule in RULES:
            quantised(whole, data, rule, Path(folder) / f"{rule}.onnx", says)
            found[rule] = scored(Path(folder) / f"{rule}.onnx", False)
            if 100 * (wanted - found[rule]) <= TRIED:
                break
        rule = max(found, key=found.__getitem__)
        path = Path(folder) / f"{rule}.onnx"
        before, after = scored(whole, True), scored(path, True)
        name, lost = TITLES.get(task.metric, task.metric), 100 * (before - after)
        if lost > MOST and not allow_loss:
            raise UserError(
                f"In int8 the network loses {lost:.2f} points of {name} on test images ({100 * before:.2f} -> {100 * after:.2f}), "
                f"more than {MOST:g}: nothing was written; `--allow-loss` writes it all the same."
            )
        for kind in ("size", "int8_size"):
            within(loaded.card, path.stat().st_size, kind)
        sizes = {"before": whole.stat().st_size, "after": path.stat().st_size}
        times = {
            "before": latency_of(whole.read_bytes(), shape).table(),
            "after": latency_of(path.read_bytes(), shape).table(),
        }
        run.write(MODEL, path.read_bytes())
    table = {
        "metric": task.metric,
        "score": {"before": before, "after": after},
        "lost_points": lost,
        "size": sizes,
        "latency": times,
        "calibration": {"images": min(IMAGES, len(data.train)), "part": "train", "rule": rule},
    }
    add_to_card(run, {INT8: table})
    return run.file(MODEL)
