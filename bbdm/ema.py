"""The moving average of a network's weights, which samples better than the weights themselves."""

from __future__ import annotations

import copy

import torch

from bbdm.networks.unet import UNet


class EMA:
    """Exponential moving average of a network's weights, faster at first: decay min(decay, (1 + n) / (10 + n))."""

    def __init__(self, unet: UNet, decay: float) -> None:
        self.unet = copy.deepcopy(unet).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, unet: UNet, step: int) -> None:
        """Take in the weights after optimizer step ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for average, weight in zip(self.unet.parameters(), unet.parameters(), strict=True):
            average.lerp_(weight, 1 - decay)
