"""The chain of one-dimensional layers, for signals: (channels, length) in the place of (channels, height, width)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from oche.spaces.chain import ChainSpace

SIGNAL_OPS = (
    "skip_connect",
    "residual_3",
    "residual_3_w50",
    "residual_9",
    "ds_conv_3",
    "ds_conv_9",
    "mbconv_k3_e3",
    "mbconv_k5_e6",
    "mbconv_k15_e3",
)

DIAGNOSIS_OPS = (
    "skip_connect",
    *(f"{kind}_conv_{kernel}" for kind in ("sep", "dil") for kernel in (3, 5, 7, 15)),
    "max_pool_3",
    "avg_pool_3",
)
"""The operations of searches for fault diagnosis: those of DARTS cells in one dimension, with longer kernels. `none` is no candidate:
each layer lies on the only path."""


@dataclass(frozen=True)
class SignalSpace(ChainSpace):
    """The chain for signals: kernels and strides lie along time. A signal is an image of height 1.

    The fields are those of the chain. A signal costs its length, not a square of it: the stem keeps all values below 256 (its stride is 2
    below 512, 4 from there on), and kernels are longer. The candidates and these sizes are our choice.
    """

    flat: ClassVar[bool] = True
    large: ClassVar[int] = 256

    name: str = "signal"
    size: tuple[int, int] = (1, 128)
    ops: tuple[str, ...] = SIGNAL_OPS
    stem_kernel: int = 7
