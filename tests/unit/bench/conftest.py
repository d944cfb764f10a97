"""A small matrix and the table that answers for it."""

from __future__ import annotations

import pytest

from oche.bench.matrix import Matrix
from reference.small_bench import ToyTable


@pytest.fixture
def table() -> ToyTable:
    return ToyTable()


@pytest.fixture
def matrix() -> Matrix:
    return Matrix(
        methods=("darts", "pcdarts"),
        spaces=("toy",),
        budgets=("smoke",),
        seeds=3,
        evaluate="table",
        table="toys",
        metrics=("digits/test", "digits/valid"),
        select="digits/valid",
        baselines=("random_sampling",),
    )
