"""AutoAugment's policy for CIFAR-10 on whole batches where they lie. E. Cubuk et al. CVPR 2019, arXiv 1805.09501.

Each image gets one of 25 pairs of operations; each of the two is done with its own probability, at its own magnitude of 0 to 9. The
operations are Pillow's, on 256 levels, to the level. What leaves the image is filled with grey; shears, shifts and rotations take the
nearest pixel and either direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Step = tuple[str, float, int]
"""(operation, probability, magnitude)"""

CIFAR: tuple[tuple[Step, Step], ...] = (
    (("invert", 0.1, 7), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.5, 8), ("equalize", 0.9, 2)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 5), ("equalize", 0.5, 1)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 7), ("autocontrast", 0.4, 8)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 3)),
    (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalize", 0.2, 8), ("equalize", 0.6, 4)),
    (("color", 0.9, 9), ("equalize", 0.6, 6)),
    (("autocontrast", 0.8, 4), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, 3)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.9, 2), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 8), ("invert", 0.1, 3)),
    (("translate_y", 0.7, 9), ("autocontrast", 0.9, 1)),
)
GREY = 128.0


def augmented(images: Tensor, noise: Tensor) -> Tensor:
    """(B, H, W, C), uint8 or float32 in [0, 1] -> the same type. noise (5, B), uniform: which pair, whether and which way, of each step."""
    x = images.float() if images.dtype == torch.uint8 else (images * 255).round()
    pair = (noise[0] * len(CIFAR)).long().clamp(max=len(CIFAR) - 1)
    for n in (0, 1):
        for number in sorted(set(pair.tolist())):
            name, probability, magnitude = CIFAR[number][n]
            chosen = ((pair == number) & (noise[1 + n] < probability)).nonzero().flatten()
            if len(chosen):
                sign = torch.where(noise[3 + n, chosen] < 0.5, -1.0, 1.0)
                x = x.index_copy(0, chosen, OPERATIONS[name](x[chosen], magnitude / 9 * sign))
    return x.to(torch.uint8) if images.dtype == torch.uint8 else x / 255


# ------------------------------------------------------------------ (B, H, W, C) levels and signed magnitudes (B,) in [-1, 1] -> levels


def shear_x(x: Tensor, m: Tensor) -> Tensor:
    """Up to 0.3 pixels a row."""
    return _moved(x, _matrix(m, b=0.3 * m))


def shear_y(x: Tensor, m: Tensor) -> Tensor:
    """Up to 0.3 pixels a column."""
    return _moved(x, _matrix(m, d=0.3 * m))


def translate_x(x: Tensor, m: Tensor) -> Tensor:
    """Up to 150 / 331 of the width."""
    return _moved(x, _matrix(m, c=150 / 331 * m * x.shape[2]))


def translate_y(x: Tensor, m: Tensor) -> Tensor:
    """Up to 150 / 331 of the height."""
    return _moved(x, _matrix(m, f=150 / 331 * m * x.shape[1]))


def rotate(x: Tensor, m: Tensor) -> Tensor:
    """By up to 30 degrees about the centre, counter-clockwise where positive."""
    angle, (v, u) = -30 * m * math.pi / 180, (x.shape[1] / 2, x.shape[2] / 2)
    cos, sin = angle.cos(), angle.sin()
    return _moved(x, _matrix(m, cos, sin, u - u * cos - v * sin, -sin, cos, v + u * sin - v * cos))


def color(x: Tensor, m: Tensor) -> Tensor:
    """From grey to 1.9 times the colour."""
    return _blend(_luma(x), x, m)


def contrast(x: Tensor, m: Tensor) -> Tensor:
    """About the mean of the grey image."""
    mean = (_luma(x).mean((1, 2, 3), keepdim=True) + 0.5).floor()
    return _blend(mean, x, m)


def brightness(x: Tensor, m: Tensor) -> Tensor:
    """From black."""
    return _blend(torch.zeros_like(x), x, m)


def sharpness(x: Tensor, m: Tensor) -> Tensor:
    """From the image smoothed by a 3x3 kernel, but for its border."""
    kernel = torch.tensor([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]], device=x.device).expand(x.shape[3], 1, 3, 3) / 13
    smooth = (F.conv2d(x.permute(0, 3, 1, 2), kernel, groups=x.shape[3]) + 0.5).floor().clamp(0, 255)
    soft = x.clone()
    soft[:, 1:-1, 1:-1] = smooth.permute(0, 2, 3, 1)
    return _blend(soft, x, m)


def posterize(x: Tensor, m: Tensor) -> Tensor:
    """Keeps 8 to 4 bits."""
    unit = 2.0 ** (8 - (8 - 4 * m.abs()).round())[:, None, None, None]
    return (x / unit).floor() * unit


def solarize(x: Tensor, m: Tensor) -> Tensor:
    """Inverts the levels from a threshold on, 256 to 0."""
    return torch.where(x < (256 - 256 * m.abs())[:, None, None, None], x, 255 - x)


def invert(x: Tensor, m: Tensor) -> Tensor:
    """255 - x."""
    return 255 - x


def autocontrast(x: Tensor, m: Tensor) -> Tensor:
    """Stretches each channel to all levels."""
    low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
    scale = 255 / (high - low).double().clamp_min(1)
    return torch.where(high > low, (x * scale - low * scale + 1e-9).floor().clamp(0, 255).to(x), x)


def equalize(x: Tensor, m: Tensor) -> Tensor:
    """Makes each channel's histogram flat."""
    flat = x.long().permute(0, 3, 1, 2).flatten(2)
    counts = torch.zeros(*flat.shape[:2], 256, dtype=torch.long, device=x.device)
    counts.scatter_add_(2, flat, torch.ones_like(flat))
    last = counts.gather(2, flat.amax(2, keepdim=True))
    step = (flat.shape[2] - last) // 255
    table = (step // 2 + counts.cumsum(2) - counts) // step.clamp_min(1)
    new = table.clamp(max=255).gather(2, flat)
    return torch.where(step > 0, new, flat).view(x.permute(0, 3, 1, 2).shape).permute(0, 2, 3, 1).to(x)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
    "rotate": rotate,
    "color": color,
    "contrast": contrast,
    "brightness": brightness,
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": solarize,
    "invert": invert,
    "autocontrast": autocontrast,
    "equalize": equalize,
}


