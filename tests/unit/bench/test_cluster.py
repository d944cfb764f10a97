"""What is said of a Ray cluster that is not there, or that refuses; a stand-in takes Ray's place."""

from __future__ import annotations

import socket
import sys
from types import ModuleType
from typing import Any

import pytest

from oche.bench.cluster import cluster
from oche.bench.matrix import Matrix
from oche.bench.runner import run_bench
from oche.errors import UserError


class Ray(ModuleType):
    """Refuses every address, as Ray does where the token is wrong; what it was asked is kept."""

    __version__ = "9.9"

    def __init__(self) -> None:
        super().__init__("ray")
        self.asked: list[str] = []

    def init(self, address: str, **options: object) -> None:
        self.asked.append(address)
        if address != "local":
            raise ConnectionError(f"Failed to connect to Ray cluster at {address}\nand more")

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def shutdown(self) -> None:
        self.asked.append("shutdown")


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    stand_in = Ray()
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    return stand_in


def test_no_address_is_no_cluster(ray: Ray) -> None:
    with cluster(None, 1, 0):
        assert ray.asked == []


def test_a_port_where_nothing_answers_is_told_without_asking_ray(ray: Ray) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]  # bound, and nobody listens
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            with (
                pytest.raises(UserError, match=f"There is no Ray cluster at '{address}': nothing answers"),
                cluster(address, 1, 0),
            ):
                pass
    assert ray.asked == []


def test_a_refused_token_is_not_told_as_no_cluster(ray: Ray, tmp_path: Any) -> None:
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        address = f"127.0.0.1:{head.getsockname()[1]}"
        with (
            pytest.raises(UserError, match=r"does not let this process in .*RAY_AUTH_TOKEN.*9\.9 here"),
            cluster(address, 1, 0),
        ):
            pass
        matrix = Matrix("m", methods=("darts",), spaces=("toy",), data=("digits",), seeds=1, budgets=("smoke",))
        with pytest.raises(UserError, match="does not let this process in"):
            run_bench(matrix, tmp_path / "bench", address=address)
    assert not (tmp_path / "bench").exists(), "a bench that cannot begin leaves no folder"


def test_a_trial_that_this_machine_has_no_room_for(ray: Ray) -> None:
    with pytest.raises(UserError, match="needs 3 CPUs and 1 GPUs; this machine has 2 and 0"), cluster("local", 3, 1):
        pass
    assert ray.asked == ["local", "shutdown"]
    with cluster("local", 2, 0):
        assert ray.asked[-1] == "local"
    assert ray.asked[-1] == "shutdown"


def test_a_bench_is_not_started_by_torchrun(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without torchrun"):
        run_bench(Matrix("m", methods=("darts",)), tmp_path / "bench")
