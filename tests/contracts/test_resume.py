"""Every method: killed and resumed at once in every stage, it ends as an unbroken search does, to the bit."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from contracts.registry import epochs, small
from oche.methods import METHODS
from oche.methods.random_features import random_features
from oche.run import Run
from oche.search.searcher import SearcherLike, as_searcher
from oche.search.state import Problem
from reference.tiny import tiny_problem

MEASURED = {"seconds", "images_per_second", "memory_mib", "checkpoint_share"}
WITH_SUPERNET = [name for name, build in METHODS.items() if as_searcher(build()).method is not None]


class Killed(Exception):
    pass


def run_with_kills(searcher: SearcherLike, problem: Problem, every: int | None) -> int:
    """Carries on until it is done, killed each time after `every` steps; how often."""
    kills = 0
    while True:
        left = [every or -1]

        def listener(event: str, record: Mapping[str, object], left: list[int] = left) -> None:
            left[0] -= event == "step"
            if left[0] == 0:
                raise Killed

        try:
            as_searcher(searcher).run(replace(problem, listener=listener))
            return kills
        except Killed:
            kills += 1
            assert kills < 50, "it does not get ahead"


def flat(tree: object, path: str = "") -> dict[str, object]:
    if isinstance(tree, torch.Tensor):
        return {path: (str(tree.dtype), tuple(tree.shape), tree.detach().contiguous().numpy().tobytes())}
    if isinstance(tree, dict):
        return {k: v for name, leaf in tree.items() for k, v in flat(leaf, f"{path}/{name}").items()}
    if isinstance(tree, list | tuple):
        return {k: v for n, leaf in enumerate(tree) for k, v in flat(leaf, f"{path}/{n}").items()}
    return {path: tree}


def content(run: Run) -> dict[str, object]:
    """All that a run has kept, but for what was measured."""
    found: dict[str, object] = {"log": [{k: v for k, v in r.items() if k not in MEASURED} for r in run.records()]}
    for path in sorted(run.path.rglob("*")):
        name = str(path.relative_to(run.path))
        if path.suffix == ".pt":
            found |= {
                f"{name}{k}": v for k, v in flat(torch.load(io.BytesIO(path.read_bytes()), weights_only=True)).items()
            }
        elif path.suffix == ".json" and name != "digests.json":  # of bytes, where the values are compared
            found[name] = path.read_bytes()
    return found


LONG = {"shapley_nas", "sdarts_adv", "pdarts", "zarts", "darts_ada", "rdarts_pick", "random_search_ws"}
SEARCHES = [
    pytest.param(
        name,
        frozen,
        marks=pytest.mark.slow if (frozen and name != "darts") or name in LONG else (),
        id=name + frozen * "-rf",
    )
    for name in WITH_SUPERNET
    for frozen in (False, True)
    if not (frozen and name.startswith("rf_"))
]


@pytest.mark.parametrize(("name", "frozen"), SEARCHES)
def test_killed_and_resumed_to_the_bit(name: str, frozen: bool, tmp_path: Path) -> None:
    searcher = small(name)
    if frozen:
        searcher = random_features(searcher)
    contents = []
    for folder, every in (("whole", None), ("broken", 3)):
        run = Run.create(tmp_path / folder)
        run.write(Run.CONFIG, b"")
        problem = replace(
            tiny_problem("toy", epochs=max(epochs(name, "toy"), 4), count=16), run=run, checkpoint_every=1
        )
        kills = run_with_kills(searcher, problem, every)
        assert (kills > 0) == (every is not None)
        contents.append(content(run))
    assert contents[0].keys() == contents[1].keys()
    assert [key for key in contents[0] if contents[0][key] != contents[1][key]] == []
