"""What moves weights: optimizers, the original BBDM's schedule, and the moving average of weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from bbdm.training.config import RunConfig

LOWEST_RATE = 5e-7
Network = TypeVar("Network", bound=nn.Module)
MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def make_optimizer(
    network: nn.Module, config: RunConfig, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.Optimizer:
    """The optimizer of a network's trained weights, fused into one kernel where the device supports it."""
    make = torch.optim.Adam
    if config.optimizer == "adamw":
        make = partial(torch.optim.AdamW, weight_decay=config.weight_decay)
    try:
        return make(trained(network), config.learning_rate, betas, fused=True)
    except RuntimeError:  # not on this device
        return make(trained(network), config.learning_rate, betas, fused=False)


def trained(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that training moves."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


class Plateau(ReduceLROnPlateau):
    """Halves a rate after ``patience`` optimizer steps without a lower loss, then rests as long.

    The rate is a scale of the learning rate, which also warms up and may change when a run resumes.
    """

    def __init__(self, patience: int) -> None:
        scale = torch.optim.SGD([torch.zeros(())], lr=1.0)
        super().__init__(scale, factor=0.5, patience=patience, threshold=1e-4, cooldown=patience, eps=0)

    def rate(self, learning_rate: float) -> float:
        """The learning rate after the reductions so far; never above the one that it is of."""
        return min(learning_rate, max(LOWEST_RATE, learning_rate * self.optimizer.param_groups[0]["lr"]))

    def state_dict(self) -> dict[str, Any]:
        """Plain values, by the names that files have."""
        scale = self.optimizer.param_groups[0]["lr"]
        return {"lowest": self.best, "waited": self.num_bad_epochs, "resting": self.cooldown_counter, "scale": scale}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a :meth:`state_dict`."""
        self.best, self.num_bad_epochs = state_dict["lowest"], state_dict["waited"]
        self.cooldown_counter, self.optimizer.param_groups[0]["lr"] = state_dict["resting"], state_dict["scale"]


class EMA(Generic[Network]):
    """Exponential moving average of a network's weights, with decay min(decay, (1 + n) / (10 + n)) at step n.

    Args:
        network: whose copy it begins with.
        decay: the share of the average that an update keeps.
        start: optimizer steps during which updates copy the weights.
        every: optimizer steps from one update to the next.

    Attributes:
        network: the network with the averaged weights, in evaluation mode.
    """

    def __init__(self, network: Network, decay: float, start: int = 0, every: int = 1) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self.start = start
        self.every = every

    @torch.no_grad()
    def update(self, network: Network, step: int) -> None:
        """Update the average and copy buffers after optimizer step ``step``, counted from 0, if it is due."""
        if (step + 1) % self.every:
            return
        decay = min(self.decay, (1 + step) / (10 + step)) if step + 1 >= self.start else 0.0
        averages: list[torch.Tensor] = [*self.network.parameters()]
        weights: list[torch.Tensor] = [*network.parameters()]
        torch._foreach_lerp_(averages, weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        for mine, theirs in zip(self.network.buffers(), network.buffers(), strict=True):
            mine.copy_(theirs)
