"""A method is data: a frozen dataclass that says which part sits in which slot. One loop runs them all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from oche.base import Count, Positive, Share
from oche.data import Fractions, Split, Targets, TrueTargets
from oche.errors import UserError
from oche.optim import SGD, Adam, OptimizerFactory
from oche.schedule import Cosine, Schedule, check_rate
from oche.search.bilevel import ArchGradient, FirstOrder
from oche.search.callbacks import Callback
from oche.search.relaxations import Relaxation, Softmax
from oche.search.selection import Selection, TopK
from oche.search.terms import Term
from oche.search.trainable import AllWeights, Trainable
from oche.spaces.edges import EdgeFactory, WeightedSum


@dataclass(frozen=True)
class Method:
    """The slots of a differentiable search; the defaults are first-order DARTS.

    - `relaxation`, `edge`: how alpha becomes op weights, and how an edge uses them.
    - `trainable`: which weights learn.
    - `arch_gradient`, `arch_optimizer`: how alpha steps: after the share `arch_start` of the epochs, every `arch_every` steps,
      before the first weight step of them (`arch_first`) or after the last. With `arch_start=1.0` alpha stays as it began. A gradient that
      looks at the weights' images sees those of the coming weight step; where alpha steps last and `fresh_inner` is false, those of the
      step just taken. `arch_clip` bounds the norm of its gradient.
    - `weight_optimizer`, `weight_lr`, `clip`: how weights step; `lr_by_step` moves the learning rate at every step, not every epoch.
    - `single_level`: weights and alpha step together, from one backward pass of the weights' batch with all terms (SNAS).
    - `split`, `targets`: which training images each of the two sees, and with which labels.
    - `inner_terms`, `outer_terms`, `callbacks`: what is added to the losses, and hooks.
    - `selection`: how the genotype is derived.
    - `space`: settings of the space that come with the method, `{"sharing": "cell"}`, or with it in one space, `{"darts.without":
      ("none",)}`; a budget's and the user's outrank them.
    - `unfit`: spaces that the rule is not made for; such a search is refused with the reason `unfit_why`.
    - `papers`: BibTeX keys, see `oche.methods.papers`.
    """

    name: str = "method"
    relaxation: Relaxation = Softmax()
    edge: EdgeFactory = WeightedSum()
    trainable: Trainable = AllWeights()
    arch_gradient: ArchGradient = FirstOrder()
    arch_optimizer: OptimizerFactory = Adam()
    weight_optimizer: OptimizerFactory = SGD()
    weight_lr: Schedule = Cosine(0.025, 0.001)
    lr_by_step: bool = False
    clip: Positive | None = 5.0
    arch_start: Share = 0.0
    arch_every: Count = 1
    arch_first: bool = True
    fresh_inner: bool = True
    arch_clip: Positive | None = None
    single_level: bool = False
    split: Split = Fractions()
    targets: Targets = TrueTargets()
    inner_terms: tuple[Term, ...] = ()
    outer_terms: tuple[Term, ...] = ()
    callbacks: tuple[Callback, ...] = ()
    selection: Selection = TopK()
    space: Mapping[str, object] = field(default_factory=dict, repr=False)
    unfit: tuple[str, ...] = ()
    unfit_why: str = field(default="", repr=False)
    papers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.arch_every < 1 or not 0 <= self.arch_start <= 1:
            raise UserError(
                f"{self.name}: arch_every must be at least 1 and arch_start a share of the epochs; "
                f"given {self.arch_every} and {self.arch_start}."
            )
        check_rate(self.weight_lr, f"{self.name}: weight_lr")
        if self.single_level and not (isinstance(self.arch_gradient, FirstOrder) and self.arch_first):
            raise UserError(
                f"{self.name} is single-level: alpha steps with the weights, so arch_gradient and arch_first stay as they are."
            )
