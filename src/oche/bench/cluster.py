"""The connection to a Ray cluster, made before a bench has a folder, and what is said where there is none or it refuses."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from oche.errors import UserError

PATIENCE = 5.0
"""Seconds in which a cluster's port has to answer; Ray itself would try for minutes."""


@contextmanager
def cluster(address: str | None, cpus: float, gpus: float) -> Iterator[None]:
    """Connects to the Ray cluster at `address` meanwhile: "local" for one on this machine, else what `ray.init` takes; None is none.

    Raises UserError where there is none, where it refuses, or where it has too little for a trial.
    """
    if address is None:
        yield
        return
    try:
        import ray
    except ImportError:
        raise UserError("A Ray cluster needs Ray: pip install 'oche[ray]'.") from None
    port = re.fullmatch(r"(?:ray://)?\[?([^\]/]+?)\]?:(\d+)", address)
    if port and not _answers(port[1], int(port[2])):
        raise UserError(
            f"There is no Ray cluster at {address!r}: nothing answers there. Start one with `ray start --head --port {port[2]}`, or take "
            "`--address local` for one on this machine."
        )
    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not port:
            raise UserError(f"There is no Ray cluster at {address!r} ({reason}).") from None
        raise UserError(
            f"What answers at {address!r} does not let this process in ({reason}): the token (RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            f"the file ~/.ray/auth_token) and Ray's version, {ray.__version__} here, have to be those of the cluster's head."
        ) from None
    try:
        there = ray.cluster_resources()
        if address == "local" and (cpus > there.get("CPU", 0) or gpus > there.get("GPU", 0)):  # others may grow
            raise UserError(
                f"A trial needs {cpus:g} CPUs and {gpus:g} GPUs; this machine has {there.get('CPU', 0):g} and {there.get('GPU', 0):g}."
            )
        yield
    finally:
        ray.shutdown()


def _answers(host: str, port: int) -> bool:
    """True if something takes a connection there."""
    try:
        socket.create_connection((host, port), PATIENCE).close()
    except OSError:
        return False
    return True
