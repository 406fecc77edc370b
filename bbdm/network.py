"""What any network must be to be sampled."""

from __future__ import annotations

import copy
from typing import Protocol

import torch

from bbdm.networks.unet import UNet


class Network(Protocol):
    """A UNet after its modulation: see :meth:`bbdm.networks.unet.UNet.trunk`."""

    def __call__(
        self, x: torch.Tensor, modulation: torch.Tensor, condition: torch.Tensor | None = None, /
    ) -> torch.Tensor:
        """(B, C, H, W) in the dtype of x."""
        ...


def placed(unet: UNet, device: torch.device, dtype: torch.dtype) -> UNet:
    """The network for sampling on a device in a dtype: itself where it is that already, a copy otherwise."""
    weight = next(unet.parameters())
    if (weight.device, weight.dtype) == (device, dtype) and not unet.training:
        return unet
    return copy.deepcopy(unet).to(device, dtype).eval().requires_grad_(False)
