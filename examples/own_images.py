"""Images of your own: a folder with one subfolder per class, searched, and new images predicted.

python examples/own_images.py      # draws photos/ (circles, squares, crosses), writes runs/example-photos
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import oche


def draw(shape: str, rng: np.random.Generator) -> Image.Image:
    """An image of 24x24 pixels with one shape, somewhere, in some colour."""
    image = Image.new("RGB", (24, 24), tuple(rng.integers(0, 90, 3).tolist()))
    pen, colour = ImageDraw.Draw(image), tuple(rng.integers(140, 256, 3).tolist())
    left, top, size = (int(n) for n in rng.integers((2, 2, 8), (9, 9, 13)))
    box = (left, top, left + size, top + size)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.line(box, fill=colour, width=3)
        pen.line((left, top + size, left + size, top), fill=colour, width=3)
    return image


rng = np.random.default_rng(0)
for shape in ("circle", "square", "cross"):
    folder = Path("photos") / shape
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(60):
        draw(shape, rng).save(folder / f"{number:02d}.png")

found = oche.search(
    "rf_darts", space="toy", data="photos", epochs=6, compare=1, compare_seeds=1, rivals="none", out="runs/example-photos",
    settings={"space.channels": 8, "train.epochs": 12},
)  # fmt: skip
print(f"test accuracy {found.test.accuracy:.1%}")
for prediction in found.predict(["photos/circle/00.png", "photos/cross/00.png"]):
    print(prediction.path, prediction.label, f"{prediction.probability:.0%}")
