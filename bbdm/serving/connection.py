"""Joining a cluster, or starting one on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
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


def machines() -> list[Mapping[str, float]]:
    """The resources of each machine of the cluster; where there are GPUs, of those that have some."""
    import ray

    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [each for each in found if each.get("GPU")] or found
