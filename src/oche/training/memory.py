"""Estimates what a training will allocate, before it begins, and refuses one that does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from math import inf

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from oche.base import Batch, Draw, Part
from oche.data import Data
from oche.data.memory import Room, room
from oche.errors import UserError, ran_out
from oche.optim import average
from oche.run import silent
from oche.spaces.cost import cost
from oche.training.evaluate import fitting_batch
from oche.training.train import Training, begin, stream_of

LARGE = 64 * 64
"""Pixels above which fewer images are measured, so that measuring itself fits into memory."""

SIDE = 256
"""Pixels of a side of the corners from which the memory of larger images is foretold."""

COPIES = 5
"""The weights, their gradients, their momentum, and those of the best epoch and of a checkpoint."""

PASSING = 1.2
"""Peak of a step over what its loss keeps for the backward pass: a fifth more passes through."""


def refuse_if_too_large(training: Training, what: str = "This training", option: str = "--batch ") -> float:
    """Returns the bytes that the training needs. Raises UserError where it would not fit into memory, with a batch that does if one does.

    `what` and `option` are how it and its batch are called.
    """
    protocol, device, count = training.protocol, training.fabric.device, training.fabric.world_size
    free = free_room(device)
    left = shared_room(training.fabric, free)
    name, images = option.rstrip(" ="), smaller_images(training.data)
    least: float = cost(training.space, training.genotype).memory * (protocol.batch // count)
    if least <= left:
        least = PASSING * least_kept(lambda: _kept(training, 2, SIDE), training.data.size)
    if least > left:  # so much larger that measuring it might end the process
        raise UserError(
            f"{what} needs more than {gib(least)} with a batch of {protocol.batch}, and {free.bound} leaves {gib(left)}: try {images} or a "
            f"smaller {name}."
        )
    try:
        need = memory_bytes(training, left)
        (short,) = average(training.fabric, [torch.tensor(float(need > left))])
        if short == 0:  # in no process
            return need
        least = memory_bytes(replace(training, protocol=replace(protocol, batch=2 * count)), left)
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise UserError(
            f"{what} does not fit into the {gib(free.bytes)} that {free.bound} leaves: try a smaller {name} than "
            f"{protocol.batch}, or {images.rstrip(',')}."
        ) from None
    share = protocol.batch // count
    fits = count * (2 + int((0.8 * left - least) / max(need - least, 1.0) * (share - 2))) if left > least else 0
    smaller = f"{option}{fits}" if 2 <= fits < protocol.batch else images.rstrip(",")
    raise UserError(
        f"{what} needs about {gib(need)} with a batch of {protocol.batch}, and {free.bound} leaves {gib(left)}: try {smaller}."
    )


def memory_bytes(training: Training, left: float = inf) -> float:
    """Peak memory of a step or of an evaluation, whichever takes more, and what lasts.

    What a loss keeps is measured on batches of 16 and 32, 2 and 4 for large images, fewer where those do not fit into the `left` bytes, and
    extrapolated to a process's share of the batch.
    """
    training = replace(training, run=None, listener=silent, protocol=replace(training.protocol, compile=False))
    size, share = training.data.size, training.protocol.batch // training.fabric.world_size
    few, small, large = twice(lambda batch: _kept(training, batch), 16 if size[0] * size[1] <= LARGE else 2, left)
    per_image = (large - small) / few
    step = PASSING * max(0.0, small + per_image * (share - few))
    priced = cost(training.space, training.genotype)
    scoring = PASSING * priced.memory * fitting_batch(size)
    return max(step, scoring) + COPIES * 4 * priced.parameters


def kept_bytes(loss: Callable[[], Tensor], parameters: Iterable[nn.Parameter]) -> float:
    """Bytes that autograd keeps of a loss, each storage counted once and the parameters' not at all."""
    storages: dict[int, int] = {p.untyped_storage().data_ptr(): 0 for p in parameters}
    alive: list[
        Tensor
    ] = []  # a kernel's buffer goes back to its pool, and is used again, when the tensor that was lent is gone

    def pack(t: Tensor) -> Tensor:
        alive.append(t)
        storages.setdefault(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes())
        return t.detach()  # itself, where it is the result of what keeps it, would keep all that for ever

    eager = torch.compiler.set_stance("force_eager")  # no program is made for batches of these sizes
    with eager, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        held = loss()
    del held
    alive.clear()
    return float(sum(storages.values()))


def twice(kept: Callable[[int], float], few: int, left: float) -> tuple[int, float, float]:
    """(images, the bytes that they keep, the bytes that twice as many keep), of `few` images or as many as `left` bytes have room for.

    A control group ends a process that takes too much: unlike `ulimit`, it leaves nothing to catch.
    """
    images = few if few <= 2 or PASSING * few * kept(2) <= left else 2
    small, large = kept(images), kept(2 * images)
    while images < few and PASSING * 2 * large <= left:
        images, small, large = 2 * images, large, kept(4 * images)
    return images, small, large


def least_kept(kept: Callable[[], float], size: tuple[int, int]) -> float:
    """The bytes that two images of that size keep, from what their corners of `SIDE` pixels do; 0 for images that are measured whole.

    Two photographs alone may keep more than there is.
    """
    height, width = size
    if height * width <= 4 * SIDE * SIDE:
        return 0.0
    return kept() * height * width / (min(height, SIDE) * min(width, SIDE))


def corner(batch: Batch, side: int | None) -> Batch:
    """The images' corners of so many pixels, and those of their masks; None leaves them whole."""
    targets = batch.targets[..., :side, :side] if batch.targets.dim() == 3 else batch.targets
    return Batch(batch.images[..., :side, :side], targets)


def smaller_images(data: Data) -> str:
    """What to try where images take too much, as part of a sentence that goes on with "or"."""
    if data.things != "images":
        return f"shorter {data.things},"
    side = min(data.size)
    if side <= 64:
        return "a smaller network, such as --set space.channels=8,"
    return f"smaller images, such as --set data.size={224 if side > 448 else 64},"


def free_room(device: torch.device) -> Room:
    """What a new allocation could get: the accelerator's memory, or this process's."""
    return Room(float(torch.cuda.mem_get_info(device)[0]), str(device)) if device.type == "cuda" else room()


def shared_room(fabric: Fabric, free: Room) -> float:
    """Bytes for each process. The mean of what the processes see, since all of them have to measure and to decide the same."""
    here = free.bytes / (fabric.world_size if fabric.device.type == "cpu" else 1)
    (left,) = average(fabric, [torch.tensor(here, dtype=torch.float64)])
    return float(left)


def gib(size: float) -> str:
    """Bytes in words."""
    return f"{size / 2**30:.1f} GiB"


def _kept(training: Training, batch: int, side: int | None = None) -> float:
    """What the loss of a step on so many images keeps, or on their corners of `side` pixels."""
    fabric, protocol = training.fabric, training.protocol
    training = replace(training, protocol=replace(protocol, batch=batch * fabric.world_size))
    state, task = begin(training), training.task.smoothed(protocol.label_smoothing)
    network, given = state.network.train(), corner(stream_of(training).at(0), side)
    draw = Draw(training.seed, 0, "train", part=Part(fabric.global_rank, fabric.world_size))

    def loss() -> Tensor:
        with fabric.autocast():
            drops = network.drops(given.images, draw, protocol.drop_path)
            outputs, auxiliary = network.trunk(given.images, draw, drops)
        main = task.loss(outputs.float(), given.targets)
        return main if auxiliary is None else main + protocol.auxiliary * task.loss(auxiliary.float(), given.targets)

    return kept_bytes(loss, network.parameters())
