"""S1 to S4: sub-spaces of the DARTS cell in which plain DARTS fails (Zela et al., ICLR 2020; automl/RobustDARTS)."""

from __future__ import annotations

from dataclasses import dataclass

from oche.spaces.darts import DartsSpace

_SKIP, _MAX, _AVG = "skip_connect", "max_pool_3x3", "avg_pool_3x3"
_SEP3, _DIL3, _DIL5 = "sep_conv_3x3", "dil_conv_3x3", "dil_conv_5x5"


@dataclass(frozen=True)
class S1(DartsSpace):
    """Two candidates per edge, found strongest by an earlier search: a list of its own for every edge."""

    name: str = "s1"
    normal: tuple[tuple[str, ...], ...] = (
        (_SKIP, _DIL3),  # 0 -> 2
        (_SKIP, _DIL5),  # 1 -> 2
        (_SKIP, _DIL5),  # 0 -> 3
        (_SKIP, _SEP3),  # 1 -> 3
        (_SKIP, _DIL3),  # 2 -> 3
        (_MAX, _SKIP),  # 0 -> 4
        (_SKIP, _SEP3),  # 1 -> 4
        (_SKIP, _SEP3),  # 2 -> 4
        (_SKIP, _DIL3),  # 3 -> 4
        (_SKIP, _SEP3),  # 0 -> 5
        (_MAX, _SKIP),  # 1 -> 5
        (_SKIP, _DIL3),  # 2 -> 5
        (_DIL3, _DIL5),  # 3 -> 5
        (_DIL3, _DIL5),  # 4 -> 5
    )
    reduce: tuple[tuple[str, ...], ...] = (
        (_MAX, _AVG),  # 0 -> 2
        (_MAX, _DIL3),  # 1 -> 2
        (_MAX, _AVG),  # 0 -> 3
        (_MAX, _AVG),  # 1 -> 3
        (_SKIP, _DIL5),  # 2 -> 3
        (_MAX, _AVG),  # 0 -> 4
        (_MAX, _SEP3),  # 1 -> 4
        (_SKIP, _DIL3),  # 2 -> 4
        (_SKIP, _DIL5),  # 3 -> 4
        (_MAX, _AVG),  # 0 -> 5
        (_MAX, _AVG),  # 1 -> 5
        (_SKIP, _DIL5),  # 2 -> 5
        (_SKIP, _DIL5),  # 3 -> 5
        (_SKIP, _DIL5),  # 4 -> 5
    )


@dataclass(frozen=True)
class S2(DartsSpace):
    """Skip connection against separable convolution on every edge."""

    name: str = "s2"
    normal: tuple[tuple[str, ...], ...] = ((_SKIP, _SEP3),)
    reduce: tuple[tuple[str, ...], ...] = ((_SKIP, _SEP3),)


@dataclass(frozen=True)
class S3(DartsSpace):
    """S2 and `none`."""

    name: str = "s3"
    normal: tuple[tuple[str, ...], ...] = (("none", _SKIP, _SEP3),)
    reduce: tuple[tuple[str, ...], ...] = (("none", _SKIP, _SEP3),)


@dataclass(frozen=True)
class S4(DartsSpace):
    """Noise against separable convolution: no useful search ends with noise."""

    name: str = "s4"
    normal: tuple[tuple[str, ...], ...] = (("noise", _SEP3),)
    reduce: tuple[tuple[str, ...], ...] = (("noise", _SEP3),)
