"""Weights that are shared out over processes, each of which holds a part of every tensor (FSDP2).

All of it is of torch.distributed.fsdp and torch.distributed.tensor, which take seconds to import and are only
needed here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from bbdm.execution.processes import Processes
from bbdm.networks.base import Network, is_shared

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def all_of(processes: Processes) -> DeviceMesh:
    """The processes of a run as torch names them to share weights."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(processes.device.type, (processes.count,))


def share_out(network: Network, mesh: DeviceMesh, units: bool) -> None:
    """Share out the weights of a network, and move them to the devices of the processes, group by group.

    Args:
        network: the network, which is equal in all processes. A call puts its weights together for a while.
        mesh: the processes that share the weights.
        units: all-gather one group of :meth:`~bbdm.networks.base.Network.units` at a time, not all at once.
    """
    from torch.distributed.fsdp import fully_shard

    network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]  (FSDP2 takes no other)
    for group in network.units() if units else ():
        fully_shard(group, mesh=mesh)
    fully_shard(network, mesh=mesh, reshard_after_forward=units)


@contextmanager
def together(network: Any) -> Iterator[None]:
    """A context in which each process has all weights of a network that was shared out without units."""
    network.unshard()
    try:
        yield
    finally:
        network.reshard()


def own(tensor: Any) -> torch.Tensor:
    """This process's part of a tensor; all of one that is not shared out."""
    return tensor.to_local() if is_shared(tensor) else tensor


def whole(tensor: Any) -> torch.Tensor:
    """A tensor put together, in each process; all of them must call this."""
    return tensor.full_tensor() if is_shared(tensor) else tensor


def part_of(tensor: torch.Tensor, like: Any) -> torch.Tensor:
    """A whole tensor, which each process has, shared out as another of its shape is."""
    if not is_shared(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.contiguous(), like.device_mesh, like.placements, src_data_rank=None)


def restore_weights(network: Network, state: dict[str, torch.Tensor]) -> None:
    """Load a whole state dict into a network, which may be shared out."""
    mine = network.state_dict()
    network.load_state_dict({key: part_of(value, mine[key]) if key in mine else value for key, value in state.items()})


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a whole state into an optimizer, whose weights may be shared out or of another memory format."""
    weights = dict(enumerate(weight for group in optimizer.param_groups for weight in group["params"]))

    def moved(name: str, value: Any, weight: torch.Tensor | None) -> Any:
        if name == "step" or weight is None or not isinstance(value, torch.Tensor) or value.shape != weight.shape:
            return value
        return torch.empty_like(weight, dtype=value.dtype, requires_grad=False).copy_(part_of(value, weight))

    states = state["state"].items()
    mine = {index: {name: moved(name, each, weights.get(index)) for name, each in of.items()} for index, of in states}
    optimizer.load_state_dict({**state, "state": mine})
