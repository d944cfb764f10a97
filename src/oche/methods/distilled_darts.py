"""Distillation-boosted search: a teacher's answers are a part of the weights' loss. After a heterogeneous search for counting aphids, 2024.

    L_theta = L_train + weight  mean D(z_T, z_S)
    D       = T^2 KL(softmax(z_T / T) || softmax(z_S / T))  of classes and masks,  |z_T - z_S|^2  of densities, numbers and labels

The teacher T is a rival, trained for `lessons` epochs on the train images before the first step, or the network of a run that is named.
First-order DARTS otherwise; `--space stages` gives each range of depth a cell of its own, and `--task count` a density head.

Of the paper nothing but its title was at hand: a search whose cells differ by stage, distillation, counts of aphids. All else is our
reading, and so are all constants: ResNet-8 (a plain FCN for masks), 10 epochs at a rate that rises to 0.2 and falls, weight 1, T = 2.
Published: no figure was at hand.

Deviations from the paper: not known. The answers are distilled, not features behind a 1x1 convolution, and into the weights alone: alpha
sees its own images as they are. The teacher learns from all train images, alpha's among them.
Deviations from the script of the published numbers: no code is public.
Cost against DARTS: a second forward and backward pass of the weights' batch, one of the teacher without a backward pass, and its training
(a run as the teacher needs none), which the table before a search does not count; a run's checkpoint has the teacher's weights in it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from oche.base import Alpha, Batch, NonNegative, Params, Positive
from oche.errors import UserError, unknown
from oche.genotype import Genotype
from oche.methods.cdarts import divergence
from oche.methods.darts import darts
from oche.run import Run
from oche.schedule import Triangle
from oche.search.callbacks import Callback
from oche.search.method import Method
from oche.search.state import SearchState
from oche.spaces import Space
from oche.spaces.rivals import AUTO, RIVALS
from oche.training.export import load_network
from oche.training.protocols import Protocol
from oche.training.train import Training, retrain

WEIGHT = "distilled_darts/weight/"
USUAL = {"classify": "resnet8", "segment": "plain_fcn"}
"""The teacher that `auto` stands for."""


@dataclass(frozen=True)
class Taught(Callback):
    """As an inner term what the teacher's answers add to the loss; as a callback the teacher's training, before the first step.

    `teacher` is a rival's name, `auto`, or the folder of a run that holds a trained network.
    """

    teacher: str = AUTO
    weight: NonNegative = 1.0
    temperature: Positive = 2.0
    lessons: int = 10

    def on_epoch_start(self, state: SearchState) -> None:
        """Has the teacher's weights in the state's memory; a resumed search has them already, a rehearsal takes zeros for them."""
        if any(name.startswith(WEIGHT) for name in state.memory):
            return
        like = next(state.supernet.parameters())
        if state.problem.rehearsal:
            space, genotype = self.kind(state.space)
            weights = network(space, genotype.to_json()).state_dict()
        else:
            weights = self.trained(state).state_dict()
        for name, t in weights.items():
            kept = torch.zeros_like(t, device=like.device) if t.is_meta else t.detach().to(like.device)
            state.memory[WEIGHT + name] = kept.to(like.dtype) if kept.is_floating_point() else kept

    def __call__(self, state: SearchState, theta: Params, alpha: Alpha, batch: Batch) -> Tensor:
        self.on_epoch_start(state)
        like = next(state.supernet.parameters())
        images, draw = batch.images.to(like.dtype), state.draw("weight")
        own = {n.removeprefix(WEIGHT): t for n, t in state.memory.items() if n.startswith(WEIGHT)}
        space, genotype = self.kind(state.space)
        with state.problem.fabric.autocast():
            said = state.weights.outputs(images, state.op_weights(alpha, draw), draw, theta)
            with torch.no_grad():
                taught = torch.func.functional_call(network(space, genotype.to_json()), own, (images,))
        said, taught = said.to(images.dtype), taught.to(images.dtype)
        if state.problem.data.task in ("classify", "segment"):
            return self.weight * divergence(taught, said, self.temperature)
        lesson: Tensor = (taught - said).square().mean()
        return self.weight * lesson

    def kind(self, space: Space) -> tuple[Space, Genotype]:
        """The teacher's space and genotype, for the images and outputs of the space that is searched. Raises UserError."""
        name = USUAL[space.task] if self.teacher == AUTO else self.teacher
        if name in RIVALS:
            if RIVALS[name].space.task != space.task:
                raise UserError(f"The teacher {name} is not for the space {space.name}: choose {USUAL[space.task]}.")
            return RIVALS[name].network(space)
        if not Path(name).is_dir():
            raise unknown("teacher (a rival, or the folder of a run)", name, [*RIVALS, AUTO])
        loaded = load_network(Run.open(Path(name)))
        told, asked = ((s.inputs, s.outputs, s.size) for s in (loaded.space, space))
        if told != asked:
            raise UserError(
                f"The teacher {name} takes and gives {told} (channels, outputs, size), the search {asked}: train one on the same data."
            )
        return loaded.space, loaded.genotype

    def trained(self, state: SearchState) -> nn.Module:
        """The teacher, in eval mode. Raises UserError for a run whose network normalises images in another way."""
        problem, (space, genotype) = state.problem, self.kind(state.space)
        name = USUAL[space.task] if self.teacher == AUTO else self.teacher
        if name not in RIVALS:
            loaded = load_network(Run.open(Path(name)))
            if (loaded.augment.mean, loaded.augment.std) != (problem.data.mean, problem.data.std):
                raise UserError(f"The teacher {name} was trained on other images: train one on the data of the search.")
            return loaded.network
        protocol = Protocol(self.lessons, problem.batch, Triangle(0.2), auxiliary=0.0, lr_by_step=True)
        lesson = Training(
            space, genotype, problem.data, protocol, problem.seed, alone(problem.fabric), task=problem.task
        )
        usual = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)  # as all trainings are
        try:
            return retrain(lesson)
        finally:
            torch.set_default_dtype(usual)


def alone(fabric: Fabric) -> Fabric:
    """A fabric of this process by itself: each trains the same teacher, from all images, as one process does."""
    if fabric.world_size == 1:
        return fabric
    devices = 1 if fabric.device.index is None else [fabric.device.index]
    return Fabric(accelerator=fabric.device.type, devices=devices, precision=fabric._precision.precision)


@lru_cache(maxsize=4)
def network(space: Space, text: str) -> nn.Module:
    """The teacher of a genotype's JSON without weights, in eval mode."""
    with torch.device("meta"):
        return space.network(Genotype.from_json(text)).eval()


def distilled_darts(teacher: str = AUTO, weight: float = 1.0, temperature: float = 2.0, lessons: int = 10) -> Method:
    """DARTS whose weights learn from a teacher's answers, too.

    `teacher` is a rival, trained for `lessons` epochs first, or a run's folder. A labelled reading.
    """
    if temperature <= 0 or lessons < 1:
        raise UserError(
            f"A teacher needs a temperature above 0 and at least one epoch of lessons; given {temperature} and {lessons}."
        )
    taught = Taught(teacher, weight, temperature, lessons)
    return replace(
        darts(),
        name="distilled_darts",
        inner_terms=(taught,),
        callbacks=(taught,),
        papers=("liu2019darts", "hinton2015distilling"),
    )
