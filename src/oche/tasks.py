"""What is being learned: the loss, the score, and how wide the head must be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor


class Task(Protocol):
    """`loss` is averaged over the batch; `hits` counts right answers, `answers` all that count."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor: ...
    def hits(self, outputs: Tensor, targets: Tensor) -> Tensor: ...
    def answers(self, targets: Tensor) -> int: ...


@dataclass(frozen=True)
class Classify:
    """One class an image: cross-entropy on outputs (B, classes) and targets (B,), optionally with label smoothing."""

    label_smoothing: float = 0.0

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)

    def hits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) == targets).sum()

    def answers(self, targets: Tensor) -> int:
        return len(targets)
