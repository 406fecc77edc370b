"""Optimizers, and the original BBDM's schedule: a learning rate that falls when the loss stops falling."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from bbdm.training.config import RunConfig

LOWEST_RATE = 5e-7


def make_optimizer(
    network: nn.Module, config: RunConfig, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.Optimizer:
    """The optimizer of a network's trained weights, fused into one kernel where the device supports it."""
    make = torch.optim.Adam
    if config.optimizer == "adamw":
        make = partial(torch.optim.AdamW, weight_decay=config.weight_decay)
    weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        return make(weights, config.learning_rate, betas, fused=True)
    except RuntimeError:  # not on this device
        return make(weights, config.learning_rate, betas, fused=False)


class Plateau(ReduceLROnPlateau):
    """Halves a rate after ``patience`` optimizer steps without a lower loss, then rests as long.

    The rate is a scale of the learning rate, which also warms up and may change when a run resumes.
    """

    def __init__(self, patience: int) -> None:
        scale = torch.optim.SGD([torch.zeros(())], lr=1.0)
        super().__init__(scale, factor=0.5, patience=patience, threshold=1e-4, cooldown=patience, eps=0)

    def rate(self, learning_rate: float) -> float:
        """The learning rate after the reductions so far; never above the given one."""
        return min(learning_rate, max(LOWEST_RATE, learning_rate * self.optimizer.param_groups[0]["lr"]))

    def state_dict(self) -> dict[str, Any]:
        """Plain values, by the names that files have."""
        scale = self.optimizer.param_groups[0]["lr"]
        return {"lowest": self.best, "waited": self.num_bad_epochs, "resting": self.cooldown_counter, "scale": scale}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a :meth:`state_dict`."""
        self.best, self.num_bad_epochs = state_dict["lowest"], state_dict["waited"]
        self.cooldown_counter, self.optimizer.param_groups[0]["lr"] = state_dict["resting"], state_dict["scale"]
