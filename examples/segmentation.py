"""Masks: a network that finds digits in images, searched and tuned in one stage.

python examples/segmentation.py      # writes runs/example-masks
"""

import numpy as np

import oche

found = oche.search(
    data="digits_masks", budget="smoke", out="runs/example-masks",
    settings={"space.channels": 4, "space.layers": 2, "space.levels": 2, "space.ops": ("mbconv_k3_e3", "mbconv_k5_e3")},
)  # fmt: skip
print(f"mean IoU {found.test.metrics['miou']:.1%} of {len(found.classes)} classes")
image = np.zeros((40, 40, 1), dtype=np.uint8)
image[8:30, 18:24] = 255
(mask,) = found.predict(image)
print("class numbers in the mask of a drawn stroke:", np.unique(mask).tolist())
