"""What lies beside an exported network: a script that needs onnxruntime, numpy and Pillow alone, and the contract inside the files.

The script does with an image what `oche predict` does, bit for bit up to the network: reading, the rule for values, the crop at the centre
and the antialiased bilinear resizing, of bytes in the fixed-point arithmetic of PyTorch. Files are read by copies of the same functions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from oche.data.contract import Contract
from oche.training.source import Gathered

INPUT = (
    "floats (value - offset) / scale as under pixels, (batch, channels, height, width); mean and std are applied inside"
)
OUTPUTS = {
    "classify": "logits (batch, classes): softmax over axis 1 gives probabilities",
    "segment": "logits (batch, classes, height, width): argmax over axis 1 gives the mask",
    "multilabel": "logits (batch, labels): the sigmoid gives each label's probability",
    "count": "density (batch, places): the sum of it times target_std plus target_mean under contract is the number of objects",
    "regress": "numbers (batch, targets): times target_std plus target_mean under contract, where it has them",
}

SCRIPT_NAME = "predict.py"


def metadata(contract: Contract, least: int | None = None) -> dict[str, str]:
    """What the exported files hold beside the network, each value a text: class names, the contract as JSON, input and outputs in words.

    `least` is the least height and width of images, None where they all have the contract's size.
    """
    height, width = contract.size
    return {
        "task": contract.task,
        "classes": json.dumps(list(contract.classes)),
        "contract": json.dumps(contract.plain()),
        "input": INPUT,
        "sizes": f"{height} x {width}"
        if least is None
        else f"any height and width from {least} on; trained at {height} x {width}",
        "normalisation": "inside",
        "outputs": OUTPUTS.get(contract.task, "the network's outputs as they are"),
    }


def add_to_onnx(path: Path, says: Mapping[str, str]) -> None:
    """Writes the metadata into an ONNX file, and takes out what the exporter noted of the source lines, which may be most of the file."""
    import onnx

    model = onnx.load(path)
    for part in (model.graph, *model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        for name in {"doc_string", "metadata_props"} & set(part.DESCRIPTOR.fields_by_name):  # older onnx has fewer
            part.ClearField(name)
    model.graph.ClearField("value_info")  # shapes that follow from those of the inputs
    onnx.helper.set_model_props(model, dict(says))
    onnx.save(model, path)


def predict_script() -> str:
    """The text of `predict.py`: `SCRIPT` with `oche.data.reading.files.read_image` in it, and all that it uses."""
    gathered = Gathered(frozenset())
    gathered.add("oche.data.reading.files", "read_image")
    own: list[str] = []
    libraries: list[str] = []
    for line in sorted(gathered.imports | IMPORTS, key=lambda line: (line.startswith("from"), line)):
        (libraries if line.split()[1].split(".")[0] in LIBRARIES else own).append(line)
    reader = "\n\n\n".join(gathered.definitions.values())
    return SCRIPT.replace(READER, "\n".join([*own, "", *libraries, "", "", reader]))


LIBRARIES = ("numpy", "onnxruntime", "PIL")

IMPORTS = {
    *("import json", "import sys", "from pathlib import Path"),
    *("import numpy as np", "import onnxruntime", "from PIL import Image"),
}
"""The imports of `SCRIPT`."""

READER = "# imports, and the functions that read files"
"""The line of `SCRIPT` in whose place they stand."""

SCRIPT = '''\
"""Predicts with model.onnx, which lies beside this file: python predict.py [model_int8.onnx] IMAGE ...

