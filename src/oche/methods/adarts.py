"""ADARTS: attention chooses the channels that are searched. Y. Xue, J. Qin. arXiv 2208.00791, 2022.

    a = sigmoid( f(mean over pixels of x) + f(maximum over pixels of x) ),   f: C -> C/2 -> C     every edge has its own f
    x' = a * x,   I = the C/K channels whose a, summed over the batch, is largest
    y = x' (2x2 max pool at stride 2),   y_I = sum_o w_o op_o(x'_I)                               in place, without a shuffle
    w_eo = softmax_o(alpha_eo) softmax over the edges into e's node (beta_e)

First-order DARTS otherwise; the two edges of a node with the largest w stay. The operations see the chosen channels in the order of their
attention, so what stands in an operation's first channel changes from batch to batch, as in the code. f learns with the weights.

Taken from code (xueyunuist/ADARTS @ ec65a32): K=4, f without biases (model_search.py:10-26, 37), alpha and beta held for the first 15 of 80
epochs (train_search.py:30, 155), batch 64, 8 cells of 16 channels, SGD 0.025 -> 0, Adam 6e-4 with weight decay 1e-3, halves of the train
images. NAS-Bench-201: nothing is published for it; the settings are ours. C/K is rounded down; at least one channel is searched, two where
the edge halves the resolution.
Published: DARTS space, CIFAR-10 error 2.46 %, CIFAR-100 17.06 %.

Beside the code, a supernet of 8 cells in float64, its weights copied: logits, the weights' and alpha's gradients agree to rounding.

Deviations from the paper: none known; its text was not at hand beyond what our notes have of it.
Deviations from the script of the published numbers: halves are stratified by class, and alpha's half is walked through epoch by epoch,
where the code draws a fresh batch of it at every step (train_search.py:149); the learning rate of epoch e is the schedule's value at e/80,
where the code steps it first (:117); at odd sizes the pool of what passes by has ceil(H/2) rows.
Cost against DARTS: the same passes, with 1/K of the channels in every operation, and one attention per edge.
"""

from __future__ import annotations

from dataclasses import replace

from oche.methods.budgets import Budget
from oche.methods.darts import NB201_SETTINGS, darts
from oche.optim import Adam
from oche.schedule import Cosine
from oche.search.method import Method
from oche.search.relaxations import EdgeNormalised
from oche.spaces.attention import AttendedChannels

PUBLISHED = {
    "darts": Budget(80, 64, {"space.cells": 8, "space.channels": 16}, "xueyunuist/ADARTS @ ec65a32, train_search.py"),
    "nb201": Budget(50, 64, NB201_SETTINGS, "ours: DARTS's settings of D-X-Y/AutoDL-Projects @ f46486e"),
}
BUDGETS = {"paper": PUBLISHED}


def adarts(K: int = 4) -> Method:
    """ADARTS: attention chooses the 1/K that is searched.

    Alpha and beta are held for the first 15/80 of the epochs.
    """
    return replace(
        darts(),
        name="adarts",
        edge=AttendedChannels(K),
        relaxation=EdgeNormalised(),
        arch_start=15 / 80,
        arch_optimizer=Adam(6e-4),
        weight_lr=Cosine(0.025, 0.0),
        papers=("xue2022adarts",),
    )
