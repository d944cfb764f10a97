"""Tests that need a GPU: `pytest tests/gpu` on a machine that has one; elsewhere they are skipped, and say why."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cuda", help="where tests/gpu runs: cuda, or cuda:1")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The GPU, its products in full single precision."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here: what only a GPU can show is not shown")
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield torch.device(str(request.config.getoption("--device")))
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
