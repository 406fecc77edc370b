"""The moving average of a network's weights, which samples better than the weights themselves."""

from __future__ import annotations

import copy

import torch

from bbdm.networks.unet import UNet


class EMA:
    """Exponential moving average of a network's weights, faster at first: decay min(decay, (1 + n) / (10 +
    n)).

    Args:
        unet: the network that it begins as.
        decay: how much of it stays at an update.
        start: optimizer steps during which updates copy the weights.
        every: optimizer steps from one update to the next.
    """

    def __init__(self, unet: UNet, decay: float, start: int = 0, every: int = 1) -> None:
        self.unet = copy.deepcopy(unet).eval().requires_grad_(False)
        self.decay = decay
        self.start = start
        self.every = every

    @torch.no_grad()
    def update(self, unet: UNet, step: int) -> None:
        """Take in the weights after optimizer step ``step``, the first being 0, where it is one to take in."""
        if (step + 1) % self.every:
            return
        decay = min(self.decay, (1 + step) / (10 + step)) if step + 1 >= self.start else 0.0
        for average, weight in zip(self.unet.parameters(), unet.parameters(), strict=True):
            average.lerp_(weight, 1 - decay)
