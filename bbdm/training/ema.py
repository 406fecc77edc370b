"""The moving average of a network's weights, which samples better than the weights themselves."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


class EMA(Generic[Network]):
    """Exponential moving average of a network's weights, with decay min(decay, (1 + n) / (10 + n)) at step n.

    Args:
        unet: the network whose copy it begins with.
        decay: the share of the average that an update keeps.
        start: optimizer steps during which updates copy the weights.
        every: optimizer steps from one update to the next.
    """

    def __init__(self, unet: Network, decay: float, start: int = 0, every: int = 1) -> None:
        self.unet = copy.deepcopy(unet).eval().requires_grad_(False)
        self.decay = decay
        self.start = start
        self.every = every

    @torch.no_grad()
    def update(self, unet: Network, step: int) -> None:
        """Update the average and copy buffers after optimizer step ``step``, counted from 0, if it is due."""
        if (step + 1) % self.every:
            return
        decay = min(self.decay, (1 + step) / (10 + step)) if step + 1 >= self.start else 0.0
        averages: list[torch.Tensor] = [*self.unet.parameters()]
        weights: list[torch.Tensor] = [*unet.parameters()]
        torch._foreach_lerp_(averages, weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        for mine, theirs in zip(self.unet.buffers(), unet.buffers(), strict=True):
            mine.copy_(theirs)
