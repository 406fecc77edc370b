"""Optimizers, and the original BBDM's schedule: a learning rate that falls when the loss stops falling."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from bbdm.training.config import RunConfig

FACTOR = 0.5
THRESHOLD = 1e-4  # relative decrease that counts as a lower loss
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


@dataclass
class Plateau:
    """Halves the learning rate after ``patience`` optimizer steps without a lower loss, then rests as long.

    It equals torch's ReduceLROnPlateau, called after each optimizer step with BBDM's numbers.
    """

    patience: int
    lowest: float = math.inf  # the lowest loss so far
    waited: int = 0  # steps since then
    resting: int = 0  # steps left of a rest
    scale: float = 1.0

    def update(self, loss: float) -> None:
        """Update with the loss of an optimizer step."""
        if loss < self.lowest * (1 - THRESHOLD):
            self.lowest, self.waited = loss, 0
        else:
            self.waited += 1
        if self.resting:
            self.resting -= 1
            self.waited = 0
        if self.waited > self.patience:
            self.scale *= FACTOR
            self.waited, self.resting = 0, self.patience

    def rate(self, learning_rate: float) -> float:
        """The learning rate after the reductions so far; never above the given one."""
        return min(learning_rate, max(LOWEST_RATE, learning_rate * self.scale))

    def state(self) -> dict[str, Any]:
        """Plain values from which a run resumes; ``patience`` is a setting."""
        return {name: value for name, value in asdict(self).items() if name != "patience"}
