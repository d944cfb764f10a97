"""What lies beside an exported network: a script that needs onnxruntime, numpy and Pillow alone, and the contract inside the files.

The script does with an image what `oche predict` does, bit for bit up to the network: reading, the rule for values, the crop at the centre
and the antialiased bilinear resizing, of bytes in the fixed-point arithmetic of PyTorch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from oche.data.contract import Contract

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


SCRIPT = '''\
"""Predicts with model.onnx, which lies beside this file: python predict.py [model_int8.onnx] IMAGE ...

Signals are .npy files (channels, length). Needs onnxruntime, numpy and Pillow alone.
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps, ImageSequence

try:
    from pillow_heif import register_heif_opener  # not needed but for HEIC
except ImportError:
    pass
else:
    register_heif_opener()

model = sys.argv.pop(1) if sys.argv[1:] and sys.argv[1].endswith(".onnx") else "model.onnx"
session = onnxruntime.InferenceSession(Path(__file__).with_name(model))
contract = json.loads(session.get_modelmeta().custom_metadata_map["contract"])
rule, size, channels = contract["pixels"], contract["size"], contract["channels"]


def main(paths):
    failed = 0
    for path in paths:
        try:
            held = values(Path(path))
            pixels = channelled(scaled(held))
        except Exception as error:
            print(f"{path} cannot be read: {error}", file=sys.stderr)
            failed = 1
            continue
        if odd := strange(held):
            print(f"{path}: {odd}", file=sys.stderr)
        if contract["task"] == "segment":
            name = f"{Path(path).stem}_mask.png"
            picture(painted(pixels)).save(name)
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
    """The values of a file as they are, (H, W, C): (H, W, C) or (C, H, W) of .npy, pages of a TIFF as channels; of signals (1, L, C)."""
    if size[0] == 1:
        array = np.atleast_2d(np.load(path))
        if array.shape != (channels, size[1]):
            sys.exit(f"{path} has the shape {array.shape}; the network takes {(channels, size[1])}")
        return array.T[None]
    if path.suffix.lower() == ".npy":
        array = np.load(path)
        array = array[..., None] if array.ndim == 2 else array
        return array if array.shape[2] in (1, 3, 4) or array.shape[2] < min(array.shape[:2]) else np.moveaxis(array, 0, 2)
    image = Image.open(path)
    if image.format == "TIFF":
        check(image)
        if image.getexif().get(274, 1) != 1:  # mapped into memory, Pillow swaps the sides of turned files wrongly
            image = Image.open(io.BytesIO(path.read_bytes()))
        pages = [(one.size, page(one)) for one in ImageSequence.Iterator(image)]
        if len({side for side, _ in pages}) == 1:
            return np.concatenate([array for _, array in pages], axis=2)
    return page(image)


def check(image):
    """Raises ValueError for a TIFF file of which Pillow gives other values, or fewer channels, than it has."""
    kinds, samples = image.tag_v2.get(339, (1,)), image.tag_v2.get(277, 1)
    bits, alpha = image.tag_v2.get(258, (1,))[0], image.tag_v2.get(338, (0,))[-1] in (1, 2)
    odd = (kinds[0], bits) in ((1, 32), (2, 8), (1, 64), (2, 64)) or samples == 2
    swapped = image.tag_v2.prefix == b"MM" and image.tag_v2.get(259, 1) != 1 and (kinds[0], bits) in ((2, 16), (2, 32), (3, 32))
    if odd or swapped or (samples == 4 and image.tag_v2.get(262) == 2 and not alpha):
        raise ValueError("Pillow cannot give its values as they are: save them as .npy")


def page(image):
    if image.mode.startswith("RGB") and image.tile and "16" in str(image.tile[0][3]):
        raise ValueError("Pillow cuts colours of 16 bits to 8: save them as .npy")
    image, grey = ImageOps.exif_transpose(image), image.mode in ("1", "L", "LA", "La")
    if not image.mode.startswith(("I", "F")):
        clear = image.mode in ("RGBA", "PA", "RGBa") or "transparency" in image.info
        image = image.convert("L" if grey else "RGBA" if channels == 4 and clear else "RGB")
    array = np.array(image)
    return array[..., None] if array.ndim == 2 else array


def scaled(array):
    """Bytes as they are where the network was trained on such, all else as floats by the rule of the training."""
    whole = rule["offset"] == 0 and rule["scale"] == 255 and not rule["depth"].startswith("float")
    unit = rule["offset"] == 0 and rule["scale"] == 1 and 0 <= rule["low"] and rule["high"] <= 1
    if array.dtype == np.uint8 and unit and size[0] > 1:
        return array
    if whole and array.dtype.kind in "ui" and array.max() <= 255:
        return array.astype(np.uint8)
    floats = array.astype(np.result_type(array.dtype, np.float32))
    return ((floats - floats.dtype.type(rule["offset"])) / floats.dtype.type(rule["scale"])).astype(np.float32)


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
