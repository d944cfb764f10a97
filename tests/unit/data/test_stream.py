"""Streams against a literal loop: epochs one behind the other, cut into batches, dealt to the ranks in turn."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oche.base import counted
from oche.data import Augment, ImageSet, Stream, batches

CLEAN = Augment(mean=(0.0,), std=(1.0,))
NOISY = Augment(mean=(0.0,), std=(1.0,), pad=2, flip=True, cutout=4)


def numbered(count: int) -> ImageSet:
    """Images whose every pixel, and whose target, is their number."""
    numbers = torch.arange(count)
    return ImageSet.of(numbers.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 8, 8, 1).contiguous(), numbers)


def stream(count: int, batch: int, rank: int = 0, world: int = 1, augment: Augment = CLEAN) -> Stream:
    return Stream(numbered(count), batch, seed=5, purpose="weight", augment=augment, rank=rank, world=world)


@given(st.integers(1, 30), st.integers(1, 40), st.integers(1, 3))
def test_batches_are_the_concatenated_permutations_dealt_in_turn(count: int, batch: int, world: int) -> None:
    endless = itertools.chain.from_iterable(
        torch.randperm(count, generator=counted(5, epoch, "weight")).tolist() for epoch in itertools.count()
    )
    for i in range(4):
        for rank in range(world):
            expected = list(itertools.islice(endless, batch))
            assert stream(count, batch, rank, world).at(i).targets.tolist() == expected


@given(st.integers(1, 30), st.integers(1, 40), st.integers(1, 3))
def test_every_epoch_sees_each_image_once(count: int, batch: int, world: int) -> None:
    ranks = [stream(count, batch, rank, world) for rank in range(world)]
    steps = 3 * ranks[0].steps_per_epoch
    seen = [n for i in range(steps) for rank in ranks for n in rank.at(i).targets.tolist()]
    for epoch in range(3):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_ranks_are_disjoint_and_cover() -> None:
    ranks = [set(torch.cat([stream(24, 4, rank, 3).at(i).targets for i in range(2)]).tolist()) for rank in range(3)]
    assert sum(map(len, ranks)) == len(set.union(*ranks)) == 24


def test_images_and_targets_belong_together() -> None:
    batch = stream(40, 7).at(11)
    assert (batch.images[:, 0, 0, 0] * 255).round().long().tolist() == batch.targets.tolist()
    assert batch.images.shape == (7, 1, 8, 8)


def test_any_batch_can_be_had_again_in_any_order() -> None:
    forward = [stream(10, 4, augment=NOISY).at(i) for i in range(8)]
    for i in reversed(range(8)):
        again = stream(10, 4, augment=NOISY).at(i)
        assert torch.equal(again.images, forward[i].images)
        assert torch.equal(again.targets, forward[i].targets)


def test_epochs_purposes_and_seeds_are_ordered_differently() -> None:
    part = numbered(64)
    orders = [
        Stream(part, 64, seed, purpose, CLEAN).at(epoch).targets
        for seed, purpose, epoch in [(0, "weight", 0), (0, "weight", 1), (0, "alpha", 0), (1, "weight", 0)]
    ]
    assert len({tuple(order.tolist()) for order in orders}) == 4


def test_augmentation_differs_by_step_and_rank() -> None:
    part = ImageSet.of(torch.arange(64, dtype=torch.uint8).view(1, 8, 8, 1), torch.tensor([0]))
    images = [Stream(part, 16, 0, "weight", NOISY, rank=r, world=2).at(i).images for i in range(2) for r in range(2)]
    assert len({tuple(some.flatten().tolist()) for some in images}) == 4


@pytest.mark.parametrize(
    ("count", "batch", "world", "steps"), [(10, 5, 1, 2), (11, 5, 1, 3), (3, 8, 1, 1), (10, 2, 3, 2)]
)
def test_steps_per_epoch_rounds_up(count: int, batch: int, world: int, steps: int) -> None:
    assert stream(count, batch, 0, world).steps_per_epoch == steps


def test_evaluation_passes_once_in_order() -> None:
    got = list(batches(numbered(10), 4, NOISY))
    assert [len(batch.targets) for batch in got] == [4, 4, 2]
    assert torch.cat([batch.targets for batch in got]).tolist() == list(range(10))
    assert torch.equal(got[2].images, CLEAN.normalise(numbered(10).take(torch.tensor([8, 9]))[0]))


@pytest.mark.parametrize(("count", "batch", "rank", "world"), [(0, 1, 0, 1), (4, 0, 0, 1), (4, 1, 2, 2), (4, 1, -1, 2)])
def test_impossible_streams_are_refused(count: int, batch: int, rank: int, world: int) -> None:
    with pytest.raises(ValueError, match="expected some images"):
        stream(count, batch, rank, world)
