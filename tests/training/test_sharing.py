"""Weights, average and optimizer that are sharded over processes (gloo): the same as without."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]

import bbdm
from bbdm.execution import sharing
from bbdm.execution.processes import Processes
from bbdm.files.weights import copied
from bbdm.networks.base import Network, is_sharded
from bbdm.networks.dit import DiT
from tests.conftest import MakeTrainer, tiny_unet
from tests.training.launching import TORCHRUN, run

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """This process alone."""
    distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield sharing.mesh_of(Processes(torch.device("cpu")))
    distributed.destroy_process_group()


def tiny_dit() -> DiT:
    torch.manual_seed(0)
    dit = DiT(width=16, depth=2, heads=2, patch=2, condition_channels=3)
    for parameter in dit.parameters():
        nn.init.normal_(parameter, std=0.1)
    return dit


NETWORKS = {
    "unet": lambda: tiny_unet(condition_channels=3, scale_shift=False),
    "unet, scaled and resampled": lambda: tiny_unet(condition_channels=3, scale_shift=True, residual_resampling=True),
    "dit": tiny_dit,
    "any": lambda: bbdm.wrap(nn.Conv2d(3, 3, 3, padding=1), condition_channels=3, call=lambda f, x, t, c: f(x) * t[0]),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("units", [True, False])
def test_a_network_that_is_sharded_out(name: str, units: bool, mesh: DeviceMesh) -> None:
    """Predictions, gradients and files are those of before; weights of units are sharded between calls."""
    plain: Network = NETWORKS[name]()
    x, y, t = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), torch.tensor([1.0, 2.0])
    shared = copy.deepcopy(plain)
    sharing.shard(shared, mesh, units)
    assert all(is_sharded(weight) for weight in shared.parameters())
    torch.testing.assert_close(shared(x, t, {"source": y}), plain(x, t, {"source": y}))
    for network in (shared, plain):
        network(x, t, {"source": y}).square().mean().backward()
    for mine, theirs in zip(shared.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(sharing.full(mine.grad), theirs.grad)
    state = copied(shared.state_dict())
    assert list(state) == list(plain.state_dict())
    assert all(torch.equal(state[key], value) for key, value in plain.state_dict().items())
    sharing.load_weights(shared, {key: value + 1 for key, value in state.items()})
    assert all(torch.equal(value, state[key] + 1) for key, value in copied(shared.state_dict()).items())


def test_weights_are_all_gathered_for_a_while(mesh: DeviceMesh) -> None:
    plain = tiny_unet(condition_channels=3)
    shared: Any = copy.deepcopy(plain)
    sharing.shard(shared, mesh, units=False)
    x, y, t = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), torch.tensor([1.0, 2.0])
    with sharing.all_gathered(shared), torch.no_grad():
        assert not any(is_sharded(weight) for weight in shared.parameters())
        torch.testing.assert_close(
            shared.body(x, shared.embedder()(t), {"source": y}), plain(x, t, {"source": y})
        )  # as the sampler calls it
        shared(x, t, {"source": y})
        assert not any(is_sharded(weight) for weight in shared.parameters())
    assert all(is_sharded(weight) for weight in shared.parameters())


def test_moments_take_the_memory_format_of_the_weights() -> None:
    """A file of a sharded training has contiguous moments; a UNet is channels_last."""
    unet = tiny_unet()
    optimizer = torch.optim.Adam(unet.parameters(), fused=True)
    unet(torch.randn(1, 3, 8, 8), torch.ones(1)).sum().backward()
    optimizer.step()
    state = copied(optimizer.state_dict(), torch.contiguous_format)
    sharing.load_optimizer(optimizer, state)
    for weight, of in optimizer.state.items():
        assert of["exp_avg"].stride() == weight.stride()
    for index, of in enumerate(optimizer.state.values()):
        assert torch.equal(of["exp_avg"], state["state"][index]["exp_avg"])
        assert of["step"] == 1


def test_what_sharded_processes_decide_alike(make_trainer: MakeTrainer) -> None:
    """Without a tracker, as all but the first are: each joins the norm that the first writes, every 50th."""
    assert not make_trainer(shard=True).task.sharded, "one process has nobody to share with"
    task = make_trainer("sharded").task
    task.sharded = True
    assert [step for step in range(200) if task.gradient_norm(step) is not None] == [49, 99, 149, 199]
    assert task.finite()
    with torch.no_grad():
        next(iter(task.network.parameters())).fill_(torch.nan)
    assert not task.finite()


@pytest.mark.nightly
def test_what_two_processes_hold() -> None:
    done = run([*TORCHRUN, "tests.training.two_shares"])
    assert done.returncode == 0, done.stderr
