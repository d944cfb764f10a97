"""R-DARTS: Understanding and Robustifying Differentiable Architecture Search. A. Zela et al. ICLR 2020, arXiv 1909.09656.

Second-order DARTS collapses where the validation loss is sharp in alpha; a stronger regularisation of the weights keeps it flat.

    l2:  weight decay `strength`, one of 3e-4, 9e-4, 27e-4, 81e-4          (3e-4 is DARTS)
    dp:  every candidate but the identity is lost to an image with probability strength * progress, one of 0, 0.2, 0.4, 0.6   (0 is DARTS)

This is one search at one strength. R-DARTS proper searches at each of the four, three seeds each, trains the cells briefly and keeps
the best on validation images: `oche search rdarts --set method.strength=27e-4 --seeds 3 --pick validation`, once for each strength, and
of the four runs the one with the highest `val_accuracy` among the seeds in its `log.jsonl`: with the same --seed all four hold the same
images back. The supernet's own accuracy cannot choose the strength: it is best where the cell has the most skip connections.

Published and taken from code (automl/RobustDARTS): the strengths, 50 epochs, all else as second-order DARTS. The default strengths, 27e-4
and 0.2, are our choice. DARTS space, CIFAR-10 error 2.95 +- 0.21 % (`l2`, from other papers' tables).

Deviations from the paper: no cutout in the search; there its probability grows with drop path's.
Deviations from the authors' code: drop path grows at every step, not every epoch; else those of `darts_2nd`.
Cost against DARTS: that of the second order; the paper's protocol is 12 searches.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from oche.errors import UserError
from oche.methods.darts import darts_2nd
from oche.optim import SGD
from oche.schedule import Linear
from oche.search.method import Method
from oche.spaces.edges import DropPath


def rdarts(regularisation: Literal["l2", "dp"] = "l2", strength: float | None = None) -> Method:
    """Second-order DARTS, more regularised, at one strength.

    By more weight decay (`l2`) or by drop path (`dp`).
    """
    method = replace(darts_2nd(), name="rdarts", papers=("liu2019darts", "zela2020understanding"))
    if strength is not None and not 0 <= strength < 1:
        raise UserError(
            f"rdarts: strength is a weight decay, or a probability of drop path, in [0, 1); given {strength}."
        )
    if regularisation == "l2":
        return replace(method, weight_optimizer=SGD(weight_decay=27e-4 if strength is None else strength))
    return replace(method, edge=DropPath(rate=Linear(0.0, 0.2 if strength is None else strength)))
