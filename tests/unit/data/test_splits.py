"""Splits against their closed form: how many of each class, nothing twice, the same every time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from oche.data import Fractions, ImageSet, halves
from oche.data.splits import stratified
from oche.errors import UserError


def labels(*counts: int) -> Tensor:
    """counts[c] images of each class c, classes mixed."""
    return torch.cat([torch.full((count,), c) for c, count in enumerate(counts)]).flip(0)


def image_set(targets: Tensor) -> ImageSet:
    return ImageSet.of(torch.zeros(len(targets), 8, 8, 1, dtype=torch.uint8), targets)


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
    weights, arch = halves()(image_set(labels(5, 8)), 0)
    assert [int((weights.targets == c).sum()) for c in (0, 1)] == [3, 4]
    assert [int((arch.targets == c).sum()) for c in (0, 1)] == [2, 4]
    assert not set(weights.index.tolist()) & set(arch.index.tolist())


def test_pc_darts_on_imagenet_takes_a_tenth_and_a_fortieth() -> None:
    weights, arch = Fractions(0.1, 0.025)(image_set(labels(400, 800)), 1)
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
    assert len(Fractions(0.7, 0.3)(image_set(labels(10, 10)), 0)[1]) == 6


def test_a_class_too_small_to_split_is_named() -> None:
    with pytest.raises(UserError, match=r"Class 'cat' has 1 images, too few to split into shares of 0.5, 0.5"):
        stratified(labels(10, 1), (0.5, 0.5), 0, "a", ("dog", "cat"))
