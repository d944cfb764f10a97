"""Splits against their closed form: how many of each class, nothing twice, the same every time."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from oche.data import SPLITS, Augment, Fractions, ImageSet, Parts, Released, Split, Stream, UntilFreeze, Whole, halves
from oche.data.splits import ByGroup, OneLevel, Redrawn, Swapped, stratified
from oche.errors import UserError
from oche.methods.darts import darts
from oche.search.begin import streams
from reference.tiny import tiny_problem


def labels(*counts: int) -> Tensor:
    """counts[c] images of each class c, classes mixed."""
    return torch.cat([torch.full((count,), c) for c, count in enumerate(counts)]).flip(0)


def image_set(targets: Tensor) -> ImageSet:
    return ImageSet.of(torch.zeros(len(targets), 8, 8, 1, dtype=torch.uint8), targets)


def both(parts: Parts) -> tuple[ImageSet, ImageSet]:
    assert parts.arch is not None
    return parts.weights, parts.arch


def numbers(images: ImageSet) -> set[int]:
    return set(images.index.tolist())


@given(st.lists(st.integers(20, 60), min_size=2, max_size=4), st.integers(5, 45), st.integers(5, 45))
def test_counts_of_every_class_are_the_rounded_cumulative_shares(counts: list[int], first: int, second: int) -> None:
    targets = labels(*counts)
    parts = stratified(targets, (first / 100, second / 100), 3, "test")
    for c, n in enumerate(counts):
        # in whole numbers: floor(n k / 100 + 1/2) = (2 n k + 100) // 200
        bounds = [(2 * n * k + 100) // 200 for k in (0, first, first + second)]
        got = [int((targets[part] == c).sum()) for part in parts]
        assert got == [bounds[1] - bounds[0], bounds[2] - bounds[1]]
    everything = torch.cat(parts)
    assert len(set(everything.tolist())) == len(everything)


def test_shares_of_one_cover_everything() -> None:
    targets = labels(7, 9, 10)
    parts = stratified(targets, (0.6, 0.2, 0.2), 0, "test")
    assert torch.cat(parts).sort().values.tolist() == list(range(26))


def test_halves_of_odd_classes() -> None:
    weights, arch = both(halves()(image_set(labels(5, 8)), 0))
    assert [int((weights.targets == c).sum()) for c in (0, 1)] == [3, 4]
    assert [int((arch.targets == c).sum()) for c in (0, 1)] == [2, 4]
    assert not numbers(weights) & numbers(arch)


def test_pc_darts_on_imagenet_takes_a_tenth_and_a_fortieth() -> None:
    weights, arch = both(Fractions(0.1, 0.025)(image_set(labels(400, 800)), 1))
    assert torch.bincount(weights.targets).tolist() == [40, 80]
    assert torch.bincount(arch.targets).tolist() == [10, 20]


def test_the_seed_and_the_purpose_decide() -> None:
    targets = labels(50, 50)
    first = stratified(targets, (0.5,), 0, "a")[0]
    assert torch.equal(first, stratified(targets, (0.5,), 0, "a")[0])
    assert not torch.equal(first, stratified(targets, (0.5,), 1, "a")[0])
    assert not torch.equal(first, stratified(targets, (0.5,), 0, "b")[0])


def test_one_class_is_split_alike_whatever_the_others_are() -> None:
    alone = stratified(torch.zeros(20, dtype=torch.int64), (0.5,), 0, "a")[0]
    together = stratified(torch.cat([torch.zeros(20), torch.ones(9)]).long(), (0.5,), 0, "a")[0]
    assert together[together < 20].tolist() == alone.tolist()


@pytest.mark.parametrize(("weights", "arch"), [(0.0, 0.5), (0.5, 0.0), (-0.1, 0.5), (0.6, 0.5), (math.nan, 0.5)])
def test_impossible_fractions_are_refused(weights: float, arch: float) -> None:
    with pytest.raises(UserError, match=r"must both be above 0 and add up to at most 1"):
        Fractions(weights, arch)


def test_fractions_that_add_up_to_one_are_allowed() -> None:
    assert len(both(Fractions(0.7, 0.3)(image_set(labels(10, 10)), 0))[1]) == 6
    assert Fractions(0.7).shares == pytest.approx((0.7, 0.3))


def test_a_class_too_small_to_split_is_named() -> None:
    with pytest.raises(UserError, match=r"Class 'cat' has 1 images, too few to split into shares of 0.5, 0.5"):
        stratified(labels(10, 1), (0.5, 0.5), 0, "a", ("dog", "cat"))


# ------------------------------------------------------------------ the arms, S0 to S7

COUNT, EPOCHS = 27, 40
EVERYTHING = set(range(COUNT))


def grouped(counts: tuple[int, ...]) -> ImageSet:
    """counts[g] images of each group g, mixed, all of one class."""
    groups = labels(*counts)
    return ImageSet.of(torch.zeros(len(groups), 8, 8, 1, dtype=torch.uint8), torch.zeros_like(groups), groups)


def parts_of(name: str, epoch: int, seed: int = 4, count: int = COUNT) -> tuple[set[int], set[int]]:
    """Numbers of the weights' and of alpha's images: of odd `count`, in four groups."""
    images = grouped((count - 15, 3, 4, 8))
    parts = SPLITS[name](images, seed, epoch)
    return numbers(parts.weights), numbers(parts.weights if parts.arch is None else parts.arch)


def test_all_arms_have_a_name() -> None:
    kinds = [Fractions, Whole, Redrawn, Fractions, ByGroup, OneLevel, UntilFreeze, Swapped]
    assert [type(split) for split in SPLITS.values()] == kinds


@pytest.mark.parametrize("name", SPLITS)
def test_parts_are_disjoint_or_whole_and_depend_on_seed_and_epoch_alone(name: str) -> None:
    whole = name in ("full", "one_level")
    for epoch in range(4):
        weights, arch = parts_of(name, epoch)
        assert weights | arch == EVERYTHING
        assert (weights & arch == EVERYTHING) if whole else not weights & arch
        assert parts_of(name, epoch) == (weights, arch)
    fixed = name not in ("redrawn", "swap")
    assert (parts_of(name, 0) == parts_of(name, 1)) == fixed
    assert whole or any(parts_of(name, 0) != parts_of(name, 0, seed) for seed in range(5, 9))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("fixed", (14, 13)), ("redrawn", (14, 13)), ("unequal", (22, 5)), ("until_freeze", (14, 13)), ("swap", (14, 13))],
)
def test_an_odd_number_is_divided_without_rest(name: str, sizes: tuple[int, int]) -> None:
    assert tuple(map(len, parts_of(name, 0))) == sizes


def test_redrawn_parts_show_every_image_to_the_weights_about_half_of_the_time() -> None:
    seen = [0] * COUNT
    for epoch in range(EPOCHS):
        for i in parts_of("redrawn", epoch)[0]:
            seen[i] += 1
    assert sum(seen) == 14 * EPOCHS
    assert min(seen) >= EPOCHS / 4  # five standard deviations of a fair coin below its mean
    assert max(seen) <= 3 * EPOCHS / 4


def test_swapped_halves_are_swapped_every_epoch() -> None:
    first, second = parts_of("swap", 0)
    assert parts_of("swap", 1) == (second, first)
    assert parts_of("swap", 2) == (first, second)
    assert parts_of("fixed", 0) == (first, second)


@pytest.mark.parametrize(("share", "count"), [(0.75, 3), (0.5, 2), (0.01, 1), (1.0, 3)])
def test_whole_groups_go_to_one_side(share: float, count: int) -> None:
    images = grouped((12, 3, 4, 8))
    weights, arch = both(ByGroup(share)(images, 1))
    assert weights.groups is not None
    assert arch.groups is not None
    mine, other = set(weights.groups.tolist()), set(arch.groups.tolist())
    assert (len(mine), len(other)) == (count, 4 - count)
    assert not mine & other
    assert len(weights) + len(arch) == 27


@pytest.mark.parametrize("images", [image_set(labels(4, 4)), grouped((5,))])
def test_images_of_no_groups_cannot_be_split_by_them(images: ImageSet) -> None:
    with pytest.raises(UserError, match="A split by group needs images of at least two groups"):
        ByGroup()(images, 0)


def test_camvid_is_split_by_film_and_cityscapes_by_city() -> None:
    """14 of 18 cities, as in the notes' example."""
    images = grouped((3,) * 18)
    weights, _ = both(ByGroup()(images, 0))
    assert weights.groups is not None
    assert len(set(weights.groups.tolist())) == 14


