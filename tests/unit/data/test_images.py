"""Parts are views of a source, whether the pixels are in memory or decoded on demand."""

from __future__ import annotations

import os
import signal
import warnings

import torch
from torch import Tensor
from torch.testing import assert_close

from oche.data import ArraySource, Data, ImageSet, LazySource
from oche.data.images import in_parallel

IMAGES = torch.arange(6 * 8 * 8 * 3).remainder(256).to(torch.uint8).view(6, 8, 8, 3)
TARGETS = torch.tensor([0, 1, 2, 0, 1, 2])


def lazy() -> ImageSet:
    return ImageSet(LazySource(lambda i: IMAGES[i], workers=3), TARGETS, torch.arange(6))


def test_a_subset_of_a_subset_is_a_view_of_the_same_source() -> None:
    whole = ImageSet.of(IMAGES, TARGETS)
    part = whole.subset(torch.tensor([5, 3, 1])).subset(torch.tensor([2, 0]))
    assert part.source is whole.source
    images, targets = part.take(torch.tensor([0, 1, 0]))
    assert_close(images, IMAGES[[1, 5, 1]])
    assert targets.tolist() == [1, 2, 1]


def test_lazy_images_come_in_the_order_asked_for() -> None:
    positions = torch.tensor([4, 0, 0, 5, 2])
    for got, expected in zip(lazy().take(positions), ImageSet.of(IMAGES, TARGETS).take(positions), strict=True):
        assert_close(got, expected)


def test_moving_a_part_copies_its_own_images_only() -> None:
    """The meta device stands for an accelerator: nothing can be read back, but shapes and places are right."""
    part = ImageSet.of(IMAGES, TARGETS).subset(torch.tensor([1, 2]))
    moved = part.to("meta")
    assert isinstance(moved.source, ArraySource)
    assert moved.source.images.shape == (2, 8, 8, 3)
    assert {moved.source.images.device.type, moved.targets.device.type} == {"meta"}


def test_moving_to_where_it_is_copies_nothing() -> None:
    part = ImageSet.of(IMAGES, TARGETS)
    assert part.to("cpu").source is part.source


def test_moved_lazy_images_stay_with_their_decoder() -> None:
    part = lazy()
    assert part.to("meta").source is part.source


def test_data_moves_all_parts() -> None:
    part = ImageSet.of(IMAGES, TARGETS)
    data = Data("d", part, part, part, ("a", "b", "c"), 3, (8, 8), (0.0,) * 3, (1.0,) * 3).to("meta")
    for moved in (data.train, data.val, data.test):
        assert isinstance(moved.source, ArraySource)
        assert moved.source.images.device.type == "meta"


def test_a_lazy_source_decodes_nothing_before_it_is_asked() -> None:
    asked: list[int] = []

    def decode(i: int) -> Tensor:
        asked.append(i)
        return IMAGES[i]

    part = ImageSet(LazySource(decode, workers=1), TARGETS, torch.arange(6)).subset(torch.tensor([4, 2]))
    assert not asked
    part.take(torch.tensor([1]))
    assert asked == [2]


def test_a_forked_process_has_threads_of_its_own() -> None:
    assert in_parallel(lambda n: n + 1, range(4), 2) == [1, 2, 3, 4]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's, of forks beside threads
        pid = os.fork()
    if pid == 0:
        signal.alarm(20)  # the parent's threads are not here: waiting for them would never end
        os._exit(in_parallel(lambda n: n + 1, range(4), 2) != [1, 2, 3, 4])
    assert os.waitpid(pid, 0)[1] == 0
