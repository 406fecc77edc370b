"""What tests of several servers use, and a cluster of Ray on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bbdm import ABridge, BridgeSampler, save_checkpoint
from tests.conftest import tiny_unet
from tests.onnx.exports import checkpoint as saved_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bridge of pictures of 16 x 16."""
    path = tmp_path_factory.mktemp("served") / "c.pt"
    save_checkpoint(path, tiny_unet(condition_channels=3), ABridge(num_steps=50), image_size=16)
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the app shows."""
    return saved_checkpoint(tmp_path_factory.mktemp("app") / "bridge.pt")


@pytest.fixture(scope="module")
def sampler(file: Path) -> BridgeSampler:
    """That of the app's checkpoint."""
    return BridgeSampler.from_checkpoint(file)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head with one core and another node with one, on the loopback."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray._private import ray_constants
    from ray.cluster_utils import Cluster

    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)  # else it replaces the loopback's address

    node = {"num_cpus": 1, "object_store_memory": 200 * 2**20, "node_ip_address": "127.0.0.1"}
    made = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    made.add_node(**node)
    yield made
    made.shutdown()
