"""How a batch is shared out: no image twice, none left out, and each with the noise that one process would give it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from oche.base import Draw, Part, counted
from oche.data import Augment, AugmentMasks, Stream
from oche.data.augmentation.augment import Augmentation
from oche.data.augmentation.recipes import IMAGENET_JITTER
from oche.errors import UserError
from oche.plan.processes import processes, shared_out
from oche.plan.request import Request, TrainRequest, earlier_share
from oche.plan.resolve import resolve
from oche.schedule import Constant
from oche.spaces.edges import thinned
from oche.spaces.ops import Noise
from reference.tiny import tiny_data, tiny_masks

MEAN, STD = (0.5, 0.5), (0.3, 0.3)
VARIED: tuple[Augmentation, ...] = (
    Augment(MEAN, STD, pad=2, flip=True, cutout=3),
    Augment(MEAN, STD, resized_crop=True, jitter=IMAGENET_JITTER),
    Augment(MEAN, STD, flip=True, policy=True),
)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("augment", VARIED, ids=["crop", "resized", "policy"])
def test_the_ranks_batches_are_one_batch(augment: Augmentation, world: int) -> None:
    images = tiny_data(30).train
    alone = Stream(images, 8, 1, "weights", augment)
    ranks = [Stream(images, 8 // world, 1, "weights", augment, rank=rank, world=world) for rank in range(world)]
    for i in (0, 3, 4):  # 3: across the border of two epochs
        whole, shares = alone.at(i), [stream.at(i) for stream in ranks]
        assert torch.equal(torch.cat([share.images for share in shares]), whole.images)
        assert torch.equal(torch.cat([share.targets for share in shares]), whole.targets)
    seen = torch.cat([stream.positions(i) for stream in ranks for i in range(15)])
    assert torch.equal(seen.bincount(), torch.full((30,), 4)), "over four epochs every image is seen four times"
    assert all(stream.steps_per_epoch == alone.steps_per_epoch for stream in ranks)


def test_masks_are_varied_with_their_images() -> None:
    images = tiny_masks(24).train
    augment = AugmentMasks(MEAN, STD, (8, 8), flip=True)
    alone = Stream(images, 6, 1, "weights", augment).at(1)
    shares = [Stream(images, 3, 1, "weights", augment, rank=rank, world=2).at(1) for rank in (0, 1)]
    assert torch.equal(torch.cat([share.images for share in shares]), alone.images)
    assert torch.equal(torch.cat([share.targets for share in shares]), alone.targets)


def test_noise_inside_of_a_network_is_shared_out() -> None:
    """What falls out, and the operation `noise`: each process has its own images' part of what is drawn for all."""
    x = torch.randn(6, 2, 4, 4, generator=counted(1))
    noise = Noise(1)
    noise.path = "noise"

    def both(draw: Draw, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rate = Constant(0.5)
        return noise(t, draw), thinned(t, rate, draw, "image", True), thinned(t, rate, draw, "values", False)

    whole = both(Draw(3, phase="weight"), x)
    shares = [both(Draw(3, phase="weight", part=Part(rank, 3)), x[2 * rank : 2 * rank + 2]) for rank in range(3)]
    for number, t in enumerate(whole):
        assert torch.equal(torch.cat([share[number] for share in shares]), t)


# ------------------------------------------------------------------ how many processes, and how many images each


def test_a_batch_is_shared_evenly() -> None:
    assert [shared_out(64, n) for n in (1, 2, 8, 32)] == [64, 32, 8, 2]
    assert shared_out(1, 1) == 1
    with pytest.raises(UserError, match=r"A batch of 64 .* 3 processes.*take a batch of 63"):
        shared_out(64, 3)
    with pytest.raises(UserError, match=r"at least two for each: take a batch of 128"):
        shared_out(64, 64)


def test_how_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [processes(None), processes(3)] == [1, 3]
    with pytest.raises(UserError, match="At least one process"):
        processes(0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes(None) == 1, "other launchers set this, too; torchrun alone says TORCHELASTIC_RUN_ID"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert [processes(None), processes(2), processes(8, recorded=True)] == [2, 2, 2]
    with pytest.raises(UserError, match="torchrun started 2 processes and --devices asks for 1"):
        processes(1)


def test_a_batch_that_does_not_fit_is_refused_before_anything_is_searched() -> None:
    for options in ({"devices": 0}, {"devices": -1}):
        with pytest.raises(UserError, match="At least one process"):
            resolve(Request("darts", space="toy", **options))


def test_runs_of_before_counted_a_process_s_images() -> None:
    """A run.toml without `processes` is such a run's: its batch is multiplied once, so that the global batch stays."""
    assert earlier_share(None, "request") == 1
    assert earlier_share({"request": {"devices": 2}, "resolved": {}}, "request") == 2
    assert earlier_share({"training": {"devices": 4}, "resolved": {}}, "training") == 4
    assert earlier_share({"request": {"devices": 2}, "resolved": {"processes": 2}}, "request") == 1


@pytest.mark.parametrize(("edited", "batch"), [(2, 32), (1, 32)])
def test_an_earlier_run_keeps_its_global_batch(edited: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded with two processes and 16 images in each, and carried on with `edited` processes."""
    monkeypatch.setattr("oche.plan.resolve.fabric_for", lambda *given: _alone())
    plan = resolve(Request("darts", space="toy", budget="smoke", compare=0))
    table = plan.table()
    resolved, request = dict(table["resolved"]), dict(table["request"])  # type: ignore[call-overload]
    del resolved["processes"]
    recorded = {**table, "request": {**request, "devices": 2}, "resolved": {**resolved, "batch": 16}}
    again = resolve(Request("darts", space="toy", budget="smoke", compare=0, devices=edited), recorded)
    assert again.batch == batch


def _alone() -> object:
    from reference.together import fabric_of

    return fabric_of(1)


def test_both_requests_have_the_options() -> None:
    assert Request().devices is None
    assert TrainRequest().devices is None
    assert not Request().sync_batch_norm
    assert not TrainRequest().sync_batch_norm