Signals are .npy files (channels, length). Needs onnxruntime, numpy and Pillow alone, for HEIC pillow-heif, too.
"""

from __future__ import annotations

# imports, and the functions that read files


model = sys.argv.pop(1) if sys.argv[1:] and sys.argv[1].endswith(".onnx") else "model.onnx"
session = onnxruntime.InferenceSession(Path(__file__).with_name(model))
contract = json.loads(session.get_modelmeta().custom_metadata_map["contract"])
rule, size, channels = contract["pixels"], contract["size"], contract["channels"]


def main(paths):
    if not paths:
        sys.exit(__doc__)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # names that the terminal has no letters for
    failed, masks = 0, set()
    for path in paths:
        try:
            held = values(Path(path))
            pixels = channelled(scaled(held))
            if contract["task"] == "segment" and Path(path).stem in masks:
                raise ValueError("its mask would have the name of another image's; call the script in another folder")
        except Exception as error:
            print(error if isinstance(error, UserError) else f"{path} cannot be read: {error}", file=sys.stderr)
            failed = 1
            continue
        if odd := "8-bit values, divided by 255 for a network trained on floats" if in_bytes(held) else strange(held):
            print(f"{path}: {odd}", file=sys.stderr)
        if contract["task"] == "segment":
            name = f"{Path(path).stem}_mask.png"
            picture(painted(pixels)).save(name)
            masks.add(Path(path).stem)
            print(path, name)
            continue
        logits = scores(resized(cropped(pixels)))
        if contract["task"] == "multilabel":
            chance = 1 / (1 + np.exp(-logits.astype(np.float64)))
            named = [name for name, p in zip(contract["classes"], chance) if p >= 0.5]
            print(path, ", ".join(named) or "(none)", " ".join(f"{p:.7f}" for p in chance))
            continue
        if contract["task"] == "count":
            places = logits.astype(np.float64) * np.array(contract["target_std"]) + np.array(contract["target_mean"])
            print(path, f"{places.sum():.7g}")
            continue
        if contract["task"] == "regress":
            numbers = logits * np.array(contract.get("target_std", 1.0)) + np.array(contract.get("target_mean", 0.0))
            print(path, " ".join(f"{name}={n:.7g}" for name, n in zip(contract["classes"], numbers)))
            continue
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()  # softmax: probabilities per class
        print(path, contract["classes"][shares.argmax()], f"{shares.max():.7f}")
    sys.exit(failed)


def scores(pixels):
    """The network's outputs for one image (H, W, C) of its size."""
    pixels = pixels / np.float32(255) if pixels.dtype == np.uint8 else pixels
    return session.run(None, {"images": pixels.transpose(2, 0, 1)[None].astype(np.float32)})[0][0]


def picture(mask):
    """The mask with the colours of the training masks as palette, where they had some."""
    image = Image.fromarray(mask)
    if contract["palette"]:
        image.putpalette([value for colour in contract["palette"] for value in colour])
    return image


def values(path):
    """The values of a file as they are, (H, W, C); of signals (1, L, C)."""
    if size[0] == 1:
        array = np.atleast_2d(np.load(path))
        if array.shape != (channels, size[1]):
            raise ValueError(f"it has the shape {array.shape}, the network takes {(channels, size[1])}")
        array = array.T[None]
    else:
        array = read_image(path, channels == 4)
        if min(array.shape[:2]) < 8:
            raise ValueError(f"it has {array.shape[0]} x {array.shape[1]} pixels; 8 x 8 is the least")
    if array.dtype.kind not in "buif":
        raise ValueError(f"it has values of the type {array.dtype}")
    if not np.isfinite(array).all():
        raise ValueError("it has NaN or infinity")
    return array


def scaled(array):
    """Bytes as they are where the network was trained on such, all else as floats by the rule of the training."""
    whole = rule["offset"] == 0 and rule["scale"] == 255 and not rule["depth"].startswith("float")
    if in_bytes(array):
        return array
    if whole and array.dtype.kind in "ui" and 0 <= array.min() and array.max() <= 255:
        return array.astype(np.uint8)
    floats = array.astype(np.result_type(array.dtype, np.float32))
    return ((floats - floats.dtype.type(rule["offset"])) / floats.dtype.type(rule["scale"])).astype(np.float32)


def in_bytes(array):
    """True for the 8-bit values of an image where the network was trained on floats in [0, 1]."""
    unit = rule["offset"] == 0 and rule["scale"] == 1 and 0 <= rule["low"] and rule["high"] <= 1
    return array.dtype == np.uint8 and unit and size[0] > 1


def strange(array):
    """What training never saw of the values, "" for nothing."""
    low, high, first, last = float(array.min()), float(array.max()), rule["low"], rule["high"]
    if high - last > max(abs(last), last - first) * 0.5 and high > rule["offset"] + rule["scale"]:
        return f"values up to {high:g}, where the train images end at {last:g}"
    if first - low > (last - first) * 0.5:
        return f"values down to {low:g}, where the train images begin at {first:g}"
    least = (last - first) / 200
    if abs(low - first) <= least and high - first <= least:
        return f"values up to {high:g} only, where the train images reach {last:g}"
    depth = np.dtype(rule["depth"])
    coarser = array.dtype.kind in "ui" and depth.kind in "ui" and array.dtype.itemsize < depth.itemsize
    if coarser and high <= (last - rule["offset"]) / 8:
        return f"{array.dtype} values up to {high:g}, where the train images are {depth} up to {last:g}"
    return ""