def test_until_the_freeze_it_is_what_stands_before() -> None:
    images = image_set(labels(9, 9))
    for epoch in range(3):
        got, wanted = UntilFreeze(Redrawn())(images, 0, epoch), Redrawn()(images, 0, epoch)
        assert (numbers(got.weights), got.anew) == (numbers(wanted.weights), True)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("split", [Redrawn(), Swapped(), Released()])
def test_an_epoch_shows_its_own_part_whole(split: Split, world: int) -> None:
    """Every image of the epoch's part once, and of those that fill up the last batch twice, over all processes; no other image."""
    images, batch = image_set(torch.zeros(COUNT, dtype=torch.int64)), 4
    steps = -(-len(split(images, 0, 0).weights) // (batch * world))
    for epoch in range(4):
        part = split(images, 0, epoch).weights
        begun = epoch * steps
        streams = [
            Stream(part, batch, 0, f"weights/{epoch}", Augment((0.0,), (1.0,)), "cpu", rank, world, begun)
            for rank in range(world)
        ]
        shown = torch.cat([s.positions(i) for i in range(begun, begun + steps) for s in streams])
        counts = torch.bincount(shown, minlength=len(part))
        assert len(counts) == len(part)
        assert int(counts.sum()) == steps * batch * world
        assert counts.min() >= 1
        assert counts.max() <= 2


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("name", SPLITS)
def test_each_image_is_seen_as_often_as_the_arm_defines(name: str, world: int) -> None:
    """Six epochs of 27 images in batches of 4, all processes together, counted image by image, for the weights and for alpha.

    Parts that stay: each image of them equally often, but for the pass under way. Parts of an epoch: every one of the weights' once, and
    twice as many as fill up the last batch. What is not of a part is never seen.
    """
    problem = tiny_problem("toy", batch=4)
    problem = replace(problem, data=replace(problem.data, train=grouped((COUNT - 15, 3, 4, 8))))
    method, batch, epochs = replace(darts(), split=SPLITS[name]), 4 * world, 6
    steps = -(-len(parts_of(name, 0, problem.seed)[0]) // batch)
    total = {"weights": Counter[int](), "arch": Counter[int]()}
    for epoch in range(epochs):
        begun, parts = epoch * steps, dict(zip(total, parts_of(name, epoch, problem.seed), strict=True))
        both_streams = dict(zip(total, streams(problem, method, epoch, begun), strict=True))
        assert (both_streams["weights"] is both_streams["arch"]) == (name == "one_level")
        for kind, stream in both_streams.items():
            dealt = [replace(stream, rank=rank, world=world) for rank in range(world)]
            seen = Counter(
                s.images.index[n].item() for i in range(begun, begun + steps) for s in dealt for n in s.positions(i)
            )
            assert seen.keys() <= parts[kind]
            assert seen.total() == steps * batch
            if name in ("redrawn", "swap"):
                assert max(seen.values()) - min(seen[i] for i in parts[kind]) <= 1
            total[kind] += seen
    for kind, seen in total.items():
        assert seen.total() == epochs * steps * batch
        if name not in ("redrawn", "swap"):
            often = [seen[i] for i in parts_of(name, 0, problem.seed)[kind == "arch"]]
            assert max(often) - min(often) <= 1
    if name == "swap":
        assert all(epochs / 2 <= total["weights"][i] <= epochs for i in EVERYTHING)
