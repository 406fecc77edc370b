"""Joining a cluster, or starting one on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LOOPBACK = "127.0.0.1"


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Within the context, Ray is connected to a cluster, and is left afterwards.

    Args:
        address: of a running cluster, such as ``auto`` or ``ray://HEAD:10001``; None to start one on this
            machine, which listens on the loopback alone, without dashboard and usage statistics.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ConnectionError: there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # on Linux too: no other machine may join
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # as where nobody chose, of which Ray warns
    import ray

    quiet: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    if address is None:
        ray.init(address="local", include_dashboard=False, _node_ip_address=LOOPBACK, **quiet)
    else:
        ray.init(address=address, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def room_for(threads: int) -> tuple[int, bool]:
    """How many workers of a number of cores the cluster has room for, and whether each gets a GPU.

    All cores of a worker are on one machine. Where there are GPUs, there is one for each worker.

    Raises:
        ValueError: there is no room for one.
    """
    machines = _machines()
    count = _room(machines, threads)
    if count < 1:
        most = _most_cores(machines)
        raise ValueError(f"threads must be at most the {most} cores of a machine, got {threads}")
    return count, any(gpus for _, gpus in machines)


def _machines() -> list[tuple[int, int]]:
    """Cores and GPUs of each machine; where there are GPUs, of those machines that have some."""
    import ray

    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    machines = [(int(each.get("CPU", 0)), int(each.get("GPU", 0))) for each in found]
    return [machine for machine in machines if machine[1]] or machines


def _most_cores(machines: list[tuple[int, int]]) -> int:
    return max((cores for cores, _ in machines), default=0)


def _room(machines: list[tuple[int, int]], threads: int) -> int:
    return sum(min(gpus or cores, cores // threads) for cores, gpus in machines)
