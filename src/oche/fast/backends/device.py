"""The kernels of an accelerator: Triton's, where Triton is installed and its kernels pass a check against the formula.

`accelerator(device)` tries them once on a small example: kernels that cannot be built or are wrong are never used, and the log says so.
OCHE_KERNELS=off does without.
"""

from __future__ import annotations

import functools
import logging
import subprocess
from dataclasses import dataclass

import torch

from oche.fast.backends.native import Kernels, switched_off

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Triton:
    """The kernels of `triton_rows` and `triton_separable`."""


Backend = Kernels | Triton
"""What computes a node's sums: the compiled library on the CPU, Triton on an accelerator."""


@functools.cache
def accelerator(device: torch.device) -> Triton | None:
    """Triton's kernels if they work on the device (an NVIDIA one); the reason why not is logged once."""
    if device.type != "cuda":
        return None
    if switched_off("OCHE_KERNELS"):
        log.info("kernels are switched off (OCHE_KERNELS): cells run in plain torch")
        return None
    try:
        from triton.errors import TritonError
    except ImportError as error:
        log.warning("Triton is not there, cells run in plain torch: %s", error)
        return None
    try:
        wrong = check(device)
    except (TritonError, RuntimeError, OSError, ValueError, subprocess.SubprocessError) as error:
        log.warning("Triton's kernels cannot be built, cells run in plain torch: %s", str(error)[:500])
        return None
    if wrong:
        log.warning("Triton's kernels are wrong on %s (%s), cells run in plain torch", device, ", ".join(wrong))
    return None if wrong else Triton()


def check(device: torch.device) -> list[str]:
    """Returns the kernels that do not give exactly what the formula gives on tensors of small whole numbers."""
    from oche.fast.backends import triton_rows

    values = [torch.arange(120.0, device=device).reshape(2, 5, 4, 3).permute(0, 3, 1, 2) % m for m in (3, 5)]
    grad, table = values[0] + 1, torch.arange(6.0, device=device).reshape(2, 3)
    wide, column = torch.stack(values), table[:, None, :, None, None]
    mean, variance = triton_rows.moments(values[1], 3)
    moments = torch.stack([mean, variance]).sub(
        torch.stack([values[1].mean((0, 2, 3)), values[1].var((0, 2, 3), False)])
    )
    pairs = {
        "moments": (moments.abs() < 1e-5, torch.ones_like(moments)),
        "weighted": (triton_rows.weighted(values, [3, 3], table, table[0]), (column * wide).sum(0) + column[0]),
        "dots": (
            triton_rows.dots(values, [3, 3], table, grad),
            torch.cat([(grad * (wide - column)).sum((1, 3, 4)), grad.sum((0, 2, 3))[None]]),
        ),
        "maps": (
            torch.stack(triton_rows.maps(values, [3, 3], table, table, table, grad, [True, True])),
            column * (grad + 1 + wide),
        ),
    }
    return [name for name, (found, wanted) in pairs.items() if not bool((found == wanted).all())]
