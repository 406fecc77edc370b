"""The network that the loop calls: a UNet's trunk, eager, compiled or from a package."""

from __future__ import annotations

import copy
from typing import Protocol

import torch

from bbdm.networks.unet import UNet


class Network(Protocol):
    """The call of a UNet's trunk, after its modulation; see :meth:`bbdm.networks.unet.UNet.trunk`."""

    def __call__(
        self, x: torch.Tensor, modulation: torch.Tensor, condition: torch.Tensor | None = None, /
    ) -> torch.Tensor:
        """The prediction, (B, C, H, W) in the dtype of x."""
        ...


def placed(unet: UNet, device: torch.device, dtype: torch.dtype) -> UNet:
    """The network on a device, in a dtype and in evaluation mode: itself where it is so, else a copy."""
    weight = next(unet.parameters())
    if (weight.device, weight.dtype) == (device, dtype) and not unet.training:
        return unet
    return copy.deepcopy(unet).to(device, dtype).eval().requires_grad_(False)
