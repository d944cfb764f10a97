"""Times a batch's crops, flips, normalisation and cutout: oche's on the whole batch, against PIL's on one image after another.

    python benchmarks/augment.py --json

Both sides take the same uint8 images from memory and make a float32 batch, as the search of DARTS does with torchvision's transforms on
PIL images (crop of the image padded by 4, flip, to tensor, normalise) and its retraining's cutout; no worker processes on either side.
They run in turn in one process, ten batches at a time; `seconds` are lower deciles a batch, `ratio` is that of PIL to oche: medians would
flatter oche on a busy machine, which interrupts the longer batches of PIL more often. The process first frees a tensor of the size that a
network's layer takes, as any process that trains has done: the system's allocator then keeps memory of a batch's size instead of
returning it at once, from which both sides gain.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from oche.base import counted
from oche.data import Augment, ImageSet, Stream

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
PAD, CUTOUT = 4, 16
BLOCK, TENSOR = 10, 30 * 2**20


def one_by_one(images: np.ndarray, rng: random.Random) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W), image by image."""
    side = images.shape[1]
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    batch = []
    for pixels in images:
        image = ImageOps.expand(Image.fromarray(pixels), PAD)
        left, top = rng.randint(0, 2 * PAD), rng.randint(0, 2 * PAD)
        image = image.crop((left, top, left + side, top + side))
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        tensor.sub_(mean).div_(std)
        y, x = rng.randrange(side), rng.randrange(side)
        mask = np.ones((side, side), np.float32)
        half = CUTOUT // 2
        mask[max(y - half, 0) : min(y + half, side), max(x - half, 0) : min(x + half, side)] = 0.0
        batch.append(tensor.mul_(torch.from_numpy(mask)))
    return torch.stack(batch)


def measure(batch: int, size: int, repeats: int) -> dict[str, object]:
    """Both sides in turn, `repeats` batches of each."""
    pixels = torch.randint(0, 256, (8 * batch, size, size, 3), dtype=torch.uint8, generator=counted(0))
    images = ImageSet.of(pixels, torch.arange(len(pixels)) % 10)
    stream = Stream(images, batch, 0, "weights", Augment(MEAN, STD, pad=PAD, flip=True, cutout=CUTOUT))
    array, rng = pixels.numpy(), random.Random(0)
    seconds: dict[str, list[float]] = {"PIL": [], "oche": []}
    sides: dict[str, Callable[[int], object]] = {
        "PIL": lambda i: one_by_one(array[(i % 8) * batch : (i % 8 + 1) * batch], rng),
        "oche": stream.at,
    }
    torch.empty(TENSOR, dtype=torch.uint8).fill_(1)
    for i in range(0, repeats, BLOCK):
        for name, take in sides.items():
            take(i)  # warms up
            for j in range(i, i + BLOCK):
                started = time.perf_counter()
                take(j)
                seconds[name].append(time.perf_counter() - started)
    typical = {name: statistics.quantiles(values, n=10)[0] for name, values in seconds.items()}
    told = {"ratio": typical["PIL"] / typical["oche"], "seconds": typical["oche"], "against_seconds": typical["PIL"]}
    return {**told, "batch": batch, "size": size, "threads": torch.get_num_threads(), "repeats": repeats}


def main() -> None:
    """Prints the two times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    told = measure(a.batch, a.size, a.repeats)
    if a.json:
        print(json.dumps(told))
        return
    times = f"oche {told['seconds'] * 1e3:.2f} ms, PIL {told['against_seconds'] * 1e3:.2f} ms a batch of {a.batch}"
    print(f"{times}: {told['ratio']:.1f} times faster, {a.threads} thread(s)")


if __name__ == "__main__":
    main()
