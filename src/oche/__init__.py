"""Differentiable neural architecture search that does not collapse.

    import oche
    found = oche.search("rf_darts", space="nb201", data="digits")
    trained = found.train()
    print(found.genotype, trained.test.accuracy, trained.export())

Names are resolved when first used, so that `import oche` costs nothing and `oche --help` does not wait for torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from oche.errors import UserError
from oche.genotype import Genotype

if TYPE_CHECKING:
    from oche.api.inference import evaluate_run, predict, segment
    from oche.api.kept import Kept, load
    from oche.api.resume import resume
    from oche.api.search import Found, search
    from oche.api.train import Trained, train
    from oche.bench.matrix import Matrix
    from oche.bench.verb import bench
    from oche.methods import METHODS
    from oche.methods.random_features import random_features
    from oche.search.method import Method
    from oche.spaces import SPACES

_HOMES = {
    "Found": "oche.api.search",
    "Trained": "oche.api.train",
    "Matrix": "oche.bench.matrix",
    "bench": "oche.bench.verb",
    "evaluate_run": "oche.api.inference",
    "predict": "oche.api.inference",
    "resume": "oche.api.resume",
    "search": "oche.api.search",
    "segment": "oche.api.inference",
    "train": "oche.api.train",
    "Kept": "oche.api.kept",
    "load": "oche.api.kept",
    "Method": "oche.search.method",
    "METHODS": "oche.methods",
    "random_features": "oche.methods",
    "SPACES": "oche.spaces",
}

__all__ = [
    "METHODS",
    "SPACES",
    "Found",
    "Genotype",
    "Kept",
    "Matrix",
    "Method",
    "Trained",
    "UserError",
    "bench",
    "evaluate_run",
    "load",
    "predict",
    "random_features",
    "resume",
    "search",
    "segment",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'oche' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps `oche.search` and `oche.bench` verbs: importing the folders of these names would bind the names to them."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