def channelled(array):
    """Grey as colour, colour as grey (ITU-R 601), alpha dropped, as the network wants it."""
    have = array.shape[2]
    if have == channels:
        return array
    if channels not in (1, 3) or have not in (1, 3, 4):
        raise ValueError(f"it has {have} channels, the network takes {channels}")
    if channels == 3:
        return array.repeat(3, 2) if have == 1 else array[..., :3]
    if array.dtype != np.uint8:
        return array[..., :3] @ np.array([[0.299], [0.587], [0.114]], np.float32)
    luma = array[..., :3].astype(np.int32) @ np.array([19595, 38470, 7471])
    return ((luma + 0x8000) >> 16).astype(np.uint8)[..., None]


def painted(array):
    """Class numbers (H, W) for an image of any size, window by window; where two windows overlap each has its half."""
    height, width = array.shape[:2]
    rows, columns = window(height, width)
    mask, down = np.zeros((height, width), np.uint8), 0
    for top in starts(height, rows):
        right = 0
        for left in starts(width, columns):
            best = enlarged(scores(resized(array[top : top + rows, left : left + columns])), (rows, columns)).argmax(0)
            first = (top + down + 1) // 2 if top else 0, (left + right + 1) // 2 if left else 0
            mask[first[0] : top + rows, first[1] : left + columns] = best[first[0] - top :, first[1] - left :]
            right = left + columns
        down = top + rows
    return mask


def starts(extent, length):
    """Where windows of a length begin that cover an extent: the first at its beginning, the last at its end."""
    count = -(-extent // length)
    return [round(i * (extent - length) / max(count - 1, 1)) for i in range(count)]


def enlarged(logits, shape):
    """Bilinear to the shape of a window, without antialiasing: (classes, H, W) -> (classes, *shape)."""
    for axis, new in zip((1, 2), shape):
        old = logits.shape[axis]
        if old != new:
            at = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1).astype(np.float32)
            low = np.floor(at).astype(int)
            share = (at - low)[:, None] if axis == 1 else at - low
            lower, upper = (logits.take(np.minimum(low + step, old - 1), axis) for step in (0, 1))
            logits = lower * (1 - share) + upper * share
    return logits


def window(height, width):
    """Rows and columns of the largest window with the shape of the network's input."""
    by = max(size[0] / height, size[1] / width)
    return max(1, round(size[0] / by)), max(1, round(size[1] / by))


def cropped(array):
    """The largest window with the shape of the network's input, at the centre."""
    height, width = array.shape[:2]
    rows, columns = window(height, width)
    top, left = (height - rows) // 2, (width - columns) // 2
    return array[top : top + rows, left : left + columns]


def resized(array):
    """Antialiased bilinear along both axes; bytes in fixed-point arithmetic, as PyTorch resizes them."""
    for axis in (1, 0):
        old, new = array.shape[axis], size[axis]
        if old == new:
            continue
        scale, reach = old / new, max(old / new, 1.0)
        centre, k = (np.arange(new)[:, None] + 0.5) * scale, np.arange(old)
        low, high = (centre - reach + 0.5).astype(int), (centre + reach + 0.5).astype(int)
        weights = np.where((k >= low) & (k < high), np.maximum(0, 1 - abs((k + 0.5 - centre) / reach)), 0)
        weights /= weights.sum(1, keepdims=True)
        moved = np.moveaxis(array, axis, 0)
        if array.dtype == np.uint8:
            bits = next(b for b in range(22) if int(0.5 + weights.max() * 2 ** (b + 1)) >= 2**15)
            sums = np.tensordot(np.floor(weights * 2**bits + 0.5).astype(np.int64), moved.astype(np.int64), 1)
            moved = ((sums + 2 ** (bits - 1)) >> bits).clip(0, 255).astype(np.uint8)
        else:
            moved = np.tensordot(weights.astype(np.float32), moved, 1)
        array = np.moveaxis(moved, 0, axis)
    return array


if __name__ == "__main__":
    main(sys.argv[1:])
'''
