"""Weights that are sharded over processes, each of which holds a part of every tensor (FSDP2).

torch.distributed.fsdp and torch.distributed.tensor take seconds to import, and are imported where they are
needed. torch.distributed.checkpoint.state_dict names an optimizer's state by weights, and files of before
number it, so that files are read here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from bbdm.execution.processes import Processes
from bbdm.networks.base import Network, is_sharded

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def mesh_of(processes: Processes) -> DeviceMesh:
    """The mesh of all processes of a run."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(processes.device.type, (processes.count,))


def shard(network: Network, mesh: DeviceMesh, units: bool) -> None:
    """Shard the weights of a network, which is equal in all processes, and move them to their devices.

    A call of the network all-gathers its weights for a while. With ``units``, that is one group of
    :meth:`~bbdm.networks.base.Network.units` at a time, not all at once.
    """
    from torch.distributed.fsdp import fully_shard

    network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]  (FSDP2 takes no other)
    for group in network.units() if units else ():
        fully_shard(group, mesh=mesh)
    fully_shard(network, mesh=mesh, reshard_after_forward=units)


@contextmanager
def all_gathered(network: Any) -> Iterator[None]:
    """A context in which each process has all weights of a network that was sharded without units."""
    network.unshard()
    try:
        yield
    finally:
        network.reshard()


def local(tensor: Any) -> torch.Tensor:
    """This process's part of a tensor; all of one that is not sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def full(tensor: Any) -> torch.Tensor:
    """A tensor, all-gathered if it is sharded: then all processes must call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def sharded_like(tensor: torch.Tensor, other: Any) -> torch.Tensor:
    """A full tensor, which each process has, sharded as another of its shape is."""
    if not is_sharded(other):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.contiguous(), other.device_mesh, other.placements, src_data_rank=None)


def load_weights(network: Any, state: dict[str, torch.Tensor]) -> None:
    """Load a full state dict into a network, which may be sharded."""
    own = network.state_dict()
    network.load_state_dict({key: sharded_like(value, own.get(key)) for key, value in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a full state into an optimizer, whose weights may be sharded or of another memory format."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def placed(name: str, value: Any, weight: torch.Tensor) -> Any:
        if name == "step":
            return value
        return torch.empty_like(weight, dtype=value.dtype, requires_grad=False).copy_(sharded_like(value, weight))

    own = {
        index: {name: placed(name, value, weights[index]) for name, value in moments.items()}
        for index, moments in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": own})
