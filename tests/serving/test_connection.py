"""Room for workers on a cluster's machines; no Ray is started."""

from collections.abc import Callable

import pytest

from bbdm.serving.connection import room_for

Cluster = Callable[..., None]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """cluster((cores, GPUs), ...): Ray's list of machines is this, and one that was lost."""
    import ray

    def make(*machines: tuple[int, int]) -> None:
        nodes = [{"Alive": True, "Resources": {"CPU": float(cores), "GPU": float(gpus)}} for cores, gpus in machines]
        lost = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
        monkeypatch.setattr(ray, "nodes", lambda: [*nodes, lost])

    return make


def test_a_worker_is_on_one_machine(cluster: Cluster):
    cluster((6, 0), (6, 0))
    assert [room_for(threads) for threads in (1, 3, 4)] == [(12, False), (4, False), (2, False)]
    with pytest.raises(ValueError, match="threads must be at most the 6 cores of a machine, got 8"):
        room_for(8)
    cluster((8, 2), (8, 1), (64, 0))
    assert [room_for(threads) for threads in (1, 4, 5, 8)] == [(3, True), (3, True), (2, True), (2, True)]
    with pytest.raises(ValueError, match="threads must be at most the 8 cores of a machine, got 9"):
        room_for(9)
