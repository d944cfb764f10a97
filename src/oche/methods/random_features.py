"""RF-DARTS: Differentiable Architecture Search with Random Features. X. Zhang et al. CVPR 2023, arXiv 2208.08835.

    theta = {gamma, beta of every batch norm};  convolutions stay as drawn;  everything else as in the base method

Skip connections win in plain DARTS because they help the convolutions beside them to train. With the convolutions frozen there
is nothing left to help, and operations are compared by what their features are worth.

Stated by the paper (abstract): only batch norm is trained; RF-DARTS is this on DARTS, RF-PCDARTS on PC-DARTS; the best
run on NAS-Bench-201 reaches 94.36 % on CIFAR-10, the cell known here as NB201_9930.

The paper's body was not at hand: affine batch norm everywhere in the cells (without it nothing could learn), frozen stem convolutions,
PyTorch's initial values and the base method's hyperparameters are our reading. So is the frozen classifier (`classifier=False`),
the literal one; `classifier=True` is the other, and what `--budget quick` takes, by measurement (docs/choose.md).

Deviations from the paper: unknown where its body would tell, see above.
Deviations from the script of the published numbers: no script was published.
Cost against DARTS: the same passes, without a gradient of any convolution's weights.
"""

from __future__ import annotations

from dataclasses import replace

from oche.errors import UserError
from oche.methods.budgets import Budget
from oche.methods.darts import darts
from oche.methods.pcdarts import pcdarts
from oche.search.method import Method
from oche.search.searcher import SearcherLike, around, as_searcher
from oche.search.trainable import BatchNormOnly, Initialiser

_SLOW = {"trainable.classifier": True, "weight_lr.start": 0.5, "arch_start": 0.4, "arch_optimizer.lr": 3e-2}

QUICK = {
    "toy": Budget(60, 64, _SLOW),
    "nb201": Budget(80, 64, {"space.cells": 1, "space.channels": 16, **_SLOW}),
    "darts": Budget(40, 64, {"space.cells": 5, "space.channels": 8, **_SLOW}),
    **dict.fromkeys(("chain", "signal"), Budget(40, 64, {"space.layers": (2, 2, 2), "space.channels": 8, **_SLOW})),
    "sase": Budget(40, 64, {"space.layers": (1, 1, 1), "space.channels": 8, **_SLOW}),
    "grid": Budget(60, 8, {"space.layers": 6, "space.channels": 8, **_SLOW}),
}
"""Our choice: batch norm alone learns slowly, so its rate is higher, the classifier learns too, and alpha waits for features."""


def random_features(
    searcher: SearcherLike,
    *,
    classifier: bool = False,
    stem: bool = False,
    pool_bn: bool = True,
    initialiser: Initialiser = "pytorch",
) -> SearcherLike:
    """Any method with its convolutions frozen at random; the switches are BatchNormOnly's. Raises UserError without a supernet."""
    trainable = BatchNormOnly(classifier=classifier, stem=stem, pool_bn=pool_bn, initialiser=initialiser)
    method = as_searcher(searcher).method
    if method is None:
        raise UserError(f"Random features need a supernet, and {searcher.name} trains none: choose a gradient method.")
    return around(searcher, frozen(method, trainable), f"rf_{searcher.name}")


def frozen(method: Method, trainable: BatchNormOnly) -> Method:
    """The method with only batch norms that learn."""
    papers = (*method.papers, "zhang2023rfdarts")
    return replace(method, name=f"rf_{method.name}", trainable=trainable, papers=papers)


def rf_darts(classifier: bool = False, initialiser: Initialiser = "pytorch") -> Method:
    """First-order DARTS with random features."""
    return frozen(darts(), BatchNormOnly(classifier=classifier, initialiser=initialiser))


def rf_pcdarts(
    K: int = 4, classifier: bool = False, initialiser: Initialiser = "pytorch", normalised: bool = True
) -> Method:
    """PC-DARTS with random features.

    Also the 1/K of the channels that are searched stay as drawn.
    """
    return frozen(pcdarts(K, normalised), BatchNormOnly(classifier=classifier, initialiser=initialiser))
