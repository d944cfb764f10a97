"""The fused forward and backward of a whole cell: same results as `oche.spaces`, a fraction of the time and memory.

`accelerate(supernet)` is all that a forward pass needs; steps ask `packs` for the weights in few tensors.
"""

from __future__ import annotations

from oche.fast.cell import FusedCell, accelerate, coverage
from oche.fast.packs import Pack, leaves_out, packs
from oche.fast.training import ordinary, quicken

__all__ = ["FusedCell", "Pack", "accelerate", "coverage", "leaves_out", "ordinary", "packs", "quicken"]