def _matrix(
    m: Tensor,
    a: Tensor | float = 1.0,
    b: Tensor | float = 0.0,
    c: Tensor | float = 0.0,
    d: Tensor | float = 0.0,
    e: Tensor | float = 1.0,
    f: Tensor | float = 0.0,
) -> Tensor:
    """(B, 2, 3) double: where an output pixel comes from, x' = a x + b y + c, y' = d x + e y + f."""
    zero = torch.zeros_like(m, dtype=torch.float64)
    return torch.stack([zero + value for value in (a, b, c, d, e, f)], 1).view(-1, 2, 3)


def _moved(x: Tensor, matrix: Tensor) -> Tensor:
    """The nearest source pixel of each, grey where there is none."""
    height, width = x.shape[1:3]
    down, right = (torch.arange(n, device=x.device, dtype=torch.float64) + 0.5 for n in (height, width))
    grid = torch.stack(
        [right.expand(height, width), down[:, None].expand(height, width), torch.ones_like(right).expand(height, width)]
    )
    source = (matrix @ grid.flatten(1)).floor().long()  # (B, 2, H W)
    limit = torch.tensor([width, height], device=x.device)[None, :, None]
    inside = ((source >= 0) & (source < limit)).all(1)
    index = (source[:, 1] * width + source[:, 0]).where(inside, 0)
    taken = x.flatten(1, 2).gather(1, index[:, :, None].expand(-1, -1, x.shape[3]))
    return taken.where(inside[:, :, None], GREY).view(x.shape)


def _luma(x: Tensor) -> Tensor:
    """(B, H, W, 1): ITU-R 601's grey of three channels, the mean of any other number."""
    if x.shape[3] != 3:
        return x.mean(3, keepdim=True).floor()
    weights = torch.tensor([19595.0, 38470.0, 7471.0], device=x.device, dtype=torch.float64)
    return (((x.double() * weights).sum(3, keepdim=True) + 32768) / 65536).floor().to(x)


def _blend(from_: Tensor, x: Tensor, m: Tensor) -> Tensor:
    """from_ + (1 + 0.9 m) (x - from_), clipped, its fraction dropped."""
    factor = (1 + 0.9 * m)[:, None, None, None]
    return (from_ + factor * (x - from_)).clamp(0, 255).floor()
