"""Shared by all tests: one thread, repeatable examples, and the folder of real data where there is one."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

if not torch.cuda.is_available():  # before anything imports Triton, whose interpreter then runs the kernels on the CPU
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # as before; Triton 3.9 warns where nothing is said
torch.set_num_threads(1)  # tensors here are small: more threads make them many times slower

hypothesis.settings.register_profile("house", derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.load_profile("house")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives a slow test time on a busy machine, where the ordinary limit would end it."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(900))


def pytest_collection_finish() -> None:
    """Keeps what is loaded by now out of the collections of garbage, each of which would walk over all of torch for half a second."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """What is frozen when Python ends counts as leaked."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data sets and tables: OCHE_DATA, or `shared/data` beside the repository."""
    folder = Path(os.environ.get("OCHE_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder}; set OCHE_DATA to one")
    return folder


@pytest.fixture
def float64() -> Iterator[None]:
    """Double precision by default, for tests that compare with a second derivation."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


EMPTY = b'<svg xmlns="http://www.w3.org/2000/svg" width="1pt" height="1pt" viewBox="0 0 1 1"></svg>'


@pytest.fixture(autouse=True)
def plots_of_runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the plots in a run's report empty in the short run: they take nine tenths of a small search.

    Slow tests draw them; so do the modules and folders that have a fixture of this name: the tests of the report and whole runs.
    """
    from oche.report import page

    if not request.node.get_closest_marker("slow"):
        monkeypatch.setattr(page, "svg", lambda plot: EMPTY)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the pictures out, which take longer than all the rest."""
    from oche.bench import page

    monkeypatch.setattr(page, "pictures", lambda result: {})
